//! Synchronising, against a plain model: random pairs of trees, both ways through a real server, with removals, rules,
//! bounds, hashes and interruptions; a dry run first, which must tell what the run then does.
//!
//! `SEED=…` repeats a run, `CASES=…` changes how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sealift::access::Access;
use sealift::client::compare::{DeleteMax, Links};
use sealift::client::event::{self, Event, ItemKind, Outcome};
use sealift::client::filter::{Filter, Rule};
use sealift::client::link::check_link;
use sealift::client::remote::Endpoint;
use sealift::client::{Client, ClientOptions, Direction, SyncOptions, SyncPlan};
use sealift::path::{NamePolicy, RemotePath};
use sealift::protocol::Rights;
use sealift::server::{CrowdLimits, Server, ServerOptions};
use sealift::storage::{Store, StoreOptions};
use sealift::tls::{ClientTls, ServerTls};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::kit::{client_certificates, server_certificates};
use crate::rig::{Numbers, content};

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory { mode: u32, mtime: (i64, i64) },
    File { content: Vec<u8>, mode: u32, mtime: (i64, i64) },
    Link(Vec<u8>),
}

impl Node {
    fn is_directory(&self) -> bool {
        matches!(self, Node::Directory { .. })
    }
}

/// Names from the top, parents before what is in them.
type Tree = BTreeMap<Vec<Vec<u8>>, Node>;

/// Names that people and programs make; most of them plain, so that trees meet.
fn name(numbers: &mut Numbers) -> Vec<u8> {
    const PLAIN: [&[u8]; 8] = [b"a", b"b", b"c", b"d", b"cache", b"x.tmp", b"y.tmp", b"file.txt"];
    const ODD: [&[u8]; 20] = [
        b"-dash",
        b"--delete",
        b" space ",
        b".hidden",
        b".git",
        b".env",
        b"back\\slash",
        b"A",
        b"Cache",
        "\u{e9}".as_bytes(),
        "e\u{301}".as_bytes(),
        b"*",
        b"[a]",
        b"#x#",
        b"!x",
        b"%2e%2e",
        b"~",
        b"CON",
        "\u{202e}bidi".as_bytes(),
        b"...",
    ];
    const REFUSED: [&[u8]; 3] = [b"new\nline", b"\xff\xfe", b"esc\x1b[2J"];
    match numbers.below(100) {
        0..70 => PLAIN[numbers.below(8) as usize].to_vec(),
        70..97 => ODD[numbers.below(20) as usize].to_vec(),
        97 => vec![b'n'; 255],
        // Few, because everything is kept when one of them fails.
        98 => REFUSED[numbers.below(3) as usize].to_vec(),
        _ => b"deep".to_vec(),
    }
}

fn time(numbers: &mut Numbers) -> (i64, i64) {
    const NANOS: [i64; 4] = [0, 1, 123_456_789, 500_000_000];
    (1_500_000_000 + numbers.below(4) as i64, NANOS[numbers.below(4) as usize])
}

fn mode(numbers: &mut Numbers, directory: bool) -> u32 {
    const FILE: [u32; 5] = [0o644, 0o600, 0o755, 0o444, 0o666];
    const DIRECTORY: [u32; 4] = [0o755, 0o700, 0o555, 0o777];
    if directory { DIRECTORY[numbers.below(4) as usize] } else { FILE[numbers.below(5) as usize] }
}

fn node(numbers: &mut Numbers) -> Node {
    match numbers.below(10) {
        0..3 => Node::Directory { mode: mode(numbers, true), mtime: time(numbers) },
        3..9 => {
            let len = [0, 1, 5, 5, 300, 300_000][numbers.below(6) as usize];
            // The large ones are rare: they take the other way through the protocol.
            let len = if len == 300_000 && numbers.below(8) > 0 { 7 } else { len };
            Node::File { content: content(numbers.below(3), len), mode: mode(numbers, false), mtime: time(numbers) }
        }
        _ => {
            const TARGETS: [&[u8]; 5] = [b"a", b"../b", b"b/c", b"/etc/passwd", b"../../../x"];
            Node::Link(TARGETS[numbers.below(5) as usize].to_vec())
        }
    }
}

