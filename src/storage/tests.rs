use std::sync::atomic::Ordering;

use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;

const SIZES: [usize; 14] = [
    0, 1, 1023, 1024, 1025, 65_535, 65_536, 1_048_575, 1_048_576, 1_048_577, 4_194_304, 4_194_305, 8_388_608, 9_000_001,
];

fn path(text: &str) -> RemotePath {
    RemotePath::parse(text.as_bytes()).unwrap()
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7 + index * 31) as u8 ^ seed).collect()
}

fn metadata(content: &[u8]) -> FileMetadata {
    FileMetadata { mode: None, mtime: None, root: Root::of(content), upload_id: [7; 16], xattrs: None }
}

fn stage(store: &Store, name: &str, content: &[u8], if_exists: IfExists) -> Result<Staged> {
    let options = NewFile { size: Some(content.len() as u64), if_exists, make_parents: true, mode: None };
    let upload = store.begin(&path(name), options)?;
    let pool = crate::buffer::Pool::new(1 << 20);
    let mut buffer = pool.try_lease(1 << 20).unwrap();
    for (index, group) in content.chunks(1 << 20).enumerate() {
        buffer[..group.len()].copy_from_slice(group);
        upload.write_at((index as u64) << 20, &buffer[..group.len()])?;
    }
    upload.finish(content.len() as u64, metadata(content))
}

fn put(store: &Store, name: &str, content: &[u8], if_exists: IfExists) -> Result<Published> {
    store.publish(vec![stage(store, name, content, if_exists)?]).pop().unwrap()
}

fn content(store: &Store, name: &str) -> Result<Vec<u8>> {
    let file = store.open_file(&path(name))?;
    let mut content = vec![0; file.size() as usize];
    file.read_at(0, &mut content)?;
    file.check_unchanged()?;
    Ok(content)
}

fn disk() -> tempfile::TempDir {
    // On the disk of the build directory, which unlike the usual place for such files is rarely tmpfs.
    let base = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    tempfile::tempdir_in(base).unwrap()
}

#[test]
fn every_size_comes_back() {
    let dir = disk();
    for (kind, store) in [
        ("served", Store::open_served(&dir.path().join("served"), StoreOptions::default()).unwrap()),
        ("local", Store::open_local(&dir.path().join("a/b")).unwrap()),
    ] {
        assert_eq!(store.warnings(), [""; 0]);
        for size in SIZES {
            for seed in [0, 1] {
                let name = format!("in/{size}");
                let expected = bytes(size, seed);
                let published = put(&store, &name, &expected, IfExists::Overwrite).unwrap();
                assert_eq!(content(&store, &name).unwrap(), expected, "{kind} {size}");
                let file = store.open_file(&path(&name)).unwrap();
                assert_eq!(file.recorded_root(), Some(Root::of(&expected)));
                let outcome = if seed == 0 { Outcome::Created } else { Outcome::Replaced };
                assert_eq!(published.outcome, outcome, "{kind} {size}");
            }
        }
        assert_eq!(store.list(&path("in"), None).unwrap().count(), SIZES.len());
    }
}

/// What is left out on disk counts: a file that is nothing but zeros, or ends in them, is as long as it should be.
#[test]
fn zeros_of_every_size_come_back() {
    let dir = disk();
    for (kind, store) in [
        ("served", Store::open_served(&dir.path().join("served"), StoreOptions::default()).unwrap()),
        ("local", Store::open_local(&dir.path().join("local")).unwrap()),
    ] {
        for size in SIZES {
            for begun in [0, size.min(70_000), size.min(1 << 20)] {
                let expected = [bytes(begun, 3), vec![0; size - begun]].concat();
                put(&store, "zeros", &expected, IfExists::Overwrite).unwrap();
                assert!(content(&store, "zeros").unwrap() == expected, "{kind}: {size}, zeros from {begun} on");
            }
        }
    }
}

#[test]
fn what_a_sender_had_made_is_looked_at_when_a_name_comes_again() {
    let dir = disk();
    let (store, root) = served(&dir);
    std::fs::create_dir(root.join("old")).unwrap();
    let made = Arc::default();
    let options = NewFile { size: Some(1), make_parents: true, ..NewFile::default() };
    let mut parents = Parents::of_sender(&made);
    for name in ["old/x", "new/deep/x"] {
        drop(store.begin_in(&mut parents, &path(name), options).unwrap());
    }
    // Somebody else's, put there behind the sender's back.
    for name in ["old/a", "new/deep/a", "new/deep/b"] {
        std::fs::write(root.join(name), "a").unwrap();
    }
    let mut parents = Parents::of_sender(&made);
    assert!(!parents.lacks_or_replaces(&store, &path("old/a")), "a directory that was there");
    assert!(parents.lacks_or_replaces(&store, &path("old/b")));
    assert!(parents.lacks_or_replaces(&store, &path("new/deep/a")), "not looked for");
    assert!(!parents.lacks(&store, &path("new/deep/b")), "what may not replace looks everywhere");
    let mut later = Parents::of_sender(&made);
    assert!(!later.lacks_or_replaces(&store, &path("new/deep/a")), "asked for before");
    assert!(!Parents::default().lacks_or_replaces(&store, &path("new/deep/b")), "another sender");
    for number in 0..upload::MADE_NAMES_MAX {
        assert!(later.lacks_or_replaces(&store, &path(&format!("new/deep/n{number}"))));
    }
    assert!(!later.lacks_or_replaces(&store, &path("new/deep/b")), "the memory was full");
}

#[track_caller]
fn check_kind<T: fmt::Debug>(result: Result<T>, expected: ErrorKind, what: impl fmt::Debug) {
    match result {
        Ok(value) => panic!("{what:?}: expected {expected:?}, got {value:?}"),
        Err(error) => assert_eq!(error.kind(), expected, "{what:?}: {}", error.chain()),
    }
}

fn served(dir: &tempfile::TempDir) -> (Store, PathBuf) {
    let root = dir.path().join("root");
    (Store::open_served(&root, StoreOptions::default()).unwrap(), root)
}

fn names(store: &Store, at: &str) -> Vec<String> {
    let mut names: Vec<String> =
        store.list(&path(at), None).unwrap().map(|entry| String::from_utf8(entry.unwrap().name).unwrap()).collect();
    names.sort();
    names
}

