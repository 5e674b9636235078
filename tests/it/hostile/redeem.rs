//! Peers without a certificate at a server that takes invites: what they send before they are let in, tickets that are
//! none, runs that are another's, and what one holder learns of another (A04, A07, P02, P04).

use std::collections::BTreeSet;

use sealift::ErrorKind;
use sealift::access::Access;
use sealift::limits::{HELLO_LEN_MAX, INVITE_LIFETIME_MAX, INVITE_USES_MAX};
use sealift::protocol::*;

use super::peer::{End, Peer, World, hello, path, put, put_small};

struct Inn {
    world: World,
    giver: Peer,
}

impl Inn {
    async fn new() -> Inn {
        let world = World::with_invites(Access::same_for_all(Rights::ALL, None), &[]).await;
        let giver = world.greeted().await;
        Inn { world, giver }
    }

    async fn give(&mut self, number: u8, kind: InviteKind, place: &str, uses: u32) -> Ticket {
        let ticket = Ticket::new([number; 32]);
        let verifier = ticket.verifier().into();
        let invite = Invite { path: path(place), kind, verifier, seconds: 600, uses, max_size: None };
        self.giver.ask(&invite).await.unwrap();
        ticket
    }

    /// A connection without a certificate that has said nothing.
    async fn stranger(&self) -> Peer {
        self.world.connect_with(self.world.client(false)).await.unwrap()
    }

    /// What becomes of one that says this.
    async fn says(&self, hello: ClientHello) -> Result<Peer, End> {
        let mut peer = self.stranger().await;
        peer.send(0, &hello).await;
        match peer.frame().await {
            Some((Kind::ServerHello, 0, payload)) => {
                peer.token = ServerHello::from_payload(&payload).unwrap().token;
                Ok(peer)
            }
            Some((Kind::Goodbye, _, payload)) => {
                let goodbye = Goodbye::from_payload(&payload).unwrap();
                Err(End::Goodbye(ErrorKind::from_code(goodbye.code)))
            }
            other => panic!("{other:?}"),
        }
    }
}

fn redeems(ticket: &Ticket, run: u8) -> ClientHello {
    ClientHello { redeem: Some(ticket.clone()), run: Some(Bytes16([run; 16])), ..hello() }
}

#[tokio::test]
async fn nothing_is_taken_before_the_ticket() {
    let mut inn = Inn::new().await;
    inn.give(1, InviteKind::Upload, "in", 5).await;
    let early: Vec<Vec<u8>> = vec![
        Stat { path: path(""), xattrs: None }.to_frame(1),
        put_small("f", b"x").to_frame(1),
        super::peer::data(1, 0, b"x"),
        MakeDirectory { path: path("d") }.to_frame(1),
        Remove { path: path("in"), recursive: true }.to_frame(1),
        ListInvites { path: path(""), after: None }.to_frame(1),
        BeginTree { path: path("t"), run: Bytes16([1; 16]), resume: None }.to_frame(1),
        Working { phase: Phase::Waiting, done: 0, total: 0, spent: None }.to_frame(0),
        // A hello that is a transfer, one that is too long, and one that has more behind it than it says.
        hello().to_frame(7),
        [Header::new(Kind::ClientHello, 0, HELLO_LEN_MAX + 1).encode().to_vec(), vec![0; HELLO_LEN_MAX + 1]].concat(),
        [Header::new(Kind::ClientHello, 0, 1 << 20).encode().to_vec(), vec![0; 64]].concat(),
    ];
    for frame in early {
        let mut peer = inn.stranger().await;
        peer.bytes(&frame).await;
        peer.refused(format!("{:?}", &frame[..8])).await;
    }
    // A ticket that is none, by its length; a run that is none.
    let whole = redeems(&Ticket::new([1; 32]), 1).to_frame(0);
    let at = whole.windows(32).position(|part| part == [1; 32]).unwrap();
    for (cut, len) in [(1, 31), (32, 0)] {
        let mut payload = whole[FRAME_HEADER_LEN..].to_vec();
        let at = at - FRAME_HEADER_LEN;
        payload.drain(at..at + cut);
        assert_eq!(payload[at - 2..at], [0x58, 32], "a string of bytes with a length");
        payload[at - 1] = len;
        let mut peer = inn.stranger().await;
        peer.bytes(&[&Header::new(Kind::ClientHello, 0, payload.len()).encode()[..], &payload].concat()).await;
        peer.refused(format!("a ticket of {len} bytes")).await;
    }
    // Nobody in particular is not let in, with a run or without, and no second hello counts.
    for one in [hello(), ClientHello { run: Some(Bytes16([1; 16])), ..hello() }] {
        assert_eq!(inn.says(one).await.err(), Some(End::Goodbye(ErrorKind::Rights)));
    }
    let mut peer = inn.says(redeems(&Ticket::new([1; 32]), 1)).await.unwrap();
    peer.send(0, &redeems(&Ticket::new([1; 32]), 2)).await;
    peer.refused("a second hello").await;
    // Who has a certificate redeems nothing.
    let mut peer = inn.world.connect().await;
    peer.send(0, &redeems(&Ticket::new([1; 32]), 3)).await;
    assert_eq!(peer.end().await, End::Goodbye(ErrorKind::Unsupported));
    assert!(inn.giver.is_alive().await);
    assert_eq!(names(&inn), BTreeSet::from(["in".to_owned()]));
}

