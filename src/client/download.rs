//! Downloads: from what a server lists to files that are durable here.
//!
//! Names come from the server and are trusted as little as those that a client sends: each is checked before it
//! becomes part of a path, and everything is saved through [`Store`], which follows no link. Small files are asked
//! for in batches and committed together; larger ones by a window of wanted groups, each hashed as it is written.
//! What is here already is compared before anything is sent.
//!
//! Invariants: a name here changes only when the whole content is on disk and has the server's hash; content that
//! was not asked for ends the connection (`session`); modes and times of directories are set last.

mod confirm;
mod early;
mod here;
mod large;
mod names;
mod small;
mod tree;
mod zeros;

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};

use crate::client::ahead::LANES_FROM;
use crate::client::api::{Client, Item};
use crate::client::blocking::spawn_blocking;
use crate::client::compare::Links;
use crate::client::download::early::Existing;
pub(super) use crate::client::download::early::first_gets;
use crate::client::download::names::{Landed, Role};
use crate::client::download::small::{BATCH_FILES, BATCH_LEN, BATCHES_MAX};
use crate::client::download::tree::{Filled, Settling};
use crate::client::event::{Event, ItemKind, Outcome};
use crate::client::filter::{Filter, Subject};
use crate::client::names::{Met, Names};
use crate::client::plan::{self, GetItem, GetTarget, check_target};
use crate::client::session::{Exchange, Session};
use crate::client::walk::Skip;
use crate::client::xattrs::{Lost, check_server};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;
use crate::limits::{SHARED_WAITING_MAX, UNASKED_FILE_MAX};
use crate::path::{Component, Escaped, RemotePath};
use crate::protocol::{Bytes16, Entry, EntryKind, Get, GetAnswer, IfExists, Mtime};
use crate::storage::{self, Store, StoreOptions};
use crate::xattrs::Xattrs;

/// Larger files at once.
const LARGE_MAX: usize = 6;

/// How a `get` treats what it finds.
pub struct GetOptions {
    /// What to do when something of that name is here.
    pub if_exists: IfExists,
    /// Whether the destination was written as a directory, for what is said when it is none.
    pub into_directory: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Where content goes that goes to a stream.
    pub output: Option<Box<dyn Write + Send + Sync>>,
    /// What is left out.
    pub filter: Arc<Filter>,
    /// What becomes of links; [`Links::Follow`] is as [`Links::Copy`], because a server follows none.
    pub links: Links,
    /// A link that is itself named is skipped rather than a failure: a pattern met it.
    pub skips_links: bool,
    /// Keep setuid, setgid, sticky and world-writable.
    pub special_modes: bool,
    /// Move extended attributes of users (`user.*`) too.
    pub xattrs: bool,
}

impl Default for GetOptions {
    fn default() -> GetOptions {
        GetOptions {
            if_exists: IfExists::Overwrite,
            into_directory: false,
            dry_run: false,
            output: None,
            filter: Arc::default(),
            links: Links::Copy,
            skips_links: false,
            special_modes: false,
            xattrs: false,
        }
    }
}

impl std::fmt::Debug for GetOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GetOptions").field("if_exists", &self.if_exists).finish_non_exhaustive()
    }
}

/// What all tasks of one `get` share.
struct Job {
    client: Client,
    if_exists: IfExists,
    dry_run: bool,
    filter: Arc<Filter>,
    links: Links,
    special_modes: bool,
    xattrs: bool,
    /// Attributes that were not kept here.
    xattrs_lost: Lost,
    /// Names of one file there that are files of their own here.
    parted: AtomicU64,
}

/// Where a file is saved.
#[derive(Clone)]
struct Place {
    store: Store,
    /// Its name in the store.
    path: RemotePath,
    /// Its path on this machine, to be shown.
    shown: PathBuf,
}

/// A file that is to be fetched.
struct FileJob {
    item: Item,
    remote: RemotePath,
    size: u64,
    /// The mode and time that were listed.
    metadata: (u32, Mtime),
    /// What its extended attributes were known by when it was listed.
    xattrs_digest: Option<Bytes16>,
    /// Shared with whoever looks at it or fills it on another thread.
    place: Arc<Place>,
    /// The directory that it goes into, which is done when nobody holds it any more.
    directory: Option<Arc<Filled>>,
    role: Role,
    /// Its first attempt, if that was begun before it was known to be a file.
    opened: Option<Exchange>,
}

