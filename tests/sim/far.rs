//! What a download asks a far server for at once, and what it waits for. The server is the test.

use std::sync::Mutex;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::sleep;

use super::fetch::{TRUST, hello};
use super::*;
use crate::buffer::Pool;
use crate::client::event::{Event, channel};
use crate::client::filter::Filter;
use crate::client::invite::Redemption;
use crate::client::plan::{GetItem, GetTarget, PutItem, PutSource};
use crate::client::remote::Endpoint;
use crate::client::simulated_lane as lanes;
use crate::client::simulated_line::Line;
use crate::client::{Client, ClientOptions, FirstAsks, GetOptions, PutOptions};
use crate::error::Error;
use crate::limits::{KIB, MIB};
use crate::protocol::{self, Entry, EntryKind, Get, GetAnswer, Mtime, Ticket};

const FAR: Duration = Duration::from_millis(100);
const LARGE: usize = 2 * MIB + 7;

/// A client that downloads.
struct Talk {
    runtime: Runtime,
    local: LocalSet,
    line: Line,
    task: JoinHandle<crate::error::Result<()>>,
    events: mpsc::Receiver<Event>,
    folder: tempfile::TempDir,
}

/// What is fetched, how, and what is here before.
struct Case {
    round_trip: Duration,
    names: Vec<&'static str>,
    /// Bytes of the file that is here.
    here: Option<usize>,
    /// Something else stands there by the time that there is a connection.
    appears: bool,
    options: GetOptions,
    invite: Option<Redemption>,
    /// What it begins with leaves with the hello.
    is_asked: bool,
}

impl Default for Case {
    fn default() -> Case {
        let options = GetOptions::default();
        Case { round_trip: FAR, names: vec!["x"], here: None, appears: false, options, invite: None, is_asked: false }
    }
}

impl Talk {
    fn begin(case: Case) -> Talk {
        let folder = folder();
        if let Some(len) = case.here {
            fs::write(folder.path().join("x"), vec![1; len]).unwrap();
        }
        let (dialed, (events, told)) = (Arc::<Mutex<Option<Line>>>::default(), channel());
        let item = |name: &&str| {
            let target = GetTarget::Local(folder.path().join(name));
            GetItem { source: RemotePath::parse(name.as_bytes()).unwrap(), target }
        };
        let items: Vec<GetItem> = case.names.iter().map(item).collect();
        let endpoint = Endpoint::parse(b"simulated").unwrap();
        let first = if case.is_asked { FirstAsks::get(&endpoint, &items, &case.options) } else { FirstAsks::default() };
        if case.appears {
            fs::write(folder.path().join("x"), b"another").unwrap();
        }
        let (line, round_trip) = (Arc::clone(&dialed), case.round_trip);
        let dial = move |client: &Client| {
            let stalls = Arc::clone(client.stalls());
            let said = (hello(), first.frames(None));
            let (session, made) = Line::asked(said, round_trip, Pool::new(64 * MIB), stalls);
            *line.lock().unwrap() = Some(made);
            Ok(session)
        };
        let mut options = ClientOptions::new(endpoint, TRUST.clone());
        options.invite = case.invite;
        let client = Client::simulated(options, events, Box::new(dial));
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let local = LocalSet::new();
        let task = local.spawn_local(async move { client.get(items, case.options).await });
        runtime.block_on(local.run_until(async { sleep(Duration::from_secs(10)).await }));
        let line = dialed.lock().unwrap().take().unwrap();
        Talk { runtime, local, line, task, events: told, folder }
    }

    /// What the client says until it waits.
    fn said(&mut self) -> Vec<(Kind, u32, Vec<u8>)> {
        // The clock stands while anything can go on.
        self.runtime.block_on(self.local.run_until(async { sleep(Duration::from_secs(2)).await }));
        let said = self.line.said(&mut Context::from_waker(Waker::noop()));
        let parsed = said.iter().map(|frame| {
            let (kind, transfer, payload) = parse(frame);
            (kind, transfer, payload.to_vec())
        });
        parsed.collect()
    }

