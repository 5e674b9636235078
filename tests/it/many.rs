//! Many clients at once, and a server without descriptors (cases R04, R05).

use std::fs;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::rig::{Plan, Proxy, Ran, World, content, has, hash_of, remote, staged, tree, until, within, wrapped};

#[test]
fn fifty_clients_at_once() {
    let world = World::new();
    let mut server = world.serve();
    let clients = 50;
    let files = |client: usize| -> Vec<(String, usize)> {
        let small = (0..6).map(|index| (format!("d{}/f{index}", index % 2), 1000 * index + client));
        let large = client.is_multiple_of(3).then(|| ("large".to_owned(), (1 << 20) + client));
        small.chain(large).collect()
    };
    for client in 0..clients {
        for (index, (name, len)) in files(client).into_iter().enumerate() {
            world.file(&format!("source/{client}/{name}"), &content((client * 100 + index) as u64, len));
        }
    }
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (world, server) = (&world, &server);
            scope.spawn(move || {
                let source = world.path(&format!("source/{client}"));
                server.put(&source, &format!("up/{client}"));
                let target = world.path(&format!("down/{client}"));
                server.get(&format!("up/{client}"), &target);
                assert_eq!(tree(&target), tree(&source), "client {client}");
                for (name, _) in files(client) {
                    let (there, here) = (fs::read(target.join(&name)).unwrap(), fs::read(source.join(&name)).unwrap());
                    assert_eq!(hash_of(&there), hash_of(&here), "client {client}: {name}");
                }
            });
        }
    });
    assert!(server.is_alive());
    assert_eq!(staged(&world.root()), 0);
    let peak = server.memory_peak() >> 20;
    println!("the server's memory rose to {peak} MiB");
    assert!(peak < 512, "{peak} MiB");
}

/// With one thread for connections each of them does what it can of its disk work itself, on a root in memory.
#[test]
fn connections_that_do_their_disk_work_themselves() {
    let world = World::in_memory();
    let mut server = world.serve_and(&["--disk-threads".as_ref(), "2".as_ref()]);
    let len = |client: usize| (6 << 20) + client * 300_001;
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (world, server) = (&world, &server);
            scope.spawn(move || {
                let bytes = content(client as u64, len(client));
                let source = world.file(&format!("source/{client}"), &bytes);
                server.put(&source, &format!("{client}"));
                assert!(fs::read(world.root().join(format!("{client}"))).unwrap() == bytes, "client {client}: up");
                let target = world.path(&format!("target-{client}"));
                server.get(&format!("{client}"), &target);
                assert!(fs::read(target).unwrap() == bytes, "client {client}: down");
            });
        }
    });
    assert!(server.is_alive());
    assert_eq!(staged(&world.root()), 0);
}

#[test]
fn memory_does_not_grow_with_the_size_of_files() {
    let world = World::new();
    let server = world.serve();
    let source = world.path("source");
    // Not sparse where it matters: every group is hashed, sent and written.
    fs::File::create(&source).unwrap().set_len(400 << 20).unwrap();
    server.put(&source, "x");
    let peak = server.memory_peak() >> 20;
    println!("the server's memory rose to {peak} MiB for a file of 400 MiB");
    assert!(peak < 128, "{peak} MiB");
    fs::remove_file(world.root().join("x")).unwrap();
}

/// Connections until the server can take no more.
fn exhaust(port: u16, is_out: impl Fn() -> bool) -> Vec<TcpStream> {
    let mut held = Vec::new();
    until("the server runs out of descriptors", || {
        for _ in 0..20 {
            if held.len() < 400 {
                held.push(TcpStream::connect(("127.0.0.1", port)).unwrap());
            }
        }
        is_out().then_some(())
    });
    held
}

fn warnings(server: &crate::rig::Server) -> usize {
    server.said().iter().filter(|line| line.contains("accept:") && line.contains("os error 24")).count()
}

