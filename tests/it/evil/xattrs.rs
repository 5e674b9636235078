//! Servers that lie in extended attributes, and one that does not know of them.

use std::fs;

use sealift::protocol::*;

use super::server::*;
use crate::kit::text;
use crate::xattrs::{raw, raw_field, wrong};

fn knows() -> ServerHello {
    ServerHello { xattrs: Some(true), ..hello() }
}

/// Runs the client in a folder of its own and returns its exit code, what it said, and what it left there.
fn run(evil: &Evil, arguments: &[&str]) -> (i32, String, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tree")).unwrap();
    fs::write(folder.path().join("tree/f"), "here").unwrap();
    let mut command = crate::kit::program();
    command.env("SEALIFT_CERTS", crate::kit::client_certificates()).current_dir(folder.path());
    command.args(arguments.iter().map(|argument| match argument.strip_prefix('@') {
        Some(path) => evil.url(path),
        None => (*argument).to_owned(),
    }));
    let output = command.output().unwrap();
    let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left = names.filter(|name| name != "tree").collect();
    (output.status.code().unwrap_or(-1), text(&output), left)
}

/// Whatever is wrong with a set, the file that should have it is not saved, and the connection ends.
#[test]
fn attributes_that_no_file_may_have_end_the_connection() {
    for (what, pairs) in wrong() {
        for unasked_max in [u64::MAX, 0] {
            let pairs = pairs.clone();
            let evil = Evil::start_with(knows(), Tree::default(), move |request| {
                let get = request.is::<Get>()?;
                assert_eq!(get.xattrs, Some(true));
                let unasked = EVIL.len() as u64 <= get.unasked_max.min(unasked_max);
                let answer = get_answer(&file("f"), EVIL.len() as u64, unasked);
                let mut said = vec![Say::Bytes(raw(request.transfer, &answer, &pairs))];
                if unasked {
                    said.extend([content(request.transfer, 0, EVIL), say(request.transfer, &finish(EVIL))]);
                }
                Some(said)
            });
            let (code, said, left) = run(&evil, &["get", "--xattrs", "@f", "got"]);
            assert!(code == 3 && said.contains("a malformed GetAnswer message"), "{what}: {code} {said}");
            assert_eq!(left, Vec::<String>::new(), "{what}");
        }
        // Of a directory.
        let tree = Tree::default().with("", [directory("d")]).with("d", []);
        let evil = Evil::start_with(knows(), tree, move |request| {
            let stat = request.is::<Stat>().filter(|stat| stat.xattrs == Some(true))?;
            let entry =
                Entry { name: stat.path.name().map_or(Vec::new(), |name| name.as_bytes().to_vec()), ..directory("") };
            Some(vec![Say::Bytes(raw_field(request.transfer, &entry, 17, &pairs))])
        });
        let (code, said, _) = run(&evil, &["get", "--xattrs", "@d", "got"]);
        assert!(code == 3 && said.contains("a malformed Entry message"), "{what}: {code} {said}");
    }
}

/// What was asked for and is not told is no empty set.
#[test]
fn attributes_that_are_not_told_are_not_taken_for_none() {
    let tree = Tree::default().with("", [directory("d"), file("f")]).with("d", [file("g")]);
    let evil = Evil::start_with(knows(), tree, |_| None);
    for arguments in
        [&["get", "--xattrs", "@f", "got"], &["get", "--xattrs", "@d", "got"], &["sync", "--xattrs", "@d", "got"]]
    {
        let (code, said, left) = run(&evil, arguments);
        assert!(code == 3 || code == 1, "{arguments:?}: {code} {said}");
        assert!(!said.contains("stored"), "{arguments:?}: {said}");
        assert!(left.iter().all(|name| name != "got" || arguments[2] == "@d"), "{arguments:?}: {left:?}");
    }
}

/// A listing has what attributes are known by, and never themselves: they would count against no bound.
#[test]
fn a_listing_with_attributes_in_it_is_refused() {
    let evil = Evil::start_with(knows(), Tree::default().with("", [directory("d")]), |request| {
        request.is::<ListDirectory>()?;
        let xattrs = sealift::xattrs::Xattrs::new(vec![(b"user.a".to_vec(), vec![0; 30_000])]).unwrap();
        let entry = Entry { xattrs: Some(Box::new(xattrs)), ..file("f") };
        Some(vec![say(request.transfer, &Entries { entries: List(vec![entry]) })])
    });
    let (code, said) = {
        let (code, said, _) = run(&evil, &["ls", "@d"]);
        (code, said)
    };
    assert!(code == 3 && said.contains("an unexpected Entries message"), "{code} {said}");
}

/// A server that does not know of them would skip the fields: it is left before anything is asked of it.
#[test]
fn an_older_server_is_told_so_before_anything_moves() {
    let tree = Tree::default().with("", [file("f")]).with("d", [directory("tree"), file("f")]).with("d/tree", []);
    let evil = Evil::with(tree);
    for arguments in [
        &["put", "--xattrs", "tree", "@d/"],
        &["put", "--xattrs", "tree/f", "@d/"],
        &["put", "--xattrs", "-n", "tree", "@d/"][..],
        &["get", "--xattrs", "@f", "got"],
        &["get", "--xattrs", "@d", "got"],
        &["sync", "--xattrs", "tree", "@d"],
        &["sync", "--xattrs", "@d", "got"],
    ][..]
        .iter()
        .map(|arguments| &arguments[..])
    {
        let (code, said, left) = run(&evil, arguments);
        assert_eq!(code, 1, "{arguments:?}: {said}");
        assert!(said.contains("does not move extended attributes (--xattrs): it is too old for that"), "{said}");
        assert!(left.is_empty(), "{arguments:?}: {left:?}");
    }
    for kind in [Kind::Put, Kind::Get, Kind::MakeDirectory, Kind::SetDirectory, Kind::List] {
        assert_eq!(evil.count(kind), 0, "{kind:?}");
    }
}
