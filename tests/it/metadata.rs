//! What is kept of files beside their content: names that share a file, extended attributes, holes, special modes.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::Value;

use crate::kit::{Server, assert_same_tree, noise, tree};

fn count(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or_else(|| panic!("{key} in {summary}"))
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).ino()
}

/// Whether all of these are names of one file.
#[track_caller]
fn assert_one_file(top: &Path, names: &[&str], is_one: bool) {
    let inodes: Vec<u64> = names.iter().map(|name| inode(&top.join(name))).collect();
    assert_eq!(inodes.iter().all(|inode| *inode == inodes[0]), is_one, "{names:?} in {}: {inodes:?}", top.display());
}

/// Three names of a small file, two of a larger one, and a file with one name.
fn linked_tree(top: &Path) {
    write(&top.join("a/first"), "shared");
    fs::create_dir_all(top.join("b/deep")).unwrap();
    fs::hard_link(top.join("a/first"), top.join("b/second")).unwrap();
    fs::hard_link(top.join("a/first"), top.join("b/deep/third")).unwrap();
    write(&top.join("large"), noise(3, 3 << 20));
    fs::hard_link(top.join("large"), top.join("b/large too")).unwrap();
    write(&top.join("alone"), "shared");
}

const SMALL: &[&str] = &["a/first", "b/second", "b/deep/third"];
const LARGE: &[&str] = &["large", "b/large too"];

#[track_caller]
fn assert_linked(top: &Path) {
    assert_one_file(top, SMALL, true);
    assert_one_file(top, LARGE, true);
    assert_one_file(top, &["alone", "a/first"], false);
    assert_eq!(fs::metadata(top.join("alone")).unwrap().nlink(), 1);
    assert_eq!(fs::metadata(top.join("a/first")).unwrap().nlink(), 3);
}

#[test]
fn names_that_share_a_file_share_it_there() {
    let server = Server::start(&[]);
    let here = server.local("tree");
    linked_tree(&here);
    let there = server.root();
    for (command, source, target) in [("put", "tree", "@put/"), ("sync", "tree", "@sync/tree")] {
        let summary = server.summary(&[command, source, target], 0);
        assert_eq!((count(&summary, "stored"), count(&summary, "linked")), (6, 3), "{summary}");
        assert!(count(&summary, "bytes_moved") < (3 << 20) + 100, "each file once: {summary}");
        let there = there.join(command).join("tree");
        assert_linked(&there);
        assert_same_tree(&tree(&there), &tree(&here));
        let summary = server.summary(&["sync", source, &format!("@{command}/tree")], 0);
        assert_eq!((count(&summary, "unchanged"), count(&summary, "directories")), (6, 0), "{summary}");
    }
    for (command, target) in [("get", "got"), ("sync", "synced")] {
        let summary = server.summary(&[command, "@put/tree", target], 0);
        assert_eq!((count(&summary, "stored"), count(&summary, "linked")), (6, 3), "{summary}");
        assert!(count(&summary, "bytes_moved") < (3 << 20) + 100, "each file once: {summary}");
        assert_linked(&server.local(target));
        assert_same_tree(&tree(&server.local(target)), &tree(&here));
        let summary = server.summary(&["sync", "@put/tree", target], 0);
        assert_eq!((count(&summary, "unchanged"), count(&summary, "directories")), (6, 0), "{summary}");
    }
    server.run(&["put", "--remove-source", "tree", "@moved/"], 0);
    assert_linked(&there.join("moved/tree"));
    assert!(SMALL.iter().chain(LARGE).all(|name| !here.join(name).exists()), "all names are gone here");
    server.assert_no_leftovers();
}

/// Makes a name a file of its own, the same in all else.
fn part(path: &Path) {
    let (content, status) = (fs::read(path).unwrap(), fs::metadata(path).unwrap());
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(status.mode() & 0o777)).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(status.modified().unwrap()).unwrap();
}

