//! Synchronising: makes the contents of one directory those of another, in either direction.
//!
//! Both trees are gone through in step (`traverse`), and what differs moves while they are, as in an upload or a
//! download. Removals come last. Invariants: nothing is removed before every transfer has succeeded, nothing when
//! the source could not be read whole or lists no file, nothing when it would be too much, and only names that were
//! seen at the destination and not at the source; a directory goes only when it is empty by then. A dry run goes the
//! same way and tells instead of doing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};

use crate::client::atomic::LocalTree as Built;
use crate::client::compare::{Action, DeleteMax, Links, Settings, asked_modes, compare, sent_mode};
use crate::client::event::{Event, ItemKind, Outcome};
use crate::client::filter::{Filter, Subject};
use crate::client::plan::{PutItem, PutSource};
use crate::client::remote::{Endpoint, Location};
use crate::client::side::{LocalTree, Side, joined};
use crate::client::traverse::{Findings, Place, Removal, Sides, Step, Touched, Traversal};
use crate::client::walk::{Attributes, Found, Source, SourceVersion};
use crate::client::xattrs::{check_server, digest_of};
use crate::client::{Client, GetOptions, PutOptions};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::{Escaped, RemotePath};
use crate::protocol::{Entry, EntryKind, IfExists, Mtime};
use crate::storage::{self, ModeRange, Store, StoreOptions};

/// Steps that wait for their turn.
const STEPS_MAX: usize = 512;
/// Removals that are asked for at once.
const REMOVALS_AT_ONCE: usize = 64;

/// Which side is the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From here to the server.
    Up,
    /// From the server to here.
    Down,
}

/// What a `sync` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncPlan {
    /// The server.
    pub endpoint: Endpoint,
    /// Which side is the source.
    pub direction: Direction,
    /// The directory here.
    pub local: PathBuf,
    /// The directory on the server.
    pub remote: RemotePath,
}

impl SyncPlan {
    /// What two arguments mean: exactly one of them is remote, and slashes at their ends mean nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn parse(source: &OsStr, destination: &OsStr) -> Result<SyncPlan> {
        let usage = |text: &str| Err(Error::new(ErrorKind::Usage, text));
        let (direction, local, remote) = match (Location::parse(source)?, Location::parse(destination)?) {
            (Location::Local(local), Location::Remote(remote)) => (Direction::Up, local, remote),
            (Location::Remote(remote), Location::Local(local)) => (Direction::Down, local, remote),
            (Location::Stream, _) | (_, Location::Stream) => {
                return usage("sync takes two directories, and `-` is a stream: use put or get");
            }
            (Location::Local(_), Location::Local(_)) => {
                return usage("one side of sync must be a remote (sealift://HOST[:PORT]/PATH)");
            }
            (Location::Remote(_), Location::Remote(_)) => {
                return usage("one side of sync must be local: get to here, then sync from here");
            }
        };
        if local.as_os_str().is_empty() {
            return usage("a directory with an empty name: write `.` for this one");
        }
        Ok(SyncPlan { endpoint: remote.endpoint, direction, local, remote: remote.path })
    }
}

/// How a `sync` treats what it finds.
#[derive(Clone, Debug, Default)]
pub struct SyncOptions {
    /// What is left out.
    pub filter: Arc<Filter>,
    /// What becomes of links.
    pub links: Links,
    /// Files of the same size are compared by their hash, whatever their times.
    pub checksum: bool,
    /// Remove what only the destination has.
    pub delete: bool,
    /// Also what the rules leave out.
    pub delete_excluded: bool,
    /// How much may be removed.
    pub delete_max: DeleteMax,
    /// Only say what would be done.
    pub dry_run: bool,
    /// The destination becomes what it shall be as a whole, or stays as it was.
    pub atomic: bool,
    /// Keep setuid, setgid, sticky and world-writable, where the destination allows it.
    pub special_modes: bool,
    /// Keep extended attributes of users (`user.*`) too.
    pub xattrs: bool,
}

