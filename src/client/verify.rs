//! Compares what is here with what the server has: names, kinds, sizes and BLAKE3 hashes, which each side computes
//! over its own; no content crosses.
//!
//! The tree is walked here and listed there a directory at a time, so memory grows with the largest directory and not
//! with the tree. Files are hashed by several threads here while their hashes are asked for there.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};

use crate::client::Client;
use crate::client::api::Item;
use crate::client::blocking::{Awaited, Waiter};
use crate::client::event::{Difference, Event, ItemKind, Outcome};
use crate::client::plan::PutItem;
use crate::client::walk::{Found, Source, SourceVersion, Walk};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::hash::{GroupHash, Root, Tree, group_count, group_len, group_offset};
use crate::limits::GROUP_LEN;
use crate::path::{Component, Escaped, RemotePath};
use crate::protocol::{Entry, EntryKind};

/// What the walk may be ahead of the comparing.
const FOUND_MAX: usize = 256;
/// Files that are compared at once: each is a request that the server has, and little memory here.
const PAIRS_MAX: usize = 64;

impl Client {
    /// Compares the sources of a plan, and everything in them, with what stands under their names on the server.
    /// Differences, equal files and failures are told as events.
    ///
    /// # Errors
    /// When nothing more can be done with this client.
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    pub async fn verify(&self, items: Vec<PutItem>) -> Result<()> {
        let (sender, mut found) = mpsc::channel(FOUND_MAX);
        let mut walk = JoinSet::new();
        walk.spawn_blocking(move || {
            for found in Walk::new(items) {
                if sender.blocking_send(found).is_err() {
                    break;
                }
            }
        });
        let threads = std::thread::available_parallelism().map_or(2, |count| count.get().min(16));
        let mut run = Run {
            client: self.clone(),
            levels: Vec::new(),
            pairs: Arc::new(Semaphore::new(PAIRS_MAX)),
            threads: Arc::new(Semaphore::new(threads)),
            awaited: Awaited::default(),
            tasks: JoinSet::new(),
        };
        while self.check_alive().is_ok()
            && let Some(found) = found.recv().await
        {
            run.take(found).await?;
            while let Some(ended) = run.tasks.try_join_next() {
                ended.map_err(panicked)?;
            }
        }
        drop(found);
        self.events().tell(Event::FoundAll).await;
        while let Some(ended) = run.tasks.join_next().await {
            ended.map_err(panicked)?;
        }
        while let Some(walked) = walk.join_next().await {
            walked.map_err(panicked)?;
        }
        self.check_alive()
    }
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a task of the comparison failed").with_source(error)
}

/// A directory that the walk is in.
struct Level {
    target: RemotePath,
    /// What the server has in it and the walk has not met; none when that was told as a whole.
    there: Option<HashMap<Vec<u8>, Entry>>,
}

/// What the server has under a name.
enum There {
    Entry(Entry),
    Nothing,
    /// What is above it is not there or failed, and was told.
    Told,
}

struct Run {
    client: Client,
    levels: Vec<Level>,
    pairs: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    awaited: Awaited,
    tasks: JoinSet<()>,
}

