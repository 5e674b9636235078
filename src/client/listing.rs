//! What a server lists: a directory at a time, or a piece of one, so that memory need not grow with it.

use crate::client::Client;
use crate::client::session::Reply;
use crate::client::xattrs::check_server;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{LISTED_COST, LISTING_LEN_MAX};
use crate::path::{Component, Escaped, RemotePath};
use crate::protocol::{Bytes16, Done, Entry, ListDirectory};

/// Entries that are asked for at once: enough for nearly every directory, and about a megabyte.
pub(crate) const PIECE_MAX: u64 = 8192;
/// Entries of one directory that are kept in memory, about 150 bytes each. More: that directory is refused where all
/// of it is needed at once.
pub(crate) const ENTRIES_MAX: usize = 1 << 22;

impl Client {
    /// The entries of a directory, in the server's order. Every name is one that a path can have, and unique.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `Rights`; `Limit` for a directory with more than four million entries;
    /// `Protocol` for names that cannot be.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn list(&self, path: &RemotePath) -> Result<Vec<Entry>> {
        let mut retry = self.retry();
        loop {
            match self.list_to_end(path).await {
                Err(error) if error.kind() == ErrorKind::Changed => retry.after(error).await?,
                listed => return listed,
            }
        }
    }

    async fn list_to_end(&self, path: &RemotePath) -> Result<Vec<Entry>> {
        let Piece { mut entries, mut next, .. } = self.list_piece(path, None, false).await?;
        let mut bound = Bound::default();
        bound.add(path, &entries)?;
        if next.is_none() {
            return Ok(entries);
        }
        while next.is_some() {
            let more = self.list_piece(path, next, false).await?;
            bound.add(path, &more.entries)?;
            entries.extend(more.entries);
            next = more.next;
        }
        check_once(path, entries.iter())?;
        Ok(entries)
    }

    /// Some entries of a directory, from behind a place on, and the place from which to go on if there may be more.
    /// Names are ones that a path can have, and unique within the piece. With `xattrs`, each file and directory has what
    /// its extended attributes are known by, as far as this client may read them.
    ///
    /// # Errors
    /// As [`Client::list`], without `Limit`; `Changed` when another directory has that name since the piece before: then
    /// it has to be listed from the beginning; with `xattrs`, `Unsupported` from a server that does not know of them.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn list_piece(&self, path: &RemotePath, after: Option<Place>, xattrs: bool) -> Result<Piece> {
        let mut retry = self.retry();
        loop {
            match self.list_once(path, after, xattrs).await {
                Ok(piece) => return Ok(piece),
                Err(error) if after.is_some() && error.kind() == ErrorKind::Changed => return Err(error),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    async fn list_once(&self, path: &RemotePath, after: Option<Place>, xattrs: bool) -> Result<Piece> {
        let session = self.session().await?;
        if xattrs {
            check_server(session.hello())?;
        }
        let mut exchange = session.open(&request(path, after, xattrs)).await?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut bound = Bound::default();
        let (next, is_partial) = loop {
            match exchange.next().await? {
                Reply::Entries(page) => {
                    // They belong into answers about one entry, and would not count against any bound here.
                    if page.iter().any(|entry| entry.xattrs.is_some()) {
                        return Err(exchange.unexpected(&Reply::Entries(page)));
                    }
                    // Also from a server that knows no pieces and sends everything.
                    bound.add(path, &page)?;
                    entries.extend(page);
                }
                Reply::Done(Done { next, directory, hidden, .. }) => {
                    break (next.map(|after| Place { after, directory }), hidden == Some(true));
                }
                other => return Err(exchange.unexpected(&other)),
            }
        };
        check_names(path, &entries)?;
        if next.is_some() && (next == after || entries.is_empty()) {
            let message = format!("the server lists {path} without end");
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        // Not page by page: a piece that breaks and begins anew gets nowhere.
        self.progressed();
        Ok(Piece { entries, next, is_partial })
    }
}

/// Asks for a piece of a directory's listing.
pub(super) fn request(path: &RemotePath, after: Option<Place>, xattrs: bool) -> ListDirectory {
    ListDirectory {
        path: path.clone(),
        after: after.map(|place| place.after),
        count_max: Some(PIECE_MAX),
        xattrs: xattrs.then_some(true),
        directory: after.and_then(|place| place.directory),
    }
}

/// Some entries of a directory.
#[derive(Debug)]
pub struct Piece {
    /// In the server's order.
    pub entries: Vec<Entry>,
    /// From where to go on, if there may be more.
    pub next: Option<Place>,
    /// Whether there may be names in the directory that this client may not list, and that are therefore left out.
    pub is_partial: bool,
}

/// A place in a directory's listing. It means something only to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    after: u64,
    /// Of which directory it is, from a server that tells.
    directory: Option<Bytes16>,
}

/// How much of a directory's listing is in memory.
#[derive(Default)]
pub(crate) struct Bound {
    count: usize,
    len: usize,
}

impl Bound {
    /// Counts some more entries, before they are kept.
    ///
    /// # Errors
    /// `Limit` when they are too many, or their names and targets too long.
    pub(crate) fn add<'a>(&mut self, path: &RemotePath, entries: impl IntoIterator<Item = &'a Entry>) -> Result<()> {
        for entry in entries {
            self.count += 1;
            self.len += LISTED_COST + entry.name.len() + entry.target.as_ref().map_or(0, Vec::len);
        }
        check_count(path, self.count)?;
        if self.len <= LISTING_LEN_MAX {
            return Ok(());
        }
        let message = format!("the listing of {path} has more than {LISTING_LEN_MAX} bytes");
        Err(Error::new(ErrorKind::Limit, message))
    }
}

