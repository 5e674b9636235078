//! Every set of rights against every verb, beside a model that fits one page (A01 to A03, N10).

use std::os::unix::fs::MetadataExt as _;

use sealift::ErrorKind;
use sealift::access::Access;
use sealift::path::RemotePath;
use sealift::protocol::*;

use super::peer::{Peer, World, block_on, get, path, put, put_small};

const LIST: u32 = 1;
const READ: u32 = 2;
const CREATE: u32 = 4;
const OVERWRITE: u32 = 8;
const RENAME: u32 = 16;
const DELETE: u32 = 32;

/// One thing to try on a tree that has `file` (content `old`) and `dir` with `inside` in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    Stat,
    List,
    Get,
    Hash,
    PutNew,
    /// A file that is there, with other content.
    PutOver(IfExists),
    /// The same, asked for.
    PutOverAsked(IfExists),
    MakeDirectory,
    MakeLinkNew,
    MakeLinkOver(IfExists),
    SetDirectory,
    /// A directory that is there, after asking for it to be made.
    SetDirectoryOnceMore,
    /// A directory that this connection made.
    SetDirectoryMade,
    Remove,
    RemoveTree,
    RenameNew,
    RenameOver(IfExists),
}

const TRIES: [Try; 28] = [
    Try::Stat,
    Try::List,
    Try::Get,
    Try::Hash,
    Try::PutNew,
    Try::PutOver(IfExists::Overwrite),
    Try::PutOver(IfExists::Skip),
    Try::PutOver(IfExists::Fail),
    Try::PutOver(IfExists::Rename),
    Try::PutOverAsked(IfExists::Overwrite),
    Try::PutOverAsked(IfExists::Skip),
    Try::PutOverAsked(IfExists::Fail),
    Try::PutOverAsked(IfExists::Rename),
    Try::MakeDirectory,
    Try::MakeLinkNew,
    Try::MakeLinkOver(IfExists::Overwrite),
    Try::MakeLinkOver(IfExists::Skip),
    Try::MakeLinkOver(IfExists::Fail),
    Try::MakeLinkOver(IfExists::Rename),
    Try::SetDirectory,
    Try::SetDirectoryOnceMore,
    Try::SetDirectoryMade,
    Try::Remove,
    Try::RemoveTree,
    Try::RenameNew,
    Try::RenameOver(IfExists::Overwrite),
    Try::RenameOver(IfExists::Skip),
    Try::RenameOver(IfExists::Fail),
];

/// What becomes of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing changes.
    None,
    /// Something new is there; what was there is as it was.
    New,
    /// What was there is not as it was.
    Changed,
}

/// What the rules say, in their own words.
fn model(rights: u32, attempt: Try) -> Result<Effect, ErrorKind> {
    let need = |needed: u32, effect| if rights & needed == needed { Ok(effect) } else { Err(ErrorKind::Rights) };
    // Who can neither see nor replace learns nothing: it always gets a new name.
    let blind = rights & (LIST | OVERWRITE) == 0;
    let over = |policy| match policy {
        _ if blind => Ok(Effect::New),
        IfExists::Overwrite if rights & OVERWRITE > 0 => Ok(Effect::Changed),
        IfExists::Overwrite => Err(ErrorKind::Rights),
        IfExists::Skip => Ok(Effect::None),
        IfExists::Fail => Err(ErrorKind::Exists),
        IfExists::Rename => Ok(Effect::New),
    };
    match attempt {
        Try::Stat | Try::List => need(LIST, Effect::None),
        Try::Get | Try::Hash => need(READ, Effect::None),
        Try::PutNew | Try::MakeDirectory | Try::MakeLinkNew => need(CREATE, Effect::New),
        Try::PutOver(policy) | Try::PutOverAsked(policy) | Try::MakeLinkOver(policy) => {
            need(CREATE, Effect::None)?;
            over(policy)
        }
        Try::SetDirectory | Try::SetDirectoryOnceMore => {
            need(CREATE, Effect::None)?;
            Ok(if rights & OVERWRITE > 0 { Effect::Changed } else { Effect::None })
        }
        Try::SetDirectoryMade => need(CREATE, Effect::New),
        Try::Remove | Try::RemoveTree => need(DELETE, Effect::Changed),
        Try::RenameNew => need(RENAME | CREATE, Effect::Changed),
        Try::RenameOver(policy) => {
            need(RENAME | CREATE, Effect::None)?;
            // What was renamed is gone from its place, whatever name it got.
            match over(policy) {
                Ok(Effect::New) => Ok(Effect::Changed),
                Err(ErrorKind::Rights) => Err(ErrorKind::Exists),
                other => other,
            }
        }
    }
}

