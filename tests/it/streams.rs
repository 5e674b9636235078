//! One transfer over several connections: the bytes are right, and what a lane that dies had is sent again.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::rig::{Cut, Mount, PATIENCE, Plan, Proxy, Ran, Server, World, binary, content, leftovers, remote, staged};

const MIB: usize = 1 << 20;

/// Runs a transfer with this many connections.
#[track_caller]
fn run(server: &Server, command: &str, streams: usize, from: &str, to: &str) -> Ran {
    let streams = format!("--streams={streams}");
    server.run(command, [streams.as_str(), from, to])
}

#[test]
fn uploads_over_one_two_and_eight_connections() {
    let world = World::new();
    let server = world.serve();
    // The last group is a short one.
    let whole = content(1, 24 * MIB + 12_345);
    let source = world.file("source", &whole);
    for streams in [1, 2, 8] {
        // Every client has a connection of its own, and one for each further stream.
        let proxy = Proxy::new(server.port, |_| Plan::default());
        let name = format!("x{streams}");
        let ran = run(&server, "put", streams, source.to_str().unwrap(), &remote(proxy.port, &name));
        assert_eq!(ran.code, 0, "{streams} connections: {ran:?}");
        assert!(fs::read(world.root().join(&name)).unwrap() == whole, "{streams} connections: other bytes");
        assert_eq!(proxy.connections(), streams);
    }
    // What is there already is compared, and only what differs is sent: over whichever connection.
    let mut changed = whole;
    changed[5 * MIB] ^= 1;
    changed[20 * MIB] ^= 1;
    fs::write(&source, &changed).unwrap();
    let proxy = Proxy::new(server.port, |_| Plan::default());
    let ran = run(&server, "put", 4, source.to_str().unwrap(), &remote(proxy.port, "x8"));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fs::read(world.root().join("x8")).unwrap() == changed);
    let (up, _) = proxy.bytes();
    assert!(up < 3 * MIB as u64, "{up} bytes for two groups");
    assert_eq!((staged(&world.root()), leftovers(&world.root()).len()), (0, 0));
}

#[test]
fn lanes_that_die_while_an_upload_runs_cost_what_they_had() {
    lanes_die_while_an_upload_runs(&World::new(), 3 * MIB as u64);
}

#[test]
fn lanes_that_die_while_a_file_in_memory_is_uploaded_cost_what_they_had() {
    // Groups are read by the thread that sends them here. Every lane dies early, so that none is left in the end.
    lanes_die_while_an_upload_runs(&World::in_memory(), MIB as u64);
}

fn lanes_die_while_an_upload_runs(world: &World, within: u64) {
    let server = world.serve();
    let size = 48 * MIB;
    let whole = content(2, size);
    let source = world.file("source", &whole);
    for (round, how) in [Cut::Reset, Cut::End, Cut::Reset].into_iter().enumerate() {
        // Every lane dies, each at another place, in the middle of a group or between two.
        let cuts = move |number: usize| {
            let at = (number * 1_300_001 + round * 400_009) as u64 % within + 20_000;
            Plan { cut_up: (number > 0).then_some((at, how)), ..Plan::default() }
        };
        let proxy = Proxy::new(server.port, cuts);
        let name = format!("x{round}");
        let ran = run(&server, "put", 6, source.to_str().unwrap(), &remote(proxy.port, &name));
        assert_eq!(ran.code, 0, "{how:?}: {ran:?}");
        assert!(fs::read(world.root().join(&name)).unwrap() == whole, "{how:?}: other bytes");
        let summary = ran.summary();
        assert_eq!(summary["bytes_moved"], size, "each group counts once: {summary}");
        let (up, _) = proxy.bytes();
        // What each of the five had taken and not been told of: what it was sending, and what lay in the sockets.
        let extra = up - size as u64;
        println!("{how:?}: {extra} bytes more than the file");
        assert!(extra < 5 * 4 * MIB as u64, "{how:?}: {extra} bytes more than the file");
    }
    assert_eq!((staged(&world.root()), leftovers(&world.root()).len()), (0, 0));
}