/// Everything about a tree that an escape could change.
fn portrait(tree: &std::path::Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = Vec::new();
    let mut waiting = vec![tree.to_owned()];
    while let Some(at) = waiting.pop() {
        let data = std::fs::symlink_metadata(&at).unwrap();
        let what = if data.is_dir() {
            waiting.extend(std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        } else if data.is_symlink() {
            format!("{:?}", std::fs::read_link(&at).unwrap())
        } else {
            format!("{:?}", std::fs::read(&at).unwrap())
        };
        let time = (data.mtime(), data.mtime_nsec());
        found.push(format!("{at:?} {} {:o} {time:?} {} {what}", data.ino(), data.mode(), data.nlink()));
    }
    found.sort();
    found
}

fn plant_canary(outside: &std::path::Path) {
    std::fs::create_dir_all(outside.join("sub")).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    std::fs::write(outside.join("f"), "outside").unwrap();
    std::fs::write(outside.join("sub/f"), "outside").unwrap();
    std::os::unix::fs::symlink("secret", outside.join("link")).unwrap();
}

#[test]
fn policies_meet_what_exists() {
    use ErrorKind as E;
    use IfExists::{Fail, Overwrite, Rename, Skip};
    let dir = disk();
    let (store, root) = served(&dir);
    let cases: [(&str, IfExists, Result<Outcome, E>); 16] = [
        ("none", Overwrite, Ok(Outcome::Created)),
        ("none", Skip, Ok(Outcome::Created)),
        ("none", Fail, Ok(Outcome::Created)),
        ("none", Rename, Ok(Outcome::Created)),
        ("file", Overwrite, Ok(Outcome::Replaced)),
        ("file", Skip, Err(E::Exists)),
        ("file", Fail, Err(E::Exists)),
        ("file", Rename, Ok(Outcome::Renamed)),
        ("link", Overwrite, Ok(Outcome::Replaced)),
        ("link", Fail, Err(E::Exists)),
        ("link", Rename, Ok(Outcome::Renamed)),
        ("directory", Overwrite, Err(E::IsDirectory)),
        ("directory", Skip, Err(E::IsDirectory)),
        ("directory", Rename, Ok(Outcome::Renamed)),
        ("fifo", Overwrite, Err(E::Special)),
        ("fifo", Rename, Ok(Outcome::Renamed)),
    ];
    for (index, (kind, policy, expected)) in cases.into_iter().enumerate() {
        for size in [10, 2 << 20] {
            let at = format!("{index}-{size}/x.tar");
            let target = root.join(&at);
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            match kind {
                "file" => std::fs::write(&target, "old").unwrap(),
                "link" => std::os::unix::fs::symlink("elsewhere", &target).unwrap(),
                "directory" => std::fs::create_dir(&target).unwrap(),
                "fifo" => {
                    let mode = rustix::fs::Mode::RWXU;
                    rustix::fs::mknodat(rustix::fs::CWD, &target, rustix::fs::FileType::Fifo, mode, 0).unwrap();
                }
                _ => {}
            }
            let new = bytes(size, 3);
            let answer = put(&store, &at, &new, policy);
            let what = (kind, policy, size);
            match (answer, expected) {
                (Ok(published), Ok(outcome)) => {
                    assert_eq!(published.outcome, outcome, "{what:?}");
                    let renamed = outcome == Outcome::Renamed;
                    let name = if renamed { format!("{index}-{size}/x (1).tar") } else { at.clone() };
                    assert_eq!(published.path.to_string(), name);
                    assert_eq!(content(&store, &name).unwrap(), new, "{what:?}");
                    let count = if renamed { 2 } else { 1 };
                    assert_eq!(std::fs::read_dir(target.parent().unwrap()).unwrap().count(), count, "{what:?}");
                    // What becomes taken while the upload runs is decided when it is published.
                    let late = put(&store, &at, &new, policy);
                    assert_eq!(late.is_ok(), matches!(policy, Overwrite | Rename), "{what:?}");
                }
                (Err(error), Err(kind)) => {
                    assert_eq!(error.kind(), kind, "{what:?}: {}", error.chain());
                    assert_eq!(std::fs::read_dir(target.parent().unwrap()).unwrap().count(), 1, "{what:?}");
                }
                (got, expected) => panic!("{what:?}: expected {expected:?}, got {got:?}"),
            }
        }
    }
    assert!(std::fs::read_dir(root.join(".sealift/staging")).unwrap().next().is_none());
}

#[test]
fn a_late_rival_is_met_at_publishing() {
    let dir = disk();
    let (store, _) = served(&dir);
    for size in [10, 2 << 20] {
        for (policy, expected) in [
            (IfExists::Fail, Err(ErrorKind::Exists)),
            (IfExists::Skip, Ok(Outcome::Skipped)),
            (IfExists::Rename, Ok(Outcome::Renamed)),
            (IfExists::Overwrite, Ok(Outcome::Replaced)),
        ] {
            let name = format!("{policy:?}{size}");
            let staged = stage(&store, &name, &bytes(size, 1), policy).unwrap();
            put(&store, &name, b"rival", IfExists::Overwrite).unwrap();
            let answer = store.publish(vec![staged]).pop().unwrap();
            assert_eq!(answer.as_ref().map(|p| p.outcome).map_err(Error::kind), expected, "{policy:?} {size}");
            let there = content(&store, &name).unwrap();
            assert_eq!(there == b"rival", policy != IfExists::Overwrite, "{policy:?} {size}");
        }
    }
}

#[test]
fn the_state_directory_is_out_of_reach_by_every_spelling() {
    let dir = disk();
    let (store, root) = served(&dir);
    std::fs::create_dir(root.join("d")).unwrap();
    std::fs::write(root.join("f"), "f").unwrap();
    let hidden = format!("d/.sealift-{}", "0".repeat(32));
    std::fs::write(root.join(&hidden), "staging").unwrap();
    for name in
        [".sealift", "/.sealift/", "./.sealift", ".sealift/lock", ".sealift/staging", ".sealift/lock/x", &hidden]
    {
        let at = path(name);
        assert!(store.is_reserved(&at) || name.contains("lock/"), "{name}");
        check_kind(store.stat(&at), ErrorKind::NotFound, name);
        check_kind(store.open_file(&at), ErrorKind::NotFound, name);
        check_kind(store.list(&at, None), ErrorKind::NotFound, name);
        check_kind(store.remove(&at, true), ErrorKind::NotFound, name);
        check_kind(store.rename(&at, &path("away"), IfExists::Overwrite), ErrorKind::NotFound, name);
        check_kind(store.set_directory_metadata(&at, Some(0o777), None), ErrorKind::NotFound, name);
        for result in [
            store.make_directory(&at, None, true).map(|_| ()),
            store.make_directory(&at, None, false).map(|_| ()),
            store.make_directory(&path(&format!("{name}/new")), None, true).map(|_| ()),
            store.make_link(&at, b"f", None, IfExists::Overwrite).map(|_| ()),
            store.rename(&path("f"), &at, IfExists::Overwrite).map(|_| ()),
            store.rename(&path("f"), &at, IfExists::Fail).map(|_| ()),
            store.rename(&path("d"), &path(&format!("{name}/d")), IfExists::Fail).map(|_| ()),
            put(&store, name, b"x", IfExists::Overwrite).map(|_| ()),
            put(&store, &format!("{name}/x"), b"x", IfExists::Rename).map(|_| ()),
        ] {
            let kind = result.map_err(|error| error.kind());
            assert!(matches!(kind, Err(ErrorKind::Name | ErrorKind::NotFound)), "{name}: {kind:?}");
        }
    }
    assert_eq!(names(&store, ""), ["d", "f"]);
    assert_eq!(names(&store, "d"), [""; 0]);
    check_kind(store.remove(&path(""), true), ErrorKind::Rights, "root");
    // What a dead process left in it does not keep a directory that is empty to its users, but a live one's does.
    check_kind(store.remove(&path("d"), false), ErrorKind::NotEmpty, "fresh staging");
    assert_eq!(store.remove(&path("d"), true).unwrap(), 2);
}

#[test]
fn links_are_never_walked() {
    let dir = disk();
    let (store, root) = served(&dir);
    let outside = dir.path().join("outside");
    plant_canary(&outside);
    std::fs::create_dir_all(root.join("in/sub")).unwrap();
    std::fs::write(root.join("in/sub/f"), "inside").unwrap();
    std::fs::create_dir(root.join("links")).unwrap();
    let targets = [
        outside.to_str().unwrap().to_owned(),
        "../../outside".to_owned(),
        "../in/sub".to_owned(),
        root.join("in/sub").to_str().unwrap().to_owned(),
        "../../root/in/sub".to_owned(),
        "dangling".to_owned(),
        "4".to_owned(),
        "6".to_owned(),
        ".".to_owned(),
    ];
    for (index, target) in targets.iter().enumerate() {
        std::os::unix::fs::symlink(target, root.join("links").join(index.to_string())).unwrap();
    }
    let before = (portrait(&outside), portrait(&root.join("in")));
    for openat2 in [true, false] {
        let mut store = store.clone();
        if !openat2 {
            // The way of a kernel without openat2.
            store = Store::open_local(&root).unwrap();
            core_of(&mut store).openat2 = false;
        }
        for (index, target) in targets.iter().enumerate() {
            let link = format!("links/{index}");
            assert_eq!(store.stat(&path(&link)).unwrap().kind, Kind::Link);
            let bytes = store.stat(&path(&link)).unwrap().link_target.unwrap();
            assert_eq!(bytes, target.as_bytes());
            for below in ["", "/f", "/sub/f", "/new/er"] {
                let name = format!("{link}{below}");
                let at = path(&name);
                check_kind(store.open_file(&at), ErrorKind::Link, &name);
                check_kind(store.list(&at, None), ErrorKind::Link, &name);
                check_kind(store.make_directory(&at, None, true), ErrorKind::Link, &name);
                check_kind(store.set_directory_metadata(&at, Some(0o700), None), ErrorKind::Link, &name);
                if !below.is_empty() {
                    check_kind(store.stat(&at), ErrorKind::Link, &name);
                    check_kind(store.remove(&at, true), ErrorKind::Link, &name);
                    check_kind(put(&store, &name, b"x", IfExists::Overwrite), ErrorKind::Link, &name);
                    check_kind(store.rename(&at, &path("x"), IfExists::Fail), ErrorKind::Link, &name);
                    check_kind(store.rename(&path("in/sub/f"), &at, IfExists::Fail), ErrorKind::Link, &name);
                    check_kind(store.make_link(&at, b"x", None, IfExists::Fail), ErrorKind::Link, &name);
                }
            }
        }
    }
    assert_eq!((portrait(&outside), portrait(&root.join("in"))), before);
    // Overwriting and removing act on the link itself.
    put(&store, "links/0", b"new", IfExists::Overwrite).unwrap();
    put(&store, "links/1", &bytes(2 << 20, 0), IfExists::Overwrite).unwrap();
    assert_eq!(store.remove(&path("links"), true).unwrap(), targets.len() as u64 + 1);
    assert_eq!((portrait(&outside), portrait(&root.join("in"))), before);
}

#[test]
fn only_links_that_stay_inside_are_made() {
    let dir = disk();
    let (store, root) = served(&dir);
    for (at, target, ok) in [
        ("l0", "a", true),
        ("l1", "a/b/./c", true),
        ("d/l2", "../a", true),
        ("d/e/l3", "../../a", true),
        ("d/e/l4", "../../../a", false),
        ("l5", "..", false),
        ("l6", "/etc/passwd", false),
        ("l7", "a/../b", false),
        ("d/l8", "..", true),
        ("l9", "", false),
    ] {
        let result = store.make_link(&path(at), target.as_bytes(), Mtime::new(1_000_000, 5), IfExists::Overwrite);
        if ok {
            result.unwrap();
            let entry = store.stat(&path(at)).unwrap();
            assert_eq!(entry.link_target.as_deref(), Some(target.as_bytes()));
            assert_eq!(entry.mtime, Mtime::new(1_000_000, 5).unwrap());
        } else {
            check_kind(result, ErrorKind::Link, (at, target));
        }
    }
    check_kind(store.rename(&path("d/e/l3"), &path("up"), IfExists::Fail), ErrorKind::Link, "moved up");
    store.rename(&path("d/e/l3"), &path("d/e/l"), IfExists::Fail).unwrap();
    store.make_link(&path("l0"), b"b", None, IfExists::Overwrite).unwrap();
    check_kind(store.make_link(&path("l0"), b"b", None, IfExists::Fail), ErrorKind::Exists, "taken");
    let renamed = store.make_link(&path("l0"), b"b", None, IfExists::Rename).unwrap();
    assert_eq!(renamed.path.to_string(), "l0 (1)");
    assert!(std::fs::read_dir(&root).unwrap().all(|entry| !is_hidden(&entry.unwrap())));

    fn is_hidden(entry: &std::fs::DirEntry) -> bool {
        entry.file_name().to_str().unwrap().starts_with(".sealift-")
    }
}

#[test]
fn a_flipped_component_never_leads_outside() {
    flip_for_a_while(true);
}

#[test]
fn a_flipped_component_never_leads_outside_without_openat2() {
    flip_for_a_while(false);
}

fn flip_for_a_while(openat2: bool) {
    use std::sync::atomic::AtomicU64;
    use std::time::{Duration, Instant};
    let dir = disk();
    let (mut store, root) = served(&dir);
    core_of(&mut store).openat2 = openat2;
    let outside = dir.path().join("outside");
    plant_canary(&outside);
    std::fs::create_dir(root.join("flip")).unwrap();
    std::fs::write(root.join("flip/f"), "inside").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("other")).unwrap();
    let before = portrait(&outside);
    let (done, flips) = (AtomicBool::new(false), AtomicU64::new(0));
    // The long form: a minute, and a million flips.
    let (time, enough) = match std::env::var_os("LONG_TESTS") {
        Some(_) => (Duration::from_secs(60), 1_000_000),
        None => (Duration::from_millis(1500), 0),
    };
    let begun = Instant::now();
    let is_over = || begun.elapsed() >= time && flips.load(Ordering::Relaxed) >= enough || begun.elapsed() >= 10 * time;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let root = rustix::fs::open(&root, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
            while !done.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                // Loses now and then against the removal below; what counts is that it goes on.
                if rustix::fs::renameat_with(&root, "flip", &root, "other", exchange).is_ok() {
                    flips.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut round = 0_u32;
        let mut reached = 0;
        while !is_over() {
            round += 1;
            let at = ["flip", "other"][round as usize % 2];
            let _ = put(&store, &format!("{at}/f"), b"inside", IfExists::Overwrite);
            let _ = put(&store, &format!("{at}/new"), b"inside", IfExists::Rename);
            if let Ok(content) = content(&store, &format!("{at}/f")) {
                assert_eq!(content, b"inside");
                reached += 1;
            }
            if let Ok(listing) = store.list(&path(at), None) {
                for entry in listing.flatten() {
                    assert_ne!(entry.name, b"secret");
                }
            }
            let _ = store.make_directory(&path(&format!("{at}/sub/deep")), None, true);
            let _ = store.set_directory_metadata(&path(at), Some(0o755), Mtime::new(1, 1));
            let _ = store.rename(&path(&format!("{at}/new")), &path(&format!("{at}/newer")), IfExists::Overwrite);
            let _ = store.remove(&path(&format!("{at}/sub")), true);
            let _ = store.make_link(&path(&format!("{at}/link")), b"f", None, IfExists::Overwrite);
            let _ = store.remove(&path(&format!("{at}/link")), true);
        }
        done.store(true, Ordering::Relaxed);
        assert!(reached > 0, "no operation got through in {round} rounds");
    });
    assert!(flips.load(Ordering::Relaxed) > enough.max(1000));
    assert_eq!(portrait(&outside), before);
    store.check().unwrap();
}

