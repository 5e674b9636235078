//! Broken bytes: truncation everywhere, lies in headers, and what is no TLS at all (P01, P02, T05, T07, T08).

use std::sync::Arc;

use rustls::ClientConfig;
use sealift::ErrorKind;
use sealift::protocol::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::codec::{alone, memory};
use super::super::vectors::vectors;
use super::peer::{End, Peer, SOON, World, block_on, data, finish, get, hello, path, put, put_small};

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// In order: TLS's close_notify, then FIN.
    Order,
    /// FIN without close_notify.
    Fin,
    /// A reset.
    Reset,
}

const CUTS: [Cut; 3] = [Cut::Order, Cut::Fin, Cut::Reset];

impl Peer {
    async fn leave(mut self, cut: Cut) {
        match cut {
            Cut::Order => {
                let _ = self.stream.shutdown().await;
            }
            Cut::Fin => {
                let _ = self.stream.get_mut().0.shutdown().await;
            }
            Cut::Reset => {
                let _ = self.stream.get_ref().0.set_zero_linger();
                return;
            }
        }
        // The server ends its side too; what it still says is of no interest.
        let mut waste = Vec::new();
        let _ = timeout(SOON, self.stream.get_mut().0.read_to_end(&mut waste)).await.expect("the server hangs up");
    }
}

