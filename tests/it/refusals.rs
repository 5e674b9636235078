//! Who is refused is told why, over real connections and every time (cases T01, T08, T11, T13): a reset never eats
//! the reason.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use time::{Duration, OffsetDateTime};

use crate::rig::{World, binary, has, long, remote, tree};

/// A certificate by the world's authority, with its key.
fn issue(world: &World, stem: &str, change: impl FnOnce(&mut CertificateParams)) {
    let read = |name: &str| fs::read_to_string(world.path("certs").join(name)).unwrap();
    let authority = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca-key.pem")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - Duration::days(30);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(30);
    params.distinguished_name.push(DnType::CommonName, stem);
    change(&mut params);
    let certificate = params.signed_by(&key, &authority).unwrap();
    fs::write(world.path(&format!("{stem}.pem")), certificate.pem()).unwrap();
    let path = world.path(&format!("{stem}-key.pem"));
    fs::write(&path, key.serialize_pem()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn for_clients(params: &mut CertificateParams) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
}

/// Runs a command many times, and expects the same end each time.
#[track_caller]
fn always(what: &str, exit: i32, sentence: &str, command: impl Fn() -> Command + Sync) {
    let count = if std::env::var_os("LONG_TESTS").is_some() { 1000 } else { 20 };
    let next = AtomicUsize::new(0);
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let worker = || {
            let mut outputs = Vec::new();
            while next.fetch_add(1, Ordering::SeqCst) < count {
                outputs.push(command().output().unwrap());
            }
            outputs
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(outputs.len(), count);
    let mut wrong = Vec::new();
    for output in outputs {
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(exit) || !text.contains(sentence) {
            wrong.push(format!("{:?}: {text}", output.status.code()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{what}: {} of {count} were not told `{sentence}` and {exit}, as: {}",
        wrong.len(),
        wrong[0]
    );
    println!("{what}: {count} times");
}

#[test]
fn whoever_is_not_let_in_is_told_why_every_time() {
    long("each refusal 1000 times");
    let world = World::new();
    world.certs(&["--client", "mallory", "--client", "alice"]);
    world.certs(&["--revoke", "mallory"]);
    issue(&world, "expired", |params| {
        for_clients(params);
        params.not_after = OffsetDateTime::now_utc() - Duration::DAY;
    });
    issue(&world, "tomorrow", |params| {
        for_clients(params);
        params.not_before = OffsetDateTime::now_utc() + Duration::DAY;
    });
    issue(&world, "for-servers", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let foreign = World::new();
    foreign.certs(&["--new-ca", "--force"]);
    let server = world.serve();
    let source = world.file("source", &[7; 300_000]);
    let ca = world.path("certs/ca.pem");
    // With a certificate by this path, without one for none.
    let put = |pair: Option<(&std::path::Path, &std::path::Path)>| {
        let mut command = binary();
        command.arg("put").arg(&source).arg(server.at("x")).arg("--ca").arg(&ca);
        if let Some((certificate, key)) = pair {
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        command
    };
    always("no certificate", 3, "wants a client certificate and none was given", || put(None));
    let of =
        |folder: &World, stem: &str| (folder.path(&format!("{stem}.pem")), folder.path(&format!("{stem}-key.pem")));
    for (what, (certificate, key), sentence) in [
        (
            "a foreign certificate",
            of(&foreign, "certs/client"),
            "it was not issued by the authority that the server trusts",
        ),
        ("an expired certificate", of(&world, "expired"), "it has expired, or is not valid yet"),
        ("a certificate of tomorrow", of(&world, "tomorrow"), "it has expired, or is not valid yet"),
        ("a revoked certificate", of(&world, "certs/mallory"), "it was revoked"),
        ("a server's certificate", of(&world, "for-servers"), "it is not meant for clients"),
    ] {
        always(what, 3, sentence, || put(Some((&certificate, &key))));
    }
    let pin = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    always("a wrong pin", 3, "does not have the pinned key", || {
        let mut command = server.client(&["put", "--pin", pin]);
        command.arg(&source).arg(server.at("x"));
        command
    });
    always("another authority", 3, "was not issued by the authority given with", || {
        let mut command = binary();
        command.arg("put").arg(&source).arg(server.at("x")).arg("--certs").arg(foreign.path("certs"));
        command
    });
    // The right one is let in all the while.
    always("the right certificate", 0, "", || {
        let mut command = server.client(&["put"]);
        command.arg(&source).arg(server.at("x"));
        command
    });
    assert_eq!(tree(&world.root()).len(), 1, "only the right certificate has stored something");
}

#[test]
fn a_server_of_another_name_is_refused_every_time() {
    let world = World::new();
    issue(&world, "elsewhere", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::DnsName("elsewhere.example".try_into().unwrap())];
    });
    issue(&world, "old", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
        params.not_after = OffsetDateTime::now_utc() - Duration::DAY;
    });
    let source = world.file("source", &[7; 1000]);
    for (stem, sentence) in
        [("elsewhere", "the certificate of localhost is for elsewhere.example"), ("old", "it must be renewed there")]
    {
        let server = world.serve_with(stem);
        always(stem, 3, sentence, || {
            let mut command = server.client(&["put"]);
            command.arg(&source).arg(server.at("x"));
            command
        });
    }
    assert!(tree(&world.root()).is_empty());
}

#[test]
fn old_versions_of_tls_and_other_protocols_are_refused_every_time() {
    if !has("openssl", &["version"], "old versions of TLS are not tried") {
        return;
    }
    let world = World::new();
    let server = world.serve();
    let speak = |args: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &format!("127.0.0.1:{}", server.port)]).args(args);
        command.arg("-cert").arg(world.path("client/client.pem")).arg("-key").arg(world.path("client/client-key.pem"));
        command.stdin(Stdio::null());
        command
    };
    always("TLS 1.2", 1, "protocol version", || speak(&["-tls1_2"]));
    always("an unknown protocol", 1, "no application protocol", || speak(&["-tls1_3", "-alpn", "gopher"]));
    always("HTTP", 1, "no application protocol", || speak(&["-tls1_3", "-alpn", "h2,http/1.1"]));

    // The other way round: what answers is no server of ours.
    let source = world.file("source", &[7; 1000]);
    for (what, args, sentence) in [
        ("a server of TLS 1.2", &["-tls1_2", "-alpn", "sealift/1"][..], "does not speak TLS 1.3"),
        ("a server of HTTP", &["-tls1_3", "-alpn", "http/1.1"][..], "is not a sealift server"),
        ("a server without a protocol", &["-tls1_3"][..], "it is not sealift"),
    ] {
        let mut other = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-cert"])
            .arg(world.path("certs/server.pem"))
            .arg("-key")
            .arg(world.path("certs/server-key.pem"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
        let port =
            lines.find_map(|line| line.unwrap().strip_prefix("ACCEPT ")?.rsplit(':').next()?.parse::<u16>().ok());
        let port = port.expect("openssl says where it listens");
        // It shall not stop for a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        // One after the other: it serves one client at a time.
        for _ in 0..if long("each 200 times") { 200 } else { 10 } {
            let output = server.client(&["put"]).arg(&source).arg(remote(port, "x")).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(3) && text.contains(sentence), "{what}: {output:?}");
        }
        other.kill().unwrap();
        other.wait().unwrap();
    }
    assert!(tree(&world.root()).is_empty());
}
