//! Uploads that are cut and go on: by the client itself, by the same command run again, by the next server (cases
//! F01, F02, D01, D11). What is stored is right whatever is held; what is held is not sent again.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use sealift::hash::GroupHash;
use sealift::transfer::{Ledger, Record};
use serde_json::Value;

use crate::rig::{
    Cut, Hook, Mount, Plan, Proxy, Ran, Server, World, binary, content, hash_of, leftovers, remote, until,
};

const MIB: usize = 1 << 20;
const STEP: u64 = 64 << 10;
/// A link that a file of some MiB takes seconds on.
const SLOW: u64 = 6 << 20;

fn partials(world: &World) -> Vec<Value> {
    let output = binary().args(["uploads", "ls", "--json", "--root"]).arg(world.root()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The only unfinished upload, once nobody receives it.
#[track_caller]
fn resting(world: &World) -> Value {
    until("one unfinished upload rests", || {
        let found = partials(world);
        (found.len() == 1 && found[0]["active"] == false).then(|| found[0].clone())
    })
}

fn held(world: &World) -> u64 {
    resting(world)["held"].as_u64().unwrap()
}

/// What lies in the state directory for unfinished uploads: content and records.
fn kept_files(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let names = fs::read_dir(root.join(".sealift/partial")).unwrap().map(|entry| entry.unwrap().path());
    names.partition(|path| path.file_name().unwrap().to_str().unwrap().starts_with(".sealift-"))
}

fn kept_count(root: &Path) -> usize {
    let (contents, records) = kept_files(root);
    contents.len() + records.len()
}

fn number(ran: &Ran, name: &str) -> u64 {
    ran.summary()[name].as_u64().unwrap_or_else(|| panic!("no {name}: {ran:?}"))
}

fn start(server: &Server, source: &Path, target: &str) -> Child {
    let mut command = server.client(&["put", "--json"]);
    command.arg(source).arg(target).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a client over a link that calls what it is given when the client is to be killed. Later connections over the
/// same link come through.
#[track_caller]
fn kill(server: &Server, plan: impl Fn(Hook) -> Plan + Send + 'static, start: impl FnOnce(u16) -> Child) -> Proxy {
    let victim = Arc::new(AtomicI32::new(0));
    let dying = Arc::clone(&victim);
    let proxy = Proxy::new(server.port, move |number| {
        if number > 0 {
            return Plan::default();
        }
        let dying = Arc::clone(&dying);
        plan(Arc::new(move || {
            let pid = until("the client is known", || Pid::from_raw(dying.load(Ordering::SeqCst)));
            let _ = kill_process(pid, Signal::KILL);
        }))
    });
    let client = start(proxy.port);
    victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
    let output = client.wait_with_output().unwrap();
    assert!(!output.status.success(), "it was to be killed: {output:?}");
    proxy
}

/// Begins an upload over a slow link and kills its client once so many bytes have passed.
#[track_caller]
fn interrupt(server: &Server, source: &Path, name: &str, at: u64) {
    let plan = move |kills| Plan { up: Some((at, kills)), rate: Some(4 * SLOW), ..Plan::default() };
    kill(server, plan, |port| start(server, source, &remote(port, name)));
}

#[track_caller]
fn check_stored(world: &World, name: &str, bytes: &[u8]) {
    let there = fs::read(world.root().join(name)).unwrap();
    assert!(there == bytes, "{name}: {} bytes with the hash {}", there.len(), hash_of(&there));
    until("nothing is kept of what is stored", || (kept_count(&world.root()) == 0).then_some(()));
    assert!(leftovers(&world.root()).is_empty());
}

/// Case F01: at each cut at most a step of 64 KiB is lost, and what was on its way.
#[test]
fn a_cut_upload_goes_on_by_itself_from_where_it_was() {
    let world = World::new();
    let server = world.serve();
    let len = 9 * MIB + 12_345;
    for (how, cut) in [("end", Cut::End), ("reset", Cut::Reset)] {
        let source = world.file(how, &content(1, len));
        let cuts = 4;
        let proxy = Proxy::new(server.port, move |number| {
            let at = 1_700_000 + 300_000 * number as u64;
            Plan { cut_up: (number < cuts).then_some((at, cut)), rate: Some(2 * SLOW), ..Plan::default() }
        });
        let ran = Ran::of(start(&server, &source, &remote(proxy.port, how)).wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(proxy.connections(), cuts + 1, "{ran:?}");
        assert_eq!((number(&ran, "retries"), number(&ran, "bytes_held")), (cuts as u64, 0), "{ran:?}");
        check_stored(&world, how, &content(1, len));
        let sent = proxy.bytes().0;
        let extra = sent - len as u64;
        println!("{how}: {extra} bytes more than the file crossed the wire in {cuts} cuts");
        // A reset takes along what the server had not read.
        let per_cut = if cut == Cut::End { 2 * STEP } else { 12 * STEP };
        assert!(extra < (cuts as u64 + 1) * per_cut + 100_000, "{how}: {extra} bytes more than the file: {ran:?}");
    }
}

/// A connection that never lives long enough for one group: beginnings of groups are kept, so it ends all the same.
#[test]
fn a_link_that_is_cut_before_any_group_is_whole_gets_there() {
    let world = World::new();
    let server = world.serve();
    let len = 2 * MIB + 5;
    let source = world.file("x", &content(2, len));
    let proxy = Proxy::new(server.port, |number| Plan {
        cut_up: (number < 7).then_some((400_000, Cut::End)),
        rate: Some(SLOW),
        ..Plan::default()
    });
    let ran = Ran::of(start(&server, &source, &remote(proxy.port, "x")).wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    check_stored(&world, "x", &content(2, len));
    assert!(proxy.bytes().0 < len as u64 + 8 * 2 * STEP, "{} bytes: {ran:?}", proxy.bytes().0);
}

/// Case D01: what was received outlives the client, and the server too.
#[test]
fn the_same_command_goes_on_after_the_death_of_client_and_server() {
    let world = World::new();
    let len = 12 * MIB + 1;
    let source = world.file("x", &content(3, len));
    for (how, is_over) in [("client", false), ("client and server", false), ("over an older version", true)] {
        let server = world.serve();
        if is_over {
            fs::write(world.root().join("x"), content(4, len)).unwrap();
        }
        interrupt(&server, &source, "x", 6_500_000);
        let there = held(&world);
        assert!(there > 4_000_000, "{how}: {there} bytes are held");
        let listed = server.client(&["ls", "-lR", &server.at("")]).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(listed.contains(" x"), is_over, "it is no file: {listed}");
        assert!(!listed.contains("sealift"), "{listed}");
        let server = if how == "client" {
            server
        } else {
            server.kill();
            world.serve()
        };
        assert_eq!(held(&world), there, "{how}");
        let ran = server.put(&source, "x");
        let (kept, moved) = (number(&ran, "bytes_held"), number(&ran, "bytes_moved"));
        assert_eq!(kept + moved, len as u64, "{how}");
        // Of an older version, what is other content was copied to its place too, and is no use now.
        assert!(kept == there || is_over && kept > 4_000_000, "{how}: {kept} of {there} held bytes were of use");
        check_stored(&world, "x", &content(3, len));
        let again = server.put(&source, "x");
        assert_eq!((&again.summary()["unchanged"], number(&again, "bytes_moved")), (&1.into(), 0));
        fs::remove_file(world.root().join("x")).unwrap();
    }
}

/// The server dies in the middle of a file, and the client goes on with its successor: a second of work is lost at
/// most.
#[test]
fn an_upload_outlives_its_server_without_beginning_anew() {
    let world = World::new();
    let server = world.serve();
    let len = 16 * MIB;
    let source = world.file("x", &content(5, len));
    let pid = server.pid();
    let proxy = Proxy::new(server.port, move |number| {
        let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || kill_process(pid, Signal::KILL).unwrap());
        Plan { up: (number == 0).then_some((13 << 20, hook)), rate: Some(SLOW), ..Plan::default() }
    });
    let mut server = server;
    let client = start(&server, &source, &remote(proxy.port, "x"));
    until("the server dies", || (!server.is_alive()).then_some(()));
    let server = world.serve();
    proxy.aim(server.port);
    let ran = Ran::of(client.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    check_stored(&world, "x", &content(5, len));
    let resent = number(&ran, "bytes_resent");
    println!("{resent} bytes were sent again");
    assert!(resent < 12 << 20, "{ran:?}");
}

/// Case D11: whatever becomes of what is held, what is stored is right.
#[test]
fn damage_to_what_is_held_costs_what_is_damaged() {
    let world = World::new();
    let len = 8 * MIB + 77;
    let bytes = content(6, len);
    let source = world.file("x", &bytes);
    type Damage = fn(&Path, &Path);
    // Groups come in any order: of those that are there whole, one is damaged.
    let flip: Damage = |data, _| {
        let (there, right) = (fs::read(data).unwrap(), content(6, 8 * MIB + 77));
        let whole = there.chunks_exact(MIB).zip(right.chunks_exact(MIB)).position(|(there, right)| there == right);
        let at = whole.expect("a whole group") * MIB + 500_000;
        let file = fs::OpenOptions::new().write(true).open(data).unwrap();
        file.write_all_at(&[there[at] ^ 1], at as u64).unwrap();
    };
    let cut_data: Damage = |data, _| fs::OpenOptions::new().write(true).open(data).unwrap().set_len(1 << 20).unwrap();
    let cut_record: Damage = |_, record| {
        let bytes = fs::read(record).unwrap();
        fs::write(record, &bytes[..bytes.len() / 2]).unwrap();
    };
    let flip_record: Damage = |_, record| {
        let mut bytes = fs::read(record).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(record, &bytes).unwrap();
    };
    let no_data: Damage = |data, _| fs::remove_file(data).unwrap();
    let no_record: Damage = |_, record| fs::remove_file(record).unwrap();
    let litter: Damage = |data, _| fs::write(data.with_file_name("0000.new"), b"x").unwrap();
    let group = 1 << 20;
    // What is sent again at least, and at most.
    type Bounds = fn(u64) -> (u64, u64);
    let cases: [(&str, Damage, Bounds); 7] = [
        ("a flipped bit", flip, |_| (1 << 20, 1 << 20)),
        ("lost data", cut_data, |held| (held - (1 << 20), held)),
        ("a torn record", cut_record, |held| (held, held)),
        ("a damaged record", flip_record, |held| (held, held)),
        ("no data", no_data, |held| (held, held)),
        ("no record", no_record, |held| (held, held)),
        ("litter", litter, |_| (0, 0)),
    ];
    for is_restarted in [true, false] {
        for (what, damage, expected) in &cases {
            let server = world.serve();
            interrupt(&server, &source, "x", 5_000_000);
            let there = held(&world);
            assert!(there > 3 * group, "{there}");
            let (contents, records) = kept_files(&world.root());
            let server = if is_restarted {
                server.stop();
                damage(&contents[0], &records[0]);
                world.serve()
            } else {
                damage(&contents[0], &records[0]);
                server
            };
            let ran = server.put(&source, "x");
            let (least, most) = expected(there);
            let again = number(&ran, "bytes_moved") - (len as u64 - there);
            assert!(again >= least && again <= most, "{what}: {again} bytes sent again, held {there}: {ran:?}");
            let there = fs::read(world.root().join("x")).unwrap();
            assert!(there == bytes, "{what}");
            drop(server);
            world.serve().stop();
            assert_eq!(kept_count(&world.root()), 0, "{what}: the next start cleans up");
            fs::remove_file(world.root().join("x")).unwrap();
        }
    }
}

/// Bytes that a process has read from files.
fn bytes_read(server: &Server) -> u64 {
    let told = fs::read_to_string(format!("/proc/{}/io", server.pid().as_raw_nonzero())).unwrap();
    let line = told.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

/// Over a link that breaks every few seconds, reading back all that is held at each attempt would outlast the link.
#[test]
fn what_was_read_back_once_is_not_read_again_at_each_attempt() {
    let world = World::new();
    let server = world.serve();
    let len = 24 * MIB;
    let source = world.file("x", &content(31, len));
    interrupt(&server, &source, "x", 14 << 20);
    let first = held(&world);
    let before = bytes_read(&server);
    interrupt(&server, &source, "x", 3 << 20);
    let second = held(&world);
    let read = bytes_read(&server) - before;
    assert!(read > first - (2 << 20), "of {first} bytes held, {read} were read back");
    let before = bytes_read(&server);
    let ran = server.put(&source, "x");
    let read = bytes_read(&server) - before;
    // The first group, what has come since, and what hardly counts: files of the system.
    assert!(read < second - first + (3 << 20), "{read} bytes were read for {} new ones", second - first);
    assert_eq!(number(&ran, "bytes_held"), second, "{ran:?}");
    check_stored(&world, "x", &content(31, len));
}

/// The same, and somebody touches what rests after it was read back.
#[test]
fn what_was_touched_since_it_was_read_back_is_read_again() {
    let world = World::new();
    let server = world.serve();
    let len = 16 * MIB;
    let bytes = content(32, len);
    let source = world.file("x", &bytes);
    interrupt(&server, &source, "x", 8 << 20);
    interrupt(&server, &source, "x", 2 << 20);
    let there = held(&world);
    let (contents, _) = kept_files(&world.root());
    let now = fs::read(&contents[0]).unwrap();
    let whole: Vec<_> = (1..16)
        .filter(|group| now.get(group * MIB..(group + 1) * MIB) == Some(&bytes[group * MIB..(group + 1) * MIB]))
        .collect();
    assert!(whole.len() > 4, "{whole:?}");
    let file = fs::OpenOptions::new().write(true).open(&contents[0]).unwrap();
    for group in &whole {
        let at = group * MIB + 500_000;
        file.write_all_at(&[now[at] ^ 1], at as u64).unwrap();
    }
    drop(file);
    let ran = server.put(&source, "x");
    let again = number(&ran, "bytes_moved") - (len as u64 - there);
    // The end of the group that was cut may have been written and not been recorded, so that it does not come again.
    assert!(again > ((whole.len() - 1) * MIB) as u64, "{again} bytes of {whole:?} were sent again: {ran:?}");
    check_stored(&world, "x", &bytes);
}

/// A power cut leaves a record that is older than the content, or content that is older than the record.
#[test]
fn records_and_content_of_different_moments_never_make_a_wrong_file() {
    let world = World::new();
    let len = 8 * MIB + 77;
    let (old, new) = (content(7, len), content(8, len));
    let source = world.file("x", &old);
    let server = world.serve();
    interrupt(&server, &source, "x", 2_500_000);
    resting(&world);
    let (contents, records) = kept_files(&world.root());
    let (early_data, early_record) = (fs::read(&contents[0]).unwrap(), fs::read(&records[0]).unwrap());
    // Other content under the same name goes on in the same place.
    fs::write(&source, &new).unwrap();
    interrupt(&server, &source, "x", 6_000_000);
    resting(&world);
    let (late_contents, late_records) = kept_files(&world.root());
    assert_eq!((&contents, &records), (&late_contents, &late_records));
    let (late_data, late_record) = (fs::read(&contents[0]).unwrap(), fs::read(&records[0]).unwrap());
    server.stop();
    for (what, data, record) in [
        ("an older record", &late_data, &early_record),
        ("older content", &early_data, &late_record),
        ("both older", &early_data, &early_record),
    ] {
        for bytes in [&old, &new] {
            fs::write(&contents[0], data).unwrap();
            fs::write(&records[0], record).unwrap();
            fs::write(&source, bytes).unwrap();
            let server = world.serve();
            let ran = server.put(&source, "x");
            println!("{what}: {} moved", number(&ran, "bytes_moved"));
            assert!(fs::read(world.root().join("x")).unwrap() == *bytes, "{what}");
            server.stop();
            fs::remove_file(world.root().join("x")).unwrap();
        }
    }
}

/// An attempt that was killed between its last group and its finish has left all that the next one needs, so nothing
/// is sent; still it is another version that has the name, and what is acknowledged must be there.
#[test]
fn what_is_held_whole_is_stored_over_another_version() {
    let world = World::new();
    let len = 8 * MIB + 77;
    let new = content(17, len);
    // Another version all through, and one of which the client finds every group but the first.
    let alike = [&content(18, MIB), &new[MIB..]].concat();
    let source = world.file("x", &new);
    for (what, old, held) in [("all is held", content(18, len), 0..9), ("the rest is there", alike, 0..1)] {
        let server = world.serve();
        interrupt(&server, &source, "x", 2_500_000);
        resting(&world);
        server.stop();
        let (contents, records) = kept_files(&world.root());
        let mut record = Record::decode(&fs::read(&records[0]).unwrap()).unwrap();
        record.held = Ledger::new(len as u64);
        for (group, bytes) in (0..).zip(new.chunks(MIB)).filter(|(group, _)| held.contains(group)) {
            record.held.insert(group, GroupHash::of(group, bytes).value);
        }
        fs::write(&contents[0], &new).unwrap();
        fs::write(&records[0], record.encode()).unwrap();
        fs::write(world.root().join("x"), &old).unwrap();
        let server = world.serve();
        let ran = server.put(&source, "x");
        assert_eq!((number(&ran, "bytes_moved"), &ran.summary()["unchanged"]), (0, &0.into()), "{what}: {ran:?}");
        assert_eq!(ran.done_files()[0].1, hash_of(&new), "{what}");
        check_stored(&world, "x", &new);
        fs::remove_file(world.root().join("x")).unwrap();
    }
}

/// Size and content are no part of the key: whatever of it is still right is used, and nothing else.
#[test]
fn a_source_that_is_another_one_by_the_next_attempt_is_stored_as_it_is_then() {
    let world = World::new();
    let len = 8 * MIB + 500_000;
    let bytes = content(9, len);
    let mut changed = bytes.clone();
    changed[2 * MIB + 5] ^= 1;
    let other = content(10, len);
    let cases: [(&str, Vec<u8>, u64); 7] = [
        ("shrunk inside what is held", bytes[..2 * MIB + 300_000].to_vec(), u64::MAX),
        ("shrunk to a border", bytes[..4 * MIB].to_vec(), 3 * MIB as u64),
        ("shrunk to something small", bytes[..70_000].to_vec(), 70_000),
        ("grown", [bytes.as_slice(), &content(11, 2 * MIB)].concat(), u64::MAX),
        ("changed in one place", changed, u64::MAX),
        ("another one", other.clone(), u64::MAX),
        ("begins alike", [&bytes[..MIB + 9], &other[MIB + 9..]].concat(), u64::MAX),
    ];
    let server = world.serve();
    for (what, next, most) in cases {
        let source = world.file("x", &bytes);
        interrupt(&server, &source, "x", 5_500_000);
        let there = held(&world);
        fs::write(&source, &next).unwrap();
        let ran = server.put(&source, "x");
        let moved = number(&ran, "bytes_moved");
        println!("{what}: held {there}, moved {moved} of {}", next.len());
        assert!(moved <= most, "{what}: {ran:?}");
        assert!(fs::read(world.root().join("x")).unwrap() == next, "{what}");
        assert_eq!(ran.done_files()[0].1, hash_of(&next), "{what}");
        fs::remove_file(world.root().join("x")).unwrap();
    }
}

/// The newest attempt has the name; the other ends with a reason, by itself and for good.
#[test]
fn of_two_clients_on_one_name_the_newest_wins() {
    let world = World::new();
    let server = world.serve();
    let len = 6 * MIB;
    let (first, second) = (content(12, len), content(13, len));
    let (a, b) = (world.file("a", &first), world.file("b", &second));
    let begun = Arc::new(AtomicI32::new(0));
    let seen = Arc::clone(&begun);
    let proxy = Proxy::new(server.port, move |_| {
        let seen = Arc::clone(&seen);
        let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            seen.store(1, Ordering::SeqCst);
            until("the other one has begun", || (seen.load(Ordering::SeqCst) == 2).then_some(()));
        });
        Plan { up: Some((2_500_000, hook)), ..Plan::default() }
    });
    let older = start(&server, &a, &remote(proxy.port, "x"));
    until("the first is half way", || (begun.load(Ordering::SeqCst) == 1).then_some(()));
    let ran = server.put(&b, "x");
    assert_eq!(ran.done_files()[0].1, hash_of(&second));
    begun.store(2, Ordering::SeqCst);
    let older = Ran::of(older.wait_with_output().unwrap());
    assert_eq!(older.code, 1, "{older:?}");
    assert_eq!(older.of_type("failed")[0]["error"], "superseded", "{older:?}");
    assert_eq!(number(&older, "retries"), 0, "{older:?}");
    check_stored(&world, "x", &second);
}

#[test]
fn nothing_is_kept_that_nobody_asked_for_and_not_for_longer() {
    let world = World::new();
    let len = 4 * MIB;
    let source = world.file("x", &content(14, len));
    let serve = |time: &str| {
        let mut command = binary();
        command.arg("serve").args(["--keep-partial", time, "--listen", "127.0.0.1:0"]);
        command.arg("--root").arg(world.root()).arg("--certs").arg(world.path("certs"));
        Server::start(command, world.path("client"))
    };
    let server = serve("0");
    interrupt(&server, &source, "x", 2_500_000);
    until("nothing is kept", || (kept_count(&world.root()) == 0).then_some(()));
    server.stop();
    let server = serve("1s");
    interrupt(&server, &source, "x", 2_500_000);
    resting(&world);
    server.stop();
    until("a second has passed", || {
        // A server that is slow to stop removes it itself.
        let left = partials(&world);
        let touched = left.first().map_or(0, |upload| upload["touched"].as_u64().unwrap());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        (now > touched + 1).then_some(())
    });
    let server = serve("1s");
    assert_eq!(kept_count(&world.root()), 0, "it is too old");
    let ran = server.put(&source, "x");
    assert_eq!((number(&ran, "bytes_held"), number(&ran, "bytes_moved")), (0, len as u64));
    // One that was never kept is not listed, and a small one never is.
    let small = world.file("small", &content(15, 200_000));
    server.put(&small, "small");
    assert!(partials(&world).is_empty());
}

#[test]
fn unfinished_uploads_are_listed_and_removed_beside_a_server() {
    let world = World::new();
    let server = world.serve();
    let len = 4 * MIB;
    let source = world.file("x", &content(16, len));
    interrupt(&server, &source, "d/x\u{1b}", 10);
    interrupt(&server, &source, "d/x", 2_500_000);
    let seen = resting(&world);
    assert_eq!((&seen["name"], &seen["size"]), (&"d/x".into(), &(len as u64).into()));
    let uploads = |args: &[&str]| binary().arg("uploads").args(args).arg("--root").arg(world.root()).output().unwrap();
    let listed = String::from_utf8(uploads(&["ls"]).stdout).unwrap();
    let id = seen["id"].as_str().unwrap();
    assert!(listed.contains(id) && listed.contains("d/x"), "{listed}");
    assert_eq!(uploads(&["rm", "nonsense"]).status.code(), Some(1));
    let removed = uploads(&["rm", id]);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(kept_count(&world.root()), 0);
    let ran = server.put(&source, "d/x");
    assert_eq!((number(&ran, "bytes_held"), number(&ran, "bytes_moved")), (0, len as u64), "{ran:?}");
    assert_eq!(uploads(&["rm", "--all"]).status.code(), Some(0));
    let nowhere = binary().args(["uploads", "ls", "--root", "/nonexistent"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
}

/// Where files can share blocks, the version that is there is not even copied.
#[test]
fn on_a_file_system_that_shares_blocks_only_what_changed_is_written() {
    let world = World::new();
    let Some(_mount) = Mount::xfs(&world.root(), &world.path("image")) else { return };
    let server = world.serve();
    let len = 60 * MIB + 5;
    let mut bytes = content(30, len);
    let source = world.file("x", &bytes);
    server.put(&source, "x");
    // So little is free that a second copy would not fit.
    let free = rustix::fs::statvfs(world.root()).unwrap();
    let free = free.f_bfree * free.f_frsize;
    fs::File::create(world.root().join("ballast")).unwrap();
    let ballast = fs::File::options().write(true).open(world.root().join("ballast")).unwrap();
    rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, free - (30 << 20)).unwrap();
    bytes[31 * MIB] ^= 1;
    fs::write(&source, &bytes).unwrap();
    let ran = server.put(&source, "x");
    assert_eq!(number(&ran, "bytes_moved"), MIB as u64, "{ran:?}");
    check_stored(&world, "x", &bytes);
    // Nothing changed: nothing is sent, and what was shared is gone.
    fs::File::options().write(true).open(&source).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    let ran = server.put(&source, "x");
    assert_eq!((&ran.summary()["unchanged"], number(&ran, "bytes_moved")), (&1.into(), 0), "{ran:?}");
    check_stored(&world, "x", &bytes);
    drop(server);
}

/// What lies hidden beside the targets of downloads.
fn beside(world: &World) -> Vec<PathBuf> {
    let there = fs::read_dir(world.path("")).unwrap().map(|entry| entry.unwrap().path());
    there.filter(|path| path.file_name().unwrap().as_bytes().starts_with(b".sealift-")).collect()
}

/// Cases F01, D11: what came of a download is used by the next run as far as it is right, whatever became of it, and of
/// the server's file, in between.
#[test]
fn a_killed_download_goes_on_with_what_is_right() {
    let len = 9 * MIB + 5;
    let old = content(40, len);
    let other_group = [&old[..MIB], &content(41, MIB), &old[2 * MIB..]].concat();
    let all_of_it = len as u64;
    let most = (len - 2 * MIB) as u64;
    let cases = [
        ("the same", old.clone(), false, 0..=most),
        ("one group is another", other_group, false, MIB as u64..=most + MIB as u64),
        ("all of it is another", content(42, len), false, all_of_it..=all_of_it),
        ("what came was damaged", old.clone(), true, MIB as u64..=most + MIB as u64),
    ];
    for (what, new, is_damaged, moved) in cases {
        let world = World::new();
        let server = world.serve();
        let (there, target) = (world.root().join("x"), world.path("down"));
        fs::write(&there, &old).unwrap();
        let plan = |kills| Plan { down: Some((7_500_000, kills)), rate: Some(SLOW / 2), ..Plan::default() };
        let proxy = kill(&server, plan, |port| {
            let mut command = server.client(&["get", "--json", &remote(port, "x")]);
            command.arg(&target).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        assert!(!target.exists(), "{what}");
        let mut kept = beside(&world);
        kept.sort_by_key(|path| fs::metadata(path).unwrap().len());
        assert_eq!(kept.len(), 2, "{what}: a record and content: {kept:?}");
        if is_damaged {
            let file = fs::OpenOptions::new().read(true).write(true).open(&kept[1]).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 1000).unwrap();
            file.write_all_at(&[byte[0] ^ 4], 1000).unwrap();
        }
        if new != old {
            fs::write(&there, &new).unwrap();
        }
        // What is kept is known by the server's name, which for the client is that of the link.
        let ran = server.run("get", [remote(proxy.port, "x").as_ref(), target.as_os_str()]);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
        assert!(fs::read(&target).unwrap() == new, "{what}: other content");
        assert!(moved.contains(&number(&ran, "bytes_moved")), "{what}: {moved:?}: {ran:?}");
        assert!(beside(&world).is_empty(), "{what}");
    }
}

/// A stream cannot be read again: it fails when it is cut, unless it was written down before.
#[test]
fn a_spooled_stream_goes_on_and_another_fails() {
    let world = World::new();
    let server = world.serve();
    let bytes = content(43, 5 * MIB + 3);
    let source = world.file("x", &bytes);
    for is_spooled in [false, true] {
        let proxy = Proxy::new(server.port, |number| Plan {
            cut_up: (number == 0).then_some((2_500_000, Cut::End)),
            rate: Some(2 * SLOW),
            ..Plan::default()
        });
        let target = remote(proxy.port, "x");
        let args: &[&str] = if is_spooled { &["put", "--json", "--spool"] } else { &["put", "--json"] };
        let output = server.client(args).args(["-", &target]).stdin(fs::File::open(&source).unwrap()).output().unwrap();
        let ran = Ran::of(output);
        if is_spooled {
            assert_eq!(ran.code, 0, "{ran:?}");
            check_stored(&world, "x", &bytes);
            assert_eq!(number(&ran, "retries"), 1, "{ran:?}");
            assert!(proxy.bytes().0 < bytes.len() as u64 + 500_000, "what was held was sent again: {ran:?}");
        } else {
            assert_ne!(ran.code, 0, "{ran:?}");
            assert!(ran.failures().contains("--spool"), "what would help is said: {ran:?}");
            assert!(!world.root().join("x").exists());
        }
    }
}
