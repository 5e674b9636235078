//! Every message in every state: only the transitions of `docs/PROTOCOL.md`, section 7, exist (P04).

use sealift::ErrorKind;
use sealift::protocol::*;

use super::super::vectors::vectors;
use super::peer::{End, Peer, World, ahead, data, finish, get, hello, path, put, put_small};

/// Where a connection, or the transfer that a message names, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Connected, and no hello.
    Begun,
    /// Nothing was ever open.
    Open,
    /// The transfer is an upload whose content may come.
    Receiving,
    /// The transfer is an upload that may only be compared.
    Comparing,
    /// The transfer is an unasked upload before its content.
    Unasked,
    /// The transfer is an upload that the server has failed.
    ThrownAway,
    /// The transfer is an upload that is stored.
    Stored,
    /// The transfer is an open download.
    Download,
    /// The transfer is a download that was closed and answered.
    Closed,
    /// The transfer was a request, and is answered.
    Answered,
}

use State::*;

const STATES: [State; 10] =
    [Begun, Open, Receiving, Comparing, Unasked, ThrownAway, Stored, Download, Closed, Answered];

/// Whether a message may come, in words of the document alone.
fn may_come(state: State, kind: Kind) -> bool {
    match kind {
        Kind::ClientHello => state == Begun,
        _ if state == Begun => false,
        Kind::Working | Kind::Failed | Kind::Goodbye => true,
        // Those that open something take a number that was never used.
        Kind::Put
        | Kind::Get
        | Kind::Stat
        | Kind::List
        | Kind::Hash
        | Kind::MakeDirectory
        | Kind::MakeLink
        | Kind::SetDirectory
        | Kind::Remove
        | Kind::Rename
        | Kind::Space
        | Kind::BeginTree
        | Kind::PublishTree
        | Kind::Invite
        | Kind::ListInvites
        | Kind::RevokeInvite => state == Open,
        Kind::Zeros | Kind::FinishAhead => matches!(state, Receiving | ThrownAway),
        Kind::Data => matches!(state, Receiving | Unasked | ThrownAway),
        Kind::Finish => matches!(state, Receiving | Comparing | Unasked | ThrownAway),
        Kind::Want | Kind::Close | Kind::WantValues => matches!(state, Download | ThrownAway),
        _ => false,
    }
}

const SIZE: usize = 300 << 10;

async fn reach(world: &World, state: State) -> (Peer, u32) {
    let mut peer = if state == Begun { world.connect().await } else { world.greeted().await };
    let transfer = match state {
        Begun => 0,
        Open => 1,
        Receiving => peer.begin(&put("new", 3)).await.0,
        Comparing => {
            let (transfer, answer) = peer.begin(&Put { if_exists: IfExists::Skip, ..put("there", SIZE as u64) }).await;
            assert!(answer.compare_only);
            assert_eq!(peer.answer(transfer).await.unwrap().0, Kind::Values);
            transfer
        }
        Unasked => {
            let transfer = peer.number();
            peer.send(transfer, &put_small("new", b"abc")).await;
            transfer
        }
        ThrownAway => {
            // Larger than any disk, which a server with a base learns with the first group.
            let (transfer, answer) = peer.begin(&put("there", 1 << 50)).await;
            assert_eq!(answer.holding, Holding::Base);
            for piece in 0..4 {
                peer.data(transfer, piece << 18, &[1; 256 << 10]).await;
            }
            assert_eq!(peer.outcome(transfer).await, Err(ErrorKind::NoSpace));
            transfer
        }
        Stored => {
            assert_eq!(peer.store(put_small("there too", b"x"), b"x").await.unwrap().size, 1);
            1
        }
        Download | Closed => {
            assert_eq!(peer.ask(&get("there")).await.unwrap().0, Kind::GetAnswer);
            if state == Closed {
                peer.send(1, &Close {}).await;
                assert_eq!(peer.answer(1).await.unwrap().0, Kind::Done);
            }
            1
        }
        Answered => {
            peer.stat("there").await.unwrap();
            1
        }
    };
    (peer, transfer)
}

