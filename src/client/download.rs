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
mod names;
mod tree;
mod zeros;

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::buffer::Buffer;
use crate::client::api::{Client, Item, random_id};
use crate::client::blocking::spawn_blocking;
use crate::client::compare::Links;
use crate::client::download::names::{Landed, Role};
use crate::client::download::tree::{Filled, Settling};
use crate::client::event::{Event, ItemKind, Outcome};
use crate::client::filter::{Filter, Subject};
use crate::client::keep::{self, Found, Keeper};
use crate::client::lanes::{Pace, Report};
use crate::client::names::{Met, Names};
use crate::client::plan::{self, GetItem, GetTarget, check_target};
use crate::client::session::{Exchange, Reply, Session};
use crate::client::shelf::Shelf;
use crate::client::stalls::Cause;
use crate::client::walk::Skip;
use crate::client::workplace::Workplace;
use crate::client::xattrs::{Lost, check_server, digest_of};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::hash::{GroupHash, Root, Tree, group_count, group_len, group_offset};
use crate::limits::{GROUP_LEN, KEPT_SIZE_MIN, MIB, NEAR_ROUND_TRIP, SHARED_WAITING_MAX, UNASKED_FILE_MAX};
use crate::path::{Component, Escaped, RemotePath};
use crate::protocol::{Bytes16, Done, Entry, EntryKind, Get, GetAnswer, Hash, IfExists, Mtime};
use crate::storage::{self, FileMetadata, NewFile, Store, StoreOptions, StoredFile};
use crate::xattrs::Xattrs;

/// Files of one batch.
const BATCH_FILES: usize = 64;
/// Bytes in one batch, held until they are saved.
const BATCH_LEN: u64 = 2 * MIB as u64;
/// Batches at once.
const BATCHES_MAX: usize = 6;
/// Larger files at once.
const LARGE_MAX: usize = 6;
/// Groups of one file that are asked for and have not come.
const WINDOW: usize = 32;
/// The same of a near server: enough to keep both sides busy. What comes faster than it is written waits in memory, and
/// gets cold there.
const WINDOW_NEAR: usize = 8;
/// The same where they are written by the connection's thread: one comes while another is written.
const WINDOW_HERE: usize = 2;
/// Groups of one file that are hashed and written at once.
const WRITES_MAX: usize = 4;
/// Answers to one request of a batch: description, content, finish.
const ANSWERS_PER_FILE: usize = 3;

