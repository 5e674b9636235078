//! Invites as those who give and get them meet them: links, uses, sizes, drop boxes, and every way in which one ends
//! (A04 to A06, A09, A10, D11, T13).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use sealift::client::event::Events;
use sealift::client::invite::{Link, Redemption};
use sealift::client::{ClientOptions, PutOptions};
use sealift::error::ErrorKind;
use sealift::protocol::Bytes16;
use sealift::tls::{self, ClientTls};
use serde_json::Value;

use crate::policy::{House, logged};
use crate::rig::{Server, binary, content, until};

/// A house whose alice may do and share everything at home, and its server.
pub(crate) struct Hall {
    pub(crate) house: House,
    pub(crate) server: Option<Server>,
    pub(crate) port: u16,
}

impl Hall {
    pub(crate) fn new() -> Hall {
        let house = House::new(&["alice"]);
        house.edit(&["user", "add", "alice", "--rights", "list,read,create,overwrite,rename,delete,share"], 0);
        let mut hall = Hall { house, server: None, port: 0 };
        hall.start();
        hall
    }

    pub(crate) fn start(&mut self) {
        let mut command = binary();
        command.args(["serve", "--invites", "--root"]).arg(self.house.world.root());
        command.arg("--certs").arg(self.house.world.path("certs")).arg("--policy").arg(self.house.policy());
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        let server = self.house.world.started(command);
        self.port = server.port;
        self.server = Some(server);
    }

    /// `kill -9`, and a new server at the same address.
    pub(crate) fn crash(&mut self) {
        self.server.take().unwrap().kill();
        self.start();
    }

    pub(crate) fn at(&self, path: &str) -> String {
        format!("sealift://localhost:{}/{path}", self.port)
    }

    pub(crate) fn alice(&self, args: &[&str]) -> Output {
        self.house.client("alice", args).output().unwrap()
    }

    /// A link to this directory of alice's.
    #[track_caller]
    pub(crate) fn link(&self, path: &str, flags: &[&str]) -> String {
        let at = self.at(path);
        let output = self.alice(&[&["invite", &at], flags].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "one line and nothing else: {text}");
        text.trim_end_matches('\n').to_owned()
    }

    /// What alice is told of her invites.
    #[track_caller]
    pub(crate) fn facts(&self) -> Vec<Value> {
        let output = self.alice(&["invite", "ls", "--json", &self.at("")]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let facts = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        facts.filter(|line| line["type"] == "invite").collect()
    }

    /// State, spent and reserved uses of the only invite.
    #[track_caller]
    pub(crate) fn only(&self) -> (String, u64, u64) {
        let facts = self.facts();
        let [facts] = facts.as_slice() else { panic!("not one: {facts:?}") };
        let number = |key: &str| facts[key].as_u64().unwrap();
        (facts["state"].as_str().unwrap().to_owned(), number("spent"), number("reserved"))
    }

    /// A receiver's command, somewhere without certificates, on a machine of this name.
    pub(crate) fn receiver(&self, machine: &str, args: &[&str]) -> Command {
        let home = self.house.world.path(&format!("machine-{machine}"));
        fs::create_dir_all(&home).unwrap();
        let mut command = binary();
        command.args(args).current_dir(&home).env("XDG_STATE_HOME", home.join("state"));
        command
    }

    /// The same with the link in its environment; ends with this code. Returns all that it says.
    #[track_caller]
    pub(crate) fn redeem(&self, machine: &str, link: &str, args: &[&str], code: i32) -> String {
        let output = self.receiver(machine, args).env("SEALIFT_INVITE", link).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let secret = link.rsplit('.').next().unwrap();
        assert!(secret.len() < 20 || !said.contains(secret), "the secret is shown: {said}");
        said
    }

    /// A file that a receiver has.
    pub(crate) fn file(&self, machine: &str, name: &str, content: &[u8]) {
        self.house.world.file(&format!("machine-{machine}/{name}"), content);
    }

    pub(crate) fn stored(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.house.world.root().join("alice").join(path)).ok()
    }

    /// A slow upload by this link that has reserved its use and begun to send.
    pub(crate) fn slow(&self, link: &str, size: usize) -> Child {
        self.file("slow", "big", &content(7, size));
        let id = Link::parse(link.as_bytes()).unwrap().id().to_string();
        let reserved = || {
            let facts = self.facts().into_iter().find(|facts| facts["id"] == id.as_str()).unwrap();
            facts["reserved"].as_u64().unwrap()
        };
        let before = reserved();
        let mut command = self.receiver("slow", &["put", "-q", "big", "--bwlimit", "256K", "--timeout", "60s"]);
        let child = command.env("SEALIFT_INVITE", link).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the slow run has its use", || (reserved() > before).then_some(()));
        child
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| !name.starts_with(".sealift")).collect()
}

