//! A deterministic simulation of a server and its clients: one seed, one run.
//!
//! What runs is real: `Flow` with its lanes, `Groups`, `Holds`, `Outcomes`, `Newest`, the offers and the commits of the
//! server, the storage layer down to its system calls, and the `Sender` of the clients. Simulated are the network
//! (frames in queues, which are delivered late, cut off, or go on to arrive after their client has given up), the
//! disk below the system calls (`disk.rs`), the order of everything, and the people: clients that upload versions of
//! files under the same names, give up, come again, or lie about a root.
//!
//! The oracle knows what every client sent, when it gave that up, and what it was told. After each step it looks at
//! everything that could be left under a name if the power went now:
//! - a name never stands for anything but the whole content of one version, and never for one that is not synced;
//! - what was told as stored is there, or something that was not given up before that was begun;
//! - everything comes to an end once the faults have.
//!
//! `SIM_SEEDS=N` runs other numbers of seeds than the ordinary, `SIM_SEED=N` the one of this number, with its story.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, Waker};

use rustix::io::Errno;

use super::commit::Opened;
use super::crowd::{Crowd, CrowdLimits};
use super::flow::{Flow, Job, drop_elsewhere};
use super::quota::Seat;
use super::session::Opened as OpenSession;
use super::share::Shares;
use super::shared::{Rules, Shared, Who};
use crate::access::{Access, Principal};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::{GroupHash, GroupHasher, GroupValue, Root, group_len, group_offset};
use crate::limits::{DATA_LEN_MAX, GROUP_LEN, UNASKED_FILE_MAX};
use crate::net::{Congestion, Handler as _};
use crate::path::RemotePath;
use crate::protocol::{Bytes16, Finish, Holding, IfExists, Put, PutAnswer, Rights, Stored};
use crate::storage::simulated::{self as disk, Lie, Random, Survivor};
use crate::storage::{Store, StoreOptions};
use crate::tls::{self, ServerTls};
use crate::transfer::{Decision, Sender, Taken};

/// Seeds of an ordinary run, over all tests of this file.
const SEEDS: u64 = 10_000;
const NAMES: [&str; 2] = ["x", "d/y"];
/// Steps with faults, and without any at the end.
const STEPS: usize = 110;
const CALM_STEPS: usize = 4000;

// ---- what is planted to see whether it is found ------------------------------------------------------------------

/// A defect of the server.
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
}

thread_local! {
    static PLANTED: std::cell::Cell<Option<Planted>> = const { std::cell::Cell::new(None) };
    static QUEUE: std::cell::RefCell<VecDeque<Work>> = const { std::cell::RefCell::new(VecDeque::new()) };
}

pub(crate) fn planted(defect: Planted) -> bool {
    PLANTED.get() == Some(defect)
}

// ---- the disk threads ------------------------------------------------------------------------------------------

type Work = Box<dyn FnOnce() + Send>;

/// What the jobs of one connection have found.
#[derive(Clone, Default)]
pub(super) struct Came(Arc<Mutex<VecDeque<Job>>>);

impl Came {
    pub(super) fn pop(&self) -> Option<Job> {
        self.0.lock().unwrap().pop_front()
    }
}

pub(super) fn is_on() -> bool {
    disk::is_on()
}

/// Queues a job of a connection.
pub(super) fn start(came: &Came, job: impl FnOnce() -> Job + Send + 'static) {
    let came = came.clone();
    start_alone(move || {
        let done = job();
        came.0.lock().unwrap().push_back(done);
    });
}

/// Queues work that nobody waits for.
pub(super) fn start_alone(work: impl FnOnce() + Send + 'static) {
    QUEUE.with_borrow_mut(|queue| queue.push_back(Box::new(work)));
}

// ---- what is uploaded ------------------------------------------------------------------------------------------

struct Content {
    bytes: Arc<Vec<u8>>,
    root: Root,
    hashes: Vec<GroupHash>,
}

/// Every version that there is, the small ones first.
static CONTENTS: LazyLock<Vec<Content>> = LazyLock::new(|| {
    let of = |bytes: Vec<u8>| {
        let groups = bytes.chunks(GROUP_LEN).enumerate();
        let hashes = groups.map(|(index, group)| GroupHash::of(index as u64, group)).collect();
        Content { root: Root::of(&bytes), hashes, bytes: Arc::new(bytes) }
    };
    let filled =
        |number: usize, len: usize| (0..len).map(|at| (at / 1000 * 7 + at + number * 31) as u8).collect::<Vec<u8>>();
    let small = (0..SMALL).map(|number| of(filled(number, 10 + 700 * number)));
    let asked = (0..ASKED).map(|number| of(filled(number, 300_000)));
    // Versions of one file that differ in one group each, in two sizes.
    let large = (0..LARGE).map(|number| {
        let mut bytes = filled(0, if number % 2 == 0 { GROUP_LEN + 70_000 } else { 2 * GROUP_LEN + 5_000 });
        let at = number * 300_000 % bytes.len();
        bytes[at] ^= 1 + number as u8;
        of(bytes)
    });
    small.chain(asked).chain(large).collect()
});
const SMALL: usize = 8;
const ASKED: usize = 3;
const LARGE: usize = 6;