/// The two trees of one `sync`.
struct Pair {
    client: Client,
    plan: SyncPlan,
    options: SyncOptions,
    sides: Arc<Sides>,
    /// The source, when it is here.
    tree: Option<LocalTree>,
    /// The destination, when it is here and there already.
    store: Option<Store>,
    top: Entry,
    there: Option<Entry>,
    /// What the destination is to be replaced by as a whole, when it is here.
    built: Option<Built>,
}

impl Client {
    /// Makes the contents of one directory those of another. What becomes of each file is told in events; one that
    /// fails does not keep the others from being moved, but everything from being removed.
    ///
    /// # Errors
    /// A source that is not there or is no directory, a destination that is something else, and what ended the whole:
    /// no connection any more, or a breach of the protocol.
    ///
    /// # Cancel safety
    /// What was told as done is durable. The destination may be between two states; running it again goes on.
    pub async fn sync(&self, plan: SyncPlan, options: SyncOptions) -> Result<()> {
        let failures_before = self.events().failures();
        let is_atomic = options.atomic && !options.dry_run;
        let (direction, remote) = (plan.direction, plan.remote.clone());
        let building = match direction {
            Direction::Up if is_atomic => Some(self.begin_tree(&remote).await?),
            _ => None,
        };
        let pair = Pair::open(self, plan, options).await?;
        let findings = pair.pass(None).await?;
        self.check_alive()?;
        pair.finish(findings, failures_before).await?;
        if let Some(built) = &pair.built {
            built.publish(self, failures_before).await?;
        }
        if let Some(building) = building {
            building.publish(failures_before).await?;
        }
        self.check_alive()
    }