/// A message that is right in itself, as it would be in the state where it belongs.
fn message(state: State, kind: Kind, transfer: u32) -> Vec<u8> {
    match kind {
        Kind::ClientHello => hello().to_frame(0),
        Kind::Data => data(transfer, 0, b"abc"),
        Kind::Finish if state == Comparing => finish(&[7; SIZE]).to_frame(transfer),
        Kind::Finish => finish(if state == Receiving || state == Unasked { b"" } else { b"abc" }).to_frame(transfer),
        Kind::FinishAhead => ahead(b"abc").to_frame(transfer),
        Kind::Want => Want { ranges: List(vec![(0, 10)]) }.to_frame(transfer),
        Kind::WantValues => WantValues { first: 0, count: 1 }.to_frame(transfer),
        Kind::Zeros => Zeros { runs: List(vec![(0, 1)]) }.to_frame(transfer),
        Kind::Goodbye | Kind::Working => vector(kind),
        Kind::Get => get("there").to_frame(transfer),
        Kind::Remove => Remove { path: path("nothing"), recursive: false }.to_frame(transfer),
        Kind::Put => put("other", 3).to_frame(transfer),
        Kind::MakeDirectory => MakeDirectory { path: path("d") }.to_frame(transfer),
        Kind::MakeLink => {
            let (path, target) = (path("l"), b"there".to_vec());
            MakeLink { path, target, mtime: None, if_exists: IfExists::Overwrite }.to_frame(transfer)
        }
        _ => {
            let mut frame = vector(kind);
            frame[4..8].copy_from_slice(&transfer.to_be_bytes());
            frame
        }
    }
}

fn vector(kind: Kind) -> Vec<u8> {
    vectors().into_iter().find(|vector| vector.kind == kind).unwrap().frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_documented_transitions_exist() {
    let world = World::new().await;
    let content = vec![7; SIZE];
    std::fs::write(world.root().join("there"), &content).unwrap();
    for state in STATES {
        for &kind in Kind::ALL {
            let (mut peer, transfer) = reach(&world, state).await;
            let what = format!("{kind:?} in state {state:?}");
            println!("{what}");
            peer.bytes(&message(state, kind, transfer)).await;
            if !may_come(state, kind) {
                peer.refused(what).await;
                continue;
            }
            match kind {
                Kind::Goodbye => assert_eq!(peer.end().await, End::Closed, "{what}"),
                Kind::ClientHello => assert_eq!(peer.frame().await.unwrap().0, Kind::ServerHello, "{what}"),
                // Right in this state, but nothing came before it.
                Kind::Finish if matches!(state, Receiving | Unasked) => peer.refused(what).await,
                _ => {
                    peer.number();
                    assert!(peer.is_alive().await, "{what}");
                }
            }
        }
    }
    world.check(&[("there", &content), ("there too", b"x")]).await;
}

#[tokio::test]
async fn numbers_of_transfers_are_used_once_and_ascend() {
    let world = World::new().await;
    let requests: [fn(u32) -> Vec<u8>; 3] = [
        |transfer| Stat { path: path(""), xattrs: None }.to_frame(transfer),
        |transfer| put("x", 3).to_frame(transfer),
        |transfer| get("x").to_frame(transfer),
    ];
    for (index, request) in requests.into_iter().enumerate() {
        // None, the one that is open, one that is over, one that was left out.
        for (first, second) in [(5, 0), (5, 5), (5, 4), (u32::MAX, u32::MAX), (u32::MAX, 1)] {
            let mut peer = world.greeted().await;
            peer.send(first, &put("y", 3)).await;
            peer.answer(first).await.unwrap();
            peer.bytes(&request(second)).await;
            peer.refused(format_args!("request {index}: {second} after {first}")).await;
        }
        let mut peer = world.greeted().await;
        peer.send(1, &Stat { path: path(""), xattrs: None }).await;
        peer.answer(1).await.unwrap();
        peer.bytes(&request(1)).await;
        peer.refused(format_args!("request {index}: a number that is over")).await;
    }
    world.check(&[]).await;
}

/// What a job found for a transfer that was given up must not reach another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_was_given_up_is_over() {
    let world = World::new().await;
    std::fs::write(world.root().join("there"), vec![7; SIZE]).unwrap();
    let failed =
        |transfer| Failed { code: ErrorKind::Interrupted.code(), text: String::new(), retry: None }.to_frame(transfer);
    for round in 0..20_u32 {
        let mut peer = world.greeted().await;
        let mut frames = Vec::new();
        let mut given_up = Vec::new();
        let mut number = 0;
        for request in 0..6 {
            number += 1;
            frames.extend(match request {
                0 => Stat { path: path("there"), xattrs: None }.to_frame(number),
                1 => put("new", 3).to_frame(number),
                2 => get("there").to_frame(number),
                3 => ListDirectory { path: path(""), after: None, count_max: None, xattrs: None, directory: None }
                    .to_frame(number),
                4 => Hash { path: path("there"), read: None }.to_frame(number),
                _ => put("there", SIZE as u64).to_frame(number),
            });
            if (round >> request) % 2 == 0 {
                frames.extend(failed(number));
                given_up.push(number);
            }
        }
        peer.bytes(&frames).await;
        // An answer may have been on its way, but only to what was asked.
        number += 1;
        peer.send(number, &Hash { path: path("there"), read: None }).await;
        loop {
            let (kind, transfer, _) = peer.frame().await.unwrap();
            let fits = match transfer {
                1 => kind == Kind::Entry,
                2 => kind == Kind::PutAnswer,
                3 => kind == Kind::GetAnswer,
                4 => matches!(kind, Kind::Entries | Kind::Done),
                5 => kind == Kind::Done,
                6 => matches!(kind, Kind::PutAnswer | Kind::Values),
                _ => kind == Kind::Done,
            };
            assert!(fits, "round {round}: {kind:?} for {transfer}; given up: {given_up:?}");
            if transfer == number {
                break;
            }
        }
    }
    world.check(&[("there", &[7; SIZE])]).await;
}