static TLS: LazyLock<ServerTls> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let request = tls::folder::Request { directory: folder.path().join("certs"), ..tls::folder::Request::default() };
    tls::folder::make(&request, time::OffsetDateTime::now_utc()).unwrap();
    let mut options = tls::ServerOptions::in_folder(&request.directory);
    options.allow_anonymous = true;
    ServerTls::load(&options).unwrap()
});

// ---- the network -----------------------------------------------------------------------------------------------

enum Up {
    Put(u32, Box<Put>),
    /// Transfer, which content, where it begins, how much.
    Data(u32, usize, u64, usize),
    Finish(u32, Finish),
    /// The end of the stream.
    End,
}

enum Down {
    Answer(u32, PutAnswer),
    Values(u32, u64, Vec<GroupValue>),
    Stored(u32, Stored),
    Failed(u32, ErrorKind),
    Written(u32, Vec<u64>),
}

/// One connection, with what is on its way.
struct Link {
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    /// Whether its client still listens.
    is_heard: bool,
    end: Option<End>,
    next_transfer: u32,
    lanes: Vec<usize>,
}

/// The server's end of a connection.
struct End {
    flow: Flow,
    /// Of a first connection.
    session: Option<OpenSession>,
}

// ---- the clients -----------------------------------------------------------------------------------------------

/// One version that a client wants to have stored under one name.
struct Try {
    owner: usize,
    name: usize,
    content: usize,
    begun: usize,
    /// When its client was told, or gave it up; none while it works on it.
    ended: Option<usize>,
    is_told: bool,
}

/// A client's work at one name.
struct Client {
    owner: usize,
    name: usize,
    /// Which of the tries it works on.
    current: Option<usize>,
    id: Bytes16,
    no_base: bool,
    link: Option<usize>,
    state: State,
}

enum State {
    Idle,
    /// Sent whole; or described.
    Waiting(u32),
    Sending(Box<Sending>),
    /// All is sent.
    Finished(u32),
}

struct Sending {
    transfer: u32,
    sender: Sender,
    /// Groups on lanes that are not told as written: link and group.
    on_lanes: Vec<(usize, u64)>,
}

struct World {
    random: Random,
    root: PathBuf,
    shared: Option<Arc<Shared>>,
    links: Vec<Link>,
    clients: Vec<Client>,
    tries: Vec<Try>,
    /// Files that somebody else put there, by name and content.
    foreign: Vec<(usize, usize)>,
    /// Bytes that were seen on the disk, and which content they are.
    seen: Vec<(Rc<Vec<u8>>, Option<usize>)>,
    step: usize,
    next_connection: u64,
    next_id: u64,
    story: String,
    is_told: bool,
    is_calm: bool,
    /// Whether files of more than one group are among what is uploaded: such a run takes longer.
    has_large: bool,
}

impl World {
    fn new(seed: u64, lie: Lie, root: &Path) -> World {
        let mut random = Random::new(seed);
        disk::begin(Random::new(seed ^ 0x5eed), lie);
        disk::with(|disk| {
            disk.short = [0, 0, 20][random.below(3)];
            disk.due = [(0, 0), (10, 30), (0, 60)][random.below(3)];
        });
        fs::create_dir(root).unwrap();
        let clients = 1 + random.below(3);
        let is_one_owner = random.chance(70);
        let client = |index: usize, random: &mut Random| Client {
            owner: if is_one_owner { 0 } else { index },
            name: if random.chance(75) { 0 } else { 1 },
            current: None,
            id: Bytes16([0; 16]),
            no_base: false,
            link: None,
            state: State::Idle,
        };
        let clients = (0..clients).map(|index| client(index, &mut random)).collect();
        let mut world = World {
            random,
            root: root.to_path_buf(),
            shared: None,
            links: Vec::new(),
            clients,
            tries: Vec::new(),
            foreign: Vec::new(),
            seen: Vec::new(),
            step: 0,
            next_connection: 1,
            next_id: 1,
            story: String::new(),
            is_told: std::env::var_os("SIM_SEED").is_some(),
            is_calm: false,
            has_large: seed % 10 < 2,
        };
        world.start_server();
        disk::with(|disk| disk.adopt(root));
        if world.random.chance(15) {
            let content = world.random.below(SMALL);
            disk::with(|disk| disk.put_by_hand(root, NAMES[0], &CONTENTS[content].bytes));
            world.foreign.push((0, content));
        }
        world
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.is_told {
            let what = what();
            writeln!(self.story, "{:5} {what}", self.step).unwrap();
        }
    }

