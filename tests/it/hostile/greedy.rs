//! Peers that want more than their share of connections, buffers and disk threads (R01, R03, R05): they harm only
//! themselves.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sealift::ErrorKind;
use sealift::protocol::*;
use sealift::server::CrowdLimits;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::peer::{End, SOON, World, data, finish, path, put};

const MIB: usize = 1 << 20;

/// A connection from another address of this machine.
async fn from(address: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the server closes it at once.
async fn is_closed(stream: &mut TcpStream, wait: Duration) -> bool {
    matches!(timeout(wait, stream.read(&mut [0; 16])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_has_so_many_connections_and_others_theirs() {
    let crowd = CrowdLimits { per_address: 9, half_open_per_address: 4, per_principal: 6 };
    let world = World::with_limits(64 * MIB, crowd).await;
    // Silent ones of another address fill their bound, and a fifth is closed; the first four are not.
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(from("127.0.0.9", world.address).await);
    }
    let mut fifth = from("127.0.0.9", world.address).await;
    assert!(is_closed(&mut fifth, SOON).await, "a fifth that has said nothing");
    for stream in &mut silent {
        assert!(!is_closed(stream, Duration::from_millis(20)).await, "one of the first four");
    }
    // Who is somewhere else notices nothing.
    let mut good = Vec::new();
    for _ in 0..6 {
        good.push(world.good().await);
    }
    for peer in &mut good {
        peer.stat("").await.unwrap();
    }
    // A seventh of one certificate is told why; one without a certificate is not counted with them.
    let mut seventh = world.connect().await;
    seventh.send(0, &super::peer::hello()).await;
    assert_eq!(seventh.end().await, End::Goodbye(ErrorKind::Busy));
    let mut anonymous = world.anonymous().await;
    assert_eq!(anonymous.stat("").await.unwrap_err(), ErrorKind::Rights);
    // The ninth of this address is the last.
    let mut ninth = TcpStream::connect(world.address).await.unwrap();
    assert!(!is_closed(&mut ninth, Duration::from_millis(50)).await);
    let mut tenth = TcpStream::connect(world.address).await.unwrap();
    assert!(is_closed(&mut tenth, SOON).await, "a tenth of one address");
    // Places that are left are there for the next.
    drop((good, ninth, seventh, anonymous, silent));
    let begun = Instant::now();
    loop {
        let mut stream = from("127.0.0.9", world.address).await;
        if !is_closed(&mut stream, Duration::from_millis(20)).await {
            break;
        }
        assert!(begun.elapsed() < SOON, "no place came back");
    }
    world.check(&[]).await;
}

/// Connections that announce content and send none of it hold no buffers: another of the same name goes on at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_content_that_does_not_come_holds_nothing() {
    // A quarter of it, the share of one principal, is 16 first leases.
    let world = World::with_limits(4 * MIB, CrowdLimits::default()).await;
    let mut peers = Vec::new();
    for index in 0..40 {
        let mut peer = world.greeted().await;
        let (transfer, _) = peer.begin(&put(&format!("x{index}"), 2 << 20)).await;
        peer.bytes(&Header::new(Kind::Data, transfer, OFFSET_LEN + (256 << 10)).encode()).await;
        peer.bytes(&[0; OFFSET_LEN]).await;
        peers.push(peer);
    }
    let begun = Instant::now();
    let mut good = world.good().await;
    let content = vec![3; 3 * MIB];
    let (transfer, _) = good.begin(&put("good", content.len() as u64)).await;
    let mut frames = Vec::new();
    for (index, piece) in content.chunks(256 << 10).enumerate() {
        frames.extend(data(transfer, (index as u64) << 18, piece));
    }
    frames.extend(finish(&content).to_frame(transfer));
    good.bytes(&frames).await;
    assert_eq!(good.outcome(transfer).await.unwrap().0, Kind::Stored);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?} for 3 MiB", begun.elapsed());
    // Those that begin at last are served too.
    let rest = [7; 256 << 10];
    peers[5].bytes(&rest).await;
    assert!(peers[5].is_alive().await);
    drop((peers, good));
    world.check(&[("good", &content)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashing_for_many_connections_of_one_name_takes_turns() {
    let world = World::new().await;
    std::fs::write(world.root().join("file"), vec![1; 2 * MIB]).unwrap();
    let mut peers = Vec::new();
    for _ in 0..10 {
        let mut peer = world.greeted().await;
        let mut frames = Vec::new();
        for _ in 0..12 {
            frames.extend(Hash { path: path("file"), read: Some(true) }.to_frame(peer.number()));
        }
        peer.bytes(&frames).await;
        peers.push(peer);
    }
    let expected = sealift::hash::Root::of(&vec![1; 2 * MIB]);
    for peer in &mut peers {
        for _ in 0..12 {
            let (kind, _, payload) = loop {
                match peer.frame().await.unwrap() {
                    (Kind::Working, ..) => {}
                    frame => break frame,
                }
            };
            assert_eq!(kind, Kind::Done);
            assert_eq!(Done::from_payload(&payload).unwrap().root, Some(expected));
        }
    }
    drop(peers);
    world.check_alive().await;
}

/// A server that is told to end does not wait for those that have not begun (or do not read).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ending_server_does_not_wait_for_who_has_not_said_hello() {
    for is_hard in [true, false] {
        let world = World::new().await;
        let silent = TcpStream::connect(world.address).await.unwrap();
        let peer = world.connect().await;
        // Accepted, every one of them.
        world.good().await.stat("").await.unwrap();
        let took = world.end(is_hard).await;
        assert!(took < Duration::from_secs(8), "{took:?}, hard: {is_hard}");
        drop((silent, peer));
    }
}