#[test]
fn names_that_should_share_a_file_and_do_not_are_linked() {
    let server = Server::start(&[]);
    let here = server.local("tree");
    linked_tree(&here);
    server.run(&["sync", "tree", "@copy"], 0);
    server.run(&["sync", "@copy", "back"], 0);
    let (there, back) = (server.root().join("copy"), server.local("back"));
    for (top, arguments) in [(&there, ["tree", "@copy"]), (&back, ["@copy", "back"])] {
        for checksum in [&[][..], &["--checksum"]] {
            part(&top.join("b/second"));
            part(&top.join("b/large too"));
            assert_one_file(top, LARGE, false);
            let dry = server.summary(&[&["sync", "-n"], checksum, &arguments].concat(), 0);
            assert_eq!((count(&dry, "planned"), count(&dry, "unchanged")), (2, 4), "{dry}");
            let summary = server.summary(&[&["sync"], checksum, &arguments].concat(), 0);
            assert_eq!((count(&summary, "linked"), count(&summary, "unchanged")), (2, 4), "{summary}");
            assert_eq!(count(&summary, "bytes_moved"), 0, "{summary}");
            assert_linked(top);
            assert_same_tree(&tree(top), &tree(&here));
        }
    }
    server.assert_no_leftovers();
}

#[test]
fn names_outside_of_a_transfer_keep_what_they_have() {
    let server = Server::start(&[]);
    let here = server.local("tree");
    linked_tree(&here);
    server.run(&["sync", "tree", "@copy"], 0);
    let there = server.root().join("copy");
    fs::hard_link(there.join("a/first"), server.root().join("outside")).unwrap();
    // In place, so that all names of it here have the new content.
    fs::write(here.join("a/first"), "other content").unwrap();
    let summary = server.summary(&["sync", "tree", "@copy"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "linked")), (3, 2), "{summary}");
    assert_linked(&there);
    assert_same_tree(&tree(&there), &tree(&here));
    assert_eq!(fs::read(server.root().join("outside")).unwrap(), b"shared", "not a name of this transfer");
    // One name alone is replaced alone.
    write(&server.local("one"), "one");
    server.run(&["put", "one", "@copy/a/first"], 0);
    assert_eq!(fs::read(there.join("b/second")).unwrap(), b"other content");
    // A name that cannot be stored leaves the others linked among themselves.
    fs::remove_dir_all(server.root().join("copy")).unwrap();
    fs::create_dir_all(server.root().join("copy/a/first")).unwrap();
    let summary = server.summary(&["put", "tree", "@copy"], 1);
    assert_eq!((count(&summary, "failed"), count(&summary, "linked")), (1, 2), "{summary}");
    assert_one_file(&there, &SMALL[1..], true);
    server.assert_no_leftovers();
}

#[test]
fn names_are_files_of_their_own_where_rights_or_policies_say_so() {
    let mut server = Server::start(&["--no-overwrite"]);
    let here = server.local("tree");
    linked_tree(&here);
    // What it has stored itself may be linked by who may replace nothing.
    let summary = server.summary(&["put", "tree", "@"], 0);
    assert_eq!(count(&summary, "linked"), 3, "{summary}");
    assert_linked(&server.root().join("tree"));
    // What was there before, may not; a server that was started anew does not remember who stored it.
    server.crash_and_restart();
    fs::remove_file(server.root().join("tree/b/large too")).unwrap();
    let (_, told) = server.run(&["put", "tree", "@"], 0);
    assert!(told.contains("hard links: 1 of the names that share a file here are files of their own there"), "{told}");
    assert_one_file(&server.root().join("tree"), LARGE, false);
    assert_one_file(&server.root().join("tree"), SMALL, true);
    server.assert_no_leftovers();

    // Under another name, each is linked to where the first one went.
    let server = Server::start(&[]);
    linked_tree(&server.local("tree"));
    server.run(&["put", "tree", "@"], 0);
    let summary = server.summary(&["put", "--if-exists", "rename", "tree", "@"], 0);
    assert_eq!(
        (count(&summary, "linked") + count(&summary, "renamed"), count(&summary, "failed")),
        (6, 0),
        "{summary}"
    );
    assert_one_file(&server.root().join("tree"), &["b/large too (1)", "large (1)"], true);
    server.assert_no_leftovers();
}

// ---- holes -----------------------------------------------------------------------------------------------------

/// A file of so many bytes that is a hole but for some noise at these places.
fn sparse(path: &Path, size: u64, data: &[(u64, usize)]) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for &(offset, len) in data {
        file.write_all_at(&noise(offset, len), offset).unwrap();
    }
}

fn disk_size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

const MIB: u64 = 1 << 20;

