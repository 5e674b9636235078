//! What a directory that takes another's place needs at the very end, whatever was allowed on the way there.

use sealift::ErrorKind;
use sealift::access::Access;
use sealift::protocol::{
    BeginTree, Bytes16, Done, Kind, Message as _, PublishTree, Remove, Rights, SetDirectory, Stat,
};

use super::peer::{World, path, put_small};

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
