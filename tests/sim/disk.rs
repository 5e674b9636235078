//! A disk whose crashes lose what was not synced, below the system calls of the storage layer.
//!
//! The calls are real, on a real directory. Each that changes something is counted here first, and may fail, do less
//! than it was asked for, or be the last one of its process; then it is noted what a power cut could leave: of a
//! file, what it was at its last sync, or anything between that and what it is now, page by page; of a name, what it
//! stood for when its directory was last synced, or any that it has had since. That is less than file systems give,
//! which keep an order between names.
//!
//! There are two machines, the server's and a client's, each with a disk and with work that waits for a thread of it.
//!
//! Nothing happens here on a thread that has not switched it on.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{AtFlags, XattrFlags};
use rustix::io::{Errno, Result};

const RECORD_NAME: &str = "user.sealift";
const PAGE: usize = 4096;

thread_local! {
    static DISKS: RefCell<[Option<Disk>; 2]> = const { RefCell::new([None, None]) };
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
    static SIDE: Cell<Side> = const { Cell::new(Side::Server) };
    static QUEUE: RefCell<VecDeque<(Side, Work)>> = const { RefCell::new(VecDeque::new()) };
}

/// A defect that is planted to see whether it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// What came late may be committed.
    LateMayCommit,
    /// The root is not compared.
    NoRootCheck,
    /// A newer attempt does not shut the gate of the older.
    OpenGate,
    /// What is held is believed without hashing.
    HeldBelieved,
    /// A group that a lane brought counts though it is not written.
    LaneUnwritten,
    /// A client believes what an earlier run of it has left without hashing it.
    KeptBelieved,
    /// A group of a download counts though it is not written.
    DownloadUnwritten,
}

/// Whether this defect is planted.
pub(crate) fn planted(defect: Planted) -> bool {
    PLANTED.get() == Some(defect)
}

/// Plants a defect, or takes it out.
pub(crate) fn plant(defect: Option<Planted>) {
    PLANTED.set(defect);
}

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// What a disk thread is to do.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Does something on this machine.
pub(crate) fn on<T>(side: Side, act: impl FnOnce() -> T) -> T {
    /// Also when it panics.
    struct Back(Side);
    impl Drop for Back {
        fn drop(&mut self) {
            SIDE.set(self.0);
        }
    }
    let _back = Back(SIDE.replace(side));
    act()
}

/// Queues work of this machine that nobody waits for.
pub(crate) fn start_alone(work: impl FnOnce() + Send + 'static) {
    QUEUE.with_borrow_mut(|queue| queue.push_back((SIDE.get(), Box::new(work))));
}

/// Queues work of this machine. Nothing comes of it once the machine has died.
pub(crate) fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send + 'static {
    let (done, result) = tokio::sync::oneshot::channel();
    // Nobody may wait for it any more.
    start_alone(move || drop(done.send(work())));
    async move {
        match result.await {
            Ok(result) => result,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Works with what is queued.
pub(crate) fn queue<T>(act: impl FnOnce(&mut VecDeque<(Side, Work)>) -> T) -> T {
    QUEUE.with_borrow_mut(act)
}

/// Drops the queued work of a machine, and what it would queue in its turn.
pub(crate) fn drop_work(side: Side) {
    loop {
        let mine = queue(|queue| {
            let (mine, others) = std::mem::take(queue).into_iter().partition(|(of, _)| *of == side);
            *queue = others;
            mine
        });
        let mine: VecDeque<(Side, Work)> = mine;
        if mine.is_empty() {
            return;
        }
        on(side, || drop(mine));
    }
}

/// Pseudo-random numbers: all chance of a run comes from one of these.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..4).for_each(|_| {
            random.below(2);
        });
        random
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }

    /// Whether something of so many percent happens.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A disk that lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lie {
    #[default]
    None,
    /// Says that directories are synced.
    Directories,
    /// Says that files are synced that were written through it.
    Files,
    /// Says that files are synced that were there before.
    Others,
}

/// What a file was when it was last synced.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) bytes: Rc<Vec<u8>>,
    mode: u32,
    mtime: (i64, i64),
    record: Option<Vec<u8>>,
}

struct File {
    handle: OwnedFd,
    durable: Option<Image>,
    is_dirty: bool,
    /// It was put there by somebody else.
    is_foreign: bool,
}

#[derive(Default)]
struct Names {
    durable: BTreeMap<Vec<u8>, u64>,
    /// Since the last sync, in order; none for a name that went.
    pending: Vec<(Vec<u8>, Option<u64>)>,
}

/// What a name may stand for after a power cut.
pub(crate) enum Survivor {
    Absent,
    /// A file that was never synced, or not since it was changed.
    Unsynced,
    /// Its content, and what is recorded with it.
    Whole(Rc<Vec<u8>>, Option<Vec<u8>>),
}