fn plant(world: &World) {
    let root = world.root();
    for entry in std::fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() == ".sealift" {
            continue;
        }
        if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }.unwrap();
    }
    std::fs::write(root.join("file"), b"old").unwrap();
    std::fs::write(root.join("other"), b"other").unwrap();
    std::fs::create_dir(root.join("dir")).unwrap();
    std::fs::write(root.join("dir/inside"), b"inside").unwrap();
}

fn content(path: &std::path::Path) -> Vec<u8> {
    std::fs::read_link(path).map(|target| target.to_str().unwrap().into()).or_else(|_| std::fs::read(path)).unwrap()
}

/// Mode, time and content.
type Facts = (u32, u64, Vec<u8>);

/// What was planted, as it is now; and how many entries there are.
fn look(world: &World) -> (Vec<Option<Facts>>, usize) {
    let planted = ["file", "other", "dir", "dir/inside"].map(|name| {
        let path = world.root().join(name);
        let status = std::fs::symlink_metadata(&path).ok()?;
        // The time of a directory shows what was staged in it; its mode is what a client can set.
        let (mtime, content) =
            if status.is_dir() { (0, Vec::new()) } else { (status.mtime_nsec() as u64, content(&path)) };
        Some((status.mode(), mtime, content))
    });
    (planted.into(), std::fs::read_dir(world.root()).unwrap().count())
}