#[test]
fn downloads_over_one_two_and_eight_connections() {
    let world = World::new();
    let server = world.serve();
    let whole = content(3, 24 * MIB + 12_345);
    // Not stored by the server, so it knows no root before it has read it.
    world.file("root/x", &whole);
    for streams in [1, 2, 8] {
        let proxy = Proxy::new(server.port, |_| Plan::default());
        let target = world.path(&format!("down{streams}"));
        let ran = run(&server, "get", streams, &remote(proxy.port, "x"), target.to_str().unwrap());
        assert_eq!(ran.code, 0, "{streams} connections: {ran:?}");
        assert!(fs::read(&target).unwrap() == whole, "{streams} connections: other bytes");
        assert_eq!(proxy.connections(), streams);
        let (_, down) = proxy.bytes();
        assert!(down < whole.len() as u64 * 102 / 100, "{down} bytes came");
    }
}

#[test]
fn lanes_that_die_while_a_download_runs_cost_what_they_had() {
    let world = World::new();
    let server = world.serve();
    let size = 48 * MIB;
    let whole = content(4, size);
    world.file("root/x", &whole);
    for (round, how) in [Cut::Reset, Cut::End, Cut::Reset].into_iter().enumerate() {
        let cuts = move |number: usize| {
            let at = (number * 1_300_001 + round * 400_009) as u64 % (3 * MIB as u64) + 20_000;
            Plan { cut: (number > 0).then_some((at, how)), ..Plan::default() }
        };
        let proxy = Proxy::new(server.port, cuts);
        let target = world.path(&format!("down{round}"));
        let ran = run(&server, "get", 6, &remote(proxy.port, "x"), target.to_str().unwrap());
        assert_eq!(ran.code, 0, "{how:?}: {ran:?}");
        assert!(fs::read(&target).unwrap() == whole, "{how:?}: other bytes");
        let summary = ran.summary();
        assert_eq!(summary["bytes_moved"], size, "each group counts once: {summary}");
        let (_, down) = proxy.bytes();
        let extra = down - size as u64;
        println!("{how:?}: {extra} bytes more than the file");
        assert!(extra < 5 * 4 * MIB as u64, "{how:?}: {extra} bytes more than the file");
    }
}

/// The first connection is the transfer: when it dies, all begins again, with new lanes.
#[test]
fn a_first_connection_that_dies_is_made_again_with_its_lanes() {
    let world = World::new();
    let server = world.serve();
    let whole = content(5, 24 * MIB);
    let source = world.file("source", &whole);
    let cut = |at| move |number: usize| Plan { cut_up: (number == 0).then_some((at, Cut::Reset)), ..Plan::default() };
    let proxy = Proxy::new(server.port, cut(2 * MIB as u64));
    let ran = run(&server, "put", 3, source.to_str().unwrap(), &remote(proxy.port, "x"));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fs::read(world.root().join("x")).unwrap() == whole);
    assert!(proxy.connections() > 3);
    let cut = |number: usize| Plan { cut: (number == 0).then_some((2 * MIB as u64, Cut::Reset)), ..Plan::default() };
    let proxy = Proxy::new(server.port, cut);
    let target = world.path("down");
    let ran = run(&server, "get", 3, &remote(proxy.port, "x"), target.to_str().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fs::read(&target).unwrap() == whole);
    assert_eq!((staged(&world.root()), leftovers(&world.root()).len()), (0, 0));
}

/// A file system that takes no direct I/O, or means nothing by it.
#[test]
fn eight_connections_onto_a_file_system_in_memory() {
    let world = World::new();
    let Some(_mount) = Mount::tmpfs(&world.root(), "size=128m") else { return };
    let server = world.serve();
    let whole = content(6, 24 * MIB + 1);
    let source = world.file("source", &whole);
    let ran = run(&server, "put", 8, source.to_str().unwrap(), &server.at("x"));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fs::read(world.root().join("x")).unwrap() == whole);
    let target = world.path("down");
    let ran = run(&server, "get", 8, &server.at("x"), target.to_str().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fs::read(&target).unwrap() == whole);
}

/// A machine may be slower than a limit, but never faster: only that is looked at here.
#[track_caller]
fn takes_at_least(seconds: f64, what: &str, run: impl FnOnce() -> Ran) {
    let begun = Instant::now();
    let ran = run();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(ran.code, 0, "{what}: {ran:?}");
    assert!(took >= seconds, "{what}: {took:.2} s, too soon for its limit");
    println!("{what}: {took:.2} s, with {seconds} s at least");
}

