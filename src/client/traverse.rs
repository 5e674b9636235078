//! Goes through two trees in step, a directory at a time, and tells what is to be done while it goes.
//!
//! Directories come in the order of a walk: one, what is in it, its end. Those that come next are listed and compared
//! ahead, [`AHEAD_MAX`] at once; of them only the next one is read beyond its first few thousand names. So memory
//! holds two listings of one directory, a few thousand names of some others, what is to be removed, and the directories
//! that still wait.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::client::blocking::{Awaited, Waiter};
use crate::client::compare::{
    Action, Compared, Settings, are_same_xattrs, compare, is_same_directory_mode, is_same_time, joined,
};
use crate::client::event::{Event, Events, ItemKind, Outcome};
use crate::client::filter::{Filter, Ignores, Subject};
use crate::client::plan::local_path;
use crate::client::side::{Listing, Side, name_error};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::SHARED_FILES_MAX;
use crate::path::{Component, Escaped, NamePolicy, RemotePath};
use crate::protocol::{Bytes16, Entry, EntryKind};

/// Directories that are listed and compared at once.
const AHEAD_MAX: usize = 24;
/// Waiting directories among which the next to be listed are looked for.
const AHEAD_SEEN_MAX: usize = 64;
/// Files of one directory that are hashed at once, when hashes are compared.
const CHECKS_MAX: usize = 16;
/// Names that are noted for removal, about 100 bytes each. More: none is removed.
const REMOVALS_MAX: usize = 1 << 20;

/// One thing to do.
#[derive(Debug)]
pub(crate) enum Step {
    /// A directory in which something changes, or that changes itself, before what is in it.
    Directory { below: RemotePath, entry: Entry },
    /// The same, after what is in it.
    DirectoryEnd { below: RemotePath },
    /// A file with several names that is there already, as the first of them that was met.
    Known { below: RemotePath, entry: Entry },
    /// A file that is to be moved. `is_there`: one of the same size is there. `looks_same`: of the same time, too.
    File { below: RemotePath, entry: Entry, is_there: bool, looks_same: bool },
    /// A link that is to be made.
    Link { below: RemotePath, entry: Entry },
}

/// Something that only the destination has, or that is in the way there.
pub(crate) struct Removal {
    pub(crate) directory: Arc<RemotePath>,
    pub(crate) name: Component,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    /// The directory that goes with it.
    parent: Option<usize>,
    /// It holds something that must stay.
    pub(crate) stays: bool,
}

/// Something that can be moved only after a removal.
pub(crate) struct Conflict {
    below: RemotePath,
    source: Entry,
    ignores: Option<Arc<Ignores>>,
    pub(crate) removal: usize,
}

/// A directory out of which something is removed: it gets its time and mode once more.
pub(crate) struct Touched {
    pub(crate) below: RemotePath,
    pub(crate) entry: Entry,
    pub(crate) was_told: bool,
}

/// What was found beside the steps.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) removals: Vec<Removal>,
    pub(crate) is_removal_cut: bool,
    pub(crate) conflicts: Vec<Conflict>,
    pub(crate) touched: Vec<Touched>,
    pub(crate) source_files: u64,
    pub(crate) destination_files: u64,
}

/// The two trees, and how they are compared.
pub(crate) struct Sides {
    pub(crate) source: Side,
    /// None when there is nothing yet.
    pub(crate) there: Option<Side>,
    /// What the destination is called.
    pub(crate) destination: Place,
    pub(crate) settings: Settings,
    pub(crate) filter: Arc<Filter>,
    /// Names that the destination would refuse are told, because nothing else will ask it.
    pub(crate) foresees_names: bool,
}

/// Where a destination is, whether there is anything or not.
pub(crate) enum Place {
    Here(PathBuf),
    There(RemotePath),
}

