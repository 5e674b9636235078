//! Files that rot in a root (case D12): `sealift scrub` finds every flipped bit, names the file, and tells it from one
//! that somebody changed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};

use crate::rig::{
    Cut, Mount, Numbers, Plan, Proxy, Ran, Server, World, binary, content, hash_of, leftovers, long, remote, tree,
};

fn scrub(world: &World, args: &[&str]) -> Ran {
    let mut command = binary();
    command.args(["scrub", "--json", "--rate", "0", "--root"]).arg(world.root()).args(args);
    Ran::of(command.output().unwrap())
}

fn names(ran: &Ran, kind: &str) -> BTreeSet<String> {
    ran.of_type(kind).into_iter().map(|line| line["name"].as_str().unwrap().to_owned()).collect()
}

fn count(ran: &Ran, key: &str) -> u64 {
    ran.summary()[key].as_u64().unwrap_or_else(|| panic!("no {key} in {ran:?}"))
}

/// Flips one bit of a file behind everyone's back: size and time stay.
fn rot(path: &Path, bit: u64) {
    let status = fs::metadata(path).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], bit / 8).unwrap();
    file.sync_all().unwrap();
    set_time(path, status.mtime(), status.mtime_nsec());
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

#[test]
fn every_flipped_bit_is_found_and_named() {
    let total = if long("10,000 rotten files") { 10_000 } else { 400 };
    let mut numbers = Numbers::new("every_flipped_bit_is_found_and_named");
    let world = World::new();
    let server = world.serve();
    let sizes = [1_u64, 2, 511, 4095, 4096, 4097, 10_000, 70_000];
    for index in 0..total {
        let size = sizes[usize::try_from(numbers.below(8)).unwrap()];
        world.file(&format!("source/d{}/{index}", index % 7), &content(index, usize::try_from(size).unwrap()));
    }
    for (name, size) in [("group", 1 << 20), ("groups", (5 << 20) + 1), ("aligned", 8 << 20), ("empty", 0)] {
        world.file(&format!("source/{name}"), &content(7, size));
    }
    // A name that must not reach a terminal as it is, and one that looks like the server's own.
    world.file("source/d0/\u{202e}txt", b"right to left");
    server.put(&world.path("source"), "");
    let root = world.root().join("source");
    let clean = scrub(&world, &[]);
    assert_eq!(clean.code, 0, "{clean:?}");
    assert_eq!((count(&clean, "intact"), count(&clean, "files")), (total + 5, total + 5), "{clean:?}");
    assert!(clean.lines.len() == 1, "{clean:?}");

    // A server runs beside it, and has them in its cache; so has everybody who reads them now.
    let mut rotten = BTreeSet::new();
    for (path, seen) in tree(&root) {
        if let crate::rig::What::File { size: size @ 1.. } = seen.kind
            && (numbers.below(2) == 0 || size >= 1 << 20)
        {
            rot(&root.join(&path), numbers.below(size * 8));
            rotten.insert(format!("source/{}", path.to_str().unwrap()));
        }
    }
    let ran = scrub(&world, &[]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert_eq!(names(&ran, "rotten"), rotten);
    assert_eq!(count(&ran, "rotten") + count(&ran, "intact"), total + 5);
    // Both hashes are told, and are true.
    let some = ran.of_type("rotten").into_iter().find(|line| line["name"] == "source/groups").unwrap();
    assert_eq!(some["recorded_b3"], hash_of(&content(7, (5 << 20) + 1)));
    assert_eq!(some["b3"], hash_of(&fs::read(root.join("groups")).unwrap()));
    // A part of it, and one file.
    let below = scrub(&world, &["--path", "source/d1"]);
    let expected: BTreeSet<String> = rotten.iter().filter(|name| name.starts_with("source/d1/")).cloned().collect();
    assert_eq!((names(&below, "rotten"), below.code), (expected, 5));
    let one = scrub(&world, &["--path", "source/empty"]);
    assert_eq!((count(&one, "files"), one.code), (1, 0), "{one:?}");
    // Stored anew, it is in order; the server was there all the while.
    server.put(&world.path("source"), "");
    let ran = scrub(&world, &[]);
    assert_eq!((ran.code, count(&ran, "intact")), (0, total + 5), "{ran:?}");
    println!("rotten files: {} of {} found", rotten.len(), total + 5);
}

/// Whichever way it is fetched: alone, in a tree, to standard output, over two connections, and after a cut.
#[test]
fn what_rotted_is_not_given_out() {
    let world = World::new();
    let server = world.serve();
    let sizes = [("small", 1000), ("group", 300_000), ("groups", (5 << 20) + 7)];
    for (name, len) in sizes {
        world.file(&format!("source/{name}"), &content(5, len));
        world.file(&format!("source/sound-{name}"), &content(6, len));
    }
    world.file("source/of-tree", &content(7, 20_000));
    server.put(&world.path("source"), "");
    let root = world.root().join("source");
    for (name, len) in sizes {
        rot(&root.join(name), 8 * len as u64 - 1);
    }
    rot(&root.join("of-tree"), 9);
    let refused = |ran: &Ran, names: &[&str]| {
        assert_eq!(ran.code, 5, "{ran:?}");
        assert_eq!((ran.summary()["retryable"].as_bool(), count(ran, "retries")), (Some(false), 0), "{ran:?}");
        let mut told: Vec<&str> = ran.of_type("failed").iter().map(|failed| failed["name"].as_str().unwrap()).collect();
        told.sort_unstable();
        assert_eq!(told, names, "{ran:?}");
        assert!(ran.of_type("failed").iter().all(|failed| failed["error"] == "rotten"), "{ran:?}");
    };
    for (name, len) in sizes {
        let (remote, target) = (server.at(&format!("source/{name}")), world.file(&format!("here/{name}"), b"before"));
        for more in [&[][..], &["--streams", "2"]] {
            let ran = server.run("get", [&[&*remote, target.to_str().unwrap()], more].concat());
            refused(&ran, &[&format!("source/{name}")]);
            assert_eq!(fs::read(&target).unwrap(), b"before");
        }
        let output = server.client(&["get", &remote, "-"]).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len() <= len), (Some(5), true), "{name}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("it is damaged") && said.contains("`touch` it on the server"), "{said}");
        server.log_with(&format!("WARN source/{name} is rotten"));
    }
    assert_eq!(leftovers(&world.path("here")), [] as [&Path; 0]);
    // The others of a tree come.
    let rotten = ["source/group", "source/groups", "source/of-tree", "source/small"];
    let ran = server.run("get", [&*server.at("source"), world.path("tree").to_str().unwrap()]);
    refused(&ran, &rotten);
    server.log_with("WARN source/of-tree is rotten");
    let ran = server.run("sync", [&*server.at("source"), world.path("synced").to_str().unwrap()]);
    refused(&ran, &rotten);
    for there in ["tree", "synced"] {
        for (name, len) in sizes {
            assert!(fs::read(world.path(there).join(format!("sound-{name}"))).unwrap() == content(6, len));
            assert!(!world.path(there).join(name).exists());
        }
    }
    // What came of it before a cut is of no use, either.
    let proxy =
        Proxy::new(server.port, |number| Plan { cut: (number == 0).then_some((3 << 20, Cut::End)), ..Plan::default() });
    let ran = server.run("get", [&*remote(proxy.port, "source/groups"), world.path("cut").to_str().unwrap()]);
    assert_eq!((ran.code, ran.of_type("failed")[0]["error"].as_str()), (5, Some("rotten")), "{ran:?}");
    assert!(count(&ran, "retries") > 0 && !world.path("cut").exists(), "{ran:?}");
    assert_eq!(leftovers(&world.path("")).iter().filter(|path| !path.starts_with(world.root())).count(), 0);
    // Somebody who looked at it says that it is to be as it is; and what is stored anew is in order.
    let now = std::time::SystemTime::now();
    for name in ["small", "groups"] {
        fs::File::options().write(true).open(root.join(name)).unwrap().set_modified(now).unwrap();
        server.get(&format!("source/{name}"), &world.path("as-it-is"));
        assert!(fs::read(world.path("as-it-is")).unwrap() == fs::read(root.join(name)).unwrap());
    }
    server.put(&world.path("source"), "");
    for (name, len) in sizes {
        server.get(&format!("source/{name}"), &world.path("anew"));
        assert!(fs::read(world.path("anew")).unwrap() == content(5, len));
    }
}