#[test]
fn a_limit_holds_for_all_connections_together() {
    let world = World::new();
    let server = world.serve();
    let source = world.file("source", &content(8, 8 * MIB));
    let (source, target) = (source.to_str().unwrap(), world.path("down"));
    for index in 0..50 {
        world.file(&format!("tree/f{index}"), &content(100 + index, 80 << 10));
    }
    let put = |args: &[&str]| server.run("put", args.iter().copied());
    takes_at_least(1.8, "up", || put(&["--streams=4", "--bwlimit=4M", source, &server.at("x")]));
    takes_at_least(1.8, "down", || {
        server.run("get", ["--streams=4", "--bwlimit=4M", &server.at("x"), target.to_str().unwrap()])
    });
    assert!(fs::read(&target).unwrap() == content(8, 8 * MIB));
    let tree = world.path("tree");
    takes_at_least(1.7, "small files", || put(&["--bwlimit=2M", tree.to_str().unwrap(), &server.at("tree")]));
}

#[test]
fn a_server_limits_each_client_and_all_of_them() {
    let world = World::new();
    let mut command = binary();
    command.args(["serve", "--bwlimit=16M", "--bwlimit-client=4M"]);
    let server = world.serve_as(command);
    let source = world.file("source", &content(9, 8 * MIB));
    let (source, target) = (source.to_str().unwrap(), world.path("down"));
    takes_at_least(1.8, "up", || server.run("put", ["--streams=4", source, &server.at("x")]));
    takes_at_least(1.8, "down", || server.run("get", ["--streams=4", &server.at("x"), target.to_str().unwrap()]));
    assert!(fs::read(&target).unwrap() == content(9, 8 * MIB));
}

#[test]
fn a_congestion_control_is_taken_or_refused_before_anything() {
    let world = World::new();
    let server = world.serve();
    let source = world.file("source", b"abc");
    let source = source.to_str().unwrap();
    let ran = server.run("put", ["--cc=reno", source, &server.at("x")]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = server.run("put", ["--cc=none-such", source, &server.at("y")]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.errors.contains("none-such") && ran.errors.contains("tcp_allowed_congestion_control"), "{ran:?}");
    assert!(!world.root().join("y").exists());
}

/// Runs something that sees so many processors only, and so do the programs that it starts. None where there are fewer.
fn on_processors<T: Send>(count: usize, work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            let all = sched_getaffinity(None).unwrap();
            let some: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&number| all.is_set(number)).take(count).collect();
            let mut set = CpuSet::new();
            some.iter().for_each(|&number| set.set(number));
            sched_setaffinity(None, &set).unwrap();
            (some.len() == count).then(work)
        });
        pinned.join().unwrap()
    })
}

fn on_one_processor<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    on_processors(1, work).unwrap()
}

#[test]
fn both_sides_with_one_processor_move_files_in_memory() {
    let world = World::in_memory();
    let server = on_one_processor(|| world.serve());
    for (number, size) in [0, 1, MIB, MIB + 1, 9 * MIB + 4097].into_iter().enumerate() {
        for streams in [1, 4] {
            let mut whole = content(number as u64, size);
            let source = world.file("source", &whole);
            // The first connection breaks in the middle of a group, both ways.
            let cut = Some((size as u64 / 2 + 30_000, Cut::Reset));
            let plan = move |is_up: bool| {
                move |number: usize| match (number, is_up) {
                    (0, true) => Plan { cut_up: cut, ..Plan::default() },
                    (0, false) => Plan { cut, ..Plan::default() },
                    _ => Plan::default(),
                }
            };
            let up = Proxy::new(server.port, plan(true));
            let down = Proxy::new(server.port, plan(false));
            let (source, got) = (source.to_str().unwrap().to_owned(), world.path("got"));
            let name = format!("{number} {streams}");
            // What is there is compared the second time, and only what differs is moved.
            for _ in 0..2 {
                let (put, get) = on_one_processor(|| {
                    let put = run(&server, "put", streams, &source, &remote(up.port, &name));
                    (put, run(&server, "get", streams, &remote(down.port, &name), got.to_str().unwrap()))
                });
                assert_eq!((put.code, get.code), (0, 0), "{size} bytes, {streams} connections: {put:?}, {get:?}");
                assert!(fs::read(world.root().join(&name)).unwrap() == whole, "{size} bytes, {streams}: up");
                assert!(fs::read(&got).unwrap() == whole, "{size} bytes, {streams}: down");
                if let Some(byte) = whole.get_mut(size / 2) {
                    *byte ^= 1;
                }
                fs::write(&source, &whole).unwrap();
            }
            assert_eq!((staged(&world.root()), leftovers(&world.root()).len()), (0, 0));
        }
    }
}

