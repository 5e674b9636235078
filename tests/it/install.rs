//! `scripts/install.sh`, the completions and the manual pages.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kit::{PROGRAM, program, text};
use crate::rig::has;

fn install(arguments: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install.sh"));
    command.args(["--binary", PROGRAM]).args(arguments);
    command
}

/// Files below a directory with their modes.
fn files(top: &Path) -> BTreeMap<PathBuf, u32> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                found.insert(path.strip_prefix(top).unwrap().to_owned(), mode);
            }
        }
    }
    found
}

#[test]
fn it_installs_updates_and_takes_away() {
    let folder = tempfile::tempdir().unwrap();
    let destdir = folder.path().to_str().unwrap();
    let arguments = ["--destdir", destdir, "--prefix", "/opt/x"];
    let output = install(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let top = folder.path().join("opt/x");
    let first = files(&top);
    assert_eq!(first[Path::new("bin/sealift")], 0o755);
    for name in [
        "share/bash-completion/completions/sealift",
        "share/zsh/site-functions/_sealift",
        "share/fish/vendor_completions.d/sealift.fish",
        "share/man/man1/sealift.1",
        "share/man/man1/sealift-put.1",
        "share/man/man1/sealift-remote-add.1",
    ] {
        assert_eq!(first.get(Path::new(name)), Some(&0o644), "{name}: {first:?}");
    }
    let hidden = ["bench", "generate"];
    assert!(hidden.iter().all(|name| !first.contains_key(Path::new(&format!("share/man/man1/sealift-{name}.1")))));
    let version = Command::new(top.join("bin/sealift")).arg("--version").output().unwrap();
    assert!(version.status.success());
    // Once more, with a page of a command that there is no more.
    fs::write(top.join("share/man/man1/sealift-gone.1"), "").unwrap();
    let output = install(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(files(&top), first);
    // What is not ours stays.
    fs::write(top.join("bin/other"), "").unwrap();
    let output = install(&["--destdir", destdir, "--prefix", "/opt/x", "--uninstall"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(files(&top).into_keys().collect::<Vec<_>>(), [Path::new("bin/other")]);
    assert_eq!(install(&["--prefix", "relative"]).output().unwrap().status.code(), Some(2));
    assert_eq!(install(&["--prefx", "/x"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn manual_pages_are_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    let output = program().args(["generate", "man"]).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let page = fs::read_to_string(folder.path().join("sealift-put.1")).unwrap();
    assert!(page.contains(".SH OPTIONS") && page.contains("stdin\\-from\\-command"), "{page}");
    assert!(page.contains(".nf\nExamples:\n"), "examples keep their lines:\n{page}");
    if !has("man", &["--version"], "manual pages are not rendered") {
        return;
    }
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let rendered = Command::new("man").arg("--warnings").arg("-l").arg(&path).env("LC_ALL", "C.UTF-8").output();
        let rendered = rendered.unwrap();
        assert!(rendered.status.success() && rendered.stderr.is_empty(), "{}: {}", path.display(), text(&rendered));
    }
}

fn script(shell: &str) -> String {
    let output = program().args(["generate", "completions", shell]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_flags_and_remotes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("script"), script("bash")).unwrap();
    fs::write(folder.path().join("config"), "[remotes.nas]\naddress = \"nas\"\n[remotes.other]\naddress = \"o\"\n")
        .unwrap();
    let complete = |words: &[&str]| {
        let code = r#". ./script; shift 0; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _sealift_or_remote sealift "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
            printf '%s\n' "${COMPREPLY[@]}""#;
        let mut command = Command::new("bash");
        command.args(["--norc", "-c", code, "bash"]).args(words).current_dir(&folder);
        let path = format!("{}:/usr/bin:/bin", Path::new(PROGRAM).parent().unwrap().display());
        let output = command.env("SEALIFT_CONFIG", folder.path().join("config")).env("PATH", path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    if !has("bash", &["--version"], "completions of bash are not run") {
        return;
    }
    assert_eq!(complete(&["sealift", "mkd"]), ["mkdir"]);
    assert_eq!(complete(&["sealift", "put", "--expect-"]), ["--expect-size", "--expect-b3"]);
    assert_eq!(complete(&["sealift", "ls", "na"]), ["nas:"]);
    assert!(!complete(&["sealift", ""]).iter().any(|word| word == "bench" || word == "generate"));
}

#[test]
fn zsh_and_fish_take_their_completions() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["zsh", "fish"] {
        let path = folder.path().join(shell);
        let text = script(shell);
        assert!(text.contains("stdin-from-command") && !text.contains("bench"), "{shell}");
        fs::write(&path, text).unwrap();
        if has(shell, &["--version"], "its completions are not parsed") {
            let parsed = Command::new(shell).arg("-n").arg(&path).output().unwrap();
            assert!(parsed.status.success(), "{shell}: {parsed:?}");
        }
    }
}
