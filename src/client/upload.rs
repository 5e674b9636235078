//! Uploads: from the walk of the local sources to the last durable answer.
//!
//! The walk feeds a bounded channel while the first files already move. Files that may be sent unasked are read and
//! hashed in batches, one hop to a blocking thread for each, and answered as the server's batches commit. Larger
//! ones are read a few groups ahead, hashed while they are hot, and sent as the server's answers want it.
//!
//! Invariants: a finish is sent only after the file was found to be the same as before its first byte was read, so
//! no mixture is ever committed; a source is removed only after its durable answer; memory does not grow with the
//! number of files, only with the directories that are being filled.

mod believe;
mod directory;
mod large;
mod small;
mod stream;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};

use crate::client::api::{Client, Item, random_id};
use crate::client::compare::{Links, sent_mode};
use crate::client::event::{Event, ItemKind, Outcome};
use crate::client::filter::Filter;
use crate::client::names::{Lead, Met, Names, Turn};
use crate::client::plan::{Kind, PutItem, PutSource, check_target};
use crate::client::session::{Reply, Session};
use crate::client::upload::directory::{FILLABLE, directory_event};
use crate::client::upload::small::{BATCH_FILES, BATCH_LEN, BATCHES_MAX};
use crate::client::walk::{Attributes, Found, OpenSource, Source, SourceVersion, Walk};
use crate::client::xattrs::{Lost, check_server};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;
use crate::limits::SHARED_WAITING_MAX;
use crate::path::{Component, RemotePath};
use crate::protocol::{self, Bytes16, Done, EntryKind, IfExists, MakeLink, Put, Stat, Stored};

/// What was found and waits for its turn: about 300 bytes each.
const FOUND_MAX: usize = 512;
/// How long what was found waits for more before it is passed on.
const GULP_TIME: Duration = Duration::from_millis(1);
/// Larger files at once: their commits overlap, and so do the waits for answers.
const LARGE_MAX: usize = 8;
/// Links and directories at once.
const SMALL_REQUESTS_MAX: usize = 64;

/// How a `put` treats what it finds.
#[derive(Debug)]
pub struct PutOptions {
    /// What to do when something of that name is there.
    pub if_exists: IfExists,
    /// Whether the destination was written as a directory, for what is said when it is none.
    pub into_directory: bool,
    /// Remove each file after its durable answer, unless it changed.
    pub remove_source: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// The size that the only file or stream must have.
    pub expect_size: Option<u64>,
    /// The hash that the only file or stream must have.
    pub expect_root: Option<Root>,
    /// Where the content of a stream comes from.
    pub stream: Option<StreamSource>,
    /// What is left out.
    pub filter: Arc<Filter>,
    /// What becomes of links.
    pub links: Links,
    /// Ask for setuid, setgid, sticky and world-writable, which a server keeps only where it is told to.
    pub special_modes: bool,
    /// Move extended attributes of users (`user.*`) too.
    pub xattrs: bool,
}

impl Default for PutOptions {
    fn default() -> PutOptions {
        PutOptions {
            if_exists: IfExists::Overwrite,
            into_directory: false,
            remove_source: false,
            dry_run: false,
            expect_size: None,
            expect_root: None,
            stream: None,
            filter: Arc::default(),
            links: Links::Copy,
            special_modes: false,
            xattrs: false,
        }
    }
}

/// Content without a file: standard input, or what a command prints.
pub struct StreamSource {
    /// What the person calls it.
    pub name: String,
    /// Where it is read from, on a thread of its own.
    pub reader: Box<dyn io::Read + Send + Sync>,
    /// Asked after the end: whether it was the real one (a command must have succeeded).
    pub check: Box<dyn FnOnce() -> Result<()> + Send + Sync>,
    /// An empty file that it is written to before it is sent, so that it can be read once more.
    pub spool: Option<File>,
}

