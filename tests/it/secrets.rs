//! Secrets stay where they are: no log, no output of any command at any verbosity, no error and no command line of a
//! process holds one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process};
use sealift::protocol::{Bytes16, ClientHello, FRAME_HEADER_LEN, Header, Kind, List, Message, ServerHello};
use sealift::tls::{self, ClientOptions, ClientTls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rig::{Plan, Proxy, Server, World, binary, content, remote, until};

/// Every private key below a folder, by its file: the base64 lines of its PEM text.
fn keys(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<String>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            keys(&path, found);
        } else if let Ok(text) = fs::read_to_string(&path)
            && text.contains("PRIVATE KEY-----")
        {
            let lines = text.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned);
            found.insert(path, lines.collect());
        }
    }
}

/// What would betray a key: any 16 characters of its text, but for what all keys of its kind have in common.
fn canaries(keys: &BTreeMap<PathBuf, Vec<String>>) -> Vec<(PathBuf, String)> {
    let mut canaries = Vec::new();
    for (path, lines) in keys {
        let text = lines.concat();
        // The beginning of a PKCS #8 key names its kind; the secret of each kind here lies within what follows.
        for start in (40..text.len().saturating_sub(16)).step_by(4) {
            canaries.push((path.clone(), text[start..start + 16].to_owned()));
        }
        // And as bytes would be printed.
        let Ok(bytes) = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &text) else { continue };
        // The private value of P-256 and of Ed25519 in these encodings.
        let secret = if bytes.len() < 60 { &bytes[16..48] } else { &bytes[36..68] };
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        canaries.push((path.clone(), hex[..24].to_owned()));
        canaries.push((path.clone(), format!("{:?}", &secret[..8]).trim_matches(['[', ']']).to_owned()));
    }
    canaries
}

