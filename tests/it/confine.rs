//! The server's confinement: what a server that was taken over can no longer do, and what it still must.

use std::fs;
#[cfg(debug_assertions)]
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::channel;

use sealift::confine::{Plan, confine};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::rig::World;
#[cfg(debug_assertions)]
use crate::rig::binary;

/// Whether this kernel offers all that is tested here; a test that cannot be run says so.
fn is_offered() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan { write: vec![folder.path().to_path_buf()], ..Plan::default() };
    // What holds for a thread ends with it.
    let confined = std::thread::spawn(move || confine(&plan)).join().unwrap();
    let whole = confined.warnings.is_empty();
    if !whole {
        println!("skipped: {}", confined.warnings.join("; "));
    }
    whole
}

/// What the planted hook of a server with these flags reports.
#[cfg(debug_assertions)]
fn escape(world: &World, flags: &[&str]) -> Vec<String> {
    let outside = world.file("outside/secret", b"not for clients");
    let made = outside.with_extension("made");
    let beside = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = binary();
    command.env("SEALIFT_TEST_ESCAPE", &outside);
    command.env("SEALIFT_TEST_ESCAPE_TO", beside.local_addr().unwrap().to_string());
    command.arg("serve").args(flags).arg("--root").arg(world.root()).arg("--certs").arg(world.path("certs"));
    command.args(["--listen", "127.0.0.1:0"]);
    let server = world.started(command);
    // The last attempt.
    let lines = server.log_with("escape: exec");
    assert_eq!(made.exists(), flags.contains(&"--no-sandbox"));
    lines
}

/// The hook is planted in builds for tests only.
#[cfg(debug_assertions)]
#[test]
fn a_server_that_was_taken_over_reaches_nothing() {
    if !is_offered() {
        return;
    }
    let attempts = ["read", "write", "make", "connect", "bind", "exec"];
    let confined = escape(&World::new(), &[]);
    // Without this the test could not fail.
    let free = escape(&World::new(), &["--no-sandbox"]);
    for attempt in attempts {
        let says = |lines: &[String], end: &str| lines.iter().any(|line| line.ends_with(&format!("{attempt} {end}")));
        assert!(says(&confined, "failed: PermissionDenied"), "{attempt}: {confined:?}");
        assert!(says(&free, "succeeded"), "{attempt}: {free:?}");
    }
    assert!(confined[0].contains("confined by Landlock (ABI "), "{confined:?}");
    assert!(confined[0].contains("; seccomp (") && confined[0].contains("; no new privileges"), "{confined:?}");
    assert!(free[0].contains("not confined (--no-sandbox)"), "{free:?}");
}

#[test]
fn certificates_that_are_replaced_by_renaming_are_read_by_a_confined_process() {
    if !is_offered() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for directory in ["certs", "live", "archive", "root", "other"] {
        fs::create_dir(path(directory)).unwrap();
    }
    fs::write(path("certs/server.pem"), "first").unwrap();
    fs::write(path("other/secret"), "secret").unwrap();
    // As some issuers keep them: a link to where the newest is.
    fs::write(path("archive/1.pem"), "first").unwrap();
    std::os::unix::fs::symlink("../archive/1.pem", path("live/server.pem")).unwrap();
    let mut plan = Plan { write: vec![path("root")], ..Plan::default() };
    plan.read_beside(&path("certs/server.pem"));
    plan.read_beside(&path("live/server.pem"));
    let (go, wait) = channel::<()>();
    let (done, ready) = channel();
    let top = folder.path().to_path_buf();
    let confined = std::thread::spawn(move || {
        let confined = confine(&plan);
        assert_eq!(confined.warnings, Vec::<String>::new());
        let read = |name: &str| fs::read_to_string(top.join(name)).map_err(|error| error.kind());
        let both = || [read("certs/server.pem").unwrap(), read("live/server.pem").unwrap()];
        done.send(both()).unwrap();
        wait.recv().unwrap();
        done.send(both()).unwrap();
        let denied = Err(std::io::ErrorKind::PermissionDenied);
        assert_eq!(read("other/secret"), denied);
        assert_eq!(read("root/link"), denied, "a link out of the root");
        assert_eq!(fs::write(top.join("certs/server.pem"), "mine").map_err(|error| error.kind()), denied.map(drop));
    });
    assert_eq!(ready.recv().unwrap(), ["first", "first"]);
    fs::write(path("certs/new"), "second").unwrap();
    fs::rename(path("certs/new"), path("certs/server.pem")).unwrap();
    fs::write(path("archive/2.pem"), "second").unwrap();
    std::os::unix::fs::symlink("../archive/2.pem", path("live/new")).unwrap();
    fs::rename(path("live/new"), path("live/server.pem")).unwrap();
    std::os::unix::fs::symlink("../other/secret", path("root/link")).unwrap();
    go.send(()).unwrap();
    assert_eq!(ready.recv().unwrap(), ["second", "second"]);
    confined.join().unwrap();
}

/// Runs something on a thread for which these system calls answer as an old kernel, or a container, does.
fn without<T: Send>(calls: &[i64], run: impl FnOnce() -> T + Send) -> T {
    let rules = calls.iter().map(|&call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(38);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            seccompiler::apply_filter(&filter).unwrap();
            run()
        });
        thread.join().unwrap()
    })
}

#[test]
fn where_confinement_is_forbidden_the_server_warns_and_serves() {
    let world = World::new();
    let source = world.file("source", b"content");
    let server = without(&[libc::SYS_landlock_create_ruleset, libc::SYS_seccomp], || world.serve());
    server.put(&source, "stored");
    assert_eq!(fs::read(world.root().join("stored")).unwrap(), b"content");
    let lines = server.log_with("system calls is not in force");
    assert!(lines[0].contains("confined by no new privileges"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("WARN") && line.contains("Landlock is not in force")), "{lines:?}");
}

/// Names of files never reach a shell: the one program that is run is the one that the person names.
#[test]
fn no_part_runs_a_shell() {
    fn look(directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, found);
            } else if path.file_name() != Some("tests.rs".as_ref()) {
                let text = fs::read_to_string(&path).unwrap();
                let lines = text.lines().filter(|line| {
                    (line.contains("Command::new(") && !line.contains("clap::")) || line.contains("/bin/sh")
                });
                let file = path.file_name().unwrap().to_string_lossy().into_owned();
                found.extend(lines.map(|line| format!("{file}: {}", line.trim())));
            }
        }
    }
    let mut found = Vec::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.retain(|line| !line.contains("\"/bin/true\""));
    assert_eq!(found, ["put.rs: let mut child = Command::new(program)"]);
}
