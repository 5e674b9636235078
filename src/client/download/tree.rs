//! Trees of a download: what a server lists, or what a comparison found to differ.
//!
//! A directory that is being filled is held by every file on its way into it and by the directories in it. When the
//! last of these lets go, it is given its mode and time, and lets go of the one that it is in; so nothing is kept of
//! directories that are done.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::names::Landed;
use super::{Job, Place, Run, blocking, done_event, mtime_to_storage, open_store, panicked};
use crate::client::compare::{Links, joined};
use crate::client::event::{Event, ItemKind, Outcome};
use crate::client::filter::{Ignores, Subject};
use crate::client::link::check_link;
use crate::client::listing;
use crate::client::names::Met;
use crate::client::plan;
use crate::client::side::Side;
use crate::client::traverse::Step;
use crate::client::walk::Skip;
use crate::client::xattrs::has_none;
use crate::client::{Client, GetOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::WAITING_LEN_MAX;
use crate::path::{Component, RemotePath};
use crate::protocol::{Entry, EntryKind, Mtime};
use crate::storage::Store;
use crate::xattrs::Xattrs;

/// Listings at once: the tree is walked ahead of its files.
const LISTINGS_MAX: usize = 4;
/// Directories that are given their mode and time at once.
const SETTLE_MAX: usize = 8;

/// Directories that wait for their mode and time; before more are made, these are done.
const SETTLE_WAITING_MAX: usize = 1024;

/// A directory that is being filled.
pub(super) struct Filled {
    /// Made by this run: nobody is known to have put anything there.
    pub(super) is_new: bool,
    end: Option<End>,
    settle: mpsc::UnboundedSender<End>,
    backlog: Arc<Backlog>,
}

/// How many directories wait for their mode and time.
#[derive(Default)]
struct Backlog {
    count: AtomicUsize,
    /// Some are done. Only who makes directories waits for that.
    shrunk: Notify,
}

/// What a directory gets when it is filled.
struct End {
    place: Place,
    mode: u32,
    mtime: Mtime,
    xattrs: Option<Xattrs>,
    /// Held until then.
    parent: Option<Arc<Filled>>,
}

impl Drop for Filled {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            self.backlog.count.fetch_add(1, Ordering::Relaxed);
            // Without anybody to take it the download has ended.
            let _ = self.settle.send(end);
        }
    }
}

/// Where filled directories go.
pub(super) struct Settling {
    sender: mpsc::UnboundedSender<End>,
    backlog: Arc<Backlog>,
    work: JoinSet<()>,
}

impl Settling {
    pub(super) fn start(job: Arc<Job>) -> Settling {
        #[expect(
            clippy::disallowed_methods,
            reason = "a drop cannot wait for room: who makes directories does, in `room`"
        )]
        let (sender, ends) = mpsc::unbounded_channel();
        let (mut work, backlog) = (JoinSet::new(), Arc::new(Backlog::default()));
        work.spawn(settle_all(job, ends, Arc::clone(&backlog)));
        Settling { sender, backlog, work }
    }

    /// Waits until few enough directories wait.
    async fn room(&self) {
        while self.backlog.count.load(Ordering::Relaxed) > SETTLE_WAITING_MAX {
            self.backlog.shrunk.notified().await;
        }
    }

    fn fill(
        &self,
        place: Place,
        entry: &Entry,
        (xattrs, is_new): (Option<Xattrs>, bool),
        parent: Option<Arc<Filled>>,
    ) -> Arc<Filled> {
        let end = Some(End { place, mode: entry.mode, mtime: entry.mtime, xattrs, parent });
        Arc::new(Filled { is_new, end, settle: self.sender.clone(), backlog: Arc::clone(&self.backlog) })
    }

    /// Waits until every directory that nobody holds any more has its mode and time.
    pub(super) async fn finish(self) -> Result<()> {
        let Settling { sender, mut work, .. } = self;
        drop(sender);
        while let Some(ended) = work.join_next().await {
            ended.map_err(panicked)?;
        }
        Ok(())
    }
}

