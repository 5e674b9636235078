use super::*;
use crate::limits::INVITE_SIZE_STEP;
use crate::path::RemotePath;
use crate::protocol::InviteSecret;
use crate::storage::{Store, StoreOptions};

struct World {
    _folder: tempfile::TempDir,
    root: std::path::PathBuf,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        World { _folder: folder, root }
    }

    /// What is there, as a server that starts sees it. The store must live as long.
    fn open(&self) -> (Store, Invites) {
        let store = Store::open_served(&self.root, StoreOptions { invites: true, ..StoreOptions::default() }).unwrap();
        let records = store.invite_records().unwrap();
        (store, Invites::open(records, None).unwrap())
    }
}

fn ticket(byte: u8) -> Ticket {
    InviteSecret::new(zeroize::Zeroizing::new([byte; 32])).ticket(&RemotePath::root())
}

/// An invite that began a day ago and ends in so many seconds.
fn record(byte: u8, left: i64, uses: u32, max_size: Option<u64>) -> Record {
    let now = seconds(SystemTime::now());
    Record {
        verifier: ticket(byte).verifier().into(),
        issued: now - 86400,
        expires: now + left,
        uses,
        max_size,
        ..Record::empty()
    }
}

fn take(invites: &Invites, byte: u8, run: u8) -> Result<Arc<Attendance>, ErrorKind> {
    let found = invites.find(&ticket(byte)).map_err(|error| error.kind())?;
    found.take_part(Some(&Bytes16([run; 16]))).map(Arc::new).map_err(|error| error.kind())
}

fn spent(invites: &Invites, byte: u8) -> (u32, u32, u64) {
    let kept = invites.get(ticket(byte).verifier().id()).flatten().unwrap();
    let facts = kept.facts(RemotePath::root(), false);
    (facts.spent, facts.reserved, facts.used_size)
}

#[test]
fn a_crash_at_any_step_gives_no_use_more() {
    let world = World::new();
    {
        let (_store, invites) = world.open();
        invites.add(record(1, 60, 2, Some(100))).unwrap();
        // Reserved; about to commit; committed; and no place for a third.
        let reserved = take(&invites, 1, 1).unwrap();
        let committing = take(&invites, 1, 2).unwrap();
        std::mem::forget(committing.spend(40, Vec::new()).unwrap());
        assert_eq!(take(&invites, 1, 3).err(), Some(ErrorKind::Limit));
        assert_eq!(spent(&invites, 1), (1, 1, 40));
        std::mem::forget((reserved, committing));
    }
    {
        let (_store, invites) = world.open();
        // What was about to be committed may have been.
        assert_eq!(spent(&invites, 1), (1, 1, 40));
        assert_eq!(take(&invites, 1, 3).err(), Some(ErrorKind::Limit));
        // Both runs go on in their own uses.
        let first = take(&invites, 1, 1).unwrap();
        let second = take(&invites, 1, 2).unwrap();
        second.spend(60, Vec::new()).unwrap().done(60);
        assert_eq!(first.spend(1, Vec::new()).map(drop).unwrap_err().kind(), ErrorKind::Limit);
        first.end();
        second.end();
        assert_eq!(spent(&invites, 1), (1, 0, 100));
        // Over is over: the same number is another use.
        drop(take(&invites, 1, 2).unwrap());
    }
    let (_store, invites) = world.open();
    assert_eq!(spent(&invites, 1), (1, 1, 100));
}

#[test]
fn what_failed_is_given_back() {
    let world = World::new();
    let (store, invites) = world.open();
    invites.add(record(1, 60, 1, Some(100))).unwrap();
    let run = take(&invites, 1, 1).unwrap();
    drop(run.spend(70, Vec::new()).unwrap());
    assert_eq!(spent(&invites, 1), (0, 1, 0));
    // Of a batch, what was stored counts.
    let mut some = run.spend(90, Vec::new()).unwrap();
    some.done(30);
    drop(some);
    assert_eq!(spent(&invites, 1), (1, 0, 30));
    drop((invites, run, store));
    let (_store, invites) = world.open();
    assert_eq!(spent(&invites, 1), (1, 0, 30));
}

