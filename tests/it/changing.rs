//! Files that change while they are moved (case C10): one version arrives whole, or none and the file is named.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::rig::{Cut, Numbers, Plan, Proxy, Ran, World, content, hash_of, remote, staged, tree};

/// More than what client, sockets and proxy hold between them.
const LEN: usize = 24 << 20;

/// A change of a file while others read it; `round` makes each another.
type Change = fn(&Path, u64);

fn grow(path: &Path, round: u64) {
    let len = fs::metadata(path).unwrap().len();
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&content(round, 5000), len).unwrap();
}

fn shrink(path: &Path, _: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len / 2 + 7).unwrap();
}

fn empty(path: &Path, _: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
}

fn replace(path: &Path, round: u64) {
    let new = path.with_extension("new");
    fs::write(&new, content(1000 + round, LEN)).unwrap();
    fs::rename(new, path).unwrap();
}

/// In the part that was read and in the part that was not, the time put back.
fn edit(path: &Path, round: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&content(2000 + round, 1000), 100).unwrap();
    file.write_all_at(&content(3000 + round, 1000), LEN as u64 - 2000).unwrap();
    file.set_modified(time).unwrap();
}

const CHANGES: [(&str, Change); 5] =
    [("grows", grow), ("shrinks", shrink), ("is emptied", empty), ("is replaced", replace), ("is edited", edit)];

#[test]
fn a_source_that_changes_once_is_stored_as_it_is_then() {
    let world = World::new();
    let server = world.serve();
    let mut numbers = Numbers::new("changing sources");
    for (what, change) in CHANGES {
        for has_base in [false, true] {
            let source = world.file("source", &content(1, LEN));
            let before = hash_of(&content(1, LEN));
            let name = format!("{what} {has_base}");
            if has_base {
                // An older version whose first half is the same: those groups are compared and not sent.
                let old: Vec<u8> = [&content(1, LEN)[..LEN / 2], &content(2, LEN / 2)].concat();
                fs::write(world.root().join(&name), old).unwrap();
            }
            let path = source.clone();
            let at = 3000 + numbers.below(LEN as u64 / 20);
            let proxy = Proxy::new(server.port, move |number| {
                let path = path.clone();
                let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || change(&path, 1));
                Plan { up: (number == 0).then_some((at, hook)), ..Plan::default() }
            });
            let output =
                server.client(&["put", "--json"]).arg(&source).arg(remote(proxy.port, &name)).output().unwrap();
            let ran = Ran::of(output);
            let stored = hash_of(&fs::read(world.root().join(&name)).unwrap());
            let now = hash_of(&fs::read(&source).unwrap());
            assert_eq!(ran.code, 0, "{name}: {ran:?}");
            // A version that was replaced while its handle was open is whole too, but was seen to have gone.
            assert!(stored != before, "{name} at {at}: the change was not noticed: {ran:?}");
            assert_eq!(stored, now, "{name} at {at}: a mixture was stored: {ran:?}");
            assert_eq!(ran.done_files()[0].1, now, "{name}: {ran:?}");
        }
    }
}

#[test]
fn a_source_that_never_rests_is_named_and_nothing_of_it_stored() {
    let world = World::new();
    let mut server = world.serve();
    for has_old in [false, true] {
        let source = world.file("restless", &content(1, LEN));
        let name = format!("x {has_old}");
        let old = content(9, 5000);
        if has_old {
            fs::write(world.root().join(&name), &old).unwrap();
        }
        let path: PathBuf = source.clone();
        // All attempts go over one connection, so the file changes with every so many bytes.
        let every = Arc::new(std::sync::Mutex::new(0_u64));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = {
            let (path, stop, every) = (path.clone(), Arc::clone(&stop), Arc::clone(&every));
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let mut round = every.lock().unwrap();
                    *round += 1;
                    edit(&path, *round);
                }
            })
        };
        let ran = server.run("put", [source.as_os_str(), server.at(&name).as_ref()]);
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        writer.join().unwrap();
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.failures().contains("restless")
                || ran.of_type("failed")[0]["name"].as_str().unwrap().contains("restless"),
            "{ran:?}"
        );
        assert_eq!(ran.of_type("failed")[0]["error"], "changed", "{ran:?}");
        match fs::read(world.root().join(&name)) {
            Ok(there) => assert!(has_old && there == old, "something of it was stored"),
            Err(_) => assert!(!has_old),
        }
        assert_eq!(*ran.summary()["stored"].as_u64().as_ref().unwrap(), 0);
    }
    crate::rig::until("the server has removed what was staged", || (staged(&world.root()) == 0).then_some(()));
    assert!(server.is_alive());
}