    // ---- the server ------------------------------------------------------------------------------------------

    fn start_server(&mut self) {
        disk::with(disk::Disk::revive);
        let options = StoreOptions { direct: false, ..StoreOptions::default() };
        let store = Store::open_served(&self.root, options).unwrap();
        let access = Access::same_for_all(Rights::ALL, Some(Rights::ALL));
        let rules = Rules { tls: TLS.clone(), access };
        let shares = Shares::new(256 << 20, None, None);
        let crowd = Crowd::new(CrowdLimits::default());
        self.shared = Some(Arc::new(Shared::new(store, rules, shares, Congestion::default(), None, None, crowd)));
        self.tell(|| "the server starts".to_owned());
    }

    /// The server's process ends, and perhaps the power.
    fn stop_server(&mut self, is_power: bool) {
        self.tell(|| format!("the server dies, power cut: {is_power}"));
        disk::with(disk::Disk::kill);
        for link in &mut self.links {
            link.end = None;
            link.up.clear();
        }
        // Queued work dies with its process, and so does what it would queue in its turn.
        loop {
            let work = QUEUE.with_borrow_mut(std::mem::take);
            if work.is_empty() {
                break;
            }
            drop(work);
        }
        self.shared = None;
        if is_power {
            let root = self.root.clone();
            disk::with(|disk| disk.cut_power(&root));
        }
        self.look();
    }

    fn connect(&mut self, first: Option<usize>) -> Option<usize> {
        let shared = Arc::clone(self.shared.as_ref()?);
        let (principal, number) = (Principal::Anonymous, self.next_connection);
        self.next_connection += 1;
        let who = Arc::new(Who::new(principal.clone(), Vec::new(), &shared.shares, number));
        let end = match first {
            None => {
                let session = shared.sessions.open(&principal).ok()?;
                let flow = Flow::new(Arc::clone(&shared), who, Arc::clone(&session.session), number, false);
                End { flow, session: Some(session) }
            }
            Some(first) => {
                let token = self.links[first].end.as_ref()?.session.as_ref()?.token;
                let session = shared.sessions.join(&token, &principal).ok()?;
                End { flow: Flow::new(Arc::clone(&shared), who, session, number, true), session: None }
            }
        };
        self.links.push(Link {
            up: VecDeque::new(),
            down: VecDeque::new(),
            is_heard: true,
            end: Some(end),
            next_transfer: 1,
            lanes: Vec::new(),
        });
        Some(self.links.len() - 1)
    }

    /// The server finds that a connection has ended.
    fn end_link(&mut self, link: usize) {
        self.links[link].up.clear();
        let Some(End { flow, session }) = self.links[link].end.take() else { return };
        let lanes = if session.is_some() { self.links[link].lanes.clone() } else { Vec::new() };
        drop(session);
        if let Some(shared) = self.shared.clone() {
            drop_elsewhere(&shared, flow);
        }
        lanes.into_iter().for_each(|lane| self.end_link(lane));
    }

    /// The next frame of a connection arrives at the server.
    fn deliver(&mut self, link: usize) {
        let Some(frame) = self.links[link].up.pop_front() else { return };
        let cx = &mut Context::from_waker(Waker::noop());
        let Some(End { flow, .. }) = &mut self.links[link].end else { return };
        let taken = match frame {
            Up::Put(transfer, put) => {
                flow.session.begun(transfer);
                flow.put(transfer, *put, Seat::default())
            }
            Up::Finish(transfer, finish) => flow.finish(transfer, finish),
            Up::End => {
                self.end_link(link);
                return;
            }
            Up::Data(transfer, content, mut offset, mut rest) => loop {
                if rest == 0 {
                    break Ok(());
                }
                match flow.poll_space(cx, transfer, offset, rest) {
                    Poll::Pending => {
                        self.links[link].up.push_front(Up::Data(transfer, content, offset, rest));
                        break Ok(());
                    }
                    Poll::Ready(Err(error)) => break Err(error),
                    Poll::Ready(Ok(space)) => {
                        let at = offset as usize;
                        let count = if space.is_empty() { rest.min(16 << 10) } else { space.len().min(rest) };
                        if !space.is_empty() {
                            space[..count].copy_from_slice(&CONTENTS[content].bytes[at..at + count]);
                        }
                        if let Err(error) = flow.filled(transfer, offset, count) {
                            break Err(error);
                        }
                        (offset, rest) = (offset + count as u64, rest - count);
                    }
                }
            },
        };
        if let Err(error) = taken {
            panic!("the server found a breach: {}", error.chain());
        }
        self.answer();
    }