/// The public half is in the text of some kinds of keys, and in certificates: those characters are no secret.
fn without_public(canaries: Vec<(PathBuf, String)>, world: &World) -> Vec<(PathBuf, String)> {
    let mut public = String::new();
    for folder in ["certs", "client"] {
        for entry in fs::read_dir(world.path(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            if !text.contains("PRIVATE KEY-----") {
                public.push_str(&text.replace('\n', ""));
            }
        }
    }
    canaries.into_iter().filter(|(_, canary)| !public.contains(canary.as_str())).collect()
}

#[test]
fn no_key_is_in_any_output_log_error_or_command_line() {
    let world = World::new();
    fs::create_dir(world.path("log")).unwrap();
    let source = world.file("source", &content(1, 300_000));
    let mut outputs: Vec<(String, Vec<u8>)> = Vec::new();
    let mut keep = |what: &str, mut command: Command| {
        let output = command.output().unwrap();
        outputs.push((what.to_owned(), [output.stdout, output.stderr].concat()));
    };
    let mut serve = binary();
    serve.args(["serve", "-vvv", "--root"]).arg(world.root()).arg("--certs").arg(world.path("certs"));
    serve.arg("--audit").arg(world.path("log/audit.jsonl")).args(["--listen", "127.0.0.1:0"]);
    let server = world.started(serve);
    let mut secret = BTreeMap::new();
    keys(&world.path("certs"), &mut secret);
    keys(&world.path("client"), &mut secret);
    keys(&world.root().join(".sealift"), &mut secret);
    assert!(secret.len() >= 5, "{:?}", secret.keys());
    let canaries = without_public(canaries(&secret), &world);
    for path in secret.keys() {
        let count = canaries.iter().filter(|(of, _)| of == path).count();
        assert!(count > 3, "{count} canaries for {}", path.display());
    }

    // What everybody on the machine can read of a process.
    let pid = server.pid().as_raw_nonzero().to_string();
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let receipts = world.path("receipts");
    for verbosity in ["-q", "-v", "-vv", "--json"] {
        let mut put = server.client(&["put", verbosity]);
        put.arg("--receipts").arg(&receipts).arg(&source).arg(server.at("stored"));
        keep(&format!("put {verbosity}"), put);
        for (command, path) in [
            ("ls", ""),
            ("stat", "stored"),
            ("hash", "stored"),
            ("get", "stored"),
            ("mkdir", "made"),
            ("rm", "none"),
            ("doctor", ""),
        ] {
            let mut client = server.client(&[command, verbosity, &server.at(path)]);
            client.current_dir(world.path("log"));
            keep(&format!("{command} {verbosity}"), client);
        }
    }
    // The commands with two names, those of the server's machine, and those that keep something for the user.
    let at = |path: &str| server.at(path);
    for args in [
        &["mv", &at("stored"), &at("moved")][..],
        &["sync", "-v", world.path("receipts").to_str().unwrap(), &at("tree")],
        &["verify", "-v", world.path("receipts").to_str().unwrap(), &at("")],
    ] {
        keep(args[0], server.client(args));
    }
    let root = world.root();
    let (root, policy) = (root.to_str().unwrap(), world.path("policy.toml"));
    let policy = policy.to_str().unwrap();
    for args in [
        &["scrub", "-v", "--root", root][..],
        &["uploads", "ls", "--root", root],
        &["uploads", "rm", "--all", "--root", root],
        &["user", "add", "alice", "--policy", policy],
        &["user", "set", "alice", "--bytes", "1G", "--policy", policy],
        &["grant", "alice", "alice/in", "create", "--policy", policy],
        &["user", "revoke", "alice", "--policy", policy],
        &["user", "restore", "alice", "--policy", policy],
        &["user", "ls", "--policy", policy],
        &["user", "rm", "alice", "--policy", policy],
        &["remote", "add", "nas", "localhost:1", "--certs", world.path("client").to_str().unwrap()],
        &["remote", "ls", "--json"],
        &["remote", "show", "nas"],
        &["remote", "rm", "nas"],
        &["certs", "--dir", world.path("certs").to_str().unwrap(), "--revoke", "client"],
        &[
            "certs",
            "--dir",
            world.path("certs").to_str().unwrap(),
            "--export",
            "client",
            "--to",
            world.path("out").to_str().unwrap(),
        ],
    ] {
        let mut command = binary();
        command.args(args).env("XDG_CONFIG_HOME", world.path("config"));
        keep(&args.join(" "), command);
    }
    // Keys in the wrong place, damaged, of the wrong kind, readable by all; and a path that is one.
    let damaged = |name: &str, change: &dyn Fn(&str) -> String| {
        let text = fs::read_to_string(world.path("client/client-key.pem")).unwrap();
        let path = world.file(name, change(&text).as_bytes());
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let wrong = [
        damaged("cut.pem", &|text| text[..text.len() / 2].to_owned()),
        damaged("turned.pem", &|text| text.replace('M', "!")),
        damaged("kind.pem", &|text| text.replace("PRIVATE KEY", "CERTIFICATE")),
        damaged("twice.pem", &|text| format!("{text}{text}")),
        damaged("encrypted.pem", &|text| text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")),
        world.path("certs/ca-key.pem"),
        world.root().join(".sealift/receipt-key.pem"),
    ];
    for key in &wrong {
        for (flag, other) in [("--key", "--cert"), ("--cert", "--key")] {
            let mut client = binary();
            client.args(["ls", "-vv", &server.at("")]).arg("--ca").arg(world.path("client/ca.pem")).arg(flag).arg(key);
            client.arg(other).arg(world.path("client/client.pem"));
            keep("wrong key", client);
            let mut serve = binary();
            serve.args(["serve", "--check", "-vv", "--listen", "127.0.0.1:0", "--root"]).arg(world.path("other"));
            serve.arg("--client-ca").arg(world.path("certs/ca.pem")).arg(flag).arg(key);
            serve.arg(other).arg(world.path("certs/server.pem"));
            keep("serve with a wrong key", serve);
        }
        for command in [["receipt", "verify"], ["audit", "verify"]] {
            let mut verify = binary();
            verify.args(command).arg(key);
            keep("verify of a key", verify);
        }
        let mut ca = binary();
        ca.args(["ls", &server.at("")]).arg("--ca").arg(key);
        keep("a key as an authority", ca);
    }
    let mut certs = binary();
    certs.args(["certs", "--client", "another", "--dir"]).arg(world.path("certs"));
    keep("certs", certs);
    server.log_with("stored");
    let log = server.said().join("\n").into_bytes();
    assert_eq!(server.stop(), Some(0));
    outputs.push(("the server's log".to_owned(), log));
    outputs.push(("the command line".to_owned(), command_line));
    outputs.push(("the policy".to_owned(), fs::read(policy).unwrap()));
    for folder in [world.path("log"), receipts] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                outputs.push((path.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    assert!(outputs.len() > 50, "{}", outputs.len());
    for (what, bytes) in &outputs {
        let text = String::from_utf8_lossy(bytes);
        for (path, canary) in &canaries {
            assert!(!text.contains(canary.as_str()), "{what} holds a part of {}: {text}", path.display());
        }
    }
    // Were one there, it would be found.
    let line = secret.values().next().unwrap().concat();
    assert!(canaries.iter().any(|(_, canary)| line.contains(canary.as_str())));
}

/// The ways in which bytes get into a text.
fn spellings(secret: &[u8]) -> Vec<String> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let listed = format!("{secret:?}");
    let base64 = base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret);
    let for_addresses = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
    // Half of it is a secret lost as well.
    vec![
        hex[..16].to_owned(),
        hex[..16].to_uppercase(),
        listed[1..listed.len() / 2].to_owned(),
        base64[..10].to_owned(),
        for_addresses[..10].to_owned(),
        String::from_utf8_lossy(secret).into_owned(),
    ]
}

type Connected = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// Says hello to a server, with this token to join by; gives the token of a new session, or the refusal's text.
async fn greet(server: &Server, folder: &Path, join: Option<Bytes16>) -> (Connected, Result<Option<Bytes16>, String>) {
    let tls = ClientTls::load(&ClientOptions::in_folder(folder)).unwrap();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(tls.config());
    let mut stream = connector.connect(tls::server_name("localhost").unwrap(), stream).await.unwrap();
    let hello =
        ClientHello { versions: List(vec![1]), agent: "canary".into(), join, redeem: None, run: None, receipts: None };
    stream.write_all(&hello.to_frame(0)).await.unwrap();
    stream.flush().await.unwrap();
    let mut header = [0; FRAME_HEADER_LEN];
    stream.read_exact(&mut header).await.unwrap();
    let header = Header::decode(&header).unwrap();
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload).await.unwrap();
    let answer = match header.kind {
        Some(Kind::ServerHello) => Ok(ServerHello::from_payload(&payload).unwrap().token),
        _ => Err(String::from_utf8_lossy(&payload).into_owned()),
    };
    (stream, answer)
}

#[tokio::test]
async fn no_token_or_resume_key_is_in_any_output_log_file_or_command_line() {
    let world = World::new();
    fs::create_dir(world.path("log")).unwrap();
    // The canary: it is there before anybody could make another.
    let secret: [u8; 16] = *b"\xc5canary\x80secret\xfe\x01";
    let kept = world.file("state/sealift/resume-secret", &secret);
    fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let key_log = world.path("key-log");
    let mut serve = binary();
    serve.args(["serve", "-vvv", "--allow-anonymous", "--root"]).arg(world.root()).arg("--certs");
    serve.arg(world.path("certs")).arg("--audit").arg(world.path("log/audit.jsonl"));
    serve.args(["--listen", "127.0.0.1:0"]).env("SSLKEYLOGFILE", &key_log);
    let server = world.started(serve);
    let mut outputs: Vec<(String, Vec<u8>)> = Vec::new();

    // What a server is shown of the secret is one too.
    let endpoint = format!("localhost:{}", server.port);
    let derive = |endpoint: &str| {
        let mut hasher = blake3::Hasher::new_derive_key("sealift 2026 resume key of a client without a certificate");
        hasher.update(&secret).update(endpoint.as_bytes());
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        key
    };
    let mut canaries = vec![("the resume secret", secret), ("the resume key", derive(&endpoint))];

    // An upload that is killed, found, and gone on with.
    let source = world.file("source", &content(1, 9 << 20));
    let victim = Arc::new(AtomicI32::new(0));
    let dying = Arc::clone(&victim);
    let proxy = Proxy::new(server.port, move |number| {
        let dying = Arc::clone(&dying);
        let hook: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            let pid = until("the client is known", || Pid::from_raw(dying.load(Ordering::SeqCst)));
            let _ = kill_process(pid, Signal::KILL);
        });
        Plan { up: (number == 0).then_some((5 << 20, hook)), rate: Some(24 << 20), ..Plan::default() }
    });
    canaries.push(("the resume key by way of the proxy", derive(&format!("localhost:{}", proxy.port))));
    let put = |more: &str| {
        let mut put = binary();
        put.args(["put", more]).arg(&source).arg(remote(proxy.port, "x")).arg("--ca").arg(world.path("client/ca.pem"));
        put.env("XDG_STATE_HOME", world.path("state")).env("SSLKEYLOGFILE", &key_log);
        put.stdout(Stdio::piped()).stderr(Stdio::piped());
        put
    };
    let client = put("-v").spawn().unwrap();
    outputs.push(("the client's command line".to_owned(), fs::read(format!("/proc/{}/cmdline", client.id())).unwrap()));
    outputs.push(("the client's environment".to_owned(), fs::read(format!("/proc/{}/environ", client.id())).unwrap()));
    victim.store(Pid::from_child(&client).as_raw_nonzero().get(), Ordering::SeqCst);
    let output = client.wait_with_output().unwrap();
    assert!(!output.status.success());
    outputs.push(("put, killed".to_owned(), [output.stdout, output.stderr].concat()));
    let uploads = |args: &[&str]| {
        let output = binary().arg("uploads").args(args).arg("--root").arg(world.root()).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let listed =
        until("it rests", || Some(uploads(&["ls", "--json"])).filter(|text| text.contains("\"active\":false")));
    outputs.push(("uploads ls".to_owned(), listed.into_bytes()));
    let output = put("--json").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    outputs.push(("put, gone on with".to_owned(), [output.stdout, output.stderr].concat()));
    assert_eq!(fs::read(world.root().join("x")).unwrap(), content(1, 9 << 20));

    // Tokens: a right one, and one of which a bit is wrong.
    let (held, token) = greet(&server, &world.path("client"), None).await;
    let token = token.unwrap().expect("a session has a token");
    canaries.push(("a session's token", token.0));
    let (lane, joined) = greet(&server, &world.path("client"), Some(token)).await;
    assert_eq!(joined, Ok(None));
    for bit in 0..128 {
        let mut wrong = token;
        wrong.0[bit / 8] ^= 1 << (bit % 8);
        let (_, refused) = greet(&server, &world.path("client"), Some(wrong)).await;
        // Nothing that tells it from any other wrong one.
        let text = refused.unwrap_err();
        assert!(text.contains("no session that this connection could join has that token"), "{text}");
        outputs.push((format!("the refusal of bit {bit}"), text.into_bytes()));
    }
    drop((held, lane));
    server.log_with("canary");
    outputs.push(("the server's log".to_owned(), server.said().join("\n").into_bytes()));
    let pid = server.pid().as_raw_nonzero().to_string();
    outputs.push(("its command line".to_owned(), fs::read(format!("/proc/{pid}/cmdline")).unwrap()));
    assert_eq!(server.stop(), Some(0));
    for entry in fs::read_dir(world.path("log")).unwrap() {
        let path = entry.unwrap().path();
        outputs.push((path.display().to_string(), fs::read(&path).unwrap()));
    }
    assert!(outputs.iter().any(|(what, bytes)| what == "the server's log" && bytes.len() > 1000));
    for (what, bytes) in &outputs {
        let text = String::from_utf8_lossy(bytes);
        for (of, secret) in &canaries {
            for spelling in spellings(secret) {
                assert!(!text.contains(&spelling), "{what} holds a part of {of}: {text}");
            }
        }
    }
    // Nor can it be printed by way of what a client is made of.
    let tls = ClientTls::load(&ClientOptions::in_folder(&world.path("client"))).unwrap();
    let mut options = sealift::client::ClientOptions::new(format!("localhost:{}", 1).parse().unwrap(), tls);
    options.resume_secret = Some(Bytes16(secret));
    let shown = format!("{options:?}");
    assert!(spellings(&secret).iter().all(|spelling| !shown.contains(spelling)), "{shown}");
    // A variable that other programs obey has no keys of connections written down.
    assert!(!key_log.exists());
}