pub(crate) fn check_count(path: &RemotePath, count: usize) -> Result<()> {
    if count <= ENTRIES_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Limit, format!("{path} has more than {ENTRIES_MAX} entries")))
}

/// Refuses a listing with names that no path can have, or one of them twice.
fn check_names(path: &RemotePath, entries: &[Entry]) -> Result<()> {
    let bad = |what: String| Err(Error::new(ErrorKind::Protocol, format!("the server lists in {path} {what}")));
    let mut names = std::collections::HashSet::with_capacity(entries.len());
    for entry in entries {
        if let Err(error) = Component::new(&entry.name) {
            return bad(error.to_string());
        }
        if !names.insert(&entry.name) {
            return bad(format!("{} twice", Escaped(&entry.name)));
        }
    }
    Ok(())
}

/// Refuses what came in several pieces with a name in two of them: these are not pieces of one directory as it was.
///
/// # Errors
/// `Changed`.
pub(crate) fn check_once<'a>(path: &RemotePath, entries: impl Iterator<Item = &'a Entry>) -> Result<()> {
    let mut names: Vec<&[u8]> = entries.map(|entry| entry.name.as_slice()).collect();
    names.sort_unstable();
    let twice = names.iter().zip(names.iter().skip(1)).find(|(name, next)| name == next);
    twice.map_or(Ok(()), |(name, _)| {
        let text = format!("{path} changed while it was being listed: {} came twice", Escaped(name));
        Err(Error::new(ErrorKind::Changed, text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{EntryKind, Mtime};

    #[test]
    fn a_listing_has_its_bounds_by_number_and_by_length() {
        let mtime = Mtime { seconds: 0, nanos: 0 };
        let entry = |target: usize| Entry {
            name: vec![b'n'; 100],
            kind: EntryKind::Link,
            size: 0,
            mtime,
            mode: 0,
            target: (target > 0).then(|| vec![b't'; target]),
            same: None,
            xattrs_digest: None,
            xattrs: None,
        };
        let path = RemotePath::root();
        for (target, count) in [(0, ENTRIES_MAX.min(LISTING_LEN_MAX / (LISTED_COST + 100))), (4000, 165_000)] {
            let (mut bound, entry, mut taken) = (Bound::default(), entry(target), 0);
            let refused = loop {
                match bound.add(&path, std::iter::repeat_n(&entry, 1000)) {
                    Ok(()) => taken += 1000,
                    Err(error) => break error,
                }
            };
            assert_eq!(refused.kind(), ErrorKind::Limit);
            assert!(taken <= count && taken + 10_000 > count.min(LISTING_LEN_MAX / 4212), "{taken} {count}");
        }
    }
}
