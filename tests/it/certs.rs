//! `sealift certs` as a person runs it, looked at by openssl where there is one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sealift::tls::folder::{self, Request};
use sealift::tls::x509::{Facts, RevocationFacts};
use sealift::tls::{ClientOptions, ClientTls, Pin, ServerOptions, ServerTls, pem};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sealift"))
            .arg("certs")
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    /// Standard output, then standard error.
    #[track_caller]
    fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let text = text(&output);
        assert!(output.status.success(), "certs {args:?}: {text}");
        text
    }

    #[track_caller]
    fn fail(&self, args: &[&str], exit: i32, sentence: &str) {
        let output = self.run(args);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(exit), "certs {args:?}: {text}");
        assert!(text.contains(sentence), "certs {args:?}: expected {sentence:?} in {text:?}");
    }

    fn facts(&self, name: &str) -> Facts {
        Facts::parse(&pem::load_certificates(&self.path(name)).unwrap()[0]).unwrap()
    }

    fn pin(&self, name: &str) -> Pin {
        Pin::of_public_key(&self.facts(name).public_key)
    }

    fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.path("certs")).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
    }

    fn revoked(&self) -> Vec<Vec<u8>> {
        let lists = pem::load_revocation_lists(&self.path("certs/crl.pem")).unwrap();
        RevocationFacts::parse(&lists[0]).unwrap().revoked.into_iter().map(|(serial, _)| serial).collect()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap() + &String::from_utf8(output.stderr.clone()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

/// What openssl says; nothing, with a line about it, where there is none.
fn openssl(args: &[&str]) -> Option<String> {
    match Command::new("openssl").args(args).output() {
        Ok(output) => Some(text(&output)),
        Err(_) => {
            println!("skipped: there is no openssl here");
            None
        }
    }
}

#[test]
fn the_first_run_makes_everything_and_says_what_next() {
    let place = Place::new();
    let said = place.succeed(&["--host", "nas.example.org", "--host", "10.0.0.7", "--client", "alice"]);
    let names: Vec<String> = place.bytes().into_keys().collect();
    assert_eq!(
        names,
        [
            ".lock",
            "alice-key.pem",
            "alice.pem",
            "ca-key.pem",
            "ca.pem",
            "client-key.pem",
            "client.pem",
            "issued",
            "server-key.pem",
            "server.pem"
        ]
    );
    assert!(said.contains(&format!("server pin: {}", place.pin("certs/server.pem"))), "{said}");
    assert!(said.contains("sealift serve --certs certs --root DIR"), "{said}");
    let server = place.facts("certs/server.pem");
    assert_eq!(server.hosts, ["localhost", "127.0.0.1", "::1", "nas.example.org", "10.0.0.7"]);
    assert_eq!(server.common_name.as_deref(), Some("sealift server"));
    assert_eq!(place.facts("certs/alice.pem").common_name.as_deref(), Some("alice"));
    assert_eq!(place.facts("certs/client.pem").common_name.as_deref(), Some("client"));
    let days = |name: &str| {
        let facts = place.facts(name);
        (facts.not_after - time::OffsetDateTime::now_utc()).whole_hours()
    };
    assert_eq!((days("certs/ca.pem") + 1) / 24, 3650);
    assert_eq!((days("certs/server.pem") + 1) / 24, 365);
    let age = time::OffsetDateTime::now_utc() - server.not_before;
    assert!((3600..3720).contains(&age.whole_seconds()), "{age}");
    ServerTls::load(&ServerOptions::in_folder(&place.path("certs"))).unwrap();
    ClientTls::load(&ClientOptions::in_folder(&place.path("certs"))).unwrap();
}

#[test]
fn openssl_agrees() {
    let place = Place::new();
    place.succeed(&["--host", "nas.example.org"]);
    let file = |name: &str| place.path(&format!("certs/{name}")).display().to_string();
    let ca = file("ca.pem");
    let Some(verified) =
        openssl(&["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", &ca, &file("server.pem")])
    else {
        return;
    };
    assert!(verified.ends_with("server.pem: OK\n"), "{verified}");
    let verified = openssl(&["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", &ca, &file("client.pem")]);
    assert!(verified.unwrap().ends_with("client.pem: OK\n"));
    for (purpose, name) in [("sslclient", "server.pem"), ("sslserver", "client.pem")] {
        let verified = openssl(&["verify", "-purpose", purpose, "-CAfile", &ca, &file(name)]).unwrap();
        assert!(!verified.ends_with("OK\n"), "{verified}");
    }
    let shown = |name: &str| openssl(&["x509", "-noout", "-text", "-in", &file(name)]).unwrap();
    for (name, expected) in [
        (
            "server.pem",
            &["CA:FALSE", "Digital Signature\n", "TLS Web Server Authentication\n", "DNS:nas.example.org"][..],
        ),
        ("client.pem", &["CA:FALSE", "Digital Signature\n", "TLS Web Client Authentication\n", "CN = client"]),
        ("ca.pem", &["CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign\n"]),
    ] {
        let text = shown(name);
        for part in expected.iter().chain(&[
            "prime256v1",
            "ecdsa-with-SHA256",
            "Subject Key Identifier",
            "Authority Key Identifier",
        ]) {
            assert!(text.contains(part), "{name}: no {part:?} in {text}");
        }
    }

    place.succeed(&["--revoke", "client"]);
    let crl = file("crl.pem");
    let text = openssl(&["crl", "-noout", "-text", "-CAfile", &ca, "-in", &crl]).unwrap();
    assert!(text.contains("verify OK") && text.contains("Authority Key Identifier"), "{text}");
    let check = |name: &str| openssl(&["verify", "-crl_check", "-CAfile", &ca, "-CRLfile", &crl, &file(name)]).unwrap();
    assert!(check("client.pem").contains("certificate revoked"));
    assert!(check("server.pem").ends_with("OK\n"));
}

#[test]
fn modes_hold_under_any_umask() {
    for umask in ["000", "022", "077", "777"] {
        let place = Place::new();
        let script = format!("umask {umask}; exec \"$0\" certs --client alice");
        let status = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_sealift")])
            .current_dir(place.folder.path())
            .output()
            .unwrap();
        assert!(status.status.success(), "umask {umask}: {}", text(&status));
        assert_eq!(mode(&place.path("certs")), 0o700, "umask {umask}");
        for name in ["ca-key.pem", "server-key.pem", "client-key.pem", "alice-key.pem", "issued"] {
            assert_eq!(mode(&place.path(&format!("certs/{name}"))), 0o600, "umask {umask}, {name}");
        }
        assert_eq!(mode(&place.path("certs/ca.pem")), 0o644);
        assert_eq!(mode(&place.path("certs/.lock")), 0o600);
    }
}

#[test]
fn an_existing_folder_is_closed_only_when_all_in_it_is_ours() {
    let open = |place: &Place, name: &str| {
        fs::create_dir(place.path(name)).unwrap();
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    let place = Place::new();
    open(&place, "certs");
    fs::write(place.path("certs/.gitignore"), "*").unwrap();
    fs::write(place.path("certs/README.md"), "").unwrap();
    place.succeed(&[]);
    assert_eq!(mode(&place.path("certs")), 0o700);

    let place = Place::new();
    open(&place, "certs");
    fs::write(place.path("certs/thesis.odt"), "").unwrap();
    let said = place.succeed(&[]);
    assert_eq!(mode(&place.path("certs")), 0o755);
    assert!(said.contains("is open to others"), "{said}");
}

#[test]
fn running_it_again_changes_nothing() {
    let place = Place::new();
    place.succeed(&["--host", "nas", "--client", "alice"]);
    let before = place.bytes();
    for args in [&[][..], &["--host", "nas"], &["--client", "alice"], &["--host", "NAS.", "--host", "::1"]] {
        place.succeed(args);
        assert_eq!(place.bytes(), before, "certs {args:?}");
    }
}

#[test]
fn new_hosts_and_days_issue_again_from_the_same_key() {
    let place = Place::new();
    place.succeed(&["--host", "nas"]);
    let pin = place.pin("certs/server.pem");
    let client = fs::read(place.path("certs/client.pem")).unwrap();
    let said = place.succeed(&["--host", "10.1.2.3"]);
    assert!(said.contains("issued again"), "{said}");
    let server = place.facts("certs/server.pem");
    assert_eq!(server.hosts, ["localhost", "127.0.0.1", "::1", "nas", "10.1.2.3"]);
    assert_eq!(place.pin("certs/server.pem"), pin);
    assert_eq!(fs::read(place.path("certs/client.pem")).unwrap(), client);

    place.succeed(&["--days", "100"]);
    let again = place.facts("certs/server.pem");
    assert_ne!(again.serial, server.serial);
    assert_eq!(again.hosts, server.hosts);
    assert_eq!(place.pin("certs/server.pem"), pin);
    let days = (again.not_after - time::OffsetDateTime::now_utc()).whole_hours();
    assert_eq!((days + 1) / 24, 100);

    // Under 30 days left: renewed without being asked.
    place.succeed(&["--days", "29"]);
    let serial = place.facts("certs/client.pem").serial;
    place.succeed(&[]);
    assert_ne!(place.facts("certs/client.pem").serial, serial);
    assert_eq!(place.pin("certs/server.pem"), pin);
    // Nothing outlives the authority.
    place.succeed(&["--days", "3650"]);
    assert!(place.facts("certs/server.pem").not_after <= place.facts("certs/ca.pem").not_after);
}

/// What is near its end is renewed for as long as it lasted, named or not. What is short or has ended may be meant to
/// end, and what cannot be renewed keeps nothing else from being done.
#[test]
fn clients_that_nobody_named_are_renewed_as_they_were() {
    let place = Place::new();
    let begun = OffsetDateTime::now_utc();
    let make = |clients: &[&str], days, after| {
        let clients = clients.iter().map(|name| name.parse().unwrap()).collect();
        let request = Request { directory: place.path("certs"), clients, days, ..Request::default() };
        folder::make(&request, begun + Duration::days(after)).unwrap()
    };
    make(&["alice", "bob", "carol", "eve"], None, 0);
    make(&["gone"], Some(300), 0);
    make(&["long"], Some(200), 165);
    make(&["brief"], Some(20), 330);
    make(&["fresh"], None, 330);
    place.succeed(&["--revoke", "bob"]);
    fs::remove_file(place.path("certs/carol-key.pem")).unwrap();
    fs::copy(place.path("certs/alice-key.pem"), place.path("certs/eve-key.pem")).unwrap();
    let names = ["server", "client", "alice", "long", "zoe", "bob", "carol", "eve", "gone", "brief", "fresh"];
    let ends = || {
        names.map(|name| {
            place
                .path(&format!("certs/{name}.pem"))
                .exists()
                .then(|| (place.facts(&format!("certs/{name}.pem")).not_after - begun + Duration::HOUR).whole_days())
        })
    };
    let pins = || ["server", "client", "alice", "long"].map(|name| place.pin(&format!("certs/{name}.pem")));
    let (before, keys) = (ends(), pins());
    let notes = make(&["zoe"], Some(7), 345).notes.join("\n");
    let after: Vec<i64> = ends().into_iter().flatten().collect();
    assert_eq!(after[..5], [710, 710, 710, 545, 352], "{notes}");
    let kept: Vec<i64> = before[5..].iter().copied().flatten().collect();
    assert_eq!(after[5..], kept, "{notes}");
    assert_eq!(pins(), keys);
    for note in [
        "carol-key.pem is not there: carol.pem is left as it is",
        "eve.pem ends soon, and could not be renewed: ",
        "gone.pem ends on ",
        "brief.pem ends on ",
    ] {
        assert!(notes.contains(note), "{note}: {notes}");
    }
    assert!(!notes.contains("bob") && !notes.contains("fresh"), "{notes}");
}

#[test]
fn force_makes_new_keys_of_what_is_named() {
    let place = Place::new();
    place.succeed(&["--host", "nas", "--client", "alice"]);
    let pins = |place: &Place| ["ca", "server", "client", "alice"].map(|stem| place.pin(&format!("certs/{stem}.pem")));
    let before = pins(&place);
    place.succeed(&["--client", "alice", "--force"]);
    let after = pins(&place);
    assert_eq!(before[..3], after[..3]);
    assert_ne!(before[3], after[3]);
    place.succeed(&["--force"]);
    let last = pins(&place);
    assert_eq!((last[0], last[3]), (after[0], after[3]));
    assert!(last[1] != after[1] && last[2] != after[2]);
    assert_eq!(place.facts("certs/server.pem").hosts, ["localhost", "127.0.0.1", "::1", "nas"]);
}

#[test]
fn a_new_authority_keeps_the_keys_and_issues_everything_again() {
    let place = Place::new();
    place.succeed(&["--host", "nas", "--client", "alice", "--client", "bob"]);
    place.succeed(&["--revoke", "bob"]);
    let pins = ["server", "client", "alice"].map(|stem| place.pin(&format!("certs/{stem}.pem")));
    let ca = place.pin("certs/ca.pem");
    let said = place.succeed(&["--new-ca"]);
    assert_ne!(place.pin("certs/ca.pem"), ca);
    assert_eq!(["server", "client", "alice"].map(|stem| place.pin(&format!("certs/{stem}.pem"))), pins);
    assert!(!place.path("certs/crl.pem").exists());
    assert!(said.contains("bob.pem was revoked"), "{said}");
    place.succeed(&["--export", "alice", "--to", "a"]);
    place.fail(&["--export", "bob", "--to", "b"], 2, "is not by the authority");
    ServerTls::load(&ServerOptions::in_folder(&place.path("certs"))).unwrap();
    place.succeed(&[]);
}

#[test]
fn what_does_not_fit_is_never_overwritten_without_force() {
    let place = Place::new();
    place.succeed(&["--client", "alice"]);
    let file = |name: &str| place.path(&format!("certs/{name}"));
    let key = fs::read(file("alice-key.pem")).unwrap();
    fs::copy(file("client-key.pem"), file("alice-key.pem")).unwrap();
    place.fail(&["--client", "alice"], 2, "is not the key of alice.pem");
    fs::write(file("alice-key.pem"), &key).unwrap();

    // Somebody else's certificate, with its key.
    let stranger = rcgen::generate_simple_self_signed(vec!["nas".to_owned()]).unwrap();
    fs::write(file("server.pem"), stranger.cert.pem()).unwrap();
    fs::write(file("server-key.pem"), stranger.signing_key.serialize_pem()).unwrap();
    place.fail(&[], 2, "was not issued here");
    assert_eq!(fs::read_to_string(file("server.pem")).unwrap(), stranger.cert.pem());
    place.succeed(&["--force"]);
    assert_ne!(fs::read_to_string(file("server.pem")).unwrap(), stranger.cert.pem());

    // The authority's key on another machine: fine, until something is to be issued.
    let authority_key = fs::read(file("ca-key.pem")).unwrap();
    fs::remove_file(file("ca-key.pem")).unwrap();
    place.succeed(&[]);
    place.succeed(&["--export", "alice", "--to", "a"]);
    place.fail(&["--client", "bob"], 1, "ca-key.pem is needed to make bob.pem");
    assert!(!file("bob-key.pem").exists());
    place.fail(&["--revoke", "alice"], 1, "ca-key.pem is needed to make crl.pem");
    fs::write(file("ca-key.pem"), &key).unwrap();
    fs::set_permissions(file("ca-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    place.fail(&["--client", "bob"], 2, "the private key is not the authority's");
    fs::write(file("ca-key.pem"), authority_key).unwrap();
    fs::set_permissions(file("ca-key.pem"), fs::Permissions::from_mode(0o604)).unwrap();
    place.fail(&["--client", "bob"], 2, "others can use this private key");
}

#[test]
fn an_interrupted_first_run_is_continued() {
    let place = Place::new();
    place.succeed(&[]);
    let ca = place.pin("certs/ca.pem");
    let server = place.pin("certs/server.pem");
    for name in ["ca.pem", "server.pem", "client.pem", "client-key.pem", "issued"] {
        fs::remove_file(place.path(&format!("certs/{name}"))).unwrap();
    }
    fs::write(place.path("certs/.client-key.pem.new"), "half a k").unwrap();
    place.succeed(&[]);
    assert_eq!(place.pin("certs/ca.pem"), ca);
    assert_eq!(place.pin("certs/server.pem"), server);
    assert!(!place.path("certs/.client-key.pem.new").exists());
    ServerTls::load(&ServerOptions::in_folder(&place.path("certs"))).unwrap();
}

#[test]
fn export_writes_three_files_and_replaces_none() {
    let place = Place::new();
    place.succeed(&["--client", "alice"]);
    place.succeed(&["--export", "alice", "--to", "deep/laptop"]);
    let mut names: Vec<_> =
        fs::read_dir(place.path("deep/laptop")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ca.pem", "client-key.pem", "client.pem"]);
    assert_eq!(mode(&place.path("deep/laptop")), 0o700);
    assert_eq!(mode(&place.path("deep/laptop/client-key.pem")), 0o600);
    assert_eq!(place.facts("deep/laptop/client.pem").common_name.as_deref(), Some("alice"));
    let client = ClientTls::load(&ClientOptions::in_folder(&place.path("deep/laptop"))).unwrap();
    assert!(client.warnings().is_empty(), "{:?}", client.warnings());
    place.succeed(&["--export", "alice", "--to", "deep/laptop"]);
    place.fail(&["--export", "client", "--to", "deep/laptop"], 1, "`--force` replaces it");
    assert_eq!(place.facts("deep/laptop/client.pem").common_name.as_deref(), Some("alice"));
    place.succeed(&["--export", "client", "--to", "deep/laptop", "--force"]);
    assert_eq!(place.facts("deep/laptop/client.pem").common_name.as_deref(), Some("client"));
    place.fail(&["--export", "bob", "--to", "x"], 1, "`sealift certs --client bob` makes them");
    assert!(!place.path("x").exists());
    place.fail(&["--export", "alice", "--to", "certs"], 2, "is the folder itself");
    place.fail(&["--export", "server", "--to", "x"], 2, "is not a name for a client");
    place.fail(&["--export", "alice"], 2, "--to");
    place.fail(&["--to", "x"], 2, "--export");
}

#[test]
fn revoking_takes_all_certificates_of_a_name_and_adds_up() {
    let place = Place::new();
    place.succeed(&["--client", "alice", "--client", "bob"]);
    let mut alice = vec![place.facts("certs/alice.pem").serial];
    place.succeed(&["--client", "alice", "--force"]);
    alice.push(place.facts("certs/alice.pem").serial);
    place.succeed(&["--client", "alice", "--days", "50"]);
    alice.push(place.facts("certs/alice.pem").serial);
    let said = place.succeed(&["--revoke", "alice"]);
    assert!(said.contains("3 certificates of `alice` revoked, 3 of them now"), "{said}");
    assert_eq!(place.revoked(), alice);
    let list = &pem::load_revocation_lists(&place.path("certs/crl.pem")).unwrap()[0];
    assert_eq!(RevocationFacts::parse(list).unwrap().next_update, place.facts("certs/ca.pem").not_after);

    let bob = place.facts("certs/bob.pem").serial;
    place.succeed(&["--revoke", "bob"]);
    let all: Vec<Vec<u8>> = alice.iter().cloned().chain([bob]).collect();
    assert_eq!(place.revoked(), all);
    let said = place.succeed(&["--revoke", "alice"]);
    assert!(said.contains("0 of them now"), "{said}");
    assert_eq!(place.revoked(), all);

    place.fail(&["--client", "alice"], 3, "was revoked");
    place.fail(&["--export", "alice", "--to", "x"], 3, "was revoked");
    place.succeed(&[]);
    place.succeed(&["--client", "alice", "--force"]);
    let new = place.facts("certs/alice.pem").serial;
    assert!(!all.contains(&new));
    place.succeed(&["--export", "alice", "--to", "x"]);
    assert_eq!(place.revoked(), all);
    place.fail(&["--revoke", "carol"], 1, "no certificate was ever issued for `carol`");

    // Neither a lost record nor a lost list lets anyone in again once the other is there.
    fs::remove_file(place.path("certs/issued")).unwrap();
    place.succeed(&["--revoke", "alice"]);
    let all: Vec<Vec<u8>> = all.into_iter().chain([new]).collect();
    assert_eq!(place.revoked(), all);
    fs::write(place.path("certs/crl.pem"), "garbage").unwrap();
    place.fail(&["--revoke", "alice"], 2, "there is no revocation list");
    fs::write(place.path("certs/issued"), "garbage").unwrap();
    place.fail(&["--revoke", "alice"], 2, "line 1 is damaged");
}

#[test]
fn two_folders_have_nothing_in_common() {
    let (one, two) = (Place::new(), Place::new());
    one.succeed(&[]);
    two.succeed(&[]);
    for name in ["certs/ca.pem", "certs/server.pem", "certs/client.pem"] {
        let (one, two) = (one.facts(name), two.facts(name));
        assert_ne!(one.serial, two.serial);
        assert_eq!((one.serial.len(), two.serial.len()), (16, 16));
        assert_ne!(one.public_key, two.public_key);
    }
    assert_ne!(one.facts("certs/ca.pem").subject, two.facts("certs/ca.pem").subject);
}

#[test]
fn arguments_that_cannot_be_meant_are_usage_errors() {
    let place = Place::new();
    for args in [
        &["--client", "ca"][..],
        &["--client", "server"],
        &["--client", "crl"],
        &["--client", "x-key"],
        &["--client", "../x"],
        &["--client", "-x"],
        &["--client", ""],
        &["--host", "nas:7443"],
        &["--host", ""],
        &["--days", "0"],
        &["--days", "3651"],
        &["--revoke", "server"],
        &["--revoke", "alice", "--new-ca"],
        &["--export", "alice", "--to", "x", "--host", "nas"],
        &["stray"],
    ] {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(2), "certs {args:?}: {}", text(&output));
    }
    assert!(!place.path("certs").exists());
    place.fail(&["--revoke", "alice"], 1, "there is no folder certs");
}

#[test]
fn runs_at_the_same_time_wait_for_each_other() {
    let place = Place::new();
    let names: Vec<String> = (0..6).map(|index| format!("c{index}")).collect();
    let children: Vec<_> = names
        .iter()
        .map(|name| {
            Command::new(env!("CARGO_BIN_EXE_sealift"))
                .args(["certs", "--client", name])
                .current_dir(place.folder.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    for name in &names {
        place.succeed(&["--export", name, "--to", &format!("to-{name}")]);
        place.succeed(&["--revoke", name]);
    }
    assert_eq!(place.revoked().len(), names.len());
}