    /// Tells what an upload would do, by what is there: files count as the same when size and time are.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub(crate) async fn foresee_put(&self, items: Vec<PutItem>, options: &PutOptions) -> Result<()> {
        let mut settings = self.settings_there(options.if_exists, options.links, options.special_modes).await?;
        settings.xattrs = options.xattrs;
        for PutItem { source, target } in items {
            self.check_alive()?;
            let PutSource::Local(path) = source else {
                let name = b"standard input".to_vec();
                self.tell_foreseen(name, ItemKind::File, options.expect_size.unwrap_or(0), Outcome::Planned).await;
                continue;
            };
            let name = path.as_os_str().as_bytes().to_vec();
            if let Err(error) = self.foresee_put_of(&path, target, options, settings).await {
                self.check_alive()?;
                self.events().tell(Event::Failed { item: None, name, error }).await;
            }
        }
        self.events().tell(Event::FoundAll).await;
        Ok(())
    }

    async fn foresee_put_of(
        &self,
        path: &Path,
        target: RemotePath,
        options: &PutOptions,
        settings: Settings,
    ) -> Result<()> {
        let there = self.stat_if_any(&target, settings.xattrs).await?;
        let named = path.to_path_buf();
        let is_directory = blocking(move || {
            std::fs::metadata(&named)
                .map(|metadata| metadata.is_dir())
                .while_doing(|| format!("look at {}", shown(&named)))
        })
        .await?;
        if is_directory {
            let (named, links) = (path.to_path_buf(), options.links);
            let (tree, top) = blocking(move || LocalTree::open(&named, links, settings.xattrs)).await?;
            let side = there.is_some().then(|| Side::Remote(self.clone(), target.clone()));
            let sides = Sides {
                source: Side::Tree(tree.clone()),
                there: side,
                destination: Place::There(target.clone()),
                settings,
                filter: Arc::clone(&options.filter),
                foresees_names: true,
            };
            let foreseen = PutOptions {
                dry_run: true,
                if_exists: options.if_exists,
                into_directory: options.into_directory,
                ..PutOptions::default()
            };
            let (steps, found) = mpsc::channel(STEPS_MAX);
            let named = (target.clone(), path.to_path_buf());
            let convert = move |step| to_found(step, &tree, &target, false);
            let traversal = Traversal::new(Arc::new(sides), self.events().clone(), steps, convert);
            let (findings, moved) =
                tokio::join!(Box::pin(traversal.run(top, there)), Box::pin(self.put_found(found, foreseen, named)));
            moved?;
            return findings.map(drop);
        }
        let source = Source::named(path.to_path_buf());
        let (open, xattrs) = blocking(move || {
            let open = source.open()?;
            let xattrs = if settings.xattrs { Some(open.xattrs()?) } else { None };
            Ok((open, xattrs))
        })
        .await?;
        let entry = Entry {
            name: path.file_name().map(OsStr::as_bytes).unwrap_or_default().to_vec(),
            kind: EntryKind::File,
            size: open.version.size,
            mtime: open.version.mtime,
            mode: open.attributes.mode,
            target: None,
            // It is the only one, so nothing shares it.
            same: None,
            xattrs_digest: xattrs.as_ref().map(digest_of),
            xattrs: None,
        };
        crate::path::NamePolicy::default().check(&target).map_err(crate::client::side::name_error)?;
        let name = path.as_os_str().as_bytes().to_vec();
        self.foresee_file(name, entry, there, &options.filter, settings).await
    }

    /// Tells what becomes of one file that is itself named.
    async fn foresee_file(
        &self,
        name: Vec<u8>,
        entry: Entry,
        there: Option<Entry>,
        filter: &Filter,
        settings: Settings,
    ) -> Result<()> {
        let (kind, size, mtime) = (entry.kind, entry.size, entry.mtime);
        if let Some(rule) = filter.judge(Subject { path: &entry.name, kind, size, mtime }, None) {
            self.events().tell(Event::LeftOut { rule, count: 1 }).await;
            return Ok(());
        }
        let there = there.map(|there| Entry { name: entry.name.clone(), ..there });
        let compared = compare(vec![entry.into()], there.into_iter().collect(), 0, &settings, |_, _| None);
        if compared.unchanged > 0 {
            self.tell_foreseen(name, ItemKind::File, size, Outcome::Unchanged).await;
            return Ok(());
        }
        for action in compared.actions {
            match action {
                Action::Refuse { error, .. } => return Err(error),
                Action::Kept(_) => self.tell_foreseen(name.clone(), ItemKind::File, size, Outcome::Kept).await,
                _ => self.tell_foreseen(name.clone(), ItemKind::File, size, Outcome::Planned).await,
            }
        }
        Ok(())
    }

    async fn tell_foreseen(&self, name: Vec<u8>, kind: ItemKind, size: u64, outcome: Outcome) {
        self.events().tell(Event::Found { files: 1, bytes: size }).await;
        let event = Event::Done { item: 0, name, kind, size, root: None, outcome, renamed_to: None };
        self.events().tell(event).await;
    }

    /// Tells what the download of something under a name would do.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) async fn foresee_get(
        &self,
        source: RemotePath,
        entry: Entry,
        target: &Path,
        options: &GetOptions,
    ) -> Result<()> {
        let defaults = StoreOptions::local(options.special_modes);
        let settings = Settings {
            if_exists: options.if_exists,
            links: options.links,
            file_mode: defaults.file_mode,
            directory_mode: defaults.directory_mode,
            xattrs: options.xattrs,
            ..Settings::default()
        };
        let mut entry = entry;
        if options.xattrs {
            entry.xattrs_digest = self.stat_with_xattrs(&source).await?.0.xattrs_digest;
        }
        if entry.kind != EntryKind::Directory {
            let (directory, name) = (target.parent().map(Path::to_path_buf), target.file_name().map(OsStr::to_owned));
            let there = match (directory, name) {
                (Some(directory), Some(name)) => {
                    let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
                    blocking(move || {
                        let Some((store, _)) = open_existing(&directory, false, false)? else { return Ok(None) };
                        let path = RemotePath::parse(name.as_bytes()).map_err(crate::client::side::name_error)?;
                        Ok(entry_here(&store, &path, settings.xattrs).ok())
                    })
                    .await?
                }
                _ => None,
            };
            let name = source.to_bytes();
            return self.foresee_file(name, entry, there, &options.filter, settings).await;
        }
        let named = target.to_path_buf();
        let opened = blocking(move || open_existing(&named, false, settings.xattrs)).await?;
        let (store, there) = opened.map_or((None, None), |(store, entry)| (Some(store), Some(entry)));
        let sides = Sides {
            source: Side::Remote(self.clone(), source.clone()),
            there: store.map(|store| Side::Store(store, target.to_path_buf())),
            destination: Place::Here(target.to_path_buf()),
            settings,
            filter: Arc::clone(&options.filter),
            foresees_names: false,
        };
        let (steps, received) = mpsc::channel(STEPS_MAX);
        let traversal = Traversal::new(Arc::new(sides), self.events().clone(), steps, |step| step);
        let foreseen = GetOptions { dry_run: true, if_exists: options.if_exists, ..GetOptions::default() };
        let target = target.to_path_buf();
        let (findings, moved) = tokio::join!(
            Box::pin(traversal.run(entry, there)),
            Box::pin(self.get_steps(source, None, target, received, foreseen))
        );
        moved?;
        findings.map(drop)
    }

    async fn settings_there(&self, if_exists: IfExists, links: Links, special_modes: bool) -> Result<Settings> {
        let session = self.session().await?;
        let hello = session.hello();
        let range =
            |told: Option<(u32, u32)>, default: ModeRange| told.map_or(default, |(min, max)| ModeRange { min, max });
        let defaults = StoreOptions::default();
        Ok(Settings {
            if_exists,
            links,
            file_mode: asked_modes(range(hello.file_mode, defaults.file_mode), special_modes),
            directory_mode: asked_modes(range(hello.directory_mode, defaults.directory_mode), special_modes),
            ..Settings::default()
        })
    }

    async fn stat_if_any(&self, path: &RemotePath, xattrs: bool) -> Result<Option<Entry>> {
        let entry = match xattrs {
            true => self.stat_with_xattrs(path).await.map(|(entry, _)| entry),
            false => self.stat(path).await,
        };
        match entry {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let panicked = |error| Error::new(ErrorKind::Internal, "a task of the comparison failed").with_source(error);
    spawn_blocking(work).await.map_err(panicked)?
}

fn shown(path: &Path) -> String {
    format!("`{}`", Escaped(path.as_os_str().as_bytes()))
}

/// A directory here that is there already; it is not made. Blocks.
fn open_existing(path: &Path, special_modes: bool, xattrs: bool) -> Result<Option<(Store, Entry)>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let store = Store::open_local_with(path, StoreOptions::local(special_modes))?;
            let entry = entry_here(&store, &RemotePath::root(), xattrs)?;
            Ok(Some((store, entry)))
        }
        Ok(_) => Err(Error::new(
            ErrorKind::NotDirectory,
            format!("{} is a file here, and a directory does not replace it", shown(path)),
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("look at {}", shown(path)), error)),
    }
}

