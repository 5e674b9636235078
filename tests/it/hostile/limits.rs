//! Peers that ask for more than was agreed, or do not take what they asked for (R02, R05, R12).

use std::time::{Duration, Instant};

use sealift::ErrorKind;
use sealift::protocol::*;
use tokio::time::timeout;

use super::super::codec::{alone, memory};
use super::peer::{Peer, SOON, World, block_on, data, finish, get, path, put, put_small};

const G: u64 = 1 << 20;

#[tokio::test]
async fn unasked_content_ends_at_its_credit() {
    let world = World::new().await;
    // One file.
    for put in [
        Put { unasked: true, ..put("x", (256 << 10) + 1) },
        Put { unasked: true, ..put("x", u64::MAX) },
        Put { unasked: true, size: None, ..put("x", 0) },
    ] {
        let mut peer = world.greeted().await;
        peer.send(1, &put).await;
        peer.refused(format_args!("{:?} unasked", put.size)).await;
    }
    // Of one connection, by descriptions alone; what is answered counts no more.
    let mut peer = world.greeted().await;
    for _ in 0..40 {
        peer.store(put_small("x", &[1; 200 << 10]), &[1; 200 << 10]).await.unwrap();
    }
    for _ in 0..16 {
        let transfer = peer.number();
        peer.send(transfer, &Put { unasked: true, ..put("y", 256 << 10) }).await;
    }
    assert!(peer.is_alive().await, "4 MiB are within the credit");
    let transfer = peer.number();
    peer.send(transfer, &Put { unasked: true, ..put("y", 1) }).await;
    peer.refused("a byte above the credit").await;
    world.check(&[("x", &[1; 200 << 10])]).await;
}

#[tokio::test]
async fn open_transfers_end_at_their_bound() {
    let world = World::new().await;
    let mut peer = world.greeted().await;
    let mut frames = Vec::new();
    for _ in 0..1024 {
        frames.extend(put_small("x", b"").to_frame(peer.number()));
    }
    peer.bytes(&frames).await;
    assert!(peer.is_alive().await, "as many as the hello says");
    frames.clear();
    for _ in 0..1100 {
        frames.extend(put_small("x", b"").to_frame(peer.number()));
    }
    peer.bytes(&frames).await;
    peer.refused("more than twice as many").await;
    world.check(&[]).await;
}