fn grow(tree: &mut Tree, numbers: &mut Numbers, count: u64) {
    for _ in 0..count {
        let directories: Vec<_> = tree.iter().filter(|(_, node)| node.is_directory()).map(|(path, _)| path).collect();
        let mut path = match numbers.below(directories.len() as u64 + 1) {
            0 => Vec::new(),
            index => directories[index as usize - 1].clone(),
        };
        path.push(name(numbers));
        if path.len() < 7 && !tree.contains_key(&path) {
            let node = node(numbers);
            tree.insert(path, node);
        }
    }
}

fn cut(tree: &mut Tree, path: &[Vec<u8>]) {
    tree.retain(|other, _| !other.starts_with(path));
}

/// Changes some names of a tree in all the ways that there are.
fn change(tree: &mut Tree, numbers: &mut Numbers) {
    for _ in 0..numbers.below(6) {
        let paths: Vec<_> = tree.keys().cloned().collect();
        if paths.is_empty() {
            break;
        }
        let path = &paths[numbers.below(paths.len() as u64) as usize];
        match numbers.below(4) {
            0 => cut(tree, path),
            1 => {
                // Perhaps something of another kind.
                cut(tree, path);
                let node = node(numbers);
                tree.insert(path.clone(), node);
            }
            _ => match tree.get_mut(path) {
                Some(Node::File { content: bytes, mode: bits, mtime }) => match numbers.below(3) {
                    0 => (*bytes, *mtime) = (content(numbers.below(9), bytes.len()), (1_600_000_000, 7)),
                    1 => *mtime = time(numbers),
                    _ => *bits = mode(numbers, false),
                },
                Some(Node::Directory { mode: bits, mtime }) => {
                    (*bits, *mtime) = (mode(numbers, true), time(numbers));
                }
                _ => {}
            },
        }
    }
    let more = numbers.below(5);
    grow(tree, numbers, more);
}

fn on_disk(top: &Path, path: &[Vec<u8>]) -> PathBuf {
    path.iter().fold(top.to_path_buf(), |whole, name| whole.join(OsStr::from_bytes(name)))
}

fn set(path: &Path, mode: u32, mtime: (i64, i64)) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 },
    };
    utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