/// What stands under a name here. Blocks.
fn entry_here(store: &Store, path: &RemotePath, xattrs: bool) -> Result<Entry> {
    let mut entry = crate::client::side::entry_of_stored(store.stat(path)?);
    if xattrs {
        entry.xattrs_digest = store.xattrs(path).ok().as_ref().map(digest_of);
    }
    Ok(entry)
}

/// What an upload is to do for a step.
fn to_found(step: Step, tree: &LocalTree, base: &RemotePath, asks: bool) -> Found {
    let attributes = |entry: &Entry| Attributes { mode: entry.mode, mtime: entry.mtime };
    let target = |below: &RemotePath| joined(base, below);
    let failed = |below: &RemotePath, error: Error| {
        let path = PathBuf::from(OsStr::from_bytes(&Side::Tree(tree.clone()).name(below)));
        Found::Failed { path, error }
    };
    match step {
        Step::Directory { below, entry } => match target(&below) {
            Ok(target) => Found::Directory { target, attributes: attributes(&entry), source: tree.source(&below) },
            Err(error) => failed(&below, error),
        },
        // One whose name is too long was not begun.
        Step::DirectoryEnd { below } => match target(&below) {
            Ok(target) => {
                let attributes = Attributes { mode: 0, mtime: Mtime { seconds: 0, nanos: 0 } };
                Found::DirectoryEnd { target, attributes }
            }
            Err(error) => failed(&below, error),
        },
        Step::File { below, entry, is_there, looks_same } => match target(&below) {
            Ok(target) => {
                let (size, mtime) = (entry.size, entry.mtime);
                // It is looked at once more when it is opened; only the size counts until then.
                let version = SourceVersion { device: 0, inode: 0, size, mtime, ctime: mtime };
                let (source, attributes, ask) =
                    (tree.source(&below), attributes(&entry), looks_same || is_there && asks);
                Found::File { target, source, version, attributes, ask, same: entry.same }
            }
            Err(error) => failed(&below, error),
        },
        Step::Known { below, entry } => match (target(&below), entry.same) {
            (Ok(target), Some(same)) => Found::Known { target, same },
            (Ok(_), None) => failed(&below, Error::new(ErrorKind::Internal, "a file with one name has no others")),
            (Err(error), _) => failed(&below, error),
        },
        Step::Link { below, entry } => match target(&below) {
            Ok(target) => {
                let attributes = attributes(&entry);
                Found::Link { target, points_to: entry.target.unwrap_or_default(), attributes }
            }
            Err(error) => failed(&below, error),
        },
    }
}

