//! Policies as their users meet them: edited by commands, followed by a server that runs, with homes, rights and
//! revocations that hold at once (A06, A13, N08).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustix::process::{Resource, Rlimit, Signal, kill_process, prlimit};
use time::{Duration, OffsetDateTime};

use crate::rig::{PATIENCE, Server, World, binary, remote, until};

/// A world with a policy, and certificates for these clients.
pub(crate) struct House {
    pub(crate) world: World,
}

impl House {
    pub(crate) fn new(clients: &[&str]) -> House {
        House::of(World::new(), clients)
    }

    pub(crate) fn of(world: World, clients: &[&str]) -> House {
        world.certs(&clients.iter().flat_map(|name| ["--client", name]).collect::<Vec<_>>());
        let house = House { world };
        clients.iter().for_each(|name| house.export(name));
        house
    }

    fn export(&self, name: &str) {
        let mut command = binary();
        command.args(["certs", "--force", "--export", name, "--dir"]).arg(self.world.path("certs"));
        let output = command.arg("--to").arg(self.world.path(name)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    pub(crate) fn policy(&self) -> PathBuf {
        self.world.path("policy.toml")
    }

    /// Runs `sealift user` or `sealift grant` on the policy, which ends with this code; returns all that it says.
    #[track_caller]
    pub(crate) fn edit(&self, args: &[&str], code: i32) -> String {
        let output = binary().args(args).arg("--policy").arg(self.policy()).output().unwrap();
        said(&output, code)
    }

    #[track_caller]
    pub(crate) fn serve(&self) -> Server {
        self.world.serve_and(&["--policy".as_ref(), self.policy().as_ref()])
    }

    /// A client with the certificates of this name.
    pub(crate) fn client(&self, name: &str, args: &[&str]) -> Command {
        let mut command = binary();
        command.args(args).arg("--certs").arg(self.world.path(name));
        command
    }

    /// Runs one, which ends with this code; returns all that it says.
    #[track_caller]
    pub(crate) fn run(&self, name: &str, args: &[&str], code: i32) -> String {
        said(&self.client(name, args).output().unwrap(), code)
    }

    /// An upload that has begun and waits for more content.
    pub(crate) fn begin_upload(&self, server: &Server, name: &str, path: &str) -> Child {
        let mut command = self.client(name, &["put", "-", &server.at(path)]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(&vec![7; 3 << 20]).unwrap();
        let places = ["staging", "partial"].map(|name| self.world.root().join(".sealift").join(name));
        until("the upload begins", || {
            let entries = places.iter().flat_map(|place| fs::read_dir(place).unwrap());
            entries.filter_map(|entry| entry.ok()?.metadata().ok()).any(|file| file.len() > 0).then_some(())
        });
        child
    }
}

#[track_caller]
fn said(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// Waits for the end of a client that would go on for longer than [`PATIENCE`] if nothing were done about it.
#[track_caller]
pub(crate) fn ended(child: &mut Child, why: &str) {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("a client goes on, though {why}");
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    println!("ended after {:?}: {why}", begun.elapsed());
}

/// What becomes of an upload that is cut. It must not be one that ends by itself soon: that is refused at its end.
#[track_caller]
fn cut(mut child: Child, code: i32, sentence: &str) {
    ended(&mut child, sentence);
    let output = child.wait_with_output().unwrap();
    let text = said(&output, code);
    assert!(text.contains(sentence), "{text}");
}

#[track_caller]
pub(crate) fn logged(server: &Server, count: usize, sentence: &str) {
    until(&format!("{count} × `{sentence}` in the log"), || {
        let lines = server.said();
        (lines.iter().filter(|line| line.contains(sentence)).count() >= count).then_some(())
    });
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn users_are_edited_and_what_a_person_wrote_stays() {
    let house = House { world: World::new() };
    house.edit(&["user", "ls"], 2);
    assert!(house.edit(&["user", "add", "alice", "--bytes", "1G"], 0).contains("at home in alice"));
    let written = fs::read_to_string(house.policy()).unwrap();
    let written = written.replace("rights = [", "# what she needs\nrights = [").replace("delete\"]", "delete\"] # all");
    fs::write(house.policy(), "# ours\n".to_owned() + &written).unwrap();
    house.edit(&["user", "add", "bob", "--home", "people/bob", "--rights", "list,read"], 0);
    house.edit(&["grant", "alice", "alice/in", "create"], 0);
    house.edit(&["grant", "alice", "/alice//in/", "none"], 0);
    house.edit(&["grant", "alice", "alice/out", "list,read"], 0);
    house.edit(&["grant", "alice", "alice/out", "default"], 0);
    house.edit(&["grant", "alice", "alice", "list,create"], 0);
    house.edit(&["user", "revoke", "bob"], 0);
    assert!(house.edit(&["user", "revoke", "bob"], 0).contains("already"));
    let text = fs::read_to_string(house.policy()).unwrap();
    for line in [
        "# ours",
        "# what she needs",
        "rights = [\"list\", \"create\"] # all",
        "bytes = 1073741824",
        "\"alice/in\" = []",
        "home = \"people/bob\"",
        "revoked = [\"bob\"]",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}:\n{text}");
    }
    assert!(!text.contains("alice/out"), "{text}");
    let listed = house.edit(&["user", "ls"], 0);
    assert!(listed.contains("alice/in") && listed.contains("nothing") && listed.contains("REVOKED"), "{listed}");
    // What would make no sense changes nothing.
    for args in [
        &["user", "add", "alice"][..],
        &["user", "add", "carol", "--home", "alice"],
        &["user", "add", "carol", "--home", "alice/in"],
        &["user", "add", "carol", "--home", "../x"],
        &["user", "add", "car\u{f6}l"],
        &["user", "rm", "carol"],
        &["user", "revoke", "carol"],
        &["user", "restore", "alice"],
        &["grant", "carol", "carol", "list"],
        &["grant", "alice", "alice2/x", "list"],
        &["grant", "alice", "alice", "default"],
        &["grant", "alice", "alice/x", "default"],
        &["grant", "alice", "alice/x", "raed"],
    ] {
        house.edit(args, 2);
        assert_eq!(fs::read_to_string(house.policy()).unwrap(), text, "{args:?}");
    }
    // A revoked name stays revoked though it is removed and comes again.
    assert!(house.edit(&["user", "rm", "bob"], 0).contains("stays revoked"));
    assert!(house.edit(&["user", "add", "bob"], 0).contains("is revoked"));
    house.edit(&["user", "restore", "bob"], 0);
    assert!(!house.edit(&["user", "ls"], 0).contains("evoked"));
    assert_eq!(names(house.policy().parent().unwrap()), ["certs", "client", "policy.toml", "root"]);
}

#[test]
fn two_who_edit_at_once_lose_nothing() {
    let house = House { world: World::new() };
    house.edit(&["user", "add", "first"], 0);
    std::thread::scope(|scope| {
        for part in 0..4 {
            let house = &house;
            scope.spawn(move || {
                for number in 0..5 {
                    house.edit(&["user", "add", &format!("u{part}{number}")], 0);
                }
            });
        }
    });
    let text = fs::read_to_string(house.policy()).unwrap();
    assert_eq!(text.matches("[user.").count(), 21, "{text}");
}

#[test]
fn a_policy_that_makes_no_sense_starts_no_server() {
    let house = House { world: World::new() };
    let check = |more: &[&str], code: i32| {
        let mut command = binary();
        command.args(["serve", "--check", "--listen", "127.0.0.1:0", "--root"]).arg(house.world.root());
        command.arg("--certs").arg(house.world.path("certs")).args(more);
        said(&command.output().unwrap(), code)
    };
    let file = house.policy();
    let policy = ["--policy", file.to_str().unwrap()];
    assert!(check(&policy, 2).contains("No such file"));
    let good = "[user.alice]\nhome = \"alice\"\nrights = [\"list\"]\n";
    for (text, sentence) in [
        (good.replace("home", "hmoe"), "policy.toml: line 2: unknown key `hmoe`"),
        (good.replace("list", "lst"), "line 3: `lst` is no right"),
        (format!("{good}[user.bob]\nhome = \"alice\"\nrights = []\n"), "is also that of"),
        (good.replace("\"alice\"", "\".sealift/staging\""), "the home of `alice`"),
        (good.replace("\"alice\"", "\"link/alice\""), "symbolic link"),
        (good.replace("\"alice\"", "\"file\""), "not a directory"),
        ("\0".to_owned(), "policy.toml: "),
    ] {
        fs::write(&file, &text).unwrap();
        fs::write(house.world.root().join("file"), b"").unwrap();
        let _ = std::os::unix::fs::symlink(".", house.world.root().join("link"));
        let said = check(&policy, 2);
        assert!(said.contains(sentence), "{text}: {said}");
    }
    fs::write(&file, good).unwrap();
    check(&policy, 0);
    check(&[&policy[..], &["--allow-anonymous", "--anonymous-rights", "list"]].concat(), 2);
    let beneath = house.world.root().join("policy.toml");
    fs::write(&beneath, good).unwrap();
    assert!(check(&["--policy", beneath.to_str().unwrap()], 2).contains("lies beneath the root"));
}

#[test]
fn each_is_at_home_and_sees_nobody_else() {
    let house = House::new(&["alice", "bob", "carol"]);
    house.edit(&["user", "add", "alice"], 0);
    house.edit(&["user", "add", "bob", "--home", "people/bob"], 0);
    house.edit(&["user", "add", "client", "--home", "/", "--overlap"], 0);
    house.edit(&["grant", "alice", "alice/box", "create"], 0);
    let server = house.serve();
    let file = house.world.file("in/report", b"of alice");
    let tree = house.world.path("in");
    let (file, tree) = (file.to_str().unwrap(), tree.to_str().unwrap());
    house.run("alice", &["put", file, tree, &server.at("")], 0);
    house.run("bob", &["put", file, &server.at("mine/report")], 0);
    assert_eq!(fs::read(house.world.root().join("alice/in/report")).unwrap(), b"of alice");
    assert_eq!(fs::read(house.world.root().join("people/bob/mine/report")).unwrap(), b"of alice");
    assert_eq!(house.run("alice", &["ls", &server.at("")], 0), "in/\nreport\n");
    assert_eq!(house.run("bob", &["ls", &server.at("")], 0), "mine/\n");
    assert_eq!(house.run("client", &["ls", &server.at("")], 0), "alice/\npeople/\n");
    // Into a drop box twice, and nothing is seen there.
    for _ in 0..2 {
        house.run("alice", &["put", file, &server.at("box/x")], 0);
    }
    assert_eq!(names(&house.world.root().join("alice/box")), ["x", "x (1)"]);
    assert!(house.run("alice", &["ls", &server.at("box/")], 4).contains("alice may not see box"));
    assert_eq!(house.run("alice", &["ls", &server.at("")], 0), "in/\nreport\n");
    house.run("alice", &["mv", &server.at("box"), &server.at("open")], 4);
    let there = house.run("bob", &["get", &server.at("alice/report"), "/dev/null"], 1);
    assert!(!there.contains("people"), "{there}");
    assert!(house.run("carol", &["ls", &server.at("")], 4).contains("carol has no rights on this server"));
}

#[test]
fn a_policy_is_followed_and_a_bad_one_is_not() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice"], 0);
    let server = house.serve();
    let file = house.world.file("file", b"content");
    let put = ["put", file.to_str().unwrap(), &server.at("a")];
    house.run("alice", &put, 0);
    house.edit(&["grant", "alice", "alice", "list"], 0);
    logged(&server, 1, "rules are read again");
    assert!(house.run("alice", &put, 4).contains("may not"));
    // Neither half a file nor none is followed.
    let good = fs::read_to_string(house.policy()).unwrap();
    fs::write(house.policy(), good.replace("list", "lst")).unwrap();
    logged(&server, 1, "the rules stay as they were");
    house.run("alice", &["ls", &server.at("")], 0);
    fs::remove_file(house.policy()).unwrap();
    logged(&server, 2, "the rules stay as they were");
    house.run("alice", &["ls", &server.at("")], 0);
    house.run("alice", &put, 4);
    fs::write(house.policy(), good.replace("list\"", "list\", \"create\", \"overwrite\"")).unwrap();
    logged(&server, 2, "rules are read again");
    house.run("alice", &put, 0);
    // And when it is told to.
    kill_process(server.pid(), Signal::HUP).unwrap();
    logged(&server, 3, "rules are read again");
    // A new user has a home at once.
    fs::write(house.policy(), good.replace("alice", "zoe")).unwrap();
    logged(&server, 4, "rules are read again");
    assert!(house.world.root().join("zoe").is_dir());
    house.run("alice", &["ls", &server.at("")], 4);
}

/// What kept the server from reading them passes, and nobody edits them again for it.
#[test]
fn rules_that_could_not_be_read_are_read_again() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice"], 0);
    let server = house.serve();
    house.run("alice", &["ls", &server.at("")], 0);
    let limit = |current| {
        let limit = Rlimit { current: Some(current), maximum: Some(4096) };
        prlimit(Some(server.pid()), Resource::Nofile, limit).unwrap();
    };
    limit(3);
    house.edit(&["user", "revoke", "alice"], 0);
    logged(&server, 1, "the rules stay as they were");
    limit(4096);
    logged(&server, 1, "rules are read again");
    house.run("alice", &["ls", &server.at("")], 4);
    let told = server.said().iter().filter(|line| line.contains("the rules stay as they were")).count();
    assert_eq!(told, 1, "{:?}", server.said());
}

#[test]
fn a_revoked_user_is_cut_off_and_stays_out() {
    let house = House::new(&["alice", "bob"]);
    house.edit(&["user", "add", "alice"], 0);
    house.edit(&["user", "add", "bob"], 0);
    let mut server = house.serve();
    let mut running = house.begin_upload(&server, "alice", "big");
    let other = house.begin_upload(&server, "bob", "big");
    house.edit(&["user", "revoke", "alice"], 0);
    let stdin = running.stdin.take();
    cut(running, 4, "is revoked on this server");
    drop(stdin);
    assert!(house.run("alice", &["ls", &server.at("")], 4).contains("is revoked"));
    // With a new key too, and after a restart.
    house.world.certs(&["--client", "alice", "--force"]);
    house.export("alice");
    house.run("alice", &["ls", &server.at("")], 4);
    said(&other.wait_with_output().unwrap(), 0);
    assert!(server.is_alive());
    drop(server);
    let server = house.serve();
    house.run("alice", &["ls", &server.at("")], 4);
    house.edit(&["user", "restore", "alice"], 0);
    logged(&server, 1, "rules are read again");
    house.run("alice", &["ls", &server.at("")], 0);
    assert_eq!(names(&house.world.root().join("alice")), [""; 0]);
}

#[test]
fn rights_that_shrink_cut_what_runs() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice"], 0);
    let server = house.serve();
    let mut running = house.begin_upload(&server, "alice", "in/big");
    house.edit(&["grant", "alice", "alice/in", "list,read"], 0);
    let stdin = running.stdin.take();
    cut(running, 4, "may not create in/big");
    drop(stdin);
    assert_eq!(names(&house.world.root().join("alice/in")), [""; 0]);
}

#[test]
fn what_may_not_be_listed_is_not_removed() {
    let house = House::new(&["alice"]);
    house.edit(&["user", "add", "alice"], 0);
    let server = house.serve();
    let root = house.world.root().join("alice/tree");
    for name in ["private/a", "open/a", "open/b", "top"] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), name).unwrap();
    }
    let here = house.world.path("here");
    let sync = |code| {
        let args = ["sync", "--delete", "--max-delete", "100%", &server.at("tree"), here.to_str().unwrap()];
        house.run("alice", &args, code)
    };
    sync(0);
    assert_eq!(names(&here), ["open", "private", "top"]);
    house.edit(&["grant", "alice", "alice/tree/private", "none"], 0);
    logged(&server, 1, "rules are read again");
    // What goes where all may be listed goes; above what is hidden nothing does.
    fs::remove_file(root.join("open/b")).unwrap();
    fs::remove_file(root.join("top")).unwrap();
    let said = sync(0);
    assert!(said.contains("you may not list all of it at the source, and 2 of its names may be there"), "{said}");
    assert_eq!(names(&here), ["open", "private", "top"]);
    assert_eq!(names(&here.join("open")), ["a"]);
    assert_eq!(names(&here.join("private")), ["a"]);
    // It is the same when there is nothing that is hidden.
    fs::remove_dir_all(root.join("private")).unwrap();
    assert_eq!(sync(0).lines().next(), said.lines().next());
    assert_eq!(names(&here.join("private")), ["a"]);
}