pub(crate) struct Disk {
    pub(crate) random: Random,
    pub(crate) lie: Lie,
    /// Percent of writes that are short.
    pub(crate) short: usize,
    /// Percent of checkpoints and of records that are due.
    pub(crate) due: (usize, usize),
    /// Since 1970.
    pub(crate) now: Duration,
    calls: u64,
    fail: Option<(u64, Errno)>,
    die: Option<u64>,
    is_dead: bool,
    names: u64,
    root: u64,
    files: HashMap<u64, File>,
    directories: HashMap<u64, Names>,
}

/// Switches the disk of this machine on.
pub(crate) fn begin(random: Random, lie: Lie) {
    let disk = Disk {
        random,
        lie,
        short: 0,
        due: (0, 0),
        now: Duration::from_secs(1_800_000_000),
        calls: 0,
        fail: None,
        die: None,
        is_dead: false,
        names: 0,
        root: 0,
        files: HashMap::new(),
        directories: HashMap::new(),
    };
    DISKS.with_borrow_mut(|disks| disks[SIDE.get() as usize] = Some(disk));
}

/// Switches both off.
pub(crate) fn end() {
    drop(DISKS.take());
}

pub(crate) fn is_on() -> bool {
    DISKS.with_borrow(|disks| disks.iter().any(Option::is_some))
}

/// Works with the disk of this machine.
pub(crate) fn with<T>(act: impl FnOnce(&mut Disk) -> T) -> T {
    with_borrow_mut(|disk| act(disk.as_mut().expect("the disk is on")))
}

fn with_borrow_mut<T>(act: impl FnOnce(&mut Option<Disk>) -> T) -> T {
    DISKS.with_borrow_mut(|disks| act(&mut disks[SIDE.get() as usize]))
}

fn if_on(act: impl FnOnce(&mut Disk)) {
    with_borrow_mut(|disk| {
        if let Some(disk) = disk {
            act(disk);
        }
    });
}

fn number(file: impl AsFd) -> u64 {
    rustix::fs::fstat(file).map_or(0, |stat| stat.st_ino)
}

fn number_at(directory: impl AsFd, name: &[u8]) -> u64 {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| stat.st_ino)
}

// ---- what the system calls tell ----------------------------------------------------------------------------

/// A call that changes something begins.
pub(crate) fn before() -> Result<()> {
    with_borrow_mut(|disk| disk.as_mut().map_or(Ok(()), Disk::step))
}

/// How much of a write is done.
pub(crate) fn write_len(len: usize) -> usize {
    with_borrow_mut(|disk| match disk {
        Some(disk) if len > 1 => {
            let is_short = disk.random.chance(disk.short);
            if is_short { 1 + disk.random.below(len - 1) } else { len }
        }
        _ => len,
    })
}

/// Names of staging files that are the same each time.
pub(crate) fn digits() -> Option<String> {
    with_borrow_mut(|disk| {
        disk.as_mut().map(|disk| {
            disk.names += 1;
            format!("{:032x}", disk.names)
        })
    })
}

/// Seconds since 1970, by the clock of this machine.
pub(crate) fn now() -> Option<u64> {
    with_borrow_mut(|disk| disk.as_ref().map(|disk| disk.now.as_secs()))
}

/// A random number where all chance comes from a seed.
pub(crate) fn chance() -> Option<u32> {
    with_borrow_mut(|disk| disk.as_mut().map(|disk| disk.random.below(u32::MAX as usize) as u32))
}

/// Whether a checkpoint (true) or a record is due.
pub(crate) fn due() -> Option<Option<bool>> {
    with_borrow_mut(|disk| {
        disk.as_mut().map(|disk| {
            let (checkpoint, record) = disk.due;
            if disk.random.chance(checkpoint) {
                return Some(true);
            }
            disk.random.chance(record).then_some(false)
        })
    })
}

/// A file was opened that may be new.
pub(crate) fn opened(directory: impl AsFd, name: &[u8], file: &OwnedFd, is_truncated: bool) {
    if_on(|disk| {
        let file_number = number(file);
        let is_new = !disk.files.contains_key(&file_number);
        // Opened anew: what dies with its process is its lock too.
        if is_new && let Ok(handle) = fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())) {
            let handle = OwnedFd::from(handle);
            disk.files.insert(file_number, File { handle, durable: None, is_dirty: true, is_foreign: false });
        }
        if let Some(file) = disk.files.get_mut(&file_number) {
            file.is_dirty |= is_truncated;
        }
        if is_new && name != b"." {
            disk.name(number(directory), name, Some(file_number));
        }
    });
}

