//! Names that no path may have, and names that lead to what is not a client's, on every verb (N01, N03, N04, N09 to N11).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use minicbor::Encoder;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use sealift::ErrorKind;
use sealift::protocol::{self, Done, Entries, Header, IfExists, Kind, ListDirectory, Message as _};

use super::peer::{Peer, World, finish};

/// A path as bytes that nobody has checked.
type Raw = Vec<Vec<u8>>;

/// Everything that a client can do to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Put,
    PutSmall,
    Get,
    Stat,
    List,
    Hash,
    MakeDirectory,
    MakeLink,
    SetDirectory,
    Remove,
    RenameFrom,
    RenameTo,
}

use Verb::*;

const VERBS: [Verb; 12] =
    [Put, PutSmall, Get, Stat, List, Hash, MakeDirectory, MakeLink, SetDirectory, Remove, RenameFrom, RenameTo];

impl Verb {
    /// Whether it gives something this name, or changes what has it.
    fn makes_a_name(self) -> bool {
        matches!(self, Put | PutSmall | MakeDirectory | MakeLink | SetDirectory | RenameTo)
    }
}

fn write_path(e: &mut Encoder<Vec<u8>>, path: &Raw) {
    e.array(path.len() as u64).unwrap();
    path.iter().for_each(|part| {
        e.bytes(part).unwrap();
    });
}

/// The frames that do this to this name, encoded by hand.
fn frames(verb: Verb, transfer: u32, path: &Raw) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    let field = |e: &mut Encoder<Vec<u8>>, number: u8| {
        e.u8(number).unwrap();
    };
    let kind = match verb {
        Put | PutSmall => {
            let mut id = [0; 16];
            getrandom::fill(&mut id).unwrap();
            e.map(6).unwrap().u8(0).unwrap();
            write_path(&mut e, path);
            e.u8(1).unwrap().u8(0).unwrap().u8(4).unwrap().bytes(&id).unwrap();
            e.u8(5).unwrap().u8(0).unwrap().u8(6).unwrap().bool(verb == PutSmall).unwrap();
            e.u8(7).unwrap().bool(false).unwrap();
            Kind::Put
        }
        Get => {
            e.map(2).unwrap().u8(0).unwrap();
            write_path(&mut e, path);
            e.u8(1).unwrap().u32(1000).unwrap();
            Kind::Get
        }
        Stat | List | Hash | MakeDirectory => {
            e.map(1).unwrap().u8(0).unwrap();
            write_path(&mut e, path);
            match verb {
                Stat => Kind::Stat,
                List => Kind::List,
                Hash => Kind::Hash,
                _ => Kind::MakeDirectory,
            }
        }
        MakeLink => {
            e.map(3).unwrap().u8(0).unwrap();
            write_path(&mut e, path);
            e.u8(1).unwrap().bytes(b"there").unwrap().u8(3).unwrap().u8(0).unwrap();
            Kind::MakeLink
        }
        SetDirectory => {
            e.map(3).unwrap().u8(0).unwrap();
            write_path(&mut e, path);
            e.u8(1).unwrap().u32(0o777).unwrap().u8(2).unwrap().array(2).unwrap().u8(1).unwrap().u8(1).unwrap();
            Kind::SetDirectory
        }
        Remove => {
            e.map(2).unwrap().u8(0).unwrap();
            write_path(&mut e, path);
            e.u8(1).unwrap().bool(true).unwrap();
            Kind::Remove
        }
        RenameFrom | RenameTo => {
            let other = vec![b"there".to_vec()];
            let (from, to) = if verb == RenameFrom { (path, &vec![b"new".to_vec()]) } else { (&other, path) };
            e.map(4).unwrap().u8(0).unwrap();
            write_path(&mut e, from);
            field(&mut e, 1);
            write_path(&mut e, to);
            e.u8(2).unwrap().u8(0).unwrap().u8(3).unwrap().bytes(&[7; 16]).unwrap();
            Kind::Rename
        }
    };
    let payload = e.into_writer();
    let mut bytes = Header::new(kind, transfer, payload.len()).encode().to_vec();
    bytes.extend_from_slice(&payload);
    if verb == PutSmall {
        bytes.extend(finish(b"").to_frame(transfer));
    }
    bytes
}

/// Does it, up to its end; `Err` for a refusal.
async fn act(peer: &mut Peer, verb: Verb, path: &Raw) -> Result<Kind, ErrorKind> {
    let transfer = peer.number();
    peer.bytes(&frames(verb, transfer, path)).await;
    let (kind, _) = peer.answer(transfer).await?;
    if kind == Kind::PutAnswer {
        peer.send(transfer, &finish(b"")).await;
        return Ok(peer.answer(transfer).await?.0);
    }
    Ok(kind)
}

