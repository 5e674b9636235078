//! Connections that join a session: whose they may be, what they may carry, and groups that come twice (C02, P06).

use std::sync::Arc;

use rustls::ClientConfig;
use sealift::ErrorKind;
use sealift::access::Access;
use sealift::hash::Root;
use sealift::limits::{IDLE_TIMEOUT, JOINS_MAX, WORKING_INTERVAL};
use sealift::protocol::*;
use tokio::time;

use super::peer::{End, Peer, World, ahead, data, finish, get, path, put, put_small};

const G: usize = 1 << 20;
const PIECE: usize = 256 << 10;

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251) as u8).collect()
}

/// One group of a file, in pieces.
fn group(transfer: u32, index: usize, whole: &[u8]) -> Vec<u8> {
    let content = &whole[index * G..whole.len().min((index + 1) * G)];
    let pieces = content.chunks(PIECE).enumerate();
    pieces.flat_map(|(piece, content)| data(transfer, (index * G + piece * PIECE) as u64, content)).collect()
}

/// Waits until this lane was told that these groups need not be sent again.
async fn written(lane: &mut Peer, transfer: u32, indices: &[u64]) {
    let mut rest: Vec<u64> = indices.to_vec();
    while !rest.is_empty() {
        let (kind, payload) = lane.answer(transfer).await.unwrap();
        assert_eq!(kind, Kind::Written);
        let groups = Written::from_payload(&payload).unwrap().groups.0;
        rest.retain(|index| !groups.contains(index));
    }
}

async fn finished(peer: &mut Peer, transfer: u32, whole: &[u8]) {
    peer.send(transfer, &finish(whole)).await;
    stored(peer, transfer, whole).await;
}

async fn stored(peer: &mut Peer, transfer: u32, whole: &[u8]) {
    let (kind, payload) = peer.outcome(transfer).await.unwrap();
    assert_eq!(kind, Kind::Stored);
    assert_eq!(Stored::from_payload(&payload).unwrap().root, Some(Root::of(whole)));
}

#[tokio::test]
async fn a_token_is_good_for_its_own_session_principal_and_key() {
    let mut world = World::new().await;
    let first = world.greeted().await;
    let token = first.token.unwrap();
    let refused = |peer: Peer, token| async move { peer.join(token).await.map(|_| ()).unwrap_err() };
    let mut wrong = token;
    wrong.0[0] ^= 1;
    for (what, token) in [("another", wrong), ("none", Bytes16([0; 16]))] {
        assert_eq!(refused(world.connect().await, token).await, End::Goodbye(ErrorKind::Session), "{what}");
    }
    // Somebody else, who has got hold of it.
    let stranger = world.connect_with(world.client(false)).await.unwrap();
    assert_eq!(refused(stranger, token).await, End::Goodbye(ErrorKind::Session));
    let other: Arc<ClientConfig> = world.other_client();
    let other = world.connect_with(other).await.unwrap();
    assert_eq!(refused(other, token).await, End::Goodbye(ErrorKind::Session), "another key of the same authority");
    // An anonymous session takes anonymous lanes only.
    let anonymous = world.anonymous().await;
    let theirs = anonymous.token.unwrap();
    assert_eq!(refused(world.connect().await, theirs).await, End::Goodbye(ErrorKind::Session));
    assert!(world.connect_with(world.client(false)).await.unwrap().join(theirs).await.is_ok());
    let mut lane = world.lane_of(&first).await;
    drop(first);
    assert_eq!(lane.end().await, End::Goodbye(ErrorKind::Session), "a lane ends with its session");
    assert_eq!(refused(world.connect().await, token).await, End::Goodbye(ErrorKind::Session), "a dead session");
    drop((lane, anonymous));
    world.check(&[]).await;
}