/// How a `get` treats what it finds.
pub struct GetOptions {
    /// What to do when something of that name is here.
    pub if_exists: IfExists,
    /// Whether the destination was written as a directory, for what is said when it is none.
    pub into_directory: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Where content goes that goes to a stream.
    pub output: Option<Box<dyn Write + Send>>,
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
    place: Place,
    /// The directory that it goes into, which is done when nobody holds it any more.
    _directory: Option<Arc<Filled>>,
    role: Role,
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
                    if let Err(error) = run.get_named(item.source, &target, &options).await {
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

    /// Fetches what stands under a name: a file or a tree.
    async fn get_named(&mut self, source: RemotePath, target: &Path, options: &GetOptions) -> Result<()> {
        let entry = self.job.client.stat(&source).await?;
        let looked_at = target.to_path_buf();
        let existing = blocking(move || Ok(looked_at.metadata().ok().map(|metadata| metadata.is_dir()))).await?;
        let existing = existing.map(|is_directory| if is_directory { plan::Kind::Directory } else { plan::Kind::File });
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
                self.take_file(source, &entry, place, None).await
            }
            EntryKind::Directory => {
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
    ) -> Result<()> {
        let size = entry.size;
        let item = self.job.client.item(remote.to_bytes());
        self.job.client.events().tell(Event::Found { files: 1, bytes: size }).await;
        let metadata = (entry.mode, entry.mtime);
        let (xattrs_digest, role) = (entry.xattrs_digest, Role::Alone);
        let mut file = FileJob { item, remote, size, metadata, xattrs_digest, place, _directory: directory, role };
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

/// What is here under the name of a file that is to be fetched.
enum Here {
    /// Nothing that matters: it is fetched.
    Free,
    /// A file of the same size, which may be the same.
    SameSize(StoredFile),
    /// Something else, which the policy leaves alone.
    Kept,
    /// Something else, which must not be replaced.
    Refused(Error),
}

/// Looks at what is here. Blocks.
fn look(place: &Place, size: u64, policy: IfExists) -> Here {
    if policy == IfExists::Rename {
        return Here::Free;
    }
    if policy == IfExists::Overwrite {
        place.store.bring_back(&place.path);
    }
    let entry = match place.store.stat(&place.path) {
        Ok(entry) => entry,
        // What is wrong with the way there is found again, and told, when the file is begun.
        Err(_) => return Here::Free,
    };
    match (entry.kind, policy) {
        (storage::Kind::File, _) if entry.size == size => match place.store.open_file(&place.path) {
            Ok(file) => Here::SameSize(file),
            Err(_) => differing(place, policy),
        },
        (storage::Kind::File | storage::Kind::Link, _) => differing(place, policy),
        (storage::Kind::Directory | storage::Kind::Special, _) => Here::Free,
    }
}

/// What becomes of something else that is here.
fn differing(place: &Place, policy: IfExists) -> Here {
    match policy {
        IfExists::Skip => Here::Kept,
        IfExists::Fail => {
            let shown = Escaped(place.shown.as_os_str().as_bytes());
            Here::Refused(Error::new(ErrorKind::Exists, format!("`{shown}` exists here and must not be replaced")))
        }
        IfExists::Overwrite | IfExists::Rename => Here::Free,
    }
}

/// The root of a file that is here. Blocks.
fn hash_file(file: &StoredFile) -> Result<Root> {
    let size = file.size();
    let mut tree = Tree::new();
    let mut buffer = vec![0; group_len(size, 0)];
    for index in 0..group_count(size) {
        let len = group_len(size, index);
        let Some(content) = buffer.get_mut(..len) else { break };
        file.read_at(group_offset(index), content)?;
        tree.insert(index, GroupHash::of(index, content));
    }
    file.check_unchanged()?;
    tree.root(size).ok_or_else(|| Error::new(ErrorKind::Internal, "a file's hash is incomplete"))
}

/// Makes a file durable that is the same as the server's, with the server's time and mode. Blocks.
fn keep(
    place: &Place,
    mut file: StoredFile,
    mode: u32,
    mtime: Mtime,
    xattrs: Option<&Xattrs>,
) -> Result<Option<ErrorKind>> {
    let xattrs_lost = file.set_metadata(Some(mode & 0o7777), mtime_to_storage(mtime), xattrs)?;
    file.sync()?;
    place.store.sync_existing(&file, &place.path)?;
    Ok(xattrs_lost)
}

/// A small file that has come.
struct Fetched {
    file: FileJob,
    answer: GetAnswer,
    content: Vec<u8>,
    root: Root,
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

    // ---- small files ---------------------------------------------------------------------------------------

    async fn get_batch(self: Arc<Job>, files: Vec<FileJob>) {
        let mut rest = files;
        let mut retry = self.client.retry();
        while !rest.is_empty() {
            let (again, error) = self.get_batch_once(rest).await;
            rest = again;
            let Some(error) = error else { continue };
            if let Err(error) = retry.after(error).await {
                for mut file in rest.drain(..) {
                    file.item.failed(error.duplicate()).await;
                }
            }
        }
    }

    /// One attempt at a batch. Returns what is to be tried again, and why.
    async fn get_batch_once(self: &Arc<Job>, files: Vec<FileJob>) -> (Vec<FileJob>, Option<Error>) {
        let session = match self.session().await {
            Ok(session) => session,
            Err(error) => return (files, Some(error)),
        };
        let mut again = Again::default();
        let wanted = self.compare_batch(&session, files, &mut again).await;
        let fetched = self.fetch_batch(&session, wanted, &mut again).await;
        self.save_batch(fetched).await;
        (again.files, again.reason)
    }

    /// Tells of the files that are here already, and returns the others.
    async fn compare_batch(&self, session: &Session, files: Vec<FileJob>, again: &mut Again) -> Vec<FileJob> {
        let policy = self.if_exists;
        let places: Vec<(Place, u64)> = files.iter().map(|file| (file.place.clone(), file.size)).collect();
        let looked =
            blocking(move || Ok(places.iter().map(|(place, size)| look(place, *size, policy)).collect::<Vec<_>>()));
        let looked = match looked.await {
            Ok(looked) => looked,
            Err(error) => {
                again.add(files, error);
                return Vec::new();
            }
        };
        let mut wanted = Vec::new();
        let mut same_size = Vec::new();
        for (mut file, here) in files.into_iter().zip(looked) {
            match here {
                Here::Free => wanted.push(file),
                Here::SameSize(local) => same_size.push((file, local)),
                Here::Kept => self.tell_done(file.item, file.size, None, Outcome::Kept, None).await,
                Here::Refused(error) => file.item.failed(error).await,
            }
        }
        let (replies, mut answers) = mpsc::channel(same_size.len().max(1));
        let mut asked = HashMap::new();
        for (file, local) in same_size {
            match session.request_into(&Hash { path: file.remote.clone(), read: None }, replies.clone()).await {
                Ok(transfer) => {
                    asked.insert(transfer, (file, local));
                }
                Err(error) => again.add(vec![file], error),
            }
        }
        drop(replies);
        while let Some((transfer, reply)) = answers.recv().await {
            let Some((mut file, local)) = asked.remove(&transfer) else { continue };
            match reply {
                Reply::Done(Done { root: Some(theirs), size: Some(size), .. }) => {
                    match self.compare(&file, local, theirs, size, None).await {
                        Ok(Compared::Same(root)) => {
                            file.item.advance(size, 0);
                            file.role.is_there(&file.place, None, root);
                            self.tell_done(file.item, size, Some(root), Outcome::Unchanged, None).await;
                        }
                        Ok(Compared::Other(Here::Kept)) => {
                            self.tell_done(file.item, file.size, None, Outcome::Kept, None).await;
                        }
                        Ok(Compared::Other(Here::Refused(error))) => file.item.failed(error).await,
                        Ok(Compared::Other(_)) => wanted.push(file),
                        Err(error) => file.item.failed(error).await,
                    }
                }
                Reply::Failed(error) if error.kind().is_retryable() => again.add(vec![file], error),
                Reply::Failed(error) => file.item.failed(error).await,
                other => again.add(vec![file], session.unexpected(&other)),
            }
        }
        again.lost(asked.into_values().map(|(file, _)| file).collect(), session);
        wanted
    }

    /// Compares a local file of the same size with the server's hash, and makes it durable when it is the same.
    async fn compare(
        &self,
        file: &FileJob,
        local: StoredFile,
        theirs: Root,
        size: u64,
        told: Option<&Xattrs>,
    ) -> Result<Compared> {
        let (place, policy, (mode, mtime)) = (file.place.clone(), self.if_exists, file.metadata);
        let (compared, local) = blocking(move || {
            let is_same = local.size() == size && hash_file(&local)? == theirs;
            Ok((if is_same { None } else { Some(differing(&place, policy)) }, local))
        })
        .await?;
        if let Some(other) = compared {
            return Ok(Compared::Other(other));
        }
        let xattrs = match told {
            Some(told) => Some(told.clone()),
            None => self.xattrs_of(file, &local).await?,
        };
        let place = file.place.clone();
        let lost = blocking(move || {
            match keep(&place, local, mode, mtime, xattrs.as_ref()) {
                // It has other names, whose metadata must stay: it is saved anew.
                Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Err(differing(&place, policy))),
                kept => kept.map(Ok),
            }
        })
        .await?;
        match lost {
            Ok(lost) => {
                lost.into_iter().for_each(|why| self.xattrs_lost.add(why));
                Ok(Compared::Same(theirs))
            }
            Err(other) => Ok(Compared::Other(other)),
        }
    }

    /// The extended attributes that a file which is here already shall have: asked for where they are not those that it
    /// has. None when they are not moved.
    async fn xattrs_of(&self, file: &FileJob, local: &StoredFile) -> Result<Option<Xattrs>> {
        if !self.xattrs {
            return Ok(None);
        }
        if let Ok(here) = local.xattrs()
            && file.xattrs_digest == Some(digest_of(&here))
        {
            return Ok(Some(here));
        }
        Ok(Some(self.client.stat_with_xattrs(&file.remote).await?.1))
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
        Get { path: remote.clone(), unasked_max, xattrs: self.xattrs.then_some(true) }
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

    /// Asks for small files all at once and takes them as they come.
    async fn fetch_batch(&self, session: &Session, files: Vec<FileJob>, again: &mut Again) -> Vec<Fetched> {
        let (replies, mut answers) = mpsc::channel((ANSWERS_PER_FILE * files.len()).max(1));
        let mut asked: HashMap<u32, (FileJob, Option<GetAnswer>, Vec<u8>)> = HashMap::new();
        for file in files {
            file.item.started(Some(file.size)).await;
            let get = self.get_message(&file.remote, UNASKED_FILE_MAX);
            match session.get_into(&get, replies.clone()).await {
                Ok(transfer) => {
                    asked.insert(transfer, (file, None, Vec::new()));
                }
                Err(error) => again.add(vec![file], error),
            }
        }
        drop(replies);
        let mut fetched = Vec::new();
        let mut grown = Vec::new();
        while let Some((transfer, reply)) = self.client.stalls().during(Cause::Content, answers.recv()).await {
            let Some((mut file, mut answer, mut content)) = asked.remove(&transfer) else { continue };
            match reply {
                Reply::GetAnswer(new) if self.xattrs && new.xattrs.is_none() => {
                    again.add(vec![file], session.unexpected(&Reply::GetAnswer(new)));
                    continue;
                }
                Reply::GetAnswer(new) if new.unasked => answer = Some(new),
                Reply::GetAnswer(new) => {
                    // It has grown since it was listed.
                    session.abort(transfer, &Error::new(ErrorKind::Changed, "larger than it was listed"));
                    file.size = new.size;
                    grown.push(file);
                    continue;
                }
                // A copy, so that its buffer is free again while the batch is gathered.
                Reply::Group(0, buffer) => content = buffer.to_vec(),
                Reply::Finish(finish) => {
                    let Some(answer) = answer else {
                        again.add(vec![file], session.unexpected(&Reply::Finish(finish)));
                        continue;
                    };
                    let root = Root::of(&content);
                    if root != finish.root || finish.size != answer.size || content.len() as u64 != answer.size {
                        again.add(vec![file], mismatch(root, finish.root));
                        continue;
                    }
                    file.item.advance(answer.size, answer.size);
                    fetched.push(Fetched { file, answer, content, root });
                    continue;
                }
                Reply::Failed(error) if error.kind().is_retryable() => {
                    again.add(vec![file], error);
                    continue;
                }
                Reply::Failed(error) => {
                    file.item.failed(error).await;
                    continue;
                }
                other => {
                    again.add(vec![file], session.unexpected(&other));
                    continue;
                }
            }
            asked.insert(transfer, (file, answer, content));
        }
        again.lost(asked.into_values().map(|(file, ..)| file).collect(), session);
        for file in grown {
            self.get_file(file).await;
        }
        fetched
    }

    /// Saves files whose content was found right: one hop, one commit.
    async fn save_batch(&self, fetched: Vec<Fetched>) {
        if fetched.is_empty() {
            return;
        }
        let (policy, with_xattrs) = (self.if_exists, self.xattrs);
        let (files, contents): (Vec<_>, Vec<_>) = fetched
            .into_iter()
            .map(|Fetched { file, answer, content, root }| {
                let place = file.place.clone();
                ((file, answer.size, root), (place, answer, content, root))
            })
            .unzip();
        let saved = spawn_blocking(move || {
            let mut store = None;
            let mut parents = storage::Parents::default();
            let staged: Vec<Result<storage::Staged>> = contents
                .into_iter()
                .map(|(place, answer, content, root)| {
                    let staged = stage_small(&place, &mut parents, answer, &content, root, (policy, with_xattrs));
                    store = Some(place.store);
                    staged
                })
                .collect();
            let (mut whole, mut ends) = (Vec::new(), Vec::new());
            for staged in staged {
                ends.push(staged.map(|staged| {
                    let lost = staged.xattrs_lost();
                    whole.push(staged);
                    lost
                }));
            }
            let mut published = store.map_or_else(Vec::new, |store| store.publish(whole)).into_iter();
            let missing = || Err(Error::new(ErrorKind::Internal, "a commit without an answer"));
            ends.into_iter()
                .map(|end| end.and_then(|lost| Ok((published.next().unwrap_or_else(missing)?, lost))))
                .collect::<Vec<Result<(storage::Published, Option<ErrorKind>)>>>()
        });
        match self.saving(saved).await {
            Ok(saved) => {
                for ((mut file, size, root), saved) in files.into_iter().zip(saved) {
                    match saved {
                        Ok((published, lost)) => self.tell_published(file, size, root, &published, lost).await,
                        Err(error) => file.item.failed(error).await,
                    }
                }
            }
            Err(error) => {
                let error = panicked(error);
                for (mut file, ..) in files {
                    file.item.failed(error.duplicate()).await;
                }
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

    // ---- larger files --------------------------------------------------------------------------------------

    async fn get_file(&self, mut file: FileJob) {
        file.item.started(Some(file.size)).await;
        let mut partial = None;
        let mut retry = self.client.retry();
        loop {
            match self.get_file_once(&mut file, &mut partial).await {
                Ok(End::Saved(size, root, published, lost)) => {
                    self.tell_published(file, size, root, &published, lost).await;
                    return;
                }
                Ok(End::Unchanged(size, root)) => {
                    file.role.is_there(&file.place, None, root);
                    self.tell_done(file.item, size, Some(root), Outcome::Unchanged, None).await;
                    return;
                }
                Ok(End::Kept) => {
                    self.tell_done(file.item, file.size, None, Outcome::Kept, None).await;
                    return;
                }
                Err(error) => {
                    // What came of another version is compared with the next; wrong content is of no use.
                    if matches!(error.kind(), ErrorKind::Mismatch | ErrorKind::Changed) {
                        let keeper = partial.take().and_then(|partial: Partial| partial.keeper);
                        if let Some(keeper) = keeper.filter(|_| error.kind() == ErrorKind::Mismatch) {
                            keeper.end().await;
                        }
                        file.item.restart();
                    }
                    if let Err(error) = retry.after(error).await {
                        file.item.failed(error).await;
                        return;
                    }
                }
            }
        }
    }

    /// One attempt at a file. What it got stays in `partial` when the connection breaks.
    async fn get_file_once(&self, file: &mut FileJob, partial: &mut Option<Partial>) -> Result<End> {
        let session = self.session().await?;
        let get = self.get_message(&file.remote, 0);
        let mut exchange = session.open_get(&get).await?;
        let answer = match exchange.next().await? {
            Reply::GetAnswer(answer) => answer,
            other => return Err(exchange.unexpected(&other)),
        };
        (file.size, file.metadata) = (answer.size, (answer.mode, answer.mtime));
        let xattrs = self.told_xattrs(&answer)?;
        let known = partial.as_mut().filter(|partial| partial.version == answer.version);
        let is_known = known.map(|partial| partial.is_resumed = true).is_some();
        if !is_known {
            *partial = None;
            file.item.restart();
            let (place, size, policy) = (file.place.clone(), answer.size, self.if_exists);
            match blocking(move || Ok(look(&place, size, policy))).await? {
                Here::Kept => return Ok(End::Kept),
                Here::Refused(error) => return Err(error),
                Here::Free => {}
                Here::SameSize(local) => {
                    let (theirs, size) = match answer.root {
                        Some(root) => (root, answer.size),
                        None => self.client.hash(&file.remote).await?,
                    };
                    match self.compare(file, local, theirs, size, xattrs.as_ref()).await? {
                        Compared::Same(root) => {
                            file.item.advance(size, 0);
                            return Ok(End::Unchanged(size, root));
                        }
                        Compared::Other(Here::Kept) => return Ok(End::Kept),
                        Compared::Other(Here::Refused(error)) => return Err(error),
                        Compared::Other(_) => {}
                    }
                }
            }
            let mut begun = self.begin(&mut exchange, file, &answer).await?;
            zeros::make(&mut begun, &answer, &mut file.item).await?;
            *partial = Some(begun);
        }
        let Some(known) = partial else {
            return Err(Error::new(ErrorKind::Internal, "a download without a place"));
        };
        let root = self.fetch(&session, exchange, &answer, known, &file.remote, &mut file.item).await?;
        let Some(Partial { sink: Sink::File(upload), keeper, .. }) = partial.take() else {
            return Err(Error::new(ErrorKind::Internal, "a download without a file"));
        };
        if let Some(keeper) = keeper {
            // It gets its name now, or begins anew.
            keeper.end().await;
        }
        let (store, upload_id) = (file.place.store.clone(), random_id()?);
        let published = self.saving(blocking(move || {
            let upload = Arc::into_inner(upload)
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a file is still written when it is whole"))?;
            let metadata = FileMetadata {
                mode: Some(answer.mode & 0o7777),
                mtime: mtime_to_storage(answer.mtime),
                root,
                upload_id: upload_id.0,
                xattrs,
            };
            let staged = upload.finish(answer.size, metadata)?;
            let lost = staged.xattrs_lost();
            let missing = || Err(Error::new(ErrorKind::Internal, "a commit without an answer"));
            Ok((store.publish(vec![staged]).pop().unwrap_or_else(missing)?, lost))
        }));
        let (published, lost) = published.await?;
        Ok(End::Saved(file.size, root, published, lost))
    }

    /// Begins to save an open download, with what is here of it.
    async fn begin(&self, exchange: &mut Exchange, file: &mut FileJob, answer: &GetAnswer) -> Result<Partial> {
        let (place, policy, size) = (file.place.clone(), self.if_exists, answer.size);
        let key = keep::key(self.client.server_name(), &file.remote, &file.place.path);
        let (upload, kept, record, old) = blocking(move || {
            let options = NewFile { size: Some(size), if_exists: policy_to_storage(policy), make_parents: true };
            let found = if size >= KEPT_SIZE_MIN { place.store.begin_found(&place.path, options, &key)? } else { None };
            let (upload, kept, record) = match found {
                Some((upload, kept, record)) => (upload, Some(kept), record),
                None => (place.store.begin(&place.path, options)?, None, None),
            };
            let is_base = policy == IfExists::Overwrite && size > UNASKED_FILE_MAX;
            let old = if is_base { place.store.open_file(&place.path).ok() } else { None };
            Ok((upload, kept, record, old.filter(|old| old.size() > UNASKED_FILE_MAX)))
        })
        .await?;
        let upload = Arc::new(upload);
        let mut record = record.unwrap_or_else(|| keep::new_record(&file.place.path, size));
        record.held.resize(size);
        let is_same = record.owner == keep::version_hash(&answer.version);
        let held = (record.held.count() > 0).then(|| (record.held.clone(), is_same));
        let mut keeper = kept.map(|kept| Keeper::new(&upload, kept, record));
        let found = Found { held, old: old.map(Arc::new) };
        let tree = keep::fill(exchange, size, found, &upload, &mut file.item).await?;
        if let Some(keeper) = &mut keeper {
            keeper.restart(&answer.version, size);
            let there = (0..group_count(size)).filter_map(|group| Some((group, tree.value(group)?)));
            there.for_each(|(group, value)| keeper.holds(group, value, group_len(size, group)));
        }
        let (version, sink) = (answer.version.clone(), Sink::File(upload));
        let is_resumed = tree.first_known().is_some();
        let shelf = Shelf::new(self.client.progress());
        Ok(Partial { version, size, tree, is_resumed, shelf, confirmed: 0, next: 0, sink, keeper })
    }

    /// Waits for work that writes and syncs.
    async fn saving<F: Future>(&self, work: F) -> F::Output {
        let begun = Instant::now();
        let done = self.client.stalls().during(Cause::Saving, work).await;
        self.client.stalls().since(Cause::Writing, begun.into_std());
        done
    }

    /// Gets what is missing of an open download, and compares its hash with the server's.
    async fn fetch(
        &self,
        session: &Session,
        mut exchange: Exchange,
        answer: &GetAnswer,
        partial: &mut Partial,
        remote: &RemotePath,
        item: &mut Item,
    ) -> Result<Root> {
        partial.next = partial.tree.first_missing(0, group_count(partial.size)).unwrap_or(group_count(partial.size));
        let ended = if answer.unasked {
            // Only an empty file comes unasked here.
            exchange.next().await?
        } else {
            self.fetch_groups(session, &mut exchange, partial, item).await?;
            if partial.is_resumed && answer.root.is_none() {
                confirm::confirm(&self.client, &mut exchange, partial).await?;
            }
            exchange.end_download();
            exchange.next().await?
        };
        let root = partial
            .tree
            .root(partial.size)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a group of a download was not hashed"))?;
        let theirs = match ended {
            Reply::Finish(finish) if finish.size == partial.size => finish.root,
            // Of what an earlier attempt got, this connection has sent nothing.
            Reply::Done(_) => match answer.root {
                Some(root) => root,
                None if partial.confirmed == group_count(partial.size) => root,
                None => self.client.hash(remote).await?.0,
            },
            other => return Err(exchange.unexpected(&other)),
        };
        if root == theirs { Ok(root) } else { Err(mismatch(root, theirs)) }
    }

    async fn fetch_groups(
        &self,
        session: &Session,
        exchange: &mut Exchange,
        partial: &mut Partial,
        item: &mut Item,
    ) -> Result<()> {
        let mut asked: VecDeque<(u64, OwnedSemaphorePermit, Instant)> = VecDeque::new();
        let mut writes: JoinSet<Result<(u64, GroupHash, usize)>> = JoinSet::new();
        let is_ordered = partial.sink.is_ordered();
        let workplace = session.workplace(partial.sink.is_in_memory());
        let writes_max = if is_ordered { 1 } else { workplace.at_once(WRITES_MAX) };
        let count = group_count(partial.size);
        let mut carrier = exchange.carry(&partial.shelf);
        if !is_ordered {
            self.client.widen(session, partial.size);
        }
        // Groups that lanes owe, and those that one of them owed when it died.
        // What was begun over a connection that broke comes first: it holds buffers.
        let begun: Vec<u64> = if is_ordered { Vec::new() } else { partial.shelf.groups() };
        let mut again: VecDeque<u64> = begun.iter().copied().collect();
        let mut elsewhere = 0;
        let mut pace = Pace::new();
        let write = |writes: &mut JoinSet<Result<(u64, GroupHash, usize)>>, sink: Sink, index: u64, buffer: Buffer| {
            let stalls = Arc::clone(self.client.stalls());
            workplace.spawn(writes, move || {
                let hash = stalls.working(Cause::Hashing, || GroupHash::of(index, &buffer));
                stalls.working(Cause::Writing, || sink.write(index, &buffer))?;
                Ok((index, hash, buffer.len()))
            });
        };
        let result = loop {
            let Partial { size, tree, next, shelf, .. } = &mut *partial;
            let mut take = || {
                again.pop_front().or_else(|| {
                    while *next < count {
                        let group = *next;
                        *next = tree.first_missing(group + 1, count).unwrap_or(count);
                        if begun.binary_search(&group).is_err() {
                            return Some(group);
                        }
                    }
                    None
                })
            };
            if !is_ordered {
                elsewhere += carrier.ask(*size, &mut take);
            }
            let window = match session.round_trip() {
                _ if session.lanes().are_there() && !is_ordered => pace.groups(),
                // Where the system does not tell, it is zero.
                round_trip if !round_trip.is_zero() && round_trip < NEAR_ROUND_TRIP => match workplace {
                    Workplace::Here => WINDOW_HERE,
                    Workplace::DiskThreads => WINDOW_NEAR,
                },
                _ => WINDOW,
            };
            let mut ranges = Vec::new();
            while asked.len() < window {
                // Only who has nothing on its way waits: what is on its way needs nobody's leave to arrive.
                let permit = match session.try_want() {
                    Some(permit) => permit,
                    None if asked.is_empty() && elsewhere == 0 => session.want().await?,
                    None => break,
                };
                let Some(group) = take() else { break };
                let begun = shelf.begun(group) as u64;
                ranges.push((group_offset(group) + begun, group_len(*size, group) as u64 - begun));
                asked.push_back((group, permit, Instant::now()));
            }
            exchange.want(&ranges);
            if asked.is_empty() && elsewhere == 0 && writes.is_empty() {
                break Ok(());
            }
            let begun = Instant::now();
            let is_full = asked.is_empty() || writes.len() >= writes_max;
            tokio::select! {
                reply = exchange.next(), if (!asked.is_empty() || elsewhere > 0) && writes.len() < writes_max => {
                    match reply {
                        Ok(Reply::Group(index, buffer)) => {
                            match asked.pop_front() {
                                Some((group, _, since)) if group == index => pace.came_after(since.elapsed()),
                                _ => break Err(exchange.unexpected(&Reply::Group(index, buffer))),
                            }
                            write(&mut writes, partial.sink.clone(), index, buffer);
                        }
                        Ok(other) => break Err(exchange.unexpected(&other)),
                        Err(error) => break Err(error),
                    }
                }
                report = carrier.next(), if writes.len() < writes_max => match report {
                    Report::Came(index, buffer) => {
                        elsewhere -= 1;
                        write(&mut writes, partial.sink.clone(), index, buffer);
                    }
                    Report::Lost(index) => {
                        elsewhere -= 1;
                        again.push_back(index);
                    }
                    Report::Wider(count) => self.client.widen_to(session, count),
                    Report::Joined | Report::Sent(_) => {}
                },
                Some(written) = writes.join_next() => {
                    match written.map_err(panicked).and_then(|written| written) {
                        Ok((index, hash, len)) => {
                            partial.insert(index, hash, len);
                            item.advance_group(index, len, 0);
                        }
                        Err(error) => break Err(error),
                    }
                }
            }
            self.client.stalls().since(if is_full { Cause::Saving } else { Cause::Content }, begun.into_std());
        };
        // What came before a failure is kept: the next attempt goes on from there.
        while let Some(written) = writes.join_next().await {
            if let Ok(Ok((index, hash, len))) = written {
                partial.insert(index, hash, len);
                item.advance_group(index, len, 0);
            }
        }
        result
    }

    /// Fetches a file to a stream. What was written cannot be taken back: a wrong hash is told at the end.
    async fn get_stream(&self, remote: RemotePath, output: Box<dyn Write + Send>) {
        let mut item = self.client.item(remote.to_bytes());
        let output = Arc::new(Mutex::new(output));
        let mut partial = None;
        let mut retry = self.client.retry();
        loop {
            match self.get_stream_once(&remote, &output, &mut partial, &mut item).await {
                Ok((size, root)) => {
                    self.tell_done(item, size, Some(root), Outcome::Stored, None).await;
                    return;
                }
                Err(error) => {
                    let is_final = matches!(error.kind(), ErrorKind::Mismatch | ErrorKind::Changed)
                        && partial.as_ref().is_some_and(|partial: &Partial| partial.tree.value(0).is_some());
                    let retried = if is_final { Err(error) } else { retry.after(error).await };
                    if let Err(error) = retried {
                        item.failed(error).await;
                        return;
                    }
                }
            }
        }
    }

    async fn get_stream_once(
        &self,
        remote: &RemotePath,
        output: &Arc<Mutex<Box<dyn Write + Send>>>,
        partial: &mut Option<Partial>,
        item: &mut Item,
    ) -> Result<(u64, Root)> {
        let session = self.client.session().await?;
        let mut exchange = session.open_get(&Get { path: remote.clone(), unasked_max: 0, xattrs: None }).await?;
        let answer = match exchange.next().await? {
            Reply::GetAnswer(answer) => answer,
            other => return Err(exchange.unexpected(&other)),
        };
        match partial {
            None => {
                self.client.events().tell(Event::Found { files: 1, bytes: answer.size }).await;
                item.started(Some(answer.size)).await;
                if self.dry_run {
                    return Ok((answer.size, answer.root.unwrap_or(Root([0; 32]))));
                }
                let sink = Sink::Output(Arc::clone(output));
                let (version, size) = (answer.version.clone(), answer.size);
                *partial = Some(Partial {
                    version,
                    size,
                    tree: Tree::new(),
                    is_resumed: false,
                    shelf: Shelf::default(),
                    confirmed: 0,
                    next: 0,
                    sink,
                    keeper: None,
                });
            }
            Some(known) if known.version == answer.version => {}
            Some(_) => {
                let message = format!("{remote} became another one while it was being read");
                return Err(Error::new(ErrorKind::Changed, message));
            }
        }
        let Some(known) = partial else {
            return Err(Error::new(ErrorKind::Internal, "a download without a place"));
        };
        let root = self.fetch(&session, exchange, &answer, known, remote, item).await?;
        let output = Arc::clone(output);
        blocking(move || {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.flush().while_doing(|| "write to the output".to_owned())
        })
        .await?;
        Ok((answer.size, root))
    }
}

/// What is to be tried again, and why.
#[derive(Default)]
struct Again {
    files: Vec<FileJob>,
    reason: Option<Error>,
}

impl Again {
    fn add(&mut self, files: Vec<FileJob>, reason: Error) {
        self.files.extend(files);
        self.reason = Some(reason);
    }

    /// Files that the session ended without an answer for.
    fn lost(&mut self, files: Vec<FileJob>, session: &Session) {
        if !files.is_empty() {
            self.add(files, session.reason());
        }
    }
}

/// How a comparison ended.
enum Compared {
    Same(Root),
    Other(Here),
}

/// How a larger file ended.
enum End {
    Saved(u64, Root, storage::Published, Option<ErrorKind>),
    Unchanged(u64, Root),
    Kept,
}

/// A download as far as it came.
struct Partial {
    version: Vec<u8>,
    size: u64,
    tree: Tree,
    /// Whether some of it was here before this connection.
    is_resumed: bool,
    /// What broken connections have brought of groups.
    shelf: Shelf,
    /// How many groups were compared with the server's since: see `confirm`.
    confirmed: u64,
    /// The next group to be asked for.
    next: u64,
    sink: Sink,
    /// None where nothing is kept for another run.
    keeper: Option<Keeper>,
}

impl Partial {
    fn insert(&mut self, group: u64, hash: GroupHash, len: usize) {
        self.tree.insert(group, hash);
        self.shelf.forget(group);
        if let Some(keeper) = &mut self.keeper {
            keeper.holds(group, hash.value, len);
        }
    }
}

/// Where groups go.
#[derive(Clone)]
enum Sink {
    File(Arc<storage::Upload>),
    Output(Arc<Mutex<Box<dyn Write + Send>>>),
}

impl Sink {
    /// Whether groups must be written one after the other.
    fn is_ordered(&self) -> bool {
        matches!(self, Sink::Output(_))
    }

    /// Whether writing to it waits for no disk, and for nobody else.
    fn is_in_memory(&self) -> bool {
        match self {
            Sink::File(upload) => upload.is_in_memory(),
            Sink::Output(_) => false,
        }
    }

    fn write(&self, index: u64, content: &Buffer) -> Result<()> {
        match self {
            Sink::File(upload) => upload.write_at(group_offset(index), content),
            Sink::Output(output) => {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                output.write_all(content).while_doing(|| "write to the output".to_owned()).map_err(|error| {
                    // Nobody reads any more; that is no broken connection to the server.
                    if error.kind() == ErrorKind::Connection { error.with_kind(ErrorKind::Io) } else { error }
                })
            }
        }
    }
}

/// Stages a small file. Blocks.
fn stage_small(
    place: &Place,
    parents: &mut storage::Parents,
    answer: GetAnswer,
    content: &[u8],
    root: Root,
    (policy, with_xattrs): (IfExists, bool),
) -> Result<storage::Staged> {
    let options = NewFile { size: Some(answer.size), if_exists: policy_to_storage(policy), make_parents: true };
    let upload = place.store.begin_in(parents, &place.path, options)?;
    if !content.is_empty() {
        upload.write_at(0, content)?;
    }
    let metadata = FileMetadata {
        mode: Some(answer.mode & 0o7777),
        mtime: mtime_to_storage(answer.mtime),
        root,
        upload_id: random_id()?.0,
        xattrs: answer.xattrs.filter(|_| with_xattrs),
    };
    upload.finish(answer.size, metadata)
}

/// The path on this machine of a file that got another name beside its own.
fn renamed_path(place: &Place, path: &RemotePath) -> Vec<u8> {
    let name = path.name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    let name = std::ffi::OsStr::from_bytes(&name);
    place.shown.with_file_name(name).as_os_str().as_bytes().to_vec()
}

fn mismatch(ours: Root, theirs: Root) -> Error {
    let message = format!("the content that arrived has the hash {ours}, the server says {theirs}");
    Error::new(ErrorKind::Mismatch, message)
}

const _: () = assert!(WINDOW * GROUP_LEN <= crate::limits::WANTED_MAX as usize, "one file may fill its window");