impl std::fmt::Debug for StreamSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSource").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What all tasks of one `put` share.
struct Job {
    client: Client,
    if_exists: IfExists,
    into_directory: bool,
    remove_source: bool,
    expect_size: Option<u64>,
    expect_root: Option<Root>,
    special_modes: bool,
    xattrs: bool,
    /// Attributes that were not kept there.
    xattrs_lost: Lost,
    /// Names of one file here that are files of their own there.
    parted: AtomicU64,
}

/// A directory that is being filled. Whoever lets go of it last sets its mode and time.
struct Directory {
    parent: Option<Arc<Directory>>,
    target: RemotePath,
    attributes: Attributes,
    name: Vec<u8>,
    source: Source,
}

/// A file on its way.
struct FileJob {
    item: Item,
    target: RemotePath,
    source: Source,
    upload_id: UploadId,
    directory: Option<Arc<Directory>>,
    /// Which file it is, if that has several names.
    same: Option<Bytes16>,
    role: Role,
}

/// What a name is among those of its file.
enum Role {
    /// The only one that is known.
    Alone,
    /// The first; others wait for it.
    First(Lead<Landed>),
    /// A further one of what is there.
    Further(Landed),
}

/// Where the first name of a file is, durably.
#[derive(Clone)]
struct Landed {
    path: RemotePath,
    root: Option<Root>,
}

/// Under what id each version of a file is sent: the same in every attempt, so that a lost answer is found again,
/// and another for a file that has changed, so that the answer is never taken for one to what it is now.
#[derive(Default)]
struct UploadId(Option<(SourceVersion, Bytes16)>);

impl UploadId {
    fn of(&mut self, version: &SourceVersion) -> Result<Bytes16> {
        match &self.0 {
            Some((sent, id)) if sent == version => Ok(*id),
            _ => Ok(self.0.insert((*version, random_id()?)).1),
        }
    }
}

impl Client {
    /// Uploads everything that these items name. What becomes of each is told in events; one that fails does not
    /// keep the others from being stored.
    ///
    /// # Errors
    /// What ended the whole: no connection any more, or a breach of the protocol.
    ///
    /// # Cancel safety
    /// What was answered is stored; what was on its way is not, and leaves nothing on the server that anybody sees.
    pub async fn put(&self, items: Vec<PutItem>, options: PutOptions) -> Result<()> {
        let job = Arc::new(Job::new(self.clone(), &options));
        let mut walked = Vec::with_capacity(items.len());
        for item in items {
            if job.check_directory(&item).await? {
                walked.push(item);
            }
        }
        if options.dry_run {
            return self.foresee_put(walked, &options).await;
        }
        let tops = walked.iter().filter_map(|item| match &item.source {
            PutSource::Local(path) => Some((item.target.clone(), path.clone())),
            PutSource::Stream => None,
        });
        let tops: HashMap<_, _> = tops.collect();
        let (found_sender, found) = mpsc::channel(FOUND_MAX);
        let mut walk = JoinSet::new();
        let (filter, links) = (Arc::clone(&options.filter), options.links);
        walk.spawn_blocking(move || send_in_gulps(Walk::with(walked, filter, links), &found_sender));
        self.put_all(job, found, options, tops).await?;
        while let Some(walked) = walk.join_next().await {
            walked.map_err(panicked)?;
        }
        self.check_alive()
    }