/// Somebody brought another content under the size and time that were stored, and then a client has that very content:
/// it is left as it is, and is no rot any more.
#[test]
fn what_is_found_to_be_the_same_is_recorded_as_it_is() {
    let world = World::new();
    let server = world.serve();
    for len in [1000, (3 << 20) + 1] {
        let name = format!("{len}");
        let (mut other, source) = (content(1, len), world.file(&name, &content(1, len)));
        server.put(&source, &name);
        let there = world.root().join(&name);
        let status = fs::metadata(&there).unwrap();
        other[len / 2] ^= 1;
        for path in [&there, &source] {
            fs::write(path, &other).unwrap();
            set_time(path, status.mtime(), status.mtime_nsec());
        }
        assert_eq!(names(&scrub(&world, &[]), "rotten"), [name.clone()].into());
        let ran = server.put(&source, &name);
        assert_eq!(count(&ran, "unchanged"), 1, "{ran:?}");
        assert_eq!(fs::metadata(&there).unwrap().ino(), status.ino());
        let ran = scrub(&world, &["--path", &name]);
        assert_eq!((ran.code, count(&ran, "intact")), (0, 1), "{ran:?}");
        server.get(&name, &world.path("got"));
        assert!(fs::read(world.path("got")).unwrap() == other);
    }
}

