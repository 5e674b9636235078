//! Downloads in the simulation: the client as it is, from `Client::get` to its own disk, but for its connections.
//!
//! One client fetches the names that others store, replace, move and remove meanwhile, one of them or both at once. Its
//! connections are cut, its disk fails, it is killed and its power goes. What it is told as done has to be the whole of
//! one version that had the name at some moment between the beginning and the end, durably; its final names never stand
//! for anything but that.

use std::sync::Mutex;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::advance;

use super::*;
use crate::buffer::Pool;
use crate::client::event::{Event, Outcome, channel};
use crate::client::plan::{GetItem, GetTarget};
use crate::client::simulated_lane as lanes;
use crate::client::simulated_line::Line;
use crate::client::{Client, ClientOptions, GetOptions};
use crate::error::Error;
use crate::limits::{MIB, UNASKED_CONNECTION_MAX};
use crate::protocol::{self, Remove, Rename, ServerHello};
use crate::tls::ClientTls;

/// What the names of the server are called here.
const HERE: [&str; 2] = ["x", "y"];

/// What was found under a name: nothing, or this content, or one that nobody has sent.
type Seen = Option<Option<usize>>;

pub(super) static TRUST: LazyLock<ClientTls> = LazyLock::new(|| {
    let options =
        tls::ClientOptions { ca: Some(FOLDER.path().join("certs/ca.pem")), certificate: None, key: None, pins: vec![] };
    ClientTls::load(&options).unwrap()
});

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(64 * MIB));

/// A client's process, while there is one.
struct Process {
    runtime: Runtime,
    local: LocalSet,
    client: Client,
    events: mpsc::Receiver<Event>,
    /// Connections that it makes.
    dialed: Arc<Mutex<Vec<Line>>>,
    line: Option<(usize, Line)>,
    lanes: Vec<(usize, lanes::Line)>,
    task: Option<(JoinHandle<crate::error::Result<()>>, Get)>,
}

/// A download that goes on.
struct Get {
    /// What it fetches.
    names: Vec<usize>,
    begun: usize,
    /// Names of which it was told that they are here.
    done: Vec<usize>,
    /// What others failed with.
    failed: Vec<(usize, Error)>,
}

/// The client, and what it has been told.
pub(super) struct Fetcher {
    root: PathBuf,
    process: Option<Process>,
    /// By name: when the latest download that was told as done had begun.
    told: [Option<usize>; 2],
    /// What was under each name of the server, and since when.
    history: [Vec<(usize, Seen)>; 2],
    /// As which the names were seen last.
    known: [Option<(u64, i64, i64)>; 2],
    /// Downloads that are still to be made.
    left: usize,
    pub(super) done: usize,
    /// How far away the server seems to be.
    round_trip: Duration,
}

/// What the server says of itself.
pub(super) fn hello() -> ServerHello {
    ServerHello {
        version: protocol::VERSIONS[0],
        agent: String::new(),
        principal: None,
        rights: Rights::ALL.0,
        token: None,
        unasked_max: UNASKED_CONNECTION_MAX,
        open_max: 64,
        idle_seconds: 60,
        now: 0,
        file_mode: None,
        directory_mode: None,
        zeros: Some(true),
        finish_ahead: Some(true),
        receipt_key: None,
        invites: None,
        trees: Some(true),
        xattrs: Some(true),
    }
}

fn process(round_trip: Duration) -> Process {
    let (events, told) = channel();
    let endpoint = crate::client::remote::Endpoint::parse(b"simulated").unwrap();
    let dialed: Arc<Mutex<Vec<Line>>> = Arc::default();
    let lines = Arc::clone(&dialed);
    let hello = hello();
    let dial = move |client: &Client| {
        let (session, line) = Line::new(hello.clone(), round_trip, POOL.clone(), Arc::clone(client.stalls()));
        lines.lock().unwrap().push(line);
        Ok(session)
    };
    let client = Client::simulated(ClientOptions::new(endpoint, TRUST.clone()), events, Box::new(dial));
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    Process { runtime, local: LocalSet::new(), client, events: told, dialed, line: None, lanes: Vec::new(), task: None }
}

