//! What a transfer tells whoever watches it: a bounded stream of [`Event`]s, and the [`Summary`] that they add up to.
//!
//! Events of a file's life are few (two a file) and never lost: who tells them waits for room. Progress is told as
//! it comes and dropped when there is no room, so that a slow terminal never holds up data.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::client::filter::LeftOutBy;
use crate::client::stalls::{Limit, Waited};
use crate::client::walk::Skip;
use crate::error::{Error, ErrorKind};
use crate::hash::Root;
use crate::protocol::EntryKind;

/// Events that wait to be shown. A slot holds a name and at most an error: 4 MiB at the very worst, 400 KiB usually.
pub const EVENTS_MAX: usize = 1024;

/// A number that tells the files of one command apart.
pub type ItemId = u64;

/// How something ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// New content is there, durably.
    Stored,
    /// It is there as a further name of a file that this transfer has stored, or found to be there.
    Linked,
    /// The same content was there already.
    Unchanged,
    /// Something else was there, and was left.
    Kept,
    /// New content is there, under another name than was asked for.
    Renamed,
    /// It would be moved; this is a dry run.
    Planned,
    /// It is the same on both sides, and nothing else was asked.
    Equal,
    /// It is gone from the destination, where the source does not have it.
    Removed,
    /// It would be removed; this is a dry run.
    PlannedRemoval,
}

/// How something here is not what the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The server has nothing of the name.
    MissingThere,
    /// Only the server has it.
    MissingHere,
    /// It is one thing here and another there.
    Kind(ItemKind, EntryKind),
    /// The sizes differ: here, there.
    Size(u64, u64),
    /// The sizes are equal, the times are not, and the content differs.
    Content,
    /// Sizes and times are equal and the content differs, so one of the two is damaged.
    Damage,
    /// The links point to different names.
    Target,
}

impl Difference {
    /// The exit code of a command that finds it.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        let kind = if self == Difference::Damage { ErrorKind::Mismatch } else { ErrorKind::NotFound };
        kind.exit_code()
    }

    /// One word or two, the same in every version.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Difference::MissingThere => "missing_there",
            Difference::MissingHere => "missing_here",
            Difference::Kind(..) => "kind",
            Difference::Size(..) => "size",
            Difference::Content => "content",
            Difference::Damage => "damage",
            Difference::Target => "target",
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::MissingThere => f.write_str("the server does not have it"),
            Difference::MissingHere => f.write_str("only the server has it"),
            Difference::Kind(here, there) => write!(f, "{here} here, {} there", kind_there(*there)),
            Difference::Size(here, there) => write!(f, "{here} bytes here, {there} there"),
            Difference::Content => f.write_str("the content differs"),
            Difference::Damage => f.write_str(
                "the content differs, though size and time are the same: one of the two is damaged (`sealift scrub` on the server tells which)",
            ),
            Difference::Target => f.write_str("the links point to different names"),
        }
    }
}