#[test]
fn small_files_that_change_are_never_mixtures() {
    let world = World::new();
    let server = world.serve();
    let names: Vec<String> = (0..60).map(|index| format!("many/{index}")).collect();
    for name in &names {
        world.file(name, &[0; 60_000]);
    }
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (stop, paths) = (Arc::clone(&stop), names.iter().map(|name| world.path(name)).collect::<Vec<_>>());
        // Each version is one byte over and over, written from the beginning to the end.
        std::thread::spawn(move || {
            for round in 1..=u8::MAX {
                for path in &paths {
                    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                    for part in 0..4 {
                        file.write_all_at(&[round; 15_000], part * 15_000).unwrap();
                    }
                }
                if stop.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
            }
        })
    };
    let mut failed = 0;
    for _ in 0..5 {
        let ran = server.run("put", [world.path("many").as_os_str(), server.at("many").as_ref()]);
        assert!(matches!(ran.code, 0 | 1), "{ran:?}");
        failed += ran.of_type("failed").len();
        for line in ran.of_type("failed") {
            assert_eq!(line["error"], "changed", "{ran:?}");
        }
        for name in tree(&world.root().join("many")).into_keys() {
            let there = fs::read(world.root().join("many").join(&name)).unwrap();
            assert_eq!(there.len(), 60_000);
            // A writer on its way through the file, in a call or between two, leaves a version that a reader can see: new
            // up to one place, old from there.
            let changes = there.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(changes <= 1, "{name:?} changes at {changes} places");
        }
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writer.join().unwrap();
    println!("{failed} of 300 never rested");
}

#[test]
fn a_served_file_that_changes_is_fetched_as_one_version() {
    let world = World::new();
    let server = world.serve();
    let mut numbers = Numbers::new("changing served files");
    for (what, change) in CHANGES {
        let served = world.root().join("x");
        let at = 3000 + numbers.below(LEN as u64 / 20);
        for to_stream in [false, true] {
            fs::write(&served, content(1, LEN)).unwrap();
            let before = hash_of(&fs::read(&served).unwrap());
            let path = served.clone();
            let proxy = Proxy::new(server.port, move |number| {
                let path = path.clone();
                let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || change(&path, 1));
                Plan { down: (number == 0).then_some((at, hook)), ..Plan::default() }
            });
            let target = world.path("target");
            fs::write(&target, b"an older version").unwrap();
            let source = remote(proxy.port, "x");
            let mut client = server.client(&["get", "--json", &source]);
            let output = if to_stream { client.arg("-").output() } else { client.arg(&target).output() }.unwrap();
            let now = hash_of(&fs::read(&served).unwrap());
            if to_stream {
                // What was written cannot be taken back: it was all of one version, or it failed.
                let got = hash_of(&output.stdout);
                let is_whole = got == now || got == before;
                assert_eq!(output.status.success(), is_whole && output.status.success(), "{what}: {output:?}");
                assert!(
                    is_whole || output.status.code() == Some(1),
                    "{what}: a mixture ended with {:?}",
                    output.status
                );
                continue;
            }
            let ran = Ran::of(output);
            let got = hash_of(&fs::read(&target).unwrap());
            if ran.code == 0 {
                assert!(
                    got == now || (got == before && what == "is replaced"),
                    "{what} at {at}: a mixture arrived: {ran:?}"
                );
                assert_eq!(ran.done_files()[0].1, got, "{what}: {ran:?}");
            } else {
                assert_eq!(got, hash_of(b"an older version"), "{what}: {ran:?}");
            }
            assert_eq!(ran.code, 0, "{what}: {ran:?}");
        }
    }
}

/// The first version is stored and its answer lost; by the next attempt the file is another one. That one was not
/// stored by the first attempt, and must not be removed as if it had been.
#[test]
fn a_source_that_changes_after_a_lost_answer_is_not_taken_for_stored() {
    let world = World::new();
    let server = world.serve();
    for (what, len) in [("small", 3000), ("large", (2 << 20) + 5)] {
        for changed_len in [len, len + 1] {
            let (old, new) = (content(1, len), content(2, changed_len));
            let name = format!("{what}-{changed_len}");
            let source = world.file(&name, &old);
            let proxy = Proxy::new(server.port, |_| Plan::default());
            let sent = server
                .client(&["put"])
                .arg(&source)
                .arg(remote(proxy.port, &format!("measured-{name}")))
                .output()
                .unwrap();
            assert!(sent.status.success());
            // In the middle of the answer, which is longer than the end of TLS that may follow it.
            let at = proxy.bytes().1 - 60;
            let (path, bytes) = (source.clone(), new.clone());
            let proxy = Proxy::new(server.port, move |number| {
                let (path, bytes) = (path.clone(), bytes.clone());
                let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || fs::write(&path, &bytes).unwrap());
                let is_first = number == 0;
                Plan {
                    down: is_first.then_some((at, hook)),
                    cut: is_first.then_some((at, Cut::Reset)),
                    ..Plan::default()
                }
            });
            let mut client = server.client(&["put", "--json", "--remove-source"]);
            let ran = Ran::of(client.arg(&source).arg(remote(proxy.port, &name)).output().unwrap());
            assert_eq!(proxy.connections(), 2, "{name}: {ran:?}");
            assert_eq!(ran.code, 0, "{name}: {ran:?}");
            let there = fs::read(world.root().join(&name)).unwrap();
            assert!(there == new || source.exists(), "{name}: the new content is nowhere: {ran:?}");
            assert!(there == new && ran.done_files()[0].1 == hash_of(&new), "{name}: {ran:?}");
        }
    }
}