    /// Everything that jobs have found goes where it belongs.
    fn answer(&mut self) {
        loop {
            let mut is_idle = true;
            for link in 0..self.links.len() {
                while let Some(job) = self.links[link].end.as_mut().and_then(|end| end.flow.simulated_job()) {
                    is_idle = false;
                    self.job(link, job);
                }
                let Some(End { flow, .. }) = &mut self.links[link].end else { continue };
                let mut untold = flow.take_untold();
                untold.sort_unstable();
                for (transfer, group) in untold {
                    self.links[link].down.push_back(Down::Written(transfer, vec![group]));
                }
                let Some(End { flow, .. }) = &mut self.links[link].end else { continue };
                if flow.has_hashes() {
                    is_idle = false;
                    flow.hash_more();
                }
                self.news(link);
            }
            if is_idle {
                return;
            }
        }
    }

    /// What lanes have found, as their first connection does it.
    fn news(&mut self, link: usize) {
        let Some(End { flow, session: Some(session) }) = &mut self.links[link].end else { return };
        let (failed, waiting) = session.session.look();
        waiting.into_iter().for_each(|transfer| flow.make_file(transfer));
        let finished = flow.finished();
        for (transfer, error) in failed {
            self.fail(link, transfer, &error);
        }
        for transfer in finished {
            let Some(End { flow, .. }) = &mut self.links[link].end else { return };
            let committed = flow.commit_if_told(transfer);
            self.written(link, committed.map_err(|error| (transfer, error)));
        }
    }

    fn fail(&mut self, link: usize, transfer: u32, error: &Error) {
        let Some(End { flow, .. }) = &mut self.links[link].end else { return };
        let was_open = flow.is_open(transfer);
        flow.end(transfer);
        if was_open {
            self.links[link].down.push_back(Down::Failed(transfer, error.kind()));
        }
    }

    fn written(&mut self, link: usize, written: Result<(), (u32, Error)>) {
        if let Err((transfer, error)) = written {
            assert_ne!(error.kind(), ErrorKind::Protocol, "a breach: {}", error.chain());
            self.fail(link, transfer, &error);
        }
    }

    /// What `server::connection` and `server::lane` do with it.
    fn job(&mut self, link: usize, job: Job) {
        let Link { end: Some(End { flow, session }), down, .. } = &mut self.links[link] else { return };
        let is_lane = session.is_none();
        match job {
            Job::Opened(transfer, Ok(Opened::Upload(incoming)), _) => {
                let claimed = incoming.offer.as_ref().filter(|_| incoming.is_held);
                let claimed = claimed.map(|offer| offer.claimed()).unwrap_or_default();
                let answer = PutAnswer {
                    holding: match (incoming.is_held, &incoming.base) {
                        (true, _) => Holding::Held,
                        (false, Some(_)) => Holding::Base,
                        (false, None) => Holding::Fresh,
                    },
                    generation: incoming.generation,
                    held_size: match (incoming.is_held, &incoming.base) {
                        (false, Some(base)) => base.size(),
                        _ => 0,
                    },
                    compare_only: incoming.compare_only,
                    ranges: crate::protocol::List(claimed),
                };
                if flow.is_open(transfer) {
                    down.push_back(Down::Answer(transfer, answer));
                }
                flow.opened(transfer, *incoming);
            }
            Job::Opened(transfer, Ok(Opened::Ended(stored)), _) | Job::Committed(transfer, Ok(stored), _) => {
                if flow.is_open(transfer) {
                    flow.end(transfer);
                    flow.forget_ended(transfer);
                    down.push_back(Down::Stored(transfer, stored));
                }
            }
            Job::Opened(transfer, Err(error), _)
            | Job::Made(transfer, Err(error))
            | Job::Committed(transfer, Err(error), _) => self.fail(link, transfer, &error),
            Job::Made(transfer, Ok(file)) => flow.made(transfer, file),
            Job::Written(transfer, group, result) => {
                let written = flow.written(transfer, group, result);
                if !is_lane {
                    self.written(link, written);
                }
            }
            Job::Spilled(transfer, group, result) => {
                let written = flow.spilled(transfer, group, result);
                if !is_lane {
                    self.written(link, written);
                }
            }
            Job::CommittedSmall(answers) => {
                for answer in answers {
                    flow.answered_unasked(answer.size, answer.asked);
                    down.push_back(match answer.stored {
                        Ok(stored) => Down::Stored(answer.transfer, stored),
                        Err(error) => Down::Failed(answer.transfer, error.kind()),
                    });
                }
                flow.committed_small();
            }
            Job::Offered(transfer, result) => {
                flow.step_hashed();
                match result {
                    Ok(offer) => {
                        for (group, value) in flow.offered(transfer, offer) {
                            down.push_back(Down::Values(transfer, group, vec![value]));
                        }
                        let committed = flow.commit_if_told(transfer);
                        self.written(link, committed.map_err(|error| (transfer, error)));
                    }
                    Err(error) => self.fail(link, transfer, &error),
                }
            }
            _ => panic!("a job that no upload begins"),
        }
    }

