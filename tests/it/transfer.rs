//! Files and trees up and down again, by the program against its own server.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use sealift::hash::Root;
use sealift::limits::{GROUP_LEN, KIB};

use crate::kit::{Server, assert_same_tree, noise, output_of, program, text, tree};

/// Sizes round every boundary: unasked or asked for, one group or several, a frame more or less.
const SIZES: [usize; 15] = [
    0,
    1,
    1023,
    256 * KIB - 1,
    256 * KIB,
    256 * KIB + 1,
    512 * KIB + 1,
    GROUP_LEN - 1,
    GROUP_LEN,
    GROUP_LEN + 1,
    2 * GROUP_LEN,
    2 * GROUP_LEN + 1,
    5 * GROUP_LEN - 1,
    8 * GROUP_LEN,
    11 * GROUP_LEN + 12345,
];

fn age(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
    fs::File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(time)).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn sizes_round_every_boundary_go_up_and_down() {
    let server = Server::start(&[]);
    fs::create_dir(server.local("sizes")).unwrap();
    for size in SIZES {
        fs::write(server.local(&format!("sizes/{size}")), noise(size as u64, size)).unwrap();
    }
    server.run(&["put", "sizes", "@up"], 0);
    server.run(&["get", "@up", "down"], 0);
    assert_same_tree(&tree(&server.root().join("up")), &tree(&server.local("sizes")));
    assert_same_tree(&tree(&server.local("down")), &tree(&server.local("sizes")));
    let (hashes, _) = server.run(&["hash", "-r", "@up"], 0);
    assert_eq!(hashes.lines().count(), SIZES.len());
    for line in hashes.lines() {
        let (hash, name) = line.split_once("  ").unwrap();
        let size: usize = name.strip_prefix("up/").unwrap().parse().unwrap();
        assert_eq!(hash, Root::of(&noise(size as u64, size)).to_string(), "{name}");
    }
    // Again: everything is there already, both ways, and nothing moves.
    let summary = server.summary(&["put", "sizes", "@up"], 0);
    assert_eq!((summary["unchanged"].as_u64(), summary["stored"].as_u64()), (Some(SIZES.len() as u64), Some(0)));
    let summary = server.summary(&["get", "@up", "down"], 0);
    assert_eq!((summary["unchanged"].as_u64(), summary["bytes_moved"].as_u64()), (Some(SIZES.len() as u64), Some(0)));
    server.assert_no_leftovers();
}

#[test]
fn each_size_alone_and_as_a_stream() {
    let server = Server::start(&[]);
    for size in SIZES {
        let content = noise(7, size);
        server.run_with(&["put", "-", "@stream"], &content, 0);
        assert!(fs::read(server.root().join("stream")).unwrap() == content, "{size} as a stream");
        let output = output_of(server.command(&["get", "@stream", "-"]), b"");
        assert_eq!(output.status.code(), Some(0), "{size}: {}", text(&output));
        assert!(output.stdout == content, "{size} to standard output");
    }
    server.assert_no_leftovers();
}

fn make_tree(top: &Path) {
    fs::create_dir_all(top.join("a/b/c/d")).unwrap();
    fs::create_dir_all(top.join("empty/inner")).unwrap();
    fs::create_dir_all(top.join("many")).unwrap();
    fs::create_dir_all(top.join("with space/ünïcödé 日本")).unwrap();
    for index in 0..300_u64 {
        fs::write(top.join(format!("many/{index}")), noise(index, (index * 97) as usize)).unwrap();
    }
    let long = "n".repeat(255);
    for name in ["-dash", "--", "back\\slash", "quote'\"", "*", "a:b", "~", "%2e%2e", ".hidden", "COM1", &long] {
        fs::write(top.join("a").join(name), name).unwrap();
    }
    fs::write(top.join("with space/ünïcödé 日本/🦀"), "x").unwrap();
    fs::write(top.join("a/b/c/d/large"), noise(1, 3 * GROUP_LEN + 5)).unwrap();
    fs::write(top.join("a/script"), "#!/bin/sh\n").unwrap();
    chmod(&top.join("a/script"), 0o755);
    fs::write(top.join("a/private"), "secret").unwrap();
    chmod(&top.join("a/private"), 0o600);
    std::os::unix::fs::symlink("../a/script", top.join("many/link")).unwrap();
    std::os::unix::fs::symlink("b/c", top.join("a/to-directory")).unwrap();
    std::os::unix::fs::symlink("nowhere", top.join("dangling")).unwrap();
    chmod(&top.join("empty"), 0o750);
    age(&top.join("a/script"), 1_000_000_000);
    age(&top.join("a/b/c/d"), 900_000_000);
    age(&top.join("a/b"), 800_000_000);
    age(&top.join("empty/inner"), 700_000_000);
    age(&top.join("empty"), 600_000_000);
    age(&top.join("many"), 500_000_000);
    age(top, 400_000_000);
}