async fn settle_all(job: Arc<Job>, mut ends: mpsc::UnboundedReceiver<End>, backlog: Arc<Backlog>) {
    let mut running: JoinSet<()> = JoinSet::new();
    while let Some(End { place, mode, mtime, xattrs, parent }) = ends.recv().await {
        while running.len() >= SETTLE_MAX {
            running.join_next().await;
        }
        backlog.count.fetch_sub(1, Ordering::Relaxed);
        backlog.shrunk.notify_one();
        let job = Arc::clone(&job);
        running.spawn(async move {
            let name = shown_bytes(&place.shown);
            let set = blocking(move || {
                let (mode, mtime) = (Some(mode & 0o7777), mtime_to_storage(mtime));
                place.store.set_directory(&place.path, mode, mtime, xattrs.as_ref())
            });
            let event = match set.await {
                Ok(lost) => {
                    lost.into_iter().for_each(|why| job.xattrs_lost.add(why));
                    done_event(0, name, ItemKind::Directory, 0, None, Outcome::Stored, None)
                }
                Err(error) => Event::Failed { item: None, name, error },
            };
            job.client.events().tell(event).await;
            // What is done in one directory changes the time of the one that it is in.
            drop(parent);
        });
    }
    while running.join_next().await.is_some() {}
}

fn shown_bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes().to_vec()
}

/// A directory of a tree, or what is left of it from a place on.
struct Waiting {
    remote: RemotePath,
    below: RemotePath,
    after: Option<listing::Place>,
    ignores: Option<Arc<Ignores>>,
    filled: Option<Arc<Filled>>,
}

impl Waiting {
    /// About as much memory as it takes.
    fn cost(&self) -> usize {
        const ITSELF: usize = 256;
        const COMPONENT: usize = 48;
        let path = |path: &RemotePath| path.len() + path.components().len() * COMPONENT;
        ITSELF + path(&self.remote) + path(&self.below)
    }
}

/// A piece of a directory's listing: its entries, where to go on, and the rules that hold for them.
type Piece = (Vec<Entry>, Option<listing::Place>, Option<Arc<Ignores>>);