    /// A disk thread does something.
    fn work(&mut self) {
        let work = QUEUE.with_borrow_mut(|queue| {
            let at = self.random.below(queue.len());
            // Most of the time in order.
            if self.random.chance(70) { queue.pop_front() } else { queue.remove(at) }
        });
        if let Some(work) = work {
            work();
        }
        if disk::with(|disk| disk.is_dead()) {
            let is_power = self.random.chance(60);
            self.stop_server(is_power);
            return;
        }
        self.answer();
        self.look();
    }

    // ---- the clients -----------------------------------------------------------------------------------------

    /// A client does the next thing.
    fn act(&mut self, client: usize) {
        let is_dead = |links: &[Link], link: usize| links[link].end.is_none() && links[link].down.is_empty();
        if let Some(link) = self.clients[client].link
            && is_dead(&self.links, link)
        {
            self.leave(client, false);
        }
        match &self.clients[client].state {
            State::Idle => self.begin(client),
            State::Sending(_) => self.send(client),
            State::Waiting(_) | State::Finished(_) => {}
        }
    }

    /// A client stops listening to its connection. What it has sent may still arrive.
    fn leave(&mut self, client: usize, is_over: bool) {
        let now = self.step;
        if let Some(link) = self.clients[client].link.take() {
            let lanes = self.links[link].lanes.clone();
            for link in lanes.into_iter().chain([link]) {
                self.links[link].is_heard = false;
                self.links[link].down.clear();
                self.links[link].up.push_back(Up::End);
            }
        }
        self.clients[client].state = State::Idle;
        if is_over && let Some(number) = self.clients[client].current.take() {
            self.tell(|| format!("client {client} gives up try {number}"));
            self.tries[number].ended = Some(now);
        }
    }

    /// Connects if need be, and describes a version.
    fn begin(&mut self, client: usize) {
        if self.clients[client].current.is_none() {
            if self.is_calm && self.tries.iter().any(|one| one.name == self.clients[client].name && one.is_told) {
                return;
            }
            let content = match self.random.below(100) {
                0..55 => self.random.below(SMALL),
                55..68 => SMALL + self.random.below(ASKED),
                _ if !self.has_large => self.random.below(SMALL + ASKED),
                _ => SMALL + ASKED + self.random.below(LARGE),
            };
            let mut id = [0; 16];
            id[..8].copy_from_slice(&self.next_id.to_be_bytes());
            self.next_id += 1;
            let (owner, name, begun) = (self.clients[client].owner, self.clients[client].name, self.step);
            self.tries.push(Try { owner, name, content, begun, ended: None, is_told: false });
            (self.clients[client].id, self.clients[client].no_base) = (Bytes16(id), false);
            self.clients[client].current = Some(self.tries.len() - 1);
        }
        if self.clients[client].link.is_none() {
            self.clients[client].link = self.connect(None);
        }
        let (Some(link), Some(number)) = (self.clients[client].link, self.clients[client].current) else { return };
        let content = self.tries[number].content;
        let size = CONTENTS[content].bytes.len() as u64;
        let is_unasked = size <= UNASKED_FILE_MAX && self.random.chance(85);
        let put = Put {
            path: RemotePath::parse(NAMES[self.clients[client].name].as_bytes()).unwrap(),
            size: Some(size),
            mtime: None,
            mode: None,
            upload_id: self.clients[client].id,
            if_exists: IfExists::Overwrite,
            unasked: is_unasked,
            no_base: self.clients[client].no_base,
            resume: Some(Bytes16([1 + self.clients[client].owner as u8; 16])),
            same_as: None,
            same_root: None,
            xattrs: None,
        };
        let transfer = self.links[link].next_transfer;
        self.links[link].next_transfer += 1;
        self.tell(|| {
            format!("client {client} describes try {number}: content {content}, link {link}, unasked {is_unasked}")
        });
        self.links[link].up.push_back(Up::Put(transfer, Box::new(put)));
        if is_unasked {
            let finish = self.finish_of(content);
            let up = &mut self.links[link].up;
            up.push_back(Up::Data(transfer, content, 0, size as usize));
            up.push_back(Up::Finish(transfer, finish));
        }
        self.clients[client].state = State::Waiting(transfer);
    }

    /// The finish of a content, and at times that of another one.
    fn finish_of(&mut self, content: usize) -> Finish {
        let sent = &CONTENTS[content];
        let size = sent.bytes.len();
        let other = CONTENTS.iter().find(|other| other.bytes.len() == size && other.root != sent.root);
        let is_wrong = !self.is_calm && self.random.chance(4);
        let root = other.filter(|_| is_wrong).map_or(sent.root, |other| other.root);
        Finish { size: size as u64, root }
    }

