//! Peers that are slow, silent or slowly at work: every wait has its end (R01, R02). The clock is paused, so that
//! minutes take none; the handshake alone is waited for in real time.

use std::time::{Duration, Instant};

use sealift::protocol::*;
use sealift::{ErrorKind, limits};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time;

use super::peer::{End, Peer, World, put};

/// Reads until the server ends the connection, under a clock that runs as fast as nobody works.
async fn end_in_time(peer: &mut Peer) -> (End, Duration) {
    let started = time::Instant::now();
    let mut reason = None;
    while let Some((kind, _, payload)) = peer.frame_without_limit().await {
        if kind == Kind::Goodbye {
            reason = Some(ErrorKind::from_code(Goodbye::from_payload(&payload).unwrap().code));
        }
    }
    (reason.map_or(End::Broken, End::Goodbye), started.elapsed())
}

#[track_caller]
fn check(what: &str, (end, took): (End, Duration), limit: Duration) {
    assert_eq!(end, End::Goodbye(ErrorKind::Timeout), "{what}");
    // The deadlines are looked at every few seconds.
    let latest = limit + limits::WORKING_INTERVAL * 3;
    assert!(took >= limit - limits::WORKING_INTERVAL && took <= latest, "{what}: after {took:?}, not {limit:?}");
}

#[tokio::test]
async fn silence_has_an_end() {
    let world = World::new().await;
    let mut peer = world.greeted().await;
    time::pause();
    check("idle", end_in_time(&mut peer).await, limits::IDLE_TIMEOUT);
    time::resume();
    drop(peer);

    let mut peer = world.greeted().await;
    peer.begin(&put("x", 1 << 20)).await;
    time::pause();
    check("an upload without content", end_in_time(&mut peer).await, limits::PROGRESS_TIMEOUT);
    time::resume();
    drop(peer);

    let mut peer = world.greeted().await;
    let (transfer, _) = peer.begin(&put("x", 1 << 20)).await;
    peer.data(transfer, 0, &[1; 100_000]).await;
    assert!(peer.is_alive().await);
    time::pause();
    check("an upload that stops", end_in_time(&mut peer).await, limits::PROGRESS_TIMEOUT);
    time::resume();
    drop(peer);

    // In the middle of a frame, whatever its kind.
    for (kind, limit) in [(Kind::Stat, limits::IDLE_TIMEOUT), (Kind::Data, limits::IDLE_TIMEOUT)] {
        let mut peer = world.greeted().await;
        peer.bytes(&Header::new(kind, 1, 100).encode()[..7]).await;
        time::pause();
        check("half a header", end_in_time(&mut peer).await, limit);
        time::resume();
    }
    world.check(&[]).await;
}

/// Who only says that it is at work is waited for long, and not for ever.
#[tokio::test]
async fn words_of_being_at_work_have_an_end() {
    let world = World::new().await;
    let mut peer = world.greeted().await;
    let (transfer, _) = peer.begin(&put("x", 1 << 20)).await;
    peer.data(transfer, 0, &[1; 10_000]).await;
    assert!(peer.is_alive().await);
    time::pause();
    let started = time::Instant::now();
    let ended = loop {
        tokio::select! {
            frame = peer.frame_without_limit() => match frame {
                Some((Kind::Goodbye, _, payload)) => break Goodbye::from_payload(&payload).unwrap(),
                Some(_) => {}
                None => panic!("no reason was given"),
            },
            () = time::sleep(Duration::from_secs(50)) => {
                peer.send(0, &Working { phase: Phase::Hashing, done: 1, total: 2, spent: None }).await;
            }
        }
        assert!(started.elapsed() < limits::WORKING_TIMEOUT * 2, "nobody minds words");
    };
    assert_eq!(ErrorKind::from_code(ended.code), ErrorKind::Timeout);
    let took = started.elapsed();
    assert!(took > limits::WORKING_TIMEOUT - Duration::from_secs(120), "{took:?}");
    time::resume();
    drop(peer);
    world.check(&[]).await;
}

#[tokio::test]
async fn a_drip_is_no_progress() {
    let world = World::new().await;
    let mut peer = world.greeted().await;
    let (transfer, _) = peer.begin(&put("x", 1 << 20)).await;
    peer.bytes(&Header::new(Kind::Data, transfer, OFFSET_LEN + (256 << 10)).encode()).await;
    peer.bytes(&[0; OFFSET_LEN]).await;
    time::pause();
    let started = time::Instant::now();
    // A byte each second, until the server has had enough.
    let ended = loop {
        tokio::select! {
            frame = peer.frame_without_limit() => match frame {
                Some((Kind::Goodbye, _, payload)) => break Goodbye::from_payload(&payload).unwrap(),
                Some(_) => {}
                None => panic!("no reason was given"),
            },
            () = time::sleep(Duration::from_secs(1)) => {}
        }
        peer.bytes(&[0]).await;
        assert!(started.elapsed() < Duration::from_secs(600), "nobody minds a drip");
    };
    assert_eq!(ErrorKind::from_code(ended.code), ErrorKind::Timeout);
    assert!(started.elapsed() < limits::PROGRESS_TIMEOUT + limits::WORKING_INTERVAL * 3, "{:?}", started.elapsed());
    time::resume();
    drop(peer);
    world.check(&[]).await;
}

#[tokio::test]
async fn a_hello_that_does_not_come_is_not_waited_for() {
    let world = World::new().await;
    let hello = super::peer::hello().to_frame(0);
    for len in [0, 5, hello.len() - 1] {
        let mut peer = world.connect().await;
        peer.bytes(&hello[..len]).await;
        time::pause();
        check("a hello", end_in_time(&mut peer).await, limits::HELLO_TIMEOUT);
        time::resume();
    }
    // Frames that may be skipped do not buy time.
    let mut peer = world.connect().await;
    peer.bytes(&[0xf0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(100)).await;
    time::pause();
    check("only what may be skipped", end_in_time(&mut peer).await, limits::HELLO_TIMEOUT);
    time::resume();
    drop(peer);
    world.check(&[]).await;
}

/// In real time, once: a paused clock would be over before the first byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_drips_is_cut_off() {
    let world = World::new().await;
    let started = Instant::now();
    let mut silent = TcpStream::connect(world.address).await.unwrap();
    let mut dripping = TcpStream::connect(world.address).await.unwrap();
    let drip = async {
        // A record of a client hello that goes on and on.
        for byte in [0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc].into_iter().chain(std::iter::repeat(1)) {
            if tokio::io::AsyncWriteExt::write_all(&mut dripping, &[byte]).await.is_err() {
                break;
            }
            let mut answer = [0; 64];
            if let Ok(Ok(0) | Err(_)) = time::timeout(Duration::from_millis(100), dripping.read(&mut answer)).await {
                break;
            }
        }
        started.elapsed()
    };
    let wait = async {
        let mut waste = Vec::new();
        let _ = silent.read_to_end(&mut waste).await;
        started.elapsed()
    };
    let others = async {
        for _ in 0..10 {
            world.good().await.stat("").await.unwrap();
        }
    };
    let (drip, wait, ()) = time::timeout(Duration::from_secs(20), async { tokio::join!(drip, wait, others) })
        .await
        .expect("a handshake has a deadline");
    for took in [drip, wait] {
        assert!(took >= limits::HANDSHAKE_TIMEOUT, "{took:?}");
        assert!(took < limits::HANDSHAKE_TIMEOUT + Duration::from_secs(2), "{took:?}");
    }
    world.check(&[]).await;
}