impl Client {
    /// Downloads everything that these items name. What becomes of each is told in events; one that fails does not
    /// keep the others from being fetched.
    ///
    /// # Errors
    /// What ended the whole: no connection any more, or a breach of the protocol.
    ///
    /// # Cancel safety
    /// What was told as done is here, durably. What was on its way leaves nothing under its final name.
    pub async fn get(&self, items: Vec<GetItem>, mut options: GetOptions) -> Result<()> {
        if options.xattrs {
            check_server(self.session().await?.hello())?;
        }
        let mut run = Run::new(self, &options);
        let is_alone = items.len() == 1;
        for item in items {
            self.check_alive()?;
            match item.target {
                GetTarget::Stream => {
                    let Some(output) = options.output.take() else {
                        return Err(Error::new(ErrorKind::Usage, "standard output takes one file"));
                    };
                    run.job.get_stream(item.source, output).await;
                }
                GetTarget::Local(target) => {
                    let name = item.source.to_bytes();
                    if let Err(error) = run.get_named(item.source, &target, &options, is_alone).await {
                        self.check_alive()?;
                        self.events().tell(Event::Failed { item: None, name, error }).await;
                    }
                }
            }
        }
        run.finish().await
    }
}

/// One `get` as it goes.
struct Run {
    job: Arc<Job>,
    into_directory: bool,
    tasks: JoinSet<()>,
    batches: Arc<Semaphore>,
    large: Arc<Semaphore>,
    batch: Vec<FileJob>,
    batch_len: u64,
    names: Names<Landed, FileJob>,
    /// Directories that single files are saved into.
    stores: HashMap<PathBuf, Store>,
    settling: Settling,
}

impl Run {
    fn new(client: &Client, options: &GetOptions) -> Run {
        let job = Arc::new(Job {
            client: client.clone(),
            if_exists: options.if_exists,
            dry_run: options.dry_run,
            filter: Arc::clone(&options.filter),
            links: options.links,
            special_modes: options.special_modes,
            xattrs: options.xattrs,
            xattrs_lost: Lost::default(),
            parted: AtomicU64::new(0),
        });
        Run {
            settling: Settling::start(Arc::clone(&job)),
            job,
            into_directory: options.into_directory,
            tasks: JoinSet::new(),
            batches: Arc::new(Semaphore::new(BATCHES_MAX)),
            large: Arc::new(Semaphore::new(LARGE_MAX)),
            batch: Vec::new(),
            batch_len: 0,
            names: Names::default(),
            stores: HashMap::new(),
        }
    }

    /// Fetches what stands under a name, perhaps the only one: a file or a tree.
    async fn get_named(
        &mut self,
        source: RemotePath,
        target: &Path,
        options: &GetOptions,
        is_alone: bool,
    ) -> Result<()> {
        let existing = Existing::at(target).await?;
        let opened = if is_alone { self.job.open_early(&source, target, existing).await? } else { None };
        let entry = self.job.client.stat(&source).await?;
        if entry.kind != EntryKind::File || entry.size < LANES_FROM {
            self.job.client.needs_no_lanes();
        }
        let existing = existing.map(Existing::kind);
        let shown = Escaped(target.as_os_str().as_bytes());
        match entry.kind {
            EntryKind::File => {
                if self.job.if_exists != IfExists::Rename {
                    check_target(plan::Kind::File, existing, &shown, self.into_directory)?;
                }
                let subject = Subject { path: &entry.name, kind: entry.kind, size: entry.size, mtime: entry.mtime };
                if let Some(rule) = self.job.filter.judge(subject, None) {
                    self.job.client.events().tell(Event::LeftOut { rule, count: 1 }).await;
                    return Ok(());
                }
                if self.job.dry_run {
                    return self.job.client.foresee_get(source, entry, target, options).await;
                }
                let place = self.place_of(target).await?;
                self.take_file(source, &entry, place, None, opened).await
            }
            EntryKind::Directory => {
                drop(opened);
                check_target(plan::Kind::Directory, existing, &shown, self.into_directory)?;
                if self.job.dry_run {
                    return Box::pin(self.job.client.foresee_get(source, entry, target, options)).await;
                }
                self.get_tree(source, &entry, target).await
            }
            // A pattern met it, and in a tree it would be skipped as well.
            EntryKind::Link if options.skips_links => {
                let name = source.to_bytes();
                self.job.client.events().tell(Event::Skipped { name, why: Skip::NamedLink }).await;
                Ok(())
            }
            EntryKind::Link => Err(Error::new(
                ErrorKind::Link,
                format!("{source} is a symbolic link there, which is not followed: name what it points to"),
            )),
            EntryKind::Special => {
                Err(Error::new(ErrorKind::Special, format!("{source} is neither a file nor a directory there")))
            }
        }
    }