    #[track_caller]
    fn says(&mut self, expected: &[(Kind, u32)]) {
        let said: Vec<(Kind, u32)> = self.said().iter().map(|(kind, transfer, _)| (*kind, *transfer)).collect();
        assert_eq!(said, expected);
    }

    fn hear<M: Message>(&mut self, transfer: u32, message: &M) {
        let _entered = self.runtime.enter();
        let frame = message.to_frame(transfer);
        let (kind, transfer, payload) = parse(&frame);
        self.line.hear(kind, transfer, payload).unwrap();
    }

    /// Whether it has ended, and what is here then.
    fn got(&mut self) -> Option<Vec<u8>> {
        assert_eq!(self.failed(), None);
        self.task.is_finished().then(|| fs::read(self.folder.path().join("x")).unwrap())
    }

    /// What it has failed with since this was asked last.
    fn failed(&mut self) -> Option<ErrorKind> {
        std::iter::from_fn(|| self.events.try_recv().ok()).find_map(|event| match event {
            Event::Failed { error, .. } => Some(error.kind()),
            _ => None,
        })
    }
}

fn entry(kind: EntryKind, size: usize) -> Entry {
    let mtime = Mtime { seconds: 1, nanos: 0 };
    let (size, name) = (size as u64, b"x".to_vec());
    Entry { name, kind, size, mtime, mode: 0o644, target: None, same: None, xattrs_digest: None, xattrs: None }
}

fn answer(content: &[u8], unasked: bool) -> GetAnswer {
    let mtime = Mtime { seconds: 1, nanos: 0 };
    GetAnswer {
        size: content.len() as u64,
        mtime,
        mode: 0o644,
        unasked,
        root: Some(Root::of(content)),
        version: vec![1],
        zeros: None,
        first: None,
        xattrs: None,
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8).collect()
}

#[test]
fn what_a_download_asks_for_first() {
    let early = [(Kind::Get, 1), (Kind::Stat, 2)];
    let plain = [(Kind::Stat, 1)];
    let case = Case::default;
    let dry = || GetOptions { dry_run: true, ..GetOptions::default() };
    let narrow = || {
        let mut filter = Filter::default();
        filter.max_size = Some(1);
        Arc::new(filter)
    };
    let invite = Redemption { ticket: Ticket::new([1; 32]), run: Bytes16([2; 16]) };
    let large = KIB * 257;
    let filtered = GetOptions { filter: narrow(), ..GetOptions::default() };
    for (what, case, expected, unasked_max, first) in [
        ("a far file", case(), &early[..], 256 * KIB, true),
        ("a large one that is here", Case { here: Some(large), ..case() }, &early, 0, false),
        ("a small one that is here", Case { here: Some(9), ..case() }, &plain, 0, false),
        ("a near one", Case { round_trip: Duration::from_millis(1), ..case() }, &plain, 0, false),
        ("one of several", Case { names: vec!["x", "y"], ..case() }, &plain, 0, false),
        ("only to know", Case { options: dry(), ..case() }, &plain, 0, false),
        ("with a filter", Case { options: filtered, ..case() }, &plain, 0, false),
        ("over an invite", Case { invite: Some(invite), ..case() }, &plain, 0, false),
    ] {
        let said = Talk::begin(case).said();
        let kinds: Vec<(Kind, u32)> = said.iter().map(|(kind, transfer, _)| (*kind, *transfer)).collect();
        assert_eq!(kinds, expected, "{what}");
        if let (Kind::Get, _, payload) = &said[0] {
            let get = Get::from_payload(payload).unwrap();
            let first_max = first.then_some(2 * MIB as u64 - 1);
            assert_eq!((get.unasked_max, get.first_max), (unasked_max as u64, first_max), "{what}");
        }
    }
}