impl Place {
    /// What something below it is called.
    pub(crate) fn name(&self, below: &RemotePath) -> Vec<u8> {
        match self {
            Place::Here(path) => local_path(path, below).as_os_str().as_bytes().to_vec(),
            Place::There(path) if below.is_root() => path.to_bytes(),
            Place::There(path) => joined(&path.to_bytes(), &below.to_bytes()),
        }
    }
}

/// A directory that is to be looked at.
#[derive(Default)]
struct Visit {
    below: RemotePath,
    /// What it is at the source; none when only the destination has it.
    source: Option<Entry>,
    is_there: bool,
    /// Whether its mode and time are others at the destination.
    differs: bool,
    ignores: Option<Arc<Ignores>>,
    /// Its own removal, when only the destination has it.
    removal: Option<usize>,
    ahead: Option<Ahead>,
}

/// A directory that is being looked at.
struct Ahead {
    go: watch::Sender<bool>,
    examined: oneshot::Receiver<Result<Examined>>,
}

/// What came of looking at a directory on both sides.
struct Examined {
    compared: Compared,
    ignores: Option<Arc<Ignores>>,
    failed: Vec<(Vec<u8>, Error)>,
    /// There may be more at the source, which may not be listed.
    is_partial: bool,
}

enum Task {
    Visit(Box<Visit>),
    End(RemotePath),
    Step(Step),
}

/// A walk through both trees.
pub(crate) struct Traversal<T> {
    sides: Arc<Sides>,
    events: Events,
    steps: mpsc::Sender<T>,
    convert: Box<dyn Fn(Step) -> T + Send + Sync>,
    checks: Arc<Semaphore>,
    awaited: Awaited,
    listing: JoinSet<()>,
    ahead: usize,
    stack: Vec<Task>,
    /// Files of the source with several names that were met, and which file at the destination the first of these is,
    /// if it stays and has several as well.
    shared: HashMap<Bytes16, Option<Bytes16>>,
    pub(crate) findings: Findings,
}

impl<T> Traversal<T> {
    pub(crate) fn new(
        sides: Arc<Sides>,
        events: Events,
        steps: mpsc::Sender<T>,
        convert: impl Fn(Step) -> T + Send + Sync + 'static,
    ) -> Traversal<T> {
        Traversal {
            sides,
            events,
            steps,
            convert: Box::new(convert),
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
            awaited: Awaited::default(),
            listing: JoinSet::new(),
            ahead: 0,
            stack: Vec::new(),
            shared: HashMap::new(),
            findings: Findings::default(),
        }
    }

    /// Goes through the whole of both trees. `top` is the source's directory itself, `there` the destination's.
    ///
    /// # Errors
    /// A defect. What cannot be looked at is told in events.
    pub(crate) async fn run(mut self, top: Entry, there: Option<Entry>) -> Result<Findings> {
        let differs = there.as_ref().is_none_or(|there| is_other_directory(&top, there, &self.sides.settings));
        let below = RemotePath::root();
        let visit = Visit { below, source: Some(top), is_there: there.is_some(), differs, ..Visit::default() };
        self.stack.push(Task::Visit(Box::new(visit)));
        self.go().await?;
        Ok(self.findings)
    }

    /// Goes on with what could only be moved after removals.
    ///
    /// # Errors
    /// As [`Traversal::run`].
    pub(crate) async fn run_conflicts(mut self, conflicts: Vec<Conflict>) -> Result<Findings> {
        for Conflict { below, source, ignores, .. } in conflicts.into_iter().rev() {
            match source.kind {
                EntryKind::Directory => {
                    let visit = Visit { below, source: Some(source), differs: true, ignores, ..Visit::default() };
                    self.stack.push(Task::Visit(Box::new(visit)));
                }
                EntryKind::Link => self.stack.push(Task::Step(Step::Link { below, entry: source })),
                _ => {
                    self.stack.push(Task::Step(Step::File { below, entry: source, is_there: false, looks_same: false }))
                }
            }
        }
        self.go().await?;
        Ok(self.findings)
    }