impl Fetcher {
    /// A client whose files are here, which makes so many downloads.
    pub(super) fn new(root: PathBuf, random: Random, lie: Lie, count: usize) -> Fetcher {
        let mut random = random;
        let round_trip = [Duration::ZERO, Duration::from_millis(100)][random.below(2)];
        disk::on(Side::Client, || {
            let short = [0, 0, 20][random.below(3)];
            disk::begin(random, lie);
            fs::create_dir(&root).unwrap();
            disk::with(|disk| {
                disk.short = short;
                disk.adopt(&root);
            });
        });
        Fetcher {
            root,
            process: None,
            told: [None; 2],
            history: Default::default(),
            known: [None; 2],
            left: count,
            done: 0,
            round_trip,
        }
    }

    /// Does something for the client, on its machine and by its clock.
    pub(super) fn run<T>(&self, act: impl FnOnce() -> T) -> T {
        let _entered = self.process.as_ref().map(|process| process.runtime.enter());
        disk::on(Side::Client, act)
    }

    /// Whether anything is still to be fetched.
    pub(super) fn is_busy(&self) -> bool {
        self.left > 0 || self.process.as_ref().is_some_and(|process| process.task.is_some())
    }

    /// Whether this is a connection of the client.
    pub(super) fn owns(&self, link: usize) -> bool {
        self.process.as_ref().is_some_and(|process| {
            process.line.as_ref().is_some_and(|(line, _)| *line == link)
                || process.lanes.iter().any(|(lane, _)| *lane == link)
        })
    }

    /// What a name of the server may have been since then.
    fn since(&self, name: usize, begun: usize) -> BTreeSet<Seen> {
        let history = &self.history[name];
        let first = history.iter().rposition(|(step, _)| *step <= begun).unwrap_or(0);
        history[first..].iter().map(|(_, seen)| *seen).collect()
    }
}

impl World {
    /// Takes note of what the names of the server stand for now.
    pub(super) fn watch(&mut self) {
        use std::os::unix::fs::MetadataExt as _;
        for (index, name) in NAMES.iter().enumerate() {
            let path = self.root.join(name);
            let known = fs::metadata(&path).ok().map(|now| (now.ino(), now.ctime(), now.ctime_nsec()));
            let history = &self.fetcher.history[index];
            if known == self.fetcher.known[index] && !history.is_empty() {
                continue;
            }
            let seen = known.map(|_| {
                let bytes = fs::read(&path).unwrap();
                CONTENTS.iter().position(|content| *content.bytes == bytes)
            });
            self.fetcher.known[index] = known;
            if history.last().is_none_or(|(_, last)| *last != seen) {
                self.fetcher.history[index].push((self.step, seen));
            }
        }
    }

    /// The client begins the next download, opens one more lane, or finds that a connection has died.
    pub(super) fn fetch(&mut self) {
        if self.fetcher.process.is_none() {
            if self.fetcher.left == 0 {
                return;
            }
            let round_trip = self.fetcher.round_trip;
            self.fetcher.process = Some(self.fetcher.run(|| process(round_trip)));
        }
        let Some(process) = &mut self.fetcher.process else { return };
        let is_dead = |links: &[Link], link: usize| links[link].end.is_none() && links[link].down.is_empty();
        let cut = || Error::new(ErrorKind::Connection, "cut");
        for (_, lane) in process.lanes.extract_if(.., |(link, _)| is_dead(&self.links, *link)) {
            lane.end();
        }
        if let Some((_, line)) = process.line.take_if(|(link, _)| is_dead(&self.links, *link)) {
            line.end(cut());
        }
        // Lanes may be there before a download begins: those of the one before.
        if process.lanes.len() < 2
            && self.random.chance(30)
            && let Some((first, _)) = process.line
            && let Some(link) = self.connect(Some(first))
        {
            let Some(process) = &mut self.fetcher.process else { return };
            let Some((first, line)) = &process.line else { return };
            self.links[*first].lanes.push(link);
            match lanes::Line::new(line.session().lanes(), POOL.clone()) {
                Some(lane) => process.lanes.push((link, lane)),
                None => self.links[link].hang_up(),
            }
        } else if let Some(process) = &mut self.fetcher.process
            && process.task.is_none()
        {
            if self.fetcher.left == 0 {
                return;
            }
            let names = match self.random.below(4) {
                0 if !self.is_duel => vec![1],
                1 if !self.is_duel => vec![0, 1],
                _ => vec![0],
            };
            // Most of the time something is there.
            let is_missing = names.iter().any(|&name| self.fetcher.known[name].is_none());
            if is_missing && !self.is_calm && self.random.chance(95) {
                return;
            }
            self.fetcher.left -= 1;
            let item = |&name: &usize| {
                let target = GetTarget::Local(self.fetcher.root.join(HERE[name]));
                GetItem { source: RemotePath::parse(NAMES[name].as_bytes()).unwrap(), target }
            };
            let (items, client) = (names.iter().map(item).collect(), process.client.clone());
            let task = process.local.spawn_local(async move { client.get(items, GetOptions::default()).await });
            self.tell(|| format!("a download of {names:?} begins"));
            let get = Get { names, begun: self.step, done: Vec::new(), failed: Vec::new() };
            self.fetcher.process.as_mut().unwrap().task = Some((task, get));
        }
        self.fetch_on();
    }