    /// Uploads what comes, in the order of a walk of the tree `top`, until no more does.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub(crate) async fn put_found(
        &self,
        found: mpsc::Receiver<Found>,
        options: PutOptions,
        top: (RemotePath, PathBuf),
    ) -> Result<()> {
        let job = Arc::new(Job::new(self.clone(), &options));
        self.put_all(job, found, options, HashMap::from([top])).await
    }

    async fn put_all(
        &self,
        job: Arc<Job>,
        mut found: mpsc::Receiver<Found>,
        mut options: PutOptions,
        tops: HashMap<RemotePath, PathBuf>,
    ) -> Result<()> {
        if options.special_modes {
            self.tell_masked_modes().await?;
        }
        if options.xattrs {
            check_server(self.session().await?.hello())?;
        }
        let mut run = Run {
            job,
            dry_run: options.dry_run,
            stream: options.stream.take(),
            tops,
            tasks: JoinSet::new(),
            batches: Arc::new(Semaphore::new(BATCHES_MAX)),
            large: Arc::new(Semaphore::new(LARGE_MAX)),
            requests: Arc::new(Semaphore::new(SMALL_REQUESTS_MAX)),
            directories: Vec::new(),
            batch: Vec::new(),
            batch_len: 0,
            names: Names::default(),
        };
        let mut some = Vec::new();
        while self.check_alive().is_ok() && found.recv_many(&mut some, BATCH_FILES).await > 0 {
            for found in some.drain(..) {
                run.take(found).await?;
            }
            // Nothing more just now: what there is does not wait for company.
            if found.is_empty() {
                run.send_batch().await?;
            }
            run.reap()?;
        }
        drop(found);
        run.send_batch().await?;
        run.directories.clear();
        self.events().tell(Event::FoundAll).await;
        run.put_names().await?;
        run.drain().await?;
        run.job.tell_parted().await;
        run.job.xattrs_lost.tell(self).await;
        self.check_alive()
    }
}

/// Sends what a walk finds, several at a time: waking the receiver for each file costs more than finding it.
fn send_in_gulps(walk: Walk, sender: &mpsc::Sender<Found>) {
    let mut gulp = Vec::with_capacity(BATCH_FILES);
    let mut begun = Instant::now();
    for found in walk {
        gulp.push(found);
        if gulp.len() < BATCH_FILES && begun.elapsed() < GULP_TIME {
            continue;
        }
        for found in gulp.drain(..) {
            if sender.blocking_send(found).is_err() {
                return;
            }
        }
        begun = Instant::now();
    }
    for found in gulp {
        if sender.blocking_send(found).is_err() {
            return;
        }
    }
}

impl Client {
    /// Says so when a server does not keep the modes that are asked for.
    async fn tell_masked_modes(&self) -> Result<()> {
        let session = self.session().await?;
        if session.hello().file_mode.is_none_or(|(_, max)| max & 0o7000 == 0) {
            let text = "the server masks setuid, setgid, sticky and world-writable (serve --allow-special-modes)";
            self.events().tell(Event::Warning(text.to_owned())).await;
        }
        Ok(())
    }
}

/// The description of a file, out of that of an upload of which nothing else is known.
pub(super) fn describe(put: Put, version: &SourceVersion, attributes: &Attributes, special_modes: bool) -> Put {
    Put {
        size: Some(version.size),
        mtime: Some(attributes.mtime),
        mode: Some(sent_mode(attributes.mode, special_modes)),
        ..put
    }
}

/// The description of an upload of which nothing else is known.
pub(super) fn put_message(
    target: &RemotePath,
    upload_id: Bytes16,
    if_exists: IfExists,
    resume: Option<Bytes16>,
) -> Put {
    Put {
        path: target.clone(),
        size: None,
        mtime: None,
        mode: None,
        upload_id,
        if_exists,
        unasked: false,
        no_base: false,
        resume,
        same_as: None,
        same_root: None,
        xattrs: None,
    }
}

fn panicked(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "a task of the upload failed").with_source(error)
}

/// One `put` as it goes.
struct Run {
    job: Arc<Job>,
    dry_run: bool,
    stream: Option<StreamSource>,
    /// What was named, by where it goes.
    tops: HashMap<RemotePath, PathBuf>,
    tasks: JoinSet<()>,
    batches: Arc<Semaphore>,
    large: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    /// The directories that the walk is in, outermost first, each with whether anything was found in it.
    directories: Vec<(Arc<Directory>, bool)>,
    batch: Vec<FileJob>,
    batch_len: u64,
    names: Names<Landed, FileJob>,
}

