//! The two sides of a comparison: a tree here, a directory here that is saved into, or a directory on a server. Each
//! lists a directory in pieces, so that a long one can wait while others are looked at.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::client::Client;
use crate::client::blocking::Waiter;
use crate::client::compare::{Links, Listed};
use crate::client::filter::{IGNORE_LEN_MAX, IGNORE_NAME};
use crate::client::listing::{Bound, PIECE_MAX, Piece, check_count, check_once};
use crate::client::plan::local_path;
use crate::client::session::Reply;
use crate::client::walk::{self, OPEN_DIRECTORY, Source, Tree, doing};
use crate::client::xattrs::digest_of;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::hash::{GroupHash, Root, Tree as HashTree, group_count, group_len, group_offset};
use crate::path::{Component, RemotePath};
use crate::protocol::{Bytes16, Entry, EntryKind, Get, Mtime};
use crate::storage::{self, Store, read_xattrs};
use crate::xattrs::Xattrs;

/// A directory and what is in it.
#[derive(Clone)]
pub(crate) enum Side {
    /// Read here.
    Tree(LocalTree),
    /// Saved into here; where it is, to be shown.
    Store(Store, PathBuf),
    /// On a server.
    Remote(Client, RemotePath),
}

/// What a directory holds, and what of it could not be looked at.
#[derive(Default)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Listed>,
    pub(crate) failed: Vec<(Vec<u8>, Error)>,
    /// There may be more in it, which may not be listed.
    pub(crate) is_partial: bool,
}

/// A directory here that is read.
#[derive(Clone)]
pub(crate) struct LocalTree {
    tree: Arc<Tree>,
    links: Links,
}

impl LocalTree {
    /// Opens a directory that was named, and tells its mode and time, and with `xattrs` its extended attributes. Blocks.
    pub(crate) fn open(path: &Path, links: Links, xattrs: bool) -> Result<(LocalTree, Entry)> {
        let tree = Tree::open(path, links == Links::Follow)?;
        let stat = rustix::fs::fstat(&tree.handle).while_doing(|| doing("look at", path))?;
        let mut entry = entry_of(Vec::new(), &stat);
        entry.xattrs_digest = if xattrs { digest(read_xattrs(&tree.handle)) } else { None };
        Ok((LocalTree { tree, links }, entry))
    }

    /// A file in it.
    pub(crate) fn source(&self, below: &RemotePath) -> Source {
        self.tree.source(local_path(Path::new(""), below))
    }

    fn open_directory(&self, path: &Path) -> Result<Dir> {
        let shown = || doing("open", &self.tree.path.join(path));
        let handle = self.tree.open_below(path, OPEN_DIRECTORY | OFlags::NOFOLLOW.difference(self.follow_flag()));
        Dir::new(handle.while_doing(shown)?).while_doing(shown)
    }

    fn follow_flag(&self) -> OFlags {
        if self.tree.follows { OFlags::NOFOLLOW } else { OFlags::empty() }
    }