    /// The client goes on as far as it can.
    pub(super) fn fetch_on(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            let Some(process) = &mut self.fetcher.process else { return };
            disk::on(Side::Client, || process.runtime.block_on(process.local.run_until(turns())));
            let mut is_idle = true;
            let dialed = std::mem::take(&mut *process.dialed.lock().unwrap());
            for line in dialed {
                is_idle = false;
                match self.connect(None) {
                    Some(link) => {
                        let process = self.fetcher.process.as_mut().unwrap();
                        assert!(process.line.is_none(), "two connections at once");
                        process.line = Some((link, line));
                    }
                    None => line.end(Error::new(ErrorKind::Connection, "nobody is there")),
                }
            }
            let process = self.fetcher.process.as_mut().unwrap();
            if let Some((link, line)) = &mut process.line {
                for frame in line.said(cx) {
                    is_idle = false;
                    self.links[*link].say_frame(&frame);
                }
                if line.is_over() {
                    is_idle = false;
                    self.links[*link].hang_up();
                    process.line = None;
                }
            }
            if process.line.is_none() {
                for (link, lane) in process.lanes.drain(..) {
                    self.links[link].hang_up();
                    lane.end();
                }
            }
            for (link, lane) in &mut process.lanes {
                for frame in lane.said() {
                    is_idle = false;
                    self.links[*link].say_frame(&frame);
                }
            }
            if is_idle {
                break;
            }
        }
        if self.fetcher.run(|| disk::with(|disk| disk.is_dead())) {
            let is_power = self.random.chance(60);
            self.kill_fetcher(is_power);
            return;
        }
        self.fetched();
        self.look_here();
    }

    /// Something arrives at the client.
    pub(super) fn fetch_hear(&mut self, link: usize, frame: &Down) {
        let process = self.fetcher.process.as_mut().unwrap();
        let first = process.line.as_mut().filter(|(first, _)| *first == link);
        let heard = match (first, frame) {
            (Some((_, line)), Down::Control(frame)) => {
                let (kind, transfer, payload) = parse(frame);
                line.hear(kind, transfer, payload)
            }
            (Some((_, line)), Down::Data(transfer, offset, content)) => line.hear_data(*transfer, *offset, content),
            (None, Down::Data(transfer, offset, content)) => {
                let lane = process.lanes.iter_mut().find(|(lane, _)| *lane == link);
                lane.map_or(Ok(()), |(_, lane)| lane.hear_data(*transfer, *offset, content))
            }
            (None, Down::Control(frame)) => {
                assert_eq!(parse(frame).0, Kind::Working, "a message on a lane of downloads");
                Ok(())
            }
        };
        if let Err(error) = heard {
            panic!("the client found a breach: {}", error.chain());
        }
        self.fetch_on();
    }

    /// The client's connection breaks, as it sees it.
    pub(super) fn fetch_cut(&mut self) {
        let Some(process) = &mut self.fetcher.process else { return };
        if let Some((link, line)) = process.line.take() {
            self.links[link].hang_up();
            line.end(Error::new(ErrorKind::Connection, "cut"));
            self.tell(|| "the downloading client gives up its connection".to_owned());
            self.fetch_on();
        }
    }

    /// The client's process ends, and perhaps its power.
    pub(super) fn kill_fetcher(&mut self, is_power: bool) {
        self.tell(|| format!("the downloading client dies, power cut: {is_power}"));
        let root = self.fetcher.root.clone();
        let process = self.fetcher.process.take();
        disk::on(Side::Client, || {
            disk::with(disk::Disk::kill);
            if let Some(Process { runtime, local, client, line, lanes, task, .. }) = process {
                // The same command will be run again.
                self.fetcher.left += usize::from(task.is_some());
                let links = line.iter().map(|(link, _)| *link).chain(lanes.iter().map(|(link, _)| *link));
                links.collect::<Vec<_>>().into_iter().for_each(|link| self.links[link].hang_up());
                {
                    let _entered = runtime.enter();
                    drop(local);
                }
                drop(runtime);
                drop((client, line, lanes));
            }
            disk::drop_work(Side::Client);
            disk::with(|disk| {
                if is_power {
                    disk.cut_power(&root);
                }
                disk.revive();
            });
        });
        self.look_here();
    }

    /// Judges a download that has ended.
    fn fetched(&mut self) {
        let Some(process) = &mut self.fetcher.process else { return };
        let is_over = process.task.as_ref().is_some_and(|(task, _)| task.is_finished());
        let (mut retries, mut roots) = (0, Vec::new());
        while let Ok(event) = process.events.try_recv() {
            let which = |name: &[u8]| NAMES.iter().position(|known| known.as_bytes() == name).unwrap();
            match (event, &mut process.task) {
                (
                    Event::Done { name, root: Some(root), outcome: Outcome::Stored | Outcome::Unchanged, .. },
                    Some((_, get)),
                ) => {
                    get.done.push(which(&name));
                    roots.push((which(&name), get.begun, root));
                }
                (Event::Failed { name, error, .. }, Some((_, get))) => get.failed.push((which(&name), error)),
                (Event::Done { .. } | Event::Failed { .. }, None) => panic!("an end of nothing"),
                (Event::Retrying { .. }, _) => retries += 1,
                _ => {}
            }
        }
        if retries > 0 {
            self.tell(|| format!("the downloading client tries again ({retries})"));
        }
        for (name, begun, root) in roots {
            self.judge(name, begun, root);
        }
        if !is_over {
            return;
        }
        let Some(process) = &mut self.fetcher.process else { return };
        let (task, get) = process.task.take().unwrap();
        let ended = disk::on(Side::Client, || process.runtime.block_on(task)).unwrap();
        self.tell(|| {
            format!("the download of {:?} has ended: {:?}, {:?}", get.names, ended.as_ref().err(), get.failed)
        });
        for (name, error) in &get.failed {
            let seen = self.fetcher.since(*name, get.begun);
            let (name, why) = (NAMES[*name], error.chain());
            assert!(error.kind() != ErrorKind::Internal, "a download of {name}: {why}");
            let is_other = error.kind() == ErrorKind::Mismatch;
            assert!(!is_other || seen.len() > 1, "{name} did not change, and came as something else: {why}");
        }
        if let Err(error) = ended {
            // It has waited long enough. Another run begins anew.
            assert!(error.kind().is_retryable(), "{}", error.chain());
            let is_power = self.random.chance(10);
            self.kill_fetcher(is_power);
            return;
        }
        for &name in get.names.iter().filter(|name| self.is_calm && !get.done.contains(name)) {
            // It may have met a change that is over by now.
            let (_, error) = get.failed.iter().find(|(failed, _)| *failed == name).expect("an end without a word");
            let was_absent = self.fetcher.since(name, get.begun).contains(&None);
            let is_excused = was_absent && error.kind() == ErrorKind::NotFound
                || matches!(error.kind(), ErrorKind::Changed | ErrorKind::Mismatch)
                || get.begun < self.calm_since;
            assert!(is_excused, "a download of {} failed without a cause: {}", NAMES[name], error.chain());
        }
    }

    /// A download was told as done.
    fn judge(&mut self, index: usize, begun: usize, root: Root) {
        let (here, name) = (HERE[index], NAMES[index]);
        let content = CONTENTS.iter().position(|content| content.root == root);
        let possible = self.fetcher.since(index, begun);
        assert!(
            possible.contains(&Some(content)),
            "a download of {name} was told to be {content:?}, which it was not since it began: {possible:?}"
        );
        self.fetcher.told[index] = Some(begun);
        self.fetcher.done += 1;
        for survivor in disk::on(Side::Client, || disk::with(|disk| disk.survivors(here))) {
            match survivor {
                Survivor::Absent => panic!("a download of {name} was told as done, and may be lost"),
                Survivor::Unsynced => panic!("a download of {name} was told as done, and is not synced"),
                Survivor::Whole(bytes, _) => {
                    assert_eq!(Root::of(&bytes), root, "a download of {name} left other content than it told");
                }
            }
        }
    }

    /// Looks at everything that a power cut could leave at the client now.
    pub(super) fn look_here(&mut self) {
        for (index, here) in HERE.iter().enumerate() {
            let told = self.fetcher.told[index];
            for survivor in disk::on(Side::Client, || disk::with(|disk| disk.survivors(here))) {
                match survivor {
                    Survivor::Absent => assert!(told.is_none(), "{here} was fetched, and may be lost"),
                    Survivor::Unsynced => panic!("{here} stands for something fetched that is not synced"),
                    Survivor::Whole(bytes, record) => {
                        let there = self.content_of(&bytes);
                        let possible = self.fetcher.since(index, told.unwrap_or(0));
                        assert!(
                            possible.contains(&Some(there)),
                            "{here} was fetched with {} bytes that were not on the server: {there:?} of {possible:?}",
                            bytes.len()
                        );
                        if let (Some(there), Some(record)) = (there, &record) {
                            let is_right = record.starts_with(&CONTENTS[there].root.0);
                            assert!(is_right, "{here} was fetched and is recorded with another root");
                        }
                    }
                }
            }
        }
    }

    /// Time passes, on both machines, and what is due in it happens.
    pub(super) fn pass_time(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            // Long silence is as a suspended machine: what was due in it happens once, at its end.
            let is_long = end - self.now > Duration::from_secs(600);
            let next = if is_long { end } else { self.ticks.clamp(self.now, end) };
            let passed = next - self.now;
            self.now = next;
            self.runtime.block_on(advance(passed));
            disk::with(|disk| disk.now += passed);
            disk::on(Side::Client, || disk::with(|disk| disk.now += passed));
            if let Some(process) = &self.fetcher.process {
                disk::on(Side::Client, || process.runtime.block_on(process.local.run_until(advance(passed))));
                self.fetch_on();
            }
            if self.shared.is_some() {
                self.tick();
            } else if self.ticks <= self.now {
                self.ticks = self.now + limits::WORKING_INTERVAL;
            }
            self.answer();
            if self.now == end {
                return;
            }
        }
    }

    /// The server looks at what is due.
    fn tick(&mut self) {
        let is_due = self.ticks <= self.now;
        if is_due {
            self.ticks = self.now + limits::WORKING_INTERVAL;
        }
        for link in 0..self.links.len() {
            let Link { end: Some(end), down, watch, .. } = &mut self.links[link] else { continue };
            end.frames().is_flushed = down.is_empty();
            end.spill();
            if is_due && let Err(error) = end.tick(watch) {
                assert_eq!(error.kind(), ErrorKind::Timeout, "{}", error.chain());
                self.tell(|| format!("the server gives up link {link}: {error}"));
                self.end_link(link);
            }
        }
        if self.expires <= self.now
            && let Some(shared) = self.shared.clone()
        {
            self.expires = self.now + limits::EXPIRE_INTERVAL;
            disk::start_alone(move || {
                super::super::remove_old(&shared);
            });
        }
    }

    /// Somebody moves or removes what has a name.
    pub(super) fn meddle(&mut self) {
        if self.meddler.is_none_or(|link| self.links[link].end.is_none()) {
            self.meddler = self.connect(None);
        }
        let Some(link) = self.meddler else { return };
        let name = self.random.below(2);
        let path = |name: usize| RemotePath::parse(NAMES[name].as_bytes()).unwrap();
        let transfer = self.links[link].next_transfer;
        self.links[link].next_transfer += 1;
        if self.random.chance(50) {
            self.links[link].say(transfer, &Remove { path: path(name), recursive: false });
        } else {
            let id = Bytes16([self.random.below(256) as u8; 16]);
            let (from, to) = (path(name), path(1 - name));
            self.links[link].say(transfer, &Rename { from, to, if_exists: IfExists::Overwrite, id });
        }
    }
}

/// What waits for something has its turns.
pub(super) async fn turns() {
    for _ in 0..6 {
        tokio::task::yield_now().await;
    }
}