impl Run {
    async fn take(&mut self, found: Found) -> Result<()> {
        let events = self.job.client.events().clone();
        match found {
            Found::Directory { target, attributes, source } => {
                self.leave_until(&target);
                let parent = self.parent();
                let name = self.local_name(&target);
                if !self.dry_run && attributes.mode & FILLABLE != FILLABLE {
                    self.job.make_fillable(&target, attributes.mode).await;
                }
                self.directories.push((Arc::new(Directory { parent, target, attributes, name, source }), false));
            }
            Found::DirectoryEnd { target, .. } => {
                self.leave_until(&target);
                self.end_directory(&target).await?;
            }
            Found::Known { target, same } => {
                if let Met::First(lead) = self.names.meet(same) {
                    lead.is_there(Landed { path: target, root: None });
                }
            }
            Found::File { target, source, version, ask, same, .. } => {
                self.leave_until(&target);
                let directory = self.parent();
                let item = self.job.client.item(source.path().into_os_string().as_bytes().to_vec());
                events.tell(Event::Found { files: 1, bytes: version.size }).await;
                if self.dry_run {
                    events.tell(planned(&item, ItemKind::File, version.size)).await;
                    return Ok(());
                }
                let role = Role::Alone;
                let upload_id = UploadId(self.job.client.described(&target, &version).map(|id| (version, id)));
                let mut file = FileJob { item, target, source, upload_id, directory, same, role };
                match same.map(|same| (same, self.names.meet(same))) {
                    None => {}
                    Some((_, Met::First(lead))) => file.role = Role::First(lead),
                    Some((same, Met::Further)) => {
                        self.names.wait(same, file);
                        if self.names.waiting() >= SHARED_WAITING_MAX {
                            self.put_names().await?;
                        }
                        return Ok(());
                    }
                    Some((_, Met::Unknown)) => self.job.part(),
                }
                if version.size <= self.job.client.unasked_file_max() && !ask && self.job.may_be_small() {
                    self.batch_len += version.size;
                    self.batch.push(file);
                    if self.batch.len() >= BATCH_FILES || self.batch_len >= BATCH_LEN {
                        self.send_batch().await?;
                    }
                } else {
                    let permit = permit(&self.large).await?;
                    let job = Arc::clone(&self.job);
                    self.tasks.spawn(async move { job.put_large(file, permit).await });
                }
            }
            Found::Link { target, points_to, attributes } => {
                self.leave_until(&target);
                let directory = self.parent();
                let item = self.job.client.item(self.local_name(&target));
                if self.dry_run {
                    events.tell(planned(&item, ItemKind::Link, 0)).await;
                    return Ok(());
                }
                let permit = permit(&self.requests).await?;
                let job = Arc::clone(&self.job);
                self.tasks
                    .spawn(async move { job.put_link(item, target, points_to, attributes, directory, permit).await });
            }
            Found::Stream { target } => {
                let Some(stream) = self.stream.take() else {
                    return Err(Error::new(ErrorKind::Usage, "standard input can be a source only once"));
                };
                let item = self.job.client.item(stream.name.clone().into_bytes());
                events.tell(Event::Found { files: 1, bytes: self.job.expect_size.unwrap_or(0) }).await;
                if self.dry_run {
                    events.tell(planned(&item, ItemKind::File, self.job.expect_size.unwrap_or(0))).await;
                    return Ok(());
                }
                let job = Arc::clone(&self.job);
                self.tasks.spawn(async move { job.put_stream(item, target, stream).await });
            }
            Found::LeftOut { rule } => events.tell(Event::LeftOut { rule, count: 1 }).await,
            Found::Skipped { path, why } => {
                events.tell(Event::Skipped { name: path.into_os_string().as_bytes().to_vec(), why }).await;
            }
            Found::Failed { path, error } => {
                self.mark_filled();
                let name = path.into_os_string().as_bytes().to_vec();
                events.tell(Event::Failed { item: None, name, error }).await;
            }
        }
        Ok(())
    }

    /// What the person calls what goes to `target`: everything is told under its name here.
    fn local_name(&self, target: &RemotePath) -> Vec<u8> {
        let (mut above, mut below) = (target.clone(), Vec::new());
        loop {
            if let Some(top) = self.tops.get(&above) {
                let mut path = top.clone();
                path.extend(below.iter().rev().map(|name: &Component| OsStr::from_bytes(name.as_bytes())));
                return path.into_os_string().into_vec();
            }
            let Some((parent, name)) = above.split() else { return target.to_bytes() };
            below.push(name.clone());
            above = parent;
        }
    }