#[test]
fn the_first_group_of_a_far_file_comes_with_the_answer() {
    const SIZE: usize = GROUP_LEN + 7;
    let content = content(SIZE);
    let group = |talk: &mut Talk, index: usize| {
        let (start, end) = (index * GROUP_LEN, SIZE.min((index + 1) * GROUP_LEN));
        talk.line.hear_data(1, start as u64, &content[start..end]).unwrap();
    };
    for is_asked in [false, true] {
        let mut talk = Talk::begin(Case { is_asked, ..Case::default() });
        talk.said();
        talk.hear(1, &GetAnswer { first: Some(true), ..answer(&content, false) });
        group(&mut talk, 0);
        talk.says(&[]);
        talk.hear(2, &entry(EntryKind::File, SIZE));
        let said = talk.said();
        let want = |said: &(Kind, u32, Vec<u8>)| protocol::Want::from_payload(&said.2).unwrap().ranges.0;
        let ranges: Vec<(u64, u64)> = said.iter().flat_map(want).collect();
        assert_eq!(ranges, [(GROUP_LEN as u64, 7)]);
        group(&mut talk, 1);
        talk.says(&[(Kind::Close, 1)]);
        assert!(talk.got().as_ref() == Some(&content));
    }
    // It is not taken twice, nor of another answer, nor of a larger file, nor where the answer does not say so.
    let first = || GetAnswer { first: Some(true), ..answer(&content, false) };
    let told = |talk: &mut Talk, answer: &GetAnswer| {
        let frame = answer.to_frame(1);
        talk.line.hear(Kind::GetAnswer, 1, parse(&frame).2)
    };
    let mut talk = Talk::begin(Case::default());
    talk.said();
    told(&mut talk, &first()).unwrap();
    group(&mut talk, 0);
    assert!(talk.line.hear_data(1, 0, &content[..GROUP_LEN]).is_err());
    assert!(told(&mut talk, &first()).is_err());
    let mut talk = Talk::begin(Case::default());
    talk.said();
    assert!(told(&mut talk, &GetAnswer { size: 2 * MIB as u64, ..first() }).is_err());
    let mut talk = Talk::begin(Case::default());
    talk.said();
    talk.hear(1, &GetAnswer { first: None, ..answer(&content, false) });
    assert!(talk.line.hear_data(1, 0, &content[..GROUP_LEN]).is_err());
}

#[test]
fn a_far_small_file_comes_with_the_first_answers() {
    let content = content(9);
    // Whichever answer comes first.
    for is_stat_first in [false, true] {
        let mut talk = Talk::begin(Case::default());
        talk.says(&[(Kind::Get, 1), (Kind::Stat, 2)]);
        if is_stat_first {
            talk.hear(2, &entry(EntryKind::File, content.len()));
            talk.says(&[]);
        }
        talk.hear(1, &answer(&content, true));
        talk.line.hear_data(1, 0, &content).unwrap();
        talk.hear(1, &Finish { size: content.len() as u64, root: Root::of(&content) });
        if !is_stat_first {
            talk.says(&[]);
            assert_eq!(talk.got(), None, "it is not known to be a file");
            talk.hear(2, &entry(EntryKind::File, content.len()));
        }
        talk.says(&[]);
        assert_eq!(talk.got().as_deref(), Some(&content[..]));
    }
}