    /// Sends the next group, or the finish.
    fn send(&mut self, client: usize) {
        let (Some(link), Some(number)) = (self.clients[client].link, self.clients[client].current) else { return };
        let content = self.tries[number].content;
        if self.links[link].lanes.len() < 2
            && self.links[link].end.is_some()
            && self.random.chance(25)
            && let Some(lane) = self.connect(Some(link))
        {
            self.links[link].lanes.push(lane);
        }
        let lanes: Vec<usize> =
            self.links[link].lanes.iter().copied().filter(|&lane| self.links[lane].end.is_some()).collect();
        let State::Sending(sending) = &mut self.clients[client].state else { return };
        // What a dead lane was not told goes back.
        let lost: Vec<(usize, u64)> = sending
            .on_lanes
            .iter()
            .copied()
            .filter(|(lane, _)| self.links[*lane].end.is_none() && self.links[*lane].down.is_empty())
            .collect();
        for (lane, group) in lost {
            sending.on_lanes.retain(|one| *one != (lane, group));
            sending.sender.give_back(group);
        }
        let Some(Taken { group, prefix }) = sending.sender.take() else {
            if sending.on_lanes.is_empty() && sending.sender.finish().is_some() {
                let transfer = sending.transfer;
                let finish = self.finish_of(content);
                self.links[link].up.push_back(Up::Finish(transfer, finish));
                self.clients[client].state = State::Finished(transfer);
            }
            return;
        };
        let whole = &CONTENTS[content];
        let begin = group_offset(group) as usize;
        let prefix_value = prefix.map(|len| {
            let mut hasher = GroupHasher::new(group);
            hasher.update(&whole.bytes[begin..begin + len]);
            hasher.finish().value
        });
        let from = match sending.sender.judge(group, whole.hashes[group as usize], prefix_value) {
            Decision::Send => 0,
            Decision::SendFrom(len) => len,
            Decision::Keep => return,
            Decision::Differs => panic!("nothing is only compared under overwrite"),
        };
        let lane = (!lanes.is_empty() && self.random.chance(60)).then(|| lanes[self.random.below(lanes.len())]);
        let over = lane.unwrap_or(link);
        match lane {
            Some(lane) => sending.on_lanes.push((lane, group)),
            None => sending.sender.sent(group),
        }
        let transfer = sending.transfer;
        let end = group_len(whole.bytes.len() as u64, group);
        let mut at = from;
        while at < end {
            let len = (end - at).min(DATA_LEN_MAX);
            self.links[over].up.push_back(Up::Data(transfer, content, (begin + at) as u64, len));
            at += len;
        }
    }

    /// The next frame of a connection arrives at its client.
    fn hear(&mut self, link: usize) {
        let Some(frame) = self.links[link].down.pop_front() else { return };
        if !self.links[link].is_heard {
            return;
        }
        let first = (0..self.links.len()).find(|&first| first == link || self.links[first].lanes.contains(&link));
        let Some(client) = self.clients.iter().position(|client| client.link.is_some() && client.link == first) else {
            return;
        };
        let Some(number) = self.clients[client].current else { return };
        match frame {
            Down::Answer(transfer, answer) => {
                if !matches!(self.clients[client].state, State::Waiting(waiting) if waiting == transfer) {
                    return;
                }
                let size = CONTENTS[self.tries[number].content].bytes.len() as u64;
                let mut sender = Sender::new(size);
                match answer.holding {
                    Holding::Fresh => {}
                    Holding::Held => sender.set_held(&answer.ranges.0).unwrap(),
                    Holding::Base => sender.set_base(answer.held_size, answer.compare_only),
                }
                self.clients[client].state =
                    State::Sending(Box::new(Sending { transfer, sender, on_lanes: Vec::new() }));
            }
            Down::Values(transfer, first, values) => {
                if let State::Sending(sending) = &mut self.clients[client].state
                    && sending.transfer == transfer
                {
                    sending.sender.add_values(first, &values).unwrap();
                }
            }
            Down::Written(transfer, groups) => {
                if let State::Sending(sending) = &mut self.clients[client].state
                    && sending.transfer == transfer
                {
                    for group in groups {
                        if sending.on_lanes.contains(&(link, group)) {
                            sending.on_lanes.retain(|one| *one != (link, group));
                            sending.sender.sent(group);
                        }
                    }
                }
            }
            Down::Stored(transfer, stored) => {
                if !self.clients[client].is_at(transfer) {
                    return;
                }
                let root = CONTENTS[self.tries[number].content].root;
                if stored.root != Some(root) {
                    // As a client must: this is not what it sent.
                    self.leave(client, true);
                    return;
                }
                self.tell(|| format!("client {client} is told that try {number} is stored"));
                let now = self.step;
                (self.tries[number].ended, self.tries[number].is_told) = (Some(now), true);
                (self.clients[client].current, self.clients[client].state) = (None, State::Idle);
                self.look();
            }
            Down::Failed(transfer, kind) => {
                if !self.clients[client].is_at(transfer) {
                    return;
                }
                self.tell(|| format!("client {client}, try {number}: {kind:?}"));
                self.clients[client].state = State::Idle;
                if kind == ErrorKind::Mismatch {
                    self.clients[client].no_base = true;
                }
                if !kind.is_retryable() {
                    let now = self.step;
                    self.tries[number].ended = Some(now);
                    self.clients[client].current = None;
                }
            }
        }
    }

