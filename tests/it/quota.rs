//! Quotas and limits of principals: before content where its size is known, while it comes where not, together and
//! not each for itself.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::policy::{House, ended, logged};
use crate::rig::{Plan, Proxy, Server, World, content, remote, until};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Bytes and names below a home.
fn stored(house: &House, home: &str) -> (u64, usize) {
    let tree = crate::rig::tree(&house.world.root().join(home));
    let bytes = tree.values().filter_map(|seen| match &seen.kind {
        crate::rig::What::File { size } => Some(*size),
        _ => None,
    });
    (bytes.sum(), tree.len())
}

fn serve(house: &House) -> Server {
    let server = house.serve();
    // Until it is counted what is there, clients wait.
    house.run("alice", &["ls", &server.at("")], 0);
    server
}

/// Begins an upload over a slow link and kills its client once 5 MiB have passed; returns once the rest of it rests.
#[track_caller]
fn interrupt(house: &House, server: &Server, source: &Path, name: &str) {
    let victim = Arc::new(AtomicI32::new(0));
    let dying = Arc::clone(&victim);
    let proxy = Proxy::new(server.port, move |_| {
        let dying = Arc::clone(&dying);
        let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            let pid = until("the client is known", || Pid::from_raw(dying.load(Ordering::SeqCst)));
            let _ = kill_process(pid, Signal::KILL);
        });
        Plan { up: Some((5 << 20, hook)), rate: Some(24 << 20), ..Plan::default() }
    });
    let mut command = house.client("alice", &["put", source.to_str().unwrap(), &remote(proxy.port, name)]);
    let mut client = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
    assert!(!client.wait().unwrap().success(), "it was to be killed");
    until("it rests", || {
        let text = uploads(house, &["ls", "--json"]);
        let found: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [one] = found.as_slice() else { return None };
        assert_eq!((&one["owner"], &one["name"]), (&"alice".into(), &format!("alice/{name}").into()));
        (one["active"] == false && one["disk_size"].as_u64() > Some(3 << 20)).then_some(())
    });
}

fn uploads(house: &House, args: &[&str]) -> String {
    let mut command = crate::rig::binary();
    let output = command.arg("uploads").args(args).arg("--root").arg(house.world.root()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Where batches of one connection were committed at once, two of them would count a directory that both found missing.
#[test]
fn a_tree_of_small_files_in_memory_that_just_fits_is_stored_time_and_again() {
    let house = House::of(World::in_memory(), &["alice"]);
    let (directories, each) = (40, 3);
    for directory in 0..directories {
        for file in 0..each {
            house.world.file(&format!("source/{directory}/{file}"), &content(directory * each + file, 100));
        }
    }
    let names = 1 + directories * (1 + each);
    house.edit(&["user", "add", "alice", "--files", &names.to_string()], 0);
    let server = serve(&house);
    let source = house.world.path("source");
    for _ in 0..15 {
        house.run("alice", &["put", source.to_str().unwrap(), &server.at("tree")], 0);
        assert_eq!(stored(&house, "alice").1 as u64, names);
        assert!(house.run("alice", &["mkdir", &server.at("more")], 4).contains("your quota"));
        house.run("alice", &["rm", "-r", &server.at("tree")], 0);
    }
}

#[test]
fn what_was_cut_takes_of_the_quota_until_it_is_finished_removed_or_over() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice", "--bytes", "12M"], 0);
    let big = house.world.file("big", &content(1, 8 * MIB));
    let other = house.world.file("other", &content(2, 10 * MIB));
    let four = house.world.file("four", &content(3, 4 * MIB));
    let put = |server: &Server, file: &Path, to: &str, code: i32| {
        house.run("alice", &["put", file.to_str().unwrap(), &server.at(to)], code)
    };
    let remove = |server: &Server, name: &str| house.run("alice", &["rm", &server.at(name)], 0);
    let server = serve(&house);
    interrupt(&house, &server, &big, "big");
    let text = put(&server, &other, "other", 4);
    assert!(text.contains("your quota is 12582912 bytes") && text.contains("by uploads that were cut"), "{text}");
    // Also for a server that comes later; what fits beside it is stored.
    drop(server);
    let server = serve(&house);
    assert!(put(&server, &other, "other", 4).contains("by uploads that were cut"));
    put(&server, &house.world.file("one", &content(4, 1 << 20)), "one", 0);
    remove(&server, "one");
    // Finished, it counts as a file, and no more.
    put(&server, &big, "big", 0);
    assert!(put(&server, &other, "other", 4).contains("and 4194304 are left, not 10485760"));
    put(&server, &four, "four", 0);
    remove(&server, "four");
    remove(&server, "big");
    // Removed.
    interrupt(&house, &server, &big, "big");
    put(&server, &other, "other", 4);
    uploads(&house, &["rm", "--all"]);
    put(&server, &other, "other", 0);
    remove(&server, "other");
    // Over.
    interrupt(&house, &server, &big, "big");
    put(&server, &other, "other", 4);
    drop(server);
    let policy = house.policy();
    let server =
        house.world.serve_and(&["--policy".as_ref(), policy.as_ref(), "--keep-partial".as_ref(), "1s".as_ref()]);
    until("it is given up", || {
        let mut command = house.client("alice", &["put", other.to_str().unwrap(), &server.at("other")]);
        command.output().unwrap().status.success().then_some(())
    });
}

#[test]
fn what_was_cut_keeps_its_place_among_the_open_uploads() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice", "--uploads", "1"], 0);
    let big = house.world.file("big", &content(1, 8 * MIB));
    let other = house.world.file("other", &content(2, 2 * MIB));
    let small = house.world.file("small", &content(3, 100 * KIB));
    let put = |server: &Server, file: &Path, to: &str, code: i32| {
        house.run("alice", &["put", file.to_str().unwrap(), &server.at(to)], code)
    };
    let server = serve(&house);
    interrupt(&house, &server, &big, "big");
    let server = {
        assert!(put(&server, &other, "other", 4).contains("1 were cut and wait for you"));
        drop(server);
        serve(&house)
    };
    assert!(put(&server, &other, "other", 4).contains("1 were cut and wait for you"));
    // What never rests is not kept back by what does.
    put(&server, &small, "small", 0);
    // It goes on itself.
    put(&server, &big, "big", 0);
    put(&server, &other, "other", 0);
    interrupt(&house, &server, &big, "again");
    put(&server, &other, "third", 4);
    uploads(&house, &["rm", "--all"]);
    put(&server, &other, "third", 0);
}