#[test]
fn what_somebody_changed_is_told_from_what_rotted() {
    let world = World::new();
    let server = world.serve();
    for name in ["longer", "edited", "touched", "moved", "rotten", "kept"] {
        world.file(&format!("source/{name}"), &content(3, 50_000));
    }
    server.put(&world.path("source"), "");
    let root = world.root().join("source");
    let write = |name: &str, at: u64| {
        let file = fs::OpenOptions::new().write(true).open(root.join(name)).unwrap();
        file.write_all_at(b"by the operator", at).unwrap();
    };
    write("longer", 49_999);
    write("edited", 100);
    set_time(&root.join("touched"), 1_000_000_000, 5);
    fs::rename(root.join("moved"), root.join("elsewhere")).unwrap();
    fs::write(root.join("brought"), b"by the operator").unwrap();
    std::os::unix::fs::symlink("rotten", root.join("link")).unwrap();
    rot(&root.join("rotten"), 4242);
    let ran = scrub(&world, &[]);
    assert_eq!(ran.code, 5, "{ran:?}");
    let set = |names: &[&str]| names.iter().map(|name| format!("source/{name}")).collect::<BTreeSet<_>>();
    assert_eq!(names(&ran, "rotten"), set(&["rotten"]));
    assert_eq!(names(&ran, "changed"), set(&["edited", "longer"]));
    assert_eq!(names(&ran, "unrecorded"), set(&["brought"]));
    assert_eq!((count(&ran, "intact"), count(&ran, "touched"), count(&ran, "files")), (3, 1, 7), "{ran:?}");
    // What people see: names that rotted or were changed, and counts.
    fs::remove_file(root.join("rotten")).unwrap();
    let people =
        |args: &[&str]| -> Output { binary().args(["scrub", "--root"]).arg(world.root()).args(args).output().unwrap() };
    let output = people(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(out.lines().count() == 2 && out.contains("changed: source/edited: "), "{out}");
    assert!(err.contains("6 files: 3 intact, 2 changed after they were stored, 1 without a record"), "{err}");
    let output = people(&["-v"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("unrecorded: source/brought\n"));
    let output = people(&["-q"]);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    // Nothing was touched: a second look says the same, and nothing else came to be.
    let before = tree(&world.root());
    scrub(&world, &[]);
    assert_eq!(tree(&world.root()), before);
}

/// Clients store, replace, move and remove while it looks: nothing of that is rot.
#[test]
fn beside_a_busy_server_nothing_is_taken_for_rot() {
    let world = World::new();
    let server = world.serve();
    for index in 0..60 {
        world.file(&format!("source/{index}"), &content(index, 20_000));
    }
    world.file("source/large", &content(1, 6 << 20));
    server.put(&world.path("source"), "a");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut round = 100;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                round += 1;
                for index in 0..60 {
                    world.file(&format!("source/{index}"), &content(index + round, 20_000));
                }
                world.file("source/large", &content(round, 6 << 20));
                server.put(&world.path("source"), "a");
                let moved = server.client(&["mv", "--if-exists", "overwrite", &server.at("a/1"), &server.at("a/2")]);
                assert!({ moved }.output().unwrap().status.success());
            }
            round - 100
        });
        let begun = Instant::now();
        let mut looks = 0;
        while looks < 5 || begun.elapsed() < Duration::from_millis(1500) {
            let ran = scrub(&world, &[]);
            assert_eq!(ran.code, 0, "{ran:?}");
            assert_eq!((count(&ran, "rotten"), count(&ran, "changed")), (0, 0), "{ran:?}");
            looks += 1;
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        println!("looked {looks} times beside {} rounds", writer.join().unwrap());
    });
}