    async fn go(&mut self) -> Result<()> {
        loop {
            self.look_ahead();
            match self.stack.pop() {
                None => return Ok(()),
                Some(Task::End(below)) => self.step(Step::DirectoryEnd { below }).await,
                Some(Task::Step(step)) => self.step(step).await,
                Some(Task::Visit(visit)) => self.enter(*visit).await?,
            }
            if self.steps.is_closed() {
                return Ok(());
            }
        }
    }

    /// Has the next directories listed and compared.
    fn look_ahead(&mut self) {
        for (distance, task) in self.stack.iter_mut().rev().take(AHEAD_SEEN_MAX).enumerate() {
            let Task::Visit(visit) = task else { continue };
            // The next one never waits for those behind it.
            if visit.ahead.is_some() || (self.ahead >= AHEAD_MAX && distance > 0) {
                continue;
            }
            let (go, wait) = watch::channel(false);
            let (sender, examined) = oneshot::channel();
            let (sides, checks) = (Arc::clone(&self.sides), Arc::clone(&self.checks));
            let waiter = self.awaited.waiter();
            let (below, ignores) = (visit.below.clone(), visit.ignores.clone());
            let (has_source, is_there) = (visit.source.is_some(), visit.is_there);
            self.listing.spawn(async move {
                let examined = sides.examine(&below, has_source, is_there, ignores, wait, (&checks, &waiter)).await;
                // Nobody waits for it when all of it has ended.
                let _ = sender.send(examined);
            });
            visit.ahead = Some(Ahead { go, examined });
            self.ahead += 1;
        }
        while self.listing.try_join_next().is_some() {}
    }

    async fn enter(&mut self, mut visit: Visit) -> Result<()> {
        let lost = || Error::new(ErrorKind::Internal, "a listing was lost");
        let Ahead { go, examined } = visit.ahead.take().ok_or_else(lost)?;
        // It may have come to its end without.
        let _ = go.send(true);
        let examined = examined.await.map_err(|_| lost())?;
        self.ahead -= 1;
        let examined = match examined {
            Ok(examined) => examined,
            Err(error) => {
                let name = match &visit.source {
                    Some(_) => self.sides.source.name(&visit.below),
                    None => self.name_there(&visit.below),
                };
                self.fail(name, error).await;
                return Ok(());
            }
        };
        let Examined { mut compared, ignores, failed, is_partial } = examined;
        if is_partial {
            self.spare(&mut compared, &visit.below).await;
        }
        self.compare_names(&mut compared);
        for (name, error) in failed {
            let name = joined(&self.sides.source.name(&visit.below), &name);
            self.fail(name, error).await;
        }
        if compared.unchanged > 0 {
            let (files, bytes) = (compared.unchanged, compared.unchanged_bytes);
            self.events.tell(Event::Unchanged { files, bytes }).await;
        }
        for (rule, count) in compared.left_out {
            self.events.tell(Event::LeftOut { rule, count }).await;
        }
        self.findings.source_files += compared.source_files;
        self.findings.destination_files += compared.destination_files;
        if compared.has_hidden {
            self.keep(visit.removal);
        }
        let is_told = visit.differs || compared.is_touched;
        if let Some(source) = &visit.source {
            let removes = |action: &Action| matches!(action, Action::Surplus(_) | Action::Conflict { .. });
            if compared.actions.iter().any(removes) {
                let (below, entry) = (visit.below.clone(), source.clone());
                self.findings.touched.push(Touched { below, entry, was_told: is_told });
            }
            if is_told {
                self.step(Step::Directory { below: visit.below.clone(), entry: source.clone() }).await;
            }
        }
        let directory = Arc::new(visit.below);
        let mut waiting = Vec::new();
        for action in compared.actions {
            self.act(action, &directory, visit.removal, ignores.as_ref(), &mut waiting).await;
        }
        if is_told && visit.source.is_some() {
            self.stack.push(Task::End((*directory).clone()));
        }
        self.stack.extend(waiting.into_iter().rev().map(|visit| Task::Visit(Box::new(visit))));
        Ok(())
    }

