//! Names, kinds and links that a server lies in.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sealift::ErrorKind;
use sealift::protocol::*;

use super::server::*;

/// Names that no path can have.
fn impossible() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b""[..],
        b".",
        b"..",
        b"/",
        b"../outside/file",
        b"../../outside/file",
        b"..\0",
        b"outside/../../outside/file",
        b"/etc/planted-by-a-server",
        b"a/b",
        b"a/",
        b"/a",
        b"a\0b",
        b"\0",
        b"/proc/self/cwd/planted",
    ]
    .map(<[u8]>::to_vec)
    .into();
    names.extend([vec![b'x'; 256], vec![b'x'; 5000], b"../".repeat(40)]);
    names
}

/// Names that are only unusual here, and what could be done with them elsewhere or on a terminal.
const UNUSUAL: &[&[u8]] = &[
    b"C:x",
    b"C:\\x",
    b"\\\\host\\share",
    b"~",
    b"~root",
    b"-rf",
    b"con",
    b"NUL.txt",
    b"COM1",
    b"a.",
    b" ",
    b"f:$DATA",
    b"..\\..\\outside",
    b"%2e%2e%2f",
    b"%2e%2e",
    b"...",
    b"a\nb",
    b"\x1b[2J\x1b]0;title\x07",
    b"\x1b]52;c;cm0gLXJmIH4=\x07",
    b"\x1b]8;;mailto:elsewhere\x1b\\here\x1b]8;;\x1b\\",
    b"back\x08\x08\x08\x08space",
    b"carriage\rreturn",
    "c1\u{9b}2J".as_bytes(),
    "txt.\u{202e}exe".as_bytes(),
    "zero\u{200b}width".as_bytes(),
    "line\u{2028}separator".as_bytes(),
    b"\xff\xfe",
    b"\xc0\xae\xc0\xae",
    b"\xed\xa0\x80",
];

/// Every command that takes names from a server, and where it puts what it gets.
const COMMANDS: &[&[&str]] = &[
    &["get", "@top", "target/top"],
    &["get", "--glob", "@top/*", "target/"],
    &["get", "--glob", "@top/.*", "target/"],
    &["get", "--links", "skip", "--ignore-files", "@top", "target/top"],
    &["get", "--dry-run", "@top", "target/top"],
    &["sync", "@top", "target"],
    &["sync", "--delete", "--checksum", "@top", "target"],
    &["sync", "--delete", "--dry-run", "@top", "target"],
    &["ls", "@top"],
    &["ls", "-lR", "@top"],
    &["ls", "--glob", "@top/*"],
    &["stat", "--glob", "@top/*"],
    &["hash", "-r", "@top"],
    &["rm", "--glob", "@top/*"],
    &["verify", "target", "@top"],
    &["sync", "target", "@top"],
    &["sync", "--delete", "target", "@top"],
];

fn arguments(command: &[&str], evil: &Evil) -> Vec<String> {
    let whole = |argument: &&str| match argument.strip_prefix('@') {
        Some(path) => evil.url(path),
        None => (*argument).to_owned(),
    };
    command.iter().map(whole).collect()
}