impl Pair {
    async fn open(client: &Client, plan: SyncPlan, options: SyncOptions) -> Result<Pair> {
        let is_no_directory = |what: String| {
            Error::new(
                ErrorKind::NotDirectory,
                format!("{what} is no directory: sync compares directories, put and get move files"),
            )
        };
        let mut settings = Settings {
            checksum: options.checksum,
            delete: options.delete,
            delete_excluded: options.delete_excluded,
            links: options.links,
            xattrs: options.xattrs,
            ..Settings::default()
        };
        if options.xattrs {
            check_server(client.session().await?.hello())?;
        }
        let remote = client.stat_if_any(&plan.remote, options.xattrs).await?;
        let remote_is_directory = remote.as_ref().is_none_or(|entry| entry.kind == EntryKind::Directory);
        if !remote_is_directory {
            return Err(is_no_directory(plan.remote.to_string()));
        }
        let local = plan.local.clone();
        let (mut tree, mut store, mut built) = (None, None, None);
        let (source, there, top, there_entry) = match plan.direction {
            Direction::Up => {
                let told = client.settings_there(IfExists::Overwrite, options.links, options.special_modes).await?;
                (settings.file_mode, settings.directory_mode) = (told.file_mode, told.directory_mode);
                let links = options.links;
                let opened = blocking(move || LocalTree::open(&local, links, options.xattrs)).await;
                let (opened, top) = opened.map_err(|error| {
                    if error.kind() == ErrorKind::NotDirectory { is_no_directory(shown(&plan.local)) } else { error }
                })?;
                tree = Some(opened.clone());
                let there = remote.is_some().then(|| Side::Remote(client.clone(), plan.remote.clone()));
                // The served root keeps its own mode and time, whatever they are.
                let remote = match remote {
                    Some(remote) if plan.remote.is_root() => {
                        let (mode, mtime) = (settings.directory_mode.apply(top.mode), top.mtime);
                        Some(Entry { mode, mtime, xattrs_digest: top.xattrs_digest, ..remote })
                    }
                    remote => remote,
                };
                (Side::Tree(opened), there, top, remote)
            }
            Direction::Down => {
                if options.links == Links::Follow {
                    let text = "--links follow is for links here: a server never follows one";
                    return Err(Error::new(ErrorKind::Usage, text));
                }
                let Some(top) = remote else {
                    return Err(Error::new(ErrorKind::NotFound, format!("there is no {} on the server", plan.remote)));
                };
                let special_modes = options.special_modes;
                let defaults = StoreOptions::local(special_modes);
                (settings.file_mode, settings.directory_mode) = (defaults.file_mode, defaults.directory_mode);
                let is_built = options.atomic && !options.dry_run;
                let opened = if is_built {
                    let begun = blocking(move || Built::begin(&local, special_modes)).await?;
                    let store = begun.store.clone();
                    let entry = entry_here(&store, &RemotePath::root(), options.xattrs)?;
                    built = Some(begun);
                    Some((store, entry))
                } else {
                    blocking(move || open_existing(&local, special_modes, options.xattrs)).await?
                };
                let (opened, entry) = opened.map_or((None, None), |(store, entry)| (Some(store), Some(entry)));
                store.clone_from(&opened);
                let there = opened.map(|store| Side::Store(store, plan.local.clone()));
                (Side::Remote(client.clone(), plan.remote.clone()), there, top, entry)
            }
        };
        let foresees_names = options.dry_run && plan.direction == Direction::Up;
        let filter = Arc::clone(&options.filter);
        let destination = match plan.direction {
            Direction::Up => Place::There(plan.remote.clone()),
            Direction::Down => Place::Here(plan.local.clone()),
        };
        let sides = Arc::new(Sides { source, there, destination, settings, filter, foresees_names });
        let client = client.clone();
        Ok(Pair { client, plan, options, sides, tree, store, top, there: there_entry, built })
    }