#[test]
fn a_certificate_on_the_list_is_cut_off() {
    let house = House::new(&["alice"]);
    let server = house.world.serve();
    let mut running = house.begin_upload(&server, "alice", "big");
    // There was no list before.
    house.world.certs(&["--revoke", "alice"]);
    let stdin = running.stdin.take();
    cut(running, 3, "it is revoked");
    drop(stdin);
    assert!(house.run("alice", &["ls", &server.at("")], 3).contains("revoked"));
    house.run("client", &["ls", &server.at("")], 0);
    // A list that goes away lets nobody in again.
    fs::remove_file(house.world.path("certs/crl.pem")).unwrap();
    logged(&server, 1, "stays revoked until a restart");
    house.run("alice", &["ls", &server.at("")], 3);
    house.run("client", &["ls", &server.at("")], 0);
}

/// Case A06, at its widest: one transfer over eight connections, and a list that is replaced by renaming under it.
#[test]
fn a_list_that_is_replaced_cuts_all_connections_of_a_transfer() {
    let house = House::new(&["alice", "bob"]);
    // A list is there from the beginning, and names somebody else.
    house.world.certs(&["--revoke", "bob"]);
    let server = house.world.serve();
    // Longer than anybody waits, at this rate: nothing but the list ends it. No zeros, which need not be sent.
    let source = house.world.file("source", &vec![7; 128 << 20]);
    let mut put = house.client("alice", &["put", "--streams", "8", "--bwlimit", "1M"]);
    put.arg(&source).arg(server.at("big")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = put.spawn().unwrap();
    logged(&server, 7, "alice joined its session");
    let other = house.begin_upload(&server, "client", "other");
    house.world.certs(&["--revoke", "alice"]);
    cut(running, 3, "it is revoked");
    logged(&server, 7, "alice: a lane, ");
    // A new connection does not come further, and who is not on the list goes on.
    assert!(house.run("alice", &["ls", &server.at("")], 3).contains("revoked"));
    said(&other.wait_with_output().unwrap(), 0);
    assert!(!house.world.root().join("big").exists());
}

#[test]
fn a_certificate_that_ends_is_cut_off() {
    let house = House::new(&[]);
    let certs = house.world.path("certs");
    let read = |name: &str| fs::read_to_string(certs.join(name)).unwrap();
    let authority = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca-key.pem")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::seconds(4);
    params.distinguished_name.push(DnType::CommonName, "brief");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let folder = house.world.path("brief");
    fs::create_dir(&folder).unwrap();
    fs::copy(certs.join("ca.pem"), folder.join("ca.pem")).unwrap();
    fs::copy(certs.join("client-key.pem"), folder.join("client-key.pem")).unwrap();
    fs::write(folder.join("client-key.pem"), key.serialize_pem()).unwrap();
    fs::write(folder.join("client.pem"), params.signed_by(&key, &authority).unwrap().pem()).unwrap();
    let server = house.world.serve();
    let mut running = house.begin_upload(&server, "brief", "big");
    let stdin = running.stdin.take();
    cut(running, 3, "expired");
    drop(stdin);
    house.run("brief", &["ls", &server.at("")], 3);
}

#[test]
fn a_new_server_key_is_shown_and_the_old_pin_says_so() {
    let house = House::new(&[]);
    let server = house.world.serve();
    let pin_of = |server: &Server| {
        server.said().iter().rev().find_map(|line| line.split("server key ").nth(1).map(str::to_owned))
    };
    let before = until("the pin is logged", || pin_of(&server));
    let ls = |pin: &str, code: i32| {
        let mut command = binary();
        let certs = house.world.path("client");
        command.args(["ls", "--pin", pin, &remote(server.port, "")]);
        command.arg("--cert").arg(certs.join("client.pem")).arg("--key").arg(certs.join("client-key.pem"));
        said(&command.output().unwrap(), code)
    };
    ls(&before, 0);
    fs::remove_file(house.world.path("certs/server-key.pem")).unwrap();
    logged(&server, 1, "the rules stay as they were");
    ls(&before, 0);
    fs::remove_file(house.world.path("certs/server.pem")).unwrap();
    house.world.certs(&[]);
    logged(&server, 2, "server key");
    logged(&server, 1, "rules are read again");
    assert!(ls(&before, 3).contains("does not have the pinned key"));
    ls(&pin_of(&server).unwrap(), 0);
}
