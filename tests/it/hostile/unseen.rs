//! What those learn who may not see, and what counts for whom (A07, N08): answers that would tell of others' names,
//! and principals of different kinds that are called alike.

use std::collections::BTreeSet;
use std::fs;

use sealift::ErrorKind;
use sealift::access::{Access, Policy};
use sealift::protocol::*;

use super::peer::{Peer, World, get, path, put, put_small};

const ALL: &str = "[\"list\", \"read\", \"create\", \"overwrite\", \"rename\", \"delete\", \"share\"]";

async fn world(policy: &str, clients: &[&str]) -> World {
    World::with_access(Access::by_policy(Policy::parse(policy).unwrap()), clients).await
}

/// An answer, with the name that it is about left out.
async fn told<M: Message>(peer: &mut Peer, name: &str, message: M) -> String {
    peer.said.clear();
    let mut answer = peer.ask(&message).await;
    if let Ok((Kind::PutAnswer, payload)) = &mut answer {
        // Attempts have numbers.
        *payload = PutAnswer { generation: 0, ..PutAnswer::from_payload(payload).unwrap() }.to_frame(0);
    }
    format!("{answer:?} {}", peer.said).replace(name, "NAME")
}

/// Each verb that a principal has no right to, about a file, a directory, and nothing: the same answer. Of those that it
/// has, making a directory as well.
#[tokio::test]
async fn what_is_there_shows_in_no_answer_to_who_may_not_see_it() {
    for (rights, may_create) in [("\"create\"", true), ("", false), ("\"rename\"", false), ("\"share\"", false)] {
        let world = world(&format!("[user.client]\nhome = \"in\"\nrights = [{rights}]\n"), &[]).await;
        fs::write(world.root().join("in/file"), "another's").unwrap();
        fs::create_dir(world.root().join("in/dir")).unwrap();
        let mut said: Vec<BTreeSet<String>> = vec![BTreeSet::new(); 12];
        for name in ["file", "dir", "none"] {
            let mut peer = world.greeted().await;
            let place = || path(name);
            let id = || put("x", 0).upload_id;
            let answers = [
                told(&mut peer, name, Stat { path: place(), xattrs: None }).await,
                told(
                    &mut peer,
                    name,
                    ListDirectory { path: place(), after: None, count_max: None, xattrs: None, directory: None },
                )
                .await,
                told(&mut peer, name, Get { path: place(), unasked_max: 100, ..get("") }).await,
                told(&mut peer, name, Hash { path: place(), read: None }).await,
                told(&mut peer, name, Space { path: place() }).await,
                told(&mut peer, name, Remove { path: place(), recursive: true }).await,
                told(&mut peer, name, BeginTree { path: place(), run: id(), resume: None }).await,
                told(&mut peer, name, PublishTree { path: place() }).await,
                told(&mut peer, name, SetDirectory { path: place(), mode: Some(0o700), mtime: None, xattrs: None })
                    .await,
                told(&mut peer, name, Rename { from: path("other"), to: place(), if_exists: IfExists::Fail, id: id() })
                    .await,
                told(&mut peer, name, Put { same_as: Some(place()), ..put("other/x", 9) }).await,
                // A file is in the way of a directory: that is known, as it could not be made.
                if name == "file" {
                    String::new()
                } else {
                    told(&mut peer, name, MakeDirectory { path: place() }).await
                },
            ];
            for (said, answer) in said.iter_mut().zip(answers) {
                said.extend(Some(answer).filter(|answer| !answer.is_empty()));
            }
        }
        for said in &said {
            assert_eq!(said.len(), 1, "with {rights}: {said:?}");
        }
        assert_eq!(said[11].iter().any(|answer| answer.starts_with("Ok")), may_create);
    }
}

/// A directory that takes another's place begins as that one: nothing that its builder may not see is told of.
#[tokio::test]
async fn what_is_carried_over_is_not_told_to_who_may_not_see_it() {
    let rules = format!("[user.client]\nhome = \"in\"\nrights = {ALL}\n[user.client.paths]\n\"in/site/kept\" = []\n");
    let world = world(&rules, &[]).await;
    let site = world.root().join("in/site");
    fs::create_dir_all(site.join("kept")).unwrap();
    fs::write(site.join("kept/before"), "x").unwrap();
    let mut peer = world.greeted().await;
    let run = put("x", 0).upload_id;
    peer.ask(&BeginTree { path: path("site"), run, resume: None }).await.unwrap();
    peer.store(put_small("site/new", b"new"), b"new").await.unwrap();
    fs::write(site.join("kept/secret-name"), "x").unwrap();
    assert_eq!(peer.ask(&PublishTree { path: path("site") }).await.map(drop), Err(ErrorKind::Changed));
    assert!(!peer.said.contains("kept") && !peer.said.contains("secret"), "{}", peer.said);
    assert!(!site.join("new").exists());
}

/// A user may be called as clients without a certificate are, or as the holder of an invite is.
#[tokio::test]
async fn who_is_called_alike_is_counted_apart() {
    let limits = "limits = { connections = 1, uploads = 1 }\nrights = [\"create\", \"list\"]\n";
    let rules = format!("[user.anonymous]\nhome = \"a\"\n{limits}[anonymous]\nhome = \"b\"\n{limits}");
    let world = world(&rules, &["anonymous"]).await;
    let mut named = world.greeted_as("anonymous").await;
    let mut nobody = world.anonymous().await;
    let (one, _) = named.begin(&put("f", 9)).await;
    let (two, _) = nobody.begin(&put("f", 9)).await;
    assert_eq!(named.ask(&put("g", 9)).await.map(drop), Err(ErrorKind::Busy));
    assert_eq!(nobody.ask(&put("g", 9)).await.map(drop), Err(ErrorKind::Busy));
    for (peer, transfer) in [(&mut named, one), (&mut nobody, two)] {
        peer.data(transfer, 0, b"123456789").await;
        peer.send(transfer, &super::peer::finish(b"123456789")).await;
        assert_eq!(peer.answer(transfer).await.unwrap().0, Kind::Stored);
    }
}

/// Who gives many invites does not have its limits many times.
#[tokio::test]
async fn uploads_by_invites_count_for_who_gave_them() {
    let rules = format!("[user.client]\nhome = \"in\"\nrights = {ALL}\nlimits = {{ uploads = 2 }}\n");
    let access = Access::by_policy(Policy::parse(&rules).unwrap());
    let world = World::with_invites(access, &[]).await;
    let mut giver = world.greeted().await;
    let mut holders = Vec::new();
    for number in 0..3 {
        let ticket = Ticket::new([number; 32]);
        let (kind, verifier) = (InviteKind::Upload, ticket.verifier().into());
        giver.ask(&Invite { path: path(""), kind, verifier, seconds: 60, uses: 1, max_size: None }).await.unwrap();
        let peer = world.connect_with(world.client(false)).await.unwrap();
        let run = Some(Bytes16([number; 16]));
        holders.push(peer.greet_with(ClientHello { redeem: Some(ticket), run, ..super::peer::hello() }).await);
    }
    holders[0].begin(&put("a", 9)).await;
    holders[1].begin(&put("b", 9)).await;
    assert_eq!(holders[2].ask(&put("c", 9)).await.map(drop), Err(ErrorKind::Busy));
    assert_eq!(giver.ask(&put("d", 9)).await.map(drop), Err(ErrorKind::Busy));
    // Their connections are theirs: nobody keeps the giver out.
    assert!(giver.is_alive().await);
}
