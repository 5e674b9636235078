//! What people read when something is wrong, compared with what was agreed: `UPDATE_SNAPSHOTS=1` writes it anew.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::kit::{Server, text};

#[test]
fn errors_are_what_was_agreed() {
    let server = Server::start(&[]);
    let local = |name: &str| server.local(name);
    fs::write(local("file"), "content").unwrap();
    fs::create_dir(local("tree")).unwrap();
    fs::write(local("tree/a"), "a").unwrap();
    std::os::unix::fs::symlink("tree", local("tree/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", local("tree/away")).unwrap();
    server.run(&["put", "tree", "file", "@"], 0);
    let commands: &[&[&str]] = &[
        &["put", "file"],
        &["put", "missing", "@in/"],
        &["put", "file", "nas:in/"],
        &["put", "file", "http://nas/in/"],
        &["put", "file", "@tree"],
        &["put", "tree", "@file"],
        &["put", "file", "tree/a", "@in"],
        &["put", "tree", "./tree", "@in/"],
        &["put", "--expect-size", "1K", "file", "@in/x"],
        &["put", "--stdin-from-command", "@x", "--", "false"],
        &["put", "--if-exists", "fail", "tree/a", "@file"],
        &["put", "-v", "tree", "@again"],
        &["get", "@missing"],
        &["get", "@tree", "@file", "one"],
        &["get", "@tree", "-"],
        &["ls", "@missing"],
        &["rm", "@tree"],
        &["rm", "@"],
        &["mv", "@file", "@tree"],
        &["hash", "@tree"],
        &["ls", "sealift://user@nas/"],
        &["ls", "sealift://nas:port/"],
        &["ls", "@../x"],
        &["ls", "--pin", "sha256:00", "@"],
        &["remote", "add", "x", "nas"],
        &["remote", "add", "nas", "nas/path", "--ca", "ca.pem"],
        &["remote", "show", "nas"],
        &["doctor", "nas"],
    ];
    let mut all = String::new();
    for arguments in commands {
        let output = server.command(arguments).output().unwrap();
        writeln!(all, "$ sealift {}", arguments.join(" ")).unwrap();
        let shown = text(&output);
        let mut lines: Vec<&str> = shown.lines().collect();
        if arguments.contains(&"-v") {
            // What is moved at once is done in any order.
            lines.sort_unstable();
        }
        let address = server.address.as_str();
        let port = address.rsplit(':').next().unwrap();
        for line in lines {
            // What differs from run to run.
            let line = line.split("; moved ").next().unwrap().replace(port, "PORT");
            let is_negotiated = line.contains("TLS 1.3");
            let line = if is_negotiated { "(what was negotiated)" } else { &line };
            writeln!(all, "{}", line.replace(server.folder.path().to_str().unwrap(), "FOLDER")).unwrap();
        }
        writeln!(all, "[{}]\n", output.status.code().unwrap()).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/snapshots/errors.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, &all).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(all == expected, "not what {} says (UPDATE_SNAPSHOTS=1 writes it):\n{all}", path.display());
}
