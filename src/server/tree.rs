//! Directories that are built in one session and take the place of others as a whole. All of it blocks.
//!
//! A session builds one at a time. From its answer on, everything below the name is looked up in what is built, by
//! the store of the session's [`Pass`]: the same requests, rights and quotas hold as for the same names without it, and
//! once more at the end, for every difference from what was there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::held::owner;
use super::requests::done;
use super::shared::{Pass, Shared, Who};
use crate::access::Action;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::TREE_TAKEOVER_TIMEOUT;
use crate::path::RemotePath;
use crate::protocol::{BeginTree, Message as _, PublishTree, TreeBegun};
use crate::storage::{Tree, TreeBuilder, TreeChange};

/// How often it is looked whether an older connection has let go.
const TAKEOVER_INTERVAL: Duration = Duration::from_millis(20);

/// Which connection builds what, so that a newer one can end it.
#[derive(Default)]
pub(super) struct Trees(Mutex<HashMap<[u8; 32], Builder>>);

/// A connection, by its number and what ends it.
type Builder = (u64, Weak<CancellationToken>);

impl Trees {
    /// Ends the connection that has this tree, if another one has.
    fn take_over(&self, key: [u8; 32], who: &Who) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= 256 && table.len().is_power_of_two() {
            table.retain(|_, (_, token)| token.strong_count() > 0);
        }
        let before = table.insert(key, (who.connection, Arc::downgrade(&who.superseded)));
        if let Some((connection, token)) = before
            && connection != who.connection
            && let Some(token) = token.upgrade()
        {
            token.cancel();
        }
    }
}

/// Begins to build a directory, or goes on with it.
pub(super) fn begin(shared: &Shared, who: &Who, transfer: u32, request: &BeginTree) -> Result<Vec<Bytes>> {
    let answer = |tree: &Tree, resumed| {
        let begun = TreeBegun { resumed, done: tree.is_done() };
        Ok(vec![begun.to_frame(transfer).into()])
    };
    let path = &request.path;
    if let Some(tree) = who.tree() {
        if tree.path() == path && tree.is_of(&request.run.0) {
            return answer(&tree, tree.is_resumed());
        }
        let message = format!("this session builds {} already, and one directory in all", tree.path());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    if who.wants_receipts {
        let message = "a receipt says what is stored under a name, which in a tree is so only at its end: do without \
                       one of the two";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    if who.attendance().is_some() {
        // All who hold one invite would build one and the same.
        let message = "who holds an invite stores files, and builds no directory that takes another's place";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let pass = shared.pass(who)?;
    // It begins as what is there, and is compared with it: who may not see that would learn what it is.
    pass.decide(Action::List(path))?;
    pass.decide_new(Action::Create(path), path)?;
    let owner = owner(&who.principal, request.resume.as_ref())
        // Nobody would know it again: it belongs to this run.
        .unwrap_or_else(|| *blake3::hash(&request.run.0).as_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&owner).update(&pass.grant.home.to_bytes()).update(b"/").update(&path.to_bytes());
    shared.trees.take_over(*hasher.finalize().as_bytes(), who);
    let builder = TreeBuilder { owner, name: who.principal.to_string(), run: request.run.0 };
    let begun = Instant::now();
    let tree = loop {
        match pass.store.begin_tree(path, &builder) {
            // The connection that had it ends, with what it still does.
            Err(error) if error.kind() == ErrorKind::Busy && begun.elapsed() < TREE_TAKEOVER_TIMEOUT => {
                std::thread::sleep(TAKEOVER_INTERVAL);
            }
            tree => break Arc::new(tree.map_err(|error| hide(&pass, path, error))?),
        }
    };
    let resumed = tree.is_resumed();
    info!("{} builds {path} anew{}", who.principal, if resumed { ", with what there is" } else { "" });
    who.set_tree(Some(Arc::clone(&tree)));
    if !resumed {
        // What an earlier one had replaced or removed in it went with it.
        shared.accounts.count_soon();
    }
    answer(&tree, resumed)
}

/// Puts what was built in its place.
pub(super) fn publish(shared: &Shared, who: &Who, transfer: u32, request: &PublishTree) -> Result<Vec<Bytes>> {
    let path = &request.path;
    let tree = who.tree().filter(|tree| tree.path() == path);
    let tree = tree.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("this session does not build {path}")))?;
    shared.pass(who)?.decide(Action::Create(path))?;
    let published = tree.publish(&mut |change| {
        // The rules may change while it goes on.
        let pass = shared.pass(who)?;
        match change {
            TreeChange::Created(path) => pass.decide_new(Action::Create(&path), &path),
            TreeChange::Replaced(path) => pass.decide(Action::Overwrite(&path)),
            TreeChange::Removed(path) => pass.decide(Action::Remove(&path)),
        }
    });
    published.map_err(|error| match shared.pass(who) {
        Ok(pass) => hide(&pass, path, error),
        Err(refused) => refused,
    })?;
    who.set_tree(None);
    shared.accounts.count_soon();
    let what = path.clone();
    shared.tasks.spawn_blocking(move || clean(&tree, &what));
    Ok(vec![done(1).to_frame(transfer).into()])
}

/// What went wrong, without the names of what this principal may not see.
fn hide(pass: &Pass, path: &RemotePath, error: Error) -> Error {
    if pass.sees_all(path) {
        return error;
    }
    let message = format!("{path} cannot be replaced as a whole: something in it that you may not see is in the way");
    Error::new(error.kind(), message)
}

fn clean(tree: &Tree, path: &RemotePath) {
    match tree.clean() {
        Ok(()) => info!("{path} is in its place, and what it replaced is removed"),
        Err(error) => {
            error!("{path} is in its place, but what it replaced is left until the next start: {}", error.chain())
        }
    }
}
