//! `sealift sync` and the flags that leave things out, as people run them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::kit::{Server, assert_same_tree, noise, tree};
use crate::rig::{World, has, long};

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn set_time(path: &Path, seconds_ago: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds_ago);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

fn count(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or_else(|| panic!("{key} in {summary}"))
}

/// Many small files, some deep, and one of several groups.
fn some_tree(top: &Path) {
    for index in 0..40 {
        write(&top.join(format!("{}/{index}", index % 4)), noise(index, 100));
    }
    write(&top.join("large"), noise(1, 3 << 20));
    write(&top.join(".env"), "hidden");
    write(&top.join(".git/objects/ab"), "object");
    fs::create_dir_all(top.join("empty/deep")).unwrap();
    symlink("../large", top.join("0/link")).unwrap();
    fs::set_permissions(top.join("1/1"), fs::Permissions::from_mode(0o640)).unwrap();
}

#[test]
fn both_ways_and_again() {
    let server = Server::start(&[]);
    some_tree(&server.local("tree"));
    let summary = server.summary(&["sync", "tree/", "@in/copy"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "unchanged")), (44, 0), "{summary}");
    assert_same_tree(&tree(&server.root().join("in/copy")), &tree(&server.local("tree")));
    let summary = server.summary(&["sync", "tree", "@in/copy/"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "unchanged")), (0, 44), "{summary}");
    assert_eq!((count(&summary, "bytes_moved"), count(&summary, "directories")), (0, 0), "{summary}");
    let summary = server.summary(&["sync", "@in/copy", "back/again"], 0);
    assert_eq!(count(&summary, "stored"), 44, "{summary}");
    assert_same_tree(&tree(&server.local("back/again")), &tree(&server.local("tree")));
    let summary = server.summary(&["sync", "@in/copy", "back/again"], 0);
    assert_eq!((count(&summary, "unchanged"), count(&summary, "directories")), (44, 0), "{summary}");

    // A group of a large file, a mode, a new file: only that crosses.
    let large = server.local("tree/large");
    let mut bytes = fs::read(&large).unwrap();
    bytes[2 << 20] ^= 1;
    fs::write(&large, bytes).unwrap();
    fs::set_permissions(server.local("tree/2/2"), fs::Permissions::from_mode(0o600)).unwrap();
    write(&server.local("tree/new/file"), "new");
    let summary = server.summary(&["sync", "tree", "@in/copy"], 0);
    assert_eq!(count(&summary, "stored") + count(&summary, "unchanged"), 45, "{summary}");
    let moved = count(&summary, "bytes_moved");
    assert!((1 << 20..(1 << 20) + 1000).contains(&moved), "a group, not the whole file: {summary}");
    assert_same_tree(&tree(&server.root().join("in/copy")), &tree(&server.local("tree")));
    server.run(&["sync", "@in/copy", "back/again"], 0);
    assert_same_tree(&tree(&server.local("back/again")), &tree(&server.local("tree")));
    server.assert_no_leftovers();
}