#[test]
fn what_was_asked_with_the_hello_is_not_asked_again() {
    // It counts also where the server turns out to be nearer than it seemed.
    for round_trip in [FAR, Duration::from_millis(1)] {
        let mut talk = Talk::begin(Case { is_asked: true, round_trip, ..Case::default() });
        talk.says(&[]);
        talk.hear(1, &answer(&content(9), true));
        talk.line.hear_data(1, 0, &content(9)).unwrap();
        talk.hear(1, &Finish { size: 9, root: Root::of(&content(9)) });
        talk.hear(2, &entry(EntryKind::File, 9));
        talk.says(&[]);
        assert_eq!(talk.got().as_deref(), Some(&content(9)[..]));
    }

    // Something stands here by now: what comes is not wanted any more, or not so.
    let mut talk = Talk::begin(Case { is_asked: true, appears: true, ..Case::default() });
    talk.says(&[(Kind::Failed, 1)]);

    // A directory, and a file that was replaced by another since: as if each had been asked for by itself.
    let mut talk = Talk::begin(Case { is_asked: true, ..Case::default() });
    talk.hear(1, &Failed::from_error(&Error::new(ErrorKind::IsDirectory, "it is a directory")));
    talk.hear(2, &entry(EntryKind::Directory, 0));
    talk.says(&[(Kind::List, 3)]);
    let mut talk = Talk::begin(Case { is_asked: true, ..Case::default() });
    talk.hear(2, &entry(EntryKind::File, LARGE));
    talk.hear(1, &answer(&content(9), true));
    talk.line.hear_data(1, 0, &content(9)).unwrap();
    talk.says(&[(Kind::Failed, 1), (Kind::Get, 3)]);
}

#[test]
fn an_upload_that_was_described_with_the_hello_is_not_described_again() {
    for (is_asked, expected) in [(false, vec![(Kind::Put, 1)]), (true, vec![])] {
        let folder = folder();
        fs::write(folder.path().join("x"), content(LARGE)).unwrap();
        let source = PutSource::Local(folder.path().join("x"));
        let items = vec![PutItem { source, target: RemotePath::parse(b"x").unwrap() }];
        let mut options = ClientOptions::new(Endpoint::parse(b"simulated").unwrap(), TRUST.clone());
        if is_asked {
            options.first = FirstAsks::put(&items, &PutOptions::default());
        }
        let said = Mutex::new(Some((hello(), options.first.frames(None))));
        let dialed = Arc::<Mutex<Option<Line>>>::default();
        let line = Arc::clone(&dialed);
        let dial = move |client: &Client| {
            let said = said.lock().unwrap().take().expect("one connection");
            let (session, made) = Line::asked(said, FAR, Pool::new(64 * MIB), Arc::clone(client.stalls()));
            *line.lock().unwrap() = Some(made);
            Ok(session)
        };
        let (events, _told) = channel();
        let client = Client::simulated(options, events, Box::new(dial));
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let local = LocalSet::new();
        let _task = local.spawn_local(async move { client.put(items, PutOptions::default()).await });
        runtime.block_on(local.run_until(async { sleep(Duration::from_secs(12)).await }));
        let mut line = dialed.lock().unwrap().take().unwrap();
        let said = line.said(&mut Context::from_waker(Waker::noop()));
        let kinds: Vec<_> = said.iter().map(|frame| parse(frame)).map(|(kind, number, _)| (kind, number)).collect();
        assert_eq!(kinds, expected);
    }
}

#[test]
fn what_was_opened_early_and_is_something_else_is_given_up() {
    let mut talk = Talk::begin(Case::default());
    talk.says(&[(Kind::Get, 1), (Kind::Stat, 2)]);
    talk.hear(2, &entry(EntryKind::Directory, 0));
    talk.says(&[(Kind::Failed, 1), (Kind::List, 3)]);
    // Its answer comes late, and says nothing to anybody.
    let refusal = Error::new(ErrorKind::IsDirectory, "it is a directory");
    talk.hear(1, &Failed::from_error(&refusal));
    talk.says(&[]);
    assert_eq!(talk.got(), None);
}

#[test]
fn a_file_that_changed_between_the_two_answers_is_opened_anew() {
    // It was large, and is small: all of it comes with its answer.
    let mut talk = Talk::begin(Case::default());
    talk.says(&[(Kind::Get, 1), (Kind::Stat, 2)]);
    talk.hear(2, &entry(EntryKind::File, LARGE));
    talk.hear(1, &answer(&content(9), true));
    talk.line.hear_data(1, 0, &content(9)).unwrap();
    talk.says(&[(Kind::Failed, 1), (Kind::Get, 3)]);
    // It was small, and is large.
    let mut talk = Talk::begin(Case::default());
    talk.says(&[(Kind::Get, 1), (Kind::Stat, 2)]);
    talk.hear(2, &entry(EntryKind::File, 9));
    talk.hear(1, &answer(&content(LARGE), false));
    talk.says(&[(Kind::Failed, 1), (Kind::Get, 3)]);
}