#[test]
fn holes_are_told_and_not_sent() {
    let server = Server::start(&[]);
    let here = server.local("file");
    let size = 100 * MIB + 5;
    let places = [(7 * MIB, 1 << 20), (60 * MIB + 100, 1000), (size - 3, 3)];
    sparse(&here, size, &places);
    if disk_size(&here) > 4 * MIB {
        println!("skipped: no holes on this file system");
        return;
    }
    let content = fs::read(&here).unwrap();
    let there = server.root().join("file");
    // What is put, what is put over another version, and what is put over one that only lacks the holes.
    for round in 0..3 {
        match round {
            0 => {}
            1 => sparse(&there, size, &[(0, 3 << 20), (80 * MIB, 1 << 20)]),
            _ => {
                let mut other = content.clone();
                other[(20 * MIB) as usize..(22 * MIB) as usize].fill(7);
                fs::write(&there, other).unwrap();
            }
        }
        let summary = server.summary(&["put", "file", "@"], 0);
        assert_eq!(count(&summary, "stored"), 1, "{summary}");
        let most = if round == 2 { 0 } else { 3 * MIB };
        assert!(count(&summary, "bytes_moved") <= most, "round {round}: {summary}");
        assert!(fs::read(&there).unwrap() == content, "round {round}");
        // A copy that shares its blocks with what was there keeps written zeros as they were.
        assert!(round == 2 || disk_size(&there) < 6 * MIB, "round {round}: {} bytes on disk", disk_size(&there));
    }
    for round in 0..2 {
        let summary = server.summary(&["get", "@file", "back"], 0);
        let moved = count(&summary, "bytes_moved");
        assert!(moved <= if round == 0 { 3 * MIB } else { 0 }, "{summary}");
        let back = server.local("back");
        assert!(fs::read(&back).unwrap() == content);
        assert!(disk_size(&back) < 6 * MIB, "{} bytes on disk", disk_size(&back));
    }
    // To a stream all of it goes.
    let output = server.command(&["get", "@file", "-"]).output().unwrap();
    assert!(output.stdout == content);
    // Nothing but a hole, and a file that ends in one.
    for (name, size, data) in [("hole", 40 * MIB, &[][..]), ("end", 40 * MIB + 1, &[(0, 10)])] {
        sparse(&server.local(name), size, data);
        let summary = server.summary(&["put", name, "@"], 0);
        assert!(count(&summary, "bytes_moved") <= MIB, "{summary}");
        let got = format!("{name}.back");
        let summary = server.summary(&["get", &format!("@{name}"), &got], 0);
        // A last group of one byte is too short for a hole.
        assert!(count(&summary, "bytes_moved") <= MIB + 1, "{summary}");
        assert!(fs::read(server.local(&got)).unwrap() == fs::read(server.local(name)).unwrap(), "{name}");
    }
    server.assert_no_leftovers();
}

// ---- special modes (C04) ---------------------------------------------------------------------------------------

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

const SPECIAL: &[(&str, u32)] =
    &[("setuid", 0o4755), ("setgid", 0o2755), ("world", 0o666), ("plain", 0o640), ("drop", 0o1777), ("shared", 0o2775)];

