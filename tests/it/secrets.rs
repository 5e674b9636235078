//! Secrets stay where they are: no log, no output of any command at any verbosity, no error and no command line of a
//! process holds one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{World, binary, content};

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
    serve.args(["serve", "-vv", "--root"]).arg(world.root()).arg("--certs").arg(world.path("certs"));
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
        for (command, path) in [("ls", ""), ("stat", "stored"), ("hash", "stored"), ("get", "stored"), ("rm", "none")] {
            let mut client = server.client(&[command, verbosity, &server.at(path)]);
            client.current_dir(world.path("log"));
            keep(&format!("{command} {verbosity}"), client);
        }
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