    /// Where a single file goes: its directory is opened once for all files that go there.
    async fn place_of(&mut self, target: &Path) -> Result<Place> {
        let name = target.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        let name = Component::new(name).map_err(|error| {
            let shown = Escaped(target.as_os_str().as_bytes());
            Error::new(ErrorKind::Usage, format!("`{shown}` cannot be the name of a file")).with_source(error)
        })?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let store = match self.stores.get(parent) {
            Some(store) => store.clone(),
            None => {
                let store = open_store(parent, self.job.special_modes).await?;
                self.stores.insert(parent.to_path_buf(), store.clone());
                store
            }
        };
        let path = RemotePath::root().join(name).map_err(|error| Error::new(ErrorKind::Name, error.to_string()))?;
        Ok(Place { store, path, shown: target.to_path_buf() })
    }

    async fn take_file(
        &mut self,
        remote: RemotePath,
        entry: &Entry,
        place: Place,
        directory: Option<Arc<Filled>>,
        opened: Option<Exchange>,
    ) -> Result<()> {
        let size = entry.size;
        let item = self.job.client.item(remote.to_bytes());
        self.job.client.events().tell(Event::Found { files: 1, bytes: size }).await;
        let metadata = (entry.mode, entry.mtime);
        let (xattrs_digest, role) = (entry.xattrs_digest, Role::Alone);
        let mut file =
            FileJob { item, remote, size, metadata, xattrs_digest, place: Arc::new(place), directory, role, opened };
        match entry.same.map(|same| (same, self.names.meet(same))) {
            None => {}
            Some((_, Met::First(lead))) => file.role = Role::First(lead),
            Some((same, Met::Further)) => {
                self.names.wait(same, file);
                if self.names.waiting() >= SHARED_WAITING_MAX {
                    self.get_names().await?;
                }
                return Ok(());
            }
            Some((_, Met::Unknown)) => self.job.part(),
        }
        if size <= UNASKED_FILE_MAX {
            self.batch_len += size;
            let is_other_store =
                self.batch.first().is_some_and(|first| first.place.store.identity() != file.place.store.identity());
            if is_other_store {
                self.send_batch().await?;
                self.batch_len = size;
            }
            self.batch.push(file);
            if self.batch.len() >= BATCH_FILES || self.batch_len >= BATCH_LEN {
                self.send_batch().await?;
            }
        } else {
            let permit = permit(&self.large).await?;
            let job = Arc::clone(&self.job);
            self.tasks.spawn(async move {
                job.get_file(file).await;
                drop(permit);
            });
        }
        self.reap()
    }

    async fn send_batch(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let permit = permit(&self.batches).await?;
        let files = std::mem::take(&mut self.batch);
        self.batch_len = 0;
        let job = Arc::clone(&self.job);
        self.tasks.spawn(async move {
            job.get_batch(files).await;
            drop(permit);
        });
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(panicked)?;
        }
        Ok(())
    }

    async fn drain(&mut self) -> Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(panicked)?;
        }
        Ok(())
    }

    /// Waits for all that is on its way.
    async fn finish(mut self) -> Result<()> {
        self.send_batch().await?;
        self.job.client.events().tell(Event::FoundAll).await;
        self.get_names().await?;
        self.drain().await?;
        self.job.tell_parted().await;
        let job = Arc::clone(&self.job);
        let client = self.job.client.clone();
        self.settling.finish().await?;
        job.xattrs_lost.tell(&client).await;
        client.check_alive()
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.map_err(|_| Error::new(ErrorKind::Internal, "a limit of the download was taken away"))
}

fn panicked(error: JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a task of the download failed").with_source(error)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.map_err(panicked)?
}

async fn open_store(directory: &Path, special_modes: bool) -> Result<Store> {
    let directory = directory.to_path_buf();
    blocking(move || Store::open_local_with(&directory, StoreOptions::local(special_modes))).await
}

fn mtime_to_storage(mtime: Mtime) -> Option<storage::Mtime> {
    storage::Mtime::new(mtime.seconds, mtime.nanos)
}

fn policy_to_storage(policy: IfExists) -> storage::IfExists {
    match policy {
        IfExists::Overwrite => storage::IfExists::Overwrite,
        IfExists::Skip => storage::IfExists::Skip,
        IfExists::Fail => storage::IfExists::Fail,
        IfExists::Rename => storage::IfExists::Rename,
    }
}

#[allow(clippy::too_many_arguments, reason = "the fields of one event")]
fn done_event(
    item: u64,
    name: Vec<u8>,
    kind: ItemKind,
    size: u64,
    root: Option<Root>,
    outcome: Outcome,
    renamed_to: Option<Vec<u8>>,
) -> Event {
    Event::Done { item, name, kind, size, root, outcome, renamed_to }
}