fn kind_there(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "a file",
        EntryKind::Directory => "a directory",
        EntryKind::Link => "a link",
        _ => "something else",
    }
}

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// More to do was found; numbers add up.
    Found {
        /// Files.
        files: u64,
        /// Bytes in them, as far as that is known.
        bytes: u64,
    },
    /// All there is to do has been found.
    FoundAll,
    /// A file is being moved.
    Started {
        /// Which.
        item: ItemId,
        /// What the person calls it, as raw bytes.
        name: Vec<u8>,
        /// Its size; none for a stream.
        size: Option<u64>,
    },
    /// Bytes that count as done since the last such event: moved, or found to be there already.
    Progress {
        /// Of which file.
        item: ItemId,
        /// How many more count as done. Less than nothing when some have to be moved once more.
        bytes: i64,
        /// How many bytes of content crossed the wire.
        moved: u64,
        /// How many of those had crossed it before, in an attempt of this run that broke.
        resent: u64,
        /// How many need not cross it, because the other side had them before this run. Told at the end of a file.
        held: u64,
    },
    /// A file, link or directory is as it should be.
    Done {
        /// Which.
        item: ItemId,
        /// What the person calls it.
        name: Vec<u8>,
        /// What it is.
        kind: ItemKind,
        /// Its size.
        size: u64,
        /// Its hash, where that is known.
        root: Option<Root>,
        /// How it ended.
        outcome: Outcome,
        /// The name that it got, for [`Outcome::Renamed`].
        renamed_to: Option<Vec<u8>>,
    },
    /// Something failed for good; the rest goes on.
    Failed {
        /// Which, when it had been started.
        item: Option<ItemId>,
        /// What the person calls it.
        name: Vec<u8>,
        /// Why.
        error: Error,
    },
    /// Something here is not what the server has.
    Differs {
        /// Its name on the server.
        name: Vec<u8>,
        /// How.
        how: Difference,
    },
    /// Something is not moved by its nature.
    Skipped {
        /// What the person calls it.
        name: Vec<u8>,
        /// Why.
        why: Skip,
    },
    /// A rule of the person left something out.
    LeftOut {
        /// Which rule.
        rule: LeftOutBy,
        /// How many names.
        count: u64,
    },
    /// Files and links were found to be the same already, without being looked into.
    Unchanged {
        /// How many.
        files: u64,
        /// Bytes in them.
        bytes: u64,
    },
    /// The connection is lost, and another attempt follows.
    Retrying {
        /// How long until then.
        wait: Duration,
        /// What happened.
        reason: Error,
    },
    /// Extended attributes that were to be kept and could not be, with `--xattrs`.
    XattrsLost {
        /// Of how many files and directories.
        count: u64,
        /// Why: `Unsupported`, `NoSpace` or `Rights`.
        why: ErrorKind,
    },
    /// Something that the person should know.
    Warning(String),
    /// What all that was done waited for; told at the end.
    Waited(Box<Waited>),
    /// Something that is shown with `--verbose`: negotiated parameters, numbers of connections.
    Note(String),
}

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

impl fmt::Display for ItemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ItemKind::File => "a file",
            ItemKind::Directory => "a directory",
            ItemKind::Link => "a link",
        })
    }
}

/// The end that tells.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Event>, Arc<AtomicU64>);

/// A way for events, and its other end.
#[must_use]
pub fn channel() -> (Events, mpsc::Receiver<Event>) {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    (Events(sender, Arc::default()), receiver)
}

impl Events {
    /// A way that leads nowhere: nobody watches.
    #[must_use]
    pub fn unwatched() -> Events {
        channel().0
    }

    /// Tells something that must not be lost; waits for room.
    ///
    /// # Cancel safety
    /// The event is lost when this is dropped; nothing else is.
    pub async fn tell(&self, event: Event) {
        self.count(&event);
        // Nobody watches any more: there is no one to miss it.
        let _ = self.0.send(event).await;
    }

    /// As [`Events::tell`], from a thread that may block.
    pub fn tell_blocking(&self, event: Event) {
        self.count(&event);
        // Nobody watches any more: there is no one to miss it.
        let _ = self.0.blocking_send(event);
    }

    fn count(&self, event: &Event) {
        if matches!(event, Event::Failed { .. }) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// How many failures were told so far.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.1.load(Ordering::SeqCst)
    }

    /// Tells of progress, if there is room. The caller adds what was dropped to the next: the answer is whether it
    /// was told.
    #[must_use]
    pub fn progress(&self, progress: Event) -> bool {
        self.0.try_send(progress).is_ok()
    }
}

/// Rules that are counted one by one: a person gives few, but a tree may hold many files of rules.
const RULES_MAX: usize = 200;
/// What stands for the others.
const OTHER_RULES: &str = "other rules";