#[test]
fn a_tree_keeps_names_modes_times_and_links() {
    let server = Server::start(&[]);
    make_tree(&server.local("tree"));
    let expected = tree(&server.local("tree"));
    server.run(&["put", "tree", "@"], 0);
    assert_same_tree(&tree(&server.root().join("tree")), &expected);
    server.run(&["get", "@tree", "back/"], 0);
    assert_same_tree(&tree(&server.local("back/tree")), &expected);
    // Over what is there: nothing changes, times and modes of directories included.
    server.run(&["put", "tree", "@tree"], 0);
    assert_same_tree(&tree(&server.root().join("tree")), &expected);
    server.run(&["get", "@tree", "back/tree"], 0);
    assert_same_tree(&tree(&server.local("back/tree")), &expected);
    server.assert_no_leftovers();
}

#[test]
fn what_cannot_go_is_named_and_the_rest_goes() {
    let server = Server::start(&[]);
    let top = server.local("t");
    fs::create_dir_all(top.join("in")).unwrap();
    fs::write(top.join("good"), "good").unwrap();
    fs::write(top.join("new\nline"), "bad").unwrap();
    fs::write(top.join(OsString::from_vec(b"not-utf8-\xff".to_vec())), "bad").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", top.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../outside", top.join("in/outside")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, top.join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    let (_, said) = server.run(&["put", "t", "@t"], 1);
    for sentence in ["new\\nline", "not-utf8-\\xff", "a named pipe", "absolute path", "out of the tree"] {
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
    assert!(said.bytes().all(|byte| byte == b'\n' || !byte.is_ascii_control()), "{said:?}");
    assert_eq!(fs::read(server.root().join("t/good")).unwrap(), b"good");
    let stored: Vec<_> = tree(&server.root().join("t")).into_keys().collect();
    assert_eq!(stored, [&b""[..], b"good", b"in"]);
}

#[test]
fn links_of_a_server_stay_inside_the_tree() {
    let server = Server::start(&[]);
    // As if another program had put them there.
    fs::create_dir_all(server.root().join("t/sub")).unwrap();
    fs::write(server.root().join("t/file"), "file").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", server.root().join("t/absolute")).unwrap();
    std::os::unix::fs::symlink("../../out", server.root().join("t/sub/out")).unwrap();
    std::os::unix::fs::symlink("../file", server.root().join("t/sub/good")).unwrap();
    let (_, said) = server.run(&["get", "@t", "t"], 0);
    assert!(said.contains("absolute path") && said.contains("out of the tree"), "{said}");
    let names: Vec<_> = tree(&server.local("t")).into_keys().collect();
    assert_eq!(names, [&b""[..], b"file", b"sub", b"sub/good"]);
    // A link that is in the way here is never written through.
    fs::create_dir(server.local("canary")).unwrap();
    fs::remove_dir_all(server.local("t/sub")).unwrap();
    std::os::unix::fs::symlink("../canary", server.local("t/sub")).unwrap();
    fs::write(server.root().join("t/sub/new"), "new").unwrap();
    let (_, said) = server.run(&["get", "@t", "t"], 1);
    assert!(said.contains("link"), "{said}");
    assert_eq!(fs::read_dir(server.local("canary")).unwrap().count(), 0);
    server.run(&["get", "@t/absolute", "x"], 1);
    assert!(!server.local("x").exists());
}

#[test]
fn what_is_there_decides_by_the_policy() {
    let server = Server::start(&[]);
    for size in [10, 300 * KIB, 3 * GROUP_LEN] {
        let (old, new) = (noise(1, size), noise(2, size));
        fs::write(server.local("f"), &old).unwrap();
        server.run(&["put", "f", "@f"], 0);
        // The same content is success under every policy but rename.
        for policy in ["overwrite", "skip", "fail"] {
            let summary = server.summary(&["put", "--if-exists", policy, "f", "@f"], 0);
            assert_eq!(summary["unchanged"], 1, "{size} {policy}");
        }
        fs::write(server.local("f"), &new).unwrap();
        let summary = server.summary(&["put", "--if-exists", "skip", "f", "@f"], 0);
        assert_eq!(summary["kept"], 1, "{size}: {summary}");
        assert!(fs::read(server.root().join("f")).unwrap() == old);
        let (_, said) = server.run(&["put", "--if-exists", "fail", "f", "@f"], 1);
        assert!(said.contains('f'), "{said}");
        assert!(fs::read(server.root().join("f")).unwrap() == old);
        let (_, said) = server.run(&["put", "--if-exists", "rename", "f", "@f"], 0);
        assert!(said.contains("stored as"), "{said}");
        assert!(fs::read(server.root().join("f")).unwrap() == old);
        assert!(fs::read(server.root().join("f (1)")).unwrap() == new);
        server.run(&["put", "f", "@f"], 0);
        assert!(fs::read(server.root().join("f")).unwrap() == new);
        fs::remove_file(server.root().join("f (1)")).unwrap();

        // And the other way.
        fs::write(server.local("f"), &old).unwrap();
        let summary = server.summary(&["get", "--if-exists", "skip", "@f", "f"], 0);
        assert_eq!(summary["kept"], 1, "{size}");
        server.run(&["get", "--if-exists", "fail", "@f", "f"], 1);
        assert!(fs::read(server.local("f")).unwrap() == old);
        server.run(&["get", "--if-exists", "rename", "@f", "f"], 0);
        assert!(fs::read(server.local("f (1)")).unwrap() == new);
        assert!(fs::read(server.local("f")).unwrap() == old);
        server.run(&["get", "@f", "f"], 0);
        assert!(fs::read(server.local("f")).unwrap() == new);
        for policy in ["overwrite", "skip", "fail"] {
            let summary = server.summary(&["get", "--if-exists", policy, "@f", "f"], 0);
            assert_eq!((&summary["unchanged"], &summary["bytes_moved"]), (&1.into(), &0.into()), "{size} {policy}");
        }
        fs::remove_file(server.local("f (1)")).unwrap();
    }
    server.assert_no_leftovers();
}

#[test]
fn only_groups_that_differ_are_sent() {
    let server = Server::start(&[]);
    let mut content = noise(3, 8 * GROUP_LEN + 100);
    fs::write(server.local("f"), &content).unwrap();
    server.run(&["put", "f", "@f"], 0);
    content[5 * GROUP_LEN + 17] ^= 1;
    fs::write(server.local("f"), &content).unwrap();
    let summary = server.summary(&["put", "f", "@f"], 0);
    assert_eq!(summary["bytes_moved"], GROUP_LEN);
    assert!(fs::read(server.root().join("f")).unwrap() == content);
}

#[test]
fn destinations() {
    let server = Server::start(&[]);
    fs::create_dir_all(server.local("d/sub")).unwrap();
    fs::write(server.local("d/sub/f"), "f").unwrap();
    fs::write(server.local("g"), "g").unwrap();
    server.run(&["put", "d", "g", "@in/"], 0);
    assert_eq!(fs::read(server.root().join("in/d/sub/f")).unwrap(), b"f");
    server.run(&["put", "d/", "@y"], 0);
    assert_eq!(fs::read(server.root().join("y/sub/f")).unwrap(), b"f");
    let (_, said) = server.run(&["put", "g", "@y"], 1);
    assert!(said.contains("y/"), "the hint: {said}");
    let (_, said) = server.run(&["put", "d", "@in/g"], 1);
    assert!(said.contains("is a file"), "{said}");
    server.run(&["put", "d", "g", "@z"], 2);
    server.run(&["put", "missing", "@z"], 1);
    server.run(&["get", "@in/g"], 0);
    server.run(&["get", "@in/d", "@in/g", "here/"], 0);
    assert_eq!(fs::read(server.local("here/d/sub/f")).unwrap(), b"f");
    let (_, said) = server.run(&["get", "@in/g", "here"], 1);
    assert!(said.contains("here/"), "the hint: {said}");
    server.run(&["get", "@in/d", "g"], 1);
    server.run(&["get", "@missing", "x"], 1);
    assert!(!server.local("x").exists());
    // A pattern, and a list.
    fs::write(server.root().join("in/h"), "h").unwrap();
    server.run(&["get", "--glob", "@in/[gh]", "globbed/"], 0);
    assert_eq!(tree(&server.local("globbed")).into_keys().collect::<Vec<_>>(), [&b""[..], b"g", b"h"]);
    server.run(&["get", "--glob", "@in/x*", "globbed/"], 1);
    server.run_with(&["put", "--files-from", "-", "-0", "@listed/"], b"g\0d/sub/f\0", 0);
    assert_eq!(tree(&server.root().join("listed")).into_keys().collect::<Vec<_>>(), [&b""[..], b"f", b"g"]);
}

#[test]
fn nothing_moves_in_a_dry_run() {
    let server = Server::start(&[]);
    make_tree(&server.local("tree"));
    let summary = server.summary(&["put", "-n", "tree", "@"], 0);
    let planned = summary["planned"].clone();
    assert_eq!(summary["bytes_moved"], 0);
    assert!(!server.root().join("tree").exists());
    // As many as the run then stores, links included.
    assert_eq!(server.summary(&["put", "tree", "@"], 0)["stored"], planned);
    let summary = server.summary(&["get", "-n", "@tree", "back"], 0);
    assert_eq!(summary["planned"], planned);
    assert!(!server.local("back").exists());
    server.run(&["rm", "-n", "-r", "@tree"], 0);
    server.run(&["mv", "-n", "@tree", "@other"], 0);
    assert!(server.root().join("tree").exists() && !server.root().join("other").exists());
}

#[test]
fn pipes_are_made_safe_by_what_is_expected() {
    let server = Server::start(&[]);
    let content = noise(9, 2 * GROUP_LEN + 3);
    let (size, hash) = (content.len().to_string(), Root::of(&content).to_string());
    let other = Root::of(b"other").to_string();
    server.run_with(&["put", "--expect-size", &size, "--expect-b3", &hash, "-", "@good"], &content, 0);
    assert!(fs::read(server.root().join("good")).unwrap() == content);
    for arguments in [["--expect-size", "7"], ["--expect-size", "3M"], ["--expect-b3", &other]] {
        let put = ["put", arguments[0], arguments[1], "-", "@bad"];
        server.run_with(&put, &content, 5);
        server.run_with(&put, b"short", 5);
        fs::write(server.local("f"), &content).unwrap();
        server.run(&["put", arguments[0], arguments[1], "f", "@bad"], 5);
    }
    for (script, exit) in
        [("head -c 3000000 /dev/zero", 0), ("head -c 3000000 /dev/zero; exit 3", 1), ("echo x; exit 1", 1)]
    {
        let name = format!("@command{exit}");
        server.run(&["put", "--stdin-from-command", &name, "--", "sh", "-c", script], exit);
    }
    server.run(&["put", "--stdin-from-command", "@bad", "--", "/nonexistent/program"], 1);
    assert_eq!(fs::metadata(server.root().join("command0")).unwrap().len(), 3_000_000);
    assert!(!server.root().join("command1").exists() && !server.root().join("bad").exists());
    server.assert_no_leftovers();
}

#[test]
fn sources_are_removed_once_they_are_stored() {
    let server = Server::start(&[]);
    fs::create_dir(server.local("d")).unwrap();
    fs::write(server.local("d/small"), "small").unwrap();
    fs::write(server.local("d/large"), noise(4, 2 * GROUP_LEN)).unwrap();
    fs::write(server.local("d/kept"), "mine").unwrap();
    fs::create_dir_all(server.root().join("d")).unwrap();
    fs::write(server.root().join("d/kept"), "theirs").unwrap();
    server.run(&["put", "--remove-source", "--if-exists", "skip", "d", "@d"], 0);
    assert_eq!(tree(&server.local("d")).into_keys().collect::<Vec<_>>(), [&b""[..], b"kept"]);
    assert_eq!(fs::read(server.root().join("d/small")).unwrap(), b"small");
}

#[test]
fn a_source_that_changes_is_never_stored_as_a_mixture() {
    let server = Server::start(&[]);
    let path = server.local("changing");
    let size = 24 * GROUP_LEN;
    fs::write(&path, vec![0; size]).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, path) = (stop.clone(), path.clone());
        move || {
            let mut byte = 0_u8;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                fs::write(&path, vec![byte; size]).unwrap();
            }
        }
    });
    let output = output_of(server.command(&["put", "changing", "@changing"]), b"");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    match output.status.code() {
        Some(0) => {
            let stored = fs::read(server.root().join("changing")).unwrap();
            let first = stored.first().copied();
            assert!(stored.iter().all(|&byte| Some(byte) == first), "a mixture");
        }
        Some(1) => assert!(!server.root().join("changing").exists(), "{}", text(&output)),
        _ => panic!("{}", text(&output)),
    }
    server.run(&["put", "changing", "@changing"], 0);
}