    /// The directory that the walk is in, which now holds something.
    fn parent(&mut self) -> Option<Arc<Directory>> {
        self.mark_filled();
        self.directories.last().map(|(directory, _)| Arc::clone(directory))
    }

    fn mark_filled(&mut self) {
        if let Some((_, is_filled)) = self.directories.last_mut() {
            *is_filled = true;
        }
    }

    /// Leaves the directories that `target` is not in: the walk could not read them to their end.
    fn leave_until(&mut self, target: &RemotePath) {
        while self.directories.last().is_some_and(|(directory, _)| !target.starts_with(&directory.target)) {
            self.directories.pop();
        }
    }

    async fn end_directory(&mut self, target: &RemotePath) -> Result<()> {
        if self.directories.last().is_none_or(|(directory, _)| directory.target != *target) {
            return Ok(());
        }
        let Some((directory, is_filled)) = self.directories.pop() else { return Ok(()) };
        if self.dry_run {
            let event = directory_event(&directory, Outcome::Planned);
            self.job.client.events().tell(event).await;
            return Ok(());
        }
        if is_filled && Arc::strong_count(&directory) > 1 {
            // Whoever stores the last file in it sets its mode and time.
            let job = Arc::clone(&self.job);
            if let Some(directory) = Arc::into_inner(directory) {
                let permit = permit(&self.requests).await?;
                self.tasks.spawn(async move { job.settle_directory(directory, false, permit).await });
            }
            return Ok(());
        }
        let permit = permit(&self.requests).await?;
        let job = Arc::clone(&self.job);
        if let Some(directory) = Arc::into_inner(directory) {
            self.tasks.spawn(async move { job.settle_directory(directory, !is_filled, permit).await });
        }
        Ok(())
    }

    async fn send_batch(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let permit = permit(&self.batches).await?;
        let files = std::mem::take(&mut self.batch);
        self.batch_len = 0;
        let job = Arc::clone(&self.job);
        self.tasks.spawn(async move { job.put_batch(files, permit).await });
        Ok(())
    }

    /// Makes the further names that wait, once the first ones are there.
    async fn put_names(&mut self) -> Result<()> {
        self.send_batch().await?;
        while self.names.waiting() > 0 && self.job.client.check_alive().is_ok() {
            self.drain().await?;
            for (mut file, turn) in self.names.take() {
                let permits = match turn {
                    Turn::First(lead) => {
                        file.role = Role::First(lead);
                        &self.large
                    }
                    Turn::Further(landed) => {
                        file.role = Role::Further(landed);
                        &self.requests
                    }
                };
                let permit = permit(permits).await?;
                let job = Arc::clone(&self.job);
                self.tasks.spawn(async move { job.put_large(file, permit).await });
                self.reap()?;
            }
        }
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
}

/// What a dry run tells instead of moving something.
fn planned(item: &Item, kind: ItemKind, size: u64) -> Event {
    let (name, outcome) = (item.name.clone(), Outcome::Planned);
    Event::Done { item: item.id, name, kind, size, root: None, outcome, renamed_to: None }
}

async fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.map_err(|_| Error::new(ErrorKind::Internal, "a limit of the upload was taken away"))
}

/// Reads so many bytes; a file that ends before is another one than it was.
fn read_exact_at(open: &OpenSource, buffer: &mut [u8], offset: u64) -> Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match open.file.read_at(rest, offset + filled as u64) {
            Ok(0) => {
                open.check_unchanged()?;
                let message = format!("a file ended at {} bytes, before its size", offset + filled as u64);
                return Err(Error::new(ErrorKind::Changed, message));
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(format!("read at {offset}"), error)),
        }
    }
    Ok(())
}

impl Job {
    fn new(client: Client, options: &PutOptions) -> Job {
        Job {
            client,
            if_exists: options.if_exists,
            into_directory: options.into_directory,
            remove_source: options.remove_source,
            expect_size: options.expect_size,
            expect_root: options.expect_root,
            special_modes: options.special_modes,
            xattrs: options.xattrs,
            xattrs_lost: Lost::default(),
            parted: AtomicU64::new(0),
        }
    }

