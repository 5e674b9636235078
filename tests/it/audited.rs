//! The audit log of a server: all that is asked and done is in it, and nothing of it can be changed unseen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Signal, kill_process};
use sealift::tls::{self, ClientOptions, ClientTls};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::rig::{Mount, Server, World, binary, content, until};

fn serve(world: &World, flags: &[&str]) -> Server {
    fs::create_dir_all(world.path("log")).unwrap();
    let mut command = binary();
    command.arg("serve").args(flags).arg("--root").arg(world.root()).arg("--certs").arg(world.path("certs"));
    command.arg("--audit").arg(world.path("log/audit.jsonl")).args(["--listen", "127.0.0.1:0"]);
    world.started(command)
}

/// The files of the log, the current one last.
fn files(world: &World) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(world.path("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("audit.jsonl"));
    files.sort();
    files.rotate_left(1);
    files
}

fn lines(file: &Path) -> Vec<Value> {
    fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn verify(files: &[PathBuf], more: &[&str]) -> Output {
    binary().args(["audit", "verify"]).args(more).args(files).output().unwrap()
}

#[track_caller]
fn assert_whole(files: &[PathBuf], more: &[&str]) -> String {
    let output = verify(files, more);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("head ")).unwrap().to_owned()
}

#[test]
fn all_that_is_asked_and_done_is_in_the_log_before_the_answer() {
    let world = World::new();
    let small = world.file("source/small", b"content");
    world.file("source/large", &content(1, 700_000));
    let server = serve(&world, &[]);
    let run = |command: &str, args: &[&str]| server.client(&[command]).args(args).output().unwrap();
    server.put(&world.path("source"), "tree");
    server.get("tree/large", &world.path("down"));
    for (command, args) in [
        ("stat", vec![server.at("tree")]),
        ("ls", vec![server.at("tree")]),
        ("hash", vec![server.at("tree/small")]),
        ("mkdir", vec![server.at("made")]),
        ("mv", vec![server.at("tree/small"), server.at("made/moved")]),
        ("rm", vec![server.at("made/moved")]),
    ] {
        let output = run(command, &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
    }
    // Before the server has stopped: each line came with its answer.
    let log = lines(&files(&world)[0]);
    let find = |event: &str, result: &str| {
        let found = log.iter().find(|line| line["event"] == event && line["result"] == result);
        found.unwrap_or_else(|| panic!("no {event} {result} in {log:#?}")).clone()
    };
    let connect = find("connect", "done");
    assert_eq!(connect["principal"], "client");
    assert!(connect["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{connect}");
    assert_eq!(connect["principal_key"].as_str().unwrap().len(), 64);
    for event in ["put", "commit", "mkdir", "remove", "rename"] {
        let done = find(event, "done");
        let is_asked =
            |line: &&Value| line["event"] == event && line["result"] == "asked" && line["path"] == done["path"];
        let asked = log.iter().find(is_asked).unwrap_or_else(|| panic!("no {event} of {done} was asked for"));
        assert!(asked["seq"].as_u64() < done["seq"].as_u64(), "{event}");
    }
    let put = find("put", "done");
    assert_eq!((&put["path"], &put["size"]), (&"tree/small".into(), &7.into()));
    assert_eq!(put["root"], blake3::hash(b"content").to_hex().as_str());
    assert_eq!(find("put", "accepted")["path"], "tree/large");
    assert_eq!(find("commit", "done")["outcome"], "stored");
    assert_eq!(find("rename", "done")["to"], "made/moved");
    for event in ["get", "stat", "list", "hash"] {
        find(event, "done");
    }
    assert_eq!(server.stop(), Some(0));

    // What is refused, with its reason.
    let server = serve(&world, &["--read-only"]);
    let refused = server.run("put", [small.as_os_str(), server.at("other").as_ref()]);
    assert_eq!(refused.code, 4, "{refused:?}");
    let log = lines(&files(&world)[0]);
    let line = log.iter().find(|line| line["result"] == "refused").unwrap();
    assert_eq!((&line["event"], &line["path"]), (&"put".into(), &"other".into()));
    assert!(line["why"].as_str().unwrap().contains("may not create"), "{line}");
    assert_eq!(server.stop(), Some(0));
    assert_whole(&files(&world), &[]);
}

/// A client begins connections to a far server before it knows whether it needs them.
#[tokio::test]
async fn who_leaves_after_the_handshake_without_a_word_is_not_in_the_log() {
    let world = World::new();
    let server = serve(&world, &[]);
    let tls = ClientTls::load(&ClientOptions::in_folder(&world.path("certs"))).unwrap();
    for said in [&b""[..], &[0xff; 100]] {
        let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        let connector = TlsConnector::from(tls.config());
        let mut stream = connector.connect(tls::server_name("localhost").unwrap(), stream).await.unwrap();
        stream.write_all(said).await.unwrap();
        stream.shutdown().await.unwrap();
        // Until the server has done with it.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let connects = || {
        let log = lines(&files(&world)[0]);
        let connects: Vec<Value> = log.into_iter().filter(|line| line["event"] == "connect").collect();
        (!connects.is_empty()).then_some(connects)
    };
    let connects = until("a connection is in the log", connects);
    assert_eq!(connects.len(), 1, "{connects:#?}");
    assert_eq!(connects[0]["result"], "failed", "{connects:#?}");
}

#[test]
fn a_line_that_is_changed_or_gone_is_named() {
    let world = World::new();
    let source = world.file("source", b"content");
    let server = serve(&world, &[]);
    let key = server.log_with("receipt key ");
    let key = key.iter().find_map(|line| line.split("receipt key ").nth(1)).unwrap().trim().to_owned();
    for index in 0..5 {
        server.put(&source, &format!("stored {index}"));
    }
    assert_eq!(server.stop(), Some(0));
    let file = files(&world).remove(0);
    let text = fs::read_to_string(&file).unwrap();
    let all: Vec<&str> = text.lines().collect();
    let head = assert_whole(std::slice::from_ref(&file), &["--key", &key]);
    assert_whole(std::slice::from_ref(&file), &["--head", &head]);
    let other = format!("ed25519:{}", "A".repeat(43));
    assert_eq!(verify(std::slice::from_ref(&file), &["--key", &other]).status.code(), Some(5));
    let check = |lines: &[String], more: &[&str], named: &str| {
        fs::write(&file, lines.join("\n") + "\n").unwrap();
        let output = verify(std::slice::from_ref(&file), more);
        assert_eq!(output.status.code(), Some(5), "{named}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{named}: {output:?}");
    };
    let owned = || all.iter().map(|&line| line.to_owned()).collect::<Vec<String>>();
    let mut changed = owned();
    changed[4] = changed[4].replace("stored", "storeD").replace("client", "clienT");
    check(&changed, &[], "audit.jsonl:5: ");
    let mut missing = owned();
    missing.remove(4);
    check(&missing, &[], "audit.jsonl:5: ");
    let mut moved = owned();
    moved.swap(4, 5);
    check(&moved, &[], "audit.jsonl:5: ");
    // Cut off behind a signed head, nothing is wrong but that a known head is gone.
    check(&owned()[..4], &["--head", &head], "cut off");
}

#[test]
fn after_a_crash_half_a_line_stays_and_the_chain_goes_on() {
    let world = World::new();
    let source = world.file("source", b"content");
    let server = serve(&world, &[]);
    server.put(&source, "first");
    server.kill();
    let file = files(&world).remove(0);
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{before}{{\"seq\":99,\"ti")).unwrap();
    let server = serve(&world, &[]);
    server.put(&source, "second");
    assert_eq!(server.stop(), Some(0));
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.starts_with(&before), "what was there stays");
    assert!(after.contains("\"torn\":\""), "{after}");
    assert_whole(&[file], &[]);
}

#[test]
fn sighup_begins_a_new_file_and_the_chain_goes_on_in_it() {
    let world = World::new();
    let source = world.file("source", b"content");
    let server = serve(&world, &[]);
    server.put(&source, "first");
    kill_process(server.pid(), Signal::HUP).unwrap();
    until("there is a second file", || (files(&world).len() == 2).then_some(()));
    until("it is there", || world.path("log/audit.jsonl").exists().then_some(()));
    server.put(&source, "second");
    assert_eq!(server.stop(), Some(0));
    let files = files(&world);
    assert_eq!(files.len(), 2);
    assert_eq!(lines(&files[0]).last().unwrap()["event"], "head");
    assert_whole(&files, &[]);
    // In any order; and the newer one alone says where it begins.
    assert_whole(&[files[1].clone(), files[0].clone()], &[]);
    let newer = String::from_utf8(verify(&files[1..], &[]).stdout).unwrap();
    assert!(newer.contains(", from line "), "{newer}");
    let old = fs::read_to_string(&files[0]).unwrap();
    fs::write(&files[0], &old[..old.trim_end().rfind('\n').unwrap() + 1]).unwrap();
    assert_eq!(verify(&files, &[]).status.code(), Some(5), "the end of the older file is missing");
}

#[test]
fn while_the_log_cannot_be_written_nothing_is_changed() {
    let world = World::new();
    let log = world.path("log");
    fs::create_dir(&log).unwrap();
    let Some(_mount) = Mount::tmpfs(&log, "size=64k") else { return };
    let source = world.file("source", b"content");
    let server = serve(&world, &[]);
    server.put(&source, "before");
    server.put(&world.file("tree/a", b"content"), "tree/a");
    let filler = log.join("filler");
    // Ends with "no space".
    let _ = fs::write(&filler, vec![0; 1 << 20]);
    // What is left of the last page still takes some lines.
    let refused = (0..50)
        .map(|index| (index, server.run("put", [source.as_os_str(), server.at(&format!("in/{index}")).as_ref()])));
    let (index, refused) = refused.into_iter().find(|(_, ran)| ran.code != 0).expect("the log is full");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.failures().contains("the audit log"), "{}", refused.failures());
    assert!(!world.root().join(format!("in/{index}")).exists());
    let rm = server.client(&["rm", &server.at("before")]).output().unwrap();
    assert_eq!(rm.status.code(), Some(1), "{rm:?}");
    assert!(world.root().join("before").exists());
    // Nor is anything made before a file's content has come: a further name, or directories.
    world.file("tree/a", b"content");
    fs::hard_link(world.path("tree/a"), world.path("tree/b")).unwrap();
    let large = world.file("large", &content(1, 2 << 20));
    for (command, source, target) in [("sync", &world.path("tree"), "tree"), ("put", &large, "new/deep/large")] {
        let ran = server.run(command, [source.as_os_str(), server.at(target).as_ref()]);
        assert_eq!(ran.code, 1, "{ran:?}");
    }
    assert_eq!((world.root().join("tree/b").exists(), world.root().join("new").exists()), (false, false));
    // Reading goes on.
    server.get("before", &world.path("down"));
    server.log_with("cannot be written");
    fs::remove_file(&filler).unwrap();
    server.put(&source, "after");
    assert_eq!(server.stop(), Some(0));
    // What was read meanwhile is told as missing, and nothing else is wrong.
    let output = verify(&files(&world), &[]);
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(wrong.lines().count() == 1 && wrong.contains("could not write"), "{wrong}");
}

#[test]
fn an_audit_log_in_the_root_or_of_another_server_stops_the_start() {
    let world = World::new();
    let server = serve(&world, &[]);
    let try_one = |root: &Path, log: &Path| {
        let mut command: Command = binary();
        command.args(["serve", "--listen", "127.0.0.1:0", "--root"]).arg(root).arg("--audit").arg(log);
        command.arg("--certs").arg(world.path("certs")).output().unwrap()
    };
    let other = world.path("other");
    for (root, log, why) in [
        (&other, world.path("log/audit.jsonl"), "another process"),
        (&other, other.join("audit.jsonl"), "beneath the root"),
        (&other, world.path("nowhere/audit.jsonl"), "nowhere"),
    ] {
        let output = try_one(root, &log);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(why), "{why}: {output:?}");
    }
    drop(server);
    let text = world.file("log/text", b"a line of something else\n");
    let output = try_one(&other, &text);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(fs::read(&text).unwrap(), b"a line of something else\n");
}
