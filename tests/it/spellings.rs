//! Names that are spelled nearly alike, or strangely: each is a name of its own, or is refused by name, and never stops
//! the rest (N05, N07, N09).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use crate::kit::{Server, assert_same_tree, tree};

/// Pairs that some file system, or some program, takes for one another; and names that mean something elsewhere.
const DISTINCT: &[&str] = &[
    "Makefile",
    "makefile",
    "MAKEFILE",
    ".SSH",
    ".ssh",
    // One letter, and a letter with a mark on it.
    "caf\u{e9}",
    "cafe\u{301}",
    "\u{212b}ngstrom",
    "\u{c5}ngstrom",
    "A\u{30a}ngstrom",
    // Their other case has another length.
    "\u{130}",
    "\u{131}",
    "i",
    "I",
    "stra\u{df}e",
    "STRASSE",
    "strasse",
    "\u{fb01}le",
    "file",
    "file ",
    "file.",
    " file",
    "con",
    "CON",
    "NUL.txt",
    "COM1",
    "COM\u{b9}",
    "LPT\u{2070}",
    "f:$DATA",
    "f:stream:$DATA",
    "C:x",
    "~",
    "~root",
    "-rf",
    "back\\slash",
    "..\\up",
    "%2e%2e",
    "%2e%2e%2fetc",
    "...",
    "\u{202e}txt.exe",
    "zero\u{200b}width",
    "zerowidth",
];

/// Names that a server refuses unless it is told otherwise.
const REFUSED: &[&[u8]] = &[
    b"new\nline",
    b"\x1b[2Jescape",
    b"c\x7f",
    b"\xff\xfe",
    b"caf\xe9",
    b"\xed\xa0\x80",
    b"\xc0\xae",
    "c1\u{9b}".as_bytes(),
];

fn names(top: &std::path::Path) -> BTreeSet<Vec<u8>> {
    tree(top).into_keys().filter(|name| !name.is_empty()).collect()
}

#[test]
fn names_that_look_alike_are_names_of_their_own() {
    let server = Server::start(&[]);
    fs::create_dir_all(server.local("t")).unwrap();
    for name in DISTINCT {
        fs::write(server.local("t").join(name), name).unwrap();
        fs::create_dir(server.local("t").join(format!("{name}.d"))).unwrap();
        fs::write(server.local("t").join(format!("{name}.d")).join(name), "inside").unwrap();
    }
    let expected = names(&server.local("t"));
    assert_eq!(expected.len(), 3 * DISTINCT.len());
    server.run(&["put", "t", "@t"], 0);
    assert_eq!(names(&server.root().join("t")), expected);
    server.run(&["get", "@t", "back"], 0);
    assert_same_tree(&tree(&server.local("back")), &tree(&server.local("t")));
    // Both ways there is nothing left to do, and nothing to remove.
    for arguments in [["sync", "--delete", "t", "@t"], ["sync", "--delete", "@t", "back"]] {
        let summary = server.summary(&arguments, 0);
        assert_eq!((&summary["stored"], &summary["removed"]), (&0.into(), &0.into()), "{summary:#}");
    }
    server.run(&["verify", "t", "@"], 0);
    // One by one, by the very bytes.
    for name in DISTINCT {
        let (stdout, _) = server.run(&["get", &format!("@t/{name}"), "-"], 0);
        assert_eq!(stdout, *name);
    }
}

#[test]
fn names_that_are_refused_are_told_escaped_and_the_rest_goes_on() {
    let server = Server::start(&[]);
    fs::create_dir_all(server.local("t")).unwrap();
    for name in REFUSED {
        fs::write(server.local("t").join(OsStr::from_bytes(name)), "x").unwrap();
    }
    for name in ["a", "z"] {
        fs::write(server.local("t").join(name), "x").unwrap();
    }
    for command in
        [&["put", "t", "@t"][..], &["sync", "t", "@t"], &["sync", "--dry-run", "t", "@u"], &["put", "-v", "t", "@t"]]
    {
        for json in [&[][..], &["--json"]] {
            let (stdout, stderr) = server.run(&[command, json].concat(), 1);
            for text in [&stdout, &stderr] {
                let raw = text.chars().find(|&c| c.is_control() && c != '\n');
                assert_eq!(raw, None, "{command:?}: {text:?}");
                assert!(!text.contains('\u{fffd}'), "{command:?}: two names could look alike: {text:?}");
            }
            if json.is_empty() {
                for shown in [
                    "new\\nline",
                    "\\x1b[2Jescape",
                    "c\\x7f",
                    "\\xff\\xfe",
                    "caf\\xe9",
                    "\\xed\\xa0\\x80",
                    "\\xc0\\xae",
                    "c1\\u{9b}",
                ] {
                    assert!(stderr.contains(shown), "{command:?} does not name {shown}: {stderr}");
                }
            } else {
                stdout.lines().for_each(|line| drop(serde_json::from_str::<serde_json::Value>(line).unwrap()));
            }
        }
    }
    assert_eq!(names(&server.root().join("t")), [b"a".to_vec(), b"z".to_vec()].into());
    // The log does not have them raw.
    let log = fs::read_to_string(server.folder.path().join("log")).unwrap();
    assert_eq!(log.chars().find(|&c| c.is_control() && c != '\n'), None, "{log:?}");
}

#[test]
fn what_has_such_names_on_the_server_is_listed_and_fetched() {
    let server = Server::start(&[]);
    fs::create_dir_all(server.root().join("t")).unwrap();
    for name in REFUSED {
        fs::write(server.root().join("t").join(OsStr::from_bytes(name)), name).unwrap();
    }
    let (listed, _) = server.run(&["ls", "@t"], 0);
    assert_eq!(listed.lines().count(), REFUSED.len(), "{listed}");
    assert_eq!(listed.lines().collect::<BTreeSet<_>>().len(), REFUSED.len(), "two look alike: {listed}");
    server.run(&["get", "@t", "back"], 0);
    assert_same_tree(&tree(&server.local("back")), &tree(&server.root().join("t")));
}