    // ---- what happens ----------------------------------------------------------------------------------------

    fn happen(&mut self) {
        let client = self.random.below(self.clients.len());
        let live: Vec<usize> = (0..self.links.len())
            .filter(|&link| !self.links[link].up.is_empty() && self.links[link].end.is_some())
            .collect();
        let heard: Vec<usize> = (0..self.links.len()).filter(|&link| !self.links[link].down.is_empty()).collect();
        let has_work = QUEUE.with_borrow(|queue| !queue.is_empty());
        match self.random.below(100) {
            0..30 if has_work => self.work(),
            0..55 if !live.is_empty() => {
                let link = live[self.random.below(live.len())];
                self.deliver(link);
            }
            0..75 if !heard.is_empty() => {
                let link = heard[self.random.below(heard.len())];
                self.hear(link);
            }
            _ => self.act(client),
        }
        if self.is_calm {
            if self.shared.is_none() {
                self.start_server();
            }
            return;
        }
        match self.random.below(1000) {
            // The client gives its connection up, and perhaps what it wanted.
            0..25 => {
                let is_over = self.random.chance(50);
                self.leave(client, is_over);
            }
            // The link is cut: what is on its way is lost from somewhere on.
            25..60 if !self.links.is_empty() => {
                let link = self.random.below(self.links.len());
                let keep = self.random.below(self.links[link].up.len() + 1);
                self.links[link].up.truncate(keep);
                self.links[link].up.push_back(Up::End);
                if self.random.chance(50) {
                    self.links[link].down.clear();
                }
                self.tell(|| format!("link {link} is cut"));
            }
            60..68 if self.shared.is_some() => {
                let is_power = self.random.chance(50);
                self.stop_server(is_power);
            }
            68..76 => {
                let count = self.random.below(25);
                disk::with(|disk| disk.die_in(count));
            }
            76..84 => {
                let count = self.random.below(40);
                let errno = [Errno::IO, Errno::NOSPC][self.random.below(2)];
                disk::with(|disk| disk.fail_in(count, errno));
            }
            _ => {}
        }
        if self.shared.is_none() && self.random.chance(15) {
            self.start_server();
        }
    }

    // ---- the oracle ------------------------------------------------------------------------------------------

    /// Which contents may be found under a name, and whether it may be missing.
    fn expected(&self, name: usize) -> (BTreeSet<usize>, bool) {
        let told = || self.tries.iter().filter(move |one| one.name == name && one.is_told);
        let is_possible = |one: &&Try| {
            let after = |other: &Try| other.owner == one.owner && one.ended.is_some_and(|ended| ended < other.begun);
            !told().any(after)
        };
        let mut contents: BTreeSet<usize> =
            self.tries.iter().filter(|one| one.name == name).filter(is_possible).map(|one| one.content).collect();
        let is_open = told().next().is_none();
        if is_open {
            contents.extend(self.foreign.iter().filter(|(other, _)| *other == name).map(|(_, content)| *content));
        }
        (contents, is_open)
    }

    /// Looks at everything that a power cut could leave now.
    fn look(&mut self) {
        for (index, name) in NAMES.iter().enumerate() {
            let (contents, may_be_absent) = self.expected(index);
            let is_foreign = self.foreign.iter().any(|(other, _)| *other == index);
            for survivor in disk::with(|disk| disk.survivors(name)) {
                match survivor {
                    Survivor::Absent => assert!(may_be_absent, "{name} was told as stored, and may be lost"),
                    Survivor::Unsynced => {
                        assert!(may_be_absent && is_foreign, "{name} stands for something that is not synced");
                    }
                    Survivor::Whole(bytes, record) => {
                        let there = self.content_of(&bytes);
                        if let (Some(there), Some(record)) = (there, &record) {
                            let is_right = record.starts_with(&CONTENTS[there].root.0);
                            assert!(is_right, "{name} is recorded with another root");
                        }
                        assert!(
                            there.is_some_and(|there| contents.contains(&there)) || is_foreign && may_be_absent,
                            "{name} has {} bytes that it must not have: neither of {contents:?}, but {there:?}",
                            bytes.len(),
                        );
                    }
                }
            }
        }
    }

    /// Which content these bytes are; compared once.
    fn content_of(&mut self, bytes: &Rc<Vec<u8>>) -> Option<usize> {
        if let Some((_, content)) = self.seen.iter().find(|(seen, _)| Rc::ptr_eq(seen, bytes)) {
            return *content;
        }
        let content = CONTENTS.iter().position(|content| *content.bytes == **bytes);
        self.seen.push((Rc::clone(bytes), content));
        content
    }