fn write(top: &Path, tree: &Tree) {
    fs::create_dir(top).unwrap();
    for (path, node) in tree {
        let path = on_disk(top, path);
        match node {
            Node::Directory { .. } => fs::create_dir(&path).unwrap(),
            Node::File { content, mode, mtime } => {
                fs::write(&path, content).unwrap();
                set(&path, *mode, *mtime);
            }
            Node::Link(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
        }
    }
    for (path, node) in tree.iter().rev() {
        if let Node::Directory { mode, mtime } = node {
            set(&on_disk(top, path), *mode, *mtime);
        }
    }
    set(top, 0o755, (1_400_000_000, 0));
}

fn read(top: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut waiting = vec![Vec::new()];
    while let Some(above) = waiting.pop() {
        let Ok(entries) = fs::read_dir(on_disk(top, &above)) else { continue };
        for entry in entries {
            let mut path: Vec<Vec<u8>> = above.clone();
            let Ok(entry) = entry else { continue };
            path.push(entry.file_name().as_bytes().to_vec());
            let place = on_disk(top, &path);
            let Ok(status) = fs::symlink_metadata(&place) else { continue };
            let (mode, mtime) = (status.mode() & 0o7777, (status.mtime(), status.mtime_nsec()));
            let node = if status.is_dir() {
                waiting.push(path.clone());
                Node::Directory { mode, mtime }
            } else if status.is_symlink() {
                // Something else since its status was asked for, when something still changes it.
                let Ok(target) = fs::read_link(&place) else { continue };
                Node::Link(target.as_os_str().as_bytes().to_vec())
            } else {
                let Ok(content) = fs::read(&place) else { continue };
                Node::File { content, mode, mtime }
            };
            tree.insert(path, node);
        }
    }
    tree
}

/// How one case is run.
#[derive(Clone, Debug)]
struct Options {
    direction: Direction,
    delete: bool,
    delete_excluded: bool,
    delete_max: DeleteMax,
    checksum: bool,
    excludes: bool,
    max_size: Option<u64>,
    links: Links,
    atomic: bool,
}

impl Options {
    fn random(numbers: &mut Numbers) -> Options {
        let delete = numbers.below(10) < 7;
        Options {
            direction: if numbers.below(2) == 0 { Direction::Up } else { Direction::Down },
            delete,
            delete_excluded: delete && numbers.below(5) == 0,
            delete_max: match numbers.below(10) {
                0 => DeleteMax::Files(0),
                1 => DeleteMax::Files(2),
                _ => DeleteMax::Percent(100),
            },
            checksum: numbers.below(5) == 0,
            excludes: numbers.below(3) == 0,
            max_size: (numbers.below(6) == 0).then_some(5),
            links: if numbers.below(6) == 0 { Links::Skip } else { Links::Copy },
            atomic: numbers.below(4) == 0,
        }
    }

    fn of_client(&self, dry_run: bool) -> SyncOptions {
        let exclude = |pattern: &str| Rule::Exclude(pattern.to_owned());
        let rules = if self.excludes { vec![exclude("*.tmp"), exclude("cache/")] } else { Vec::new() };
        let mut filter = Filter::of_rules(&rules).unwrap();
        filter.max_size = self.max_size;
        SyncOptions {
            filter: Arc::new(filter),
            links: self.links,
            checksum: self.checksum,
            delete: self.delete,
            delete_excluded: self.delete_excluded,
            delete_max: self.delete_max,
            dry_run,
            atomic: self.atomic,
            special_modes: false,
            xattrs: false,
        }
    }

    /// Whether the rules leave this one name out, those above it aside.
    fn leaves_out(&self, path: &[Vec<u8>], node: &Node) -> bool {
        let name = path.last().unwrap();
        let by_name = self.excludes && (name.ends_with(b".tmp") || name == b"cache" && node.is_directory());
        let by_size =
            matches!((node, self.max_size), (Node::File { content, .. }, Some(max)) if content.len() as u64 > max);
        by_name || by_size
    }

    fn skips(&self, path: &[Vec<u8>], node: &Node) -> bool {
        matches!(node, Node::Link(target) if self.links == Links::Skip || check_link(path.len() - 1, target).is_err())
    }
}

/// What a run should come to.
struct Expected {
    tree: Tree,
    failed: BTreeSet<Vec<Vec<u8>>>,
}

/// The plain model: whole trees, no steps.
fn model(source: &Tree, there: &Tree, options: &Options) -> Expected {
    // What of the source counts: nothing below what is left out or skipped.
    let hides = |tree: &Tree, path: &[Vec<u8>], is_source: bool| {
        (1..=path.len()).any(|end| {
            let (path, node) = (&path[..end], &tree[&path[..end]]);
            options.leaves_out(path, node) && (is_source || !options.delete_excluded)
        })
    };
    let visible: Tree = source
        .iter()
        .filter(|(path, node)| !hides(source, path, true) && !options.skips(path, node))
        .map(|(path, node)| (path.clone(), node.clone()))
        .collect();
    let mut failed = BTreeSet::new();
    // What fails only after the removals, and so does not prevent them.
    let mut late = BTreeSet::new();
    let is_refused = |path: &[Vec<u8>]| {
        let path = RemotePath::from_components(path.iter().map(Vec::as_slice)).unwrap();
        options.direction == Direction::Up && NamePolicy::default().check(&path).is_err()
    };
    let hidden = |path: &[Vec<u8>]| {
        // What is in a directory that is left out is not looked at in the source.
        let is_left_out =
            |end: &usize| source.get(&path[..*end]).is_some_and(|node| options.leaves_out(&path[..*end], node));
        let last = (1..=path.len()).find(is_left_out).unwrap_or(path.len());
        (1..=path.len()).any(|end| {
            let path = &path[..end];
            if end > last && options.delete_excluded {
                return false;
            }
            let is_protected = source.get(path).is_some_and(|node| {
                let left_out = options.leaves_out(path, node);
                (left_out && !options.delete_excluded) || (!left_out && options.skips(path, node))
            });
            is_protected || (options.leaves_out(path, &there[path]) && !options.delete_excluded)
        })
    };
    // Where something of another kind is in the way, everything below is, too.
    let mut conflicts: BTreeSet<Vec<Vec<u8>>> = BTreeSet::new();
    for (path, node) in &visible {
        let below = conflicts.iter().any(|conflict| path.starts_with(conflict));
        if below {
            if is_refused(path) {
                late.insert(path.clone());
            }
            continue;
        }
        if there.get(path).is_some_and(|there| there.is_directory() != node.is_directory()) {
            conflicts.insert(path.clone());
            if !options.delete || hidden(path) {
                failed.insert(path.clone());
            }
        } else if is_refused(path) {
            // A directory that is the same already is not asked for.
            failed.insert(path.clone());
        }
    }
    // What is only there, or in the way; what is hidden stays, and the directories that it is in.
    let mut goes: BTreeSet<Vec<Vec<u8>>> = BTreeSet::new();
    for path in there.keys() {
        let in_conflict = conflicts.iter().any(|conflict| path.starts_with(conflict));
        if options.delete && !hidden(path) && (in_conflict || !visible.contains_key(path)) {
            goes.insert(path.clone());
        }
    }
    let stays: Vec<_> = there.keys().filter(|path| !goes.contains(*path)).cloned().collect();
    goes.retain(|path| !stays.iter().any(|other| other.starts_with(path)));
    let count = goes.iter().filter(|path| !there[*path].is_directory()).count() as u64;
    let files = visible.iter().filter(|(path, node)| {
        let is_below = conflicts.iter().any(|conflict| path.starts_with(conflict) && *path != conflict);
        !is_below && (!node.is_directory() || conflicts.contains(*path))
    });
    let has_files = files.count() > 0;
    let is_allowed = match options.delete_max {
        DeleteMax::Files(max) => count <= max,
        DeleteMax::Percent(_) => true,
    };
    let has_removals = options.delete && (!goes.is_empty() || !conflicts.is_empty());
    let may_remove = has_removals && failed.is_empty() && has_files && is_allowed;
    let mut tree = there.clone();
    if may_remove {
        goes.iter().for_each(|path| drop(tree.remove(path)));
        conflicts.retain(|path| tree.contains_key(path));
        failed.extend(conflicts.iter().cloned());
        failed.extend(late);
    }
    for (path, node) in &visible {
        let is_in_the_way = conflicts.iter().any(|conflict| path.starts_with(conflict));
        if is_in_the_way || is_refused(path) {
            continue;
        }
        let node = match node.clone() {
            Node::Directory { mode, mtime } => Node::Directory { mode: mode & 0o775, mtime },
            Node::File { content, mode, mtime } => {
                // Without hashes, the same size and time count as the same content.
                let content = match tree.get(path) {
                    Some(Node::File { content: old, mtime: when, mode: bits })
                        if !options.checksum
                            && old.len() == content.len()
                            && *bits == mode & 0o775
                            && is_same_time(*when, mtime) =>
                    {
                        old.clone()
                    }
                    _ => content,
                };
                Node::File { content, mode: mode & 0o775, mtime }
            }
            link @ Node::Link(_) => link,
        };
        tree.insert(path.clone(), node);
    }
    Expected { tree, failed }
}

fn is_same_time(left: (i64, i64), right: (i64, i64)) -> bool {
    let cut =
        |fine: i64, coarse: i64| [1, 100, 1_000, 1_000_000, 1_000_000_000].iter().any(|u| fine - fine % u == coarse);
    left.0 == right.0 && (cut(left.1, right.1) || cut(right.1, left.1))
}

/// What is compared of a result: of directories that the source does not have, the time is nobody's promise.
fn normal(tree: &Tree, source: &Tree) -> Tree {
    tree.iter()
        .map(|(path, node)| {
            let node = match node {
                Node::Directory { mode, .. } if !source.get(path).is_some_and(Node::is_directory) => {
                    Node::Directory { mode: *mode, mtime: (0, 0) }
                }
                // Times are as fine as the coarser side had them: what counted as the same was left.
                Node::Directory { mode, mtime } => Node::Directory { mode: *mode, mtime: (mtime.0, 0) },
                Node::File { content, mode, mtime } => {
                    Node::File { content: content.clone(), mode: *mode, mtime: (mtime.0, 0) }
                }
                link @ Node::Link(_) => link.clone(),
            };
            (path.clone(), node)
        })
        .collect()
}

/// What a run told: (what was done, name) for each thing.
#[derive(Default, PartialEq, Eq)]
struct Told {
    moved: BTreeSet<(u8, Vec<u8>)>,
    removed: BTreeSet<(u8, Vec<u8>)>,
    failed: BTreeSet<Vec<u8>>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs = |set: &BTreeSet<(u8, Vec<u8>)>| {
            set.iter().map(|(kind, name)| format!("{kind} {}", name.escape_ascii())).collect::<Vec<_>>()
        };
        let failed: Vec<_> = self.failed.iter().map(|name| name.escape_ascii().to_string()).collect();
        write!(f, "moved {:?}\nremoved {:?}\nfailed {failed:?}", pairs(&self.moved), pairs(&self.removed))
    }
}

