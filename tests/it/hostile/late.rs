//! What was sent over a connection that its client has given up, and arrives when the client has gone on over another:
//! it never takes the place of what was stored since.

use sealift::error::ErrorKind;
use sealift::protocol::{Kind, Put};

use super::peer::{Peer, World, data, finish, put, put_small};

/// A connection of a client that has sent all of a small file but the last frame.
async fn half_dead(world: &World, put: &Put, content: &[u8]) -> (Peer, u32) {
    let mut peer = world.greeted().await;
    let transfer = peer.number();
    peer.send(transfer, put).await;
    peer.bytes(&data(transfer, 0, content)).await;
    assert!(peer.is_alive().await, "all of it has arrived");
    (peer, transfer)
}

async fn finish_it(peer: &mut Peer, transfer: u32, content: &[u8]) -> Result<Kind, ErrorKind> {
    peer.send(transfer, &finish(content)).await;
    peer.answer(transfer).await.map(|answer| answer.0)
}

#[tokio::test]
async fn a_small_file_that_comes_late_does_not_replace_a_newer_one() {
    let world = World::new().await;
    let late = put_small("x", b"old");
    let (mut old, transfer) = half_dead(&world, &late, b"old").await;
    world.greeted().await.store(put_small("x", b"newer"), b"newer").await.unwrap();
    assert_eq!(finish_it(&mut old, transfer, b"old").await, Err(ErrorKind::Busy));
    world.check(&[("x", b"newer")]).await;
    // So does another one of that connection; only who has read the question can answer it.
    assert_eq!(old.store(put_small("x", b"other"), b"other").await.map(|_| ()), Err(ErrorKind::Busy));
    world.check(&[("x", b"newer")]).await;
    // Its client is there after all: what it says now is the newest.
    old.store(late, b"old").await.unwrap();
    world.check(&[("x", b"old")]).await;
    old.store(put_small("x", b"other"), b"other").await.unwrap();
    drop(old);
    world.check(&[("x", b"other")]).await;
}

#[tokio::test]
async fn a_file_that_was_asked_for_and_finishes_late_ends_as_superseded() {
    let world = World::new().await;
    for (name, is_small) in [("a", true), ("b", false)] {
        let mut old = world.greeted().await;
        let (transfer, _) = old.begin(&put(name, 3)).await;
        old.bytes(&data(transfer, 0, b"old")).await;
        let mut new = world.greeted().await;
        if is_small {
            new.store(put_small(name, b"newer"), b"newer").await.unwrap();
        } else {
            let (transfer, _) = new.begin(&put(name, 5)).await;
            new.bytes(&data(transfer, 0, b"newer")).await;
            assert_eq!(finish_it(&mut new, transfer, b"newer").await, Ok(Kind::Stored));
        }
        assert_eq!(finish_it(&mut old, transfer, b"old").await, Err(ErrorKind::Superseded), "{name}");
    }
    world.check(&[("a", b"newer"), ("b", b"newer")]).await;
}

#[tokio::test]
async fn a_description_that_comes_late_does_not_end_its_successor() {
    let world = World::new().await;
    let mut old = world.greeted().await;
    let mut new = world.greeted().await;
    for (name, size) in [("a", 5), ("b", 3 << 20)] {
        let content = vec![7; size];
        let upload = put(name, size as u64);
        let (transfer, _) = new.begin(&upload).await;
        let late = old.number();
        old.send(late, &upload).await;
        assert_eq!(old.answer(late).await.map(|answer| answer.0), Err(ErrorKind::Superseded), "{name}");
        for (index, piece) in content.chunks(1 << 18).enumerate() {
            new.data(transfer, (index << 18) as u64, piece).await;
        }
        assert_eq!(finish_it(&mut new, transfer, &content).await, Ok(Kind::Stored), "{name}");
        // The other way round it goes on, as ever.
        let upload = put(&format!("{name}2"), size as u64);
        let (_, _) = old.begin(&upload).await;
        let (transfer, _) = new.begin(&upload).await;
        for (index, piece) in content.chunks(1 << 18).enumerate() {
            new.data(transfer, (index << 18) as u64, piece).await;
        }
        assert_eq!(finish_it(&mut new, transfer, &content).await, Ok(Kind::Stored), "{name}");
    }
    drop((old, new));
    let (a, b): (&[u8], &[u8]) = (&[7; 5], &[7; 3 << 20]);
    world.check(&[("a", a), ("a2", a), ("b", b), ("b2", b)]).await;
}

#[tokio::test]
async fn a_large_file_that_finishes_late_does_not_replace_a_small_one() {
    let world = World::new().await;
    let old_content = vec![7; 3 << 20];
    let mut old = world.greeted().await;
    let (transfer, _) = old.begin(&put("x", old_content.len() as u64)).await;
    for (index, piece) in old_content.chunks(1 << 18).enumerate() {
        old.data(transfer, (index << 18) as u64, piece).await;
    }
    world.greeted().await.store(put_small("x", b"newer"), b"newer").await.unwrap();
    assert_eq!(finish_it(&mut old, transfer, &old_content).await, Err(ErrorKind::Superseded));
    drop(old);
    world.check(&[("x", b"newer")]).await;
}

#[tokio::test]
async fn a_small_file_that_comes_late_does_not_end_an_upload_that_was_asked_for() {
    let world = World::new().await;
    let (mut old, late) = half_dead(&world, &put_small("x", b"old"), b"old").await;
    let mut new = world.greeted().await;
    let (transfer, _) = new.begin(&put("x", 5)).await;
    assert_eq!(finish_it(&mut old, late, b"old").await, Err(ErrorKind::Busy));
    assert!(!world.root().join("x").exists());
    new.bytes(&data(transfer, 0, b"newer")).await;
    assert_eq!(finish_it(&mut new, transfer, b"newer").await, Ok(Kind::Stored));
    drop((old, new));
    world.check(&[("x", b"newer")]).await;
}

#[tokio::test]
async fn other_names_and_policies_know_no_order() {
    let world = World::new().await;
    let (mut old, transfer) = half_dead(&world, &put_small("x", b"old"), b"old").await;
    let renamed = Put { if_exists: sealift::protocol::IfExists::Rename, ..put_small("y", b"old") };
    let (mut other, second) = half_dead(&world, &renamed, b"old").await;
    world.greeted().await.store(put_small("y", b"newer"), b"newer").await.unwrap();
    assert!(finish_it(&mut old, transfer, b"old").await.is_ok());
    assert!(finish_it(&mut other, second, b"old").await.is_ok());
    drop((old, other));
    world.check(&[("x", b"old"), ("y", b"newer"), ("y (1)", b"old")]).await;
}