    /// Files whose content is checked beforehand take the way of the larger ones, where the check is.
    fn may_be_small(&self) -> bool {
        self.expect_size.is_none() && self.expect_root.is_none()
    }

    /// Whether a tree can go where it shall: something else there is told as its failure.
    async fn check_directory(&self, item: &PutItem) -> Result<bool> {
        let PutSource::Local(path) = &item.source else { return Ok(true) };
        let looked_at: PathBuf = path.clone();
        let is_directory = spawn_blocking(move || looked_at.is_dir()).await.map_err(panicked)?;
        if !is_directory || item.target.is_root() {
            return Ok(true);
        }
        let existing = match self.client.request(&Stat { path: item.target.clone(), xattrs: None }).await {
            Ok((Reply::Entry(entry), _)) => match entry.kind {
                EntryKind::Directory => Some(Kind::Directory),
                _ => Some(Kind::File),
            },
            Ok((other, session)) => return Err(session.unexpected(&other)),
            // Who may not look is told when the first file is refused.
            Err(_) => None,
        };
        self.client.check_alive()?;
        match check_target(Kind::Directory, existing, &item.target, self.into_directory) {
            Ok(()) => Ok(true),
            Err(error) => {
                let name = path.as_os_str().as_bytes().to_vec();
                self.client.events().tell(Event::Failed { item: None, name, error }).await;
                Ok(false)
            }
        }
    }

    /// A session with a server that knows what this upload needs: a connection that is made anew may lead to another.
    async fn session(&self) -> Result<Session> {
        let session = self.client.session().await?;
        if self.xattrs {
            check_server(session.hello())?;
        }
        Ok(session)
    }

    fn put_message(&self, target: &RemotePath, upload_id: Bytes16) -> Put {
        put_message(target, upload_id, self.if_exists, self.client.resume_key())
    }

    fn check_expected(&self, size: u64, root: Root) -> Result<()> {
        if let Some(expected) = self.expect_size.filter(|&expected| expected != size) {
            return Err(expectation_failed(format!("it has {size} bytes, not the {expected} expected")));
        }
        if let Some(expected) = self.expect_root.filter(|&expected| expected != root) {
            return Err(expectation_failed(format!("it has the hash {root}, not {expected} as expected")));
        }
        Ok(())
    }

    async fn put_link(
        self: Arc<Job>,
        mut item: Item,
        target: RemotePath,
        points_to: Vec<u8>,
        attributes: Attributes,
        directory: Option<Arc<Directory>>,
        permit: OwnedSemaphorePermit,
    ) {
        let request = MakeLink {
            path: target.clone(),
            target: points_to,
            mtime: Some(attributes.mtime),
            if_exists: self.if_exists,
        };
        match self.client.request(&request).await {
            Ok((Reply::Stored(stored), _)) => {
                let event = done_event(&item, ItemKind::Link, &stored, 0, None);
                self.client.events().tell(event).await;
            }
            Ok((other, session)) => item.failed(session.unexpected(&other)).await,
            Err(error) => item.failed(error).await,
        }
        drop(permit);
        self.let_go(directory).await;
    }

    async fn done<M: protocol::Message>(&self, request: &M) -> Result<Done> {
        match self.client.request(request).await? {
            (Reply::Done(done), _) => Ok(done),
            (other, session) => Err(session.unexpected(&other)),
        }
    }