impl Run {
    /// Fetches a tree: lists ahead of the files that it finds.
    pub(super) async fn get_tree(&mut self, source: RemotePath, top: &Entry, target: &Path) -> Result<()> {
        let job = Arc::clone(&self.job);
        let store = open_store(target, job.special_modes).await?;
        let place = Place { store: store.clone(), path: RemotePath::root(), shown: target.to_path_buf() };
        let xattrs = job.directory_xattrs(&source, top).await?;
        let filled = Some(self.settling.fill(place, top, (xattrs, false), None));
        let side = Side::Remote(job.client.clone(), source.clone());
        let below = RemotePath::root();
        let mut waiting = vec![Waiting { remote: source, below, after: None, ignores: None, filled }];
        let mut waiting_len: usize = waiting.iter().map(Waiting::cost).sum();
        let mut listings: JoinSet<(Waiting, Result<Piece>)> = JoinSet::new();
        loop {
            while listings.len() < LISTINGS_MAX
                && let Some(next) = waiting.pop()
            {
                waiting_len -= next.cost();
                let (job, side) = (Arc::clone(&job), side.clone());
                listings.spawn(async move {
                    let piece = job.list_piece(&side, &next).await;
                    (next, piece)
                });
            }
            let Some(listed) = listings.join_next().await else { return Ok(()) };
            let (directory, piece) = listed.map_err(panicked)?;
            let (entries, next, ignores) = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    job.client.check_alive()?;
                    job.tell_failed(directory.remote.to_bytes(), error).await;
                    continue;
                }
            };
            let directory = Waiting { ignores, ..directory };
            let mut inside = Vec::new();
            for entry in entries {
                let Some(found) = self.get_entry(&directory, entry, &store, target).await? else { continue };
                waiting_len += found.cost();
                if waiting_len > WAITING_LEN_MAX {
                    waiting_len -= found.cost();
                    let message = format!("more directories than fit into {WAITING_LEN_MAX} bytes of memory wait");
                    job.tell_failed(found.remote.to_bytes(), Error::new(ErrorKind::Limit, message)).await;
                } else {
                    inside.push(found);
                }
            }
            if next.is_some() {
                waiting_len += directory.cost();
                waiting.push(Waiting { after: next, ..directory });
            }
            // Before the rest of this directory, so that no more wait than a piece of each level holds.
            waiting.extend(inside);
            self.reap()?;
        }
    }

    /// Fetches one entry of a directory, or returns the directory that it is.
    async fn get_entry(
        &mut self,
        directory: &Waiting,
        entry: Entry,
        store: &Store,
        target: &Path,
    ) -> Result<Option<Waiting>> {
        let job = Arc::clone(&self.job);
        let names = Component::new(&entry.name)
            .and_then(|name| Ok((directory.remote.join(name.clone())?, directory.below.join(name)?)));
        let (remote, below) = match names {
            Ok(names) => names,
            Err(error) => {
                let name = joined(&directory.remote.to_bytes(), &entry.name);
                job.tell_failed(name, Error::new(ErrorKind::Name, error.to_string())).await;
                return Ok(None);
            }
        };
        let subject = Subject { path: &below.to_bytes(), kind: entry.kind, size: entry.size, mtime: entry.mtime };
        if let Some(rule) = job.filter.judge(subject, directory.ignores.as_ref()) {
            job.client.events().tell(Event::LeftOut { rule, count: 1 }).await;
            return Ok(None);
        }
        let place = Place { store: store.clone(), path: below.clone(), shown: plan::local_path(target, &below) };
        let skipped = match entry.kind {
            EntryKind::File => {
                self.take_file(remote, &entry, place, directory.filled.clone(), None).await?;
                return Ok(None);
            }
            EntryKind::Directory => {
                let filled = self.make_directory(place, &entry, directory.filled.clone(), &remote).await;
                let ignores = directory.ignores.clone();
                return Ok(filled.map(|filled| Waiting { remote, below, after: None, ignores, filled: Some(filled) }));
            }
            EntryKind::Link => {
                let points_to = entry.target.unwrap_or_default();
                match check_link(directory.below.components().len(), &points_to) {
                    Err(refusal) => Skip::Link(refusal),
                    Ok(()) if job.links == Links::Skip => Skip::UnwantedLink,
                    Ok(()) => {
                        job.save_link(&remote, place, points_to, entry.mtime).await;
                        return Ok(None);
                    }
                }
            }
            EntryKind::Special => Skip::Unknown,
        };
        job.client.events().tell(Event::Skipped { name: remote.to_bytes(), why: skipped }).await;
        Ok(None)
    }

    /// Makes a directory that can be filled; one that cannot be made is told.
    async fn make_directory(
        &mut self,
        place: Place,
        entry: &Entry,
        parent: Option<Arc<Filled>>,
        remote: &RemotePath,
    ) -> Option<Arc<Filled>> {
        self.settling.room().await;
        let (store, path, mode) = (place.store.clone(), place.path.clone(), entry.mode);
        let made = blocking(move || {
            // What an earlier run has brought into a tree that is built aside may belong there still.
            let is_new = store.make_directory(&path, None, true)? && !store.is_in_tree(&path);
            // An earlier run may have given it its final mode already; it is filled first.
            let is_fillable = mode & 0o300 == 0o300;
            if !is_fillable {
                store.set_directory_metadata(&path, Some(mode & 0o777 | 0o700), None)?;
            }
            Ok(is_new)
        });
        let made = match made.await {
            Ok(is_new) => self.job.directory_xattrs(remote, entry).await.map(|xattrs| (xattrs, is_new)),
            Err(error) => Err(error),
        };
        match made {
            Ok(made) => Some(self.settling.fill(place, entry, made, parent)),
            Err(error) => {
                self.job.tell_failed(remote.to_bytes(), error).await;
                None
            }
        }
    }

    /// Does what a comparison found to be done.
    async fn get_step(
        &mut self,
        step: Step,
        base: &RemotePath,
        store: Option<&Store>,
        target: &Path,
        inside: &mut Vec<(RemotePath, Option<Arc<Filled>>, Entry)>,
    ) -> Result<()> {
        let job = Arc::clone(&self.job);
        if let Step::Known { below, entry } = step {
            let shown = plan::local_path(target, &below);
            if let (Some(store), Some(Met::First(lead))) = (store, entry.same.map(|same| self.names.meet(same))) {
                lead.is_there(Landed { place: Place { store: store.clone(), path: below, shown }, root: None });
            }
            return Ok(());
        }
        let (Step::Directory { below, .. }
        | Step::Known { below, .. }
        | Step::DirectoryEnd { below }
        | Step::File { below, .. }
        | Step::Link { below, .. }) = &step;
        let below = below.clone();
        // What was left because of a failure is left here, too.
        while inside.last().is_some_and(|(above, ..)| !below.starts_with(above)) {
            inside.pop();
        }
        let remote = match base.join_all(&below) {
            Ok(remote) => remote,
            Err(error) => {
                job.tell_failed(below.to_bytes(), Error::new(ErrorKind::Name, error.to_string())).await;
                return Ok(());
            }
        };
        let shown = plan::local_path(target, &below);
        let place = store.map(|store| Place { store: store.clone(), path: below.clone(), shown: shown.clone() });
        let parent = inside.last().and_then(|(_, filled, _)| filled.clone());
        match (step, place) {
            (Step::Directory { entry, .. }, Some(place)) => {
                let filled = if below.is_root() {
                    let xattrs = job.directory_xattrs(&remote, &entry).await?;
                    Some(self.settling.fill(place, &entry, (xattrs, false), None))
                } else {
                    self.make_directory(place, &entry, parent, &remote).await
                };
                inside.push((below, filled, entry));
            }
            (Step::Directory { entry, .. }, None) => inside.push((below, None, entry)),
            (Step::Known { .. }, _) => {}
            (Step::DirectoryEnd { .. }, place) => {
                inside.pop();
                if place.is_none() {
                    let name = shown_bytes(&shown);
                    let event = done_event(0, name, ItemKind::Directory, 0, None, Outcome::Planned, None);
                    job.client.events().tell(event).await;
                }
            }
            (Step::File { entry, .. }, Some(place)) => self.take_file(remote, &entry, place, parent, None).await?,
            (Step::File { entry, .. }, None) => job.tell_planned(remote, ItemKind::File, entry.size).await,
            (Step::Link { entry, .. }, Some(place)) => {
                job.save_link(&remote, place, entry.target.unwrap_or_default(), entry.mtime).await;
            }
            (Step::Link { .. }, None) => job.tell_planned(remote, ItemKind::Link, 0).await,
        }
        Ok(())
    }
}