pub(crate) fn made_directory(parent: impl AsFd, name: &[u8]) {
    if_on(|disk| {
        let made = number_at(&parent, name);
        disk.directories.entry(made).or_default();
        disk.name(number(parent), name, Some(made));
    });
}

/// A name stands for this now, as it did before for what had it.
pub(crate) fn renamed(from: impl AsFd, old: &[u8], to: impl AsFd, new: &[u8]) {
    if_on(|disk| {
        let moved = number_at(&to, new);
        disk.name(number(to), new, Some(moved));
        disk.name(number(from), old, None);
    });
}

pub(crate) fn linked(file: impl AsFd, to: impl AsFd, name: &[u8]) {
    if_on(|disk| {
        let linked = number(file);
        disk.name(number(to), name, Some(linked));
    });
}

pub(crate) fn unlinked(directory: impl AsFd, name: &[u8]) {
    if_on(|disk| disk.name(number(directory), name, None));
}

/// Content or metadata are others now.
pub(crate) fn changed(file: impl AsFd) {
    if_on(|disk| {
        if let Some(file) = disk.files.get_mut(&number(file)) {
            file.is_dirty = true;
        }
    });
}

pub(crate) fn synced(file: impl AsFd, is_content: bool) {
    if_on(|disk| {
        let (lie, synced) = (disk.lie, number(file));
        if let Some(names) = disk.directories.get_mut(&synced) {
            if lie != Lie::Directories {
                names.settle();
            }
        } else if let Some(file) = disk.files.get_mut(&synced) {
            let is_lie = match lie {
                Lie::Files => !file.is_foreign && !is_content,
                Lie::Others => file.is_foreign,
                Lie::Directories | Lie::None => false,
            };
            if !is_lie && file.is_dirty {
                file.durable = Some(Image::of(&file.handle));
                file.is_dirty = false;
            }
        }
    });
}

// ---- what the simulation does --------------------------------------------------------------------------------

impl Names {
    fn settle(&mut self) {
        for (name, now) in self.pending.drain(..) {
            match now {
                Some(number) => drop(self.durable.insert(name, number)),
                None => drop(self.durable.remove(&name)),
            }
        }
    }

    /// What a name may stand for.
    fn of(&self, name: &[u8]) -> Vec<Option<u64>> {
        let since = self.pending.iter().filter(|(other, _)| other == name).map(|(_, now)| *now);
        let mut all: Vec<Option<u64>> = std::iter::once(self.durable.get(name).copied()).chain(since).collect();
        all.dedup();
        all
    }

    fn all(&self) -> Vec<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = self.durable.keys().cloned().collect();
        names.extend(self.pending.iter().map(|(name, _)| name.clone()));
        names.sort();
        names.dedup();
        names
    }
}

impl Image {
    fn of(file: &OwnedFd) -> Image {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let bytes = fs::read(&path).unwrap_or_default();
        let stat = fs::metadata(&path).expect("an open file has a status");
        let mut record = vec![0; 256];
        let len = rustix::fs::fgetxattr(file, RECORD_NAME, &mut record[..]).ok();
        let record = len.map(|len| record[..len].to_vec());
        Image { bytes: Rc::new(bytes), mode: stat.mode() & 0o7777, mtime: (stat.mtime(), stat.mtime_nsec()), record }
    }

    fn write(&self, path: &Path) {
        fs::write(path, &*self.bytes).unwrap();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(self.mode)).unwrap();
        if let Some(record) = &self.record {
            rustix::fs::fsetxattr(&file, RECORD_NAME, record, XattrFlags::empty()).unwrap();
        }
        let time = rustix::fs::Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&file, &times).unwrap();
    }
}

impl File {
    /// What is left of it.
    fn survive(&self, random: &mut Random) -> Image {
        let now = Image::of(&self.handle);
        let Some(before) = &self.durable else {
            let mut bytes = (*now.bytes).clone();
            match random.below(3) {
                0 => bytes.clear(),
                1 => bytes.chunks_mut(PAGE).filter(|_| random.chance(50)).for_each(|page| page.fill(0)),
                _ => {}
            }
            return Image { bytes: Rc::new(bytes), ..now };
        };
        if !self.is_dirty || random.chance(30) {
            return before.clone();
        }
        let mut bytes = (*now.bytes).clone();
        for (index, page) in bytes.chunks_mut(PAGE).enumerate() {
            if random.chance(40) {
                let old = before.bytes.get(index * PAGE..).unwrap_or_default();
                let len = old.len().min(page.len());
                page[..len].copy_from_slice(&old[..len]);
                page[len..].fill(0);
            }
        }
        let metadata = if random.chance(50) { before } else { &now };
        Image { bytes: Rc::new(bytes), ..metadata.clone() }
    }
}

