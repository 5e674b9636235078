//! The end of a download that several connections, or several runs, have brought, of a file whose hash the server has
//! not recorded.
//!
//! No one connection of the server has hashed all of it. Instead of asking for the hash of the whole, which a link that
//! breaks every few seconds may never live to see, the groups are compared with the server's some at a time, and what
//! was compared stays so for the attempts that follow.

use super::large::Partial;
use crate::client::api::Client;
use crate::client::session::{Exchange, Reply};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupValue, group_count};

/// Groups of one question: a server hashes so many in one step.
const STEP: u64 = 64;

/// Compares all groups with the server's.
///
/// # Errors
/// `Mismatch` when one is another one there; what the connection can fail with. What was compared is remembered.
pub(super) async fn confirm(client: &Client, exchange: &mut Exchange, partial: &mut Partial) -> Result<()> {
    let count = group_count(partial.size);
    while partial.confirmed < count {
        let end = count.min(partial.confirmed + STEP);
        exchange.want_values(partial.confirmed, end - partial.confirmed);
        while partial.confirmed < end {
            let told = match exchange.next().await? {
                Reply::Values(told)
                    if told.first == partial.confirmed && told.values.0.len() as u64 <= end - partial.confirmed =>
                {
                    told.values.0
                }
                other => return Err(exchange.unexpected(&other)),
            };
            for value in told {
                compare(partial, value)?;
            }
        }
        client.progressed();
    }
    Ok(())
}

fn compare(partial: &mut Partial, theirs: GroupValue) -> Result<()> {
    let group = partial.confirmed;
    if partial.tree.value(group) != Some(theirs) {
        let message = format!("group {group} of what arrived is not the server's");
        return Err(Error::new(ErrorKind::Mismatch, message));
    }
    partial.confirmed += 1;
    Ok(())
}