#[test]
fn commands_on_names() {
    let server = Server::start(&[]);
    fs::create_dir_all(server.root().join("d/sub")).unwrap();
    fs::write(server.root().join("d/a"), "a").unwrap();
    fs::write(server.root().join("d/sub/b"), "bb").unwrap();
    let (listed, _) = server.run(&["ls", "@d"], 0);
    assert_eq!(listed, "a\nsub/\n");
    let (listed, _) = server.run(&["ls", "-R", "@"], 0);
    assert_eq!(listed, "d/\nd/a\nd/sub/\nd/sub/b\n");
    let (listed, _) = server.run(&["ls", "-l", "@d/a"], 0);
    assert!(listed.starts_with("-rw") && listed.ends_with(" d/a\n"), "{listed}");
    let (listed, _) = server.run(&["stat", "@d/a"], 0);
    assert!(listed.contains("name: d/a\nkind: file\nsize: 1 (1 B)\n"), "{listed}");
    let (hashed, _) = server.run(&["hash", "@d/a"], 0);
    assert_eq!(hashed, format!("{}  d/a\n", Root::of(b"a")));
    server.run(&["mkdir", "@made/deep"], 0);
    server.run(&["mkdir", "@made/deep"], 0);
    assert!(server.root().join("made/deep").is_dir());
    server.run(&["mv", "@d/a", "@made/"], 0);
    server.run(&["mv", "@d/sub/b", "@made/a"], 1);
    server.run(&["mv", "--if-exists", "overwrite", "@d/sub/b", "@made/a"], 0);
    assert_eq!(fs::read(server.root().join("made/a")).unwrap(), b"bb");
    server.run(&["rm", "@made"], 1);
    server.run(&["rm", "-r", "@made"], 0);
    assert!(!server.root().join("made").exists());
    server.run(&["rm", "@made"], 1);
    server.run(&["rm", "-r", "@"], 2);
    server.run(&["ls", "@none"], 1);
    let lines = server.run(&["ls", "--json", "@d"], 0).0;
    assert_eq!(lines.lines().count(), 2, "an entry and the summary: {lines}");
}