    /// One way through both trees; with findings, only through what had to wait for removals.
    async fn pass(&self, conflicts: Option<Findings>) -> Result<Findings> {
        match (&self.tree, self.plan.direction) {
            (Some(tree), Direction::Up) => {
                let (steps, found) = mpsc::channel(STEPS_MAX);
                let (tree, base, asks) = (tree.clone(), self.plan.remote.clone(), self.options.checksum);
                let SyncOptions { dry_run, special_modes, xattrs, .. } = self.options;
                let options = PutOptions { dry_run, special_modes, xattrs, ..PutOptions::default() };
                let traversal = self.traversal(steps, move |step| to_found(step, &tree, &base, asks));
                let top = (self.plan.remote.clone(), self.plan.local.clone());
                let moving = Box::pin(self.client.put_found(found, options, top));
                let (findings, moved) = tokio::join!(Box::pin(self.run(traversal, conflicts)), moving);
                moved?;
                findings
            }
            _ => {
                let (steps, received) = mpsc::channel(STEPS_MAX);
                let SyncOptions { dry_run, special_modes, xattrs, .. } = self.options;
                let options = GetOptions { dry_run, special_modes, xattrs, ..GetOptions::default() };
                let traversal = self.traversal(steps, |step| step);
                let (base, target) = (self.plan.remote.clone(), self.plan.local.clone());
                let moving = Box::pin(self.client.get_steps(base, self.store.clone(), target, received, options));
                let (findings, moved) = tokio::join!(Box::pin(self.run(traversal, conflicts)), moving);
                moved?;
                findings
            }
        }
    }

    fn traversal<T>(
        &self,
        steps: mpsc::Sender<T>,
        convert: impl Fn(Step) -> T + Send + Sync + 'static,
    ) -> Traversal<T> {
        Traversal::new(Arc::clone(&self.sides), self.client.events().clone(), steps, convert)
    }

    async fn run<T>(&self, traversal: Traversal<T>, conflicts: Option<Findings>) -> Result<Findings> {
        match conflicts {
            Some(findings) => traversal.run_conflicts(findings.conflicts).await,
            None => traversal.run(self.top.clone(), self.there.clone()).await,
        }
    }

    fn sent(&self, mode: u32) -> u32 {
        sent_mode(mode, self.options.special_modes)
    }

    fn name_there(&self, below: &RemotePath) -> Vec<u8> {
        self.sides.destination.name(below)
    }