#[test]
fn removals_have_their_guards() {
    let server = Server::start(&[]);
    for index in 0..40 {
        write(&server.local(&format!("tree/{}/{index}", index % 4)), "x");
    }
    server.run(&["sync", "tree", "@copy"], 0);
    let whole = tree(&server.root().join("copy"));
    for index in 0..12 {
        fs::remove_file(server.local(&format!("tree/{}/{index}", index % 4))).unwrap();
    }
    // Without --delete nothing goes; by default a quarter may; of a few, always.
    let summary = server.summary(&["sync", "tree", "@copy"], 0);
    assert_eq!(count(&summary, "removed"), 0, "{summary}");
    let (_, told) = server.run(&["sync", "--delete", "tree", "@copy"], 4);
    assert!(told.contains("nothing was removed: 12 of 40 files would go, more than --max-delete 25% allows"), "{told}");
    server.run(&["sync", "--delete", "--max-delete", "11", "tree", "@copy"], 4);
    assert_eq!(tree(&server.root().join("copy")).len(), whole.len());
    let (_, told) = server.run(&["sync", "-n", "--delete", "--max-delete", "12", "tree", "@copy"], 0);
    assert!(told.contains("would be removed: copy/0/0\n"), "{told}");
    assert!(told.contains("12 would be removed"), "{told}");
    assert_eq!(tree(&server.root().join("copy")).len(), whole.len());
    let summary = server.summary(&["sync", "--delete", "--max-delete", "30%", "tree", "@copy"], 0);
    assert_eq!(count(&summary, "removed"), 12, "{summary}");
    assert_same_tree(&tree(&server.root().join("copy")), &tree(&server.local("tree")));

    // A source that is missing, empty, or not readable whole removes nothing.
    let before = tree(&server.root().join("copy"));
    server.run(&["sync", "--delete", "missing", "@copy"], 1);
    fs::create_dir(server.local("nothing")).unwrap();
    let (_, told) = server.run(&["sync", "--delete", "nothing", "@copy"], 4);
    assert!(told.contains("the source lists no file"), "{told}");
    let (_, told) = server.run(&["sync", "--delete", "--exclude", "*", "--delete-excluded", "tree", "@copy"], 4);
    assert!(told.contains("the source lists no file"), "{told}");
    fs::remove_file(server.local("tree/0/20")).unwrap();
    write(&server.local("tree/0/bad\nname"), "x");
    let (_, told) = server.run(&["sync", "--delete", "tree", "@copy"], 1);
    assert!(told.contains("nothing was removed, because 1 of the above failed"), "{told}");
    let after = tree(&server.root().join("copy"));
    assert!(before.keys().all(|name| after.contains_key(name)), "nothing is gone");
    // From the server, too.
    server.run(&["sync", "--delete", "@missing", "tree"], 1);
    server.run(&["mkdir", "@void"], 0);
    server.run(&["sync", "--delete", "@void", "tree"], 4);
    assert!(server.local("tree/1/21").exists());
    // A file is no directory.
    let (_, told) = server.run(&["sync", "tree/1/21", "@copy"], 1);
    assert!(told.contains("sync compares directories"), "{told}");
    server.run(&["sync", "tree", "@copy/1/21"], 1);
    server.run(&["sync", "@copy", "tree/1/21"], 1);
}

#[test]
fn the_root_of_a_server_can_be_either_side() {
    let server = Server::start(&[]);
    some_tree(&server.local("tree"));
    server.run(&["sync", "--delete", "tree", "@"], 0);
    let summary = server.summary(&["sync", "--delete", "tree", "@"], 0);
    assert_eq!((count(&summary, "unchanged"), count(&summary, "directories")), (44, 0), "{summary}");
    server.run(&["sync", "--delete", "@", "back"], 0);
    assert_eq!(names(&server.local("back")), names(&server.local("tree")));
    fs::remove_dir_all(server.local("tree/1")).unwrap();
    let summary = server.summary(&["sync", "--delete", "tree", "@"], 0);
    assert_eq!(count(&summary, "removed"), 11, "{summary}");
    assert!(server.root().join(".sealift").exists() && !server.root().join("1").exists());
    server.assert_no_leftovers();
}

#[test]
fn kinds_change_only_with_delete() {
    let server = Server::start(&[]);
    write(&server.local("tree/was-directory"), "file");
    write(&server.local("tree/was-file/inside"), "x");
    write(&server.local("tree/other"), "x");
    write(&server.root().join("copy/was-directory/old"), "x");
    write(&server.root().join("copy/was-file"), "file");
    let (_, told) = server.run(&["sync", "tree", "@copy"], 1);
    assert!(told.contains("was-directory: a directory has its name at the destination"), "{told}");
    assert_eq!(fs::read(server.root().join("copy/other")).unwrap(), b"x", "the rest goes on");
    let summary = server.summary(&["sync", "--delete", "tree", "@copy"], 0);
    assert_eq!(count(&summary, "removed"), 3, "{summary}");
    assert_same_tree(&tree(&server.root().join("copy")), &tree(&server.local("tree")));
}