/// How many threads of a client there are that do nothing but the work of a connection.
fn lane_threads(pid: u32) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // Others may end meanwhile.
    let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name == "sealift lane\n").count()
}

#[test]
fn a_download_within_a_machine_goes_over_two_connections_with_threads_of_their_own() {
    let world = World::in_memory();
    let server = on_processors(2, || world.serve());
    let Some(server) = server else { return eprintln!("skipped: this machine has one processor") };
    let size = 66 * MIB + 4097;
    let whole = content(9, size);
    fs::write(world.root().join("x"), &whole).unwrap();
    let quarter = size as u64 / 4;
    // Which connection is cut, and after how much.
    let cases = [
        None,
        Some((1, quarter, Cut::Reset)),
        Some((1, quarter + 300_000, Cut::End)),
        Some((0, quarter, Cut::Reset)),
        Some((1, 100, Cut::Reset)),
    ];
    for case in cases {
        let (begun, is_begun) = mpsc::channel();
        let (look, looked) = mpsc::channel();
        let (count, is_counted) = mpsc::channel();
        let looked = Arc::new(Mutex::new(looked));
        let proxy = Proxy::new(server.port, move |number| {
            if number == 1 {
                // Whoever makes this connection waits for its answer.
                count.send(lane_threads(is_begun.recv().unwrap())).unwrap();
                look.send(()).unwrap();
            }
            let looked = Arc::clone(&looked);
            // The first one goes no further before.
            let wait = Arc::new(move || {
                // Without a second one there is nothing to see, which is told below.
                let _ = looked.lock().unwrap().recv_timeout(PATIENCE);
            });
            Plan {
                cut: case.filter(|&(which, ..)| which == number).map(|(_, at, how)| (at, how)),
                down: (number == 0).then_some((MIB as u64, wait)),
                ..Plan::default()
            }
        });
        let got = world.path("got");
        // By itself it has a second one only where others leave the processors alone.
        let ran = on_processors(2, || {
            let mut client = server.client(&["get", "--json", "--streams=2", &remote(proxy.port, "x")]);
            let client = client.arg(&got).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            begun.send(client.id()).unwrap();
            Ran::of(client.wait_with_output().unwrap())
        });
        let ran = ran.unwrap();
        assert_eq!(ran.code, 0, "{case:?}: {ran:?}");
        assert_eq!(is_counted.recv_timeout(PATIENCE), Ok(1), "{case:?}: threads for the second connection");
        assert!(fs::read(&got).unwrap() == whole, "{case:?}: other bytes");
        assert!(case.is_some() || proxy.connections() == 2, "{} connections", proxy.connections());
        let (_, down) = proxy.bytes();
        assert!(down < size as u64 + 6 * MIB as u64, "{case:?}: {down} bytes came");
        fs::remove_file(&got).unwrap();
    }
    // One that was fixed is one; and without, there are one or two.
    for streams in [Some("--streams=1"), None] {
        let proxy = Proxy::new(server.port, |_| Plan::default());
        let (from, to) = (remote(proxy.port, "x"), world.path("y"));
        let args = streams.into_iter().chain([from.as_str(), to.to_str().unwrap()]);
        let ran = on_processors(2, || server.run("get", args)).unwrap();
        assert!(ran.code == 0 && proxy.connections() <= 2 - usize::from(streams.is_some()), "{ran:?}");
        assert!(fs::read(&to).unwrap() == whole);
        fs::remove_file(&to).unwrap();
    }
    assert_eq!((staged(&world.root()), leftovers(&world.root()).len()), (0, 0));
}

#[test]
fn holes_of_files_in_memory_are_not_sent_either() {
    let world = World::in_memory();
    let server = world.serve();
    let mut whole = content(3, 9 * MIB);
    whole[2 * MIB..8 * MIB].fill(0);
    let file = fs::File::create(world.root().join("x")).unwrap();
    file.set_len(whole.len() as u64).unwrap();
    file.write_all_at(&whole[..2 * MIB], 0).unwrap();
    file.write_all_at(&whole[8 * MIB..], 8 * MIB as u64).unwrap();
    let proxy = Proxy::new(server.port, |_| Plan::default());
    let ran = run(&server, "get", 1, &remote(proxy.port, "x"), world.path("y").to_str().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fs::read(world.path("y")).unwrap() == whole);
    let (_, down) = proxy.bytes();
    assert!(down < 4 * MIB as u64, "{down} bytes came");
}