#[test]
fn rights_are_refused_with_their_exit_code() {
    let server = Server::start(&["--read-only"]);
    fs::write(server.root().join("f"), "f").unwrap();
    fs::write(server.local("g"), "g").unwrap();
    server.run(&["get", "@f", "f"], 0);
    server.run(&["put", "g", "@g"], 4);
    server.run(&["rm", "@f"], 4);
    server.run(&["mkdir", "@d"], 4);
    assert!(!server.root().join("g").exists());
    let server = Server::start(&["--no-overwrite"]);
    fs::write(server.local("g"), "g").unwrap();
    server.run(&["put", "g", "@g"], 0);
    server.run(&["put", "g", "@g"], 0);
    fs::write(server.local("g"), "h").unwrap();
    let output = output_of(server.command(&["put", "g", "@g"]), b"");
    assert_ne!(output.status.code(), Some(0));
    assert_eq!(fs::read(server.root().join("g")).unwrap(), b"g");
}

#[test]
fn who_cannot_be_reached_or_trusted_is_told_so() {
    let server = Server::start(&[]);
    fs::write(server.local("f"), "f").unwrap();
    let refused = |arguments: &[&str], sentence: &str| {
        let started = Instant::now();
        let output = output_of(server.command(arguments), b"");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(sentence), "{sentence:?} in {said}");
        assert!(started.elapsed() < Duration::from_secs(20));
    };
    let pin = format!("sha256:{}", "0a".repeat(32));
    refused(&["put", "--pin", &pin, "f", "@f"], "pin");
    // Nobody listens on the port of a listener that is gone.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    refused(&["put", "f", &format!("sealift://{closed}/f")], "is the server running");
    refused(&["put", "f", "sealift://nowhere.invalid/f"], "nowhere.invalid");
    let mut anonymous = program();
    anonymous.args(["put", "--ca"]).arg(crate::kit::client_certificates().join("ca.pem"));
    anonymous.arg(server.local("f")).arg(server.url("f"));
    let output = output_of(anonymous, b"");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("wants a client certificate"), "{}", text(&output));
    assert!(!server.root().join("f").exists());
}