    /// What the source does not list may be what this client may not list there, and stays.
    async fn spare(&self, compared: &mut Compared, directory: &RemotePath) {
        let all = compared.actions.len();
        compared.actions.retain(|action| !matches!(action, Action::Surplus(_)));
        let stay = all - compared.actions.len();
        if stay > 0 {
            let name = self.name_there(directory);
            let text = format!(
                "nothing was removed in {}: you may not list all of it at the source, and {stay} of its names may be \
                 there",
                Escaped(&name)
            );
            self.events.tell(Event::Warning(text)).await;
        }
    }

    /// Sees which names of one file at the source are not names of one file at the destination, though they are the
    /// same otherwise: these are made anew.
    fn compare_names(&mut self, compared: &mut Compared) {
        for action in std::mem::take(&mut compared.actions) {
            let (file, there, is_same) = match &action {
                Action::Same { source, there } => (source.same, *there, true),
                Action::Send { source, .. } | Action::Check { source, .. } => (source.same, None, false),
                _ => (None, None, false),
            };
            let first = file.and_then(|file| self.shared.get(&file).copied());
            if let (Some(file), None) = (file, first)
                && self.shared.len() < SHARED_FILES_MAX
            {
                self.shared.insert(file, there);
            }
            match action {
                Action::Same { source, .. } if first.is_some_and(|first| first.is_none() || first != there) => {
                    compared.is_touched = true;
                    compared.actions.push(Action::Send { source, is_there: true, looks_same: false });
                }
                Action::Same { source, there } => {
                    compared.unchanged += 1;
                    compared.unchanged_bytes = compared.unchanged_bytes.saturating_add(source.size);
                    if first.is_none() {
                        compared.actions.push(Action::Same { source, there });
                    }
                }
                action => compared.actions.push(action),
            }
            debug_assert!(!is_same || file.is_some(), "only files with several names are looked at");
        }
    }