#[test]
fn hashes_find_what_times_hide() {
    let server = Server::start(&[]);
    for (name, content) in [("small", &b"one"[..]), ("large", &noise(1, 2 << 20)), ("touched", &noise(2, 400_000))] {
        write(&server.local("tree").join(name), content);
        set_time(&server.local("tree").join(name), 1000);
    }
    server.run(&["sync", "tree", "@copy"], 0);
    let keep_time = |name: &str, content: &[u8]| {
        let path = server.local("tree").join(name);
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, content).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    keep_time("small", b"two");
    let mut large = noise(1, 2 << 20);
    large[0] ^= 1;
    keep_time("large", &large);
    set_time(&server.local("tree/touched"), 500);
    let summary = server.summary(&["sync", "-c", "-n", "tree", "@copy"], 0);
    assert_eq!(count(&summary, "planned"), 3, "{summary}");
    let summary = server.summary(&["sync", "tree", "@copy"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "unchanged")), (0, 3), "times hide it: {summary}");
    assert_eq!(count(&summary, "bytes_moved"), 0, "{summary}");
    set_time(&server.local("tree/touched"), 700);
    let summary = server.summary(&["sync", "-c", "tree", "@copy"], 0);
    // What is only touched gets its time, and none of its content crosses.
    assert_eq!((count(&summary, "stored"), count(&summary, "unchanged")), (2, 1), "{summary}");
    assert_eq!(count(&summary, "bytes_moved"), 3 + (1 << 20), "{summary}");
    assert_same_tree(&tree(&server.root().join("copy")), &tree(&server.local("tree")));
    // The other way.
    keep_time("small", b"six");
    let summary = server.summary(&["sync", "-c", "@copy", "tree"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "unchanged")), (1, 2), "{summary}");
    assert_same_tree(&tree(&server.local("tree")), &tree(&server.root().join("copy")));
}

/// The names below a directory, as text.
fn names(top: &Path) -> Vec<String> {
    tree(top)
        .into_iter()
        .filter(|(_, node)| node.kind != 'd')
        .map(|(name, _)| String::from_utf8(name).unwrap())
        .collect()
}

#[test]
fn rules_leave_out_and_the_summary_says_which() {
    let server = Server::start(&[]);
    let top = server.local("tree");
    for name in ["a.o", "keep.o", "src/b.o", "src/b.c", "target/x", "src/target", ".git/HEAD", ".env", "-dash", "big"] {
        write(&top.join(name), if name == "big" { noise(1, 10_000) } else { b"x".to_vec() });
    }
    set_time(&top.join("src/b.c"), 7200);
    write(&server.local("patterns"), "# from a file\n/target/\n");
    let filtered = ["src/target", ".git/HEAD", ".env", "keep.o", "src/b.c", "-dash"];
    let mut expected: Vec<_> = filtered.iter().map(|name| (*name).to_owned()).collect();
    expected.sort();
    let rules = [
        "--include",
        "keep.o",
        "--exclude",
        "*.o",
        "--exclude-from",
        "patterns",
        "--max-size",
        "9K",
        "--older-than",
        "1s",
    ];
    set_all_old(&top);
    for (command, source, target, there) in [
        ("put", "tree", "@put", server.root().join("put")),
        ("sync", "tree", "@sync", server.root().join("sync")),
        ("get", "@whole", "get", server.local("get")),
        ("sync", "@whole", "down", server.local("down")),
    ] {
        server.run(&["put", "tree", "@whole"], 0);
        for dry in [true, false] {
            let mut line = vec![command];
            line.extend(rules);
            line.extend(dry.then_some("-n"));
            line.extend([source, target]);
            let summary = server.summary(&line, 0);
            let left_out = &summary["left_out"];
            let counts = [&left_out["--exclude *.o"], &left_out["--exclude /target/"], &left_out["--max-size"]];
            assert_eq!(counts, [2, 1, 1], "{line:?} {summary}");
            assert_eq!(count(&summary, if dry { "planned" } else { "stored" }), 6, "{line:?} {summary}");
        }
        assert_eq!(names(&there), expected, "{command} {source}");
    }
    let (_, told) = server.run(&["sync", "--exclude", "*.o", "tree", "@whole"], 0);
    assert!(told.contains("left out by --exclude *.o: 3"), "{told}");
    // By age: only what changed since.
    write(&top.join("fresh"), "x");
    let summary = server.summary(&["put", "--newer-than", "1h", "tree", "@fresh"], 0);
    assert_eq!((count(&summary, "stored"), &summary["left_out"]["--newer-than"]), (1, &Value::from(10)), "{summary}");
    server.run(&["put", "--exclude", "[a", "tree", "@x"], 2);
}

fn set_all_old(top: &Path) {
    for name in names(top) {
        set_time(&top.join(name), 7200);
    }
}