/// What the events of one command add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files and links whose new content is there.
    pub stored: u64,
    /// Of those, how many got another name than was asked for.
    pub renamed: u64,
    /// Of those that are stored, how many are further names of a file (hard links).
    pub linked: u64,
    /// Files whose content was there already.
    pub unchanged: u64,
    /// Files that were left because something was there (`--if-exists skip`).
    pub kept: u64,
    /// Things that are not moved by their nature.
    pub skipped: u64,
    /// Things that failed.
    pub failed: u64,
    /// Files that would be moved (`--dry-run`).
    pub planned: u64,
    /// Files and links that are the same on both sides (`verify`).
    pub equal: u64,
    /// What is not the same on both sides, or missing on one.
    pub differing: u64,
    /// Files, links and directories that were removed, or would be (`--dry-run`).
    pub removed: u64,
    /// Names that rules left out: how many by which, the first 200 rules by name.
    pub left_out: BTreeMap<LeftOutBy, u64>,
    /// Directories that are there.
    pub directories: u64,
    /// Files and directories that have not all the extended attributes that they should have (`--xattrs`).
    pub xattrs_lost: u64,
    /// Bytes of the files that are done.
    pub bytes: u64,
    /// Bytes of content that crossed the wire.
    pub bytes_moved: u64,
    /// Of those, how many had crossed it before, in an attempt that broke.
    pub bytes_resent: u64,
    /// Bytes that need not cross it, because the other side had them before this run.
    pub bytes_held: u64,
    /// What it waited for.
    pub waited: Waited,
    /// How often the connection was lost and made again.
    pub retries: u64,
    /// Whether a failure may go away when the same command runs again.
    pub retryable: bool,
    /// The exit code of the failures so far; 0 without any.
    pub exit: u8,
}

impl Summary {
    /// Adds one event.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Done { outcome: Outcome::Removed | Outcome::PlannedRemoval, .. } => self.removed += 1,
            Event::Done { kind: ItemKind::Directory, .. } => self.directories += 1,
            Event::Done { size, outcome, .. } => {
                let count = match outcome {
                    Outcome::Stored => &mut self.stored,
                    Outcome::Unchanged => &mut self.unchanged,
                    Outcome::Kept => &mut self.kept,
                    Outcome::Planned | Outcome::Removed | Outcome::PlannedRemoval => &mut self.planned,
                    Outcome::Equal => &mut self.equal,
                    Outcome::Linked => {
                        self.linked += 1;
                        &mut self.stored
                    }
                    Outcome::Renamed => {
                        self.renamed += 1;
                        &mut self.stored
                    }
                };
                *count += 1;
                self.bytes = self.bytes.saturating_add(if *outcome == Outcome::Kept { 0 } else { *size });
            }
            Event::Failed { error, .. } => {
                self.failed += 1;
                self.add_failure(error.kind());
            }
            Event::Differs { how, .. } => {
                self.differing += 1;
                self.exit = worse(self.exit, how.exit_code());
            }
            Event::Skipped { .. } => self.skipped += 1,
            Event::LeftOut { rule, count } => {
                let is_known = self.left_out.contains_key(rule) || self.left_out.len() < RULES_MAX;
                let rule = if is_known { Arc::clone(rule) } else { OTHER_RULES.into() };
                *self.left_out.entry(rule).or_default() += count;
            }
            Event::Unchanged { files, bytes } => {
                self.unchanged += files;
                self.bytes = self.bytes.saturating_add(*bytes);
            }
            Event::Retrying { .. } => self.retries += 1,
            Event::Progress { moved, resent, held, .. } => {
                self.bytes_moved = self.bytes_moved.saturating_add(*moved);
                self.bytes_resent = self.bytes_resent.saturating_add(*resent);
                self.bytes_held = self.bytes_held.saturating_add(*held);
            }
            Event::Waited(waited) => self.waited = **waited,
            Event::XattrsLost { count, .. } => {
                self.xattrs_lost += count;
                // As with others that copy them, asked for and not kept is a failure, though all the rest is there.
                self.exit = worse(self.exit, ErrorKind::Unsupported.exit_code());
            }
            Event::Found { .. } | Event::FoundAll | Event::Started { .. } | Event::Warning(_) | Event::Note(_) => {}
        }
    }

    /// Adds the failure that ended the whole command.
    pub fn add_failure(&mut self, kind: ErrorKind) {
        self.exit = worse(self.exit, kind.exit_code());
        self.retryable |= kind.is_retryable();
    }

    /// What limited the transfer, if it took `time`; nothing when that cannot be told.
    #[must_use]
    pub fn limit(&self, time: Duration) -> Option<Limit> {
        self.waited.limit(time, self.stored, self.bytes_moved)
    }

    /// Files that are done, in whichever way.
    #[must_use]
    pub fn files_done(&self) -> u64 {
        self.stored + self.unchanged + self.kept + self.planned + self.equal
    }
}