#[test]
fn hard_links_are_never_written_through() {
    let dir = disk();
    let (store, root) = served(&dir);
    let outside = dir.path().join("outside");
    std::fs::write(&outside, "outside").unwrap();
    let before = portrait(&outside);
    for size in [10, 5 << 20] {
        std::fs::hard_link(&outside, root.join("f")).unwrap();
        let mut file = store.open_file(&path("f")).unwrap();
        check_kind(file.set_metadata(Some(0o640), Mtime::new(1, 1), None), ErrorKind::Unsupported, "second name");
        put(&store, "f", &bytes(size, 1), IfExists::Overwrite).unwrap();
        assert_eq!(portrait(&outside), before);
        assert_eq!(content(&store, "f").unwrap(), bytes(size, 1));
        store.remove(&path("f"), false).unwrap();
    }
}

#[test]
fn a_further_name_is_one_of_the_file_that_was_opened() {
    let dir = disk();
    let (store, root) = served(&dir);
    put(&store, "a", b"shared", IfExists::Overwrite).unwrap();
    put(&store, "d/b", b"other", IfExists::Overwrite).unwrap();
    std::fs::hard_link(root.join("d/b"), root.join("kept")).unwrap();
    let file = store.open_file(&path("a")).unwrap();
    let give = |name: &str, policy| store.give_name(&file, &path(name), policy);
    check_kind(give("d/b", IfExists::Fail), ErrorKind::Exists, "taken");
    check_kind(give("d/b", IfExists::Skip), ErrorKind::Exists, "taken");
    check_kind(give("d", IfExists::Overwrite), ErrorKind::IsDirectory, "a directory");
    check_kind(give(".sealift/x", IfExists::Overwrite), ErrorKind::Name, "reserved");
    let Ok(Named::New(published)) = give("d/b", IfExists::Overwrite) else { panic!("it has the name") };
    assert_eq!((published.outcome, published.replaced_size), (Outcome::Replaced, 5));
    assert_eq!(content(&store, "d/b").unwrap(), b"shared");
    assert_eq!(content(&store, "kept").unwrap(), b"other", "its other names stay");
    assert!(matches!(give("d/b", IfExists::Overwrite), Ok(Named::Already)));
    let Ok(Named::New(published)) = give("d/b", IfExists::Rename) else { panic!("it has another name") };
    assert_eq!(published.path, path("d/b (1)"));
    // Another file has the first name by now: the one that was opened is meant.
    put(&store, "a", b"newer", IfExists::Overwrite).unwrap();
    assert!(matches!(give("new/c", IfExists::Fail), Ok(Named::New(_))));
    assert_eq!(content(&store, "new/c").unwrap(), b"shared");
    let names = std::fs::read_dir(root.join("d")).unwrap().count();
    assert_eq!(names, 2, "nothing hidden is left");
    store.check().unwrap();
}