#[test]
fn an_upload_link_is_all_that_its_receiver_needs() {
    let hall = Hall::new();
    let link = hall.link("in/bob", &["--uses", "4"]);
    assert!(link.starts_with(&format!("sealift://localhost:{}/in/bob#sl1.", hall.port)), "{link}");
    hall.file("bob", "one", b"first");
    hall.file("bob", "two", &content(2, 3 << 20));
    hall.redeem("bob", &link, &["put", "one", "two"], 0);
    assert_eq!(hall.stored("in/bob/one").unwrap(), b"first");
    assert_eq!(hall.stored("in/bob/two").unwrap(), content(2, 3 << 20));
    // From a file, with the end of a line.
    hall.file("bob", "link", format!("{link}\n").as_bytes());
    hall.file("bob", "three", b"third");
    let output = hall.receiver("bob", &["put", "three", "--invite-file", "link"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"), "{output:?}");
    // As an argument: it works, with a warning.
    hall.file("bob", "four", b"fourth");
    let output = hall.receiver("bob", &["put", "four", &link]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("can be read by everybody"), "{output:?}");
    assert_eq!(hall.stored("in/bob/four").unwrap(), b"fourth");
    assert_eq!(hall.only(), ("open".to_owned(), 3, 0));
    // What there is is seen, and is not a use; what is there is not replaced, nor read, and nothing else is reached.
    assert_eq!(hall.redeem("bob", &link, &["ls"], 0).lines().count(), 4);
    assert!(hall.redeem("bob", &link, &["stat", "one"], 0).contains("5"));
    assert_eq!(hall.only(), ("open".to_owned(), 3, 0));
    hall.file("bob", "one", b"other");
    assert!(hall.redeem("bob", &link, &["put", "one"], 4).contains("one"));
    assert_eq!(hall.stored("in/bob/one").unwrap(), b"first");
    hall.redeem("bob", &link, &["get", "out"], 4);
    assert_eq!(hall.only(), ("open".to_owned(), 3, 0));
    hall.file("bob", "five", b"fifth");
    hall.redeem("bob", &link, &["put", "five"], 0);
    hall.file("bob", "six", b"sixth");
    let said = hall.redeem("bob", &link, &["put", "six"], 4);
    assert!(said.contains("all of them have been used"), "{said}");
    assert_eq!(hall.only(), ("used up".to_owned(), 4, 0));
    assert!(hall.stored("in/bob/six").is_none());
}

/// Who runs the same command again is told that it is done, though it may not read; nobody else is, so nobody finds
/// out by guessing what another stored.
#[test]
fn the_same_command_again_is_unchanged_for_who_stored_it_and_for_nobody_else() {
    let hall = Hall::new();
    let link = hall.link("in", &["--uses", "9"]);
    let large = content(5, 3 << 20);
    for machine in ["bob", "eve"] {
        hall.file(machine, "small", b"1234");
        hall.file(machine, "large", &large);
    }
    hall.redeem("bob", &link, &["put", "small", "large"], 0);
    for _ in 0..2 {
        let said = hall.redeem("bob", &link, &["put", "small", "large"], 0);
        assert!(said.contains("2 unchanged"), "{said}");
    }
    assert_eq!(hall.only(), ("open".to_owned(), 1, 0), "nothing was stored, so no use is spent");
    let said = hall.redeem("eve", &link, &["put", "small", "large"], 4);
    assert!(said.contains("an invite replaces nothing") && !said.contains("unchanged"), "{said}");
    // Other content of the same size, and what somebody else has put in its place since.
    hall.file("bob", "small", b"4321");
    hall.redeem("bob", &link, &["put", "small"], 4);
    let there = hall.house.world.root().join("alice/in/large");
    fs::remove_file(&there).unwrap();
    fs::write(&there, &large).unwrap();
    hall.redeem("bob", &link, &["put", "large"], 4);
    assert_eq!(hall.only().1, 1);
}

#[test]
fn what_a_receiver_does_wrong_is_told() {
    let hall = Hall::new();
    let link = hall.link("in", &[]);
    hall.file("bob", "f", b"x");
    for (args, expected) in [
        (&["put", "f", "--invite"][..], "no terminal"),
        (&["put", "f", "--invite-file", "none"], "none"),
        (&["put", &link], "something to store"),
        (&["put", &link, "f"], "last argument"),
        (&["put", "f", &link, "--certs", "x"], "leave out --certs"),
        (&["put", "f", &link, "--invite"], "link once"),
        (&["put", "-", &link], "no name"),
        (&["put", "--stdin-from-command", &link, "--", "true"], "an invite gives none"),
        (&["rm", &link], "no place here"),
        (&["sync", "f", &link], "no place here"),
        (&["get", &link, "a", "b"], "one place"),
        (&["put", "f", &link[..link.len() - 1]], "not a whole link"),
    ] {
        let output = hall.receiver("bob", args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert!(!said.contains(link.rsplit('.').next().unwrap()), "the secret is shown: {said}");
    }
    assert_eq!(hall.only(), ("open".to_owned(), 0, 0));
}

#[test]
fn a_download_link_gives_what_is_there_and_is_spent_by_the_end_of_a_file() {
    let hall = Hall::new();
    let root = hall.house.world.root();
    fs::create_dir_all(root.join("alice/out/builds/deep")).unwrap();
    let large = content(3, 3 * (1 << 20) + 5);
    fs::write(root.join("alice/out/builds/large"), &large).unwrap();
    fs::write(root.join("alice/out/builds/deep/small"), "small").unwrap();
    fs::write(root.join("alice/out/other"), "not for bob").unwrap();
    let link = hall.link("out/builds", &["--download", "--uses", "2"]);
    hall.redeem("bob", &link, &["get"], 0);
    let here = hall.house.world.path("machine-bob");
    assert_eq!(fs::read(here.join("builds/large")).unwrap(), large);
    assert_eq!(fs::read(here.join("builds/deep/small")).unwrap(), b"small");
    assert_eq!(hall.only(), ("open".to_owned(), 1, 0));
    hall.redeem("bob", &link, &["get", "again"], 0);
    assert_eq!(fs::read(here.join("again/large")).unwrap(), large);
    hall.redeem("bob", &link, &["get", "third"], 4);
    assert!(!here.join("third").exists());
    assert_eq!(hall.only(), ("used up".to_owned(), 2, 0));
    // There must be something to download.
    let output = hall.alice(&["invite", "--download", &hall.at("none")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = hall.alice(&["invite", "--download", &hall.at("out/other")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is for a directory"), "{output:?}");
}

#[test]
fn a_drop_box_shows_no_names_and_keeps_both_of_two() {
    let hall = Hall::new();
    let link = hall.link("drop", &["--drop", "--uses", "5"]);
    hall.file("bob", "report.txt", b"of bob");
    hall.file("eve", "report.txt", b"of eve");
    hall.redeem("bob", &link, &["put", "report.txt"], 0);
    let said = hall.redeem("eve", &link, &["put", "--if-exists", "overwrite", "report.txt"], 0);
    assert!(said.contains("report (1).txt"), "{said}");
    for (args, path) in [(&["ls"][..], ""), (&["stat", "report.txt"], "report.txt"), (&["get", "x"], "")] {
        let said = hall.redeem("eve", &link, args, 4);
        assert!(!said.contains("(1)") || path.is_empty(), "{said}");
    }
    let there = names(&hall.house.world.root().join("alice/drop"));
    assert_eq!(there, BTreeSet::from(["report.txt".to_owned(), "report (1).txt".to_owned()]));
    assert_eq!(hall.stored("drop/report.txt").unwrap(), b"of bob");
}

/// Redeems in this process, as a client of the library.
async fn put_by(link: Arc<Link>, run: u8, number: u8, file: std::path::PathBuf) -> Result<(), ErrorKind> {
    let trusted = tls::ClientOptions { pins: vec![link.pin], ..tls::ClientOptions::default() };
    let mut id = [run; 16];
    id[0] = number;
    let options = ClientOptions {
        invite: Some(Redemption { ticket: link.ticket(), run: Bytes16(id) }),
        ..ClientOptions::new(link.endpoint.clone(), ClientTls::load(&trusted).unwrap())
    };
    let client = sealift::Client::connect(options, Events::unwatched()).await.map_err(|error| error.kind())?;
    let name = format!("f{number}").parse().unwrap();
    let report = client.upload(file, &name, PutOptions::default()).await.map_err(|error| error.kind())?;
    report.whole().map_err(|error| error.kind())?;
    client.close().await;
    Ok(())
}

#[tokio::test]
async fn two_hundred_at_once_have_no_more_uses_than_there_are() {
    let hall = Hall::new();
    let link = Arc::new(Link::parse(hall.link("in", &["--uses", "7"]).as_bytes()).unwrap());
    let file = hall.house.world.file("source", b"content");
    let barrier = Arc::new(tokio::sync::Barrier::new(200));
    let here = tokio::task::LocalSet::new();
    let mut all = tokio::task::JoinSet::new();
    for number in 0..200 {
        let (link, file, barrier) = (Arc::clone(&link), file.clone(), Arc::clone(&barrier));
        let run = async move {
            barrier.wait().await;
            put_by(link, 1, number, file).await
        };
        all.spawn_local_on(run, &here);
    }
    let results = here.run_until(all.join_all()).await;
    let stored = results.iter().filter(|result| result.is_ok()).count();
    let refused = results.iter().filter(|result| **result == Err(ErrorKind::Limit)).count();
    // One that failed for another reason would have given its use back.
    assert_eq!((stored, refused), (7, 193), "{results:?}");
    assert_eq!(names(&hall.house.world.root().join("alice/in")).len(), 7);
    assert_eq!(hall.only(), ("used up".to_owned(), 7, 0));
}

#[test]
fn a_crash_between_reserving_and_spending_loses_no_use_and_gives_none() {
    let mut hall = Hall::new();
    let link = hall.link("in", &[]);
    let mut run = hall.slow(&link, 2 << 20);
    hall.file("eve", "f", b"x");
    let said = hall.redeem("eve", &link, &["put", "f"], 4);
    assert!(said.contains("may become free"), "{said}");
    hall.crash();
    // It is still that run's.
    assert_eq!(hall.only(), ("open".to_owned(), 0, 1));
    hall.redeem("eve", &link, &["put", "f"], 4);
    let status = run.wait().unwrap();
    assert_eq!(status.code(), Some(0), "it goes on after the crash");
    assert_eq!(hall.stored("in/big").unwrap(), content(7, 2 << 20));
    assert_eq!(hall.only(), ("used up".to_owned(), 1, 0));
    hall.crash();
    assert_eq!(hall.only(), ("used up".to_owned(), 1, 0));
    hall.redeem("eve", &link, &["put", "f"], 4);
    assert!(hall.stored("in/f").is_none());
}

#[test]
fn a_command_that_was_killed_is_continued_in_its_own_use() {
    let hall = Hall::new();
    let link = hall.link("in", &[]);
    let mut run = hall.slow(&link, 3 << 20);
    run.kill().unwrap();
    run.wait().unwrap();
    // Nobody else has it, and the same machine goes on.
    hall.file("eve", "f", b"x");
    hall.redeem("eve", &link, &["put", "f"], 4);
    hall.redeem("slow", &link, &["put", "big"], 0);
    assert_eq!(hall.stored("in/big").unwrap(), content(7, 3 << 20));
    assert_eq!(hall.only(), ("used up".to_owned(), 1, 0));
}

#[test]
fn a_use_of_which_nothing_was_stored_is_given_back() {
    let hall = Hall::new();
    let link = hall.link("in", &[]);
    hall.file("bob", "f", b"x");
    hall.file("bob", "bad\nname", b"x");
    // Refused by name, and the command ends in order.
    hall.redeem("bob", &link, &["put", "bad\nname"], 1);
    assert_eq!(hall.only(), ("open".to_owned(), 0, 0));
    hall.redeem("bob", &link, &["put", "--expect-size", "9", "f"], 5);
    assert_eq!(hall.only(), ("open".to_owned(), 0, 0));
    hall.redeem("bob", &link, &["put", "f"], 0);
    assert_eq!(hall.only(), ("used up".to_owned(), 1, 0));
}

#[test]
fn a_link_that_is_taken_back_ends_what_runs() {
    let mut hall = Hall::new();
    let link = hall.link("in", &["--uses", "9"]);
    let run = hall.slow(&link, 64 << 20);
    let id = hall.facts()[0]["id"].as_str().unwrap().to_owned();
    let output = hall.alice(&["invite", "revoke", &hall.at(""), &id]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("taken back"), "{output:?}");
    assert!(hall.stored("in/big").is_none());
    hall.file("bob", "f", b"x");
    assert!(hall.redeem("bob", &link, &["put", "f"], 4).contains("taken back"));
    assert_eq!(hall.only().0, "revoked");
    hall.crash();
    assert!(hall.redeem("bob", &link, &["put", "f"], 4).contains("taken back"), "for good");
    // One that is not there, or not hers.
    let output = hall.alice(&["invite", "revoke", &hall.at(""), "0123456789abcdef"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn it_ends_with_its_givers_rights_and_with_its_giver() {
    let mut hall = Hall::new();
    let link = hall.link("in", &["--uses", "30"]);
    hall.file("bob", "f", b"x");
    let put = |hall: &Hall, code| hall.redeem("bob", &link, &["put", "--if-exists", "rename", "f"], code);
    put(&hall, 0);
    let policy = |hall: &Hall| fs::read_to_string(hall.house.policy()).unwrap();
    let whole = policy(&hall);
    for changed in [
        // May not share; may not create; may not see.
        whole.replace(", \"share\"", ""),
        whole.replace("\"create\", ", ""),
        whole.replace("\"list\", ", ""),
        // Another home.
        whole.replace("home = \"alice\"", "home = \"elsewhere\""),
        format!("revoked = [\"alice\"]\n{whole}"),
        "".to_owned(),
    ] {
        assert_ne!(changed, whole);
        fs::write(hall.house.policy(), &changed).unwrap();
        until("the server follows", || {
            let output = hall.receiver("bob", &["ls"]).env("SEALIFT_INVITE", &link).output().unwrap();
            (output.status.code() == Some(4)).then_some(())
        });
        assert!(put(&hall, 4).contains("this invite has ended"), "{changed}");
        fs::write(hall.house.policy(), &whole).unwrap();
        until("the server follows", || {
            let output = hall.receiver("bob", &["ls"]).env("SEALIFT_INVITE", &link).output().unwrap();
            (output.status.code() == Some(0)).then_some(())
        });
        put(&hall, 0);
    }
    // While it runs, and after a restart.
    let run = hall.slow(&link, 64 << 20);
    hall.house.edit(&["user", "revoke", "alice"], 0);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    hall.crash();
    put(&hall, 4);
    hall.house.edit(&["user", "restore", "alice"], 0);
    until("the server follows", || {
        let output = hall.receiver("bob", &["ls"]).env("SEALIFT_INVITE", &link).output().unwrap();
        (output.status.code() == Some(0)).then_some(())
    });
    // By the certificate alone.
    hall.house.world.certs(&["--revoke", "alice"]);
    until("the server follows", || {
        let output = hall.receiver("bob", &["ls"]).env("SEALIFT_INVITE", &link).output().unwrap();
        (output.status.code() == Some(4)).then_some(())
    });
    assert!(put(&hall, 4).contains("this invite has ended"));
}

#[test]
fn giving_needs_the_right_to_share_and_gives_no_more() {
    let hall = Hall::new();
    let whole = fs::read_to_string(hall.house.policy()).unwrap();
    let narrow = whole.replace("\"overwrite\", \"rename\", \"delete\", ", "").replace("\"read\", ", "");
    assert_ne!(whole, narrow);
    fs::write(hall.house.policy(), &narrow).unwrap();
    until("the server follows", || {
        let output = hall.alice(&["invite", "--download", &hall.at("in")]);
        (output.status.code() == Some(4)).then_some(())
    });
    let output = hall.alice(&["invite", "--download", &hall.at("")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("hand on more than it has"), "{output:?}");
    hall.link("in", &[]);
    hall.link("in", &["--drop"]);
    fs::write(hall.house.policy(), whole.replace(", \"share\"", "")).unwrap();
    until("the server follows", || {
        let output = hall.alice(&["invite", &hall.at("in")]);
        (output.status.code() == Some(4)).then_some(())
    });
    let output = hall.alice(&["invite", "ls", &hall.at("")]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[test]
fn the_size_counts_over_all_uses() {
    let mut hall = Hall::new();
    let link = hall.link("in", &["--uses", "9", "--max-size", "10M"]);
    hall.file("bob", "four", &content(1, 4 << 20));
    hall.file("bob", "again", &content(2, 4 << 20));
    hall.file("bob", "small", b"small");
    hall.redeem("bob", &link, &["put", "four"], 0);
    hall.redeem("bob", &link, &["put", "again"], 0);
    hall.crash();
    // Before content: the refused file has come to nothing, and its use is given back.
    hall.file("bob", "third", &content(3, 4 << 20));
    let said = hall.redeem("bob", &link, &["put", "third"], 4);
    assert!(said.contains("10485760 bytes in all") && said.contains("2097152 are left"), "{said}");
    assert!(hall.stored("in/third").is_none());
    assert_eq!(hall.only(), ("open".to_owned(), 2, 0));
    hall.redeem("bob", &link, &["put", "small"], 0);
    assert_eq!(hall.facts()[0]["used_size"].as_u64(), Some((8 << 20) + 5));
    // Small ones too, and what is read.
    fs::create_dir_all(hall.house.world.root().join("alice/out")).unwrap();
    fs::write(hall.house.world.root().join("alice/out/f"), content(4, 3 << 20)).unwrap();
    let link = hall.link("out", &["--download", "--uses", "9", "--max-size", "5M"]);
    hall.redeem("bob", &link, &["get", "a"], 0);
    let said = hall.redeem("bob", &link, &["get", "b"], 4);
    assert!(said.contains("5242880 bytes in all"), "{said}");
    let tiny = hall.link("tiny", &["--max-size", "4"]);
    hall.redeem("bob", &tiny, &["put", "small"], 4);
    assert!(hall.stored("tiny/small").is_none());
}

#[test]
fn a_server_with_another_key_gets_nothing_of_it() {
    let hall = Hall::new();
    let link = hall.link("in", &[]);
    let (place, rest) = link.split_once("#sl1.").unwrap();
    let (_, secret) = rest.split_once('.').unwrap();
    let other = format!("{place}#sl1.{}.{secret}", "A".repeat(43));
    hall.file("bob", "f", b"x");
    let said = hall.redeem("bob", &other, &["put", "f"], 3);
    assert!(said.contains("pin"), "{said}");
    assert_eq!(hall.only(), ("open".to_owned(), 0, 0));
    // The right key under another name is the right one.
    hall.redeem("bob", &link.replace("localhost", "127.0.0.1"), &["put", "f"], 0);
}

#[test]
fn without_the_secret_all_that_there_is_looks_the_same() {
    let hall = Hall::new();
    hall.file("bob", "f", b"x");
    let used = hall.link("in", &[]);
    hall.redeem("bob", &used, &["put", "f"], 0);
    let revoked = hall.link("in", &[]);
    let ids: Vec<String> = hall.facts().iter().map(|facts| facts["id"].as_str().unwrap().to_owned()).collect();
    for id in &ids {
        assert_eq!(hall.alice(&["invite", "revoke", &hall.at(""), id]).status.code(), Some(0));
    }
    let open = hall.link("in", &["--uses", "3"]);
    let mut said = BTreeSet::new();
    for link in [&used, &revoked, &open] {
        let (before, secret) = link.rsplit_once('.').unwrap();
        // A bit of the secret, of its first and last character, and another path.
        let turned = |index: usize| {
            let mut bytes = secret.as_bytes().to_vec();
            bytes[index] = if bytes[index] == b'A' { b'E' } else { b'A' };
            format!("{before}.{}", String::from_utf8(bytes).unwrap())
        };
        for wrong in [turned(0), turned(20), turned(42), link.replace("/in#", "/im#"), link.replace("/in#", "/in/f#")] {
            said.insert(hall.redeem("bob", &wrong, &["put", "f"], 4));
        }
    }
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(hall.facts().iter().filter(|facts| facts["state"] == "open").count(), 1);
    // Whoever holds one is told what became of it.
    assert!(hall.redeem("bob", &used, &["put", "f"], 4).contains("taken back"));
}

#[test]
fn only_invites_come_in_without_a_certificate() {
    let mut hall = Hall::new();
    let link = hall.link("in", &[]);
    let pin = format!("sha256:{}", link.split("#sl1.").nth(1).unwrap().split('.').next().unwrap());
    let none = hall.receiver("eve", &["ls", "--pin", &pin, &hall.at("")]).output().unwrap();
    assert_eq!(none.status.code(), Some(4), "{none:?}");
    // Whatever the policy gives them: that needs --allow-anonymous.
    let policy = fs::read_to_string(hall.house.policy()).unwrap();
    let anonymous = "[anonymous]\nhome = \"drop\"\nrights = [\"list\", \"create\"]\n";
    fs::write(hall.house.policy(), format!("{policy}\n{anonymous}")).unwrap();
    logged(hall.server.as_ref().unwrap(), 1, "rules are read again");
    let none = hall.receiver("eve", &["ls", "--pin", &pin, &hall.at("")]).output().unwrap();
    assert_eq!(none.status.code(), Some(4), "{none:?}");
    // A bad certificate fails in the handshake, whatever else there is.
    let mut foreign = binary();
    foreign.args(["certs", "--dir"]).arg(hall.house.world.path("foreign"));
    assert_eq!(foreign.output().unwrap().status.code(), Some(0));
    let mut bad = hall.receiver("eve", &["ls", "--pin", &pin, &hall.at("")]);
    bad.arg("--cert").arg(hall.house.world.path("foreign/client.pem"));
    bad.arg("--key").arg(hall.house.world.path("foreign/client-key.pem"));
    assert_eq!(bad.output().unwrap().status.code(), Some(3));
    // Without --invites a certificate is required by the handshake, and no invite is given.
    hall.server.take().unwrap().kill();
    let server = hall.house.serve();
    let at = format!("sealift://localhost:{}/in", server.port);
    let given = hall.house.client("alice", &["invite", &at]).output().unwrap();
    assert!(String::from_utf8_lossy(&given.stderr).contains("--invites"), "{given:?}");
}

#[test]
fn a_damaged_record_lets_nobody_in_and_no_server_stops_for_it() {
    let mut hall = Hall::new();
    let links = [hall.link("in", &["--uses", "9"]), hall.link("in", &["--uses", "9"])];
    hall.file("bob", "f", b"x");
    let folder = hall.house.world.root().join(".sealift/invites");
    let id = Link::parse(links[0].as_bytes()).unwrap().id().to_string();
    let whole = fs::read(folder.join(&id)).unwrap();
    let mut turned = whole.clone();
    turned[whole.len() / 2] ^= 1;
    let other = Link::parse(links[1].as_bytes()).unwrap().id().to_string();
    let others = fs::read(folder.join(&other)).unwrap();
    for damaged in [turned, whole[..whole.len() / 2].to_vec(), Vec::new(), vec![0; whole.len()], others] {
        fs::write(folder.join(&id), damaged).unwrap();
        hall.crash();
        assert!(hall.redeem("bob", &links[0], &["put", "f"], 4).contains("damaged"));
        assert!(hall.stored("in/f").is_none());
        hall.redeem("bob", &links[1], &["ls"], 0);
    }
    let listed = hall.facts();
    assert!(listed.iter().any(|facts| facts["state"] == "damaged" && facts["id"] == id.as_str()), "{listed:?}");
    // One that is gone, and what a crash left of a replacement.
    fs::remove_file(folder.join(&id)).unwrap();
    fs::write(folder.join(format!("{other}.new")), "half").unwrap();
    hall.crash();
    assert!(hall.redeem("bob", &links[0], &["put", "f"], 4).contains("no such invite"));
    hall.redeem("bob", &links[1], &["put", "f"], 0);
    // Nobody reads or writes there.
    for path in [".sealift/invites", &format!(".sealift/invites/{other}")] {
        assert_ne!(hall.alice(&["stat", &hall.at(path)]).status.code(), Some(0));
    }
}

#[test]
fn the_address_in_a_link_is_the_one_that_was_said() {
    let mut hall = Hall::new();
    let output = hall.alice(&["invite", &hall.at("in")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("only its neighbours"), "{output:?}");
    let output = hall.alice(&["invite", "--address", "nas.example.org:9", &hall.at("in")]);
    assert!(output.stdout.starts_with(b"sealift://nas.example.org:9/in#sl1."), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    hall.server.take().unwrap().kill();
    let mut command = binary();
    command.args(["serve", "--invites", "--public", "files.example.org", "--root"]).arg(hall.house.world.root());
    command.arg("--certs").arg(hall.house.world.path("certs")).arg("--listen").arg(format!("127.0.0.1:{}", hall.port));
    hall.server = Some(hall.house.world.started(command));
    // No policy: every certificate may share.
    let output = hall.alice(&["invite", &hall.at("in")]);
    assert!(output.stdout.starts_with(b"sealift://files.example.org:7443/in#sl1."), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let output = hall.alice(&["invite", "--address", "a b", &hall.at("in")]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn no_part_of_a_link_is_in_any_output_log_file_or_command_line() {
    let mut hall = Hall::new();
    hall.server.take().unwrap().kill();
    let log = hall.house.world.path("log");
    fs::create_dir(&log).unwrap();
    let mut command = binary();
    command.args(["serve", "-vvv", "--invites", "--root"]).arg(hall.house.world.root());
    command.arg("--certs").arg(hall.house.world.path("certs")).arg("--policy").arg(hall.house.policy());
    command.arg("--audit").arg(log.join("audit.jsonl")).arg("--listen").arg(format!("127.0.0.1:{}", hall.port));
    hall.server = Some(hall.house.world.started(command));
    let mut outputs: Vec<(String, Vec<u8>)> = Vec::new();
    let mut keep =
        |what: &str, output: Output| outputs.push((what.to_owned(), [output.stdout, output.stderr].concat()));
    let links: Vec<String> = (0..3).map(|_| hall.link("in", &["--uses", "50"])).collect();
    let link = &links[0];
    for flag in ["-q", "-v", "--json"] {
        hall.file("bob", "f", flag.as_bytes());
        for args in
            [&["put", "--if-exists", "rename", "f"][..], &["ls"], &["stat", "f"], &["get", "x"], &["stat", "none"]]
        {
            let output = hall.receiver("bob", args).arg(flag).env("SEALIFT_INVITE", link).output().unwrap();
            keep(&format!("{args:?} {flag}"), output);
        }
        keep("ls", hall.alice(&["invite", "ls", flag, &hall.at("")]));
    }
    // Wrong ones, and wrong places.
    for (index, _) in link.char_indices().step_by(7) {
        keep("a cut link", hall.receiver("bob", &["put", "f"]).env("SEALIFT_INVITE", &link[..index]).output().unwrap());
    }
    for args in
        [&["rm", link.as_str()][..], &["put", link, "f"], &["sync", "f", link], &["doctor", link], &["hash", link]]
    {
        keep(&format!("{} with a link", args[0]), hall.receiver("bob", args).output().unwrap());
    }
    let revoked = Link::parse(links[1].as_bytes()).unwrap().id().to_string();
    keep("revoke", hall.alice(&["invite", "revoke", "-v", &hall.at(""), &revoked]));
    keep("revoked", hall.receiver("bob", &["put", "f"]).env("SEALIFT_INVITE", &links[1]).output().unwrap());
    // What everybody on the machine sees of a command that runs.
    let mut run = hall.slow(link, 64 << 20);
    let seen = fs::read(format!("/proc/{}/cmdline", run.id())).unwrap();
    outputs.push(("the command line".to_owned(), seen));
    // The number of the run is one too.
    let runs = hall.house.world.path("machine-slow/state/sealift/runs");
    let kept: Vec<Vec<u8>> =
        fs::read_dir(&runs).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert_eq!((kept.len(), kept[0].len()), (1, 16));
    run.kill().unwrap();
    run.wait().unwrap();
    let server = hall.server.take().unwrap();
    let said = server.said().join("\n").into_bytes();
    assert!(String::from_utf8_lossy(&said).contains("invite "), "the log says who came");
    outputs.push(("the server's log".to_owned(), said));
    assert_eq!(server.stop(), Some(0));
    for folder in [log, hall.house.world.root().join(".sealift/invites")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            outputs.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    let mut canaries: Vec<Vec<u8>> = Vec::new();
    let add = |canaries: &mut Vec<Vec<u8>>, bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let listed = format!("{bytes:?}");
        canaries.extend([bytes[..12].to_vec(), hex.as_bytes()[..16].to_vec(), listed.as_bytes()[1..30].to_vec()]);
    };
    add(&mut canaries, &kept[0]);
    for link in &links {
        let text = link.rsplit('.').next().unwrap();
        let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        add(&mut canaries, &base64::Engine::decode(&engine, text).unwrap());
        // The ticket, as the wire has it.
        let encoded = minicbor::to_vec(Link::parse(link.as_bytes()).unwrap().ticket()).unwrap();
        add(&mut canaries, &encoded[2..]);
        canaries.extend((0..text.len() - 12).map(|at| text.as_bytes()[at..at + 12].to_vec()));
    }
    for (what, bytes) in &outputs {
        for canary in &canaries {
            let is_there = bytes.windows(canary.len()).any(|window| window == canary.as_slice());
            assert!(
                !is_there,
                "{what} holds {:?}: {}",
                String::from_utf8_lossy(canary),
                String::from_utf8_lossy(bytes)
            );
        }
    }
    // Were one there, it would be found.
    assert!(
        canaries.iter().any(|canary| link.as_bytes().windows(canary.len()).any(|window| window == canary.as_slice()))
    );
    assert!(outputs.len() > 30, "{}", outputs.len());
}