impl Run {
    async fn take(&mut self, found: Found) -> Result<()> {
        let events = self.client.events().clone();
        match found {
            // Nothing is filtered here.
            Found::LeftOut { .. } | Found::Known { .. } => {}
            Found::Directory { target, .. } => {
                let there = match self.there(&target).await {
                    There::Entry(entry) if entry.kind == EntryKind::Directory => self.list(&target).await,
                    There::Entry(entry) => {
                        self.differs(&target, Difference::Kind(ItemKind::Directory, entry.kind)).await;
                        None
                    }
                    There::Nothing => {
                        self.differs(&target, Difference::MissingThere).await;
                        None
                    }
                    There::Told => None,
                };
                self.levels.push(Level { target, there });
            }
            Found::DirectoryEnd { target, .. } => {
                self.leave_until(&target);
                if let Some(level) = self.levels.pop_if(|level| level.target == target) {
                    let mut names: Vec<Vec<u8>> = level.there.unwrap_or_default().into_keys().collect();
                    names.sort();
                    for name in names {
                        // The names of a listing were checked.
                        if let Ok(path) = Component::new(&name).and_then(|name| target.join(name)) {
                            self.differs(&path, Difference::MissingHere).await;
                        }
                    }
                }
            }
            Found::File { target, source, version, .. } => {
                let there = self.there(&target).await;
                if !matches!(there, There::Told) {
                    events.tell(Event::Found { files: 1, bytes: version.size }).await;
                }
                match there {
                    There::Entry(entry) if entry.kind == EntryKind::File => {
                        self.compare(target, source, version, entry).await?;
                    }
                    There::Entry(entry) => {
                        self.differs(&target, Difference::Kind(ItemKind::File, entry.kind)).await;
                    }
                    There::Nothing => self.differs(&target, Difference::MissingThere).await,
                    There::Told => {}
                }
            }
            Found::Link { target, points_to, .. } => match self.there(&target).await {
                There::Entry(Entry { target: Some(there), .. }) if there == points_to => {
                    self.equal(&self.client.item(target.to_bytes()), ItemKind::Link, 0, None).await;
                }
                There::Entry(entry) if entry.kind == EntryKind::Link => {
                    self.differs(&target, Difference::Target).await;
                }
                There::Entry(entry) => self.differs(&target, Difference::Kind(ItemKind::Link, entry.kind)).await,
                There::Nothing => self.differs(&target, Difference::MissingThere).await,
                There::Told => {}
            },
            Found::Stream { .. } => {
                return Err(Error::new(ErrorKind::Usage, "standard input cannot be compared: name a file"));
            }
            Found::Skipped { path, why } => {
                events.tell(Event::Skipped { name: path.as_os_str().as_bytes().to_vec(), why }).await;
            }
            Found::Failed { path, error } => {
                // It is here, though it could not be looked at.
                if let (Some(level), Some(name)) = (self.levels.last_mut(), path.file_name())
                    && let Some(there) = &mut level.there
                {
                    there.remove(name.as_bytes());
                }
                let name = path.as_os_str().as_bytes().to_vec();
                events.tell(Event::Failed { item: None, name, error }).await;
            }
        }
        Ok(())
    }

    /// Leaves the directories that `target` is not in: the walk could not read them to their end, so what is missing
    /// in them is not known.
    fn leave_until(&mut self, target: &RemotePath) {
        while self.levels.last().is_some_and(|level| !target.starts_with(&level.target)) {
            self.levels.pop();
        }
    }

    async fn there(&mut self, target: &RemotePath) -> There {
        self.leave_until(target);
        if let (Some(level), Some(name)) = (self.levels.last_mut(), target.name()) {
            let Some(there) = &mut level.there else { return There::Told };
            return there.remove(name.as_bytes()).map_or(There::Nothing, There::Entry);
        }
        match self.client.stat(target).await {
            Ok(entry) => There::Entry(entry),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotDirectory) => There::Nothing,
            Err(error) => {
                self.failed(target, error).await;
                There::Told
            }
        }
    }

    async fn list(&self, target: &RemotePath) -> Option<HashMap<Vec<u8>, Entry>> {
        match self.client.list(target).await {
            Ok(entries) => Some(entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect()),
            Err(error) => {
                self.failed(target, error).await;
                None
            }
        }
    }

    async fn compare(
        &mut self,
        target: RemotePath,
        source: Source,
        version: SourceVersion,
        entry: Entry,
    ) -> Result<()> {
        if entry.size != version.size {
            self.differs(&target, Difference::Size(version.size, entry.size)).await;
            return Ok(());
        }
        let closed = |_| Error::new(ErrorKind::Internal, "a semaphore was closed");
        let pair = Arc::clone(&self.pairs).acquire_owned().await.map_err(closed)?;
        let (client, threads) = (self.client.clone(), Arc::clone(&self.threads));
        let waiter = self.awaited.waiter();
        self.tasks.spawn(async move {
            let item = client.item(target.to_bytes());
            let here = async {
                let _thread = threads.acquire_owned().await.map_err(closed)?;
                spawn_blocking(move || hash_here(&source, &version, item, &waiter)).await.map_err(panicked)?
            };
            let pair_of = Pair { client: client.clone(), target, version, entry };
            match tokio::try_join!(here, client.hash(&pair_of.target)) {
                Ok(((root, item), (there, size))) => pair_of.judge(item, root, there, size).await,
                Err(error) => pair_of.failed(error).await,
            }
            drop(pair);
        });
        Ok(())
    }

    async fn equal(&self, item: &Item, kind: ItemKind, size: u64, root: Option<Root>) {
        tell_equal(&self.client, item, kind, size, root).await;
    }

    async fn differs(&self, path: &RemotePath, how: Difference) {
        self.client.events().tell(Event::Differs { name: path.to_bytes(), how }).await;
    }

    async fn failed(&self, path: &RemotePath, error: Error) {
        if self.client.check_alive().is_ok() {
            self.client.events().tell(Event::Failed { item: None, name: path.to_bytes(), error }).await;
        }
    }
}