#[test]
fn rivals_for_one_name() {
    let dir = disk();
    let (store, root) = served(&dir);
    for (policy, created) in [(IfExists::Fail, 1), (IfExists::Skip, 1), (IfExists::Rename, 1), (IfExists::Overwrite, 1)]
    {
        let name = format!("{policy:?}/n");
        let answers: Vec<Result<Published>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|seed| {
                    let (store, name) = (&store, &name);
                    scope.spawn(move || put(store, name, &bytes(5000, seed), policy))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let count = |outcome| answers.iter().flatten().filter(|answer| answer.outcome == outcome).count();
        let files = names(&store, &format!("{policy:?}"));
        match policy {
            IfExists::Fail | IfExists::Skip => {
                assert_eq!(count(Outcome::Created), created, "{policy:?}");
                for error in answers.iter().filter_map(|answer| answer.as_ref().err()) {
                    assert_eq!(error.kind(), ErrorKind::Exists, "{}", error.chain());
                }
                assert_eq!(files.len(), 1);
            }
            IfExists::Rename => {
                assert_eq!((count(Outcome::Created), count(Outcome::Renamed)), (1, 7));
                assert_eq!(files.len(), 8);
            }
            IfExists::Overwrite => {
                assert!(answers.iter().all(Result::is_ok), "{answers:?}");
                assert_eq!(files.len(), 1);
            }
        }
        let whole = content(&store, &name).unwrap();
        assert!((0..8).any(|seed| whole == bytes(5000, seed)), "{policy:?}");
    }
    assert_eq!(std::fs::read_dir(root.join(".sealift/staging")).unwrap().count(), 0);
}

#[test]
fn one_bad_file_does_not_harm_its_batch() {
    let dir = disk();
    let (store, root) = served(&dir);
    let mut batch = Vec::new();
    for index in 0..60 {
        batch.push(stage(&store, &format!("d{}/{index}", index % 3), &bytes(index * 100, 0), IfExists::Fail).unwrap());
    }
    // A directory takes the place of one file, and the directory of some others goes away.
    std::fs::create_dir(root.join("d1/4")).unwrap();
    std::fs::remove_dir(root.join("d2")).unwrap();
    let answers = store.publish(batch);
    for (index, answer) in answers.into_iter().enumerate() {
        match index {
            4 => check_kind(answer, ErrorKind::IsDirectory, index),
            _ if index % 3 == 2 => check_kind(answer, ErrorKind::NotFound, index),
            _ => {
                let published = answer.unwrap();
                assert_eq!(content(&store, &published.path.to_string()).unwrap(), bytes(index * 100, 0));
            }
        }
    }
}

#[test]
fn stores_and_uploads_are_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Store>();
    check::<Upload>();
    check::<StoredFile>();
    check::<Staged>();
    check::<Listing>();
}

