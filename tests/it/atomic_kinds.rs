//! What `--atomic` keeps of files beside their content: names that share one, blocks that are shared, and what only the
//! old tree has.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::rig::{Mount, Server, World, content, until};

fn count(server: &crate::rig::Ran, key: &str) -> u64 {
    server.summary()[key].as_u64().unwrap_or_else(|| panic!("{key} in {server:?}"))
}

#[track_caller]
fn sync(server: &Server, source: &Path, target: &str, more: &[&str]) -> crate::rig::Ran {
    let mut arguments: Vec<std::ffi::OsString> = vec!["--atomic".into()];
    arguments.extend(more.iter().map(Into::into));
    arguments.extend([source.as_os_str().to_owned(), target.into()]);
    let ran = server.run("sync", &arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran
}

#[track_caller]
fn assert_one_file(top: &Path, names: &[&str]) {
    let inodes: Vec<u64> = names.iter().map(|name| fs::metadata(top.join(name)).unwrap().ino()).collect();
    assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{names:?} in {}: {inodes:?}", top.display());
}

/// Names of one file at the source are names of one file in what is exchanged, both ways, the first time and when it
/// has changed; and the old tree's names are not among them.
#[test]
fn names_that_share_a_file_share_it_in_the_new_tree() {
    let world = World::new();
    let server = world.serve();
    world.file("tree/a/first", b"shared");
    world.file("tree/b/large", &content(1, 2 << 20));
    world.file("tree/alone", b"shared");
    let here = world.path("tree");
    fs::hard_link(here.join("a/first"), here.join("b/second")).unwrap();
    fs::hard_link(here.join("b/large"), here.join("a/large too")).unwrap();
    let there = world.root().join("www/tree");
    let back = world.path("www/back");
    let check = |top: &Path| {
        assert_one_file(top, &["a/first", "b/second"]);
        assert_one_file(top, &["b/large", "a/large too"]);
        assert_eq!(fs::metadata(top.join("alone")).unwrap().nlink(), 1);
        until("the old tree is gone, and its names", || {
            (fs::metadata(top.join("a/first")).unwrap().nlink() == 2).then_some(())
        });
        for name in ["a/first", "b/large", "alone"] {
            assert!(fs::read(top.join(name)).unwrap() == fs::read(here.join(name)).unwrap(), "{name}");
        }
    };
    for round in 0..3 {
        match round {
            0 => {}
            // In place, so that both names of it have other content.
            1 => fs::write(here.join("a/first"), "other content of both").unwrap(),
            // Another mode: the file that the old tree shares with the new one must not get it.
            _ => fs::set_permissions(here.join("b/large"), fs::Permissions::from_mode(0o600)).unwrap(),
        }
        let old = fs::File::open(there.join("b/large")).ok();
        let before = old.as_ref().map(|old| old.metadata().unwrap().mode());
        let up = sync(&server, &here, &server.at("www/tree"), &[]);
        assert_eq!(count(&up, "linked"), [2, 1, 1][round], "round {round}: {up:?}");
        assert!(round != 2 || count(&up, "bytes_moved") == 0, "{up:?}");
        check(&there);
        assert_eq!(old.map(|old| old.metadata().unwrap().mode()), before, "the old file keeps its mode");
        let down = server.run("sync", ["--atomic".as_ref(), server.at("www/tree").as_ref(), back.as_os_str()]);
        assert_eq!(down.code, 0, "{down:?}");
        check(&back);
    }
}

/// Without `--delete` the new tree has what only the old one had; with it, it has not.
#[test]
fn what_only_the_old_tree_has_stays_unless_it_is_to_go() {
    let world = World::new();
    let server = world.serve();
    world.file("tree/new", b"new");
    world.file("root/www/tree/old/kept", b"kept");
    let here = world.path("tree");
    let there = world.root().join("www/tree");
    sync(&server, &here, &server.at("www/tree"), &[]);
    assert!(there.join("new").exists() && fs::read(there.join("old/kept")).unwrap() == b"kept");
    world.file("back/mine", b"mine");
    let back = world.path("back");
    let down = server.run("sync", ["--atomic".as_ref(), server.at("www/tree").as_ref(), back.as_os_str()]);
    assert_eq!(down.code, 0, "{down:?}");
    assert!(back.join("old/kept").exists() && fs::read(back.join("mine")).unwrap() == b"mine");
    let ran = sync(&server, &here, &server.at("www/tree"), &["--delete"]);
    assert_eq!(count(&ran, "removed"), 2, "{ran:?}");
    assert!(there.join("new").exists() && !there.join("old").exists());
}

/// Where files can share blocks, what has the same content and other metadata takes none: it is no second name of the
/// old file, which keeps its own.
#[test]
fn what_differs_in_metadata_alone_shares_its_blocks() {
    let world = World::new();
    let Some(_mount) = Mount::xfs(&world.root(), &world.path("image")) else { return };
    let server = world.serve();
    const LEN: usize = 60 << 20;
    world.file("tree/large", &content(2, LEN));
    world.file("tree/same", &content(3, 1 << 20));
    let here = world.path("tree");
    sync(&server, &here, &server.at("site"), &[]);
    let there = world.root().join("site");
    let free = || {
        rustix::fs::sync();
        let stat = rustix::fs::statvfs(world.root()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let inode = |name: &str| fs::metadata(there.join(name)).unwrap().ino();
    let (before, inodes) = (free(), [inode("large"), inode("same")]);
    // Held open, so that nothing of the old one is given back.
    let old = fs::File::open(there.join("large")).unwrap();
    fs::set_permissions(here.join("large"), fs::Permissions::from_mode(0o600)).unwrap();
    let ran = sync(&server, &here, &server.at("site"), &[]);
    assert_eq!(count(&ran, "bytes_moved"), 0, "{ran:?}");
    assert_eq!(fs::metadata(there.join("large")).unwrap().mode() & 0o777, 0o600);
    assert_ne!(inode("large"), inodes[0], "a file of its own");
    assert_eq!(inode("same"), inodes[1], "what is the same in all is the same file");
    assert!(old.metadata().unwrap().mode() & 0o777 != 0o600, "the old one keeps its mode");
    let taken = before.saturating_sub(free());
    assert!(taken < LEN as u64 / 4, "{taken} bytes were taken for a mode");
    assert!(fs::read(there.join("large")).unwrap() == content(2, LEN));
    // XFS takes the exchange for a change of both directories: the time is the source's all the same.
    let mtime = |top: &Path| (fs::metadata(top).unwrap().mtime(), fs::metadata(top).unwrap().mtime_nsec());
    assert_eq!(mtime(&there), mtime(&here));
    let again = sync(&server, &here, &server.at("site"), &[]);
    assert_eq!((count(&again, "stored"), count(&again, "directories")), (0, 0), "{again:?}");
}