    /// A file is there, durably.
    async fn stored(&self, file: FileJob, stored: &Stored, size: u64, root: Root, version: &SourceVersion) {
        let FileJob { item, source, directory, target, same, role, .. } = file;
        let name = item.name.clone();
        self.xattrs_lost.add_code(stored.xattrs_lost);
        if let Role::First(lead) = &role
            && stored.outcome != protocol::Outcome::Skipped
        {
            let path = stored.path.clone().unwrap_or(target);
            lead.is_there(Landed { path, root: stored.root.or((root != UNKNOWN).then_some(root)) });
        }
        self.told_stored(item, stored, size, root, matches!(role, Role::Further(_))).await;
        if self.remove_source && stored.outcome != protocol::Outcome::Skipped {
            let (version, has_several) = (*version, same.is_some());
            let removed = match stored.xattrs_lost {
                None => spawn_blocking(move || source.remove(&version, has_several)).await.map_err(panicked),
                // Here is the only place where they are.
                Some(why) => Ok(Err(Error::new(
                    ErrorKind::from_code(why),
                    "not all of its extended attributes could be kept there",
                ))),
            };
            if let Err(error) = removed.and_then(|removed| removed) {
                let error = error.context("it is stored, and was not removed here");
                self.client.events().tell(Event::Failed { item: None, name, error }).await;
            }
        }
        self.let_go(directory).await;
    }

    /// A name of a file with several is moved as a file of its own.
    fn part(&self) {
        self.parted.fetch_add(1, Ordering::Relaxed);
    }

    async fn tell_parted(&self) {
        let count = self.parted.load(Ordering::Relaxed);
        if count > 0 && self.client.check_alive().is_ok() {
            let text = format!(
                "hard links: {count} of the names that share a file here are files of their own there, because the \
                 server cannot link them, or not for this client"
            );
            self.client.events().tell(Event::Warning(text)).await;
        }
    }

    async fn told_stored(&self, mut item: Item, stored: &Stored, size: u64, root: Root, is_linked: bool) {
        if stored.outcome != protocol::Outcome::Skipped {
            item.held_rest(size);
        }
        item.settle().await;
        let is_known = stored.outcome != protocol::Outcome::Skipped && (stored.root.is_some() || root != UNKNOWN);
        let root = is_known.then_some(stored.root.unwrap_or(root));
        self.client.progressed();
        let mut event = done_event(&item, ItemKind::File, stored, size, root);
        if let Event::Done { outcome: outcome @ Outcome::Stored, .. } = &mut event
            && is_linked
        {
            *outcome = Outcome::Linked;
        }
        self.client.events().tell(event).await;
    }

    /// A file failed for good.
    async fn refused(&self, mut file: FileJob, error: Error) {
        let error = self.explain(error, &file.target);
        file.item.failed(error).await;
        self.let_go(file.directory).await;
    }

    /// Says what to write instead, where a file met a directory.
    fn explain(&self, error: Error, target: &RemotePath) -> Error {
        if error.kind() != ErrorKind::IsDirectory {
            return error;
        }
        check_target(Kind::File, Some(Kind::Directory), target, self.into_directory).err().unwrap_or(error)
    }
}

fn expectation_failed(message: String) -> Error {
    Error::new(ErrorKind::Expectation, message)
}

fn done_event(item: &Item, kind: ItemKind, stored: &Stored, size: u64, root: Option<Root>) -> Event {
    let outcome = match stored.outcome {
        protocol::Outcome::Stored if stored.path.is_some() => Outcome::Renamed,
        protocol::Outcome::Stored => Outcome::Stored,
        protocol::Outcome::Unchanged => Outcome::Unchanged,
        protocol::Outcome::Skipped => Outcome::Kept,
    };
    let renamed_to = stored.path.as_ref().map(RemotePath::to_bytes);
    Event::Done { item: item.id, name: item.name.clone(), kind, size, root, outcome, renamed_to }
}

/// Stands for a hash that neither side has said.
const UNKNOWN: Root = Root([0; 32]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Mtime;

    #[test]
    fn an_upload_id_is_of_one_version() {
        let time = |nanos| Mtime { seconds: 1, nanos };
        let version = |ctime| SourceVersion { device: 1, inode: 2, size: 3, mtime: time(4), ctime: time(ctime) };
        let mut id = UploadId::default();
        let first = id.of(&version(1)).unwrap();
        assert_eq!(id.of(&version(1)).unwrap(), first, "the next attempt");
        let second = id.of(&version(2)).unwrap();
        assert_ne!(second, first, "a file that changed between two attempts");
        assert_eq!(id.of(&version(2)).unwrap(), second);
    }
}