/// Begun groups hold buffers of a pool that all share: one connection gets a few.
#[tokio::test]
async fn begun_groups_end_at_their_bound() {
    let world = World::new().await;
    let mut peer = world.greeted().await;
    for count in 1..=9 {
        let (transfer, _) = peer.begin(&put(&format!("x{count}"), 2 * G)).await;
        peer.data(transfer, G, b"x").await;
        if count <= 8 {
            assert!(peer.is_alive().await, "{count} begun groups");
        }
    }
    peer.refused("a ninth begun group").await;
    // Those that are whole count no more.
    let mut peer = world.greeted().await;
    for count in 1..=20 {
        let (transfer, _) = peer.begin(&put(&format!("x{count}"), 2 * G)).await;
        for piece in 0..4_u64 {
            peer.data(transfer, piece << 18, &[1; 256 << 10]).await;
        }
    }
    assert!(peer.is_alive().await);
    drop(peer);
    world.check(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_asked_for_one_after_another() {
    let world = World::new().await;
    let file = std::fs::File::create(world.root().join("sparse")).unwrap();
    file.set_len(512 * G).unwrap();
    drop(file);
    let mut peer = world.greeted().await;
    peer.ask(&get("sparse")).await.unwrap();
    // One at a time, as many as one likes; each reads only what was asked for.
    let started = Instant::now();
    for group in 0..40 {
        peer.send(1, &WantValues { first: group, count: 1 }).await;
        let (kind, payload) = peer.answer(1).await.unwrap();
        assert_eq!(kind, Kind::Values);
        let values = Values::from_payload(&payload).unwrap();
        assert_eq!((values.first, values.values.0.len()), (group, 1));
    }
    let each = started.elapsed() / 40;
    let mut frames = WantValues { first: 0, count: 512 }.to_frame(1);
    frames.extend(WantValues { first: 0, count: 1 }.to_frame(1));
    peer.bytes(&frames).await;
    peer.refused("values while others are due").await;
    assert!(each < Duration::from_millis(250), "{each:?} for one group");
    std::fs::remove_file(world.root().join("sparse")).unwrap();
    world.check(&[]).await;
}

/// How long a good client waits for an answer.
async fn latency(world: &World) -> Duration {
    let mut good = world.good().await;
    let started = Instant::now();
    for _ in 0..10 {
        good.stat("").await.unwrap();
    }
    started.elapsed() / 10
}

#[test]
fn a_client_that_never_reads_holds_little() {
    alone("hostile::limits::a_client_that_never_reads_holds_little", || block_on(never_reading()));
}

async fn never_reading() {
    let world = World::new().await;
    // A directory whose pages are as large as pages get.
    let many = world.root().join("many");
    std::fs::create_dir(&many).unwrap();
    for index in 0..1200 {
        std::os::unix::fs::symlink("t".repeat(200), many.join(format!("{index:0>200}"))).unwrap();
    }
    std::fs::write(world.root().join("large"), vec![1; 8 << 20]).unwrap();
    std::fs::write(world.root().join("small"), vec![1; 250 << 10]).unwrap();
    let before = memory("VmHWM");
    let mut peers = Vec::new();
    for wish in 0..4 {
        let mut peer = world.greeted().await;
        let mut frames = Vec::new();
        for _ in 0..1000 {
            let number = peer.number();
            frames.extend(match wish {
                0 => ListDirectory { path: path("many"), after: None, count_max: None, xattrs: None, directory: None }
                    .to_frame(number),
                1 => Get { unasked_max: 256 << 10, ..get("small") }.to_frame(number),
                2 => Stat { path: path("many"), xattrs: None }.to_frame(number),
                _ => get("large").to_frame(number),
            });
            if wish == 3 && number > 1 {
                // All that one may want, of the first, which is open by the time that it is read.
                break;
            }
        }
        // A server that does not read on is right, so this may not get through.
        let _ = timeout(Duration::from_millis(300), peer.bytes(&frames)).await;
        if wish == 3 {
            peer.answer(1).await.unwrap();
            let ranges = List((0..64).map(|group| (group % 8 * G, G)).collect());
            peer.send(1, &Want { ranges }).await;
        }
        peers.push(peer);
    }
    let latency = latency(&world).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let grown = memory("VmHWM").saturating_sub(before);
    assert!(latency < Duration::from_millis(200), "{latency:?} for a good client");
    assert!(grown < 40 << 10, "{grown} KiB for four clients that do not read");
    // What they asked for is still there for who reads at last.
    let peer = &mut peers[0];
    let mut pages = 0;
    while pages < 20 {
        let (kind, ..) = peer.frame().await.unwrap();
        pages += usize::from(kind == Kind::Done);
    }
    let peer = &mut peers[1];
    for _ in 0..500 {
        let mut kind = Kind::Data;
        while kind != Kind::Finish {
            (kind, ..) = peer.frame().await.unwrap();
        }
    }
    drop(peers);
    std::fs::remove_dir_all(many).unwrap();
    world.check_alive().await;
}

#[test]
fn clients_that_hold_buffers_leave_some_for_others() {
    alone("hostile::limits::clients_that_hold_buffers_leave_some_for_others", || block_on(holding_buffers()));
}

async fn holding_buffers() {
    let world = World::new().await;
    let before = memory("VmHWM");
    // 5 connections with 8 groups each are 40 MiB of the 64 that this server has.
    let mut peers = Vec::new();
    for peer_index in 0..5 {
        let mut peer = world.greeted().await;
        for index in 0..8 {
            let (transfer, _) = peer.begin(&put(&format!("x{peer_index} {index}"), 2 * G)).await;
            peer.data(transfer, 0, &[1; 100]).await;
        }
        assert!(peer.is_alive().await);
        peers.push(peer);
    }
    let mut good = world.good().await;
    for round in 0..10 {
        let content = vec![round; 3 << 20];
        let (transfer, _) = good.begin(&put("good", content.len() as u64)).await;
        let mut frames = Vec::new();
        for (index, piece) in content.chunks(256 << 10).enumerate() {
            frames.extend(data(transfer, (index as u64) << 18, piece));
        }
        frames.extend(finish(&content).to_frame(transfer));
        good.bytes(&frames).await;
        assert_eq!(good.outcome(transfer).await.unwrap().0, Kind::Stored);
    }
    let grown = memory("VmHWM").saturating_sub(before);
    assert!(grown < 100 << 10, "{grown} KiB");
    drop((peers, good));
    world.check(&[("good", &vec![9; 3 << 20])]).await;
}

#[tokio::test]
async fn downloads_that_are_not_read_leave_buffers_for_others() {
    let world = World::new().await;
    std::fs::write(world.root().join("large"), vec![1; 8 << 20]).unwrap();
    let get = Get { finish_ahead: Some(true), ..get("large") };
    // Their wishes are ten times what all clients of this name may hold.
    let mut peers = Vec::new();
    for _ in 0..20 {
        let mut peer = world.greeted().await;
        peer.ask(&get).await.unwrap();
        peer.send(1, &Want { ranges: List((0..8).map(|group| (group * G, G)).collect()) }).await;
        peers.push(peer);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut good = world.good().await;
    good.ask(&get).await.unwrap();
    good.send(1, &Want { ranges: List((0..8).map(|group| (group * G, G)).collect()) }).await;
    // Who reads at last gets all of it too.
    for peer in [&mut good, &mut peers[7]] {
        let mut received = 0;
        while received < 8 << 20 {
            let (kind, _, payload) = peer.frame().await.unwrap();
            assert_eq!(kind, Kind::Data);
            received += payload.len() - OFFSET_LEN;
        }
        // What was read for it in vain is told when it has gone.
        assert_eq!(peer.answer(1).await.unwrap().0, Kind::FinishAhead);
        peer.send(1, &Close {}).await;
        let (_, payload) = peer.answer(1).await.unwrap();
        assert_eq!(Finish::from_payload(&payload).unwrap(), finish(&vec![1; 8 << 20]));
    }
    drop((peers, good));
    world.check_alive().await;
}

/// Sends one request after another without reading; gives how many the server read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_every_kind_pipeline_without_loss() {
    let world = World::new().await;
    let mut peer: Peer = world.greeted().await;
    let mut frames = Vec::new();
    let mut expected = Vec::new();
    for index in 0..300 {
        let number = peer.number();
        frames.extend(match index % 6 {
            0 => Stat { path: path(""), xattrs: None }.to_frame(number),
            1 => ListDirectory { path: path(""), after: None, count_max: None, xattrs: None, directory: None }
                .to_frame(number),
            2 => MakeDirectory { path: path(&format!("d{index}")) }.to_frame(number),
            3 => Hash { path: path("nothing"), read: Some(true) }.to_frame(number),
            4 => Get { unasked_max: 9, ..get("nothing") }.to_frame(number),
            _ => Remove { path: path("nothing"), recursive: true }.to_frame(number),
        });
        expected.push((number, index % 6 > 2));
    }
    peer.bytes(&frames).await;
    let mut ended = std::collections::BTreeMap::new();
    let read = async {
        while ended.len() < expected.len() {
            let (kind, transfer, payload) = peer.frame().await.unwrap();
            match kind {
                Kind::Entries => {}
                Kind::Failed => {
                    let code = Failed::from_payload(&payload).unwrap().code;
                    assert_eq!(ErrorKind::from_code(code), ErrorKind::NotFound);
                    assert_eq!(ended.insert(transfer, true), None, "two answers");
                }
                _ => assert_eq!(ended.insert(transfer, false), None, "two answers"),
            }
        }
    };
    timeout(SOON, read).await.unwrap();
    assert_eq!(ended.into_iter().collect::<Vec<_>>(), expected);
    drop(peer);
    world.check(&[]).await;
}
