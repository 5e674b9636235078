//! The library as programs use it: those of `examples/`, run against real servers, and its answers.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sealift::client::event::Events;
use sealift::client::{ClientOptions, GetOptions, PutOptions};
use sealift::tls::{self, ClientTls};
use sealift::{Client, ErrorKind};

use crate::kit::{PROGRAM, Server, client_certificates, noise, server_certificates, text};

/// A program of `examples/`, which every build of all tests makes.
#[track_caller]
fn example(name: &str) -> Command {
    let path: PathBuf = Path::new(PROGRAM).parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not there: run `cargo build --examples`, or test without `--test`", path.display());
    Command::new(path)
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_examples_move_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = example("server")
        .arg(server_certificates())
        .arg(folder.path().join("root"))
        .arg("127.0.0.1:0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("listening on ").unwrap().trim().to_owned();
    let run = |name: &str, arguments: &[&str]| {
        let mut command = example(name);
        command.arg(client_certificates()).arg(&address).args(arguments).current_dir(&folder);
        command.output().unwrap()
    };
    fs::write(folder.path().join("big"), noise(1, 5_000_000)).unwrap();
    let uploaded = run("upload", &["big", "in/big"]);
    assert_eq!(done(&uploaded), "1 stored, 0 unchanged\n");
    assert!(text(&uploaded).contains("\r5000000 of 5000000 bytes\n"), "{}", text(&uploaded));
    assert_eq!(done(&run("list", &["in"])), "     5000000  big\n");
    assert_eq!(done(&run("download", &["in", "copy"])), "1 stored, 0 unchanged\n");
    assert!(fs::read(folder.path().join("copy/big")).unwrap() == noise(1, 5_000_000));
    assert!(!run("download", &["missing", "x"]).status.success());
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
}

async fn connect(server: &Server, events: Events) -> sealift::Result<Client> {
    let tls = ClientTls::load(&tls::ClientOptions::in_folder(&client_certificates()))?;
    Client::connect(ClientOptions::new(server.address.parse()?, tls), events).await
}

#[tokio::test]
async fn failures_come_as_answers_and_the_rest_is_done() {
    let server = Server::start(&[]);
    // Nobody watches, and nothing waits for that.
    let client = connect(&server, Events::unwatched()).await.unwrap();
    let tree = server.local("tree");
    fs::create_dir(&tree).unwrap();
    for index in 0..2000 {
        fs::write(tree.join(format!("{index}")), format!("{index}")).unwrap();
    }
    let up = client.upload(&tree, &"tree".parse().unwrap(), PutOptions::default()).await.unwrap();
    assert_eq!(up.whole().unwrap().stored, 2000);
    assert_eq!(client.list(&"tree".parse().unwrap()).await.unwrap().len(), 2000);
    // A name that the server does not take fails, the others do not.
    fs::write(tree.join("bad\nname"), "").unwrap();
    let up = client.upload(&tree, &"tree".parse().unwrap(), PutOptions::default()).await.unwrap();
    assert_eq!((up.summary.unchanged, up.summary.failed, up.failures.len()), (2000, 1, 1));
    assert_eq!(up.whole().unwrap_err().kind(), ErrorKind::Name);
    let down = client.download(&"tree/7".parse().unwrap(), server.local("seven"), GetOptions::default()).await.unwrap();
    assert_eq!(down.whole().unwrap().stored, 1);
    assert_eq!(fs::read_to_string(server.local("seven")).unwrap(), "7");
    let gone = client.download(&"no".parse().unwrap(), server.local("no"), GetOptions::default()).await.unwrap();
    assert_eq!(gone.whole().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(client.remove(&"tree".parse().unwrap(), true).await.unwrap(), 2001);
    let facts = client.server().await.unwrap();
    assert_eq!(facts.principal.as_deref(), Some("client"));
    client.close().await;
}

/// What a program hands to `tokio::spawn`: it compiles only as long as each of these may go to another thread.
#[expect(dead_code, reason = "to be compiled is all that it is for")]
async fn everything_can_be_spawned(client: &Client, path: &sealift::path::RemotePath) {
    fn checked<T: Send>(future: T) -> T {
        future
    }
    let _ = checked(client.get(Vec::new(), GetOptions::default())).await;
    let _ = checked(client.put(Vec::new(), PutOptions::default())).await;
    let _ = checked(client.upload("here", path, PutOptions::default())).await;
    let _ = checked(client.download(path, "here", GetOptions::default())).await;
    let _ = checked(client.list(path)).await;
    let _ = checked(client.stat(path)).await;
    let _ = checked(client.hash(path)).await;
    let _ = checked(client.remove(path, false)).await;
    let _ = checked(client.rename(path, path, sealift::protocol::IfExists::Overwrite)).await;
    checked(client.close()).await;
}