#[track_caller]
fn run(place: &Place, command: &[&str], evil: &Evil, json: bool) -> (i32, String, String) {
    let mut arguments = arguments(command, evil);
    if json {
        arguments.push("--json".to_owned());
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    place.run(&arguments)
}

#[test]
fn names_that_cannot_be_are_refused_by_every_command() {
    for (index, name) in impossible().into_iter().enumerate() {
        let shown: String = String::from_utf8_lossy(&name).chars().take(40).collect();
        for kind in [file(&name), directory(&name), link(&name, "good")] {
            // A link there and back is not looked at by all: one kind for most commands is enough.
            let evil =
                Evil::with(Tree::default().with("", [directory("top")]).with("top", [file("good"), kind.clone()]));
            for (at, command) in COMMANDS.iter().enumerate() {
                if (at + index) % 6 != 2 * kind.kind as usize {
                    continue;
                }
                let place = Place::new();
                fs::write(place.target().join("mine"), b"mine").unwrap();
                let (code, stdout, stderr) = run(&place, command, &evil, at % 2 == 0);
                let what = format!("{command:?} with {:?} {shown:?}: {code} {stdout} {stderr}", kind.kind);
                assert_ne!(code, 0, "{what}");
                place.check(&what);
                assert!(place.target().join("mine").exists(), "removed: {what}");
                for found in place.found() {
                    assert!(["good", "mine", "top/", "top/good"].contains(&found.as_str()), "{found}: {what}");
                }
                assert_eq!(evil.count(Kind::Remove), 0, "{what}");
            }
        }
    }
}

#[test]
fn unusual_names_are_shown_escaped_and_stay_where_they_are_put() {
    let entries = UNUSUAL.iter().map(file);
    let mut entries: Vec<Entry> = entries.collect();
    entries.extend(
        UNUSUAL.iter().enumerate().map(|(index, name)| directory([name, format!("{index}").as_bytes()].concat())),
    );
    let evil = Evil::with(Tree::default().with("", [directory("top")]).with("top", entries));
    for command in COMMANDS {
        for json in [false, true] {
            let place = Place::new();
            let (code, stdout, stderr) = run(&place, command, &evil, json);
            let what = format!("{command:?} {stdout} {stderr}");
            // What goes the other way, or finds directories in its way, may say so.
            let is_fetched = ["get", "ls", "stat", "hash"].contains(&command[0]) || command.last() == Some(&"target");
            assert!(code == 0 || (!is_fetched && [1, 4].contains(&code)), "{code}: {what}");
            place.check(&what);
        }
    }
    let place = Place::new();
    run(&place, COMMANDS[0], &evil, false);
    // As many as were listed: none was taken for another.
    assert_eq!(place.found().len(), 1 + 2 * UNUSUAL.len());
}

#[test]
fn a_name_that_comes_twice_removes_nothing() {
    let twice = Tree::default().with("", [directory("top")]);
    let evil = Evil::with(twice.with("top", [file("one"), directory("one"), file("other")]));
    for command in COMMANDS.iter().filter(|command| !command.contains(&"rm")) {
        let place = Place::new();
        fs::write(place.target().join("mine"), b"mine").unwrap();
        let (code, stdout, stderr) = run(&place, command, &evil, false);
        if !command.contains(&"@top/.*") {
            assert_ne!(code, 0, "{command:?} {stdout} {stderr}");
        }
        assert!(place.target().join("mine").exists(), "{command:?}");
        place.check(&format!("{command:?}"));
    }
}

#[test]
fn a_tree_without_a_bottom_ends_at_the_depth_of_paths() {
    // Every directory holds one more.
    let evil = Evil::start(Tree::default(), |request| {
        if let Some(stat) = request.is::<Stat>() {
            let name = stat.path.name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
            return Some(vec![say(request.transfer, &directory(name))]);
        }
        if request.is::<Hash>().is_some_and(|hash| hash.path.name().is_none_or(|name| name.as_bytes() != b"f")) {
            return Some(vec![failed(request.transfer, ErrorKind::IsDirectory, "a directory")]);
        }
        request.is::<ListDirectory>().map(|_| {
            let entries = Entries { entries: List(vec![directory("d"), file("f")]) };
            let done = Done { count: 2, ..Done::default() };
            vec![say(request.transfer, &entries), say(request.transfer, &done)]
        })
    });
    // One of each that goes down.
    for command in [0, 4, 6, 9, 12, 16].map(|index| COMMANDS[index]) {
        let place = Place::new();
        let (code, ..) = run(&place, command, &evil, false);
        let is_deep = command.contains(&"-r") || command.contains(&"-lR") || command.contains(&"@top");
        let expected = match command[0] {
            _ if is_deep => 1,
            _ => code,
        };
        assert_eq!(code, expected, "{command:?}");
        place.check(&format!("{command:?}"));
    }
}

/// Links that lead out, or are none.
const OUT: &[&[u8]] = &[
    b"/etc/hostname",
    b"../outside/file",
    b"../../outside/file",
    b"..",
    b"a/../../outside/file",
    b"../target/../outside",
    b"/proc/self/root",
    b"",
    b"a\0b",
];

#[test]
fn links_that_lead_out_are_not_made_and_nothing_goes_through_those_that_are() {
    for command in [
        &["get", "@top", "target/top"][..],
        &["sync", "@top", "target/top"],
        &["sync", "--delete", "@top", "target/top"],
    ] {
        // The link, then a directory, a file and another link through it, in one listing and in the next.
        for (index, points_to) in OUT.iter().chain(&[&b"inside"[..], b"inside/deep", b"./inside"]).enumerate() {
            let mut through = directory("l");
            through.mode = 0o40;
            let tree = Tree::default()
                .with("", [directory("top")])
                .with("top", [directory("inside"), link("l", points_to), link("m", b"l"), link("n", b"l/file")])
                .with("top/inside", [file("file"), directory("deep")])
                .with("top/l", [file("file"), directory("deep"), link("again", b"file")])
                .with("top/m", [file("file"), directory("deep")])
                .with("top/n", [file("file")]);
            // The second time that the top is listed, the links are directories and files.
            let turn = Mutex::new(0);
            let evil = Evil::start(tree, move |request| {
                let list = request.is::<ListDirectory>()?;
                if list.path.to_bytes() != b"top" {
                    return None;
                }
                let mut turn = turn.lock().unwrap();
                *turn += 1;
                let n = |name: &str| Entry { kind: EntryKind::File, ..file(name) };
                (*turn % 2 == 0).then(|| {
                    let entries =
                        Entries { entries: List(vec![directory("inside"), through.clone(), directory("m"), n("n")]) };
                    let done = Done { count: 4, ..Done::default() };
                    vec![say(request.transfer, &entries), say(request.transfer, &done)]
                })
            });
            let place = Place::new();
            for round in 0..3 {
                let (code, stdout, stderr) = run(&place, command, &evil, index % 2 == 0);
                let what = format!(
                    "{command:?} {:?} round {round}: {code} {stdout} {stderr}",
                    String::from_utf8_lossy(points_to)
                );
                place.check(&what);
                // What is below a link here was not made through it.
                for name in ["l", "m", "n"] {
                    let made = place.target().join("top").join(name);
                    let Ok(target) = fs::read_link(&made) else { continue };
                    let target = target.to_str().unwrap().to_owned();
                    let is_inside = ["inside", "inside/deep", "./inside", "l", "l/file"].contains(&target.as_str());
                    assert!(is_inside, "{name} -> {target}: {what}");
                }
            }
        }
    }
}

#[test]
fn links_that_stand_here_are_not_followed() {
    // What the server has is a tree where here links lead out.
    let tree = Tree::default()
        .with("", [directory("top")])
        .with("top", [directory("d"), file("f")])
        .with("top/d", [file("file"), directory("deep"), link("link", b"file")])
        .with("top/d/deep", [file("file")]);
    for command in [
        &["get", "@top", "target/top"][..],
        &["sync", "@top", "target/top"],
        &["sync", "--checksum", "@top", "target/top"],
        &["sync", "--delete", "--max-delete", "100%", "@top", "target/top"],
    ] {
        let evil = Evil::with(tree.clone());
        let place = Place::new();
        fs::create_dir(place.target().join("top")).unwrap();
        symlink("../../../outside", place.target().join("top/d")).unwrap();
        symlink("../../../outside/file", place.target().join("top/f")).unwrap();
        run(&place, command, &evil, false);
        place.check(&format!("{command:?}"));
        let f = place.target().join("top/f");
        assert!(!f.is_symlink() || fs::read_link(&f).unwrap().ends_with("outside/file"), "{command:?}");
    }
}

#[test]
fn a_directory_that_becomes_a_link_between_two_answers_is_not_walked_through() {
    // The first piece of the listing makes a directory, the next says that it is a link, the third fills it.
    let evil = Evil::start(Tree::default().with("", [directory("top")]).with("top/d", [file("file")]), |request| {
        let list = request.is::<ListDirectory>()?;
        if list.path.to_bytes() != b"top" {
            return None;
        }
        let after = list.after.unwrap_or(0);
        let entry = match after {
            0 => directory("d"),
            1 => link("d", b"../../outside/deep"),
            2 => link("d", b"inside"),
            3 => directory("inside"),
            _ => directory("d"),
        };
        let next = (after < 4).then_some(after + 1);
        let done = Done { count: 1, next, ..Done::default() };
        Some(vec![say(request.transfer, &Entries { entries: List(vec![entry]) }), say(request.transfer, &done)])
    });
    for command in COMMANDS.iter().filter(|command| ["get", "sync"].contains(&command[0])) {
        let place = Place::new();
        run(&place, command, &evil, false);
        place.check(&format!("{command:?}"));
        assert!(!place.target().join("top/d").is_symlink(), "{command:?}");
    }
}

#[test]
fn pieces_of_two_directories_are_no_listing_of_either() {
    // The directory is exchanged between two pieces: the server says so, or an older one goes on in the other, where
    // the place is another one. Either way `sync --delete` must not take what it has not seen for missing.
    for says_so in [true, false] {
        for ends_well in [true, false] {
            let calls = AtomicU64::new(0);
            let tree = Tree::default().with("", [directory("top")]).with("top", ["a", "b", "c"].map(file));
            let evil = Evil::start(tree, move |request| {
                let list = request.is::<ListDirectory>()?;
                let call = calls.fetch_add(1, Ordering::Relaxed);
                let transfer = request.transfer;
                let whole = ends_well && call >= 2;
                let (names, next): (&[&str], _) = match list.after {
                    _ if whole => (&["a", "b", "c"], None),
                    None => (&["a"], Some(1)),
                    Some(_) if says_so => return Some(vec![failed(transfer, ErrorKind::Changed, "another")]),
                    Some(_) => (&["a", "b"], None),
                };
                let entries = names.iter().map(|&name| file(name)).collect();
                let done = Done { count: names.len() as u64, next, ..Done::default() };
                Some(vec![say(transfer, &Entries { entries: List(entries) }), say(transfer, &done)])
            });
            let place = Place::new();
            for name in ["a", "b", "c"] {
                fs::write(place.target().join(name), "kept").unwrap();
            }
            let ran = run(&place, &["sync", "--delete", "--max-delete", "100%", "@top", "target"], &evil, false);
            assert!(place.target().join("c").exists(), "{says_so} {ends_well}: {ran:?}");
            assert_eq!(ran.0 == 0, ends_well, "{says_so} {ends_well}: {ran:?}");
        }
    }
}

#[test]
fn what_was_not_asked_for_is_not_taken() {
    // A directory where a file was asked for, and the other way round; names outside the pattern; the same of `stat`.
    let tree = Tree::default()
        .with("", [directory("top"), file("asked")])
        .with("top", [file("asked.txt"), file(".hidden"), file("other.bin"), link("link.txt", b"asked.txt")]);
    let evil = Evil::with(tree.clone());
    let place = Place::new();
    run(&place, &["get", "--glob", "@top/*.txt", "target/"], &evil, false);
    assert_eq!(place.found(), ["asked.txt"]);
    place.check("a pattern");

    // The name in the answer to `stat` is not where anything goes.
    for name in [&b"../outside/file"[..], b"\x1b[2J", b""] {
        for kind in [EntryKind::File, EntryKind::Directory, EntryKind::Link, EntryKind::Special] {
            let entry = Entry { kind, target: Some(b"\x1b[2J".to_vec()), ..file(name) };
            let evil = Evil::start(tree.clone(), move |request| {
                request.is::<Stat>().map(|_| vec![say(request.transfer, &entry)])
            });
            for command in [
                &["get", "@asked", "target/here"][..],
                &["get", "@asked", "target/"],
                &["get", "--include", "x", "@asked", "target/here"],
                &["stat", "@asked"],
                &["ls", "-l", "@asked"],
                &["sync", "@asked", "target"],
                &["get", "@asked", "-"],
            ] {
                let place = Place::new();
                let what = format!("{command:?} {kind:?} {:?}", String::from_utf8_lossy(name));
                let (code, ..) = run(&place, command, &evil, command[0] != "get");
                place.check(&what);
                let found = place.found();
                let is_all_right = found
                    .iter()
                    .all(|found| ["here", "asked"].contains(&found.trim_end_matches('/')) || command[0] == "sync");
                assert!(is_all_right, "{what}: {found:?}");
                // A stream asks for the content at once.
                if command[0] == "get"
                    && !command.contains(&"-")
                    && matches!(kind, EntryKind::Link | EntryKind::Special)
                {
                    assert_eq!(code, 1, "{what}");
                }
            }
        }
    }
}

#[test]
fn modes_and_times_are_masked_and_bounded() {
    let times = [i64::MAX, i64::MIN, 1 << 62, -(1 << 40), 253_402_300_800, 4_294_967_296];
    for command in [
        &["get", "@top", "target/top"][..],
        &["sync", "@top", "target/top"],
        &["ls", "-lR", "@top"],
        &["stat", "--glob", "@top/*"],
        &["verify", "target", "@"],
        &["get", "--newer-than", "1d", "--older-than", "1s", "@top", "target/top"],
    ] {
        for (index, seconds) in times.into_iter().enumerate() {
            let bits = [0o7777, 0o4777, 0o2755, 0o1777, 0o100_777, u32::MAX][index];
            let strange = |entry: Entry| Entry { mode: bits, mtime: Mtime { seconds, nanos: 999_999_999 }, ..entry };
            let tree = Tree::default()
                .with("", [directory("top")])
                .with("top", [strange(file("f")), strange(directory("d")), strange(link("l", b"f"))])
                .with("top/d", [strange(file("f")), strange(directory("e"))]);
            let evil = Evil::with(tree);
            let place = Place::new();
            let what = format!("{command:?} {seconds} {bits:o}");
            let (_, stdout, stderr) = run(&place, command, &evil, index % 2 == 0);
            place.check(&what);
            for name in place.found() {
                let path = place.target().join(name.trim_end_matches(['/', '@']));
                let mode = path.symlink_metadata().unwrap().permissions().mode() & 0o7777;
                if !path.is_symlink() {
                    assert_eq!(mode & 0o7002, 0, "{what}: {name} has {mode:o}: {stdout} {stderr}");
                }
            }
        }
    }
}