    fn run(&mut self) {
        while self.step < STEPS {
            self.step += 1;
            self.happen();
        }
        // Nothing goes wrong any more: whatever was begun comes to an end.
        self.is_calm = true;
        disk::with(disk::Disk::revive);
        if self.shared.is_some() {
            // A disk that has failed is looked at again in two seconds, or by another process at once.
            self.stop_server(false);
        }
        self.start_server();
        let end = self.step + CALM_STEPS;
        while self.clients.iter().any(|client| client.current.is_some()) || QUEUE.with_borrow(|queue| !queue.is_empty())
        {
            self.step += 1;
            assert!(self.step < end, "it does not come to an end");
            self.happen();
        }
        self.look();
        for name in NAMES {
            let there = fs::read(self.root.join(name)).ok();
            let Some(there) = there.filter(|_| self.foreign.is_empty()) else { continue };
            assert!(
                CONTENTS.iter().any(|content| *content.bytes == there),
                "{name} reads as {} other bytes",
                there.len()
            );
        }
    }
}

impl Client {
    fn is_at(&self, transfer: u32) -> bool {
        match &self.state {
            State::Idle => false,
            State::Waiting(at) | State::Finished(at) => *at == transfer,
            State::Sending(sending) => sending.transfer == transfer,
        }
    }
}

/// Runs one seed; tells what was found.
fn run_seed(seed: u64, lie: Lie, folder: &Path) -> Result<u64, String> {
    let root = folder.join("root");
    let mut world = World::new(seed, lie, &root);
    let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run())).map_err(|panic| {
        let what = panic.downcast_ref::<String>().cloned();
        what.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    });
    let calls = disk::with(|disk| disk.calls());
    // What is left of the server goes without changing anything.
    disk::with(disk::Disk::kill);
    world.links.clear();
    let story = story.map_err(|what| format!("{}step {}: {what}", world.story, world.step));
    drop(world);
    drop(QUEUE.with_borrow_mut(std::mem::take));
    drop(QUEUE.with_borrow_mut(std::mem::take));
    disk::end();
    fs::remove_dir_all(&root).unwrap();
    story.map(|()| calls)
}

fn folder() -> tempfile::TempDir {
    // Memory, where there is some: what is synced is known here, not there.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// One part of the seeds.
fn run_part(part: u64, parts: u64) {
    let folder = folder();
    if let Some(seed) = number("SIM_SEED") {
        if seed % parts == part
            && let Err(story) = run_seed(seed, Lie::None, folder.path())
        {
            panic!("seed {seed}:\n{story}");
        }
        return;
    }
    for seed in (part..number("SIM_SEEDS").unwrap_or(SEEDS)).step_by(parts as usize) {
        if let Err(story) = run_seed(seed, Lie::None, folder.path()) {
            panic!("seed {seed} (SIM_SEED={seed} tells more): {story}");
        }
    }
}

#[test]
fn nothing_that_was_told_is_lost_or_mixed_a() {
    run_part(0, 4);
}

#[test]
fn nothing_that_was_told_is_lost_or_mixed_b() {
    run_part(1, 4);
}

#[test]
fn nothing_that_was_told_is_lost_or_mixed_c() {
    run_part(2, 4);
}

#[test]
fn nothing_that_was_told_is_lost_or_mixed_d() {
    run_part(3, 4);
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    let folder = folder();
    for seed in 0..40 {
        assert_eq!(run_seed(seed, Lie::None, folder.path()), run_seed(seed, Lie::None, folder.path()), "seed {seed}");
    }
}

/// How many seeds it takes to find a defect.
fn seeds_to_find(defect: Option<Planted>, lie: Lie) -> Option<(u64, String)> {
    let folder = folder();
    PLANTED.set(defect);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut seeds = 0..number("SIM_SEEDS").unwrap_or(SEEDS);
    let found = seeds.find_map(|seed| run_seed(seed, lie, folder.path()).err().map(|story| (seed + 1, story)));
    std::panic::set_hook(hook);
    PLANTED.set(None);
    found
}

#[track_caller]
fn is_found(what: &str, defect: Option<Planted>, lie: Lie) {
    let found = seeds_to_find(defect, lie);
    let (count, story) = found.unwrap_or_else(|| panic!("{what}: not found"));
    println!("{what}: found after {count} seeds: {}", story.lines().last().unwrap_or_default());
}

#[test]
fn planted_defects_are_found() {
    is_found("directories are not synced", None, Lie::Directories);
    is_found("files are not synced", None, Lie::Files);
    is_found("what is called unchanged is not synced", None, Lie::Others);
    for defect in
        [Planted::LateMayCommit, Planted::NoRootCheck, Planted::OpenGate, Planted::HeldBelieved, Planted::LaneUnwritten]
    {
        is_found(&format!("{defect:?}"), Some(defect), Lie::None);
    }
}