#[test]
fn what_rules_leave_out_is_not_removed_either() {
    let server = Server::start(&[]);
    write(&server.local("tree/file"), "x");
    for name in ["file", "cache/kept", "old/cache/kept", "old/gone", "gone"] {
        write(&server.root().join("copy").join(name), "x");
    }
    server.run(&["sync", "--delete", "--exclude", "cache/", "tree", "@copy"], 0);
    assert_eq!(names(&server.root().join("copy")), ["cache/kept", "file", "old/cache/kept"]);
    server.run(&["sync", "--delete-excluded", "--exclude", "cache/", "tree", "@copy"], 0);
    assert_eq!(names(&server.root().join("copy")), ["file"]);
}

#[test]
fn ignore_files_of_the_source_are_obeyed_when_asked() {
    let server = Server::start(&[]);
    let top = server.local("tree");
    for name in ["a.log", "b.txt", "sub/c.log", "sub/keep.log", "sub/only/d.txt", "other/only/d.txt"] {
        write(&top.join(name), "x");
    }
    write(&top.join(".sealiftignore"), "*.log\n");
    write(&top.join("sub/.sealiftignore"), "!keep.log\n/only/\n");
    let expected = [".sealiftignore", "b.txt", "other/only/d.txt", "sub/.sealiftignore", "sub/keep.log"];
    server.run(&["put", "tree", "@all"], 0);
    assert_eq!(names(&server.root().join("all")).len(), 8, "by default nothing is left out");
    for (command, source, target, there) in [
        ("put", "tree", "@put", server.root().join("put")),
        ("sync", "tree", "@sync", server.root().join("sync")),
        ("get", "@all", "get", server.local("get")),
        ("sync", "@all", "down", server.local("down")),
    ] {
        let summary = server.summary(&[command, "--ignore-files", source, target], 0);
        assert_eq!(names(&there), expected, "{command} {source}");
        assert_eq!(summary["left_out"][".sealiftignore: *.log"], 2, "{summary}");
    }
    // Rules that cannot be read let nothing of their directory go.
    write(&top.join("sub/.sealiftignore"), b"\xff");
    server.run(&["put", "--ignore-files", "tree", "@bad"], 1);
    assert!(!server.root().join("bad/sub").exists());
}

#[test]
fn links_are_copied_skipped_or_followed() {
    let server = Server::start(&[]);
    let top = server.local("tree");
    write(&top.join("file"), "x");
    write(&server.local("outside/deep/y"), "y");
    symlink("file", top.join("inside")).unwrap();
    symlink("../outside", top.join("out")).unwrap();
    symlink("nowhere", top.join("dangling")).unwrap();
    fs::create_dir(top.join("sub")).unwrap();
    symlink("..", top.join("sub/loop")).unwrap();
    symlink("self", top.join("self")).unwrap();
    symlink("../../tree", server.local("outside/deep/back")).unwrap();
    for command in ["put", "sync"] {
        let at = |kind: &str| (format!("@{command}-{kind}"), server.root().join(format!("{command}-{kind}")));
        let (url, there) = at("follow");
        let summary = server.summary(&[command, "--links", "follow", "tree", &url], 0);
        assert_eq!(names(&there), ["file", "inside", "out/deep/y"], "{summary}");
        assert_eq!(count(&summary, "skipped"), 4, "{summary}");
        assert!(tree(&there).values().all(|node| node.kind != 'l'));
        let (url, there) = at("skip");
        let summary = server.summary(&[command, "--links", "skip", "tree", &url], 0);
        assert_eq!((names(&there), count(&summary, "skipped")), (vec!["file".to_owned()], 5), "{summary}");
        let (url, there) = at("copy");
        let summary = server.summary(&[command, "tree", &url], 0);
        assert_eq!((names(&there).len(), count(&summary, "skipped")), (5, 1), "{summary}");
    }
    server.run(&["get", "--links", "follow", "@put-copy", "x"], 2);
    server.run(&["sync", "--links", "follow", "@put-copy", "x"], 2);
    let summary = server.summary(&["get", "--links", "skip", "@put-copy", "x"], 0);
    assert_eq!(count(&summary, "skipped"), 4, "{summary}");
    // A pattern that meets a link is no failure.
    let summary = server.summary(&["get", "--glob", "@put-copy/*", "globbed/"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "skipped")), (1, 4), "{summary}");
}

