//! Connections that are cut round the answers (case F01): the client tries again by itself, says that it succeeded,
//! and what it asked for happened once.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::rig::{Cut, Numbers, Plan, Proxy, Ran, Server, World, content, hash_of, long, remote, tree};

/// Bytes of the end of TLS, which follows the last answer.
const TLS_END_LEN: u64 = 24;

fn cut_first(at: u64, how: Cut) -> impl Fn(usize) -> Plan + Send + 'static {
    move |number| Plan { cut: (number == 0).then_some((at, how)), ..Plan::default() }
}

/// Where to cut: round the last answers, and anywhere after the hello.
fn places(greeted: u64, total: u64, count: usize, numbers: &mut Numbers) -> BTreeSet<u64> {
    // The end of TLS is not there when the client has left before.
    let answered = (total - TLS_END_LEN).max(greeted + 8);
    let mut places: BTreeSet<u64> = [answered - 1, greeted].into();
    for _ in 2..count {
        places.insert(greeted + numbers.below(answered - greeted));
    }
    places
}

/// Bytes that a client gets until it is greeted, and a few more.
fn greeted(server: &Server) -> u64 {
    let proxy = Proxy::new(server.port, |_| Plan::default());
    let output = server.client(&["mkdir", &remote(proxy.port, "greeted")]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The smallest answer that there is, less than a half of it.
    proxy.bytes().1 - TLS_END_LEN - 20
}

fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = tree(directory).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

struct Case {
    size: usize,
    policy: &'static str,
    /// Something else has the name.
    is_taken: bool,
}

/// One upload whose first connection is cut. Returns how many attempts to connect there were.
#[track_caller]
fn put_cut(world: &World, server: &Server, case: &Case, number: u64, cut: Option<(u64, Cut)>) -> (usize, u64) {
    let Case { size, policy, is_taken } = *case;
    let directory = format!("case-{size}-{policy}-{is_taken}-{number}");
    let there = world.root().join(&directory);
    fs::create_dir(&there).unwrap();
    let (old, new) = (content(1, size), content(2, size + 3));
    if is_taken {
        fs::write(there.join("x"), &old).unwrap();
    }
    let source = world.file(&format!("sources/{directory}"), &new);
    let proxy = match cut {
        Some((at, how)) => Proxy::new(server.port, cut_first(at, how)),
        None => Proxy::new(server.port, |_| Plan::default()),
    };
    let target = remote(proxy.port, &format!("{directory}/x"));
    let output = server.client(&["put", "--json", "--if-exists", policy]).arg(&source).arg(target).output().unwrap();
    let ran = Ran::of(output);
    let what = format!("{directory} cut at {cut:?}: {ran:#?}");
    assert_eq!(ran.code, 0, "{what}");
    let summary = ran.summary();
    let count = |key: &str| summary[key].as_u64().unwrap();
    assert_eq!(count("stored") + count("unchanged"), 1, "{what}");
    let (expected, holds_new): (&[&str], _) = match (policy, is_taken) {
        ("rename", true) => (&["x", "x (1)"], "x (1)"),
        _ => (&["x"], "x"),
    };
    assert_eq!(names_in(&there), expected, "{what}");
    assert_eq!(hash_of(&fs::read(there.join(holds_new)).unwrap()), hash_of(&new), "{what}");
    if expected.len() > 1 {
        assert_eq!(fs::read(there.join("x")).unwrap(), old, "{what}");
    }
    let is_silent = cut.is_some_and(|(_, how)| how == Cut::Silence);
    (proxy.connections(), if is_silent { 0 } else { proxy.bytes().1 })
}

#[test]
fn a_lost_answer_is_found_again_under_every_policy() {
    let world = World::new();
    let server = world.serve();
    let mut numbers = Numbers::new("lost answers");
    let count = if long("a hundred cuts for each policy and size") { 100 } else { 4 };
    let greeted = greeted(&server);
    let mut again = 0;
    let mut number = 0;
    for size in [700, (1 << 20) + 5, (3 << 20) + 7] {
        for (policy, is_taken) in [
            ("overwrite", false),
            ("overwrite", true),
            ("skip", false),
            ("fail", false),
            ("rename", false),
            ("rename", true),
        ] {
            let case = Case { size, policy, is_taken };
            number += 1;
            let (_, total) = put_cut(&world, &server, &case, number, None);
            for at in places(greeted, total, count, &mut numbers) {
                let how = if numbers.below(2) == 0 { Cut::Reset } else { Cut::End };
                number += 1;
                let (connections, _) = put_cut(&world, &server, &case, number, Some((at, how)));
                again += usize::from(connections > 1);
            }
        }
    }
    println!("{again} of {number} uploads needed another connection");
    assert!(again * 2 > usize::try_from(number).unwrap(), "the cuts did not hit: {again} of {number}");
}

#[test]
fn a_server_that_falls_silent_is_given_up_and_asked_again() {
    let world = World::new();
    let server = world.serve();
    let case = |size| Case { size, policy: "rename", is_taken: false };
    std::thread::scope(|scope| {
        for size in [700, (2 << 20) + 7] {
            let (world, server, case) = (&world, &server, case(size));
            scope.spawn(move || {
                // What a server says of its work is not of the same length each time: a run may end before its cut.
                let hits = (0..3).any(|number| {
                    let (_, total) = put_cut(world, server, &case, 2 * number + 1, None);
                    let cut = Some((total - TLS_END_LEN - 30, Cut::Silence));
                    put_cut(world, server, &case, 2 * number + 2, cut).0 == 2
                });
                assert!(hits, "{size} bytes: no run was cut before its answer");
            });
        }
    });
}

#[test]
fn changes_of_names_are_answered_once() {
    let world = World::new();
    let server = world.serve();
    let mut numbers = Numbers::new("changes of names");
    let count = if long("sixty cuts for each command") { 60 } else { 5 };
    let greeted = greeted(&server);
    let mut number = 0;
    // The command, what is there before, and what after.
    type Case = (&'static [&'static str], &'static [&'static str], &'static [&'static str]);
    let cases: &[Case] = &[
        (&["mv", "x", "y"], &["x"], &["y"]),
        (&["mv", "--if-exists", "overwrite", "x", "y"], &["x", "y"], &["y"]),
        (&["mv", "--if-exists", "rename", "x", "y"], &["x", "y"], &["y", "y (1)"]),
        (&["mv", "x", "d/"], &["x", "d/z"], &["d", "d/x", "d/z"]),
        (&["rm", "x"], &["x", "y"], &["y"]),
        (&["rm", "-r", "d"], &["d/x", "d/y/z", "y"], &["y"]),
        (&["mkdir", "a/b"], &[], &["a", "a/b"]),
    ];
    for &(command, before, after) in cases {
        let mut run = |cut: Option<(u64, Cut)>| {
            number += 1;
            let directory = world.root().join(format!("{number}"));
            fs::create_dir(&directory).unwrap();
            for name in before {
                fs::create_dir_all(directory.join(name).parent().unwrap()).unwrap();
                fs::write(directory.join(name), name).unwrap();
            }
            let proxy = match cut {
                Some((at, how)) => Proxy::new(server.port, cut_first(at, how)),
                None => Proxy::new(server.port, |_| Plan::default()),
            };
            let is_name =
                |index: usize, arg: &str| index > 0 && !arg.starts_with('-') && arg != "overwrite" && arg != "rename";
            let args = command.iter().enumerate().map(|(index, arg)| {
                if is_name(index, arg) { remote(proxy.port, &format!("{number}/{arg}")) } else { (*arg).to_owned() }
            });
            let args: Vec<String> = args.collect();
            let output = server.client(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
            assert!(output.status.success(), "{command:?} cut at {cut:?}: {output:?}");
            assert_eq!(names_in(&directory), after, "{command:?} cut at {cut:?}: {output:?}");
            proxy.bytes().1
        };
        let total = run(None);
        for at in places(greeted, total, count, &mut numbers) {
            let how = if numbers.below(2) == 0 { Cut::Reset } else { Cut::End };
            run(Some((at, how)));
        }
    }
}

