//! What a directory that takes another's place needs at the very end, whatever was allowed on the way there.

use sealift::ErrorKind;
use sealift::access::{Access, Policy};
use sealift::protocol::{
    BeginTree, Bytes16, Done, IfExists, Kind, MakeDirectory, Message as _, PublishTree, Remove, Rename, Rights,
    SetDirectory, Stat,
};

use super::peer::{World, path, put, put_small};

/// Each change is made and answered while it is allowed; by the time that all is published, its right is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_end_before_the_exchange_undo_what_was_answered() {
    for (what, gone) in [
        ("a removal", Some(Rights::DELETE)),
        ("a replacement", Some(Rights::OVERWRITE)),
        ("a new file", Some(Rights::CREATE)),
        ("nothing", None),
    ] {
        let world = World::new().await;
        std::fs::create_dir(world.root().join("site")).unwrap();
        std::fs::write(world.root().join("site/old"), b"old").unwrap();
        let mut peer = world.greeted().await;
        let begin = BeginTree { path: path("site"), run: Bytes16([3; 16]), resume: None };
        assert_eq!(peer.ask(&begin).await.unwrap().0, Kind::TreeBegun);
        match gone {
            Some(Rights::OVERWRITE) => drop(peer.store(put_small("site/old", b"other"), b"other").await.unwrap()),
            Some(Rights::CREATE) => drop(peer.store(put_small("site/new", b"new"), b"new").await.unwrap()),
            _ => {
                let (_, payload) = peer.ask(&Remove { path: path("site/old"), recursive: false }).await.unwrap();
                assert_eq!(Done::from_payload(&payload).unwrap().count, 1, "{what}");
            }
        }
        if let Some(gone) = gone {
            world.change(Access::same_for_all(Rights::ALL.without(gone), None));
        }
        let published = peer.ask(&PublishTree { path: path("site") }).await;
        let is_as_it_was = std::fs::read(world.root().join("site/old")).is_ok_and(|content| content == b"old")
            && !world.root().join("site/new").exists();
        match gone {
            Some(_) => {
                assert_eq!(published.err(), Some(ErrorKind::Rights), "{what}");
                assert!(is_as_it_was, "{what}");
            }
            None => {
                assert_eq!(published.unwrap().0, Kind::Done);
                assert!(!world.root().join("site/old").exists(), "with all rights it is done");
            }
        }
        // Nothing of it is left in the way of an ordinary request.
        let _ = peer.ask(&SetDirectory { path: path("site"), mode: None, mtime: None, xattrs: None }).await;
        assert!(peer.ask(&Stat { path: path("site"), xattrs: None }).await.is_ok(), "{what}");
    }
}

/// What goes in a tree that is built is there until that takes its place: who takes it for free has its quota twice,
/// and with every tree once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_in_a_tree_that_is_built_counts_until_the_tree_has_its_place() {
    const KIB: u64 = 1024;
    let rules = "[user.client]\nhome = \"client\"\nrights = [\"list\", \"read\", \"create\", \"overwrite\", \"rename\", \"delete\"]\n[user.client.limits]\nbytes = \"600K\"\n";
    let world = World::with_access(Access::by_policy(Policy::parse(rules).unwrap()), &[]).await;
    let content = vec![7; 240 * KIB as usize];
    let mut peer = world.greeted().await;
    // Until it is known that nothing is there yet.
    while peer.ask(&MakeDirectory { path: path("site") }).await.map(|_| ()) == Err(ErrorKind::Busy) {}
    for name in ["site/a", "site/b"] {
        peer.store(put_small(name, &content), &content).await.unwrap();
    }
    for run in 0..4 {
        let mut builder = world.greeted().await;
        let begin = BeginTree { path: path("site"), run: Bytes16([run; 16]), resume: None };
        assert_eq!(builder.ask(&begin).await.unwrap().0, Kind::TreeBegun);
        builder.ask(&Remove { path: path("site/a"), recursive: false }).await.unwrap();
        let larger = builder.ask(&put("site/c", 150 * KIB)).await.map(|_| ());
        assert_eq!(larger, Err(ErrorKind::Limit), "run {run}: in the place of what was removed");
        let larger = builder.ask(&put("site/b", 150 * KIB)).await.map(|_| ());
        assert_eq!(larger, Err(ErrorKind::Limit), "run {run}: in the place of another");
        let (from, to, if_exists) = (path("site/b"), path("b"), IfExists::Overwrite);
        for (from, to) in [(from.clone(), to.clone()), (to, from)] {
            let id = Bytes16([run; 16]);
            let moved = builder.ask(&Rename { from, to, if_exists, id }).await.map(|_| ());
            assert_eq!(moved, Err(ErrorKind::Unsupported), "run {run}: over the edge");
        }
    }
    let mut builder = world.greeted().await;
    let begin = BeginTree { path: path("site"), run: Bytes16([9; 16]), resume: None };
    builder.ask(&begin).await.unwrap();
    let small = vec![8; 100 * KIB as usize];
    builder.store(put_small("site/b", &small), &small).await.unwrap();
    builder.ask(&PublishTree { path: path("site") }).await.unwrap();
    // It is counted soon what that has freed: 140 KiB, with the 120 that there were, but for the record of the tree.
    while builder.ask(&put("rest", 250 * KIB)).await.map(|_| ()) == Err(ErrorKind::Limit) {}
    assert_eq!(builder.ask(&put("more", 11 * KIB)).await.map(|_| ()), Err(ErrorKind::Limit));
}
