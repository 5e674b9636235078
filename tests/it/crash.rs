//! `kill -9` of servers and clients at any byte (case D01): what was told as done is there and right, a final name
//! never shows a part, and the next start finds its way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{
    Cut, Numbers, Plan, Proxy, Ran, Server, What, World, content, hash_of, leftovers, long, remote, staged, tree, until,
};

/// Names and sizes of one round of uploads: some small, some of several groups, in directories of different depth.
fn names() -> Vec<(String, usize)> {
    let small = (0..40).map(|index| (format!("d{}/s{index}", index % 3), 200 + 700 * index));
    let deep = (0..4).map(|index| (format!("a/b/c{index}/x"), 5000));
    let large = (0..3).map(|index| (format!("d{index}/large"), (index + 1) * (1 << 20) + 4097));
    small.chain(deep).chain(large).collect()
}

fn number(round: u64, index: usize) -> u64 {
    round * 1000 + index as u64
}

/// Writes the versions of this round.
fn write_round(world: &World, directory: &str, round: u64) -> BTreeMap<String, String> {
    let mut hashes = BTreeMap::new();
    for (index, (name, len)) in names().into_iter().enumerate() {
        let bytes = content(number(round, index), len + usize::try_from(round % 5).unwrap());
        world.file(&format!("{directory}/{name}"), &bytes);
        hashes.insert(name, hash_of(&bytes));
    }
    hashes
}

/// Hashes of what is under final names.
fn there(top: &Path) -> BTreeMap<String, String> {
    let files = tree(top).into_iter().filter(|(_, seen)| matches!(seen.kind, What::File { .. }));
    files
        .map(|(path, _)| {
            let hash = hash_of(&fs::read(top.join(&path)).unwrap());
            (path.to_str().unwrap().to_owned(), hash)
        })
        .filter(|(name, _)| !name.contains(".sealift-"))
        .collect()
}

/// Kills a process when the proxy sees so many bytes in one direction.
pub(crate) fn deadly(victim: Arc<AtomicI32>, at: u64, is_up: bool) -> impl Fn(usize) -> Plan + Send + 'static {
    move |connection| {
        if connection > 0 {
            return Plan::default();
        }
        let victim = Arc::clone(&victim);
        let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            let pid = until("the process is known", || Pid::from_raw(victim.load(Ordering::SeqCst)));
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        });
        let hook = Some((at, hook));
        if is_up { Plan { up: hook, ..Plan::default() } } else { Plan { down: hook, ..Plan::default() } }
    }
}

/// Where to kill: at any byte of what is moved, or round the answers, once the two have greeted: a first connection
/// that breaks before is told at once, like one that is refused.
pub(crate) fn instant(numbers: &mut Numbers, (up, down): (u64, u64)) -> (u64, bool) {
    const GREETED: u64 = 4000;
    let is_up = numbers.below(2) == 0;
    let total = if is_up { up } else { down };
    (GREETED.min(total - 1) + numbers.below(total.saturating_sub(GREETED).max(1)), is_up)
}

fn measure(server: &Server, command: &str, from: &Path, path: &str) -> (u64, u64) {
    let proxy = Proxy::new(server.port, |_| Plan::default());
    let (from, remote) = (from.to_str().unwrap(), remote(proxy.port, path));
    let args = if command == "put" { [command, from, &remote] } else { [command, &remote, from] };
    assert!(server.client(&args).output().unwrap().status.success());
    proxy.bytes()
}