#[test]
fn downloads_go_on_after_a_cut_anywhere() {
    let world = World::new();
    let server = world.serve();
    let mut numbers = Numbers::new("cut downloads");
    let count = if long("two hundred cut downloads") { 100 } else { 6 };
    let greeted = greeted(&server);
    for size in [700, (5 << 20) + 7] {
        let bytes = content(5, size);
        fs::write(world.root().join("x"), &bytes).unwrap();
        for number in 0..count {
            let proxy = {
                let at: Vec<u64> = (0..3).map(|_| greeted + numbers.below(size as u64)).collect();
                Proxy::new(server.port, move |number| Plan {
                    cut: at.get(number).map(|&at| (at, if number == 1 { Cut::End } else { Cut::Reset })),
                    ..Plan::default()
                })
            };
            let target = world.path(&format!("down-{size}-{number}"));
            let output = server.client(&["get", "--json", &remote(proxy.port, "x")]).arg(&target).output().unwrap();
            let ran = Ran::of(output);
            assert_eq!(ran.code, 0, "{ran:?}");
            assert!(fs::read(&target).unwrap() == bytes, "other content arrived: {ran:?}");
        }
    }
    let left: Vec<String> = names_in(&world.path("")).into_iter().filter(|name| name.contains(".sealift-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A file that is cut every so many bytes still arrives, because what came is not fetched again. The server, which has
/// not recorded its hash, is not asked for that of the whole, which could take longer than such a link lasts.
#[test]
fn a_download_gets_through_a_link_that_is_cut_all_the_time() {
    let world = World::new();
    let log = world.path("audit.jsonl");
    let server = world.serve_and(&[OsStr::new("--audit"), log.as_os_str()]);
    let bytes = content(6, 12 << 20);
    fs::write(world.root().join("x"), &bytes).unwrap();
    let proxy = Proxy::new(server.port, |_| Plan { cut: Some((3 << 20, Cut::Reset)), ..Plan::default() });
    let target = world.path("down");
    let begun = std::time::Instant::now();
    let output = server.client(&["get", "--json", &remote(proxy.port, "x")]).arg(&target).output().unwrap();
    let ran = Ran::of(output);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fs::read(&target).unwrap() == bytes);
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert!((4..12).contains(&proxy.connections()), "{} connections", proxy.connections());
    server.stop();
    let told = fs::read_to_string(&log).unwrap();
    assert!(told.contains(r#""event":"get""#) && !told.contains(r#""event":"hash""#), "{told}");
}

/// The same where no connection lives long enough for a whole group, nor several that share the link.
#[test]
fn a_download_gets_through_a_link_that_is_cut_before_any_group_is_whole() {
    let world = World::new();
    let server = world.serve();
    let len = (3 << 20) + 5;
    let bytes = content(7, len);
    fs::write(world.root().join("x"), &bytes).unwrap();
    for streams in ["1", "4"] {
        let proxy = Proxy::new(server.port, |_| Plan { cut: Some((400_000, Cut::End)), ..Plan::default() });
        let target = world.path(streams);
        let arguments = ["get", "--json", "--streams", streams, &remote(proxy.port, "x")];
        let ran = Ran::of(server.client(&arguments).arg(&target).output().unwrap());
        assert_eq!(ran.code, 0, "{streams} connections: {ran:?}");
        assert!(fs::read(&target).unwrap() == bytes, "{streams} connections");
        let (connections, came) = (proxy.connections() as u64, proxy.bytes().1);
        assert!(came < len as u64 + connections * 400_000 / 2, "{came} bytes over {connections} connections");
    }
}

/// The first connections are cut while handshake and hello are under way: the client comes again, says so, and the
/// command is done once.
#[test]
fn a_first_connection_that_breaks_before_the_greeting_is_tried_again() {
    let world = World::new();
    let server = world.serve();
    let whole = greeted(&server) - 40;
    // From before the first byte of the server to the last one of its hello.
    let places: Vec<u64> = (0..6).map(|step| (whole - 1) * step / 5).collect();
    std::thread::scope(|scope| {
        for (index, &at) in places.iter().enumerate() {
            let server = &server;
            scope.spawn(move || {
                let how = [Cut::Reset, Cut::End];
                let proxy = Proxy::new(server.port, move |number| Plan {
                    cut: how.get(number).map(|&how| (at, how)),
                    ..Plan::default()
                });
                let made = remote(proxy.port, &format!("made{index}"));
                let ran = Ran::of(server.client(&["mkdir", "--json", &made]).output().unwrap());
                let what = format!("cut at {at} of {whole}: {ran:?}");
                assert_eq!(ran.code, 0, "{what}");
                assert_eq!((ran.of_type("retrying").len(), ran.of_type("made").len()), (2, 1), "{what}");
                assert_eq!(ran.summary()["retries"], 2, "{what}");
                assert_eq!(proxy.connections(), 3, "{what}");
            });
        }
    });
    // One more was made to count the bytes.
    assert_eq!(names_in(&world.root()).len(), places.len() + 1);
    // One that says why is believed at once.
    let proxy = Proxy::new(server.port, |_| Plan::default());
    let mut client = crate::rig::binary();
    let client = client.args(["ls", "--json", "--ca"]).arg(world.path("client/ca.pem"));
    let ran = Ran::of(client.arg(remote(proxy.port, "")).output().unwrap());
    assert_eq!((ran.code, ran.of_type("retrying").len(), proxy.connections()), (3, 0, 1), "{ran:?}");
    assert_eq!(ran.summary()["error"]["error"], "trust", "{ran:?}");
}