    /// The next entries of an open directory; fewer than asked for at its end. Blocks.
    fn piece(&self, directory: &mut Dir, path: &Path, listing: &mut Listing, xattrs: bool) -> Result<bool> {
        let shown = |name: &[u8]| self.tree.path.join(path).join(std::ffi::OsStr::from_bytes(name));
        for _ in 0..PIECE_MAX {
            let Some(next) = directory.read() else { return Ok(true) };
            let next = next.while_doing(|| doing("read", &self.tree.path.join(path)))?;
            let name = next.file_name();
            let bytes = name.to_bytes();
            if matches!(bytes, b"." | b"..") {
                continue;
            }
            let handle = directory.fd().while_doing(|| doing("read", &self.tree.path.join(path)))?;
            let stat = match rustix::fs::statat(handle, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It went away since its name was read.
                Err(Errno::NOENT) => continue,
                Err(errno) => {
                    listing.failed.push((bytes.to_vec(), Error::io(doing("look at", &shown(bytes)), errno)));
                    continue;
                }
            };
            let mut listed = Listed::from(entry_of(bytes.to_vec(), &stat));
            if listed.entry.kind == EntryKind::Link {
                if self.links == Links::Follow {
                    match self.tree.follow(handle, path, name) {
                        Ok(stat) => listed.entry = entry_of(bytes.to_vec(), &stat),
                        Err(why) => listed.skip = Some(why),
                    }
                } else {
                    match rustix::fs::readlinkat(handle, name, Vec::new()) {
                        Ok(target) => listed.entry.target = Some(target.into_bytes()),
                        Err(errno) => {
                            let error = Error::io(doing("read the link", &shown(bytes)), errno);
                            listing.failed.push((bytes.to_vec(), error));
                            continue;
                        }
                    }
                }
            }
            if listed.entry.kind == EntryKind::Special {
                listed.skip = Some(walk::skip(FileType::from_raw_mode(stat.st_mode)));
            }
            let xattrs_source = xattrs.then(|| self.tree.source(path.join(std::ffi::OsStr::from_bytes(bytes))));
            // What cannot be read counts as different, and is told when it is moved.
            listed.entry.xattrs_digest = match (xattrs_source, listed.entry.kind) {
                (Some(source), EntryKind::File) => digest(source.open().and_then(|open| open.xattrs())),
                (Some(source), EntryKind::Directory) => digest(source.directory_xattrs()),
                _ => None,
            };
            listing.entries.push(listed);
        }
        Ok(false)
    }
}

fn entry_of(name: Vec<u8>, stat: &rustix::fs::Stat) -> Entry {
    let (version, attributes) = walk::look(stat);
    let kind = walk::kind_of(FileType::from_raw_mode(stat.st_mode));
    let size = if kind == EntryKind::File { version.size } else { 0 };
    let same = walk::same_of(stat);
    Entry {
        name,
        kind,
        size,
        mtime: attributes.mtime,
        mode: attributes.mode,
        target: None,
        same,
        xattrs_digest: None,
        xattrs: None,
    }
}

fn digest(xattrs: Result<Xattrs>) -> Option<Bytes16> {
    xattrs.ok().as_ref().map(digest_of)
}