impl Disk {
    fn step(&mut self) -> Result<()> {
        if self.is_dead {
            return Err(Errno::IO);
        }
        self.calls += 1;
        if self.die.is_some_and(|at| self.calls >= at) {
            self.is_dead = true;
            return Err(Errno::IO);
        }
        match self.fail {
            Some((at, errno)) if self.calls >= at => {
                self.fail = None;
                Err(errno)
            }
            _ => Ok(()),
        }
    }

    fn name(&mut self, directory: u64, name: &[u8], now: Option<u64>) {
        self.directories.entry(directory).or_default().pending.push((name.to_vec(), now));
    }

    /// The process dies at the `count`-th call from now on.
    pub(crate) fn die_in(&mut self, count: usize) {
        self.die = Some(self.calls + 1 + count as u64);
    }

    /// The `count`-th call from now on fails.
    pub(crate) fn fail_in(&mut self, count: usize, errno: Errno) {
        self.fail = Some((self.calls + 1 + count as u64, errno));
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// The process is dead: nothing that is left of it changes anything.
    pub(crate) fn kill(&mut self) {
        self.is_dead = true;
    }

    /// Another process begins.
    pub(crate) fn revive(&mut self) {
        (self.is_dead, self.die, self.fail) = (false, None, None);
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// Takes what is there as durable.
    pub(crate) fn adopt(&mut self, root: &Path) {
        self.files.clear();
        self.directories.clear();
        self.root = self.adopt_directory(root);
    }

    fn adopt_directory(&mut self, path: &Path) -> u64 {
        let mut names = Names::default();
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().as_bytes().to_vec();
            let number = if path.is_dir() { self.adopt_directory(&path) } else { self.adopt_file(&path, true) };
            names.durable.insert(name, number);
        }
        let number = fs::metadata(path).unwrap().ino();
        self.directories.insert(number, names);
        number
    }

    fn adopt_file(&mut self, path: &Path, is_durable: bool) -> u64 {
        let handle = OwnedFd::from(fs::File::open(path).unwrap());
        let number = number(&handle);
        let durable = is_durable.then(|| Image::of(&handle));
        self.files.insert(number, File { handle, durable, is_dirty: !is_durable, is_foreign: !is_durable });
        number
    }

    /// Somebody else has put a file into the root, and synced nothing.
    pub(crate) fn put_by_hand(&mut self, root: &Path, name: &str, bytes: &[u8]) {
        let hidden = root.join(".by-hand");
        fs::write(&hidden, bytes).unwrap();
        fs::rename(&hidden, root.join(name)).unwrap();
        let number = self.adopt_file(&root.join(name), false);
        self.name(self.root, name.as_bytes(), Some(number));
    }

    /// What may be left under a name if the power goes now.
    pub(crate) fn survivors(&self, path: &str) -> Vec<Survivor> {
        let parts: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        let mut found = Vec::new();
        self.survivors_in(self.root, &parts, &mut found);
        found
    }

    fn survivors_in(&self, directory: u64, path: &[&[u8]], found: &mut Vec<Survivor>) {
        let Some(names) = self.directories.get(&directory) else { return found.push(Survivor::Absent) };
        for now in names.of(path[0]) {
            match now {
                None => found.push(Survivor::Absent),
                Some(number) if path.len() > 1 => self.survivors_in(number, &path[1..], found),
                Some(number) => found.push(match self.files.get(&number) {
                    Some(File { durable: Some(image), is_dirty: false, .. }) => {
                        Survivor::Whole(Rc::clone(&image.bytes), image.record.clone())
                    }
                    _ => Survivor::Unsynced,
                }),
            }
        }
    }

    /// The power goes, and comes back: puts what is left in the place of the root.
    pub(crate) fn cut_power(&mut self, root: &Path) {
        let left = root.with_extension("left");
        fs::create_dir(&left).unwrap();
        let mut random = self.random.clone();
        self.leave(self.root, &left, &mut random);
        self.random = random;
        fs::remove_dir_all(root).unwrap();
        fs::rename(&left, root).unwrap();
        self.adopt(root);
    }

    fn leave(&self, directory: u64, path: &Path, random: &mut Random) {
        let Some(names) = self.directories.get(&directory) else { return };
        for name in names.all() {
            let choices = names.of(&name);
            let Some(number) = choices[random.below(choices.len())] else { continue };
            let path = path.join(std::ffi::OsStr::from_bytes(&name));
            if let Some(file) = self.files.get(&number) {
                file.survive(random).write(&path);
            } else if self.directories.contains_key(&number) {
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
                self.leave(number, &path, random);
            }
        }
    }
}