#[test]
fn a_served_root_has_one_server_and_forgets_dead_ones() {
    let dir = disk();
    let (store, root) = served(&dir);
    let error = Store::open_served(&root, StoreOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let pid = std::process::id().to_string();
    assert!(error.chain().contains(&pid) && error.chain().contains("since 2"), "{}", error.chain());
    let upload = store.begin(&path("big"), NewFile { size: Some(2 << 20), ..NewFile::default() }).unwrap();
    drop(store);
    assert!(Store::open_served(&root, StoreOptions::default()).is_err(), "an upload keeps the lock");
    drop(upload);
    std::fs::create_dir_all(root.join(".sealift/staging/a/b")).unwrap();
    std::fs::write(root.join(".sealift/staging/a/b/c"), "left").unwrap();
    std::fs::write(root.join(".sealift/staging/left"), "left").unwrap();
    let store = Store::open_served(&root, StoreOptions::default()).unwrap();
    assert_eq!(std::fs::read_dir(root.join(".sealift/staging")).unwrap().count(), 0);
    drop(store);
    // A link in place of the state directory is not followed.
    std::fs::rename(root.join(".sealift"), dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", root.join(".sealift")).unwrap();
    check_kind(Store::open_served(&root, StoreOptions::default()), ErrorKind::Usage, "state link");
}

#[test]
fn roots_that_nobody_means_are_refused() {
    let dir = disk();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::symlink(&home, dir.path().join("link")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let options = StoreOptions { home: Some(home.clone()), ..StoreOptions::default() };
    for root in [
        PathBuf::from("/"),
        PathBuf::from("/proc/self/root"),
        home,
        dir.path().join("link"),
        dir.path().join("file"),
        dir.path().join("missing/deeper"),
        PathBuf::from("/proc"),
    ] {
        check_kind(Store::open_served(&root, options.clone()), ErrorKind::Usage, root);
    }
    Store::open_served(&dir.path().join("home/below"), options).unwrap();
}

#[test]
fn a_small_file_has_its_mode_whatever_it_was_made_with() {
    use std::os::unix::fs::MetadataExt as _;

    let dir = tempfile::tempdir().unwrap();
    let (store, root) = served(&dir);
    // Of these the usual umask takes something away.
    let told = [None, Some(0o644), Some(0o600), Some(0o664), Some(0o444), Some(0o775), Some(0o200)];
    for (index, mode) in told.into_iter().enumerate() {
        let name = format!("f{index}");
        let options = NewFile { size: Some(3), mode, ..NewFile::default() };
        // What is said last counts.
        for (end, asked) in [("", mode), ("-other", Some(0o640))] {
            let name = format!("{name}{end}");
            let upload = store.begin(&path(&name), options).unwrap();
            upload.write_at(0, b"abc").unwrap();
            let staged = upload.finish(3, FileMetadata { mode: asked, ..metadata(b"abc") }).unwrap();
            store.publish(vec![staged]).pop().unwrap().unwrap();
            let found = std::fs::metadata(root.join(&name)).unwrap().mode() & 0o7777;
            assert_eq!(found, asked.unwrap_or(0o644), "{name}: {mode:?}, then {asked:?}");
        }
    }
}

#[test]
fn what_is_recorded_holds_for_one_version() {
    let dir = disk();
    let (store, root) = served(&dir);
    let mtime = Mtime::new(1_700_000_000, 123_456_789).unwrap();
    let upload = store.begin(&path("f"), NewFile::default()).unwrap();
    upload.write_at(0, b"content").unwrap();
    let metadata = FileMetadata { mode: Some(0o7777), mtime: Some(mtime), ..metadata(b"content") };
    store.publish(vec![upload.finish(7, metadata).unwrap()]).pop().unwrap().unwrap();
    let recorded = Some(Recorded { root: Root::of(b"content"), upload_id: [7; 16] });
    let mut file = store.open_file(&path("f")).unwrap();
    assert_eq!((file.mtime(), file.mode()), (mtime, 0o775), "permissions are masked");
    assert_eq!(file.recorded(), recorded);
    // A new mode and time keep what is known of the content.
    let before = file.version();
    assert_eq!(file.set_metadata(Some(0o640), Mtime::new(5, 6), None).unwrap(), None);
    let changed = file.version();
    assert_ne!(changed, before);
    assert_eq!(file.set_metadata(Some(0o640), Mtime::new(5, 6), None).unwrap(), None);
    assert_eq!(file.version(), changed, "nothing was left to change");
    store.sync_existing(&file, &path("f")).unwrap();
    assert_eq!(store.open_file(&path("f")).unwrap().recorded(), recorded);
    // Another size or another time makes it outdated.
    std::fs::OpenOptions::new().append(true).open(root.join("f")).unwrap().set_len(6).unwrap();
    check_kind(file.check_unchanged(), ErrorKind::Changed, "cut");
    check_kind(file.read_at(0, &mut [0; 7]), ErrorKind::Changed, "cut");
    assert_eq!(store.open_file(&path("f")).unwrap().recorded(), None);
    put(&store, "g", b"content", IfExists::Overwrite).unwrap();
    std::fs::write(root.join("g"), "CONTENT").unwrap();
    assert_eq!(store.open_file(&path("g")).unwrap().recorded(), None);
}

#[test]
fn the_record_is_laid_out_as_documented() {
    let mtime = Mtime::new(-1, 999_999_999).unwrap();
    let recorded = Recorded { root: Root([0xaa; 32]), upload_id: [0xbb; 16] };
    let bytes = recorded.encode(0x0102_0304, mtime).unwrap();
    let mut expected = [[0xaa; 32].as_slice(), &[0xbb; 16]].concat();
    expected.extend([1, 0, 0, 0, 1, 2, 3, 4]);
    expected.extend([0xff; 8]);
    assert_eq!(bytes[..], expected[..]);
    assert_eq!(Recorded::decode(&bytes, 0x0102_0304, mtime), Some(recorded));
    for index in 48..64 {
        let mut damaged = bytes;
        damaged[index] ^= 1;
        assert_eq!(Recorded::decode(&damaged, 0x0102_0304, mtime), None, "byte {index}");
    }
    assert_eq!(recorded.encode(0, Mtime::new(i64::MAX, 0).unwrap()), None);
}

#[test]
fn direct_writes_are_a_matter_of_the_file_system() {
    let check = |base: &std::path::Path, may_be_direct: bool| {
        let dir = tempfile::tempdir_in(base).unwrap();
        let (store, _) = served(&dir);
        for size in [4 << 20, (4 << 20) + 1, (5 << 20) + 4096, (9 << 20) + 511] {
            let expected = bytes(size, 9);
            let upload = store.begin(&path("f"), NewFile { size: Some(size as u64), ..NewFile::default() }).unwrap();
            let direct = upload.is_direct();
            assert!(may_be_direct || !direct, "tmpfs means nothing by it");
            let pool = crate::buffer::Pool::new(1 << 20);
            let mut buffer = pool.try_lease(1 << 20).unwrap();
            // Backwards, and one group in odd pieces, as a spilled one comes.
            for (index, group) in expected.chunks(1 << 20).enumerate().collect::<Vec<_>>().into_iter().rev() {
                buffer[..group.len()].copy_from_slice(group);
                let offset = (index as u64) << 20;
                if index == 1 {
                    upload.write_at(offset, &buffer[..300_001]).unwrap();
                    upload.write_at(offset + 300_001, &buffer[300_001..group.len()]).unwrap();
                } else {
                    upload.write_at(offset, &buffer[..group.len()]).unwrap();
                }
            }
            let mut back = vec![0; size];
            upload.read_at(0, &mut back).unwrap();
            assert!(back == expected, "{size}");
            let staged = upload.finish(size as u64, metadata(&expected)).unwrap();
            store.publish(vec![staged]).pop().unwrap().unwrap();
            assert!(content(&store, "f").unwrap() == expected, "{size}");
            if may_be_direct && !direct {
                println!("skipped: no direct writes on the file system of the build directory");
            }
        }
    };
    check(std::env::current_exe().unwrap().parent().unwrap(), true);
    match std::path::Path::new("/dev/shm") {
        shm if shm.is_dir() => check(shm, false),
        _ => println!("skipped: no /dev/shm here"),
    }
}

#[test]
fn uploads_refuse_what_cannot_be() {
    let dir = disk();
    let (store, root) = served(&dir);
    std::fs::write(root.join("f"), "f").unwrap();
    let begin = |name: &str, size, make_parents| {
        store.begin(&path(name), NewFile { size, make_parents, ..NewFile::default() }).map(|_| ())
    };
    check_kind(begin("", None, true), ErrorKind::IsDirectory, "root");
    check_kind(begin("f/x", None, true), ErrorKind::NotDirectory, "below a file");
    check_kind(begin("no/x", None, false), ErrorKind::NotFound, "missing directory");
    check_kind(begin("big", Some(1 << 52), true), ErrorKind::NoSpace, "too big for the disk");
    check_kind(begin("big", Some(u64::MAX), true), ErrorKind::Limit, "too big for any");
    let upload = store.begin(&path("x"), NewFile::default()).unwrap();
    upload.write_at(0, b"abc").unwrap();
    check_kind(upload.finish(4, metadata(b"")), ErrorKind::Internal, "fewer bytes than said");
    let upload = store.begin(&path("x"), NewFile::default()).unwrap();
    check_kind(upload.write_at(u64::MAX, b"abc"), ErrorKind::Limit, "past the end of everything");
    check_kind(upload.write_at(0, b"abc"), ErrorKind::Limit, "poisoned");
    check_kind(upload.finish(0, metadata(b"")), ErrorKind::Limit, "poisoned");
    assert_eq!(names(&store, ""), ["f"]);
    assert_eq!(std::fs::read_dir(root.join(".sealift/staging")).unwrap().count(), 0);
}

#[test]
fn bases_are_copied_by_ranges() {
    let dir = disk();
    let (store, _) = served(&dir);
    let old = bytes(3_000_000, 1);
    put(&store, "f", &old, IfExists::Overwrite).unwrap();
    let base = store.open_file(&path("f")).unwrap();
    let upload = store.begin(&path("f"), NewFile::default()).unwrap();
    upload.clone_from(&base).unwrap();
    upload.copy_from(&base, 0..1_500_000).unwrap();
    upload.write_at(1_500_000, &[5; 100]).unwrap();
    upload.copy_from(&base, 1_500_100..3_000_000).unwrap();
    check_kind(upload.copy_from(&base, 2_999_999..3_000_001), ErrorKind::Changed, "past its end");
    let staged = upload.finish(3_000_000, metadata(&old)).unwrap();
    store.publish(vec![staged]).pop().unwrap().unwrap();
    let mut expected = old;
    expected[1_500_000..1_500_100].fill(5);
    assert!(content(&store, "f").unwrap() == expected);
    check_kind(base.check_unchanged(), ErrorKind::Changed, "replaced");
    check_kind(store.sync_existing(&base, &path("f")), ErrorKind::Changed, "replaced");
}

#[test]
fn large_files_read_the_same_past_the_page_cache() {
    let dir = disk();
    let (store, root) = served(&dir);
    let size = (9 << 20) + 511;
    let expected = bytes(size, 5);
    std::fs::write(root.join("f"), &expected).unwrap();
    let pool = crate::buffer::Pool::new(1 << 20);
    let mut buffer = pool.try_lease(1 << 20).unwrap();
    for round in ["cached", "dropped from the cache"] {
        let on_disk = std::fs::File::open(root.join("f")).unwrap();
        on_disk.sync_all().unwrap();
        if round != "cached" {
            rustix::fs::fadvise(&on_disk, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        let file = store.open_file(&path("f")).unwrap();
        for (index, group) in expected.chunks(1 << 20).enumerate() {
            let content = &mut buffer[..group.len()];
            content.fill(0);
            file.read_at((index as u64) << 20, content).unwrap();
            assert!(content == group, "{round}: group {index}");
        }
        // Odd ranges go the ordinary way.
        file.read_at(12_345, &mut buffer[1..700_000]).unwrap();
        assert!(buffer[1..700_000] == expected[12_345..12_345 + 699_999], "{round}");
        check_kind(file.read_at(size as u64 - 10, &mut buffer[..300_000]), ErrorKind::Changed, round);
        file.check_unchanged().unwrap();
    }
}

#[test]
fn directories_are_made_listed_and_removed() {
    let dir = disk();
    let (store, root) = served(&dir);
    assert!(store.make_directory(&path("a/b/c"), Some(0o7077), true).unwrap());
    assert!(!store.make_directory(&path("a/b/c"), Some(0o700), true).unwrap());
    assert!(!store.make_directory(&path(""), None, false).unwrap());
    check_kind(store.make_directory(&path("x/y"), None, false), ErrorKind::NotFound, "no parents");
    assert_eq!(store.stat(&path("a/b/c")).unwrap().mode, 0o775);
    std::fs::write(root.join("f"), "f").unwrap();
    check_kind(store.make_directory(&path("f"), None, true), ErrorKind::NotDirectory, "file");
    check_kind(store.make_directory(&path("f/x"), None, true), ErrorKind::NotDirectory, "below a file");
    // Many names come in pages, can be taken up anywhere, and each comes once.
    use std::os::unix::ffi::OsStrExt as _;
    std::fs::write(root.join("a").join(std::ffi::OsStr::from_bytes(b"\xff\n")), "").unwrap();
    for index in 0..3000 {
        std::fs::write(root.join(format!("a/{index}")), "").unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut cursor = None;
    loop {
        let mut listing = store.list(&path("a"), cursor).unwrap();
        let page: Vec<Entry> = listing.by_ref().take(700).map(Result::unwrap).collect();
        if page.is_empty() {
            break;
        }
        cursor = Some(listing.cursor());
        assert!(page.into_iter().all(|entry| seen.insert(entry.name)), "a name came twice");
    }
    assert_eq!(seen.len(), 3002);
    check_kind(store.remove(&path("a"), false), ErrorKind::NotEmpty, "full");
    let deep = vec!["d"; 200].join("/");
    store.make_directory(&path(&format!("a/{deep}")), None, true).unwrap();
    for index in 0..1500 {
        std::fs::create_dir_all(root.join(format!("a/dir{index}/x"))).unwrap();
    }
    assert_eq!(store.remove(&path("a"), true).unwrap(), 1 + 3002 + 1 + 200 + 3000);
    check_kind(store.remove(&path("a"), true), ErrorKind::NotFound, "gone");
}

#[test]
fn renames_keep_their_promises() {
    use IfExists::{Fail, Overwrite, Rename, Skip};
    let dir = disk();
    let (store, root) = served(&dir);
    put(&store, "d/f", b"1", Overwrite).unwrap();
    put(&store, "g", b"2", Overwrite).unwrap();
    let mv = |from: &str, to: &str, policy| store.rename(&path(from), &path(to), policy);
    check_kind(mv("d", "d/e/d", Overwrite), ErrorKind::Name, "into itself");
    check_kind(mv("", "x", Overwrite), ErrorKind::Rights, "root");
    check_kind(mv("g", "", Overwrite), ErrorKind::Rights, "onto root");
    check_kind(mv("none", "x", Overwrite), ErrorKind::NotFound, "none");
    check_kind(mv("g", "d/f", Fail), ErrorKind::Exists, "taken");
    check_kind(mv("g", "d", Overwrite), ErrorKind::IsDirectory, "directory");
    check_kind(mv("d", "g", Overwrite), ErrorKind::NotDirectory, "directory onto file");
    assert_eq!(mv("g", "d/f", Skip).unwrap().outcome, Outcome::Skipped);
    assert_eq!(mv("g", "d/f", Rename).unwrap().path.to_string(), "d/f (1)");
    assert_eq!(mv("d/f (1)", "d/f", Overwrite).unwrap().outcome, Outcome::Replaced);
    assert_eq!(content(&store, "d/f").unwrap(), b"2");
    assert_eq!(mv("d", "new/er/d", Fail).unwrap().outcome, Outcome::Created);
    assert_eq!(mv("new/er/d", "new/er/d", Fail).unwrap().outcome, Outcome::Skipped);
    assert_eq!(content(&store, "new/er/d/f").unwrap(), b"2");
    // Two names of one file: the old one goes all the same.
    std::fs::hard_link(root.join("new/er/d/f"), root.join("h")).unwrap();
    mv("h", "new/er/d/f", Overwrite).unwrap();
    assert_eq!(names(&store, ""), ["new"]);
}

#[test]
fn numbered_names_stay_within_bounds() {
    for (name, expected) in [
        ("a.txt".to_owned(), "a (7).txt".to_owned()),
        ("a".to_owned(), "a (7)".to_owned()),
        (".rc".to_owned(), ".rc (7)".to_owned()),
        ("a.".to_owned(), "a (7).".to_owned()),
        ("x".repeat(255), format!("{} (7)", "x".repeat(251))),
        (format!("{}.gz", "x".repeat(252)), format!("{} (7).gz", "x".repeat(248))),
        (format!("x{}", "é".repeat(127)), format!("x{} (7)", "é".repeat(125))),
        (format!("x.{}", "y".repeat(253)), format!("x.{} (7)", "y".repeat(249))),
    ] {
        let numbered = publish::numbered(&crate::path::Component::new(name.as_bytes()).unwrap(), 7);
        assert_eq!(numbered.to_string(), expected);
        assert!(numbered.as_bytes().len() <= 255);
    }
}

#[test]
fn staging_follows_what_the_directory_gives_its_files() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = disk();
    let (store, root) = served(&dir);
    std::fs::create_dir(root.join("shared")).unwrap();
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can give a directory another group");
    }
    std::os::unix::fs::chown(root.join("shared"), None, Some(4242)).unwrap();
    std::fs::set_permissions(root.join("shared"), std::fs::Permissions::from_mode(0o2775)).unwrap();
    for size in [0, 10, 5 << 20] {
        put(&store, "shared/sub/f", &bytes(size, 0), IfExists::Overwrite).unwrap();
        assert_eq!(std::fs::metadata(root.join("shared/sub/f")).unwrap().gid(), 4242, "{size}");
        assert_eq!(std::fs::metadata(root.join("shared/sub")).unwrap().mode() & 0o2000, 0o2000);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_not_filled_before_content_comes() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return println!("skipped: there is no /dev/shm");
    };
    let store = Store::open_served(dir.path(), StoreOptions::default()).unwrap();
    let options = NewFile { size: Some(64 << 20), ..NewFile::default() };
    let upload = store.begin(&path("large"), options).unwrap();
    let (mut directories, mut largest) = (vec![dir.path().to_owned()], 0);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let status = entry.metadata().unwrap();
            if status.is_dir() {
                directories.push(entry.path());
            } else {
                largest = largest.max(std::os::unix::fs::MetadataExt::blocks(&status) * 512);
            }
        }
    }
    assert!(largest < 1 << 20, "{largest} bytes are taken, though nothing was written");
    drop(upload);
}

#[test]
fn a_full_disk_is_told_and_harms_nothing_else() {
    let dir = disk();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mount = |arguments: &[&std::ffi::OsStr]| {
        std::process::Command::new("mount").args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let options = ["-t", "tmpfs", "-o", "size=4m", "tmpfs"].map(std::ffi::OsStr::new);
    if !rustix::process::geteuid().is_root() || !mount(&[&options[..], &[root.as_os_str()]].concat()) {
        return println!("skipped: a small file system needs root and mount");
    }
    let mounted = Unmount(root.clone());
    {
        let store = Store::open_served(&root, StoreOptions::default()).unwrap();
        put(&store, "kept", &bytes(100_000, 1), IfExists::Overwrite).unwrap();
        check_kind(put(&store, "big", &bytes(5 << 20, 1), IfExists::Overwrite), ErrorKind::NoSpace, "known size");
        let upload = store.begin(&path("stream"), NewFile::default()).unwrap();
        let block = vec![1; 1 << 20];
        let error = (0..8).find_map(|index| upload.write_at(index << 20, &block).err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.chain());
        assert!(error.chain().contains("needed"), "{}", error.chain());
        check_kind(upload.write_at(0, b"x"), ErrorKind::NoSpace, "poisoned");
        assert_eq!(content(&store, "kept").unwrap(), bytes(100_000, 1));
        drop(upload);
        put(&store, "after", &bytes(2 << 20, 1), IfExists::Overwrite).unwrap();
        store.check().unwrap();
    }
    drop(mounted);

    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }
}

#[test]
fn a_later_download_removes_what_a_dead_one_left() {
    let dir = disk();
    let mut store = Store::open_local(dir.path()).unwrap();
    let hidden = |digit: &str| dir.path().join(format!(".sealift-{}", digit.repeat(32)));
    let names = ["0", "1"].map(hidden);
    let mine = dir.path().join(".sealift-not-a-staging-name");
    for path in names.iter().chain([&mine]) {
        std::fs::write(path, "left").unwrap();
    }
    let held = std::fs::File::open(&names[1]).unwrap();
    held.lock().unwrap();
    put(&store, "young", &bytes(2_000_000, 1), IfExists::Overwrite).unwrap();
    assert!(names.iter().all(|path| path.exists()), "what is young is left alone");
    store = Store::open_local(dir.path()).unwrap();
    core_of(&mut store).leftover_age = Duration::ZERO;
    put(&store, "old", &bytes(2_000_000, 1), IfExists::Overwrite).unwrap();
    assert!(!names[0].exists(), "what a dead process left stays");
    assert!(names[1].exists(), "what somebody writes to was removed");
    assert!(mine.exists(), "a name that is none of ours was removed");
}

#[test]
fn a_store_within_a_directory_shows_nothing_above_it() {
    let dir = disk();
    let store = Store::open_served(&dir.path().join("root"), StoreOptions::default()).unwrap();
    let home = store.within(&path("people/alice"));
    let root = RemotePath::root();
    let message = |error: Error| error.chain();
    assert_eq!(message(home.stat(&root).unwrap_err()), "there is no /");
    assert!(home.make_directory(&root, None, true).is_ok());
    assert_eq!(home.stat(&root).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.make_directory(&path("people/alice"), None, true).unwrap());
    assert_eq!(home.stat(&root).unwrap().kind, Kind::Directory);
    assert_eq!(put(&home, "in/a", b"x", IfExists::Overwrite).unwrap().path, path("in/a"));
    assert_eq!(content(&store, "people/alice/in/a").unwrap(), b"x");
    assert_eq!(content(&home.within(&path("in")), "a").unwrap(), b"x");
    put(&store, "people/alice2", b"not hers", IfExists::Overwrite).unwrap();
    let names: Vec<_> = home.list(&root, None).unwrap().map(|entry| entry.unwrap().name).collect();
    assert_eq!(names, [b"in"]);
    assert_eq!(message(home.open_file(&path("in/b")).unwrap_err()), "there is no in/b");
    assert_eq!(message(home.open_file(&path("people/alice/in/a")).unwrap_err()), "there is no people");
    // A link that stays in the tree, but not in the home.
    let link = home.make_link(&path("in/link"), b"../../alice2", None, IfExists::Fail).unwrap_err();
    assert_eq!(link.kind(), ErrorKind::Link);
    assert_eq!(home.remove(&root, true).unwrap_err().kind(), ErrorKind::Rights);
    assert_eq!(home.rename(&root, &path("x"), IfExists::Fail).unwrap_err().kind(), ErrorKind::Rights);
    // What becomes a link after it was a home is none.
    std::fs::rename(dir.path().join("root/people/alice"), dir.path().join("root/moved")).unwrap();
    std::os::unix::fs::symlink("../moved", dir.path().join("root/people/alice")).unwrap();
    for error in [
        home.open_file(&path("in/a")).map(|_| ()).unwrap_err(),
        put(&home, "in/b", b"x", IfExists::Overwrite).map(|_| ()).unwrap_err(),
        home.list(&root, None).map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Link);
        assert!(!message(error).contains("people"));
    }
    let state = store.within(&path(STATE_NAME));
    assert_eq!(state.list(&root, None).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(state.stat(&path("lock")).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
}

/// The whole tree, to change how it works.
fn core_of(store: &mut Store) -> &mut super::Core {
    Arc::get_mut(&mut Arc::get_mut(&mut store.inner).unwrap().core).unwrap()
}

/// Begins an upload, writes so many groups, and leaves it as one that was cut.
fn leave(store: &Store, name: &str, key: u8, owner: u8, touched: u64) -> PartialKey {
    use crate::hash::{GroupHash, group_offset};
    use crate::limits::GROUP_LEN;
    use crate::transfer::{Ledger, Record};
    let size = 4 * GROUP_LEN as u64;
    let options = NewFile { size: Some(size), make_parents: true, ..NewFile::default() };
    let upload = store.begin_kept(&path(name), options).unwrap();
    let content = bytes(GROUP_LEN, key);
    upload.write_at(group_offset(1), &content).unwrap();
    let mut record = Record {
        generation: 3,
        owner: [owner; 32],
        owner_name: "alice".to_owned(),
        path: path(name),
        begun: touched,
        touched,
        place: upload.place().unwrap(),
        held: Ledger::new(size),
    };
    record.held.insert(1, GroupHash::of(1, &content).value);
    let key = [key; 32];
    upload.sync_content().unwrap();
    store.record_partial(&key, &record, true).unwrap();
    upload.keep(true);
    upload.trim(record.held.end());
    store.rest_partial(&key, &record, upload.disk_size());
    key
}

#[test]
fn unfinished_uploads_are_found_again_and_few_and_not_for_ever() {
    use crate::limits::GROUP_LEN;
    let dir = disk();
    let root = dir.path().join("root");
    let keep_partial = KeepPartial { age: Duration::from_secs(1000), bytes: 1 << 40, count: 12 };
    let options = StoreOptions { keep_partial, ..StoreOptions::default() };
    let open = || Store::open_served(&root, options.clone()).unwrap();
    let store = open();
    let now = now();
    // In a directory whose files belong to its group, staging lies beside the target.
    std::fs::create_dir(root.join("group")).unwrap();
    std::fs::set_permissions(root.join("group"), std::os::unix::fs::PermissionsExt::from_mode(0o2755)).unwrap();
    let keys =
        [leave(&store, "a", 1, 1, now), leave(&store, "group/b", 2, 1, now), leave(&store, "old", 3, 1, now - 900)];
    assert_eq!(store.resting_partials().0, 3);
    assert_eq!(names(&store, ""), ["group"], "they are no files");
    assert!(names(&store, "group").is_empty());
    assert_eq!(std::fs::read_dir(root.join("group")).unwrap().count(), 1);
    drop(store);
    let store = open();
    assert_eq!(store.resting_partials().0, 3);
    assert_eq!(list_partials(&root).unwrap().len(), 3);
    assert_eq!(store.expire_partials(now + 200), 1, "only the old one");
    assert!(store.take_partial(&keys[2]).is_none());
    let taken =
        [(keys[0], "a"), (keys[1], "group/b")].map(|(key, name)| (key, name, store.take_partial(&key).unwrap()));
    assert_eq!(store.expire_partials(now + 5000), 0, "one that is received never goes");
    for (key, name, record) in taken {
        assert_eq!((&record.path, record.generation, record.held.bytes()), (&path(name), 3, GROUP_LEN as u64));
        let options = NewFile { size: Some(record.held.size()), ..NewFile::default() };
        let upload = store.resume(&path(name), options, &record.place, record.held.bytes()).unwrap().unwrap().0;
        upload.reread().unwrap();
        let mut there = vec![0; GROUP_LEN];
        upload.read_at(GROUP_LEN as u64, &mut there).unwrap();
        assert!(there == bytes(GROUP_LEN, key[0]));
        upload.keep(false);
        drop(upload);
        store.forget_partial(&key, &record.place);
    }
    assert_eq!(std::fs::read_dir(root.join(".sealift/partial")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(root.join("group")).unwrap().count(), 0);
    // A quarter of them may be one owner's: those that rested longest go.
    for index in 0..6 {
        leave(&store, &format!("one/{index}"), 10 + index, 1, now + u64::from(index));
        leave(&store, &format!("other/{index}"), 20 + index, 2, now + u64::from(index));
    }
    let left: Vec<String> = list_partials(&root).unwrap().iter().map(|found| found.record.path.to_string()).collect();
    assert_eq!(left, ["one/3", "one/4", "one/5", "other/3", "other/4", "other/5"]);
    let found = &list_partials(&root).unwrap()[0];
    assert!(remove_partial(&root, found).unwrap());
    assert!(!remove_partial(&root, found).unwrap(), "twice");
    assert!(store.take_partial(&[13; 32]).is_none(), "removed by somebody else");
    drop(store);
    let none = StoreOptions { keep_partial: KeepPartial { age: Duration::ZERO, ..keep_partial }, ..options.clone() };
    assert!(!Store::open_served(&root, none).unwrap().keeps_partials());
    assert_eq!(std::fs::read_dir(root.join(".sealift/partial")).unwrap().count(), 0);
}