pub(crate) fn entry_of_stored(entry: storage::Entry) -> Entry {
    let kind = match entry.kind {
        storage::Kind::File => EntryKind::File,
        storage::Kind::Directory => EntryKind::Directory,
        storage::Kind::Link => EntryKind::Link,
        storage::Kind::Special => EntryKind::Special,
    };
    Entry {
        name: entry.name,
        kind,
        size: if kind == EntryKind::File { entry.size } else { 0 },
        mtime: Mtime { seconds: entry.mtime.secs(), nanos: entry.mtime.nanos() },
        mode: entry.mode,
        target: entry.link_target,
        same: (kind == EntryKind::File && entry.names > 1).then(|| {
            let identity = entry.version.identity;
            walk::same_file(identity.device, identity.inode)
        }),
        xattrs_digest: entry.xattrs_digest.map(Bytes16),
        xattrs: None,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let panicked = |error| Error::new(ErrorKind::Internal, "a task of the comparison failed").with_source(error);
    spawn_blocking(work).await.map_err(panicked)?
}

async fn list_remote(
    client: &Client,
    path: &RemotePath,
    go: &mut watch::Receiver<bool>,
    xattrs: bool,
) -> Result<Listing> {
    let (mut listing, mut bound) = (Listing::default(), Bound::default());
    let mut after = None;
    loop {
        let Piece { entries, next, is_partial } = client.list_piece(path, after, xattrs).await?;
        bound.add(path, &entries)?;
        listing.entries.extend(entries.into_iter().map(Listed::from));
        listing.is_partial |= is_partial;
        if next.is_none() {
            if after.is_some() {
                check_once(path, listing.entries.iter().map(|listed| &listed.entry))?;
            }
            return Ok(listing);
        }
        after = next;
        wait(go).await?;
    }
}

impl Side {
    /// How something in it is called.
    pub(crate) fn name(&self, below: &RemotePath) -> Vec<u8> {
        match self {
            Side::Tree(tree) => local_path(&tree.tree.path, below).as_os_str().as_bytes().to_vec(),
            Side::Store(_, path) => local_path(path, below).as_os_str().as_bytes().to_vec(),
            Side::Remote(_, path) => path.join_all(below).map_or_else(|_| below.to_bytes(), |path| path.to_bytes()),
        }
    }

    /// What a directory holds, with `xattrs` by what the extended attributes of each are known. After the first piece it goes on only when `go` says so: memory is for one long
    /// directory at a time.
    ///
    /// # Errors
    /// When it cannot be listed to its end.
    pub(crate) async fn list(
        &self,
        below: &RemotePath,
        mut go: watch::Receiver<bool>,
        xattrs: bool,
    ) -> Result<Listing> {
        let mut listing = Listing::default();
        match self {
            Side::Tree(tree) => {
                let path = local_path(Path::new(""), below);
                let mut directory = None;
                loop {
                    let (tree, path) = (tree.clone(), path.clone());
                    let (open, read, is_end) = blocking(move || {
                        let mut open = match directory.take() {
                            Some(open) => open,
                            None => tree.open_directory(&path)?,
                        };
                        let is_end = tree.piece(&mut open, &path, &mut listing, xattrs)?;
                        Ok((open, listing, is_end))
                    })
                    .await?;
                    (directory, listing) = (Some(open), read);
                    if is_end {
                        return Ok(listing);
                    }
                    check_count(below, listing.entries.len())?;
                    wait(&mut go).await?;
                }
            }
            Side::Store(store, _) => {
                let mut names = None;
                loop {
                    let (store, path) = (store.clone(), below.clone());
                    let (open, read, is_end) = blocking(move || {
                        let mut open = match names.take() {
                            Some(open) => open,
                            None => store.list(&path, None)?,
                        };
                        if xattrs {
                            open.tell_xattrs();
                        }
                        for _ in 0..PIECE_MAX {
                            match open.next() {
                                Some(entry) => listing.entries.push(entry_of_stored(entry?).into()),
                                None => return Ok((open, listing, true)),
                            }
                        }
                        Ok((open, listing, false))
                    })
                    .await?;
                    (names, listing) = (Some(open), read);
                    if is_end {
                        return Ok(listing);
                    }
                    check_count(below, listing.entries.len())?;
                    wait(&mut go).await?;
                }
            }
            Side::Remote(client, base) => {
                let path = joined(base, below)?;
                let mut retry = client.retry();
                loop {
                    match list_remote(client, &path, &mut go, xattrs).await {
                        // Pieces of two directories are no listing of either.
                        Err(error) if error.kind() == ErrorKind::Changed => retry.after(error).await?,
                        listed => return listed,
                    }
                }
            }
        }
    }

    /// What the file of rules in a directory holds, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or is too long.
    pub(crate) async fn ignores(&self, below: &RemotePath) -> Result<Option<Vec<u8>>> {
        let file = below.join(Component::new(IGNORE_NAME.as_bytes()).map_err(name_error)?).map_err(name_error)?;
        match self {
            Side::Tree(tree) => {
                let (tree, path) = (Arc::clone(&tree.tree), local_path(Path::new(""), below));
                blocking(move || walk::read_ignores(&tree, &path)).await
            }
            Side::Store(..) => Ok(None),
            Side::Remote(client, base) => client.read_small(&joined(base, &file)?).await,
        }
    }

    /// The hash of a file, and its size.
    ///
    /// # Errors
    /// When it cannot be read, or changes meanwhile.
    pub(crate) async fn hash(&self, below: &RemotePath, waiter: Waiter) -> Result<(Root, u64)> {
        match self {
            Side::Tree(tree) => {
                let source = tree.source(below);
                blocking(move || {
                    let open = source.open()?;
                    let read = |offset: u64, content: &mut [u8]| {
                        use std::os::unix::fs::FileExt as _;
                        open.file.read_exact_at(content, offset).while_doing(|| doing("read", &source.path()))
                    };
                    let root = hash(open.version.size, &waiter, read)?;
                    open.check_unchanged()?;
                    Ok((root, open.version.size))
                })
                .await
            }
            Side::Store(store, _) => {
                let (store, below) = (store.clone(), below.clone());
                blocking(move || {
                    let file = store.open_file(&below)?;
                    let root = hash(file.size(), &waiter, |offset, content| file.read_at(offset, content))?;
                    file.check_unchanged()?;
                    Ok((root, file.size()))
                })
                .await
            }
            Side::Remote(client, base) => client.hash(&joined(base, below)?).await,
        }
    }
}

fn hash(size: u64, waiter: &Waiter, mut read: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Root> {
    let mut tree = HashTree::new();
    let mut buffer = vec![0; group_len(size, 0)];
    for index in 0..group_count(size) {
        waiter.check()?;
        let Some(content) = buffer.get_mut(..group_len(size, index)) else { break };
        read(group_offset(index), content)?;
        tree.insert(index, GroupHash::of(index, content));
    }
    tree.root(size).ok_or_else(|| Error::new(ErrorKind::Internal, "a file's hash is incomplete"))
}

/// The name on a server.
///
/// # Errors
/// `Name` when it is too long or too deep there.
pub(crate) fn joined(base: &RemotePath, below: &RemotePath) -> Result<RemotePath> {
    base.join_all(below).map_err(name_error)
}

pub(crate) fn name_error(error: crate::path::NameError) -> Error {
    Error::new(ErrorKind::Name, error.to_string())
}

async fn wait(go: &mut watch::Receiver<bool>) -> Result<()> {
    // Who would say so has gone when nobody needs the rest.
    let gone = |_| Error::new(ErrorKind::Interrupted, "nobody needs this listing any more");
    go.wait_for(|go| *go).await.map(drop).map_err(gone)
}

impl Client {
    /// The content of a small file of rules; none when there is no such file.
    ///
    /// # Errors
    /// `Limit` when it is longer than such files may be; what reading can fail with.
    async fn read_small(&self, path: &RemotePath) -> Result<Option<Vec<u8>>> {
        let mut retry = self.retry();
        loop {
            match self.read_small_once(path).await {
                Ok(content) => return Ok(Some(content)),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Link) => return Ok(None),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    async fn read_small_once(&self, path: &RemotePath) -> Result<Vec<u8>> {
        let session = self.session().await?;
        let unasked_max = IGNORE_LEN_MAX as u64;
        let get = Get { path: path.clone(), unasked_max, finish_ahead: None, first_max: None, xattrs: None };
        let mut exchange = session.open_get(&get).await?;
        let (mut is_open, mut content) = (false, Vec::new());
        loop {
            match exchange.next().await? {
                Reply::GetAnswer(answer) if answer.unasked => is_open = true,
                Reply::GetAnswer(_) => {
                    return Err(Error::new(ErrorKind::Limit, format!("{path} is longer than {IGNORE_LEN_MAX} bytes")));
                }
                Reply::Group(0, buffer) if is_open => content = buffer.to_vec(),
                Reply::Finish(finish) if is_open => {
                    if Root::of(&content) != finish.root {
                        return Err(Error::new(ErrorKind::Mismatch, format!("{path} did not arrive as it was sent")));
                    }
                    return Ok(content);
                }
                other => return Err(exchange.unexpected(&other)),
            }
        }
    }
}