/// Of two exit codes the one that a command with both ends with: the first that applies of an interruption (130),
/// 2 (nothing was tried), 5, 3, 4 and 1.
#[must_use]
pub fn worse(left: u8, right: u8) -> u8 {
    const ORDER: [u8; 7] = [130, 2, 5, 3, 4, 1, 0];
    ORDER.into_iter().find(|&code| code == left || code == right).unwrap_or(left.max(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: ErrorKind) -> Event {
        Event::Failed { item: None, name: b"x".to_vec(), error: Error::new(kind, "x") }
    }

    fn done(outcome: Outcome, size: u64) -> Event {
        let kind = ItemKind::File;
        Event::Done { item: 1, name: b"x".to_vec(), kind, size, root: None, outcome, renamed_to: None }
    }

    #[track_caller]
    fn check(kinds: &[ErrorKind], exit: u8, retryable: bool) {
        let mut summary = Summary::default();
        kinds.iter().for_each(|&kind| summary.add(&failed(kind)));
        assert_eq!((summary.exit, summary.retryable), (exit, retryable), "{kinds:?}");
        let mut summary = Summary::default();
        kinds.iter().rev().for_each(|&kind| summary.add(&failed(kind)));
        assert_eq!((summary.exit, summary.retryable), (exit, retryable), "{kinds:?} the other way round");
    }

    #[test]
    fn of_several_failures_the_first_that_applies_decides() {
        use ErrorKind as K;
        check(&[], 0, false);
        check(&[K::NotFound], 1, false);
        check(&[K::NotFound, K::Rights], 4, false);
        check(&[K::NotFound, K::Rights, K::Connection], 3, true);
        check(&[K::NotFound, K::Rights, K::Connection, K::Mismatch], 5, true);
        check(&[K::Mismatch, K::NoSpace], 5, true);
        check(&[K::Limit, K::Io], 4, false);
        check(&[K::Mismatch, K::Interrupted], 130, true);
    }

    #[test]
    fn events_add_up() {
        let mut summary = Summary::default();
        for event in [
            done(Outcome::Stored, 10),
            done(Outcome::Renamed, 1),
            done(Outcome::Unchanged, 100),
            done(Outcome::Kept, 1000),
            Event::Progress { item: 1, bytes: 7, moved: 5, resent: 2, held: 1 },
            Event::Skipped { name: b"s".to_vec(), why: Skip::Socket },
        ] {
            summary.add(&event);
        }
        let counts = (summary.stored, summary.renamed, summary.unchanged, summary.kept, summary.skipped);
        assert_eq!(counts, (2, 1, 1, 1, 1));
        assert_eq!((summary.bytes, summary.bytes_moved, summary.files_done(), summary.exit), (111, 5, 4, 0));
        assert_eq!((summary.bytes_resent, summary.bytes_held), (2, 1));
    }

    #[tokio::test]
    async fn progress_never_waits_and_lifecycle_is_never_lost() {
        let (events, mut receiver) = channel();
        let mut told = 0;
        while events.progress(Event::Progress { item: 1, bytes: 1, moved: 1, resent: 0, held: 0 }) {
            told += 1;
        }
        assert_eq!(told, EVENTS_MAX);
        let teller = tokio::task::spawn_blocking(move || events.tell_blocking(Event::FoundAll));
        let mut last = None;
        while let Some(event) = receiver.recv().await {
            last = Some(event);
        }
        teller.await.unwrap();
        assert!(matches!(last, Some(Event::FoundAll)));
    }
}
