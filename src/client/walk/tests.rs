use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn item(path: &Path, target: &str) -> PutItem {
    PutItem { source: PutSource::Local(path.to_path_buf()), target: RemotePath::parse(target.as_bytes()).unwrap() }
}

/// One line for each thing found, sorted where the order of the disk decides.
fn lines(root: &Path, items: Vec<PutItem>) -> Vec<String> {
    let below = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
    let mut lines: Vec<String> = Walk::new(items)
        .map(|found| match found {
            Found::Directory { target, .. } => format!("dir {target}"),
            Found::DirectoryEnd { target, .. } => format!("end {target}"),
            Found::File { target, version, .. } => format!("file {target} {}", version.size),
            Found::Link { target, points_to, .. } => format!("link {target} -> {}", Escaped(&points_to)),
            Found::Known { target, .. } => format!("known {target}"),
            Found::LeftOut { rule } => format!("out {rule}"),
            Found::Stream { target } => format!("stream {target}"),
            Found::Skipped { path, why } => format!("skip {}: {why}", below(&path)),
            Found::Failed { path, error } => format!("fail {}: {:?}", below(&path), error.kind()),
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_tree_is_found_whole() {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("tree");
    fs::create_dir_all(tree.join("sub/deep")).unwrap();
    fs::write(tree.join(".hidden"), "12").unwrap();
    fs::write(tree.join("sub/x"), "123").unwrap();
    fs::write(tree.join("sub/deep/y"), "").unwrap();
    symlink("../x", tree.join("sub/deep/inside")).unwrap();
    symlink("nowhere", tree.join("dangling")).unwrap();
    symlink("../tree/.hidden", tree.join("outside")).unwrap();
    symlink("/etc/passwd", tree.join("absolute")).unwrap();
    symlink("sub", tree.join("to-directory")).unwrap();
    rustix::fs::mknodat(CWD, tree.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    assert_eq!(
        lines(root.path(), vec![item(&tree, "in/t")]),
        [
            "dir in/t",
            "dir in/t/sub",
            "dir in/t/sub/deep",
            "end in/t",
            "end in/t/sub",
            "end in/t/sub/deep",
            "file in/t/.hidden 2",
            "file in/t/sub/deep/y 0",
            "file in/t/sub/x 3",
            "link in/t/dangling -> nowhere",
            "link in/t/sub/deep/inside -> ../x",
            "link in/t/to-directory -> sub",
            "skip tree/absolute: a link to an absolute path",
            "skip tree/outside: a link that leads out of the tree",
            "skip tree/pipe: a named pipe",
            "skip tree/socket: a socket",
        ]
    );
}

#[test]
fn a_directory_comes_before_its_contents_and_again_after() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("t/a/b")).unwrap();
    fs::write(root.path().join("t/a/b/x"), "x").unwrap();
    fs::set_permissions(root.path().join("t/a"), fs::Permissions::from_mode(0o4750)).unwrap();
    let mut open = Vec::new();
    for found in Walk::new(vec![item(&root.path().join("t"), "t")]) {
        match found {
            Found::Directory { target, attributes, .. } => {
                if target.to_string() == "t/a" {
                    // Whoever sends it leaves out what was not asked for.
                    assert_eq!(attributes.mode, 0o4750);
                }
                open.push(target);
            }
            Found::DirectoryEnd { target, .. } => assert_eq!(open.pop(), Some(target)),
            Found::File { target, .. } => assert!(target.starts_with(open.last().unwrap())),
            other => panic!("{other:?}"),
        }
    }
    assert!(open.is_empty());
}

#[test]
fn nothing_is_walked_before_it_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), "a").unwrap();
    fs::create_dir(root.path().join("d")).unwrap();
    let mut walk = Walk::new(vec![item(&root.path().join("a"), "a"), item(&root.path().join("d"), "d")]);
    assert!(matches!(walk.next(), Some(Found::File { .. })));
    fs::write(root.path().join("d/late"), "late").unwrap();
    assert!(matches!(walk.next(), Some(Found::Directory { .. })));
    assert!(matches!(walk.next(), Some(Found::File { .. })));
}

#[test]
fn named_sources() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::create_dir(path("d")).unwrap();
    fs::write(path("d/x"), "1").unwrap();
    symlink("d", path("link")).unwrap();
    symlink("d/x", path("filelink")).unwrap();
    symlink("gone", path("dangling")).unwrap();
    rustix::fs::mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let stream = PutItem { source: PutSource::Stream, target: RemotePath::parse(b"s").unwrap() };
    let named = ["link", "filelink", "dangling", "pipe", "missing"];
    let items = named.iter().map(|name| item(&path(name), name)).chain([stream]).collect();
    assert_eq!(
        lines(root.path(), items),
        [
            "dir link",
            "end link",
            "fail dangling: NotFound",
            "fail missing: NotFound",
            "fail pipe: Special",
            "file filelink 1",
            "file link/x 1",
            "stream s",
        ]
    );
}