    /// Removes what is to be removed, if it may be, and then moves what waited for that.
    async fn finish(&self, mut findings: Findings, failures_before: u64) -> Result<()> {
        // What is hidden there is noted, because it keeps the directories that it is in.
        if findings.conflicts.is_empty() && findings.removals.iter().all(|removal| removal.stays) {
            return Ok(());
        }
        let events = self.client.events();
        let failures = events.failures() - failures_before;
        if failures > 0 {
            let text = format!("nothing was removed, because {failures} of the above failed: run it again");
            events.tell(Event::Warning(text)).await;
            return Ok(());
        }
        if let Err(error) = self.check_removals(&findings) {
            events.tell(Event::Failed { item: None, name: self.name_there(&RemotePath::root()), error }).await;
            return Ok(());
        }
        let mut conflicts = Vec::new();
        for conflict in std::mem::take(&mut findings.conflicts) {
            match findings.removals.get(conflict.removal) {
                Some(removal) if removal.stays => {
                    let below = removal.directory.join(removal.name.clone());
                    let name =
                        below.map_or_else(|_| self.name_there(&RemotePath::root()), |below| self.name_there(&below));
                    let text = "it holds what the rules leave out, and so it stays in the way (--delete-excluded)";
                    let error = Error::new(ErrorKind::Exists, text);
                    events.tell(Event::Failed { item: None, name, error }).await;
                }
                _ => conflicts.push(conflict),
            }
        }
        self.remove(std::mem::take(&mut findings.removals), &findings.touched).await?;
        self.client.check_alive()?;
        let touched = std::mem::take(&mut findings.touched);
        if !conflicts.is_empty() {
            self.pass(Some(Findings { conflicts, ..Findings::default() })).await?;
        }
        self.settle(touched).await
    }

    fn check_removals(&self, findings: &Findings) -> Result<()> {
        let refuse = |text: String| Err(Error::new(ErrorKind::Limit, format!("nothing was removed: {text}")));
        if findings.source_files == 0 {
            return refuse("the source lists no file (`rm -r` removes a directory)".to_owned());
        }
        if findings.is_removal_cut {
            return refuse("there are more than a million names to remove; remove some directories first".to_owned());
        }
        let goes = |removal: &&Removal| !removal.stays && removal.kind != EntryKind::Directory;
        let count = findings.removals.iter().filter(goes).count() as u64;
        let (all, max) = (findings.destination_files, self.options.delete_max);
        if !max.allows(count, all) {
            return refuse(format!("{count} of {all} files would go, more than --max-delete {max} allows"));
        }
        Ok(())
    }

    async fn remove(&self, removals: Vec<Removal>, touched: &[Touched]) -> Result<()> {
        if !self.options.dry_run {
            for Touched { below, entry, .. } in touched {
                if entry.mode & FILLABLE != FILLABLE {
                    // If names in it cannot be removed, they say so, each by its name.
                    let _ = self.set_directory(below, Some(self.sent(entry.mode) | 0o700), None).await;
                }
            }
        }
        let (directories, files): (Vec<_>, Vec<_>) = removals
            .into_iter()
            .filter(|removal| !removal.stays)
            .partition(|removal| removal.kind == EntryKind::Directory);
        if !self.options.dry_run {
            for Removal { directory, name, mode, .. } in &directories {
                if mode & FILLABLE != FILLABLE
                    && let Ok(below) = directory.join(name.clone())
                {
                    let _ = self.set_directory(&below, Some(self.sent(*mode) | 0o700), None).await;
                }
            }
        }
        self.remove_all(files).await?;
        // Innermost first: those of one depth do not hold one another.
        let mut directories = directories;
        directories.sort_by_key(|removal| std::cmp::Reverse(removal.directory.components().len()));
        while let Some(depth) = directories.first().map(|removal| removal.directory.components().len()) {
            let end = directories.partition_point(|removal| removal.directory.components().len() == depth);
            let rest = directories.split_off(end);
            self.remove_all(std::mem::replace(&mut directories, rest)).await?;
        }
        Ok(())
    }