async fn attempt(peer: &mut Peer, attempt: Try) -> Result<(), ErrorKind> {
    let set = SetDirectory { path: path("dir"), mode: Some(0o711), mtime: None, xattrs: None };
    let link = |name, if_exists| MakeLink { path: path(name), target: b"file".to_vec(), mtime: None, if_exists };
    // Each is a request of its own: the same id would be given the first one's answer.
    let id = put("any", 0).upload_id;
    let rename = |to, if_exists| Rename { from: path("other"), to: path(to), if_exists, id };
    let answer = match attempt {
        Try::Stat => peer.ask(&Stat { path: path("file"), xattrs: None }).await,
        Try::List => {
            peer.ask(&ListDirectory { path: path("dir"), after: None, count_max: None, xattrs: None, directory: None })
                .await
        }
        Try::Get => peer.ask(&Get { unasked_max: 100, ..get("file") }).await,
        Try::Hash => peer.ask(&Hash { path: path("file"), read: None }).await,
        Try::PutNew => return peer.store(put_small("new", b"new"), b"new").await.map(|_| ()),
        Try::PutOver(if_exists) => {
            return peer.store(Put { if_exists, ..put_small("file", b"newer") }, b"newer").await.map(|_| ());
        }
        Try::PutOverAsked(if_exists) => {
            let transfer = peer.number();
            peer.send(transfer, &Put { if_exists, ..put("file", 5) }).await;
            let (kind, _) = peer.answer(transfer).await?;
            if kind == Kind::PutAnswer {
                peer.data(transfer, 0, b"newer").await;
                peer.send(transfer, &super::peer::finish(b"newer")).await;
                peer.answer(transfer).await?;
            }
            return Ok(());
        }
        Try::MakeDirectory => peer.ask(&MakeDirectory { path: path("new") }).await,
        Try::MakeLinkNew => peer.ask(&link("new", IfExists::Fail)).await,
        Try::MakeLinkOver(if_exists) => peer.ask(&link("file", if_exists)).await,
        Try::SetDirectory => peer.ask(&set).await,
        Try::SetDirectoryOnceMore => {
            peer.ask(&MakeDirectory { path: path("dir") }).await?;
            peer.ask(&set).await
        }
        Try::SetDirectoryMade => {
            peer.ask(&MakeDirectory { path: path("made") }).await?;
            peer.ask(&SetDirectory { path: path("made"), ..set }).await
        }
        Try::Remove => peer.ask(&Remove { path: path("file"), recursive: false }).await,
        Try::RemoveTree => peer.ask(&Remove { path: path("dir"), recursive: true }).await,
        Try::RenameNew => peer.ask(&rename("new", IfExists::Fail)).await,
        Try::RenameOver(if_exists) => peer.ask(&rename("file", if_exists)).await,
    };
    answer.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_set_of_rights_gives_exactly_these() {
    let mut world = World::new().await;
    let mut cells = 0;
    for rights in 0..64 {
        // One principal has these, the other the opposite, so that a mix-up shows.
        world.serve_with(Rights(rights), Some(Rights(63 - rights))).await;
        for (who, rights) in [("certified", rights), ("anonymous", 63 - rights)] {
            let mut peer = if who == "certified" { world.greeted().await } else { world.anonymous().await };
            for one in TRIES {
                plant(&world);
                let (before, count) = look(&world);
                let answer = attempt(&mut peer, one).await;
                let (after, count_after) = look(&world);
                let effect = match (before == after, count == count_after) {
                    (true, true) => Effect::None,
                    (true, false) => Effect::New,
                    (false, _) => Effect::Changed,
                };
                let expected = model(rights, one);
                let what = format!("{one:?} by {who} with {}", Rights(rights));
                assert_eq!(answer, expected.map(|_| ()), "{what}");
                assert_eq!(effect, expected.unwrap_or(Effect::None), "{what}");
                if one == Try::SetDirectoryMade && expected.is_ok() {
                    let mode = std::fs::metadata(world.root().join("made")).unwrap().mode() & 0o777;
                    assert_eq!(mode, 0o711, "{what}");
                }
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 64 * 2 * TRIES.len());
}

#[tokio::test]
async fn who_may_not_come_in_is_told_so() {
    let mut world = World::new().await;
    world.serve_with(Rights::ALL, None).await;
    // Without a certificate the handshake itself fails, then or at the first read.
    if let Ok(mut peer) = world.connect_with(world.client(false)).await {
        peer.bytes(&super::peer::hello().to_frame(0)).await;
        assert_eq!(peer.frame().await, None);
    }
    assert!(world.greeted().await.is_alive().await);
}

#[tokio::test]
async fn rights_that_shrink_hold_at_once_for_what_is_open() {
    let world = World::new().await;
    std::fs::write(world.root().join("big"), vec![7; 3 << 20]).unwrap();
    std::fs::create_dir(world.root().join("dir")).unwrap();
    let mut peer = world.greeted().await;
    let download = peer.number();
    peer.send(download, &get("big")).await;
    assert_eq!(peer.answer(download).await.unwrap().0, Kind::GetAnswer);
    let (upload, _) = peer.begin(&Put { if_exists: IfExists::Fail, ..put("new", 5) }).await;
    let (replacement, _) = peer.begin(&Put { no_base: true, ..put("big", 5) }).await;
    // What may go on goes on: this one replaces nothing.
    world.change(Access::same_for_all(Rights::LIST.with(Rights::CREATE), None));
    // Without having been asked for anything.
    let mut cut = Vec::new();
    for _ in 0..2 {
        let (kind, transfer, payload) = peer.frame().await.unwrap();
        assert_eq!(kind, Kind::Failed);
        assert_eq!(ErrorKind::from_code(Failed::from_payload(&payload).unwrap().code), ErrorKind::Rights);
        cut.push(transfer);
    }
    cut.sort_unstable();
    assert_eq!(cut, [download, replacement]);
    assert_eq!(peer.stat("big").await.map(|_| ()), Ok(()));
    assert_eq!(peer.ask(&Hash { path: path("big"), read: None }).await.map(|_| ()), Err(ErrorKind::Rights));
    assert_eq!(peer.ask(&Remove { path: path("dir"), recursive: true }).await.map(|_| ()), Err(ErrorKind::Rights));
    world.change(Access::same_for_all(Rights::LIST, None));
    assert_eq!(peer.answer(upload).await.map(|_| ()), Err(ErrorKind::Rights));
    assert_eq!(std::fs::read(world.root().join("big")).unwrap().len(), 3 << 20);
    assert!(!world.root().join("new").exists());
    // Who has nothing left is told so, and let go.
    world.change(Access::by_policy(sealift::access::Policy::default()));
    assert_eq!(peer.end().await, super::peer::End::Goodbye(ErrorKind::Rights));
}

/// A listing whose pages wait for their reader, and a hash that takes long: neither tells the rest to who lost the right.
#[tokio::test]
async fn rights_that_end_stop_a_listing_and_a_hash_under_way() {
    let world = World::new().await;
    let many = world.root().join("many");
    std::fs::create_dir(&many).unwrap();
    for index in 0..6000 {
        std::fs::write(many.join(format!("{index:0200}")), b"").unwrap();
    }
    // Holes are read as fast as memory: still for minutes, in a build for tests.
    std::fs::File::create(world.root().join("huge")).unwrap().set_len(256 << 30).unwrap();
    let mut peer = world.greeted().await;
    let list = peer.number();
    peer.send(list, &ListDirectory { path: path("many"), after: None, count_max: None, xattrs: None, directory: None })
        .await;
    let hash = peer.number();
    peer.send(hash, &Hash { path: path("huge"), read: Some(true) }).await;
    // The first page has come, so both have begun.
    assert_eq!(peer.answer(list).await.unwrap().0, Kind::Entries);
    let begun = std::time::Instant::now();
    world.change(Access::same_for_all(Rights::CREATE, None));
    let mut ends = std::collections::BTreeMap::new();
    while ends.len() < 2 {
        let (kind, transfer, payload) = peer.frame().await.unwrap();
        match kind {
            Kind::Failed => {
                ends.insert(transfer, ErrorKind::from_code(Failed::from_payload(&payload).unwrap().code));
            }
            Kind::Entries | Kind::Working => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), [(list, ErrorKind::Rights), (hash, ErrorKind::Rights)]);
    println!("both were cut after {:?}", begun.elapsed());
}

/// What is there stands in for content that need not come: only for who may read it, to the end.
#[tokio::test]
async fn who_may_not_read_any_more_is_told_of_no_more_groups() {
    let world = World::new().await;
    std::fs::write(world.root().join("big"), vec![7; 3 << 20]).unwrap();
    let mut peer = world.greeted().await;
    let (upload, answer) = peer.begin(&put("big", 3 << 20)).await;
    assert_eq!(answer.holding, Holding::Base);
    world.change(Access::same_for_all(Rights::ALL.without(Rights::READ), None));
    assert_eq!(peer.outcome(upload).await.map(|_| ()), Err(ErrorKind::Rights));
    // What was copied into the unfinished upload by then is its own; the file itself is not told of.
    let (_, answer) = peer.begin(&put("big", 3 << 20)).await;
    assert_ne!(answer.holding, Holding::Base);
}

#[tokio::test]
async fn an_upload_that_is_tried_again_takes_the_room_of_the_attempt_before() {
    let rules = "[user.client]\nhome = \"client\"\nrights = [\"list\", \"create\"]\n[user.client.limits]\n";
    let policy = sealift::access::Policy::parse(&format!("{rules}bytes = \"10M\"\n")).unwrap();
    let world = World::with_access(Access::by_policy(policy), &[]).await;
    let mut first = world.greeted().await;
    // Until it is known that nothing is there yet.
    while first.ask(&MakeDirectory { path: path("d") }).await.map(|_| ()) == Err(ErrorKind::Busy) {}
    let upload = put("big", 8 << 20);
    let (old, _) = first.begin(&upload).await;
    let mut second = world.greeted().await;
    assert_eq!(second.ask(&put("other", 8 << 20)).await.map(|_| ()), Err(ErrorKind::Limit));
    // The first connection is alive, and nobody knows whether anyone is behind it.
    let (new, _) = second.begin(&upload).await;
    assert_eq!(second.ask(&put("other", 3 << 20)).await.map(|_| ()), Err(ErrorKind::Limit));
    // Giving up gives back, once.
    for (peer, transfer) in [(&mut first, old), (&mut second, new)] {
        peer.send(transfer, &Failed { code: ErrorKind::Refused.code(), text: String::new(), retry: None }).await;
        assert!(peer.is_alive().await);
    }
    // What was staged is removed by and by, and its room with it.
    while second.ask(&put("other", 10 << 20)).await.map(|_| ()) == Err(ErrorKind::Limit) {}
    assert_eq!(second.ask(&put("one", 1)).await.map(|_| ()), Err(ErrorKind::Limit));
}

/// What is replaced becomes free once.
#[tokio::test]
async fn of_uploads_that_replace_one_file_the_first_counts_on_its_room() {
    let rules =
        "[user.client]\nhome = \"client\"\nrights = [\"list\", \"create\", \"overwrite\"]\n[user.client.limits]\n";
    let policy = sealift::access::Policy::parse(&format!("{rules}bytes = \"1M\"\n")).unwrap();
    let world = World::with_access(Access::by_policy(policy), &[]).await;
    let mut first = world.greeted().await;
    while first.ask(&MakeDirectory { path: path("d") }).await.map(|_| ()) == Err(ErrorKind::Busy) {}
    let content = vec![7; 200 << 10];
    first.store(put_small("file", &content), &content).await.unwrap();
    let (upload, _) = first.begin(&put("file", 1 << 20)).await;
    let mut second = world.greeted().await;
    assert_eq!(second.ask(&put("file", 1 << 10)).await.map(|_| ()), Err(ErrorKind::Limit));
    first.send(upload, &Failed { code: ErrorKind::Refused.code(), text: String::new(), retry: None }).await;
    assert!(first.is_alive().await);
    // What was staged is removed by and by, and its room with it.
    while second.ask(&put("file", 1 << 20)).await.map(|_| ()) == Err(ErrorKind::Limit) {}
    assert_eq!(first.ask(&put("file", 1 << 10)).await.map(|_| ()), Err(ErrorKind::Limit));
}

/// Nobody gets a name for what it may not read, nor for what it may not replace and has not stored itself; and only for
/// what is what it says.
#[test]
fn a_further_name_needs_rights_to_the_first() {
    block_on(async {
        use Rights as R;
        let create = R::CREATE.with(R::LIST);
        let read = create.with(R::READ);
        for (rights, is_linked) in
            [(create.with(R::OVERWRITE), false), (read, false), (read.with(R::OVERWRITE), true), (R::ALL, true)]
        {
            let world = World::with_rights(rights, None).await;
            let mut peer = world.greeted().await;
            std::fs::write(world.root().join("first"), b"secret").unwrap();
            let status = std::fs::metadata(world.root().join("first")).unwrap();
            let mtime = Mtime { seconds: status.mtime(), nanos: status.mtime_nsec() as u32 };
            let mode = Some(status.mode() & 0o777);
            let right = Put { same_as: Some(path("first")), mtime: Some(mtime), mode, ..put("second", 6) };
            let wrong = [
                Put { size: Some(5), ..right.clone() },
                Put { mtime: Some(Mtime { seconds: 1, nanos: 0 }), ..right.clone() },
                Put { mode: Some(0o600), ..right.clone() },
                Put { same_as: Some(path("none")), ..right.clone() },
                Put { same_as: Some(path("second")), ..right.clone() },
                Put { same_as: Some(RemotePath::root()), ..right.clone() },
                Put { same_as: Some(path(".sealift/lock")), ..right.clone() },
            ];
            for put in wrong {
                let put = Put { upload_id: super::peer::put("x", 0).upload_id, ..put };
                let transfer = peer.number();
                peer.send(transfer, &put).await;
                let (kind, _) = peer.answer(transfer).await.unwrap();
                assert_eq!(kind, Kind::PutAnswer, "{rights} {put:?}");
                peer.send(transfer, &Failed { code: ErrorKind::Interrupted.code(), text: String::new(), retry: None })
                    .await;
                assert!(!world.root().join("second").exists(), "{rights} {put:?}");
            }
            let transfer = peer.number();
            peer.send(transfer, &right).await;
            let (kind, _) = peer.answer(transfer).await.unwrap();
            assert_eq!(kind == Kind::Stored, is_linked, "{rights}");
            let second = std::fs::metadata(world.root().join("second"));
            assert_eq!(second.is_ok_and(|second| second.ino() == status.ino()), is_linked, "{rights}");
        }
    });
}