#[test]
fn what_cannot_be_named_fails_alone() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("t/sub")).unwrap();
    fs::write(root.path().join("t/sub/x"), "1").unwrap();
    fs::write(root.path().join("t/y"), "1").unwrap();
    let deep = vec!["d"; limits::PATH_DEPTH_MAX - 1].join("/");
    let found = lines(root.path(), vec![item(&root.path().join("t"), &deep)]);
    assert!(found.contains(&format!("file {deep}/y 1")), "{found:?}");
    assert!(found.contains(&"fail t/sub/x: Name".to_owned()), "{found:?}");
    assert!(found.contains(&format!("end {deep}")), "{found:?}");
}

#[test]
fn what_cannot_be_read_fails_alone() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("t/closed")).unwrap();
    fs::write(root.path().join("t/y"), "1").unwrap();
    fs::set_permissions(root.path().join("t/closed"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(root.path().join("t/closed")).is_ok() {
        // Root reads everything; there is nothing to see here then.
        return;
    }
    assert_eq!(
        lines(root.path(), vec![item(&root.path().join("t"), "t")]),
        ["dir t", "end t", "fail t/closed: Io", "file t/y 1"]
    );
}

fn sources(root: &Path) -> Vec<(String, Source, SourceVersion)> {
    Walk::new(vec![item(root, "t")])
        .filter_map(|found| match found {
            Found::File { target, source, version, .. } => Some((target.to_string(), source, version)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_file_that_became_a_link_is_not_opened() {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("t");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::create_dir(root.path().join("other")).unwrap();
    for file in ["t/x", "t/sub/y", "t/sub/z", "other/y", "other/z"] {
        fs::write(root.path().join(file), file).unwrap();
    }
    let found = sources(&tree);
    assert_eq!(found.len(), 3);
    fs::remove_file(tree.join("x")).unwrap();
    symlink("../other/y", tree.join("x")).unwrap();
    fs::rename(tree.join("sub"), root.path().join("moved")).unwrap();
    symlink("../other", tree.join("sub")).unwrap();
    for (name, source, version) in &found {
        let kind = source.open().unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Link | ErrorKind::NotDirectory), "{name}: {kind:?}");
        assert!(source.remove(version, false).is_err(), "{name}");
    }
    assert!(root.path().join("other/y").exists());
}

#[test]
fn a_file_that_became_a_pipe_does_not_block() {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("t");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("x"), "x").unwrap();
    let (_, source, _) = sources(&tree).pop().unwrap();
    fs::remove_file(tree.join("x")).unwrap();
    rustix::fs::mknodat(CWD, tree.join("x"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(source.open().unwrap_err().kind(), ErrorKind::Special);
}

#[test]
fn changes_are_seen() {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("t");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/x"), "old").unwrap();
    let (_, source, version) = sources(&tree).pop().unwrap();
    let open = source.open().unwrap();
    assert_eq!(open.version, version);
    assert_eq!(std::io::read_to_string(&open.file).unwrap(), "old");
    open.check_unchanged().unwrap();
    fs::write(tree.join("sub/x"), "newer").unwrap();
    assert_eq!(open.check_unchanged().unwrap_err().kind(), ErrorKind::Changed);
    assert_eq!(source.remove(&version, false).unwrap_err().kind(), ErrorKind::Changed);
    let fresh = source.open().unwrap().version;
    source.remove(&fresh, false).unwrap();
    assert!(!tree.join("sub/x").exists());
}

#[test]
fn a_named_file_can_be_removed_and_a_named_link_not() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x");
    fs::write(&file, "x").unwrap();
    symlink("x", root.path().join("link")).unwrap();
    let source = Source::named(root.path().join("link"));
    let open = source.open().unwrap();
    assert_eq!(source.remove(&open.version, false).unwrap_err().kind(), ErrorKind::Link);
    Source::named(file.clone()).remove(&open.version, false).unwrap();
    assert!(!file.exists());
}

#[test]
fn descriptors_do_not_grow_with_the_tree() {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("t");
    for directory in 0..200 {
        fs::create_dir_all(tree.join(directory.to_string())).unwrap();
        fs::write(tree.join(format!("{directory}/x")), "x").unwrap();
    }
    let found = sources(&tree);
    let handles: std::collections::HashSet<*const Tree> =
        found.iter().map(|(_, source, _)| Arc::as_ptr(source.tree.as_ref().unwrap())).collect();
    assert_eq!((found.len(), handles.len()), (200, 1));
}

#[test]
fn both_ways_of_opening_refuse_links() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("a/b")).unwrap();
    fs::write(root.path().join("a/b/x"), "x").unwrap();
    symlink("b", root.path().join("a/l")).unwrap();
    let handle = rustix::fs::open(root.path(), OPEN_DIRECTORY, Mode::empty()).unwrap();
    assert!(open_beneath(&handle, Path::new("a/b/x"), OPEN_FILE).is_ok());
    assert!(open_by_steps(&handle, Path::new("a/b/x"), OPEN_FILE).is_ok());
    assert!(open_beneath(&handle, Path::new("a/l/x"), OPEN_FILE).is_err());
    assert!(open_by_steps(&handle, Path::new("a/l/x"), OPEN_FILE).is_err());
    assert!(open_by_steps(&handle, Path::new("a/l"), OPEN_FILE).is_err());
}