    async fn act(
        &mut self,
        action: Action,
        directory: &Arc<RemotePath>,
        parent: Option<usize>,
        ignores: Option<&Arc<Ignores>>,
        waiting: &mut Vec<Visit>,
    ) {
        let (name, is_surplus) = match &action {
            Action::Send { source, .. }
            | Action::Same { source, .. }
            | Action::Check { source, .. }
            | Action::Enter { source, .. }
            | Action::Conflict { source, .. }
            | Action::Kept(source) => (&source.name, false),
            Action::Surplus(there) => (&there.name, true),
            Action::Skip { name, .. } | Action::Refuse { name, .. } => (name, false),
        };
        let names = Component::new(name).and_then(|name| Ok((name.clone(), directory.join(name)?)));
        let (component, below) = match names {
            Ok(names) => names,
            Err(error) => {
                let directory = if is_surplus { self.name_there(directory) } else { self.sides.source.name(directory) };
                self.fail(joined(&directory, name), name_error(error)).await;
                return;
            }
        };
        match action {
            Action::Send { source, is_there, looks_same } => match source.kind {
                EntryKind::Link => self.step(Step::Link { below, entry: source }).await,
                _ => self.step(Step::File { below, entry: source, is_there, looks_same }).await,
            },
            Action::Same { source, .. } => self.step(Step::Known { below, entry: source }).await,
            // Those that are the same were taken out when they were checked.
            Action::Check { source, .. } => {
                self.step(Step::File { below, entry: source, is_there: true, looks_same: false }).await;
            }
            Action::Enter { source, is_there, differs } => {
                let ignores = ignores.cloned();
                waiting.push(Visit { below, source: Some(source), is_there, differs, ignores, ..Visit::default() });
            }
            Action::Conflict { source, there } => {
                if let Some(removal) = self.remove(directory, component, &there, None, &below, ignores, waiting) {
                    self.findings.conflicts.push(Conflict { below, source, ignores: ignores.cloned(), removal });
                }
            }
            Action::Surplus(there) => {
                self.remove(directory, component, &there, parent, &below, ignores, waiting);
            }
            Action::Kept(source) => {
                let (name, kind) = (self.sides.source.name(&below), item_kind(source.kind));
                let (size, outcome) = (source.size, Outcome::Kept);
                let event = Event::Done { item: 0, name, kind, size, root: None, outcome, renamed_to: None };
                self.events.tell(event).await;
            }
            Action::Skip { why, .. } => {
                let name = self.sides.source.name(&below);
                self.events.tell(Event::Skipped { name, why }).await;
            }
            Action::Refuse { error, .. } => {
                let name = self.sides.source.name(&below);
                self.fail(name, error).await;
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "what is known of one name")]
    fn remove(
        &mut self,
        directory: &Arc<RemotePath>,
        name: Component,
        there: &Entry,
        parent: Option<usize>,
        below: &RemotePath,
        ignores: Option<&Arc<Ignores>>,
        waiting: &mut Vec<Visit>,
    ) -> Option<usize> {
        let index = self.findings.removals.len();
        if index >= REMOVALS_MAX {
            self.findings.is_removal_cut = true;
            return None;
        }
        let (directory, kind, mode) = (Arc::clone(directory), there.kind, there.mode);
        self.findings.removals.push(Removal { directory, name, kind, mode, parent, stays: false });
        if kind == EntryKind::Directory {
            let (below, ignores) = (below.clone(), ignores.cloned());
            waiting.push(Visit { below, is_there: true, ignores, removal: Some(index), ..Visit::default() });
        }
        Some(index)
    }

    /// A directory that only the destination has holds something that stays, and so it stays, and those above it.
    fn keep(&mut self, removal: Option<usize>) {
        let mut next = removal;
        while let Some(removal) = next.and_then(|index| self.findings.removals.get_mut(index)) {
            if std::mem::replace(&mut removal.stays, true) {
                return;
            }
            next = removal.parent;
        }
    }

    fn name_there(&self, below: &RemotePath) -> Vec<u8> {
        self.sides.destination.name(below)
    }

    async fn fail(&self, name: Vec<u8>, error: Error) {
        self.events.tell(Event::Failed { item: None, name, error }).await;
    }

    async fn step(&self, step: Step) {
        if self.sides.foresees_names
            && let Step::Directory { below, .. } | Step::File { below, .. } | Step::Link { below, .. } = &step
            && let Err(error) = NamePolicy::default().check(below)
        {
            let name = self.sides.source.name(below);
            self.fail(name, name_error(error)).await;
            return;
        }
        // Nobody takes it any more when all of it has ended.
        let _ = self.steps.send((self.convert)(step)).await;
    }
}

impl Sides {
    async fn examine(
        &self,
        below: &RemotePath,
        has_source: bool,
        is_there: bool,
        ignores: Option<Arc<Ignores>>,
        go: watch::Receiver<bool>,
        (checks, waiter): (&Arc<Semaphore>, &Waiter),
    ) -> Result<Examined> {
        let there_side = self.there.as_ref().filter(|_| is_there);
        let source = async {
            let xattrs = self.settings.xattrs;
            if has_source { self.source.list(below, go.clone(), xattrs).await } else { Ok(Listing::default()) }
        };
        let there = async {
            match there_side {
                Some(side) => side.list(below, go.clone(), self.settings.xattrs).await,
                None => Ok(Listing::default()),
            }
        };
        let (source, there) = tokio::join!(source, there);
        let (mut source, mut there) = (source?, there?);
        let ignores = if has_source { self.ignores(below, &source, ignores).await? } else { ignores };
        // What could not be looked at here must not be taken for missing there.
        there.entries.retain(|listed| source.failed.iter().all(|(name, _)| *name != listed.entry.name));
        source.failed.append(&mut there.failed);
        let directory = below.to_bytes();
        let judge = |entry: &Entry, _: bool| {
            let path = joined(&directory, &entry.name);
            let (kind, size, mtime) = (entry.kind, entry.size, entry.mtime);
            self.filter.judge(Subject { path: &path, kind, size, mtime }, ignores.as_ref())
        };
        let there = there.entries.into_iter().map(|listed| listed.entry).collect();
        let mut compared =
            compare(source.entries, there, below.components().len(), &self.settings, |entry, is_source| {
                if self.filter.is_empty() { None } else { judge(entry, is_source) }
            });
        if self.settings.checksum {
            self.check(below, &mut compared, (checks, waiter), &mut source.failed).await?;
        }
        Ok(Examined { compared, ignores, failed: source.failed, is_partial: source.is_partial })
    }

