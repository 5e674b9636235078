//! `sealift verify`: a tree here against the same one on the server, by hashes that each side computes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::{Plan, Proxy, Ran, World, content, remote, within};

fn differences(ran: &Ran) -> BTreeMap<String, String> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    ran.of_type("differs").into_iter().map(|line| (text(&line["name"]), text(&line["how"]))).collect()
}

fn map(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(name, how)| ((*name).to_owned(), (*how).to_owned())).collect()
}

fn summary(ran: &Ran, key: &str) -> u64 {
    ran.summary()[key].as_u64().unwrap_or_else(|| panic!("no {key}: {ran:?}"))
}

/// Writes over a part of a file without a change of its time.
fn damage(path: &Path) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"damage", 1000).unwrap();
    file.set_modified(time).unwrap();
}

#[test]
fn what_differs_is_named_and_equal_trees_are_equal() {
    let world = World::new();
    let server = world.serve();
    for index in 0..50 {
        world.file(&format!("tree/many/{index}"), &content(index, 3000 + usize::try_from(index).unwrap()));
    }
    world.file("tree/large", &content(1, (9 << 20) + 5));
    world.file("tree/empty", b"");
    world.file("tree/a/b/c/deep", b"deep");
    fs::create_dir(world.path("tree/hollow")).unwrap();
    std::os::unix::fs::symlink("many/1", world.path("tree/link")).unwrap();
    server.put(&world.path("tree"), "in/");
    let verify = |sources: &[&str], target: &str| {
        let mut command = server.client(&["verify", "--json"]);
        command.args(sources.iter().map(|source| world.path(source)));
        Ran::of(command.arg(server.at(target)).output().unwrap())
    };
    // The destination means what it means to `put`.
    for target in ["in/", "in/tree"] {
        let ran = verify(&["tree"], target);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!((summary(&ran, "equal"), summary(&ran, "differing")), (54, 0), "{ran:?}");
    }
    let ran = verify(&["tree/large", "tree/many"], "in/tree/");
    assert_eq!((ran.code, summary(&ran, "equal")), (0, 51), "{ran:?}");
    let ran = verify(&["tree"], "elsewhere");
    assert_eq!((ran.code, differences(&ran)), (1, map(&[("elsewhere", "missing_there")])), "{ran:?}");

    let there = world.root().join("in/tree");
    fs::write(there.join("many/3"), b"another size").unwrap();
    fs::write(there.join("many/4"), content(99, 3004)).unwrap();
    fs::remove_file(there.join("many/5")).unwrap();
    fs::write(there.join("many/extra"), b"x").unwrap();
    fs::create_dir(there.join("more")).unwrap();
    fs::remove_dir_all(there.join("a")).unwrap();
    fs::remove_file(there.join("empty")).unwrap();
    fs::create_dir(there.join("empty")).unwrap();
    fs::remove_file(there.join("link")).unwrap();
    std::os::unix::fs::symlink("many/2", there.join("link")).unwrap();
    let expected = map(&[
        ("in/tree/many/3", "size"),
        ("in/tree/many/4", "content"),
        ("in/tree/many/5", "missing_there"),
        ("in/tree/many/extra", "missing_here"),
        ("in/tree/more", "missing_here"),
        ("in/tree/a", "missing_there"),
        ("in/tree/empty", "kind"),
        ("in/tree/link", "target"),
    ]);
    let ran = verify(&["tree"], "in/");
    assert_eq!((ran.code, differences(&ran)), (1, expected), "{ran:?}");
    assert_eq!((summary(&ran, "equal"), summary(&ran, "differing")), (48, 8), "{ran:?}");
    // Content that differs under equal size and time is another matter.
    damage(&there.join("large"));
    let ran = verify(&["tree"], "in/");
    assert_eq!((ran.code, differences(&ran)["in/tree/large"].as_str()), (5, "damage"), "{ran:?}");
    // As people see it.
    let mut command = server.client(&["verify"]);
    let output = command.arg(world.path("tree")).arg(server.at("in/")).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("differs: in/tree/many/3: 3003 bytes here, 12 there\n"), "{text}");
    assert!(text.contains("47 equal, 9 differences"), "{text}");
    // Nothing was changed, there or here; stored anew, all is equal but for what only the server has.
    fs::remove_dir(there.join("empty")).unwrap();
    server.put(&world.path("tree"), "in/");
    let ran = verify(&["tree"], "in/");
    let rest = map(&[("in/tree/many/extra", "missing_here"), ("in/tree/more", "missing_here")]);
    assert_eq!((ran.code, differences(&ran)), (1, rest), "{ran:?}");
}