fn names(inn: &Inn) -> BTreeSet<String> {
    let entries = std::fs::read_dir(inn.world.root()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".sealift").collect()
}

#[tokio::test]
async fn a_ticket_that_is_not_whole_is_no_ticket() {
    let mut inn = Inn::new().await;
    let ticket = inn.give(1, InviteKind::Upload, "in", 300).await;
    // Every bit of it, over the wire.
    let mut said = BTreeSet::new();
    for bit in 0..256 {
        let mut bytes = [1; 32];
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut peer = inn.stranger().await;
        peer.send(0, &redeems(&Ticket::new(bytes), 1)).await;
        assert_eq!(peer.answer(0).await, Err(ErrorKind::Rights), "bit {bit}");
        said.insert(peer.said);
    }
    assert_eq!(said.len(), 1, "{said:?}");
    // What the server keeps, and what it tells of it, opens nothing.
    let verifier = Bytes32::from(ticket.verifier());
    assert_eq!(inn.says(redeems(&Ticket::new(verifier.0), 1)).await.err(), Some(End::Goodbye(ErrorKind::Rights)));
    inn.says(redeems(&ticket, 1)).await.unwrap();
}

#[tokio::test]
async fn a_run_and_a_session_are_joined_by_their_own_only() {
    let mut inn = Inn::new().await;
    let one = inn.give(1, InviteKind::Upload, "in", 5).await;
    let two = inn.give(2, InviteKind::Upload, "in", 5).await;
    let first = inn.says(redeems(&one, 1)).await.unwrap();
    let token = first.token.unwrap();
    let session = Some(End::Goodbye(ErrorKind::Session));
    let join = |ticket: &Ticket, run: Option<u8>, token: Bytes16| ClientHello {
        join: Some(token),
        run: run.map(|run| Bytes16([run; 16])),
        ..redeems(ticket, 0)
    };
    // Another's token with an invite of one's own; a run that is not under way; no run; a token that is none.
    let second = inn.says(redeems(&two, 2)).await.unwrap();
    assert_eq!(inn.says(join(&two, Some(2), token)).await.err(), session);
    assert_eq!(inn.says(join(&one, Some(9), token)).await.err(), session);
    assert_eq!(inn.says(join(&one, None, token)).await.err(), session);
    assert_eq!(inn.says(join(&one, Some(1), Bytes16([0; 16]))).await.err(), session);
    assert_eq!(inn.says(join(&two, Some(1), second.token.unwrap())).await.err(), session);
    // The token alone, without a ticket; and by who has a certificate.
    let alone = ClientHello { join: Some(token), ..hello() };
    assert_eq!(inn.says(alone).await.err(), Some(End::Goodbye(ErrorKind::Rights)));
    assert_eq!(inn.world.connect().await.join(token).await.err(), session);
    assert!(inn.says(join(&one, Some(1), token)).await.is_ok());
    // A newer connection of the same run takes over, and the token is dead with the older one.
    let mut again = inn.says(redeems(&one, 1)).await.unwrap();
    let mut first = first;
    assert_eq!(first.ask(&MakeDirectory { path: path("late") }).await.map(drop), Err(ErrorKind::Superseded));
    again.ask(&MakeDirectory { path: path("d") }).await.unwrap();
    assert!(!inn.world.root().join("in/late").exists());
    // A run that was cut is gone on with by beginning, and not by joining another of the same invite.
    let third = inn.says(redeems(&one, 3)).await.unwrap();
    let token = again.token.unwrap();
    drop(third);
    let mut tries = 0;
    while inn.says(join(&one, Some(3), token)).await.is_ok() {
        tries += 1;
        assert!(tries < 1000, "a run without a connection is joined");
    }
    // The same number is another run of another invite.
    let mut other = inn.says(redeems(&two, 1)).await.unwrap();
    assert!(other.is_alive().await && again.is_alive().await);
}