#[test]
fn what_cannot_be_read_is_told_and_the_rest_goes_on() {
    let world = World::new();
    let server = world.serve();
    for index in 0..10 {
        world.file(&format!("source/{index}"), &content(index, 5 << 20));
    }
    server.put(&world.path("source"), "");
    if !crate::order::strace_works() {
        return;
    }
    // The third read of the disk fails, and the ordinary one that follows it.
    let mut command = crate::rig::wrapped(
        "strace",
        ["-f", "-o", "/dev/null", "-e", "trace=pread64", "-e", "inject=pread64:error=EIO:when=3..4"],
    );
    command.args(["scrub", "--json", "--rate", "0", "--root"]).arg(world.root());
    let ran = Ran::of(command.output().unwrap());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!((count(&ran, "unreadable"), count(&ran, "intact")), (1, 9), "{ran:?}");
    let told = ran.of_type("unreadable")[0];
    assert!(told["message"].as_str().unwrap().contains("at offset"), "{told}");
    // And one that rotted besides decides the exit code.
    rot(&world.root().join("source/9"), 77);
    let mut command = crate::rig::wrapped(
        "strace",
        ["-f", "-o", "/dev/null", "-e", "trace=pread64", "-e", "inject=pread64:error=EIO:when=3..4"],
    );
    command.args(["scrub", "--json", "--rate", "0", "--root"]).arg(world.root());
    let ran = Ran::of(command.output().unwrap());
    let is_hit = names(&ran, "unreadable").contains("source/9");
    assert_eq!(ran.code, if is_hit { 1 } else { 5 }, "{ran:?}");
    // What is read wrongly once is not rot.
    let missing = scrub(&world, &["--path", "nothing"]);
    assert_eq!(missing.code, 1, "{missing:?}");
}

/// A file that may only be read takes no attributes any more, unless it is root's; its record is there all the same.
#[test]
fn read_only_files_of_an_ordinary_user_are_recorded() {
    let world = World::new();
    let mut command = binary();
    if rustix::process::geteuid().is_root() {
        if !crate::rig::has("setpriv", &["--version"], "a server that is not root") {
            return;
        }
        // What makes root no ordinary user.
        command = crate::rig::wrapped("setpriv", ["--bounding-set=-dac_override,-dac_read_search"]);
    }
    command.arg("serve").arg("--root").arg(world.root()).arg("--certs").arg(world.path("certs"));
    command.args(["--listen", "127.0.0.1:0"]);
    let server = Server::start(command, world.path("client"));
    for (name, len) in [("small", 100), ("large", (2 << 20) + 5)] {
        let path = world.file(&format!("source/{name}"), &content(len as u64, len));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    }
    server.put(&world.path("source"), "");
    let ran = scrub(&world, &[]);
    assert_eq!((ran.code, count(&ran, "intact"), count(&ran, "unrecorded")), (0, 2, 0), "{ran:?}");
}

/// Where the page cache cannot be passed (tmpfs), it is read all the same; where there are no attributes, nothing is
/// recorded, and that is said.
#[test]
fn other_file_systems_are_looked_through_too() {
    let world = World::new();
    let Some(_mount) = Mount::tmpfs(&world.root(), "size=32M") else { return };
    let server = world.serve();
    for index in 0..10 {
        world.file(&format!("source/{index}"), &content(index, (1 << 20) + 7));
    }
    server.put(&world.path("source"), "");
    let ran = scrub(&world, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let recorded = count(&ran, "intact");
    assert_eq!(recorded + count(&ran, "unrecorded"), 10, "{ran:?}");
    if recorded > 0 {
        rot(&world.root().join("source/3"), 8 << 20);
        let ran = scrub(&world, &[]);
        assert_eq!((ran.code, names(&ran, "rotten")), (5, ["source/3".to_owned()].into()), "{ran:?}");
    }
}

#[test]
fn a_scrub_keeps_its_rate_and_can_be_stopped() {
    let world = World::new();
    let server = world.serve();
    world.file("source", &content(1, 6 << 20));
    server.put(&world.path("source"), "x");
    let begun = Instant::now();
    let mut command = binary();
    let output = command.args(["scrub", "--rate", "4M", "--root"]).arg(world.root()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(begun.elapsed() >= Duration::from_millis(1200), "{:?} for 6 MiB at 4 MiB/s", begun.elapsed());
    let mut command = binary();
    command.args(["scrub", "--json", "--rate", "1K", "--root"]).arg(world.root());
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let is_listening = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim).unwrap_or("0");
        (u64::from_str_radix(caught, 16).unwrap() & 1 << 14 != 0).then_some(())
    };
    crate::rig::until("it listens for signals", is_listening);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 143, "{ran:?}");
    assert_eq!((ran.summary()["exit"].as_u64(), ran.summary()["retryable"].as_bool()), (Some(143), Some(true)));
    // Keys, modes and names of the root do not matter to it.
    fs::set_permissions(world.root(), fs::Permissions::from_mode(0o500)).unwrap();
    assert_eq!(scrub(&world, &[]).code, 0);
}