impl Told {
    fn add(&mut self, event: Event) {
        match event {
            Event::Done { name, kind, outcome, .. } => {
                let kind = match kind {
                    ItemKind::File => 0,
                    ItemKind::Directory => 1,
                    ItemKind::Link => 2,
                };
                match outcome {
                    Outcome::Removed | Outcome::PlannedRemoval => self.removed.insert((kind, name)),
                    _ => self.moved.insert((kind, name)),
                };
            }
            Event::Failed { name, .. } => {
                self.failed.insert(name);
            }
            _ => {}
        }
    }
}

/// A server and a client of it in this process.
struct Bench {
    folder: tempfile::TempDir,
    client: Client,
    events: mpsc::Receiver<Event>,
}

impl Bench {
    async fn start(tasks: &mut tokio::task::JoinSet<()>, stop: &CancellationToken) -> Bench {
        // Nothing here is about the disk: in memory it is over sooner.
        let folder =
            if Path::new("/dev/shm").is_dir() { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() };
        let folder = folder.unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let server = Server::new(ServerOptions {
            store: Store::open_served(&root, StoreOptions::default()).unwrap(),
            tls: ServerTls::load(&sealift::tls::ServerOptions::in_folder(&server_certificates())).unwrap(),
            access: Access::same_for_all(Rights::ALL, None),
            crowd: CrowdLimits::default(),
            disk_threads: 4,
            listeners: vec![sealift::server::listen("127.0.0.1:0".parse().unwrap()).unwrap()],
            receipt_key: None,
            audit: None,
            invites: None,
            memory: 64 << 20,
            threads: 1,
            congestion: sealift::net::Congestion::default(),
            rate: None,
            rate_of_one: None,
        })
        .unwrap();
        let port = server.addresses().unwrap()[0].port();
        tasks.spawn(server.run(stop.clone(), stop.clone()));
        let (sender, events) = event::channel();
        let endpoint = Endpoint::parse(format!("localhost:{port}").as_bytes()).unwrap();
        let tls = ClientTls::load(&sealift::tls::ClientOptions::in_folder(&client_certificates())).unwrap();
        let client = Client::connect(ClientOptions::new(endpoint, tls), sender).await.unwrap();
        Bench { folder, client, events }
    }