#[tokio::test]
async fn a_download_that_was_given_up_unanswered_is_closed() {
    let world = World::new().await;
    std::fs::write(world.root().join("there"), vec![7; SIZE]).unwrap();
    let mut peer = world.greeted().await;
    let mut frames = Vec::new();
    for _ in 0..500 {
        let number = peer.number();
        frames.extend(get("there").to_frame(number));
        frames.extend(Failed { code: 26, text: String::new(), retry: None }.to_frame(number));
    }
    peer.bytes(&frames).await;
    assert!(peer.is_alive().await);
    // The connection stays, and holds none of them open.
    world.check(&[("there", &[7; SIZE])]).await;
    assert!(peer.is_alive().await);
}

#[tokio::test]
async fn a_draining_server_refuses_what_is_new_and_ends_what_runs() {
    let world = World::new().await;
    let mut peer = world.greeted().await;
    let mut idle = world.greeted().await;
    let (transfer, _) = peer.begin(&put("running", 3)).await;
    world.drain();
    assert_eq!(idle.end().await, End::Goodbye(ErrorKind::Stopping));
    assert_eq!(peer.stat("").await, Err(ErrorKind::Stopping));
    assert_eq!(peer.store(put_small("new", b"abc"), b"abc").await, Err(ErrorKind::Stopping));
    peer.data(transfer, 0, b"abc").await;
    peer.send(transfer, &finish(b"abc")).await;
    assert_eq!(peer.answer(transfer).await.unwrap().0, Kind::Stored);
    assert_eq!(peer.end().await, End::Goodbye(ErrorKind::Stopping));
    assert_eq!(std::fs::read(world.root().join("running")).unwrap(), b"abc");
    assert!(!world.root().join("new").exists());
}