/// The seconds that a transfer took, by its own account.
fn seconds(house: &House, name: &str, args: &[&str]) -> f64 {
    let text = house.run(name, args, 0);
    let summary: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    summary["seconds"].as_f64().unwrap_or_else(|| panic!("{summary}"))
}

/// Only what must hold on any machine: what is limited takes as long as its bytes need at that rate, over however many
/// connections and transfers at once. (A grant of 20 ms and what late timers are made up for come at its beginning.)
#[test]
fn a_principal_has_its_rates_over_all_its_connections() {
    let house = House::new(&["alice", "bob"]);
    house.edit(&["user", "add", "alice", "--rate-up", "3M", "--rate-down", "6M"], 0);
    house.edit(&["user", "add", "bob"], 0);
    let server = serve(&house);
    let file = house.world.file("file", &content(1, 6 * MIB));
    let file = file.to_str().unwrap();
    let begun = std::time::Instant::now();
    let running: Vec<_> = ["a", "b"]
        .map(|name| {
            let mut command = house.client("alice", &["put", "--streams", "4", file, &server.at(name)]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .into();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let up = begun.elapsed().as_secs_f64();
    assert!(up >= 12.0 / 3.0 * 0.9, "12 MiB in {up} s");
    let down = house.world.path("down");
    let get = ["get", "--json", "--streams", "4", &server.at("a"), down.to_str().unwrap()];
    let down = seconds(&house, "alice", &get);
    assert!(down >= 6.0 / 6.0 * 0.8, "6 MiB in {down} s");
    // Another principal is not bound, nor alice when the limit is gone, nor by a running connection's old one.
    let up = seconds(&house, "bob", &["put", "--json", file, &server.at("b")]);
    println!("not limited: {up} s");
    let count = |sentence: &str| server.said().iter().filter(|line| line.contains(sentence)).count();
    let (read, connected) = ("rules are read again", "alice connected");
    let before = count(read);
    let said = house.edit(&["user", "set", "alice", "--rate-up", "none", "--rate-down", "32K"], 0);
    assert!(said.contains("at most: rate-down 32768") && !said.contains("rate-up"), "{said}");
    assert!(house.edit(&["user", "ls"], 0).contains("at most: rate-down 32768"));
    logged(&server, before + 1, read);
    // It is bound to a rate at which it would take three minutes, and goes on at another as soon as that is said.
    let before = count(connected);
    let target = house.world.path("slow");
    let mut slow = house.client("alice", &["get", &server.at("b"), target.to_str().unwrap()]);
    let mut slow = slow.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    logged(&server, before + 1, connected);
    assert!(house.edit(&["user", "set", "alice", "--rate-down", "none"], 0).contains("no limit of its own"));
    ended(&mut slow, "its rate is not limited any more");
    assert!(slow.wait().unwrap().success());
    assert_eq!(fs::read(target).unwrap(), content(1, 6 * MIB));
}

#[test]
fn a_full_quota_is_told_before_content_and_room_comes_back() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice", "--bytes", "8M", "--files", "6", "--file-size", "6M"], 0);
    let server = serve(&house);
    let file = |name: &str, len: usize| {
        let path = house.world.file(name, &content(len as u64, len));
        path.to_str().unwrap().to_owned()
    };
    let (five, three, small) = (file("five", 5 * MIB), file("three", 3 * MIB + 1), file("small", 100 * KIB));
    let put = |file: &str, to: &str, code: i32| house.run("alice", &["put", file, &server.at(to)], code);
    put(&five, "a", 0);
    assert!(put(&three, "b", 4).contains("your quota is 8388608 bytes, and 3145728 are left, not 3145729"));
    assert!(put(&file("huge", 7 * MIB), "h", 4).contains("more than a file of yours may have"));
    put(&small, "s", 0);
    // In its own place it has room.
    put(&file("other", 6 * MIB), "a", 0);
    put(&five, "a", 0);
    // Unchanged content takes none, whatever is left.
    put(&five, "a", 0);
    // A stream is cut where it would exceed.
    let stream = |to: &str, len: usize, code: i32| {
        let mut command = house.client("alice", &["put", "-", &server.at(to)]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = content(9, len);
        let writer = std::thread::spawn(move || {
            // A client that was refused reads no more.
            let _ = stdin.write_all(&bytes);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        text
    };
    assert!(stream("b", 4 * MIB, 4).contains("your quota is"), "a stream");
    stream("b", 2 * MIB, 0);
    house.run("alice", &["rm", &server.at("b")], 0);
    put(&file("fits", 2 * MIB), "b", 0);
    // Names: a, s, b and three more.
    house.run("alice", &["mkdir", &server.at("d/e")], 0);
    assert!(put(&small, "d/e/f/g", 4).contains("files and directories, and 1 are left, not 2"));
    put(&small, "d/e/f", 0);
    assert!(put(&small, "z", 4).contains("files and directories"));
    house.run("alice", &["mkdir", &server.at("z")], 4);
    house.run("alice", &["mv", &server.at("d"), &server.at("z")], 0);
    house.run("alice", &["rm", "-r", &server.at("z")], 0);
    put(&small, "x/y/z", 0);
    assert!(stored(&house, "alice").0 <= 8 << 20);
    // A server that comes later counts the same.
    drop(server);
    let server = serve(&house);
    let put = |file: &str, to: &str, code: i32| house.run("alice", &["put", file, &server.at(to)], code);
    assert_eq!(stored(&house, "alice").1, 6);
    assert!(put(&small, "more", 4).contains("files and directories, and 0 are left"));
    house.run("alice", &["rm", &server.at("a")], 0);
    put(&small, "more", 0);
}

#[test]
fn uploads_side_by_side_do_not_exceed_it_together() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice", "--bytes", "10M"], 0);
    let server = serve(&house);
    let file = house.world.file("file", &content(1, 3 * MIB));
    let mut running = Vec::new();
    for number in 0..6 {
        let mut command = house.client("alice", &["put", file.to_str().unwrap(), &server.at(&format!("{number}"))]);
        running.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }
    let codes: Vec<_> = running.into_iter().map(|mut child| child.wait().unwrap().code().unwrap()).collect();
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 3, "{codes:?}");
    assert!(codes.iter().all(|code| [0, 4].contains(code)), "{codes:?}");
    assert_eq!(stored(&house, "alice"), (9 << 20, 3));
}

#[test]
fn what_an_operator_removes_above_is_counted_anew() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice", "--home", "people/alice", "--bytes", "4M"], 0);
    house.edit(&["user", "add", "client", "--home", "/", "--overlap"], 0);
    let server = serve(&house);
    let file = house.world.file("file", &content(1, 3 * MIB));
    let put = |name: &str, to: &str, code: i32| {
        house.run(name, &["put", file.to_str().unwrap(), &server.at(to)], code);
    };
    put("alice", "a", 0);
    put("alice", "b", 4);
    // Her quota counts what others put there, and does not keep them from it.
    put("client", "people/alice/b", 0);
    house.run("client", &["rm", &server.at("people/alice/a")], 0);
    put("alice", "c", 4);
    house.run("client", &["rm", "-r", &server.at("people")], 0);
    put("alice", "c", 0);
    assert_eq!(stored(&house, "people/alice"), (3 << 20, 1));
}

#[test]
fn connections_and_open_uploads_have_their_bounds() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice", "--uploads", "2", "--connections", "2"], 0);
    let server = serve(&house);
    // Many files over few places.
    for number in 0..50 {
        house.world.file(&format!("tree/{number}"), &content(number, 1000 + 9000 * number as usize));
    }
    let tree = house.world.path("tree");
    house.run("alice", &["put", "--streams", "1", tree.to_str().unwrap(), &server.at("")], 0);
    assert_eq!(stored(&house, "alice").1, 51);
    let first = house.begin_upload(&server, "alice", "x");
    let second = house.begin_upload(&server, "alice", "y");
    let mut command = house.client("alice", &["ls", "--timeout", "2s", &server.at("")]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("2 connections are all that you may have at once"), "{text}");
    assert_eq!(output.status.code(), Some(3), "{text}");
    for child in [first, second] {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    until("the places are free", || {
        house.client("alice", &["ls", &server.at("")]).output().unwrap().status.success().then_some(())
    });
    assert!(fs::exists(house.world.root().join("alice/x")).unwrap());
}