#[test]
fn a_comparison_moves_no_content_and_outlives_its_connection() {
    let world = World::new();
    let server = world.serve();
    for index in 0..200 {
        world.file(&format!("tree/{index}"), &content(index, 40_000));
    }
    world.file("tree/large", &content(1, 20 << 20));
    server.put(&world.path("tree"), "");
    let whole = Proxy::new(server.port, |_| Plan::default());
    let verify = |port: u16| {
        let mut command = server.client(&["verify", "--json"]);
        Ran::of(command.arg(world.path("tree")).arg(remote(port, "")).output().unwrap())
    };
    let ran = verify(whole.port);
    assert_eq!((ran.code, summary(&ran, "equal")), (0, 201), "{ran:?}");
    let (up, down) = whole.bytes();
    assert!(up + down < 200_000, "{up} bytes up and {down} down to compare 28 MB");
    let at = down / 2;
    let cut = Proxy::new(server.port, move |number| Plan {
        cut: (number == 0).then_some((at, crate::rig::Cut::Reset)),
        ..Plan::default()
    });
    let ran = verify(cut.port);
    assert_eq!((ran.code, summary(&ran, "equal"), summary(&ran, "retries")), (0, 201, 1), "{ran:?}");
}

#[test]
fn a_signal_ends_it_within_a_huge_file() {
    let world = World::new();
    let server = world.serve();
    for path in [world.path("huge/sparse"), world.root().join("huge/sparse")] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap().set_len(200 << 30).unwrap();
    }
    let (here, there) = (world.path("huge"), server.at("huge"));
    let here = here.to_str().unwrap();
    // Only the time differs, so that `sync --checksum` hashes both.
    for args in [&["verify", "-q", here, &there][..], &["sync", "-qn", "--checksum", here, &there][..]] {
        let mut child = server.client(args).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{args:?}: {:?}", begun.elapsed());
    }
}

#[test]
fn who_may_not_read_there_is_told() {
    let world = World::new();
    let server = world.serve();
    world.file("tree/x", b"x");
    server.put(&world.path("tree"), "");
    fs::set_permissions(world.path("tree/x"), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    // The administrator may read everything; then there is nothing to see here.
    let readable = fs::read(world.path("tree/x")).is_ok();
    let ran = server.run("verify", [world.path("tree").as_os_str(), server.at("").as_ref()]);
    assert_eq!(ran.code, i32::from(!readable), "{ran:?}");
    assert_eq!(ran.of_type("failed").len(), usize::from(!readable), "{ran:?}");
    let ran = server.run("verify", [world.path("nothing").as_os_str(), server.at("").as_ref()]);
    assert_eq!((ran.code, ran.of_type("failed").len()), (1, 1), "{ran:?}");
}

#[test]
fn a_signal_ends_who_writes_to_where_nobody_reads() {
    let world = World::new();
    let server = world.serve();
    for index in 0..1500 {
        world.file(&format!("many/{}{index}", "x".repeat(100)), b"");
    }
    let many = world.path("many");
    server.put(&many, "many");
    let (from, to) = (many.to_str().unwrap(), server.at("again"));
    let listed = server.at("many");
    // What waits is the thread that all else runs on, and another one beside it.
    for args in [&["ls", "-l", &listed][..], &["put", "--json", from, &to]] {
        for (signals, code) in [(&[Signal::TERM][..], 143), (&[Signal::INT, Signal::INT], 130)] {
            let mut command = server.client(args);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_secs(3));
            assert_eq!(child.try_wait().unwrap(), None, "{args:?}: the pipe is not full");
            let begun = Instant::now();
            for &signal in signals {
                kill_process(Pid::from_child(&child), signal).unwrap();
                std::thread::sleep(Duration::from_millis(200));
            }
            let code_found = within(Duration::from_secs(10), "the end", || child.try_wait().unwrap()).code();
            assert_eq!(code_found, Some(code), "{args:?}");
            let limit = if signals.len() == 1 { 4000 } else { 1500 };
            assert!(begun.elapsed() < Duration::from_millis(limit), "{args:?}: {:?}", begun.elapsed());
        }
    }
}