impl Job {
    async fn tell_failed(&self, name: Vec<u8>, error: Error) {
        self.client.events().tell(Event::Failed { item: None, name, error }).await;
    }

    async fn tell_planned(&self, remote: RemotePath, kind: ItemKind, size: u64) {
        let item = self.client.item(remote.to_bytes());
        if kind == ItemKind::File {
            self.client.events().tell(Event::Found { files: 1, bytes: size }).await;
        }
        let event = done_event(item.id, item.name.clone(), kind, size, None, Outcome::Planned, None);
        self.client.events().tell(event).await;
    }

    async fn tell_done(
        &self,
        mut item: Item,
        size: u64,
        root: Option<Root>,
        outcome: Outcome,
        renamed: Option<Vec<u8>>,
    ) {
        if outcome != Outcome::Kept {
            item.held_rest(size);
        }
        item.settle().await;
        self.client.progressed();
        let event = done_event(item.id, item.name.clone(), ItemKind::File, size, root, outcome, renamed);
        self.client.events().tell(event).await;
    }

    /// Makes a symbolic link that was found to stay inside the tree.
    async fn save_link(&self, remote: &RemotePath, place: Place, points_to: Vec<u8>, mtime: Mtime) {
        let item = self.client.item(remote.to_bytes());
        let policy = self.if_exists;
        let made = blocking(move || {
            let there = place.store.stat(&place.path).ok();
            let is_same = there.as_ref().is_some_and(|entry| entry.link_target.as_deref() == Some(&points_to[..]));
            let is_unchanged = is_same && policy != IfExists::Rename;
            // Made once more, the same link is durable.
            let policy = if is_unchanged { storage::IfExists::Overwrite } else { policy_to_storage(policy) };
            let published = place.store.make_link(&place.path, &points_to, mtime_to_storage(mtime), policy)?;
            Ok(match published.outcome {
                _ if is_unchanged => (Outcome::Unchanged, None),
                storage::Outcome::Skipped => (Outcome::Kept, None),
                storage::Outcome::Renamed => (Outcome::Renamed, Some(renamed_path(&place, &published.path))),
                storage::Outcome::Created | storage::Outcome::Replaced => (Outcome::Stored, None),
            })
        });
        let event = match made.await {
            Ok((outcome, renamed)) => done_event(item.id, item.name.clone(), ItemKind::Link, 0, None, outcome, renamed),
            Err(error) => Event::Failed { item: None, name: item.name.clone(), error },
        };
        self.client.events().tell(event).await;
    }

    /// A session with a server that knows what this download needs: a connection that is made anew may lead to another.
    async fn session(&self) -> Result<Session> {
        let session = self.client.session().await?;
        if self.xattrs {
            check_server(session.hello())?;
        }
        Ok(session)
    }

    fn get_message(&self, remote: &RemotePath, unasked_max: u64) -> Get {
        // What is handed out over an invite counts with the answer to `Close`, which is waited for.
        let finish_ahead = (!self.client.redeems_invite()).then_some(true);
        let xattrs = self.xattrs.then_some(true);
        Get { path: remote.clone(), unasked_max, finish_ahead, first_max: None, xattrs }
    }

    /// The extended attributes that an answer tells.
    fn told_xattrs(&self, answer: &GetAnswer) -> Result<Option<Xattrs>> {
        match (&answer.xattrs, self.xattrs) {
            (_, false) => Ok(None),
            (Some(xattrs), true) => Ok(Some(xattrs.clone())),
            (None, true) => {
                Err(Error::new(ErrorKind::Protocol, "the server did not tell the extended attributes of a file"))
            }
        }
    }

    async fn tell_published(
        &self,
        file: FileJob,
        size: u64,
        root: Root,
        published: &storage::Published,
        xattrs_lost: Option<ErrorKind>,
    ) {
        let (outcome, renamed) = match published.outcome {
            storage::Outcome::Created | storage::Outcome::Replaced => (Outcome::Stored, None),
            storage::Outcome::Renamed => (Outcome::Renamed, Some(renamed_path(&file.place, &published.path))),
            storage::Outcome::Skipped => (Outcome::Kept, None),
        };
        if outcome != Outcome::Kept {
            xattrs_lost.into_iter().for_each(|why| self.xattrs_lost.add(why));
            file.role.is_there(&file.place, Some(&published.path), root);
        }
        self.tell_done(file.item, size, Some(root), outcome, renamed).await;
    }
}

/// The path on this machine of a file that got another name beside its own.
fn renamed_path(place: &Place, path: &RemotePath) -> Vec<u8> {
    let name = path.name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    let name = std::ffi::OsStr::from_bytes(&name);
    place.shown.with_file_name(name).as_os_str().as_bytes().to_vec()
}