async fn tell_equal(client: &Client, item: &Item, kind: ItemKind, size: u64, root: Option<Root>) {
    let (name, outcome) = (item.name.clone(), Outcome::Equal);
    client.events().tell(Event::Done { item: item.id, name, kind, size, root, outcome, renamed_to: None }).await;
}

/// A file of equal size on both sides.
struct Pair {
    client: Client,
    target: RemotePath,
    version: SourceVersion,
    entry: Entry,
}

impl Pair {
    async fn judge(self, mut item: Item, here: Root, there: Root, size: u64) {
        item.settle().await;
        if here == there {
            return tell_equal(&self.client, &item, ItemKind::File, size, Some(here)).await;
        }
        // Somebody may have stored another version since the directory was listed.
        let now = match self.client.stat(&self.target).await {
            Ok(now) => now,
            Err(error) => return self.failed(error).await,
        };
        let is_same_time = now.mtime == self.version.mtime && now.mtime == self.entry.mtime;
        let how = if is_same_time && now.size == self.version.size { Difference::Damage } else { Difference::Content };
        self.client.events().tell(Event::Differs { name: self.target.to_bytes(), how }).await;
    }

    async fn failed(&self, error: Error) {
        if error.kind() == ErrorKind::NotFound && error.is_from_peer() {
            let how = Difference::MissingThere;
            return self.client.events().tell(Event::Differs { name: self.target.to_bytes(), how }).await;
        }
        if self.client.check_alive().is_ok() {
            self.client.events().tell(Event::Failed { item: None, name: self.target.to_bytes(), error }).await;
        }
    }
}

/// The hash of a file here, if it still is what the walk met. Blocks, for as long as it is waited for.
fn hash_here(source: &Source, version: &SourceVersion, mut item: Item, waiter: &Waiter) -> Result<(Root, Item)> {
    let open = source.open()?;
    let path = source.path();
    let shown = Escaped(path.as_os_str().as_bytes());
    if open.version != *version {
        let message = format!("`{shown}` changed while it was being compared");
        return Err(Error::new(ErrorKind::Changed, message));
    }
    let mut tree = Tree::new();
    let mut buffer = vec![0; GROUP_LEN.min(usize::try_from(version.size).unwrap_or(GROUP_LEN))];
    for group in 0..group_count(version.size) {
        waiter.check()?;
        let content = &mut buffer[..group_len(version.size, group)];
        match open.file.read_exact_at(content, group_offset(group)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => open.check_unchanged()?,
            Err(error) => return Err(error).while_doing(|| format!("read `{shown}`")),
        }
        tree.insert(group, GroupHash::of(group, content));
        item.advance(content.len() as u64, 0);
    }
    open.check_unchanged()?;
    let root = tree.root(version.size).ok_or_else(|| Error::new(ErrorKind::Internal, "a group was left out"))?;
    Ok((root, item))
}