    /// Runs to the end, or until so many things were told.
    async fn run(&mut self, case: u64, options: &Options, dry_run: bool, until: Option<u64>) -> Told {
        let plan = SyncPlan {
            endpoint: Endpoint::parse(b"localhost").unwrap(),
            direction: options.direction,
            local: self.folder.path().join(format!("local-{case}")),
            remote: RemotePath::parse(format!("case-{case}").as_bytes()).unwrap(),
        };
        let mut told = Told::default();
        let mut count = 0;
        let client = self.client.clone();
        let mut running = Box::pin(client.sync(plan, options.of_client(dry_run)));
        let result = loop {
            if until.is_some_and(|until| count >= until) {
                break Ok(());
            }
            tokio::select! {
                Some(event) = self.events.recv() => {
                    count += 1;
                    told.add(event);
                }
                result = &mut running => break result,
            }
        };
        drop(running);
        while let Ok(event) = self.events.try_recv() {
            told.add(event);
        }
        assert!(result.is_ok(), "case {case} {options:?} {result:?} {told:?}");
        told
    }
}

async fn case(bench: &mut Bench, case: u64, numbers: &mut Numbers) {
    let options = Options::random(numbers);
    let mut source = Tree::new();
    let size = numbers.below(14);
    grow(&mut source, numbers, size);
    let mut there = if numbers.below(4) == 0 { Tree::new() } else { source.clone() };
    change(&mut there, numbers);
    if numbers.below(6) == 0 {
        let size = numbers.below(8);
        grow(&mut source, numbers, size);
    }
    if options.direction == Direction::Up {
        // A server never came to have these from a client; what else it has of them is only removed.
        let is_refused = |path: &[Vec<u8>]| {
            NamePolicy::default().check(&RemotePath::from_components(path.iter().map(Vec::as_slice)).unwrap()).is_err()
        };
        there.retain(|path, _| !is_refused(path) || !source.contains_key(&path[..1]));
    }
    let (local, remote) =
        (bench.folder.path().join(format!("local-{case}")), bench.folder.path().join(format!("root/case-{case}")));
    let (from, to) = match options.direction {
        Direction::Up => (&local, &remote),
        Direction::Down => (&remote, &local),
    };
    write(from, &source);
    let starts_missing = there.is_empty();
    if !starts_missing {
        write(to, &there);
    }
    if numbers.below(12) == 0 {
        // Cut off somewhere; what was on its way may still arrive, and is waited for.
        let until = numbers.below(12);
        bench.run(case, &options, false, Some(until)).await;
        let look = || (read(to), fs::metadata(to).map(|top| (top.mtime(), top.mtime_nsec())).ok());
        let (mut last, mut same) = (look(), 0);
        while same < 4 {
            tokio::time::sleep(Duration::from_millis(25)).await;
            let now = look();
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        there = last.0;
        // Tasks that were cut off on other threads may have told more.
        while bench.events.try_recv().is_ok() {}
    }
    let shown = || format!("case {case} {options:?}\nsource {}\nthere {}", show(&source), show(&there));
    let expected = model(&source, &there, &options);
    let before = to.exists().then(|| (read(to), fs::metadata(to).unwrap().mtime()));
    let planned = bench.run(case, &options, true, None).await;
    assert_eq!(
        to.exists().then(|| (read(to), fs::metadata(to).unwrap().mtime())),
        before,
        "a dry run changes nothing: {}",
        shown()
    );
    assert_eq!(read(from), source, "{}", shown());
    let told = bench.run(case, &options, false, None).await;
    let result = read(to);
    if options.atomic && !told.failed.is_empty() {
        // All or nothing: what has failed keeps everything as it was.
        assert_eq!(to.exists().then(|| read(to)), before.map(|(tree, _)| tree), "{}\n{told:?}", shown());
        assert_eq!(planned, told, "a dry run tells what the run does: {}", shown());
        let again = bench.run(case, &options, false, None).await;
        assert_eq!(again.failed, told.failed, "{}", shown());
        clear(bench.folder.path(), &[&local, &remote]);
        return;
    }
    let (result, wanted) = (normal(&result, &source), normal(&expected.tree, &source));
    assert!(result == wanted, "{}\ngot {}\nexpected {}\ntold {told:?}", shown(), show(&result), show(&wanted));
    assert_eq!(read(from), source, "the source stays as it is: {}", shown());
    assert_eq!(planned, told, "a dry run tells what the run does: {}", shown());
    let failed: BTreeSet<Vec<u8>> = told.failed.clone();
    assert_eq!(
        failed.is_empty(),
        expected.failed.is_empty() && !is_removal_refused(&told, to),
        "{}\n{told:?}",
        shown()
    );
    // Once more: nothing is left to do but what failed.
    let again = bench.run(case, &options, false, None).await;
    // What waits for a removal is told as failed when removals are reached, and a failure that is known by then, which
    // may be one that only the first run's removals made room for, keeps them from being begun.
    assert!(again.failed.is_subset(&told.failed), "{:?} and then {:?}\n{}", told.failed, again.failed, shown());
    assert!(told.failed.is_empty() || !again.failed.is_empty(), "{}", shown());
    assert!(again.removed.is_empty(), "{}\n{again:?}", shown());
    let moved: Vec<_> = again.moved.iter().filter(|(kind, name)| *kind == 0 && !told.failed.contains(name)).collect();
    assert!(moved.is_empty(), "moved again: {moved:?}\n{}", shown());
    // The next case needs the room.
    clear(bench.folder.path(), &[&local, &remote]);
}

/// Removes both sides, and what runs that failed or were cut have left: an owner may have few unfinished trees.
fn clear(folder: &Path, sides: &[&Path]) {
    for side in sides.iter().filter(|side| side.exists()) {
        fs::remove_dir_all(side).unwrap();
    }
    for entry in fs::read_dir(folder.join("root/.sealift/trees")).unwrap() {
        // The server may be at it as well.
        let _ = fs::remove_dir_all(entry.unwrap().path());
    }
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().as_bytes().starts_with(b".sealift-") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

/// A refused removal is told under the destination's own name.
fn is_removal_refused(told: &Told, to: &Path) -> bool {
    let name = to.file_name().unwrap().as_bytes();
    told.failed.iter().any(|failed| failed == name || failed == to.as_os_str().as_bytes())
}

fn show(tree: &Tree) -> String {
    let lines: Vec<String> = tree
        .iter()
        .map(|(path, node)| {
            let path: Vec<_> = path.iter().map(|name| String::from_utf8_lossy(name)).collect();
            let node = match node {
                Node::Directory { mode, mtime } => format!("/ {mode:o} {mtime:?}"),
                Node::File { content, mode, mtime } => {
                    format!(" {}:{:?} {mode:o} {mtime:?}", content.len(), content.first())
                }
                Node::Link(target) => format!(" -> {}", String::from_utf8_lossy(target)),
            };
            format!("\n  {:?}{node}", path.join("/"))
        })
        .collect();
    lines.concat()
}

fn run_cases(test: &str) {
    let cases = std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500_u64);
    let mut numbers = Numbers::new(test);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (stop, mut tasks) = (CancellationToken::new(), tokio::task::JoinSet::new());
        let mut bench = Bench::start(&mut tasks, &stop).await;
        for number in 0..cases {
            case(&mut bench, number, &mut numbers).await;
        }
        bench.client.close().await;
        stop.cancel();
        tasks.join_all().await;
    });
}

// Two halves, so that they run side by side.

#[test]
fn random_trees_become_the_same() {
    run_cases("random_trees_become_the_same");
}

#[test]
fn random_trees_become_the_same_once_more() {
    run_cases("random_trees_become_the_same_once_more");
}