fn special_tree(top: &Path) {
    for &(name, mode) in SPECIAL {
        let path = top.join(name);
        if matches!(name, "drop" | "shared") {
            write(&path.join("inside"), "x");
        } else {
            write(&path, name);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[track_caller]
fn assert_modes(top: &Path, mask: u32) {
    let got: Vec<_> = SPECIAL.iter().map(|(name, _)| (*name, mode(&top.join(name)))).collect();
    let expected: Vec<_> = SPECIAL.iter().map(|(name, mode)| (*name, mode & mask)).collect();
    assert_eq!(got, expected, "{}", top.display());
}

#[test]
fn special_modes_are_kept_only_where_both_sides_say_so() {
    const MASKED: u32 = 0o775;
    let strict = Server::start(&[]);
    special_tree(&strict.local("tree"));
    let (_, told) = strict.run(&["sync", "--special-modes", "tree", "@copy"], 0);
    assert!(
        told.contains("the server masks setuid, setgid, sticky and world-writable (serve --allow-special-modes)"),
        "{told}"
    );
    assert_modes(&strict.root().join("copy"), MASKED);
    let summary = strict.summary(&["sync", "--special-modes", "tree", "@copy"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "directories")), (0, 0), "{summary}");

    let server = Server::start(&["--allow-special-modes"]);
    special_tree(&server.local("tree"));
    for command in ["put", "sync"] {
        let (plain, special) = (format!("{command}/plain"), format!("{command}/special"));
        server.run(&[command, "tree", &format!("@{plain}")], 0);
        assert_modes(&server.root().join(&plain), MASKED);
        server.run(&[command, "--special-modes", "tree", &format!("@{special}")], 0);
        assert_modes(&server.root().join(&special), 0o7777);
        for (target, flags) in [(&plain, &[][..]), (&special, &["--special-modes"])] {
            let summary = server.summary(&[&["sync"], flags, &["tree", format!("@{target}").as_str()]].concat(), 0);
            assert_eq!((count(&summary, "stored"), count(&summary, "directories")), (0, 0), "{target}: {summary}");
        }
    }
    // A mode alone is a difference.
    server.run(&["sync", "--special-modes", "tree", "@put/plain"], 0);
    assert_modes(&server.root().join("put/plain"), 0o7777);
    for command in ["get", "sync"] {
        server.run(&[command, "@put/special", &format!("{command}-plain")], 0);
        assert_modes(&server.local(&format!("{command}-plain")), MASKED);
        server.run(&[command, "--special-modes", "@put/special", &format!("{command}-special")], 0);
        assert_modes(&server.local(&format!("{command}-special")), 0o7777);
    }
    let summary = server.summary(&["sync", "--special-modes", "@put/special", "get-special"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "directories")), (0, 0), "{summary}");
}

/// What must stay as it is of a file that is reached by another name as well.
#[derive(Debug, PartialEq)]
struct Kept {
    content: Vec<u8>,
    mode: u32,
    mtime: (i64, i64),
}

fn kept(path: &Path) -> Kept {
    let status = fs::metadata(path).unwrap();
    Kept { content: fs::read(path).unwrap(), mode: status.mode(), mtime: (status.mtime(), status.mtime_nsec()) }
}

/// N16: a name below the root, or below a target here, that leads to a file outside as well.
#[test]
fn a_further_name_outside_is_never_touched() {
    let server = Server::start(&[]);
    let large = noise(5, 3 << 20);
    let mut changed = large.clone();
    changed[1_500_000] ^= 1;
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    type Change<'a> = (&'a str, &'a [u8], u32, bool);
    // What is moved over it: content, mode, and whether its time is another.
    let changes: [Change; 6] = [
        ("nothing", &large, 0o644, false),
        ("the mode", &large, 0o755, false),
        ("the time", &large, 0o644, true),
        ("a byte", &changed, 0o644, true),
        ("the length", &large[..2 << 20], 0o644, true),
        ("all", b"small", 0o600, true),
    ];
    for (what, content, mode, is_later) in changes {
        for command in ["put", "sync"] {
            for is_up in [true, false] {
                let name = format!("{command} {what} {is_up}");
                let (local, remote) = (server.local(&name), server.root().join(&name));
                let outside = server.local("outside").join(&name);
                let (from, to) = if is_up { (&local, &remote) } else { (&remote, &local) };
                write(&outside, &large);
                fs::set_permissions(&outside, fs::Permissions::from_mode(0o644)).unwrap();
                fs::File::options().write(true).open(&outside).unwrap().set_modified(old).unwrap();
                let before = kept(&outside);
                write(&from.join("f"), content);
                fs::set_permissions(from.join("f"), fs::Permissions::from_mode(mode)).unwrap();
                if !is_later {
                    fs::File::options().write(true).open(from.join("f")).unwrap().set_modified(old).unwrap();
                }
                fs::create_dir_all(to).unwrap();
                fs::hard_link(&outside, to.join("f")).unwrap();
                let here = format!("{name}/f");
                let there = format!("@{name}/f");
                match (command, is_up) {
                    ("put", true) => server.run(&["put", &here, &there], 0),
                    ("put", false) => server.run(&["get", &there, &here], 0),
                    (_, true) => server.run(&["sync", &name, &format!("@{name}")], 0),
                    (_, false) => server.run(&["sync", &format!("@{name}"), &name], 0),
                };
                assert_eq!(kept(&outside), before, "{name}: outside");
                assert_eq!(kept(&to.join("f")), kept(&from.join("f")), "{name}: what was moved");
                if is_up {
                    server.run(&["rm", &there], 0);
                    assert_eq!(kept(&outside), before, "{name}: removed");
                }
            }
        }
    }
    server.assert_no_leftovers();
}
