//! Groups that a server says lie in holes: they are made here, and not asked for.

use super::blocking;
use super::large::{Partial, Sink};
use crate::client::api::Item;
use crate::client::zeros;
use crate::error::Result;
use crate::hash::{GroupHash, group_count, group_len, group_offset};
use crate::protocol::GetAnswer;
use crate::transfer::Runs;

/// Groups that are hashed and made in one hop to a blocking thread.
const STEP: u64 = 64;

/// Makes the groups of zeros that are not here yet. That they are zeros is a claim like any content: the hash of the
/// whole decides.
pub(super) async fn make(partial: &mut Partial, answer: &GetAnswer, item: &mut Item) -> Result<()> {
    let (Some(told), Sink::File(upload)) = (&answer.zeros, &partial.sink) else { return Ok(()) };
    let (size, count) = (partial.size, group_count(partial.size));
    let mut runs = Runs::default();
    runs.extend(&told.0, count, told.0.len())?;
    let upload = std::sync::Arc::clone(upload);
    loop {
        let groups = runs.take(STEP);
        if groups.is_empty() {
            return Ok(());
        }
        let missing: Vec<u64> = groups.into_iter().filter(|&group| partial.tree.value(group).is_none()).collect();
        let upload = std::sync::Arc::clone(&upload);
        let made = blocking(move || {
            let mut made = Vec::with_capacity(missing.len());
            for group in missing {
                let content = zeros::content(group_len(size, group));
                upload.write_at(group_offset(group), &content)?;
                made.push((group, GroupHash::of(group, &content)));
            }
            // Who publishes the file must find nobody else holding it.
            drop(upload);
            Ok(made)
        })
        .await?;
        for (group, hash) in made {
            let len = group_len(size, group);
            partial.insert(group, hash, len);
            item.advance_group(group, len, len);
        }
    }
}
