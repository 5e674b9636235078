//! `sealift doctor`: each step that can fail is made to; and `serve --check`, which looks and changes nothing.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;

use crate::kit::{PROGRAM, Server, client_certificates, program, server_certificates, text, tree};

/// What it says of each step, in order, and its summary.
#[track_caller]
fn doctor(mut command: Command, exit: i32) -> Vec<Value> {
    let output = command.arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(exit), "{}", text(&output));
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.last().unwrap()["type"], "summary");
    assert_eq!(lines.last().unwrap()["exit"], exit);
    lines
}

/// The state of the first line about this step.
#[track_caller]
fn state<'a>(lines: &'a [Value], check: &str) -> (&'a str, &'a str) {
    let line = lines.iter().find(|line| line["check"] == check).unwrap_or_else(|| panic!("no `{check}` in {lines:#?}"));
    (line["state"].as_str().unwrap(), line["message"].as_str().unwrap())
}

#[test]
fn a_healthy_server_is_all_ok_and_left_as_it_was() {
    let server = Server::start(&[]);
    let lines = doctor(server.command(&["doctor", "@"]), 0);
    for check in
        ["own dates", "name", "port", "dates", "key", "trust", "clock", "rights", "space", "round trip", "rate"]
    {
        assert_eq!(state(&lines, check).0, "ok", "{lines:#?}");
    }
    assert!(state(&lines, "rights").1.contains("list, read, create"), "{lines:#?}");
    let rate = lines.iter().find(|line| line["check"] == "rate").unwrap();
    assert!(rate["up"].as_f64().unwrap() > 1000.0 && rate["down"].as_f64().unwrap() > 1000.0, "{rate}");
    let summary = lines.last().unwrap();
    assert_eq!((&summary["fail"], &summary["warn"]), (&0.into(), &0.into()), "{lines:#?}");
    let left: Vec<_> = tree(&server.root()).into_keys().filter(|name| !name.starts_with(b".sealift")).collect();
    assert_eq!(left, [Vec::<u8>::new()], "the probe is left behind");
}

#[test]
fn what_the_rights_do_not_allow_is_skipped() {
    let server = Server::start(&["--read-only"]);
    let lines = doctor(server.command(&["doctor", "@"]), 0);
    assert_eq!(state(&lines, "space").0, "ok");
    assert_eq!(state(&lines, "rate").0, "skip");
    let server = Server::start(&["--allow-anonymous"]);
    let mut command = program();
    let pin = pin_of(&server);
    command.args(["doctor", &server.url(""), "--pin", &pin]);
    let lines = doctor(command, 0);
    assert_eq!(state(&lines, "rights").1, "known there as no name: create");
    for check in ["space", "round trip", "rate"] {
        assert_eq!(state(&lines, check).0, "skip");
    }
}

fn pin_of(server: &Server) -> String {
    let lines = doctor(server.command(&["doctor", "@", "--no-rate"]), 0);
    state(&lines, "key").1.to_owned()
}

#[test]
fn each_failure_is_found_where_it_is() {
    let server = Server::start(&[]);
    // Nobody listens.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let lines = doctor(server.command(&["doctor", &format!("sealift://127.0.0.1:{port}/")]), 3);
    assert_eq!(state(&lines, "name").0, "ok");
    assert!(matches!(state(&lines, "port"), ("fail", why) if why.contains("is the server running")), "{lines:#?}");
    assert_eq!(lines.last().unwrap()["retryable"], true);
    // Somebody listens who does not speak TLS.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            // Whoever has gone away misses nothing.
            let _ = std::io::Write::write_all(&mut stream, b"220 hello, this is another program\r\n");
        }
    });
    let lines = doctor(server.command(&["doctor", &format!("sealift://127.0.0.1:{port}/")]), 3);
    assert!(matches!(state(&lines, "tls"), ("fail", why) if why.contains("does not speak TLS")), "{lines:#?}");
    // The wrong key.
    let mut command = server.command(&["doctor", "@"]);
    command.args(["--pin", &format!("sha256:{}", "0a".repeat(32))]);
    let lines = doctor(command, 3);
    assert_eq!(state(&lines, "key").0, "ok");
    assert!(matches!(state(&lines, "trust"), ("fail", why) if why.contains("pinned key")), "{lines:#?}");
    // No certificate.
    let mut command = program();
    command.args(["doctor", &server.url(""), "--ca"]).arg(client_certificates().join("ca.pem"));
    let lines = doctor(command, 3);
    assert!(
        matches!(state(&lines, "trust"), ("fail", why) if why.contains("wants a client certificate")),
        "{lines:#?}"
    );
    // What is wrong with the command line is no finding.
    let output = server.command(&["doctor", "nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("no remote is configured as `nowhere`"), "{}", text(&output));
}

#[test]
fn people_get_a_line_each() {
    let server = Server::start(&[]);
    let (out, _) = server.run(&["doctor", "@", "--no-rate"], 0);
    let words: Vec<&str> = out.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(words.len(), 11, "{out}");
    assert!(out.lines().all(|line| line.starts_with("ok    ") || line.starts_with("skip  ")), "{out}");
    assert!(out.ends_with("skip  rate          not asked for\n"), "{out}");
    assert_eq!(server.run(&["doctor", "@", "--no-rate", "--quiet"], 0).0, "");
}

/// `serve --check` with this root, on this address.
fn check(root: &std::path::Path, address: &str) -> std::process::Output {
    check_with(root, address, &[])
}

fn check_with(root: &std::path::Path, address: &str, args: &[&str]) -> std::process::Output {
    let mut command = Command::new(PROGRAM);
    command
        .args(["serve", "--check", "--listen", address, "--root"])
        .arg(root)
        .arg("--certs")
        .arg(server_certificates())
        .args(args);
    command.output().unwrap()
}

#[test]
fn serve_check_changes_nothing_and_runs_beside_a_server() {
    let server = Server::start(&[]);
    let before = tree(&server.root());
    let output = check(&server.root(), &server.address);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("is served now by process "), "{}", text(&output));
    assert_eq!(tree(&server.root()), before);
    // Its address on another root is a mistake.
    let other = server.folder.path().join("other");
    let output = check(&other, &server.address);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("listen on"), "{}", text(&output));
    let output = check(&other, "127.0.0.1:0");
    assert!(output.status.success(), "{}", text(&output));
    assert!(!other.exists(), "the root was made");
    let output = check(&server.folder.path().join("missing/root"), "127.0.0.1:0");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    for count in ["--per-address", "--per-principal", "--disk-threads"] {
        let output = check_with(&other, "127.0.0.1:0", &[count, "0"]);
        assert_eq!(output.status.code(), Some(2), "{count}: {}", text(&output));
        assert!(text(&output).contains("must be at least 1"), "{count}: {}", text(&output));
    }
    fs::write(&other, "").unwrap();
    let output = check(&other, "127.0.0.1:0");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    // The server did not notice.
    server.run(&["ls", "@"], 0);
}