#[tokio::test]
async fn one_holder_gets_nothing_of_what_another_stored_or_left() {
    let mut inn = Inn::new().await;
    let one = inn.give(1, InviteKind::Drop, "in", 5).await;
    let two = inn.give(2, InviteKind::Drop, "in", 5).await;
    let (mut first, mut second) =
        (inn.says(redeems(&one, 1)).await.unwrap(), inn.says(redeems(&two, 1)).await.unwrap());
    // The same upload, by its number and name, is another one: no answer of the first's is given.
    let upload = put("f", 3 << 20);
    let (_, answer) = first.begin(&upload).await;
    assert_eq!(answer.holding, Holding::Fresh);
    let (transfer, answer) = second.begin(&upload).await;
    assert_eq!((answer.holding, answer.held_size), (Holding::Fresh, 0));
    second.send(transfer, &Failed { code: ErrorKind::Refused.code(), text: String::new(), retry: None }).await;
    let small = put_small("g", b"mine");
    first.store(small.clone(), b"mine").await.unwrap();
    let stored = second.store(Put { upload_id: put("x", 0).upload_id, ..small }, b"mine").await.unwrap();
    assert_eq!((stored.outcome, stored.path), (Outcome::Stored, Some(path("g (1)"))));
    // A holder gives no invites, sees none, and takes none back; that there is one shows in nothing.
    let id = one.verifier().id();
    let verifier = Bytes32([7; 32]);
    let invite = Invite { path: path(""), kind: InviteKind::Drop, verifier, seconds: 60, uses: 1, max_size: None };
    assert_eq!(second.ask(&invite).await.map(drop), Err(ErrorKind::Rights));
    assert_eq!(second.ask(&ListInvites { path: path(""), after: None }).await.map(drop), Err(ErrorKind::Rights));
    let mut said = BTreeSet::new();
    for id in [id, InviteId([9; 8])] {
        assert_eq!(second.ask(&RevokeInvite { id }).await.map(drop), Err(ErrorKind::NotFound));
        said.insert(second.said.replace(&id.to_string(), "ID"));
    }
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(first.ask(&MakeDirectory { path: path("still") }).await.is_ok());
}

/// What is asked for has bounds; and what is given is seen and taken back by who may share that place, and by nobody else.
#[tokio::test]
async fn an_invite_has_bounds_and_belongs_to_who_may_share_its_place() {
    let all = "rights = [\"list\", \"read\", \"create\", \"overwrite\", \"rename\", \"delete\", \"share\"]\n";
    let user = |name: &str, home: &str| format!("[user.{name}]\nhome = \"{home}\"\noverlap = true\n{all}");
    let rules = user("alice", "alice") + &user("alice2", "alice2") + &user("admin", "/");
    let access = Access::by_policy(sealift::access::Policy::parse(&rules).unwrap());
    let world = World::with_invites(access, &["alice", "alice2", "admin"]).await;
    let mut alice = world.greeted_as("alice").await;
    let verifier = |number: u8| Bytes32::from(Ticket::new([number; 32]).verifier());
    let good = |number: u8| Invite {
        path: path("in"),
        kind: InviteKind::Upload,
        verifier: verifier(number),
        seconds: 60,
        uses: 1,
        max_size: None,
    };
    for bad in [
        Invite { uses: 0, ..good(1) },
        Invite { uses: INVITE_USES_MAX + 1, ..good(1) },
        Invite { uses: u32::MAX, ..good(1) },
        Invite { seconds: 0, ..good(1) },
        Invite { seconds: INVITE_LIFETIME_MAX.as_secs() + 1, ..good(1) },
        Invite { seconds: u64::MAX, ..good(1) },
    ] {
        assert_eq!(alice.ask(&bad).await.map(drop), Err(ErrorKind::Limit), "{bad:?}");
    }
    let largest = Invite { uses: INVITE_USES_MAX, seconds: INVITE_LIFETIME_MAX.as_secs(), ..good(1) };
    alice.ask(&largest).await.unwrap();
    // What is known already is not given once more, by nobody.
    let mut twin = world.greeted_as("alice2").await;
    for peer in [&mut alice, &mut twin] {
        assert_eq!(peer.ask(&good(1)).await.map(drop), Err(ErrorKind::Exists));
    }
    let mut admin = world.greeted_as("admin").await;
    let id = Ticket::new([1; 32]).verifier().id();
    let seen = async |peer: &mut Peer| {
        let (kind, payload) = peer.ask(&ListInvites { path: path(""), after: None }).await.unwrap();
        assert_eq!(kind, Kind::Invites);
        let invites = Invites::from_payload(&payload).unwrap().invites.0;
        invites.into_iter().map(|facts| (facts.id, facts.path.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(seen(&mut alice).await, [(id, "in".to_owned())]);
    assert_eq!(seen(&mut twin).await, []);
    assert_eq!(seen(&mut admin).await, [(id, "alice/in".to_owned())]);
    let mut said = BTreeSet::new();
    for id in [id, InviteId([9; 8])] {
        assert_eq!(twin.ask(&RevokeInvite { id }).await.map(drop), Err(ErrorKind::NotFound));
        said.insert(twin.said.replace(&id.to_string(), "ID"));
    }
    assert_eq!(said.len(), 1, "{said:?}");
    admin.ask(&RevokeInvite { id }).await.unwrap();
    let inn = Inn { world, giver: alice };
    assert_eq!(inn.says(redeems(&Ticket::new([1; 32]), 1)).await.err(), Some(End::Goodbye(ErrorKind::Rights)));
}
