//! Remotes of the configuration: added, listed, used, removed, and told apart from local files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::kit::{Server, client_certificates, program, text};
use crate::terminal::Terminal;

/// The program with a configuration of the test's own beside the server's root.
fn sealift(server: &Server, arguments: &[&str]) -> Command {
    let mut command = program();
    command.env("SEALIFT_CONFIG", config(server)).current_dir(server.folder.path().join("local")).args(arguments);
    command
}

fn config(server: &Server) -> PathBuf {
    server.folder.path().join("config/config.toml")
}

#[track_caller]
fn run(server: &Server, arguments: &[&str], exit: i32) -> (String, String) {
    let output = sealift(server, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {}", text(&output));
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (lossy(&output.stdout), lossy(&output.stderr))
}

#[test]
fn a_remote_is_added_used_and_removed() {
    let server = Server::start(&[]);
    let certs = client_certificates();
    let certs = certs.to_str().unwrap();
    run(&server, &["remote", "add", "nas", &server.address, "--certs", certs, "--timeout", "2m", "--streams", "2"], 0);
    assert_eq!(fs::metadata(config(&server)).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(run(&server, &["remote", "ls"], 0).0, format!("nas  {}\n", server.address));
    assert_eq!(run(&server, &["remote", "ls", "--names"], 0).0, "nas\n");
    let (shown, _) = run(&server, &["remote", "show", "nas"], 0);
    assert_eq!(shown, format!("address  {}\ncerts    {certs}\ntimeout  120s\nstreams  2\n", server.address));
    let json: serde_json::Value =
        serde_json::from_str(&run(&server, &["remote", "show", "nas", "--json"], 0).0).unwrap();
    assert_eq!((&json["name"], &json["timeout_seconds"]), (&"nas".into(), &120.into()));

    fs::write(server.local("a"), "one").unwrap();
    run(&server, &["put", "a", "nas:in/"], 0);
    run(&server, &["put", "a", "nas:/in/b"], 0);
    assert_eq!(run(&server, &["ls", "nas:in"], 0).0, "a\nb\n");
    assert_eq!(run(&server, &["ls", "nas:"], 0).0, "in/\n");
    fs::write(server.local("list"), "nas:in/a\n").unwrap();
    run(&server, &["get", "--files-from", "list", "got/"], 0);
    assert_eq!(fs::read_to_string(server.local("got/a")).unwrap(), "one");
    run(&server, &["mv", "nas:in/b", "nas:c"], 0);
    run(&server, &["rm", "nas:c"], 0);

    let (_, why) = run(&server, &["remote", "add", "nas", "other", "--certs", certs], 2);
    assert!(why.contains("`nas` is there already") && why.contains("--replace"), "{why}");
    run(&server, &["remote", "rm", "nas"], 0);
    assert_eq!(run(&server, &["remote", "ls"], 0).0, "");
    let (_, why) = run(&server, &["ls", "nas:"], 2);
    assert!(why.contains("no remote is configured as `nas`"), "{why}");
    run(&server, &["remote", "rm", "nas"], 2);
}

#[test]
fn names_are_never_local_files() {
    let server = Server::start(&[]);
    fs::write(server.local("nas:x"), "local").unwrap();
    let (_, why) = run(&server, &["put", "nas:x", &server.url("")], 2);
    assert!(why.contains("no remote is configured as `nas`") && why.contains("./nas:x"), "{why}");
    let certs = client_certificates();
    run(&server, &["remote", "add", "nas", &server.address, "--certs", certs.to_str().unwrap()], 0);
    let (_, why) = run(&server, &["put", "nas:x", "nas:"], 2);
    assert!(why.contains("put uploads local files"), "{why}");
    run(&server, &["put", "./nas:x", "nas:"], 0);
    assert_eq!(fs::read_to_string(server.root().join("nas:x")).unwrap(), "local");
    // One command, one server, one way of naming it.
    let (_, why) = run(&server, &["mv", "nas:a", &server.url("b")], 2);
    assert!(why.contains("named in two ways"), "{why}");
    run(&server, &["remote", "add", "two", &server.address, "--certs", certs.to_str().unwrap()], 0);
    let (_, why) = run(&server, &["mv", "nas:a", "two:b"], 2);
    assert!(why.contains("two remotes"), "{why}");
    // The arguments of a command that is run are its own.
    run(&server, &["put", "--stdin-from-command", "nas:echo", "--", "echo", "two:x"], 0);
    assert_eq!(fs::read_to_string(server.root().join("echo")).unwrap(), "two:x\n");
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_file() {
    let server = Server::start(&[]);
    let (good, none) = (client_certificates(), server.folder.path().join("none"));
    let good = good.to_str().unwrap();
    fs::create_dir(server.folder.path().join("config")).unwrap();
    let file = |certs: &str| {
        let text = format!("[remotes.nas]\naddress = \"{}\"\ncerts = \"{certs}\"\n", server.address);
        fs::write(config(&server), text).unwrap();
    };
    file(none.to_str().unwrap());
    run(&server, &["ls", "nas:"], 2);
    let output = sealift(&server, &["ls", "nas:"]).env("SEALIFT_CERTS", good).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let output = sealift(&server, &["ls", "nas:", "--certs", good]).env("SEALIFT_CERTS", &none).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    file(good);
    run(&server, &["ls", "nas:"], 0);
    let output = sealift(&server, &["ls", "nas:"]).env("SEALIFT_TIMEOUT", "soon").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("SEALIFT_TIMEOUT"), "{}", text(&output));
    // What the file has too much is an error with its line, whatever the command.
    fs::write(config(&server), "[remotes.nas]\naddress = \"nas\"\npin = 1\n").unwrap();
    let (_, why) = run(&server, &["ls", "nas:"], 2);
    assert!(why.contains("config.toml, line 3: unknown field `pin`"), "{why}");
}

#[test]
fn without_a_terminal_trust_must_be_said() {
    let server = Server::start(&["--allow-anonymous", "--anonymous-rights", "list"]);
    let (_, why) = run(&server, &["remote", "add", "nas", &server.address], 2);
    assert!(why.contains("--pin") && why.contains("--ca"), "{why}");
    let (_, why) = run(&server, &["remote", "add", "n", &server.address], 2);
    assert!(why.contains("cannot be the name of a remote"), "{why}");
    assert!(!config(&server).exists());
}

#[test]
fn on_a_terminal_the_key_is_shown_and_remembered() {
    let server = Server::start(&["--allow-anonymous", "--anonymous-rights", "list"]);
    let add = &["remote", "add", "nas", &server.address];
    let mut terminal = Terminal::start(sealift(&server, add), 24, 80);
    terminal.until("Trust this key from now on? [y/N]");
    assert!(terminal.screen().contains("certificate for localhost, 127.0.0.1, ::1"), "{}", terminal.screen());
    terminal.type_in("n\n");
    assert_eq!(terminal.end().0.code(), Some(3));
    assert!(!config(&server).exists());
    let mut terminal = Terminal::start(sealift(&server, add), 24, 80);
    terminal.until("Trust this key from now on? [y/N]");
    let pin = terminal.screen().split("sha256:").nth(1).unwrap()[..43].to_owned();
    terminal.type_in("y\n");
    let (status, screen, _) = terminal.end();
    assert!(status.success(), "{screen}");
    assert!(screen.contains("remembered as `nas`"), "{screen}");
    assert!(fs::read_to_string(config(&server)).unwrap().contains(&pin));
    run(&server, &["ls", "nas:"], 0);
}

#[test]
fn a_changed_key_stops_with_what_to_do() {
    let server = Server::start(&["--allow-anonymous", "--anonymous-rights", "list"]);
    let pin = format!("sha256:{}", "0a".repeat(32));
    run(&server, &["remote", "add", "nas", &server.address, "--pin", &pin], 0);
    let (_, why) = run(&server, &["ls", "nas:"], 3);
    for part in [
        "does not have the pinned key",
        "its key has the pin sha256:",
        "remembers for `nas`",
        "remote add --replace nas",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
}
