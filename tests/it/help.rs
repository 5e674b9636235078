//! What `--help` prints is compared with what was agreed: `UPDATE_SNAPSHOTS=1` writes it anew.

use std::path::Path;
use std::process::{Command, Output};

const COMMANDS: [&str; 35] = [
    "certs",
    "serve",
    "put",
    "get",
    "sync",
    "invite",
    "invite ls",
    "invite revoke",
    "ls",
    "stat",
    "hash",
    "rm",
    "mv",
    "mkdir",
    "doctor",
    "remote",
    "remote add",
    "remote ls",
    "remote show",
    "remote rm",
    "receipt verify",
    "audit verify",
    "user",
    "user add",
    "user set",
    "user ls",
    "user rm",
    "user revoke",
    "user restore",
    "grant",
    "verify",
    "scrub",
    "uploads",
    "uploads ls",
    "uploads rm",
];

/// The arguments that ask for the help of a command.
fn help<'a>(command: &'a str, flag: &'a str) -> Vec<&'a str> {
    command.split(' ').chain([flag]).collect()
}

fn sealift(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sealift"))
        .args(arguments)
        .env("COLUMNS", "100")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env_remove("SEALIFT_CONFIG")
        .env_remove("CLICOLOR_FORCE")
        .output()
        .expect("the program starts")
}

#[track_caller]
fn check(name: &str, arguments: &[&str]) {
    let output = sealift(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    assert!(output.stderr.is_empty(), "{arguments:?}: help goes to standard output");
    let text = String::from_utf8(output.stdout).expect("help is text");
    let lines = text.lines().count();
    // A server has more to be told than a client, and is started by those who read manuals.
    let bound = if name == "serve" { 50 } else { 40 };
    assert!(
        lines <= bound,
        "{arguments:?}: {lines} lines do not fit a screen of 100 by {bound}
{text}"
    );
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{arguments:?}: lines are too wide\n{text}");
    assert!(text.contains("Example"), "{arguments:?}: no example\n{text}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/snapshots/help-{name}.txt"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &text).expect("the snapshot is written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{arguments:?}: not what {} says (UPDATE_SNAPSHOTS=1 writes it)", path.display());
}

#[test]
fn help_is_what_was_agreed() {
    check("sealift", &["--help"]);
    for command in COMMANDS {
        check(&command.replace(' ', "-"), &help(command, "--help"));
    }
}

#[test]
fn short_and_long_help_are_the_same() {
    for command in COMMANDS {
        assert_eq!(sealift(&help(command, "-h")).stdout, sealift(&help(command, "--help")).stdout, "{command}");
    }
}

#[test]
fn usage_errors_end_with_2_and_versions_with_0() {
    for (arguments, code) in [
        (&["--version"][..], 0),
        (&[], 2),
        (&["nonsense"], 2),
        (&["put"], 2),
        (&["put", "a", "b"], 2),
        (&["put", "a", "nas:b"], 2),
        (&["put", "a", "b", "sealift://nas/x"], 2),
        (&["get", "x"], 2),
        (&["rm", "sealift://nas/"], 2),
        (&["serve"], 2),
        (&["verify", "a", "b"], 2),
        (&["verify", "-", "sealift://nas/x"], 2),
        (&["scrub"], 2),
        (&["scrub", "--root", "/nonexistent/root"], 2),
        (&["scrub", "--root", "/tmp", "--path", "../x"], 2),
    ] {
        let output = sealift(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert_eq!(output.stdout.is_empty(), code != 0, "{arguments:?}: {output:?}");
    }
}

#[test]
fn errors_are_printed_once() {
    let output = sealift(&["put", "a", "nas:b"]);
    let text = String::from_utf8(output.stderr).expect("errors are text");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("sealift: no remote is configured as `nas`"), "{text}");
}