#[test]
fn a_server_without_descriptors_neither_spins_nor_dies() {
    if !has("prlimit", &["--version"], "running out of descriptors") {
        return;
    }
    let world = World::new();
    let mut server = world.serve_by(wrapped("prlimit", ["--nofile=96:96"]), 0);
    let source = world.file("source", &content(1, 24 << 20));
    // One upload is in its middle when nothing more can be opened.
    let held = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (hold, port) = (Arc::clone(&held), server.port);
    let (run_out, running_out) = std::sync::mpsc::channel();
    let proxy = Proxy::new(port, move |number| {
        let (run_out, hold) = (run_out.clone(), Arc::clone(&hold));
        let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            // The first connection of each is enough: the rest waits in the listener's queue.
            let more = (0..200).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap());
            hold.lock().unwrap().extend(more);
            run_out.send(()).unwrap();
        });
        Plan { up: (number == 0).then_some((4 << 20, hook)), ..Plan::default() }
    });
    let mut client = server.client(&["put", "--json"]);
    client.arg(&source).arg(remote(proxy.port, "x")).stdout(std::process::Stdio::piped());
    let client = client.spawn().unwrap();
    running_out.recv().unwrap();
    until("the server tells that it cannot accept", || (warnings(&server) > 0).then_some(()));
    let ran = Ran::of(client.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "the upload that was running: {ran:?} {:?}", server.said());
    assert_eq!(hash_of(&fs::read(world.root().join("x")).unwrap()), hash_of(&fs::read(&source).unwrap()));
    // Nothing ends now, so the waits between attempts grow: 5 ms, 10 ms and so on up to 1 s.
    let (begun, before) = (Instant::now(), warnings(&server));
    until("the server goes on trying to accept", || (warnings(&server) >= before + 9).then_some(()));
    assert!(begun.elapsed() > Duration::from_millis(600), "nine attempts within {:?}: it spins", begun.elapsed());
    held.lock().unwrap().clear();
    let begun = Instant::now();
    within(Duration::from_secs(5), "the server serves again", || {
        let ran = server.run("put", [source.as_os_str(), server.at("y").as_ref()]);
        (ran.code == 0).then_some(())
    });
    println!("it served again after {:?}", begun.elapsed());
    assert!(server.is_alive());
    // And once more, to see that nothing was lost on the way.
    let held = exhaust(server.port, || warnings(&server) >= 10);
    drop(held);
    within(Duration::from_secs(5), "the server serves again", || {
        (server.run("put", [source.as_os_str(), server.at("z").as_ref()]).code == 0).then_some(())
    });
}

/// More than are committed at once, so that batches wait; up, and down again.
#[test]
fn small_files_onto_a_file_system_in_memory() {
    let world = World::in_memory();
    let server = world.serve();
    let whole = |number: usize, round: u64| content(number as u64 + 1000 * round, (number * 37) % 5000);
    for round in 0..2 {
        for number in 0..1000 {
            world.file(&format!("source/{}/{number}", number % 7), &whole(number, round));
        }
        let source = world.path("source");
        // One that was left lying is missed soon.
        let ran = server.run("put", ["--timeout=30s", source.to_str().unwrap(), &remote(server.port, "tree")]);
        assert_eq!(ran.code, 0, "{ran:?}");
        for number in 0..1000 {
            let got = fs::read(world.root().join(format!("tree/{}/{number}", number % 7))).unwrap();
            assert!(got == whole(number, round), "file {number}, round {round}");
        }
    }
    let source = world.path("source");
    let ran = server.run("put", [source.as_os_str(), server.at("tree").as_ref()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.summary()["unchanged"], 1000, "{ran:?}");
    // Down into directories that this run makes, then into one that is there already and others that are not.
    let target = world.path("target");
    let get = || {
        let ran = server.run("get", [server.at("tree").as_ref(), target.as_os_str()]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(tree(&target), tree(&source));
        (ran.summary()["stored"].clone(), ran.summary()["unchanged"].clone())
    };
    assert_eq!(get(), (1000.into(), 0.into()));
    assert_eq!(get(), (0.into(), 1000.into()));
    for gone in 1..7 {
        fs::remove_dir_all(target.join(gone.to_string())).unwrap();
    }
    let kept = fs::read_dir(target.join("0")).unwrap().count();
    assert_eq!(get(), ((1000 - kept).into(), kept.into()));
    assert_eq!(staged(&world.root()), 0);
}