#[tokio::test]
async fn one_join_too_many_is_refused_and_the_others_stay() {
    let world = World::new().await;
    let mut first = world.greeted().await;
    let mut last = None;
    for _ in 0..JOINS_MAX {
        last = Some(world.lane_of(&first).await);
    }
    let refused = world.connect().await.join(first.token.unwrap()).await.map(|_| ()).unwrap_err();
    assert_eq!(refused, End::Goodbye(ErrorKind::Limit));
    let whole = content(5);
    let (transfer, _) = first.begin(&put("x", 5)).await;
    let mut lane = last.unwrap();
    lane.bytes(&group(transfer, 0, &whole)).await;
    written(&mut lane, transfer, &[0]).await;
    finished(&mut first, transfer, &whole).await;
    drop((first, lane));
    world.check(&[("x", &whole)]).await;
}

/// A long run of small files needs its lanes for a large one that comes late.
#[tokio::test]
async fn a_lane_with_nothing_to_do_lives_as_long_as_its_session() {
    let world = World::new().await;
    let mut first = world.greeted().await;
    let mut lane = world.lane_of(&first).await;
    for _ in 0..6 {
        time::pause();
        time::sleep(IDLE_TIMEOUT / 2).await;
        time::resume();
        assert!(first.is_alive().await);
    }
    let whole = content(5);
    let (transfer, _) = first.begin(&put("x", 5)).await;
    lane.bytes(&group(transfer, 0, &whole)).await;
    written(&mut lane, transfer, &[0]).await;
    finished(&mut first, transfer, &whole).await;
    time::pause();
    time::sleep(IDLE_TIMEOUT + WORKING_INTERVAL * 3).await;
    time::resume();
    assert_eq!(first.end().await, End::Goodbye(ErrorKind::Timeout));
    assert_eq!(lane.end().await, End::Goodbye(ErrorKind::Session));
    drop((first, lane));
    world.check(&[("x", &whole)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_over_several_connections_make_one_file() {
    let world = World::new().await;
    let whole = content(6 * G + 10);
    let mut first = world.greeted().await;
    let (mut a, mut b) = (world.lane_of(&first).await, world.lane_of(&first).await);
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    // Two lanes in turn, piece by piece, and the first connection between them.
    for piece in 0..4 {
        let at = |group: usize| group * G + piece * PIECE;
        a.data(transfer, at(5) as u64, &whole[at(5)..][..PIECE]).await;
        b.data(transfer, at(1) as u64, &whole[at(1)..][..PIECE]).await;
        first.data(transfer, at(3) as u64, &whole[at(3)..][..PIECE]).await;
    }
    a.bytes(&group(transfer, 6, &whole)).await;
    b.bytes(&group(transfer, 0, &whole)).await;
    b.bytes(&group(transfer, 2, &whole)).await;
    first.bytes(&group(transfer, 4, &whole)).await;
    written(&mut a, transfer, &[5, 6]).await;
    written(&mut b, transfer, &[0, 1, 2]).await;
    finished(&mut first, transfer, &whole).await;
    drop((first, a, b));
    world.check(&[("x", &whole)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_comes_twice_is_thrown_away() {
    let world = World::new().await;
    let whole = content(2 * G);
    let mut first = world.greeted().await;
    let (mut a, mut b) = (world.lane_of(&first).await, world.lane_of(&first).await);
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    a.bytes(&group(transfer, 0, &whole)).await;
    written(&mut a, transfer, &[0]).await;
    // Other bytes than those that are there: nobody may change what is recorded.
    b.bytes(&group(transfer, 0, &vec![9; 2 * G])).await;
    written(&mut b, transfer, &[0]).await;
    first.bytes(&group(transfer, 0, &vec![8; 2 * G])).await;
    b.bytes(&group(transfer, 1, &whole)).await;
    written(&mut b, transfer, &[1]).await;
    finished(&mut first, transfer, &whole).await;
    drop((first, a, b));
    world.check(&[("x", &whole)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_to_begin_a_group_has_it() {
    let world = World::new().await;
    let whole = content(3 * G);
    let mut first = world.greeted().await;
    let (mut a, mut b) = (world.lane_of(&first).await, world.lane_of(&first).await);
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    // It stops in the middle of its group, while others go on.
    a.data(transfer, 0, &vec![7; PIECE]).await;
    b.bytes(&group(transfer, 1, &whole)).await;
    written(&mut b, transfer, &[1]).await;
    b.bytes(&group(transfer, 0, &whole)).await;
    written(&mut b, transfer, &[0]).await;
    // What still comes of the group before is thrown away, and the lane is of use again.
    for piece in 1..4 {
        a.data(transfer, (piece * PIECE) as u64, &vec![7; PIECE]).await;
    }
    a.bytes(&group(transfer, 2, &whole)).await;
    written(&mut a, transfer, &[2]).await;
    finished(&mut first, transfer, &whole).await;
    drop((first, a, b));
    world.check(&[("x", &whole)]).await;
}

/// What a lane had sent before it died can be read later than what was sent anew for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_lane_takes_nothing_from_the_first_connection() {
    let world = World::new().await;
    let (whole, other) = (content(2 * G), content(5));
    let mut first = world.greeted().await;
    let mut late = world.lane_of(&first).await;
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    let (second, _) = first.begin(&put("y", other.len() as u64)).await;
    first.bytes(&group(transfer, 1, &whole)).await;
    first.data(transfer, 0, &whole[..PIECE]).await;
    assert!(first.is_alive().await, "the server has read what came before that");
    late.data(transfer, 0, &vec![7; PIECE]).await;
    late.bytes(&group(second, 0, &other)).await;
    written(&mut late, second, &[0]).await;
    drop(late);
    for piece in 1..4 {
        first.data(transfer, (piece * PIECE) as u64, &whole[piece * PIECE..][..PIECE]).await;
    }
    finished(&mut first, transfer, &whole).await;
    finished(&mut first, second, &other).await;
    drop(first);
    world.check(&[("x", &whole), ("y", &other)]).await;
}

/// Who loses a group to a lane that dies must hear of it, or it would wait to be told that it is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_lost_a_group_to_a_late_one_ends() {
    let world = World::new().await;
    let (whole, other) = (content(G), content(2 * G));
    let mut first = world.greeted().await;
    let (mut lane, mut late) = (world.lane_of(&first).await, world.lane_of(&first).await);
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    let (second, _) = first.begin(&put("y", other.len() as u64)).await;
    for (index, (lane, piece)) in [(&mut lane, &whole[..PIECE]), (&mut late, &[7; PIECE])].into_iter().enumerate() {
        lane.data(transfer, 0, piece).await;
        // When this is written, the server has read what came before it.
        lane.bytes(&group(second, index, &other)).await;
        written(lane, second, &[index as u64]).await;
    }
    for piece in 1..4 {
        lane.data(transfer, (piece * PIECE) as u64, &whole[piece * PIECE..][..PIECE]).await;
    }
    assert_eq!(lane.end().await, End::Goodbye(ErrorKind::Session));
    drop(late);
    first.bytes(&group(transfer, 0, &whole)).await;
    finished(&mut first, transfer, &whole).await;
    finished(&mut first, second, &other).await;
    drop((first, lane));
    world.check(&[("x", &whole), ("y", &other)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_lane_had_begun_comes_again() {
    let world = World::new().await;
    let whole = content(2 * G);
    let mut first = world.greeted().await;
    let (mut a, mut b) = (world.lane_of(&first).await, world.lane_of(&first).await);
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    a.data(transfer, 0, &vec![7; PIECE]).await;
    b.data(transfer, G as u64, &vec![7; PIECE]).await;
    drop((a, b));
    let mut c = world.lane_of(&first).await;
    c.bytes(&group(transfer, 0, &whole)).await;
    written(&mut c, transfer, &[0]).await;
    first.bytes(&group(transfer, 1, &whole)).await;
    finished(&mut first, transfer, &whole).await;
    drop((first, c));
    world.check(&[("x", &whole)]).await;
}

#[tokio::test]
async fn a_finish_before_all_is_written_commits_nothing() {
    for is_foretold in [false, true] {
        let world = World::new().await;
        let whole = content(2 * G);
        let mut first = world.greeted().await;
        let mut lane = world.lane_of(&first).await;
        let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
        first.bytes(&group(transfer, 1, &whole)).await;
        lane.data(transfer, 0, &whole[..PIECE]).await;
        if is_foretold {
            first.send(transfer, &ahead(&whole)).await;
            assert!(first.is_alive().await, "what is missing may be under way");
        }
        first.send(transfer, &finish(&whole)).await;
        assert_eq!(first.outcome(transfer).await, Err(ErrorKind::Protocol), "foretold: {is_foretold}");
        assert!(first.said.contains("content is missing"), "{}", first.said);
        drop((first, lane));
        world.check(&[]).await;
    }
}

#[tokio::test]
async fn what_a_lane_wants_may_follow_its_token() {
    let world = World::new().await;
    let whole = content(2 * G);
    std::fs::write(world.root().join("x"), &whole).unwrap();
    let mut first = world.greeted().await;
    let transfer = first.number();
    first.send(transfer, &get("x")).await;
    assert_eq!(first.answer(transfer).await.unwrap().0, Kind::GetAnswer);
    for token in [first.token.unwrap(), Bytes16([0; 16])] {
        let mut lane = world.connect().await;
        let hello = ClientHello { join: Some(token), ..super::peer::hello() };
        let want = Want { ranges: List(vec![(G as u64, G as u64)]) };
        lane.bytes(&[hello.to_frame(0), want.to_frame(transfer)].concat()).await;
        if Some(token) != first.token {
            assert_eq!(lane.end().await, End::Goodbye(ErrorKind::Session));
            continue;
        }
        assert_eq!(lane.frame().await.unwrap().0, Kind::ServerHello);
        let mut came = Vec::new();
        while came.len() < G {
            let (kind, number, payload) = lane.frame().await.unwrap();
            assert_eq!((kind, number), (Kind::Data, transfer));
            came.extend_from_slice(&payload[8..]);
        }
        assert_eq!(came, whole[G..]);
    }
    assert!(first.is_alive().await);
}

#[tokio::test]
async fn content_may_follow_the_token_of_a_lane() {
    let world = World::new().await;
    let whole = content(2 * G);
    let mut first = world.greeted().await;
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    // One that is not let in brings nothing.
    for token in [Bytes16([0; 16]), first.token.unwrap()] {
        let mut lane = world.connect().await;
        let hello = ClientHello { join: Some(token), ..super::peer::hello() };
        lane.bytes(&[hello.to_frame(0), group(transfer, 1, &whole)].concat()).await;
        if Some(token) != first.token {
            assert_eq!(lane.end().await, End::Goodbye(ErrorKind::Session));
            continue;
        }
        assert_eq!(lane.frame().await.unwrap().0, Kind::ServerHello);
        written(&mut lane, transfer, &[1]).await;
    }
    first.bytes(&group(transfer, 0, &whole)).await;
    finished(&mut first, transfer, &whole).await;
    drop(first);
    world.check(&[("x", &whole)]).await;
}

#[tokio::test]
async fn a_finish_that_was_foretold_is_not_waited_for() {
    let world = World::new().await;
    let whole = content(3 * G);
    let mut first = world.greeted().await;
    let (mut lane, mut other) = (world.lane_of(&first).await, world.lane_of(&first).await);
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    first.bytes(&group(transfer, 0, &whole)).await;
    other.data(transfer, 2 * G as u64, &whole[2 * G..][..PIECE]).await;
    first.send(transfer, &ahead(&whole)).await;
    // What a lane had begun is lost with it, and comes anew.
    drop(other);
    lane.bytes(&group(transfer, 1, &whole)).await;
    written(&mut lane, transfer, &[1]).await;
    lane.bytes(&group(transfer, 2, &whole)).await;
    stored(&mut first, transfer, &whole).await;
    // It was on its way, and means nothing. The connection goes on.
    first.send(transfer, &finish(&whole)).await;
    first.stat("x").await.unwrap();
    first.send(transfer, &finish(&whole)).await;
    first.refused("no such transfer is open").await;
    drop((first, lane));
    world.check(&[("x", &whole)]).await;
}

#[tokio::test]
async fn what_comes_again_while_it_is_committed_means_nothing() {
    let world = World::new().await;
    let whole = content(2 * G);
    let mut first = world.greeted().await;
    let mut lane = world.lane_of(&first).await;
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    first.bytes(&group(transfer, 0, &whole)).await;
    lane.bytes(&group(transfer, 1, &whole)).await;
    written(&mut lane, transfer, &[1]).await;
    // As if the lane had died before it was told.
    let rest = [ahead(&whole).to_frame(transfer), group(transfer, 1, &whole), finish(&whole).to_frame(transfer)];
    first.bytes(&rest.concat()).await;
    stored(&mut first, transfer, &whole).await;
    assert!(first.is_alive().await);
    drop((first, lane));
    world.check(&[("x", &whole)]).await;
}

#[tokio::test]
async fn a_finish_is_as_it_was_foretold() {
    let whole = content(2 * G);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("another finish", finish(&vec![7; 2 * G]).to_frame(0), "not as it was foretold"),
        ("another one foretold", ahead(&whole).to_frame(0), "a second finish"),
        ("zeros", Zeros { runs: List(vec![(0, 1)]) }.to_frame(0), "after the finish"),
    ];
    for (what, mut frame, why) in cases {
        let world = World::new().await;
        let mut first = world.greeted().await;
        let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
        frame[4..8].copy_from_slice(&transfer.to_be_bytes());
        first.send(transfer, &ahead(&whole)).await;
        first.bytes(&frame).await;
        assert_eq!(first.outcome(transfer).await, Err(ErrorKind::Protocol), "{what}");
        assert!(first.said.contains(why), "{what}: {}", first.said);
        drop(first);
        world.check(&[]).await;
    }
    let world = World::new().await;
    let mut first = world.greeted().await;
    let (transfer, _) = first.begin(&Put { size: None, ..put("x", 0) }).await;
    first.send(transfer, &ahead(&whole)).await;
    first.refused("a finish ahead of a stream").await;
}

#[tokio::test]
async fn what_is_foretold_and_wrong_is_not_stored() {
    let world = World::new().await;
    let whole = content(2 * G);
    let mut first = world.greeted().await;
    let mut lane = world.lane_of(&first).await;
    let (transfer, _) = first.begin(&put("x", whole.len() as u64)).await;
    first.send(transfer, &ahead(&vec![7; 2 * G])).await;
    first.bytes(&group(transfer, 1, &whole)).await;
    lane.bytes(&group(transfer, 0, &whole)).await;
    assert_eq!(first.outcome(transfer).await, Err(ErrorKind::Mismatch));
    drop((first, lane));
    world.check(&[]).await;
}

/// What a base has in its place is not taken for what is under way.
#[tokio::test]
async fn what_a_base_has_waits_for_the_finish() {
    let world = World::new().await;
    let (old, new) = (content(2 * G), vec![7; 2 * G]);
    std::fs::write(world.root().join("x"), &old).unwrap();
    let mut first = world.greeted().await;
    let mut lane = world.lane_of(&first).await;
    let (transfer, answer) = first.begin(&put("x", new.len() as u64)).await;
    assert_eq!(answer.holding, Holding::Base);
    first.send(transfer, &ahead(&new)).await;
    first.bytes(&group(transfer, 1, &new)).await;
    lane.bytes(&group(transfer, 0, &new)).await;
    stored(&mut first, transfer, &new).await;
    drop((first, lane));
    world.check(&[("x", &new)]).await;
}

#[tokio::test]
async fn a_lane_carries_content_and_nothing_else() {
    let world = World::new().await;
    std::fs::write(world.root().join("there"), content(G)).unwrap();
    let mut first = world.greeted().await;
    let (receiving, _) = first.begin(&put("x", 3)).await;
    let (stream, _) = first.begin(&Put { size: None, ..put("y", 0) }).await;
    let requests: Vec<(&str, Vec<u8>)> = vec![
        ("a description", put("z", 3).to_frame(10)),
        ("a small file", put_small("z", b"abc").to_frame(10)),
        ("a finish", finish(b"abc").to_frame(receiving)),
        ("a download", get("there").to_frame(10)),
        ("a request", Stat { path: path("there"), xattrs: None }.to_frame(10)),
        ("a removal", Remove { path: path("there"), recursive: false }.to_frame(10)),
        ("a failure", Failed { code: 26, text: String::new(), retry: None }.to_frame(receiving)),
        ("an end", Close {}.to_frame(receiving)),
        ("values", WantValues { first: 0, count: 1 }.to_frame(receiving)),
        ("a second hello", super::peer::hello().to_frame(0)),
        ("content that nobody described", data(1000, 0, b"abc")),
        ("content of nothing", data(0, 0, b"abc")),
        ("ranges of nothing", Want { ranges: List(vec![(0, 1)]) }.to_frame(1000)),
        ("a stream", data(stream, 0, b"abc")),
        ("past the end", data(receiving, 0, b"abcd")),
        ("not from the start", data(receiving, 1, b"bc")),
    ];
    for (what, frames) in requests {
        let mut lane = world.lane_of(&first).await;
        lane.bytes(&frames).await;
        lane.refused(what).await;
        assert!(first.is_alive().await, "{what}: a breach on a lane ends that lane alone");
    }
    // A transfer that is over is another matter: its content was on its way.
    let failed = Failed { code: 26, text: String::new(), retry: None };
    first.send(receiving, &failed).await;
    assert!(first.is_alive().await);
    let mut lane = world.lane_of(&first).await;
    lane.data(receiving, 0, b"abc").await;
    lane.send(receiving, &Want { ranges: List(vec![(0, 1)]) }).await;
    let (transfer, _) = first.begin(&put("x", 3)).await;
    lane.data(transfer, 0, b"abc").await;
    written(&mut lane, transfer, &[0]).await;
    finished(&mut first, transfer, b"abc").await;
    drop((first, lane));
    world.check(&[("there", &content(G)), ("x", b"abc")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lane_finds_wrong_is_told_on_the_first_connection() {
    let world = World::new().await;
    std::fs::write(world.root().join("there"), content(2 * G)).unwrap();
    let mut first = world.greeted().await;
    let mut lane = world.lane_of(&first).await;
    // Larger than any disk, which a server with a base learns with the first group, wherever that comes.
    let (transfer, answer) = first.begin(&put("there", 1 << 50)).await;
    assert_eq!(answer.holding, Holding::Base);
    lane.bytes(&group(transfer, 0, &[7; G])).await;
    assert_eq!(first.outcome(transfer).await, Err(ErrorKind::NoSpace));
    // A file that ends before its size.
    let get = get("there");
    assert_eq!(first.ask(&get).await.unwrap().0, Kind::GetAnswer);
    let transfer = transfer + 1;
    std::fs::File::options().write(true).open(world.root().join("there")).unwrap().set_len(10).unwrap();
    lane.send(transfer, &Want { ranges: List(vec![(G as u64, G as u64)]) }).await;
    assert!(first.outcome(transfer).await.is_err());
    // Both connections are of use for what comes next.
    let (transfer, _) = first.begin(&put("x", 3)).await;
    lane.data(transfer, 0, b"abc").await;
    written(&mut lane, transfer, &[0]).await;
    finished(&mut first, transfer, b"abc").await;
    drop((first, lane));
    world.check(&[("there", &content(10)), ("x", b"abc")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_over_several_connections_ends_with_its_hash() {
    let world = World::new().await;
    let whole = content(3 * G + 5);
    std::fs::write(world.root().join("there"), &whole).unwrap();
    let mut first = world.greeted().await;
    assert_eq!(first.ask(&get("there")).await.unwrap().0, Kind::GetAnswer);
    let mut got = vec![0; whole.len()];
    let lanes = [world.lane_of(&first).await, world.lane_of(&first).await];
    let [a, b] = lanes;
    let mut peers = [first, a, b];
    let g = G as u64;
    for (peer, offset, len) in [(1, 2 * g, g), (2, 0, g), (0, g, g), (2, 3 * g, 5)] {
        let peer = &mut peers[peer];
        peer.send(1, &Want { ranges: List(vec![(offset, len)]) }).await;
        let mut end = offset;
        while end < offset + len {
            let (kind, payload) = peer.answer(1).await.unwrap();
            assert_eq!(kind, Kind::Data);
            let (at, content) = payload.split_first_chunk::<8>().unwrap();
            assert_eq!(u64::from_be_bytes(*at), end);
            got[end as usize..][..content.len()].copy_from_slice(content);
            end += content.len() as u64;
        }
    }
    assert!(got == whole);
    let [mut first, mut a, b] = peers;
    first.send(1, &Close {}).await;
    let (kind, payload) = first.answer(1).await.unwrap();
    assert_eq!((kind, Finish::from_payload(&payload).unwrap()), (Kind::Finish, finish(&whole)));
    // It is over: what is asked for now means nothing.
    a.send(1, &Want { ranges: List(vec![(0, g)]) }).await;
    drop((first, a, b));
    world.check(&[("there", &whole)]).await;
}

/// Asks for a range over a connection and takes what comes; the bytes.
async fn fetch(peer: &mut Peer, transfer: u32, offset: usize, len: usize) -> Vec<u8> {
    peer.send(transfer, &Want { ranges: List(vec![(offset as u64, len as u64)]) }).await;
    let mut came = Vec::new();
    while came.len() < len {
        let (kind, payload) = peer.answer(transfer).await.unwrap();
        assert_eq!(kind, Kind::Data);
        came.extend_from_slice(&payload[8..]);
    }
    came
}

/// The message of this kind that comes next.
async fn next<M: Message>(peer: &mut Peer, transfer: u32) -> M {
    let (kind, payload) = peer.answer(transfer).await.unwrap();
    assert_eq!(kind, M::KIND);
    M::from_payload(&payload).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_download_in_parts_is_told_when_all_was_sent() {
    let world = World::new().await;
    let whole = content(2 * G + PIECE + 5);
    std::fs::write(world.root().join("there"), &whole).unwrap();
    for (number, asks) in [Some(true), Some(true), None].into_iter().enumerate() {
        let mut first = world.greeted().await;
        let mut lanes = [world.lane_of(&first).await, world.lane_of(&first).await];
        let get = Get { finish_ahead: asks, ..get("there") };
        assert_eq!(first.ask(&get).await.unwrap().0, Kind::GetAnswer);
        // A whole group, one part alone and three in one range, one that is cut in two and comes again whole, a rest.
        let ranges = [
            (0, G, G),
            (1, 0, PIECE),
            (0, PIECE, 3 * PIECE),
            (1, 2 * G, 9),
            (0, 2 * G + 9, PIECE - 9),
            (1, 2 * G, PIECE),
        ];
        for (lane, offset, len) in ranges {
            assert!(fetch(&mut lanes[lane], 1, offset, len).await == whole[offset..offset + len]);
        }
        silent(&mut first, 1).await;
        // The end comes over the first connection, or over another.
        let last = if number == 0 { &mut first } else { &mut lanes[0] };
        assert!(fetch(last, 1, 2 * G + PIECE, 5).await == whole[2 * G + PIECE..]);
        let end = finish(&whole);
        if asks.is_some() {
            assert_eq!(next::<FinishAhead>(&mut first, 1).await, ahead(&whole));
            // Something was lost, and comes again. Nothing is told twice.
            assert!(fetch(&mut lanes[1], 1, 7, 100).await == whole[7..107]);
            assert!(fetch(&mut first, 1, 0, G).await == whole[..G]);
            silent(&mut first, 1).await;
        }
        first.send(1, &Close {}).await;
        assert_eq!(next::<Finish>(&mut first, 1).await, end);
        // It is over: another `Close` is none.
        first.send(1, &Close {}).await;
        first.refused("a second end").await;
    }
    world.check(&[("there", &whole)]).await;
}

/// Nothing is said of a transfer, though the connection works.
async fn silent(peer: &mut Peer, transfer: u32) {
    let number = peer.number();
    peer.send(number, &Stat { path: path(""), xattrs: None }).await;
    loop {
        let (kind, of, _) = peer.frame().await.unwrap();
        assert_ne!(of, transfer, "{kind:?}");
        if of == number {
            return;
        }
    }
}

/// What was not sent whole, changed meanwhile, or is not what was stored, has no end that could be told ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_end_is_told_ahead_that_would_be_a_failure() {
    let world = World::new().await;
    let whole = content(PIECE + 5);
    let file = world.root().join("there");
    std::fs::write(&file, &whole).unwrap();
    let get = Get { finish_ahead: Some(true), ..get("there") };
    let open = async |world: &World| {
        let mut peer = world.greeted().await;
        assert_eq!(peer.ask(&get).await.unwrap().0, Kind::GetAnswer);
        assert!(fetch(&mut peer, 1, 0, PIECE).await.len() == PIECE);
        peer
    };
    // A byte of it was never sent in a whole part.
    let mut peer = open(&world).await;
    assert!(fetch(&mut peer, 1, PIECE + 1, 4).await == whole[PIECE + 1..]);
    silent(&mut peer, 1).await;
    peer.send(1, &Close {}).await;
    assert_eq!(peer.answer(1).await.unwrap().0, Kind::Done);
    // It changes after the end was told, before more of it comes.
    let mut peer = open(&world).await;
    assert!(fetch(&mut peer, 1, PIECE, 5).await == whole[PIECE..]);
    assert_eq!(next::<FinishAhead>(&mut peer, 1).await, ahead(&whole));
    std::fs::write(&file, [&whole[..PIECE], b"other"].concat()).unwrap();
    assert!(fetch(&mut peer, 1, PIECE, 5).await == b"other");
    peer.send(1, &Close {}).await;
    assert_eq!(peer.answer(1).await, Err(ErrorKind::Changed));
    std::fs::write(&file, &whole).unwrap();
    // It changes before the last part.
    let mut peer = open(&world).await;
    std::fs::write(&file, [&whole[..PIECE], b"other"].concat()).unwrap();
    assert!(fetch(&mut peer, 1, PIECE, 5).await == b"other");
    silent(&mut peer, 1).await;
    peer.send(1, &Close {}).await;
    assert_eq!(peer.answer(1).await, Err(ErrorKind::Changed));
    // It has rotted: in a part.
    let mut first = world.greeted().await;
    let (transfer, _) = first.begin(&Put { no_base: true, ..put("there", whole.len() as u64) }).await;
    first.bytes(&group(transfer, 0, &whole)).await;
    finished(&mut first, transfer, &whole).await;
    let times = std::fs::metadata(&file).unwrap();
    std::fs::write(&file, [&whole[..PIECE], b"other"].concat()).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(times.modified().unwrap()).unwrap();
    let mut peer = open(&world).await;
    assert!(fetch(&mut peer, 1, PIECE, 5).await == b"other");
    silent(&mut peer, 1).await;
    peer.send(1, &Close {}).await;
    assert_eq!(peer.answer(1).await, Err(ErrorKind::Rotten));
}

/// What is handed out over an invite counts when it is asked for and when its end is: nothing of it comes ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_an_invite_nothing_comes_ahead() {
    let world = World::with_invites(Access::same_for_all(Rights::ALL, None), &[]).await;
    let whole = content(PIECE + 5);
    std::fs::write(world.root().join("there"), &whole).unwrap();
    let ticket = Ticket::new([7; 32]);
    let verifier = ticket.verifier().into();
    let invite = Invite { path: path(""), kind: InviteKind::Download, verifier, seconds: 600, uses: 9, max_size: None };
    assert_eq!(world.greeted().await.ask(&invite).await.unwrap().0, Kind::Invited);
    let run = Some(Bytes16([1; 16]));
    let hello = ClientHello { redeem: Some(ticket), run, ..super::peer::hello() };
    let mut peer = world.connect_with(world.client(false)).await.unwrap().greet_with(hello).await;
    let get = Get { finish_ahead: Some(true), first_max: Some(u64::MAX), ..get("there") };
    let (kind, payload) = peer.ask(&get).await.unwrap();
    assert_eq!((kind, GetAnswer::from_payload(&payload).unwrap().first), (Kind::GetAnswer, None));
    silent(&mut peer, 1).await;
    assert!(fetch(&mut peer, 1, 0, whole.len()).await == whole);
    silent(&mut peer, 1).await;
    peer.send(1, &Close {}).await;
    assert_eq!(next::<Finish>(&mut peer, 1).await, finish(&whole));
}