#[test]
fn a_server_that_dies_is_met_again() {
    let mut server = Server::start(&[]);
    fs::create_dir(server.local("d")).unwrap();
    for index in 0..400_u64 {
        fs::write(server.local(&format!("d/{index}")), noise(index, 20_000)).unwrap();
    }
    fs::write(server.local("d/large"), noise(1, 64 * GROUP_LEN)).unwrap();
    let mut command = server.command(&["put", "d", "@d"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !server.root().join("d").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    server.crash_and_restart();
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.success(), "{said}");
    assert_same_tree(&tree(&server.root().join("d")), &tree(&server.local("d")));
    // The same for downloads.
    let mut child = server.command(&["get", "@d", "back"]).stderr(Stdio::null()).spawn().unwrap();
    while !server.local("back").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    server.crash_and_restart();
    assert!(child.wait().unwrap().success());
    assert_same_tree(&tree(&server.local("back")), &tree(&server.local("d")));
    server.assert_no_leftovers();
}

#[test]
fn one_group_of_memory_is_enough() {
    let server = Server::start(&["--memory", "4M"]);
    let content = noise(9, 40 * GROUP_LEN);
    fs::write(server.root().join("large"), &content).unwrap();
    let mut child = server.command(&["get", "@large", "large"]).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(status.success(), "{status}");
    assert!(fs::read(server.local("large")).unwrap() == content);
}

#[test]
fn an_interrupted_command_leaves_nothing_and_is_continued() {
    for (signal, exit) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let server = Server::start(&[]);
        let child =
            |arguments: &[&str]| server.command(arguments).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let end = |mut child: std::process::Child| {
            let started = Instant::now();
            let id = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(id, signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(exit));
            assert!(started.elapsed() < Duration::from_secs(5));
        };
        // A pipe that never ends.
        let mut put = child(&["put", "-", "@f"]);
        let mut input = put.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, &noise(1, 5 * GROUP_LEN)).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        end(put);
        drop(input);
        let large = fs::File::create(server.root().join("large")).unwrap();
        large.set_len(4 << 30).unwrap();
        let get = child(&["get", "@large", "large"]);
        std::thread::sleep(Duration::from_millis(300));
        end(get);
        assert!(!server.root().join("f").exists() && !server.local("large").exists());
        // What came of the download is kept for the next run, where nobody sees it; of the pipe nothing is.
        let left: Vec<_> = tree(&server.folder.path().join("local")).into_keys().collect();
        let is_hidden = |name: &&Vec<u8>| name.is_empty() || name.starts_with(b".sealift-");
        assert!(left.len() <= 3 && left.iter().all(|name| is_hidden(&name)), "left here: {left:?}");
    }
}