    async fn ignores(
        &self,
        below: &RemotePath,
        source: &Listing,
        above: Option<Arc<Ignores>>,
    ) -> Result<Option<Arc<Ignores>>> {
        let is_ignore_file = |listed: &crate::client::compare::Listed| {
            listed.entry.kind == EntryKind::File && listed.entry.name == crate::client::filter::IGNORE_NAME.as_bytes()
        };
        if !self.filter.ignore_files || !source.entries.iter().any(is_ignore_file) {
            return Ok(above);
        }
        match self.source.ignores(below).await? {
            Some(content) => Ignores::new(&below.to_bytes(), &content, above).map(Some),
            None => Ok(above),
        }
    }

    /// Compares the hashes of files of the same size, and takes those out that are the same in all.
    async fn check(
        &self,
        below: &RemotePath,
        compared: &mut Compared,
        (checks, waiter): (&Arc<Semaphore>, &Waiter),
        failed: &mut Vec<(Vec<u8>, Error)>,
    ) -> Result<()> {
        let Some(there) = &self.there else { return Ok(()) };
        let mut running = JoinSet::new();
        for (index, action) in compared.actions.iter().enumerate() {
            let Action::Check { source, .. } = action else { continue };
            let file = Component::new(&source.name).and_then(|name| below.join(name)).map_err(name_error)?;
            let (ours, theirs, checks) = (self.source.clone(), there.clone(), Arc::clone(checks));
            let (waiter, other) = (waiter.clone(), waiter.clone());
            running.spawn(async move {
                let _permit = checks.acquire_owned().await;
                let (ours, theirs) = tokio::join!(ours.hash(&file, waiter), theirs.hash(&file, other));
                (index, ours.and_then(|ours| Ok(ours == theirs?)))
            });
        }
        let mut same = vec![false; compared.actions.len()];
        let mut bad = vec![false; compared.actions.len()];
        while let Some(checked) = running.join_next().await {
            let panicked = |error| Error::new(ErrorKind::Internal, "a comparison failed").with_source(error);
            let (index, result) = checked.map_err(panicked)?;
            let Some(Action::Check { source, is_same_otherwise, .. }) = compared.actions.get(index) else { continue };
            match result {
                Ok(is_same) => same[index] = is_same && *is_same_otherwise,
                Err(error) => {
                    failed.push((source.name.clone(), error));
                    bad[index] = true;
                }
            }
        }
        let actions = std::mem::take(&mut compared.actions);
        for (index, action) in actions.into_iter().enumerate() {
            match action {
                Action::Check { .. } if bad[index] => {}
                Action::Check { source, there, .. } if same[index] => compared.same_file(source, there),
                Action::Check { .. } => {
                    compared.is_touched = true;
                    compared.actions.push(action);
                }
                action => compared.actions.push(action),
            }
        }
        Ok(())
    }
}

/// Whether a directory's mode or time is another at the destination.
pub(crate) fn is_other_directory(source: &Entry, there: &Entry, settings: &Settings) -> bool {
    !is_same_time(source.mtime, there.mtime)
        || !is_same_directory_mode(source.mode, there.mode, settings.directory_mode)
        || !are_same_xattrs(source, there, settings)
}

fn item_kind(kind: EntryKind) -> ItemKind {
    match kind {
        EntryKind::Directory => ItemKind::Directory,
        EntryKind::Link => ItemKind::Link,
        EntryKind::File | EntryKind::Special => ItemKind::File,
    }
}
