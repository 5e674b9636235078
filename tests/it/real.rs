//! A tree as people have it, up and down again: the toolchain that these tests are built with, or a part of it.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{World, content, has, long, tree};

/// The toolchain's directory, if there is one.
fn sysroot() -> Option<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_dir().then_some(path)
}

fn copy_some(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, seen) in tree(from) {
        match seen.kind {
            crate::rig::What::Directory => fs::create_dir_all(to.join(name)).unwrap(),
            crate::rig::What::Link(target) => symlink(target, to.join(name)).unwrap(),
            crate::rig::What::File { .. } => drop(fs::copy(from.join(&name), to.join(&name)).unwrap()),
        }
    }
}

#[track_caller]
fn there_and_back(world: &World, source: &Path) {
    let server = world.serve();
    let up = server.put(source, "tree");
    let down = world.path("down");
    server.get("tree", &down);
    let expected = tree(source);
    let files = expected.values().filter(|seen| matches!(seen.kind, crate::rig::What::File { .. })).count();
    println!("{} names, {files} files", expected.len());
    for there in [&world.root().join("tree"), &down] {
        let found = tree(there);
        for (name, seen) in &expected {
            assert_eq!(found.get(name), Some(seen), "{} in {}", name.display(), there.display());
        }
        assert_eq!(found.len(), expected.len());
        if has("diff", &["--version"], "trees are compared by what lstat says only") {
            let diff = Command::new("diff").args(["-r", "--no-dereference"]).arg(source).arg(there).output().unwrap();
            assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
        }
    }
    let links = expected.values().filter(|seen| matches!(seen.kind, crate::rig::What::Link(_))).count() as u64;
    assert_eq!(up.summary()["stored"].as_u64().unwrap(), files as u64 + links, "{:?}", up.summary());
    assert_eq!(up.summary()["failed"], 0);
    // Once more: all of it is there, and none of it is sent.
    let again = server.put(source, "tree");
    assert_eq!(again.summary()["stored"], 0, "{:?}", again.summary());
    assert_eq!(again.summary()["unchanged"].as_u64().unwrap(), files as u64 + links, "{:?}", again.summary());
}

#[test]
fn the_toolchain_goes_up_and_down() {
    let Some(sysroot) = sysroot() else {
        println!("skipped: there is no toolchain here");
        return;
    };
    let world = World::new();
    if long("the whole toolchain up and down") {
        there_and_back(&world, &sysroot);
        return;
    }
    // What is small of it, and what a toolchain lacks: links, empty directories, modes.
    let source = world.path("source");
    for part in ["etc", "libexec", "lib/rustlib/etc", "share/man", "share/zsh"] {
        if sysroot.join(part).is_dir() {
            copy_some(&sysroot.join(part), &source.join(part));
        }
    }
    for index in 0..600 {
        world.file(
            &format!("source/many/{}/{index}.html", index % 7),
            &content(index, 50 + 37 * usize::try_from(index).unwrap()),
        );
    }
    fs::create_dir_all(source.join("empty/deep")).unwrap();
    symlink("many/0", source.join("link")).unwrap();
    symlink("../nowhere", source.join("empty/dangling")).unwrap();
    there_and_back(&world, &source);
}

#[test]
fn hashes_are_those_of_b3sum() {
    if !has("b3sum", &["--version"], "hashes are not compared with those of b3sum") {
        return;
    }
    let world = World::new();
    let server = world.serve();
    let names = ["plain", "with space", "back\\slash", "-dash", "ünïcode"];
    let mut remotes = Vec::new();
    for (index, name) in names.iter().enumerate() {
        world.file(
            &format!("source/{name}"),
            &content(index as u64, [0, 1, 1024 * 1024, 1024 * 1024 + 1, 3_333_333][index]),
        );
        remotes.push(server.at(&format!("source/{name}")));
    }
    server.put(&world.path("source"), "");
    let theirs = Command::new("b3sum").arg("--").args(names).current_dir(world.root().join("source")).output().unwrap();
    let theirs = String::from_utf8(theirs.stdout).unwrap();
    let ours = server.client(&["hash"]).args(&remotes).output().unwrap();
    assert!(ours.status.success(), "{ours:?}");
    let hash = |line: &str| line.trim_start_matches('\\').split(' ').next().unwrap().to_owned();
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (String::from_utf8(ours.stdout).unwrap().lines().map(hash).collect(), theirs.lines().map(hash).collect());
    assert_eq!(ours, theirs);
}

#[test]
fn a_file_of_five_gibibytes() {
    if !long("a file of 5 GiB") {
        return;
    }
    let world = World::new();
    let server = world.serve();
    let source = world.path("sparse");
    let file = fs::File::create(&source).unwrap();
    file.set_len(5 << 30).unwrap();
    for (index, at) in [0, 1 << 31, (1 << 32) - 7, (5 << 30) - 4096].into_iter().enumerate() {
        file.write_all_at(&content(index as u64, 4096), at).unwrap();
    }
    let up = server.put(&source, "x");
    let down = world.path("down");
    server.get("x", &down);
    let same = Command::new("cmp").arg(&source).arg(&down).status().unwrap();
    assert!(same.success());
    assert_eq!(fs::metadata(world.root().join("x")).unwrap().len(), 5 << 30);
    if has("b3sum", &["--version"], "the hash is not compared with that of b3sum") {
        let theirs = Command::new("b3sum").arg("--no-names").arg(&source).output().unwrap();
        assert_eq!(up.done_files()[0].1, String::from_utf8(theirs.stdout).unwrap().trim());
    }
}
