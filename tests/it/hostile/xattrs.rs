//! Extended attributes that no client may set: refused before anything is stored.

use rustix::fs::XattrFlags;
use sealift::ErrorKind;
use sealift::limits::XATTRS_LEN_MAX;
use sealift::protocol::{Entries, Entry, Kind, ListDirectory, Message as _, Put, Rights, SetDirectory, Stat};
use sealift::xattrs::Xattrs;

use super::peer::{World, data, path, put, put_small};
use crate::xattrs::{raw, wrong};

#[tokio::test]
async fn attributes_that_are_no_users_end_the_connection_and_store_nothing() {
    let world = World::new().await;
    std::fs::create_dir(world.root().join("dir")).unwrap();
    for (what, pairs) in wrong() {
        // A description that is asked about, an unasked one, and a directory.
        let small = put_small("small", b"abc");
        for (kind, frame) in [
            ("asked", raw(1, &put("asked", 3), &pairs)),
            ("small", [raw(1, &small, &pairs), data(1, 0, b"abc")].concat()),
            ("directory", raw(1, &SetDirectory { path: path("dir"), mode: None, mtime: None, xattrs: None }, &pairs)),
        ] {
            let mut peer = world.greeted().await;
            peer.bytes(&frame).await;
            peer.refused(format_args!("{what}, {kind}")).await;
        }
    }
    assert!(!world.root().join("asked").exists() && !world.root().join("small").exists());
    let mut names = [0; 1000];
    let len = rustix::fs::listxattr(world.root().join("dir"), &mut names[..]).unwrap_or(0);
    assert!(!names[..len].windows(5).any(|part| part == b"user." || part == b"trust"), "{:?}", &names[..len]);
    std::fs::remove_dir(world.root().join("dir")).unwrap();
    world.check(&[]).await;
}

fn set_of(len: usize) -> Xattrs {
    let half = |index: usize, len: usize| (format!("user.{index}").into_bytes(), vec![7; len]);
    Xattrs::new(vec![half(0, len / 2), half(1, len / 2)]).unwrap()
}

/// Sets within their bounds, and too many of them at once.
#[tokio::test]
async fn many_descriptions_with_attributes_are_bounded_together() {
    let world = World::new().await;
    let xattrs = Some(set_of(XATTRS_LEN_MAX - 100));
    let mut peer = world.greeted().await;
    let mut described = 0;
    let ended = loop {
        let name = format!("asked {described}");
        let (transfer, _) = (peer.number(), ());
        let asked = Put { xattrs: xattrs.clone(), ..put(&name, 3) };
        peer.send(transfer, &asked).await;
        described += 1;
        match peer.answer(transfer).await {
            Ok((Kind::PutAnswer, _)) if described < 200 => {}
            answer => break answer,
        }
    };
    assert_eq!(ended.err(), Some(ErrorKind::Protocol));
    assert_eq!(described, (4 << 20) / (XATTRS_LEN_MAX - 88) + 1, "four megabytes of them");
    // Of unasked ones, names and values count like content.
    let mut peer = world.greeted().await;
    for index in 0..100 {
        let small = Put { xattrs: xattrs.clone(), ..put_small(&format!("small {index}"), b"") };
        let transfer = peer.number();
        peer.send(transfer, &small).await;
    }
    peer.refused(format_args!("unasked attributes of 4.7 MB")).await;
    world.check(&[]).await;
}

/// Who may not read is not told what attributes are, in whatever way it asks.
#[tokio::test]
async fn attributes_are_told_to_who_may_read() {
    for (rights, may_read) in [(Rights::ALL, true), (Rights::LIST.with(Rights::CREATE), false)] {
        let world = World::with_rights(rights, None).await;
        std::fs::write(world.root().join("there"), b"x").unwrap();
        if rustix::fs::setxattr(world.root().join("there"), "user.a", b"b", XattrFlags::empty()).is_err() {
            println!("skipped: no extended attributes on this file system");
            return;
        }
        let mut peer = world.greeted().await;
        let told = peer.ask(&Stat { path: path("there"), xattrs: Some(true) }).await;
        match told {
            Ok((_, payload)) if may_read => {
                assert!(Entry::from_payload(&payload).unwrap().xattrs.unwrap().has(b"user.a"));
            }
            Err(ErrorKind::Rights) if !may_read => {}
            other => panic!("{rights}: {other:?}"),
        }
        let list = ListDirectory { path: path(""), after: None, count_max: None, xattrs: Some(true), directory: None };
        let (kind, payload) = peer.ask(&list).await.unwrap();
        assert_eq!(kind, Kind::Entries);
        let entries = Entries::from_payload(&payload).unwrap().entries.0;
        let there = entries.iter().find(|entry| entry.name == b"there").unwrap();
        assert_eq!((there.xattrs_digest.is_some(), there.xattrs.is_some()), (may_read, false), "{rights}");
    }
}