impl Job {
    /// The extended attributes that a directory shall have; none when they are not moved.
    async fn directory_xattrs(&self, remote: &RemotePath, entry: &Entry) -> Result<Option<Xattrs>> {
        match self.xattrs {
            false => Ok(None),
            true if has_none(entry) => Ok(Some(Xattrs::default())),
            true => Ok(Some(self.client.stat_with_xattrs(remote).await?.1)),
        }
    }

    async fn list_piece(&self, side: &Side, directory: &Waiting) -> Result<Piece> {
        let mut ignores = directory.ignores.clone();
        if self.filter.ignore_files
            && directory.after.is_none()
            && let Some(content) = side.ignores(&directory.below).await?
        {
            ignores = Some(Ignores::new(&directory.below.to_bytes(), &content, ignores)?);
        }
        let listing::Piece { entries, next, .. } =
            self.client.list_piece(&directory.remote, directory.after, self.xattrs).await?;
        Ok((entries, next, ignores))
    }
}

impl Client {
    /// Downloads what comes, in the order of a walk, until no more does. In a dry run nothing is saved, nor is
    /// `target` made.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) async fn get_steps(
        &self,
        base: RemotePath,
        store: Option<Store>,
        target: PathBuf,
        mut steps: mpsc::Receiver<Step>,
        options: GetOptions,
    ) -> Result<()> {
        let store = match store {
            _ if options.dry_run => None,
            Some(store) => Some(store),
            None => Some(open_store(&target, options.special_modes).await?),
        };
        let mut run = Run::new(self, &options);
        let mut inside = Vec::new();
        while self.check_alive().is_ok()
            && let Some(step) = steps.recv().await
        {
            run.get_step(step, &base, store.as_ref(), &target, &mut inside).await?;
            // Nothing more just now: what there is does not wait for company.
            if steps.is_empty() {
                run.send_batch().await?;
            }
        }
        inside.clear();
        drop(steps);
        run.finish().await
    }
}