fn raw(parts: &[&[u8]]) -> Raw {
    parts.iter().map(|part| part.to_vec()).collect()
}

/// Everything below a directory: kind, mode, inode, time, content or target. State is looked at like the rest.
fn snapshot(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let status = std::fs::symlink_metadata(&path).unwrap();
            let inside = if status.is_dir() {
                directories.push(path.clone());
                Vec::new()
            } else {
                std::fs::read_link(&path)
                    .map(|target| target.to_str().unwrap().into())
                    .or_else(|_| std::fs::read(&path))
                    .unwrap()
            };
            // What is staged and removed again changes the time of its directory.
            let mtime = if status.is_dir() { 0 } else { status.mtime_nsec() };
            let facts = format!("{:o} {} {mtime} {inside:?}", status.mode(), status.ino());
            found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), facts);
        }
    }
    found
}

fn plant(world: &World) {
    std::fs::write(world.root().join("there"), b"there").unwrap();
    std::fs::create_dir(world.root().join("directory")).unwrap();
    std::fs::write(world.root().join("directory/inside"), b"inside").unwrap();
}

const PLANTED: [(&str, &[u8]); 2] = [("there", b"there"), ("directory/inside", b"inside")];

/// Mixes of parts of which one at least is no name.
fn impossible() -> Vec<Raw> {
    let part = prop_oneof![Just(b"directory".to_vec()), Just(b"there".to_vec()), vec(1..=0x2e_u8, 1..4)];
    let bad = prop_oneof![
        Just(b"..".to_vec()),
        Just(b".".to_vec()),
        Just(Vec::new()),
        Just(b"/".to_vec()),
        Just(b"//".to_vec()),
        Just(b"a/b".to_vec()),
        Just(b"../../canaries/deep/file".to_vec()),
        Just(b"/etc/passwd".to_vec()),
        Just(b"\0".to_vec()),
        Just(b"there\0.txt".to_vec()),
        Just(vec![b'x'; 256]),
        (vec(any::<u8>(), 0..5), vec(any::<u8>(), 0..5)).prop_map(|(a, b)| [&a[..], b"/", &b[..]].concat()),
        (vec(any::<u8>(), 0..5), vec(any::<u8>(), 0..5)).prop_map(|(a, b)| [&a[..], b"\0", &b[..]].concat()),
    ];
    let mix = (vec(part.clone(), 0..3), bad, vec(part, 0..3))
        .prop_map(|(before, bad, after)| [before, vec![bad], after].concat());
    let mut runner = TestRunner::deterministic();
    let mut found: Vec<Raw> = (0..40).map(|_| mix.new_tree(&mut runner).unwrap().current()).collect();
    found.push(raw(&[&[b'x'; 256]]));
    found.push(vec![b"d".to_vec(); 257]);
    found.push(vec![vec![b'x'; 255]; 17]);
    found.push(raw(&[b"..", b"root-old", b"file"]));
    found.push(raw(&[b"directory", b"..", b"..", b"link"]));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_name_ends_the_connection_on_every_verb() {
    let world = World::new().await;
    plant(&world);
    let before = snapshot(&world.root());
    for path in impossible() {
        for verb in VERBS {
            let mut peer = world.greeted().await;
            peer.bytes(&frames(verb, 1, &path)).await;
            peer.refused(format_args!("{verb:?} {path:?}")).await;
        }
    }
    assert_eq!(snapshot(&world.root()), before);
    world.check(&PLANTED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_state_does_not_exist_for_anyone() {
    let world = World::new().await;
    plant(&world);
    symlink(".sealift", world.root().join("way")).unwrap();
    symlink(".sealift/lock", world.root().join("lock")).unwrap();
    let hidden = [&b".sealift-"[..], &[b'0'; 32]].concat();
    let before = snapshot(&world.root());
    let mut peer = world.greeted().await;
    for path in [
        raw(&[b".sealift"]),
        raw(&[b".sealift", b"lock"]),
        raw(&[b".sealift", b"staging"]),
        raw(&[b".sealift", b"staging", b"x"]),
        raw(&[b".sealift", b"new"]),
        raw(&[b".sealift", b"new", b"deep", b"er"]),
        raw(&[&hidden]),
        raw(&[b"directory", &hidden]),
        raw(&[b"way", b"lock"]),
        raw(&[b"way", b"staging", b"x"]),
        raw(&[b"way", b"new"]),
    ] {
        for verb in VERBS {
            let refused = act(&mut peer, verb, &path).await;
            let what = format!("{verb:?} {path:?}: {refused:?}");
            let kind = refused.expect_err(&what);
            let typed = [
                ErrorKind::NotFound,
                ErrorKind::Name,
                ErrorKind::Rights,
                ErrorKind::Link,
                ErrorKind::NotDirectory,
                ErrorKind::IsDirectory,
            ];
            assert!(typed.contains(&kind), "{what}");
            assert_eq!(snapshot(&world.root()), before, "{what}");
        }
    }
    // Nor does a listing show it.
    let transfer = peer.number();
    peer.send(
        transfer,
        &ListDirectory { path: super::peer::path(""), after: None, count_max: None, xattrs: None, directory: None },
    )
    .await;
    let (_, payload) = peer.answer(transfer).await.unwrap();
    let names: Vec<_> =
        Entries::from_payload(&payload).unwrap().entries.0.into_iter().map(|entry| entry.name).collect();
    assert!(names.iter().all(|name| !name.starts_with(b".sealift")), "{names:?}");
    drop(peer);
    world.check(&PLANTED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_from_any_place_without_harm() {
    let world = World::new().await;
    plant(&world);
    let before = snapshot(&world.root());
    let mut peer = world.greeted().await;
    let mut places = vec![None];
    // The places that the server gives, one after the other, lead to the end, and each name comes once.
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let (names, next) = page(&mut peer, after, Some(1)).await.unwrap();
        assert!(names.len() <= 1, "{names:?}");
        seen.extend(names);
        after = next;
        places.push(next);
        if next.is_none() {
            break;
        }
    }
    let (all, next) = page(&mut peer, None, None).await.unwrap();
    assert_eq!((&seen, next), (&all, None));
    // Those that it never gave do no harm.
    places.extend([0, 1, 12_345, u64::MAX, i64::MAX as u64, i64::MAX as u64 + 1, 1 << 62].map(Some));
    for after in places {
        for count_max in [Some(0), Some(1), Some(u64::MAX), None] {
            if let Ok((names, _)) = page(&mut peer, after, count_max).await {
                assert!(names.iter().all(|name| !name.starts_with(b".sealift")), "{after:?}: {names:?}");
                assert!(names.iter().all(|name| all.contains(name)), "{after:?}: {names:?}");
            }
        }
    }
    assert_eq!(snapshot(&world.root()), before);
    drop(peer);
    world.check(&PLANTED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_does_not_go_on_in_another_directory() {
    let world = World::new().await;
    let root = world.root();
    for name in ["site", "other"] {
        fs::create_dir(root.join(name)).unwrap();
        (0..9).for_each(|index| fs::write(root.join(name).join(format!("{name} {index}")), "x").unwrap());
    }
    let mut peer = world.greeted().await;
    let first = ListDirectory { path: super::peer::path("site"), count_max: Some(3), ..ListDirectory::default() };
    let (kind, _) = peer.ask(&first).await.unwrap();
    assert_eq!(kind, Kind::Entries);
    let number = peer.number();
    peer.send(number, &first).await;
    peer.answer(number).await.unwrap();
    let (_, payload) = peer.answer(number).await.unwrap();
    let Done { next, directory, .. } = Done::from_payload(&payload).unwrap();
    assert!(next.is_some() && directory.is_some());
    let rest = ListDirectory { after: next, directory, ..first };
    peer.ask(&rest).await.unwrap();
    let exchange = || {
        fs::rename(root.join("site"), root.join("old")).unwrap();
        fs::rename(root.join("other"), root.join("site")).unwrap();
        fs::rename(root.join("old"), root.join("other")).unwrap();
    };
    exchange();
    assert_eq!(peer.ask(&rest).await.map(drop), Err(ErrorKind::Changed));
    // Who does not say which it was goes on as before there was a way to say it.
    peer.ask(&ListDirectory { directory: None, ..rest.clone() }).await.unwrap();
    exchange();
    peer.ask(&rest).await.unwrap();
}

/// The names of one piece of the root's listing, and the place to go on from.
async fn page(
    peer: &mut Peer,
    after: Option<u64>,
    count_max: Option<u64>,
) -> Result<(Vec<Vec<u8>>, Option<u64>), ErrorKind> {
    let transfer = peer.number();
    peer.send(
        transfer,
        &ListDirectory { path: super::peer::path(""), after, count_max, xattrs: None, directory: None },
    )
    .await;
    let mut names = Vec::new();
    loop {
        let (kind, payload) = peer.answer(transfer).await?;
        if kind == Kind::Done {
            return Ok((names, Done::from_payload(&payload).unwrap().next));
        }
        names.extend(Entries::from_payload(&payload).unwrap().entries.0.into_iter().map(|entry| entry.name));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_itself_stays() {
    let world = World::new().await;
    plant(&world);
    let before = snapshot(&world.root());
    let mut peer = world.greeted().await;
    for verb in VERBS {
        let expected = matches!(verb, Stat | List | MakeDirectory | SetDirectory);
        let answer = act(&mut peer, verb, &raw(&[])).await;
        assert_eq!(answer.is_ok(), expected, "{verb:?}: {answer:?}");
        if verb == List {
            // The listing's end comes after its page.
            peer.frame().await.unwrap();
        }
    }
    assert_eq!(snapshot(&world.root()), before);
    drop(peer);
    world.check(&PLANTED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_policy_refuses_are_refused_by_name_and_the_rest_goes_on() {
    let world = World::new().await;
    plant(&world);
    let before = snapshot(&world.root());
    let mut peer = world.greeted().await;
    for name in [
        &b"a\nb"[..],
        b"\x1b[31m",
        b"\x7f",
        b"a\tb",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        "\u{85}".as_bytes(),
        "\u{2028}".as_bytes(),
    ] {
        for verb in VERBS {
            for path in [raw(&[name]), raw(&[b"directory", name]), raw(&[name, b"below"])] {
                let expected = if verb.makes_a_name() { ErrorKind::Name } else { ErrorKind::NotFound };
                assert_eq!(act(&mut peer, verb, &path).await, Err(expected), "{verb:?} {path:?}");
            }
        }
    }
    assert_eq!(snapshot(&world.root()), before);
    // These are ordinary here.
    for name in ["C:x", "~", "a\\b", "%2e%2e%2f", "..;", "con", "...", "-rf", " ", "a.", "\u{202e}x"] {
        assert_eq!(act(&mut peer, PutSmall, &raw(&[name.as_bytes()])).await, Ok(Kind::Stored), "{name}");
        assert_eq!(act(&mut peer, Remove, &raw(&[name.as_bytes()])).await, Ok(Kind::Done), "{name}");
    }
    drop(peer);
    world.check(&PLANTED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_lead_nowhere() {
    let world = World::new().await;
    plant(&world);
    let outside = world.root().parent().unwrap().join("canaries/deep");
    for (name, target) in [
        ("absolute", outside.to_str().unwrap()),
        ("relative", "../canaries/deep"),
        ("old", "../root-old"),
        ("inside", "directory"),
        ("itself", "itself"),
        ("dangling", "nothing"),
        ("proc", "/proc/self/root"),
    ] {
        symlink(target, world.root().join(name)).unwrap();
        symlink(format!("{target}/file"), world.root().join(format!("{name} file"))).unwrap();
    }
    let before = snapshot(&world.root());
    let mut peer = world.greeted().await;
    for name in ["absolute", "relative", "old", "inside", "itself", "dangling", "proc"] {
        for verb in VERBS {
            for below in [&b"file"[..], b"inside", b"new"] {
                let path = raw(&[name.as_bytes(), below]);
                let answer = act(&mut peer, verb, &path).await;
                assert!(answer.is_err(), "{verb:?} {path:?}: {answer:?}");
            }
            // The link itself may be looked at; it is never what it points to.
            let path = raw(&[format!("{name} file").as_bytes()]);
            if matches!(verb, Get | List | Hash | MakeDirectory | SetDirectory) {
                let answer = act(&mut peer, verb, &path).await;
                assert!(answer.is_err(), "{verb:?} {path:?}: {answer:?}");
            }
        }
    }
    assert_eq!(snapshot(&world.root()), before);
    // New links that lead out are refused.
    for target in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b"", &[b't'; 4096], b"a\0b", b"/", b".."] {
        let message = protocol::MakeLink {
            path: super::peer::path("l"),
            target: target.to_vec(),
            mtime: None,
            if_exists: IfExists::Fail,
        };
        let answer = peer.ask(&message).await;
        assert!(answer.is_err(), "a link to {target:?}: {answer:?}");
    }
    assert_eq!(snapshot(&world.root()), before);
    drop(peer);
    world.check(&PLANTED).await;
}