#[test]
fn a_read_only_directory_can_be_filled() {
    let server = Server::start(&["--dir-mode", "0500:0777"]);
    fs::create_dir_all(server.local("d/ro/inner")).unwrap();
    fs::write(server.local("d/ro/f"), "f").unwrap();
    fs::write(server.local("d/ro/inner/g"), "g").unwrap();
    chmod(&server.local("d/ro/inner"), 0o555);
    chmod(&server.local("d/ro"), 0o555);
    server.run(&["put", "d", "@d"], 0);
    server.run(&["get", "@d", "back"], 0);
    for name in ["ro/f", "ro/inner/g"] {
        assert!(server.root().join("d").join(name).exists() && server.local("back").join(name).exists(), "{name}");
    }
    // For the removal of the folder by who is not root.
    for top in ["local/d", "local/back", "root/d"] {
        for name in ["ro", "ro/inner"] {
            chmod(&server.folder.path().join(top).join(name), 0o755);
        }
    }
}

#[test]
fn many_clients_at_once() {
    let server = Server::start(&[]);
    let children: Vec<_> = (0..50_u64)
        .map(|index| {
            let size = if index % 5 == 0 { 2 * GROUP_LEN + index as usize } else { 1000 * index as usize };
            let name = format!("f{index}");
            fs::write(server.local(&name), noise(index, size)).unwrap();
            let target = format!("@in/{name}");
            server.command(&["put", "-q", &name, &target]).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    for index in 0..50 {
        let name = format!("f{index}");
        assert!(fs::read(server.root().join("in").join(&name)).unwrap() == fs::read(server.local(&name)).unwrap());
    }
}

#[test]
fn names_are_bytes_on_both_sides() {
    let server = Server::start(&[]);
    let name = OsStr::from_bytes(b"-x\\n\xc3\xbc ");
    fs::write(server.folder.path().join("local").join(name), "x").unwrap();
    let arguments = [OsStr::new("put"), OsStr::new("--"), name, OsStr::new("@in/")];
    server.run(&arguments, 0);
    assert_eq!(fs::read(server.root().join("in").join(name)).unwrap(), b"x");
}

#[test]
fn a_dry_run_names_files_and_links_and_moves_nothing() {
    let server = Server::start(&[]);
    fs::create_dir(server.local("tree")).unwrap();
    fs::write(server.local("tree/file"), "1").unwrap();
    std::os::unix::fs::symlink("file", server.local("tree/link")).unwrap();
    let (_, told) = server.run(&["put", "-n", "tree", "@"], 0);
    assert!(told.contains("would be moved: tree/file (1 B)"), "{told}");
    assert!(told.contains("would be moved: tree/link (link)"), "{told}");
    assert!(!server.root().join("tree").exists());
    server.run(&["put", "tree", "@"], 0);
    let (_, told) = server.run(&["get", "-n", "@tree", "down"], 0);
    assert!(told.contains("would be moved: tree/link (link)"), "{told}");
    assert!(!server.local("down").exists());
}

#[test]
fn a_link_that_is_there_already_is_unchanged_under_every_policy_but_rename() {
    let server = Server::start(&[]);
    fs::create_dir(server.local("tree")).unwrap();
    std::os::unix::fs::symlink("nowhere", server.local("tree/link")).unwrap();
    server.run(&["put", "tree", "@"], 0);
    for policy in ["overwrite", "skip", "fail"] {
        let summary = server.summary(&["put", "tree", "@", "--if-exists", policy], 0);
        assert_eq!(summary["unchanged"], 1, "{policy}: {summary}");
    }
    assert_eq!(server.summary(&["put", "tree", "@", "--if-exists", "rename"], 0)["unchanged"], 0);
}

#[test]
fn mv_tells_what_it_left_and_how_to_move_into_a_directory() {
    let server = Server::start(&[]);
    for name in ["a", "b"] {
        fs::write(server.local(name), name).unwrap();
    }
    server.run(&["put", "a", "b", "@"], 0);
    server.run(&["mkdir", "@d"], 0);
    assert!(server.run(&["mv", "@a", "@d"], 1).1.contains("add `/` (`d/`)"));
    assert_eq!(server.run(&["mv", "--if-exists", "skip", "@a", "@b"], 0).0, "kept: a\n");
    for (policy, exit) in [("fail", 1), ("skip", 0), ("overwrite", 0)] {
        let dry = server.run(&["mv", "-n", "--if-exists", policy, "@a", "@b"], exit);
        assert!(server.root().join("a").exists(), "{policy}: {dry:?}");
    }
    server.run(&["mv", "@a", "@d/"], 0);
    assert!(server.root().join("d/a").exists());
}

#[test]
fn a_server_without_its_folder_names_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = program();
    serve.current_dir(folder.path()).args(["serve", "--check", "--root", "root", "--certs", "nosuch"]);
    let output = output_of(serve, b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("read the folder nosuch"), "{}", text(&output));
}