/// Runs many connections, some at a time.
async fn all<F: Future<Output = ()> + Send + 'static>(jobs: impl IntoIterator<Item = F>) {
    let mut running = JoinSet::new();
    for job in jobs {
        if running.len() >= 16 {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(job);
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_cut_at_every_byte_leaves_nothing() {
    let world = Arc::new(World::new().await);
    std::fs::write(world.root().join("kept"), b"kept").unwrap();
    // Whatever a client may send first, under the number that a first transfer has. No vector's request succeeds
    // in changing something, because it never comes whole.
    let from_client = vectors().into_iter().filter(|vector| {
        !matches!(vector.kind, Kind::ClientHello) && (vector.kind as u8) < 0x38 && vector.kind != Kind::ServerHello
    });
    let mut jobs = Vec::new();
    for vector in from_client {
        for len in 0..vector.frame.len() {
            let (world, bytes, cut) = (Arc::clone(&world), vector.frame[..len].to_vec(), CUTS[len % 3]);
            jobs.push(async move {
                let mut peer = world.greeted().await;
                peer.bytes(&bytes).await;
                peer.leave(cut).await;
            });
        }
    }
    all(jobs).await;
    world.check(&[("kept", b"kept")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_cut_at_every_byte_is_no_hello() {
    let world = Arc::new(World::new().await);
    let frame = hello().to_frame(0);
    let mut jobs = Vec::new();
    for len in 0..frame.len() {
        let (world, bytes) = (Arc::clone(&world), frame[..len].to_vec());
        jobs.push(async move {
            let mut peer = world.connect().await;
            peer.bytes(&bytes).await;
            peer.leave(CUTS[len % 3]).await;
        });
    }
    all(jobs).await;
    world.check(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_cut_anywhere_is_no_file() {
    let world = Arc::new(World::new().await);
    let small = b"a small one";
    let put_it = put_small("small", small);
    let whole =
        [put_it.to_frame(1), data(1, 0, &small[..4]), data(1, 4, &small[4..]), finish(small).to_frame(1)].concat();
    let mut jobs = Vec::new();
    for len in 0..whole.len() {
        for cut in CUTS {
            let (world, bytes) = (Arc::clone(&world), whole[..len].to_vec());
            jobs.push(async move {
                let mut peer = world.greeted().await;
                peer.bytes(&bytes).await;
                peer.leave(cut).await;
            });
        }
    }
    all(jobs).await;
    world.check(&[]).await;

    // A larger one, cut inside groups, at their ends, and at each border of frames.
    let size = 2 * (1 << 20) + 5;
    let content: Arc<Vec<u8>> = Arc::new((0..size).map(|index| (index % 251) as u8).collect());
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for (group, bytes) in content.chunks(1 << 20).enumerate() {
        for (index, piece) in bytes.chunks(256 << 10).enumerate() {
            frames.push(data(1, (group << 20) as u64 + (index << 18) as u64, piece));
        }
    }
    frames.push(finish(&content).to_frame(1));
    let stream: Arc<Vec<u8>> = Arc::new(frames.concat());
    let mut ends: Vec<usize> = frames
        .iter()
        .scan(0, |end, frame| {
            *end += frame.len();
            Some(*end)
        })
        .collect();
    ends.pop(); // all of it would be an upload
    let cuts: Vec<usize> = ends.iter().flat_map(|&end| [end - 1, end, end + 1, end + 12, end + 100_000]).collect();
    let mut jobs = Vec::new();
    for len in cuts.into_iter().filter(|&len| len < stream.len()) {
        let (world, stream) = (Arc::clone(&world), Arc::clone(&stream));
        jobs.push(async move {
            let mut peer = world.greeted().await;
            peer.begin(&put("large", size as u64)).await;
            peer.bytes(&stream[..len]).await;
            peer.leave(CUTS[len % 3]).await;
        });
    }
    all(jobs).await;
    world.check(&[]).await;
    // The same bytes to their end are a file.
    let mut peer = world.greeted().await;
    let (transfer, _) = peer.begin(&put("large", size as u64)).await;
    assert_eq!(transfer, 1);
    peer.bytes(&stream).await;
    // Some of them are told as held by now.
    assert_eq!(peer.outcome(1).await.unwrap().0, Kind::Stored);
    drop(peer);
    world.check(&[("large", &content)]).await;
}

#[tokio::test]
async fn lies_in_headers_end_the_connection() {
    let world = World::new().await;
    for &kind in Kind::ALL {
        let (min, max) = kind.len_range();
        for len in [min as u32 - 1, max as u32 + 1, 1 << 31, u32::MAX] {
            let mut peer = world.greeted().await;
            let mut header = Header::new(kind, 1, max).encode();
            header[8..].copy_from_slice(&len.to_be_bytes());
            peer.bytes(&header).await;
            peer.refused(format_args!("{kind:?} of {len} bytes")).await;
        }
        for (index, byte) in [(1, 1), (1, 0x80), (2, 1), (3, 0xff)] {
            let mut peer = world.greeted().await;
            let mut header = Header::new(kind, 1, max).encode();
            header[index] = byte;
            peer.bytes(&header).await;
            peer.refused(format_args!("{kind:?} with byte {index} set")).await;
        }
    }
    for code in (0..=u8::MAX).filter(|&code| Kind::from_code(code).is_none()) {
        let mut peer = world.greeted().await;
        let skip = code >= 0x80;
        peer.bytes(&[code, 1, 2, 3, 9, 9, 9, 9, 0, 0, 0, 2, 0, 0]).await;
        assert_eq!(peer.is_alive().await, skip, "kind {code:#04x}");
        if skip {
            peer.bytes(&[code, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]).await;
            peer.refused(format_args!("kind {code:#04x} that is too long")).await;
        }
    }
    world.check(&[]).await;
}

#[tokio::test]
async fn before_the_hello_nothing_long_is_read() {
    let world = World::new().await;
    for &kind in Kind::ALL {
        let mut peer = world.connect().await;
        peer.bytes(&Header::new(kind, 0, kind.len_range().1.min(4097)).encode()).await;
        peer.bytes(&[0; 200]).await;
        // A hello of at most 4 KiB is waited for, and this one comes and is nonsense.
        if kind == Kind::ClientHello {
            peer.bytes(&[0; 4096 - 200]).await;
        }
        peer.refused(format_args!("a long {kind:?} before the hello")).await;
    }
    world.check(&[]).await;
}

#[test]
fn announced_lengths_hold_no_memory() {
    alone("hostile::bytes::announced_lengths_hold_no_memory", || block_on(announce()));
}

async fn announce() {
    let world = World::new().await;
    let mut peers = Vec::new();
    for _ in 0..8 {
        peers.push(world.greeted().await);
    }
    let before = memory("VmRSS");
    for _ in 0..56 {
        peers.push(world.greeted().await);
    }
    let connected = memory("VmRSS").saturating_sub(before);
    // Half of them announce the largest message, half the largest piece of content, and none sends it.
    for (index, peer) in peers.iter_mut().enumerate() {
        if index % 2 == 0 {
            peer.bytes(&Header::new(Kind::Put, 1, 65_536).encode()).await;
            peer.bytes(&[0xa8, 0, 0x99]).await;
        } else {
            let put = put("x", 1 << 20);
            peer.send(1, &put).await;
            peer.answer(1).await.unwrap();
            peer.bytes(&Header::new(Kind::Data, 1, OFFSET_LEN + (256 << 10)).encode()).await;
        }
    }
    let grown = memory("VmRSS").saturating_sub(before + connected);
    assert!(grown < 8 << 10, "{grown} KiB for 64 announcements (their connections took {connected} KiB)");
    drop(peers);
    world.check(&[]).await;
}

// ---- no TLS, or another protocol in it ---------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_tls_is_hung_up_on() {
    let world = World::new().await;
    let mut random = vec![0; 3000];
    getrandom::fill(&mut random).unwrap();
    let cases: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PUT /x HTTP/1.0\r\n\r\nx",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x40\x00",
        &[0; 64],
        &[0xff; 4096],
        &random,
        &hello().to_frame(0),
    ];
    for bytes in cases {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        let _ = tcp.write_all(bytes).await;
        let _ = tcp.shutdown().await;
        let mut answer = Vec::new();
        let read = timeout(SOON, tcp.read_to_end(&mut answer)).await.expect("the server hangs up");
        assert!(answer.len() < 64, "{read:?}: at most an alert, not {} bytes", answer.len());
    }
    world.check(&[]).await;
}

#[tokio::test]
async fn only_our_protocol_is_spoken() {
    let world = World::new().await;
    let with = |names: &[&[u8]]| {
        let mut config: ClientConfig = (*world.client(true)).clone();
        config.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    };
    for names in [&[&b"h2"[..]][..], &[b"http/1.1", b"h2"], &[b"sealift/2"], &[b"sealift/"], &[b"SEALIFT/1"]] {
        // The alert may come with the handshake or with the first read after it.
        if let Ok(mut peer) = world.connect_with(with(names)).await {
            peer.bytes(&hello().to_frame(0)).await;
            assert_eq!(peer.frame().await, None, "{names:?}");
        }
    }
    let mut peer = world.connect_with(with(&[])).await.unwrap();
    peer.bytes(&hello().to_frame(0)).await;
    assert_eq!(peer.end().await, End::Closed, "no protocol at all");
    // Another protocol's bytes under our name.
    for bytes in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut peer = world.connect().await;
        peer.bytes(bytes).await;
        peer.refused("HTTP under our name").await;
    }
    // Ours among others is chosen.
    let mut peer = world.connect_with(with(&[b"h2", b"sealift/1"])).await.unwrap().greet().await;
    assert!(peer.is_alive().await);
    drop(peer);
    world.check(&[]).await;
}

#[tokio::test]
async fn what_follows_a_hello_is_answered_after_it_and_only_if_that_is_taken() {
    let world = World::new().await;
    std::fs::write(world.root().join("x"), b"stays").unwrap();
    let stranger = ClientHello { versions: List(vec![2]), ..hello() };
    for hello in [hello(), stranger.clone()] {
        let asked = [
            hello.to_frame(0),
            Stat { path: path("x"), xattrs: None }.to_frame(1),
            Get { unasked_max: 9, ..get("x") }.to_frame(2),
            Remove { path: path("x"), recursive: false }.to_frame(3),
        ];
        let mut peer = world.connect().await;
        if hello == stranger {
            peer.bytes(&asked.concat()).await;
            assert_eq!(peer.end().await, End::Goodbye(ErrorKind::Version));
            continue;
        }
        peer.bytes(&asked[..3].concat()).await;
        assert_eq!(peer.frame().await.unwrap().0, Kind::ServerHello);
        let mut answers = Vec::new();
        while answers.len() < 4 {
            let (kind, transfer, _) = peer.frame().await.unwrap();
            answers.push((transfer, kind));
        }
        answers.sort_by_key(|&(transfer, _)| transfer);
        let expected = [(1, Kind::Entry), (2, Kind::GetAnswer), (2, Kind::Data), (2, Kind::Finish)];
        assert_eq!(answers, expected);
    }
    world.check(&[("x", b"stays")]).await;
}

#[tokio::test]
async fn versions_are_negotiated_or_refused_with_a_reason() {
    let world = World::new().await;
    for (versions, expected) in [
        (vec![1], None),
        (vec![9, 2, 1, 0], None),
        (vec![2], Some(ErrorKind::Version)),
        (vec![0x0a0a, u16::MAX], Some(ErrorKind::Version)),
        (vec![], Some(ErrorKind::Version)),
    ] {
        let mut peer = world.connect().await;
        peer.send(0, &ClientHello { versions: List(versions.clone()), ..hello() }).await;
        match expected {
            None => assert_eq!(peer.frame().await.unwrap().0, Kind::ServerHello, "{versions:?}"),
            Some(kind) => assert_eq!(peer.end().await, End::Goodbye(kind), "{versions:?}"),
        }
    }
    let mut peer = world.connect().await;
    peer.send(0, &ClientHello { redeem: Some(Ticket::new([0; 32])), ..hello() }).await;
    assert_eq!(peer.end().await, End::Goodbye(ErrorKind::Unsupported));
    world.check(&[]).await;
}