/// Fetches a large file of which the server has recorded this root, to the end of its content. Only the answer to the
/// `Close` is missing then.
fn to_its_end(case: Case, root: Option<Root>) -> Talk {
    let content = content(LARGE);
    let get = if case.round_trip == FAR && case.invite.is_none() { 1 } else { 2 };
    let mut talk = Talk::begin(case);
    talk.said();
    talk.hear(3 - get, &entry(EntryKind::File, LARGE));
    talk.said();
    talk.hear(get, &GetAnswer { root, ..answer(&content, false) });
    talk.says(&[(Kind::Want, get)]);
    for offset in (0..LARGE).step_by(GROUP_LEN) {
        let end = LARGE.min(offset + GROUP_LEN);
        talk.line.hear_data(get, offset as u64, &content[offset..end]).unwrap();
    }
    talk.says(&[(Kind::Close, get)]);
    talk
}

#[test]
fn the_end_of_a_far_download_is_waited_for_unless_the_server_has_said_what_it_is() {
    let content = content(LARGE);
    let root = Root::of(&content);
    let mut talk = to_its_end(Case::default(), Some(root));
    assert!(talk.got().as_ref() == Some(&content), "all of it is here, and is what the server said");
    let late = Error::new(ErrorKind::Changed, "x changed while it was read");
    talk.hear(1, &Failed::from_error(&late));
    talk.says(&[]);

    let other = Root([1; 32]);
    let near = Case { round_trip: Duration::from_millis(1), ..Case::default() };
    let invite = Some(Redemption { ticket: Ticket::new([1; 32]), run: Bytes16([2; 16]) });
    let invited = Case { invite, ..Case::default() };
    for (what, case, told, get) in [
        ("nothing was recorded", Case::default(), None, 1),
        ("the server is near", near, Some(root), 2),
        ("what is handed out counts", invited, Some(root), 2),
    ] {
        let mut talk = to_its_end(case, told);
        assert!(talk.got().is_none(), "{what}");
        talk.hear(get, &Finish { size: LARGE as u64, root });
        talk.says(&[]);
        assert!(talk.got().is_some(), "{what}");
    }

    // The server may yet say that it has changed. If it does not, it has rotted.
    let mut talk = to_its_end(Case::default(), Some(other));
    assert!(talk.got().is_none());
    talk.hear(1, &Finish { size: LARGE as u64, root });
    talk.says(&[]);
    assert_eq!(talk.failed(), Some(ErrorKind::Rotten));
    assert!(!talk.folder.path().join("x").exists());
}

#[test]
fn what_the_server_says_of_the_end_before_it_is_asked_is_not_waited_for() {
    let content = content(LARGE);
    let end = |root| protocol::FinishAhead { size: LARGE as u64, root };
    let near = || Case { round_trip: Duration::from_millis(1), ..Case::default() };
    for (case, get) in [(Case::default(), 1), (near(), 2)] {
        // It comes after the client has asked.
        let mut talk = to_its_end(case, None);
        assert!(talk.got().is_none());
        talk.hear(get, &end(Root::of(&content)));
        talk.says(&[]);
        assert!(talk.got().as_ref() == Some(&content));
        talk.hear(get, &Finish { size: LARGE as u64, root: Root::of(&content) });
        talk.says(&[]);
    }
    // It comes before all content, which may be under way over lanes.
    for (root, failure) in [(Root::of(&content), None), (Root([1; 32]), Some(ErrorKind::Changed))] {
        let mut talk = Talk::begin(Case::default());
        talk.said();
        talk.hear(2, &entry(EntryKind::File, LARGE));
        talk.hear(1, &GetAnswer { root: None, ..answer(&content, false) });
        talk.says(&[(Kind::Want, 1)]);
        talk.hear(1, &end(root));
        for offset in (0..LARGE).step_by(GROUP_LEN) {
            let end = LARGE.min(offset + GROUP_LEN);
            talk.line.hear_data(1, offset as u64, &content[offset..end]).unwrap();
        }
        match failure {
            None => {
                talk.says(&[(Kind::Close, 1)]);
                assert!(talk.got().as_ref() == Some(&content));
            }
            // Nothing else than what came is believed before the answer, which may be that it has changed.
            Some(kind) => {
                talk.says(&[(Kind::Close, 1)]);
                assert!(talk.got().is_none());
                talk.hear(1, &Failed::from_error(&Error::new(kind, "x changed while it was read")));
                talk.says(&[(Kind::Get, 3)]);
            }
        }
    }
}