#[test]
fn room_is_held_before_content_comes_and_never_twice() {
    let world = World::new();
    let (_store, invites) = world.open();
    invites.add(record(1, 60, 3, Some(100))).unwrap();
    let (one, two) = (take(&invites, 1, 1).unwrap(), take(&invites, 1, 2).unwrap());
    let first = one.claim(60, "a".to_owned()).unwrap();
    assert_eq!(two.claim(60, "b".to_owned()).map(drop).unwrap_err().kind(), ErrorKind::Limit);
    let mut stream = two.claim(0, "c".to_owned()).unwrap();
    stream.cover(40).unwrap();
    assert_eq!(stream.cover(41).unwrap_err().kind(), ErrorKind::Limit);
    // The client of the first is cut off and comes back before the server knows: its room is its own.
    let again = take(&invites, 1, 1).unwrap();
    assert_eq!(one.check().unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(one.spend(1, Vec::new()).map(drop).unwrap_err().kind(), ErrorKind::Superseded);
    let second = again.claim(60, "a".to_owned()).unwrap();
    drop(first);
    assert_eq!(two.claim(1, "d".to_owned()).map(drop).unwrap_err().kind(), ErrorKind::Limit);
    again.spend(60, vec![second]).unwrap().done(60);
    drop(stream);
    drop(two.claim(40, "e".to_owned()).unwrap());
}

#[test]
fn nothing_begins_after_the_end_and_what_runs_has_an_hour() {
    let world = World::new();
    let (_store, invites) = world.open();
    let grace = whole(INVITE_GRACE);
    invites.add(record(1, 60, 9, None)).unwrap();
    let run = take(&invites, 1, 1).unwrap();
    for (byte, left) in [(2, -1), (3, -(grace - 60)), (4, -(grace + 1))] {
        let expired = Record {
            runs: List(vec![RunRecord { key: Bytes16(run_key(&[1; 16])), is_spent: true }]),
            ..record(byte, left, 9, None)
        };
        invites.add(expired).unwrap();
        assert_eq!(take(&invites, byte, 2).err(), Some(ErrorKind::Rights), "{left}");
        assert_eq!(take(&invites, byte, 1).is_ok(), left > -grace, "{left}");
    }
    assert!(run.check().is_ok());
    let told = invites.find(&ticket(2)).unwrap().take_part(None).map(drop).unwrap_err();
    assert!(told.chain().contains("expired at"), "{}", told.chain());
}

#[test]
fn reserved_uses_of_runs_that_are_gone_are_given_back_in_time() {
    let world = World::new();
    let (_store, invites) = world.open();
    invites.add(record(1, 60, 2, None)).unwrap();
    let (one, two) = (take(&invites, 1, 1).unwrap(), take(&invites, 1, 2).unwrap());
    two.spend(0, Vec::new()).unwrap().done(0);
    drop((one, two));
    assert_eq!(take(&invites, 1, 3).err(), Some(ErrorKind::Limit), "not yet");
    let kept = invites.get(ticket(1).verifier().id()).flatten().unwrap();
    for run in lock(&kept.state).runs.values_mut() {
        run.left = Instant::now().checked_sub(INVITE_RESERVED).expect("a machine that runs for ten minutes");
    }
    let three = take(&invites, 1, 3).unwrap();
    assert_eq!(spent(&invites, 1), (1, 1, 0));
    // What is spent stays its run's.
    drop(take(&invites, 1, 2).unwrap());
    assert_eq!(take(&invites, 1, 1).err(), Some(ErrorKind::Limit));
    drop(three);
}

#[test]
fn a_file_is_spent_by_its_end_and_what_did_not_go_out_does_not_count() {
    let world = World::new();
    let (store, invites) = world.open();
    let step = INVITE_SIZE_STEP;
    invites.add(record(1, 60, 2, Some(3 * step))).unwrap();
    let run = take(&invites, 1, 1).unwrap();
    run.hand_out(step, false).unwrap();
    assert_eq!(spent(&invites, 1), (0, 1, step));
    run.take_back(step / 2);
    assert!(run.check_download(3 * step, "f").is_ok(), "it goes on with the file");
    assert!(take(&invites, 1, 2).unwrap().check_download(3 * step, "f").is_err(), "another begins it");
    run.hand_out(0, true).unwrap();
    assert_eq!(spent(&invites, 1).0, 1);
    assert_eq!(run.hand_out(3 * step, false).unwrap_err().kind(), ErrorKind::Limit);
    drop((run, invites, store));
    let (_store, invites) = world.open();
    let (_, _, used) = spent(&invites, 1);
    assert!((step / 2..=2 * step).contains(&used), "after a crash it may be a step more: {used}");
}

#[test]
fn wrong_tickets_are_all_the_same() {
    let world = World::new();
    let (_store, invites) = world.open();
    invites.add(record(1, 60, 1, None)).unwrap();
    invites.add(record(2, -7200, 1, None)).unwrap();
    let kept = invites.get(ticket(1).verifier().id()).flatten().unwrap();
    kept.revoke().unwrap();
    let mut said = std::collections::BTreeSet::new();
    for byte in [1, 2, 3] {
        let mut secret = [byte; 32];
        for bit in 0..256 {
            secret[bit / 8] ^= 1 << (bit % 8);
            let ticket = InviteSecret::new(zeroize::Zeroizing::new(secret)).ticket(&RemotePath::root());
            said.insert(invites.find(&ticket).map(drop).unwrap_err().chain());
            secret[bit / 8] ^= 1 << (bit % 8);
        }
    }
    assert_eq!(said.len(), 1);
    assert!(!said.contains(&invites.find(&ticket(1)).map(drop).unwrap_err().chain()), "its holder is told");
}

#[test]
fn a_record_under_another_name_or_version_is_damaged() {
    let world = World::new();
    {
        let (_store, invites) = world.open();
        invites.add(record(1, 60, 1, None)).unwrap();
        let other = ticket(2).verifier().id().to_string();
        invites.records.replace(&other, &record(1, 60, 1, None).to_bytes()).unwrap();
        let newer = Record { version: 2, ..record(3, 60, 1, None) };
        invites.records.replace(&ticket(3).verifier().id().to_string(), &newer.to_bytes()).unwrap();
        // Ended long ago, and forgotten.
        invites
            .records
            .replace(&ticket(4).verifier().id().to_string(), &record(4, -whole(INVITE_KEPT) - 60, 1, None).to_bytes())
            .unwrap();
    }
    let (_store, invites) = world.open();
    let told = |byte| invites.find(&ticket(byte)).map(drop).map_err(|error| error.chain().contains("damaged"));
    assert_eq!((told(1), told(2), told(3), told(4)), (Ok(()), Err(true), Err(true), Err(false)));
}