fn start(server: &Server, args: &[&str]) -> Child {
    server.client(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Every file is one of two versions, whole; every one that was told as done is the new one.
#[track_caller]
fn check(
    now: &BTreeMap<String, String>,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    told: &[(String, String)],
    prefix: &Path,
    what: &str,
) {
    for (name, hash) in now {
        let is_old = old.get(name) == Some(hash);
        assert!(is_old || new.get(name) == Some(hash), "{what}: {name} is neither the old version nor the new one");
    }
    for name in old.keys() {
        assert!(now.contains_key(name), "{what}: {name} was there and is gone");
    }
    for (told, hash) in told {
        let told = Path::new(told);
        let name = told.strip_prefix(prefix).unwrap_or(told).to_str().unwrap();
        assert_eq!(Some(hash), new.get(name), "{what}: {name} was told with another hash");
        assert_eq!(now.get(name), Some(hash), "{what}: {name} was told as done");
    }
}

#[test]
fn a_killed_server_has_what_it_answered_and_no_part_of_anything() {
    let world = World::new();
    let mut numbers = Numbers::new("killed servers");
    let rounds = if long("200 killed servers") { 200 } else { 12 };
    let mut server = world.serve();
    let mut old = write_round(&world, "source", 0);
    let source = world.path("source");
    let traffic = measure(&server, "put", &source, "t");
    let top = world.root().join("t");
    assert_eq!(there(&top), old);
    let (mut told_count, mut hidden_count, mut died) = (0, 0, 0);
    for round in 1..=rounds {
        let new = write_round(&world, "source", round);
        let (at, is_up) = instant(&mut numbers, traffic);
        let what = format!("round {round}, killed at byte {at} {}", if is_up { "up" } else { "down" });
        let victim = Arc::new(AtomicI32::new(server.pid().as_raw_nonzero().get()));
        let proxy = Proxy::new(server.port, deadly(victim, at, is_up));
        let args = ["put", "--json", source.to_str().unwrap(), &remote(proxy.port, "t")];
        let mut client = start(&server, &args);
        if round % 2 == 0 {
            // The client is left alone: it finds the next server by itself and finishes.
            until(&what, || (!server.is_alive() || client.try_wait().unwrap().is_some()).then_some(()));
            died += u64::from(!server.is_alive());
            check(&there(&top), &old, &new, &[], &source, &what);
            server.kill();
            server = world.serve();
            proxy.aim(server.port);
            let ran = Ran::of(client.wait_with_output().unwrap());
            assert_eq!(ran.code, 0, "{what}: {ran:?}");
            check(&there(&top), &old, &new, &ran.done_files(), &source, &what);
            assert_eq!(there(&top), new, "{what}");
            told_count += ran.done_files().len();
            old = new;
        } else {
            // The client dies too, and what it said until then is held against the disk.
            until(&what, || (!server.is_alive() || client.try_wait().unwrap().is_some()).then_some(()));
            died += u64::from(!server.is_alive());
            server.kill();
            let _ = client.kill();
            let ran = Ran::of(client.wait_with_output().unwrap());
            let now = there(&top);
            check(&now, &old, &new, &ran.done_files(), &source, &what);
            told_count += ran.done_files().len();
            old = now;
            server = world.serve();
        }
        assert_eq!(staged(&world.root()), 0, "{what}: staging is left");
        hidden_count += leftovers(&world.root()).len();
        let listed = server.client(&["ls", "-R", &server.at("")]).output().unwrap();
        assert!(listed.status.success(), "{what}: {listed:?}");
        assert!(!String::from_utf8_lossy(&listed.stdout).contains(".sealift"), "{what}: {listed:?}");
    }
    println!(
        "{died} of {rounds} servers died in the middle; {told_count} files told; {hidden_count} hidden names seen"
    );
    assert!(died * 2 > rounds, "the kills did not hit");
}

#[test]
fn a_killed_upload_leaves_nothing_and_is_continued() {
    let world = World::new();
    let server = world.serve();
    let mut numbers = Numbers::new("killed uploads");
    let rounds = if long("100 killed uploads") { 100 } else { 6 };
    let mut old = write_round(&world, "source", 0);
    let source = world.path("source");
    let traffic = measure(&server, "put", &source, "t");
    let top = world.root().join("t");
    for round in 1..=rounds {
        let new = write_round(&world, "source", round);
        let (at, is_up) = instant(&mut numbers, traffic);
        let what = format!("round {round}, killed at byte {at} {}", if is_up { "up" } else { "down" });
        let victim = Arc::new(AtomicI32::new(0));
        let proxy = Proxy::new(server.port, deadly(Arc::clone(&victim), at, is_up));
        let args = ["put", "--json", source.to_str().unwrap(), &remote(proxy.port, "t")];
        let client = start(&server, &args);
        victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
        let ran = Ran::of(client.wait_with_output().unwrap());
        check(&there(&top), &old, &new, &ran.done_files(), &source, &what);
        // The server is still there: it notices and takes away what nobody will finish.
        until("staging is removed", || (staged(&world.root()) == 0).then_some(()));
        until("hidden names are gone", || leftovers(&world.root()).is_empty().then_some(()));
        let ran = server.run("put", [source.as_os_str(), server.at("t").as_ref()]);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
        assert_eq!(there(&top), new, "{what}");
        old = new;
    }
}

#[test]
fn a_killed_download_leaves_whole_files_and_is_continued() {
    let world = World::new();
    let server = world.serve();
    let mut numbers = Numbers::new("killed downloads");
    let rounds = if long("100 killed downloads") { 100 } else { 6 };
    let old = write_round(&world, "old", 0);
    let new = write_round(&world, "root/t", 1);
    let traffic = measure(&server, "get", &world.path("measured"), "t");
    let mut hidden_count = 0;
    for round in 1..=rounds {
        let target = world.path(&format!("target-{round}"));
        // Half of them meet an older version.
        let before = if round % 2 == 0 { write_round(&world, &format!("target-{round}"), 0) } else { BTreeMap::new() };
        assert!(before.is_empty() || before == old);
        let (at, is_up) = instant(&mut numbers, traffic);
        let what = format!("round {round}, killed at byte {at} {}", if is_up { "up" } else { "down" });
        let victim = Arc::new(AtomicI32::new(0));
        let proxy = Proxy::new(server.port, deadly(Arc::clone(&victim), at, is_up));
        let target_text = target.to_str().unwrap();
        let client = start(&server, &["get", "--json", &remote(proxy.port, "t"), target_text]);
        victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
        let ran = Ran::of(client.wait_with_output().unwrap());
        if target.exists() {
            check(&there(&target), &before, &new, &ran.done_files(), Path::new("t"), &what);
            hidden_count += leftovers(&target).len();
        } else {
            assert!(ran.done_files().is_empty(), "{what}: {ran:?}");
        }
        let ran = server.run("get", [server.at("t").as_ref(), target.as_os_str()]);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
        assert_eq!(there(&target), new, "{what}");
        fs::remove_dir_all(&target).unwrap();
    }
    println!("{hidden_count} hidden staging files were left in {rounds} rounds");
}

/// A server that is killed again and again while one client works: the client gets through by itself.
#[test]
fn one_upload_outlives_many_servers() {
    let world = World::new();
    let mut numbers = Numbers::new("one client, many servers");
    let deaths = if long("15 servers for one upload") { 15 } else { 4 };
    let expected = write_round(&world, "source", 3);
    let source: PathBuf = world.path("source");
    let mut server = world.serve();
    // Each server dies after some of the bytes of its first connection.
    let pids: Arc<Mutex<Option<Pid>>> = Arc::new(Mutex::new(Some(server.pid())));
    // What a server has received the next one need not: there is less to come each time.
    let at: Vec<u64> = (0..deaths).map(|_| 5000 + numbers.below(600 << 10)).collect();
    let proxy = {
        let pids = Arc::clone(&pids);
        Proxy::new(server.port, move |connection| {
            let pids = Arc::clone(&pids);
            let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
                if let Some(pid) = pids.lock().unwrap().take() {
                    let _ = kill_process(pid, Signal::KILL);
                }
            });
            Plan { up: at.get(connection).map(|&at| (at, hook)), ..Plan::default() }
        })
    };
    let mut client = start(&server, &["put", "--json", source.to_str().unwrap(), &remote(proxy.port, "t")]);
    let mut died = 0;
    while client.try_wait().unwrap().is_none() {
        if !server.is_alive() {
            died += 1;
            server = world.serve();
            *pids.lock().unwrap() = Some(server.pid());
            proxy.aim(server.port);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let ran = Ran::of(client.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "after {died} servers: {ran:?}");
    assert_eq!(there(&world.root().join("t")), expected);
    assert_eq!(ran.done_files().len(), expected.len(), "each file is told once: {ran:?}");
    println!("one upload outlived {died} servers");
    assert!(died > 1);
}

/// The server dies after the commit and before its answer is read, and the next one remembers nothing: what the file
/// itself says keeps the client from storing it twice.
#[test]
fn an_answer_that_died_with_its_server_is_found_again_under_every_policy() {
    let world = World::new();
    let mut server = world.serve();
    for (what, len) in [("small", 3000), ("large", (2 << 20) + 5)] {
        for policy in ["overwrite", "skip", "fail", "rename"] {
            for is_taken in [false, true] {
                if is_taken && matches!(policy, "skip" | "fail") {
                    continue;
                }
                let name = format!("{what}-{policy}-{is_taken}");
                let source = world.file(&name, &content(1, len));
                let prepare = |directory: &str| {
                    for taken in ["x", "x (1)"].iter().filter(|_| is_taken) {
                        world.file(&format!("root/{directory}/{name}/{taken}"), taken.as_bytes());
                    }
                };
                prepare("measured");
                let target = |port, directory: &str| remote(port, &format!("{directory}/{name}/x"));
                let args = |target: &str| {
                    ["put", "--json", "--if-exists", policy, source.to_str().unwrap(), target].map(str::to_owned)
                };
                let run = |server: &Server, args: [String; 6]| start(server, &args.each_ref().map(String::as_str));
                let proxy = Proxy::new(server.port, |_| Plan::default());
                assert!(run(&server, args(&target(proxy.port, "measured"))).wait().unwrap().success());
                let at = proxy.bytes().1 - 60;
                prepare("died");
                let victim = Arc::new(AtomicI32::new(server.pid().as_raw_nonzero().get()));
                let kill = deadly(victim, at, false);
                let proxy = Proxy::new(server.port, move |number| {
                    // What the server had sent before its death does not arrive.
                    Plan { cut: (number == 0).then_some((at, Cut::End)), ..kill(number) }
                });
                let client = run(&server, args(&target(proxy.port, "died")));
                until("the server dies", || (!server.is_alive()).then_some(()));
                server = world.serve();
                proxy.aim(server.port);
                let ran = Ran::of(client.wait_with_output().unwrap());
                assert_eq!(ran.code, 0, "{name}: {ran:?}");
                let names: Vec<PathBuf> = tree(&world.root().join("died").join(&name)).into_keys().collect();
                let expected = match (is_taken, policy) {
                    (false, _) => &["x"][..],
                    (true, "rename") => &["x", "x (1)", "x (2)"][..],
                    (true, _) => &["x", "x (1)"][..],
                };
                assert_eq!(names, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{name}: {ran:?}");
                if let (true, "rename") = (is_taken, policy) {
                    let told = ran.of_type("done")[0]["renamed_to"].as_str().unwrap().to_owned();
                    assert!(told.ends_with("x (2)"), "{ran:?}");
                }
            }
        }
    }
}