#[test]
fn special_files_and_bits_stay_behind() {
    let server = Server::start(&[]);
    let top = server.local("tree");
    write(&top.join("set-id"), "x");
    fs::set_permissions(top.join("set-id"), fs::Permissions::from_mode(0o6777)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, top.join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let summary = server.summary(&["sync", "tree", "@copy"], 0);
    assert_eq!((count(&summary, "stored"), count(&summary, "skipped")), (1, 1), "{summary}");
    let mode = fs::metadata(server.root().join("copy/set-id")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o775);
    let summary = server.summary(&["sync", "tree", "@copy"], 0);
    assert_eq!(count(&summary, "unchanged"), 1, "bits that are not kept are no difference: {summary}");
    // Nor are those that the server's operator forbids.
    let narrow = Server::start(&["--file-mode", "0600:0640", "--dir-mode", "0700:0750"]);
    some_tree(&narrow.local("tree"));
    narrow.run(&["sync", "tree", "@copy"], 0);
    let summary = narrow.summary(&["sync", "tree", "@copy"], 0);
    assert_eq!((count(&summary, "unchanged"), count(&summary, "directories")), (44, 0), "{summary}");
}

#[test]
fn sparse_files_stay_sparse_on_disk() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let server = Server::start(&[]);
    let path = server.local("tree/sparse");
    write(&path, "");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(24 << 20).unwrap();
    file.write_all_at(&noise(1, 70_000), 9 << 20).unwrap();
    // One that ends in a hole, and one that is nothing else.
    write(&server.local("tree/hole"), "");
    fs::File::options().write(true).open(server.local("tree/hole")).unwrap().set_len(3 << 20).unwrap();
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    if rustix::fs::fallocate(&file, flags, 0, 1 << 20).is_err() {
        println!("skipped: this file system has no holes");
        return;
    }
    server.run(&["sync", "tree", "@copy"], 0);
    server.run(&["sync", "@copy", "back"], 0);
    for top in [server.root().join("copy"), server.local("back")] {
        assert_same_tree(&tree(&top), &tree(&server.local("tree")));
        for name in ["sparse", "hole"] {
            let taken = fs::metadata(top.join(name)).unwrap().blocks() * 512;
            assert!(taken <= 2 << 20, "{name} takes {taken} bytes in {}", top.display());
        }
    }
    // A version with a hole where the last one had content.
    file.set_len(0).unwrap();
    file.set_len(24 << 20).unwrap();
    server.run(&["sync", "tree", "@copy"], 0);
    assert_same_tree(&tree(&server.root().join("copy")), &tree(&server.local("tree")));
}

#[test]
fn a_dry_run_foresees_policies_and_refused_names() {
    let server = Server::start(&[]);
    for name in ["new", "same", "other", "bad\nname"] {
        write(&server.local("tree").join(name), "x");
    }
    server.run(&["put", "tree/same", "tree/other", "@copy/"], 0);
    write(&server.local("tree/other"), "longer");
    for (policy, exit, counts) in [("overwrite", 1, [2, 1, 0, 1]), ("skip", 1, [1, 1, 1, 1]), ("fail", 1, [1, 1, 0, 2])]
    {
        let summary = server.summary(&["put", "-n", "--if-exists", policy, "tree", "@copy"], exit);
        let got = ["planned", "unchanged", "kept", "failed"].map(|key| count(&summary, key));
        assert_eq!(got, counts, "{policy} {summary}");
        let real = server.summary(&["put", "--if-exists", policy, "tree/new", "tree/same", "@scratch/"], 0);
        assert_eq!(count(&real, "failed"), 0);
    }
    let (_, told) = server.run(&["put", "-n", "tree", "@fresh"], 1);
    assert!(told.contains("would be moved: tree/\n"), "directories are listed: {told}");
    server.run(&["get", "@copy", "down"], 0);
    fs::write(server.local("down/other"), "changed").unwrap();
    let summary = server.summary(&["get", "-n", "--if-exists", "skip", "@copy", "down"], 0);
    let got = ["planned", "unchanged", "kept"].map(|key| count(&summary, key));
    assert_eq!(got, [0, 1, 1], "{summary}");
    server.run(&["get", "-n", "--if-exists", "fail", "@copy/other", "down/"], 1);
    assert!(!server.root().join("fresh").exists());
}