/// What is wanted over one of the connections: which, the transfer, where, and how much.
type Wanted = (Option<usize>, u32, u64, usize);

#[test]
fn a_download_beside_one_that_keeps_all_lanes_busy_gets_its_part() {
    let contents = [content(6 * MIB), content(300 * KIB)];
    let mut talk = Talk::begin(Case { names: vec!["x", "y"], ..Case::default() });
    let pool = Pool::new(64 * MIB);
    let lane = || lanes::Line::new(talk.line.session().lanes(), pool.clone()).unwrap();
    let mut lanes = [lane(), lane()];
    let which = |path: &RemotePath| usize::from(path.to_bytes() == b"y");
    let mut opened: Vec<u32> = vec![0; 2];
    let mut wanted: Vec<Wanted> = Vec::new();
    let mut is_held = true;
    for _ in 0..12 {
        let said = talk.said().into_iter().map(|said| (None, said));
        let over_lanes = lanes.iter_mut().enumerate().flat_map(|(number, lane)| {
            let parsed = move |frame: Bytes| {
                let (kind, transfer, payload) = parse(&frame);
                (Some(number), (kind, transfer, payload.to_vec()))
            };
            lane.said().into_iter().map(parsed)
        });
        for (over, (kind, transfer, payload)) in said.chain(over_lanes).collect::<Vec<_>>() {
            match kind {
                Kind::Stat => {
                    let stat = protocol::Stat::from_payload(&payload).unwrap();
                    talk.hear(transfer, &entry(EntryKind::File, contents[which(&stat.path)].len()));
                }
                Kind::Get => {
                    let name = which(&Get::from_payload(&payload).unwrap().path);
                    opened[name] = transfer;
                    talk.hear(transfer, &answer(&contents[name], false));
                }
                Kind::Want => {
                    let ranges = protocol::Want::from_payload(&payload).unwrap().ranges.0;
                    wanted.extend(ranges.into_iter().map(|(offset, len)| (over, transfer, offset, len as usize)));
                }
                Kind::Close => {}
                other => panic!("the client says {other:?}"),
            }
        }
        // All of them owe some of the first. Nothing of that comes before something of the second is asked for.
        is_held &= !wanted.iter().any(|&(_, transfer, ..)| transfer != 0 && transfer == opened[1]);
        if is_held {
            continue;
        }
        for (over, transfer, offset, len) in wanted.drain(..) {
            let content = &contents[usize::from(transfer == opened[1])][offset as usize..][..len];
            match over {
                None => talk.line.hear_data(transfer, offset, content).unwrap(),
                Some(lane) => lanes[lane].hear_data(transfer, offset, content).unwrap(),
            }
        }
    }
    assert_eq!(talk.failed(), None);
    assert!(talk.task.is_finished(), "nothing of the second file was asked for: {is_held}");
    for (name, content) in ["x", "y"].iter().zip(&contents) {
        assert!(fs::read(talk.folder.path().join(name)).unwrap() == *content, "{name}");
    }
}