    async fn remove_all(&self, removals: Vec<Removal>) -> Result<()> {
        let permits = Arc::new(Semaphore::new(REMOVALS_AT_ONCE));
        let mut running = JoinSet::new();
        for Removal { directory, name, kind, .. } in removals {
            let Ok(below) = directory.join(name) else { continue };
            let kind = match kind {
                EntryKind::Directory => ItemKind::Directory,
                EntryKind::Link => ItemKind::Link,
                EntryKind::File | EntryKind::Special => ItemKind::File,
            };
            let name = self.name_there(&below);
            let outcome = if self.options.dry_run { Outcome::PlannedRemoval } else { Outcome::Removed };
            let done =
                Event::Done { item: 0, name: name.clone(), kind, size: 0, root: None, outcome, renamed_to: None };
            if self.options.dry_run {
                self.client.events().tell(done).await;
                continue;
            }
            let permit = Arc::clone(&permits).acquire_owned().await;
            let (client, store, remote) = (self.client.clone(), self.store.clone(), self.plan.remote.clone());
            running.spawn(async move {
                let _permit = permit;
                let removed = match store {
                    Some(store) => blocking(move || store.remove(&below, false)).await,
                    None => match joined(&remote, &below) {
                        Ok(path) => client.remove(&path, false).await,
                        Err(error) => Err(error),
                    },
                };
                let event = match removed {
                    Ok(_) => done,
                    // Somebody else was quicker.
                    Err(error) if error.kind() == ErrorKind::NotFound => done,
                    Err(error) => Event::Failed { item: None, name, error },
                };
                if client.check_alive().is_ok() {
                    client.events().tell(event).await;
                }
            });
            while running.try_join_next().is_some() {}
            self.client.check_alive()?;
        }
        while let Some(ended) = running.join_next().await {
            ended.map_err(|error| Error::new(ErrorKind::Internal, "a removal failed").with_source(error))?;
        }
        self.client.check_alive()
    }

    /// Gives directories out of which something was removed their times and modes once more, innermost first.
    async fn settle(&self, touched: Vec<Touched>) -> Result<()> {
        for Touched { below, entry, was_told } in touched.into_iter().rev() {
            let name = self.name_there(&below);
            let set = match self.options.dry_run {
                true => Ok(()),
                false => self.set_directory(&below, Some(self.sent(entry.mode)), Some(entry.mtime)).await,
            };
            let outcome = if self.options.dry_run { Outcome::Planned } else { Outcome::Stored };
            let event = match set {
                Ok(()) if was_told => continue,
                Ok(()) => {
                    let kind = ItemKind::Directory;
                    Event::Done { item: 0, name, kind, size: 0, root: None, outcome, renamed_to: None }
                }
                Err(error) => Event::Failed { item: None, name, error },
            };
            self.client.check_alive()?;
            self.client.events().tell(event).await;
        }
        Ok(())
    }

    async fn set_directory(&self, below: &RemotePath, mode: Option<u32>, mtime: Option<Mtime>) -> Result<()> {
        match &self.store {
            Some(store) => {
                let (store, below) = (store.clone(), below.clone());
                let mtime = mtime.and_then(|mtime| storage::Mtime::new(mtime.seconds, mtime.nanos));
                blocking(move || store.set_directory_metadata(&below, mode, mtime)).await
            }
            None => {
                let path = joined(&self.plan.remote, below)?;
                // The served root keeps its own.
                if path.is_root() { Ok(()) } else { self.client.set_directory(&path, mode, mtime).await }
            }
        }
    }
}

/// What the owner of a directory needs to take something out of it.
const FILLABLE: u32 = 0o300;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str, destination: &str) -> Result<SyncPlan> {
        SyncPlan::parse(OsStr::new(source), OsStr::new(destination))
    }

    #[test]
    fn exactly_one_side_is_remote() {
        let up = parse("photos/", "sealift://nas/in/photos/").unwrap();
        assert_eq!((up.direction, up.remote.to_string().as_str()), (Direction::Up, "in/photos"));
        assert_eq!(parse("photos", "sealift://nas/in/photos").unwrap().remote, up.remote, "slashes mean nothing");
        let down = parse("sealift://nas", ".").unwrap();
        assert_eq!((down.direction, down.remote.is_root()), (Direction::Down, true));
        for (source, destination) in
            [("a", "b"), ("sealift://nas/a", "sealift://nas/b"), ("-", "sealift://nas/b"), ("", "sealift://nas/b")]
        {
            assert_eq!(parse(source, destination).unwrap_err().kind(), ErrorKind::Usage, "{source} {destination}");
        }
    }
}
