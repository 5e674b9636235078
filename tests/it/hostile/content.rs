//! Lies about content: its order, place, size, root and amount (P06, P07, R12).

use sealift::ErrorKind;
use sealift::hash::Root;
use sealift::protocol::*;
use sealift::tls::{ClientOptions, ClientTls};

use super::peer::{Peer, World, data, finish, get, path, put, put_small};

const G: u64 = 1 << 20;

/// The content of tests.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_that_do_not_fit_end_the_connection() {
    let world = World::new().await;
    let size = Some(3 * G + 10);
    const MAX: usize = 256 << 10;
    type Pieces = &'static [(u64, usize)];
    let cases: &[(&str, Option<u64>, Pieces)] = &[
        ("past the end", size, &[(3 * G, 11)]),
        ("at the end", size, &[(3 * G + 10, 1)]),
        ("past any offset", size, &[(u64::MAX, 1)]),
        ("to the last offset", size, &[(u64::MAX - 1, 1)]),
        ("past any file", size, &[(1 << 52, 1)]),
        ("from a sign bit on", size, &[(1 << 63, 1)]),
        ("across two groups", size, &[(G - 1, 2)]),
        ("a gap", size, &[(0, 10), (11, 10)]),
        ("an overlap", size, &[(0, 10), (9, 10)]),
        ("the same again", size, &[(0, 10), (0, 10)]),
        ("not from the start of a group", size, &[(G + 1, 10)]),
        ("two groups in turn", size, &[(0, 10), (G, 10)]),
        ("a whole group twice", size, &[(3 * G, 10), (3 * G, 10)]),
        ("an empty file with content", Some(0), &[(0, 1)]),
        ("a stream that begins later", None, &[(G, 10)]),
        ("a stream with a gap", None, &[(0, 10), (20, 10)]),
        ("a stream that goes back", None, &[(0, MAX), (0, 1)]),
        ("a stream past any file", None, &[((1 << 52) - 1, 2)]),
    ];
    for (what, size, pieces) in cases {
        let mut peer = world.greeted().await;
        let (transfer, _) = peer.begin(&Put { size: *size, ..put("x", 0) }).await;
        for &(offset, len) in *pieces {
            peer.data(transfer, offset, &vec![1; len]).await;
        }
        peer.refused(what).await;
    }
    world.check(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_in_any_order_make_the_file_and_only_with_its_root() {
    let world = World::new().await;
    let whole = content(3 * G as usize + 10);
    let size = whole.len() as u64;
    let groups = || whole.chunks(G as usize).enumerate().rev();
    for right in [true, false] {
        let mut peer = world.greeted().await;
        let (transfer, _) = peer.begin(&put("x", size)).await;
        for (index, group) in groups() {
            for (piece, bytes) in group.chunks(256 << 10).enumerate() {
                peer.data(transfer, index as u64 * G + ((piece as u64) << 18), bytes).await;
            }
        }
        let root = if right { Root::of(&whole) } else { Root([0; 32]) };
        peer.send(transfer, &Finish { size, root }).await;
        match peer.answer(transfer).await {
            Ok((Kind::Stored, payload)) if right => {
                assert_eq!(Stored::from_payload(&payload).unwrap().root, Some(root));
                std::fs::remove_file(world.root().join("x")).unwrap();
            }
            Err(ErrorKind::Mismatch) if !right => {}
            other => panic!("right {right}: {other:?}"),
        }
        assert!(peer.is_alive().await);
        peer.data(transfer, 0, &[1]).await;
        peer.refused("content after the end").await;
    }
    world.check(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_finish_stores_nothing() {
    let world = World::new().await;
    let right = b"right";
    for unasked in [true, false] {
        for (what, sent, claimed, expected) in [
            ("another root", &right[..], Finish { size: 5, root: Root([1; 32]) }, ErrorKind::Mismatch),
            ("right root of wrong bytes", b"wrong", finish(right), ErrorKind::Mismatch),
            ("the root of nothing", right, Finish { size: 5, root: Root::of(b"") }, ErrorKind::Mismatch),
            ("a smaller size", right, finish(b"righ"), ErrorKind::Protocol),
            ("a larger size", right, finish(b"right!"), ErrorKind::Protocol),
            ("the largest size", right, Finish { size: u64::MAX, ..finish(right) }, ErrorKind::Protocol),
            ("missing content", b"rig", finish(right), ErrorKind::Protocol),
            ("no content", b"", finish(right), ErrorKind::Protocol),
        ] {
            let mut peer = world.greeted().await;
            let transfer = if unasked {
                let transfer = peer.number();
                peer.send(transfer, &put_small("x", right)).await;
                transfer
            } else {
                peer.begin(&put("x", 5)).await.0
            };
            if !sent.is_empty() {
                peer.data(transfer, 0, sent).await;
            }
            peer.send(transfer, &claimed).await;
            assert_eq!(peer.answer(transfer).await.map(|answer| answer.0), Err(expected), "{what}, unasked {unasked}");
            if expected == ErrorKind::Mismatch {
                assert!(peer.is_alive().await);
                peer.send(transfer, &claimed).await;
                peer.refused("a second finish").await;
            }
        }
    }
    world.check(&[]).await;
}

/// Whatever the server is doing with the content so far when the finish comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finish_before_all_content_is_refused_at_any_moment() {
    let world = World::new().await;
    let whole = content(2 * G as usize);
    let size = whole.len() as u64;
    for len in [1, 4 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, G as usize, G as usize + (64 << 10)] {
        let mut peer = world.greeted().await;
        let (transfer, _) = peer.begin(&put("x", size)).await;
        let mut frames = Vec::new();
        for (piece, bytes) in whole[..len].chunks(64 << 10).enumerate() {
            frames.extend(data(transfer, (piece as u64) << 16, bytes));
        }
        frames.extend(finish(&whole).to_frame(transfer));
        peer.bytes(&frames).await;
        peer.refused(format_args!("a finish after {len} bytes")).await;
    }
    world.check(&[]).await;
}

#[tokio::test]
async fn a_stream_has_the_size_that_came() {
    let world = World::new().await;
    for (claimed, expected) in [(5, None), (4, Some(ErrorKind::Protocol)), (6, Some(ErrorKind::Protocol))] {
        let mut peer = world.greeted().await;
        let (transfer, _) = peer.begin(&Put { size: None, ..put("stream", 0) }).await;
        peer.data(transfer, 0, b"12").await;
        peer.data(transfer, 2, b"345").await;
        peer.send(transfer, &Finish { size: claimed, ..finish(b"12345") }).await;
        let answer = peer.answer(transfer).await;
        assert_eq!(answer.err(), expected, "{claimed}");
    }
    world.check(&[("stream", b"12345")]).await;
}

/// A comparison without content: the root is the server's own, and a claim that differs is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchanged_is_compared_by_the_server_too() {
    let world = World::new().await;
    let whole = content(2 * G as usize + 3);
    std::fs::write(world.root().join("there"), &whole).unwrap();
    let size = whole.len() as u64;
    for if_exists in [IfExists::Overwrite, IfExists::Skip, IfExists::Fail] {
        for right in [true, false] {
            for patient in [true, false] {
                let mut peer = world.greeted().await;
                let (transfer, answer) = peer.begin(&Put { if_exists, ..put("there", size) }).await;
                assert_eq!(answer.holding, Holding::Base);
                if patient {
                    assert_eq!(peer.answer(transfer).await.unwrap().0, Kind::Values);
                }
                let root = if right { Root::of(&whole) } else { Root([9; 32]) };
                peer.send(transfer, &Finish { size, root }).await;
                let what = format!("{if_exists:?}, right {right}, patient {patient}");
                let answer = peer.outcome(transfer).await;
                match answer {
                    Ok((Kind::Stored, payload)) if right => {
                        let stored = Stored::from_payload(&payload).unwrap();
                        assert_eq!((stored.outcome, stored.root), (Outcome::Unchanged, Some(root)), "{what}");
                    }
                    Err(ErrorKind::Mismatch) if !right => {}
                    other => panic!("{what}: {other:?}"),
                }
                assert!(peer.is_alive().await);
            }
        }
    }
    world.check(&[("there", &whole)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_is_filled_only_with_what_fits() {
    let world = World::new().await;
    let before = content(2 * G as usize + 3);
    std::fs::write(world.root().join("there"), &before).unwrap();
    let mut after = before.clone();
    after[G as usize..2 * G as usize].fill(9);
    for (what, root, size, expected) in [
        ("the wrong root", Root([0; 32]), after.len() as u64, Err(ErrorKind::Mismatch)),
        ("missing groups", Root([0; 32]), after.len() as u64 + G, Err(ErrorKind::Protocol)),
        ("the right root", Root::of(&after), after.len() as u64, Ok(())),
    ] {
        let mut peer = world.greeted().await;
        let (transfer, answer) = peer.begin(&put("there", size)).await;
        // What came with a finish too early was right, and is held for another attempt; with a wrong root, nothing is.
        let holding = if what == "the right root" { Holding::Held } else { Holding::Base };
        assert_eq!((answer.holding, answer.held_size), (holding, before.len() as u64), "{what}");
        for piece in 0..4_u64 {
            peer.data(transfer, G + (piece << 18), &[9; 256 << 10]).await;
        }
        peer.send(transfer, &Finish { size, root }).await;
        let answer = peer.outcome(transfer).await.map(|_| ());
        assert_eq!(answer, expected, "{what}");
        drop(peer);
    }
    world.check(&[("there", &after)]).await;
}

#[tokio::test]
async fn an_answer_that_was_lost_is_found_again_and_the_newest_attempt_wins() {
    let world = World::new().await;
    let small = put_small("small", b"abc");
    let first = world.greeted().await.store(small.clone(), b"abc").await.unwrap();
    assert_eq!(world.greeted().await.store(small.clone(), b"abc").await.unwrap(), first);
    let (mut old, mut new) = (world.greeted().await, world.greeted().await);
    let put = put("asked", 3);
    let (old_transfer, older) = old.begin(&put).await;
    let (new_transfer, newer) = new.begin(&put).await;
    assert!(newer.generation > older.generation);
    let finish_it = async |peer: &mut Peer, transfer| {
        peer.data(transfer, 0, b"abc").await;
        peer.send(transfer, &finish(b"abc")).await;
        peer.answer(transfer).await.map(|answer| answer.0)
    };
    assert_eq!(finish_it(&mut old, old_transfer).await, Err(ErrorKind::Superseded));
    assert_eq!(finish_it(&mut new, new_transfer).await, Ok(Kind::Stored));
    let transfer = old.number();
    old.send(transfer, &put).await;
    assert_eq!(old.answer(transfer).await.unwrap().0, Kind::Stored);
    drop((old, new));
    world.check(&[("small", b"abc"), ("asked", b"abc")]).await;
}

#[tokio::test]
async fn sizes_beyond_reason_are_refused_before_content() {
    let world = World::new().await;
    for (size, expected) in [
        (1 << 50, ErrorKind::NoSpace),
        ((1 << 52) + 1, ErrorKind::Limit),
        (1 << 63, ErrorKind::Limit),
        (u64::MAX, ErrorKind::Limit),
    ] {
        let mut peer = world.greeted().await;
        assert_eq!(peer.ask(&put("x", size)).await, Err(expected), "{size}");
        let mut anonymous = world.anonymous().await;
        assert_eq!(anonymous.ask(&put("x", size)).await, Err(expected), "{size}, anonymous");
        assert!(peer.is_alive().await);
    }
    world.check(&[]).await;
}

#[tokio::test]
async fn ranges_that_a_file_does_not_have_end_the_connection() {
    let world = World::new().await;
    let whole = content(G as usize + 10);
    std::fs::write(world.root().join("there"), &whole).unwrap();
    let size = whole.len() as u64;
    for ranges in [
        vec![(0, 0)],
        vec![(0, size)],
        vec![(G - 1, 2)],
        vec![(size, 1)],
        vec![(size - 1, 2)],
        vec![(u64::MAX, 1)],
        vec![(1, u64::MAX)],
        vec![(u64::MAX, u64::MAX)],
        vec![(1 << 63, 1 << 63)],
        vec![(0, 1), (0, 0)],
        vec![(0, G); 1024],
    ] {
        let mut peer = world.greeted().await;
        peer.ask(&get("there")).await.unwrap();
        peer.send(1, &Want { ranges: List(ranges.clone()) }).await;
        peer.refused(format_args!("{:?}", ranges[0])).await;
    }
    for (first, count) in [(0, 0), (0, 3), (2, 1), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        let mut peer = world.greeted().await;
        peer.ask(&get("there")).await.unwrap();
        peer.send(1, &WantValues { first, count }).await;
        peer.refused(format_args!("values from {first}, {count}")).await;
    }
    world.check(&[("there", &whole)]).await;
}

/// Reads content of some downloads until the one asked for is answered; gives its bytes.
async fn read_all(peer: &mut Peer, transfer: u32) -> (Vec<u8>, Kind) {
    let mut bytes = Vec::new();
    loop {
        let (kind, payload) = peer.answer(transfer).await.unwrap();
        match kind {
            Kind::Data => bytes.extend_from_slice(&payload[OFFSET_LEN..]),
            kind => return (bytes, kind),
        }
    }
}

/// The first group comes without being wanted to who says so, of one download at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_group_may_come_with_the_answer() {
    let world = World::new().await;
    let whole = content(G as usize + 10);
    std::fs::write(world.root().join("there"), &whole).unwrap();
    std::fs::write(world.root().join("short"), &whole[..300]).unwrap();
    std::fs::File::create(world.root().join("hole")).unwrap().set_len(3 * G).unwrap();
    let get = |name: &str, first_max| Get { first_max, ..get(name) };
    let mut peer = world.greeted().await;
    let mut open = async |name: &str, first_max| {
        let (kind, payload) = peer.ask(&get(name, first_max)).await.unwrap();
        assert_eq!(kind, Kind::GetAnswer);
        GetAnswer::from_payload(&payload).unwrap().first
    };
    assert_eq!(open("there", None).await, None);
    // Another is open.
    assert_eq!(open("there", Some(u64::MAX)).await, None);
    drop(peer);
    let mut peer = world.greeted().await;
    let (_, payload) = peer.ask(&get("there", Some(G + 9))).await.unwrap();
    assert_eq!(GetAnswer::from_payload(&payload).unwrap().first, None, "it is larger");
    drop(peer);
    for (name, len) in [("there", G as usize), ("short", 300), ("hole", 0)] {
        let mut peer = world.greeted().await;
        // Two at once.
        peer.bytes(&[get(name, Some(3 * G)).to_frame(1), get(name, Some(3 * G)).to_frame(2)].concat()).await;
        let (mut came, mut answers) = (Vec::new(), Vec::new());
        while answers.len() < 2 || came.len() < len {
            match peer.frame().await.unwrap() {
                (Kind::GetAnswer, transfer, payload) => {
                    answers.push((transfer, GetAnswer::from_payload(&payload).unwrap().first));
                }
                (Kind::Data, 1, payload) => came.extend_from_slice(&payload[OFFSET_LEN..]),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert_eq!(answers, [(1, (len > 0).then_some(true)), (2, None)], "{name}");
        if name == "there" {
            peer.send(1, &Want { ranges: List(vec![(G, 10)]) }).await;
            let (kind, payload) = peer.answer(1).await.unwrap();
            assert_eq!(kind, Kind::Data);
            came.extend_from_slice(&payload[OFFSET_LEN..]);
        }
        assert!(came == whole[..came.len()]);
        peer.send(1, &Close {}).await;
        let expected = if len > 0 { Kind::Finish } else { Kind::Done };
        assert_eq!(peer.answer(1).await.unwrap().0, expected, "{name}");
    }
    // Whichever is opened first.
    let mut peer = world.greeted().await;
    peer.bytes(&[get("there", None).to_frame(1), get("there", Some(3 * G)).to_frame(2)].concat()).await;
    for transfer in [1, 2] {
        let (_, payload) = peer.answer(transfer).await.unwrap();
        assert_eq!(GetAnswer::from_payload(&payload).unwrap().first, None, "{transfer}");
    }
    drop(peer);
    world.check_alive().await;
}

/// Giving up downloads in the middle costs the others nothing: neither credit nor turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_that_are_given_up_hold_no_credit() {
    let world = World::new().await;
    let whole = content(8 * G as usize);
    std::fs::write(world.root().join("there"), &whole).unwrap();
    let mut peer = world.greeted().await;
    let ranges = List((0..8).map(|group| (group * G, G)).collect());
    // Far more in all than may be wanted at once.
    for _ in 0..40 {
        let transfer = peer.number();
        peer.send(transfer, &get("there")).await;
        peer.answer(transfer).await.unwrap();
        let mut frames = Want { ranges: ranges.clone() }.to_frame(transfer);
        frames.extend(Failed { code: 26, text: String::new(), retry: None }.to_frame(transfer));
        peer.bytes(&frames).await;
    }
    // Two at once, the first given up while the second waits for its turn.
    let (first, second) = (peer.number(), peer.number());
    for transfer in [first, second] {
        peer.send(transfer, &get("there")).await;
        peer.answer(transfer).await.unwrap();
    }
    let mut frames = Want { ranges: ranges.clone() }.to_frame(first);
    frames.extend(Want { ranges: ranges.clone() }.to_frame(second));
    frames.extend(Failed { code: 26, text: String::new(), retry: None }.to_frame(first));
    frames.extend(Close {}.to_frame(second));
    peer.bytes(&frames[..frames.len() - FRAME_HEADER_LEN - 1]).await;
    let mut bytes = Vec::new();
    while bytes.len() < whole.len() {
        let (kind, payload) = peer.answer(second).await.unwrap();
        assert_eq!(kind, Kind::Data);
        bytes.extend_from_slice(&payload[OFFSET_LEN..]);
    }
    assert!(bytes == whole);
    peer.send(second, &Close {}).await;
    assert_eq!(read_all(&mut peer, second).await, (Vec::new(), Kind::Finish));
    drop(peer);
    world.check(&[("there", &whole)]).await;
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_noticed() {
    let world = World::new().await;
    let file = world.root().join("there");
    std::fs::write(&file, content(100)).unwrap();
    let mut peer = world.greeted().await;
    peer.ask(&get("there")).await.unwrap();
    peer.send(1, &Want { ranges: List(vec![(0, 100)]) }).await;
    assert_eq!(peer.answer(1).await.unwrap().0, Kind::Data);
    std::fs::write(&file, content(50)).unwrap();
    peer.send(1, &Close {}).await;
    assert_eq!(peer.answer(1).await, Err(ErrorKind::Changed));
    drop(peer);
    world.check(&[("there", &content(50))]).await;
}

/// A client that has what it wanted need not wait for the word about the end of its downloads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_with_the_last_close_leaves_in_order() {
    use tokio::io::AsyncWriteExt as _;
    let world = crate::rig::World::new();
    let server = world.serve_and(&["--disk-threads".as_ref(), "1".as_ref()]);
    let there = content(100);
    std::fs::write(world.root().join("there"), &there).unwrap();
    std::fs::File::create(world.root().join("long")).unwrap().set_len(8 << 30).unwrap();
    // Keeps the only disk thread busy for a while, so that no job has come back when the end of a connection is read.
    let certs = || ClientTls::load(&ClientOptions::in_folder(&server.certs)).unwrap().config();
    let address = ([127, 0, 0, 1], server.port).into();
    let get = Get { finish_ahead: Some(true), ..get("there") };
    let want = Want { ranges: List(vec![(0, 100)]) };
    for (count, is_request_open) in [(15, false), (16, true)] {
        let mut peer = Peer::connect(address, certs()).await.unwrap().greet().await;
        let mut frames = Vec::new();
        for transfer in 1..=count {
            peer.ask(&get).await.unwrap();
            // Of some, the end is told before they are closed.
            if transfer % 2 == 0 {
                peer.send(transfer, &want).await;
                assert_eq!(peer.answer(transfer).await.unwrap().0, Kind::Data);
                assert_eq!(peer.answer(transfer).await.unwrap().0, Kind::FinishAhead);
            }
            frames.extend(Close {}.to_frame(transfer));
        }
        if is_request_open {
            frames.extend(get.to_frame(count + 1));
        }
        let mut other = Peer::connect(address, certs()).await.unwrap().greet().await;
        other.send(1, &Hash { path: path("long"), read: Some(true) }).await;
        other.send(2, &Stat { path: path("there"), xattrs: None }).await;
        other.answer(2).await.unwrap();
        // Of this one, nobody is there any more when it could be told.
        peer.send(1, &want).await;
        assert_eq!(peer.answer(1).await.unwrap().0, Kind::Data);
        let (_, tls) = peer.stream.get_mut();
        std::io::Write::write_all(&mut tls.writer(), &frames).unwrap();
        peer.stream.shutdown().await.unwrap();
        let said = format!("0 stored, {count} sent");
        let log = tokio::task::block_in_place(|| server.log_with(&said));
        let line = log.iter().find(|line| line.contains(&said)).unwrap();
        assert_eq!(line.contains("left in the middle of its work"), is_request_open, "{line}");
    }
}

/// Content of an upload that the server has failed is thrown away; others on the connection go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_after_a_failure_is_thrown_away() {
    let world = World::new().await;
    let before = content(300 << 10);
    std::fs::write(world.root().join("there"), &before).unwrap();
    let mut peer = world.greeted().await;
    let (transfer, _) = peer.begin(&put("there", 1 << 50)).await;
    let mut frames = Vec::new();
    for group in 0..12 {
        for piece in 0..4_u64 {
            frames.extend(data(transfer, group * G + (piece << 18), &[1; 256 << 10]));
        }
    }
    let second = peer.number();
    frames.extend(put_small("small", b"abc").to_frame(second));
    frames.extend(data(second, 0, b"abc"));
    frames.extend(finish(b"abc").to_frame(second));
    // More of the first between and after, and its finish.
    frames.extend(data(transfer, 99 * G, &[1; 100]));
    frames.extend(Finish { size: 1 << 50, root: Root([0; 32]) }.to_frame(transfer));
    peer.bytes(&frames).await;
    assert_eq!(peer.answer(second).await.unwrap().0, Kind::Stored);
    assert!(peer.is_alive().await);
    drop(peer);
    world.check(&[("there", &before), ("small", b"abc")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_are_a_claim_like_any_content() {
    let world = World::new().await;
    let zeros = |runs: &[(u64, u64)]| Zeros { runs: List(runs.to_vec()) };
    let size = 3 * G + 10;
    for (what, size, runs) in [
        ("past the end", Some(size), &[(0, 5)][..]),
        ("none", Some(size), &[(0, 0)]),
        ("past any number", Some(size), &[(u64::MAX, 2)]),
        ("all numbers", Some(size), &[(0, u64::MAX)]),
        ("out of order", Some(size), &[(2, 1), (0, 1)]),
        ("twice", Some(size), &[(0, 2), (1, 1)]),
        ("of a stream", None, &[(0, 1)]),
    ] {
        let mut peer = world.greeted().await;
        let (transfer, _) = peer.begin(&Put { size, ..put("x", 0) }).await;
        peer.send(transfer, &zeros(runs)).await;
        peer.refused(what).await;
    }
    let mut peer = world.greeted().await;
    peer.send(9, &zeros(&[(0, 1)])).await;
    peer.refused("of nothing").await;
    drop(peer);

    let mut whole = vec![0; size as usize];
    whole[G as usize..2 * G as usize].fill(7);
    let piece = vec![7; 256 << 10];
    for (runs, is_right) in [(&[(0, 1), (2, 2)][..], true), (&[(0, 4)], true), (&[(0, 1), (2, 1)], false)] {
        let mut peer = world.greeted().await;
        let (transfer, _) = peer.begin(&put("x", size)).await;
        for part in 0..4 {
            peer.data(transfer, G + part * (256 << 10), &piece).await;
        }
        peer.send(transfer, &zeros(runs)).await;
        peer.send(transfer, &finish(&whole)).await;
        if is_right {
            assert_eq!(peer.outcome(transfer).await.unwrap().0, Kind::Stored, "{runs:?}");
            assert!(std::fs::read(world.root().join("x")).unwrap() == whole, "{runs:?}");
            std::fs::remove_file(world.root().join("x")).unwrap();
        } else {
            peer.refused("a group is missing").await;
        }
    }
    // What is told as zeros and is not.
    let mut peer = world.greeted().await;
    let (transfer, _) = peer.begin(&put("x", size)).await;
    peer.send(transfer, &zeros(&[(0, 4)])).await;
    peer.send(transfer, &finish(&whole)).await;
    assert_eq!(peer.outcome(transfer).await, Err(ErrorKind::Mismatch));
    // A file that no disk holds is refused before any of it.
    let huge = peer.ask(&put("huge", 1 << 60)).await;
    assert_eq!(huge, Err(ErrorKind::Limit));
    let huge = peer.ask(&put("huge", 1 << 51)).await;
    assert_eq!(huge, Err(ErrorKind::NoSpace));
    drop(peer);
    world.check(&[]).await;
}