#[test]
fn a_long_directory_is_listed_in_pieces() {
    const COUNT: usize = 20_000;
    let server = Server::start(&[]);
    let (here, there) = (server.local("tree/long"), server.root().join("tree/long"));
    for top in [&here, &there] {
        fs::create_dir_all(top).unwrap();
        for index in 0..COUNT {
            fs::File::create(top.join(format!("a rather long name, so that pages fill up early {index}"))).unwrap();
        }
    }
    let (listed, _) = server.run(&["ls", "@tree/long"], 0);
    assert_eq!(listed.lines().count(), COUNT);
    let mut lines: Vec<_> = listed.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), COUNT, "each once");
    // Empty files made at other times: only hashes tell that they are the same.
    let summary = server.summary(&["get", "-n", "--if-exists", "skip", "@tree", "tree"], 0);
    assert_eq!(count(&summary, "kept") + count(&summary, "unchanged"), COUNT as u64, "{summary}");
    fs::remove_file(here.join("a rather long name, so that pages fill up early 7")).unwrap();
    fs::remove_file(there.join("a rather long name, so that pages fill up early 8")).unwrap();
    let summary = server.summary(&["sync", "-n", "--delete", "tree", "@tree"], 0);
    assert_eq!(count(&summary, "removed"), 1, "{summary}");
    assert_eq!(count(&summary, "planned") + count(&summary, "unchanged"), COUNT as u64 - 1, "{summary}");
}

// ---- real trees, compared by rsync ---------------------------------------------------------------------------

/// What rsync would still do, without owners and what was skipped.
fn differences(from: &Path, to: &Path, skipped: &[String]) -> String {
    let mut command = Command::new("rsync");
    command.args(["-rlptH", "--dry-run", "--itemize-changes", "--delete", "--exclude=/.sealift"]);
    for name in skipped {
        let escaped = name.replace('[', "\\[").replace('*', "\\*").replace('?', "\\?");
        command.arg(format!("--exclude=/{escaped}"));
    }
    let output = command.arg(from.join("")).arg(to.join("")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The time of a link is set where the file system can.
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn there_and_back(source: &Path) {
    let world = World::new();
    let server = world.serve();
    let up = server.run("sync", [source.as_os_str(), server.at("tree").as_ref()]);
    assert_eq!(up.code, 0, "{}", up.failures());
    let top = source.to_str().unwrap();
    let skipped: Vec<String> = up
        .of_type("skipped")
        .iter()
        .map(|line| line["name"].as_str().unwrap().strip_prefix(top).unwrap().trim_start_matches('/').to_owned())
        .collect();
    assert_eq!(differences(source, &world.root().join("tree"), &skipped), "", "{}", source.display());
    let down = world.path("down");
    let ran = server.run("sync", [server.at("tree").as_ref(), down.as_os_str()]);
    assert_eq!(ran.code, 0, "{}", ran.failures());
    assert_eq!(differences(source, &down, &skipped), "", "{}", source.display());
    let again = server.run("sync", [source.as_os_str(), "--delete".as_ref(), server.at("tree").as_ref()]);
    assert_eq!((count(again.summary(), "stored"), count(again.summary(), "removed")), (0, 0), "{:?}", again.summary());
}

#[test]
fn real_trees_are_the_same_to_rsync() {
    if !has("rsync", &["--version"], "real trees are not compared") {
        return;
    }
    let whole = long("all of /usr/share and /usr/lib/systemd");
    let mut tried = 0;
    let places: &[&str] = if whole {
        &["/usr/share", "/usr/lib/systemd"]
    } else {
        &["/usr/share/zoneinfo/Europe", "/usr/lib/systemd/system"]
    };
    for place in places {
        let place = PathBuf::from(place);
        if place.is_dir() {
            there_and_back(&place);
            tried += 1;
        }
    }
    if tried == 0 {
        println!("skipped: none of {places:?} is here");
    }
}

#[test]
fn a_git_repository_travels_whole() {
    if !has("rsync", &["--version"], "a repository is not compared")
        || !has("git", &["--version"], "no repository is made")
    {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    fs::create_dir(&repository).unwrap();
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=x", "-c", "user.email=x@example.org"]).args(args).current_dir(&repository);
        assert!(command.output().unwrap().status.success(), "git {args:?}");
    };
    git(&["init", "-q"]);
    write(&repository.join("src/main.c"), "int main() { return 0; }");
    write(&repository.join(".gitignore"), "target\n");
    write(&repository.join("target/x"), "built");
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "first"]);
    there_and_back(&repository);
}
