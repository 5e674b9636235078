//! The order of system calls of a commit (cases D03 and, for `unchanged`, the promise of the README), as strace saw
//! it: write < metadata < sync(file) < rename or link < sync(directory and what is new above it) < answer.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::rig::{self, World, content, has, until, wrapped};

/// One system call: where in the log it began and ended.
#[derive(Clone, Debug)]
struct Call {
    name: String,
    args: String,
    result: String,
    start: usize,
    end: usize,
}

impl Call {
    fn is_ok(&self) -> bool {
        !self.result.starts_with('-') && self.result != "?"
    }

    /// The paths of the descriptors among the arguments, in order.
    fn descriptors(&self) -> Vec<&str> {
        let mut found = Vec::new();
        let mut rest = self.args.as_str();
        while let Some(at) = rest.find('<') {
            let is_descriptor = rest[..at].ends_with(|c: char| c.is_ascii_digit() || c == 'D');
            let Some(len) = rest[at..].find('>') else { break };
            if is_descriptor {
                found.push(&rest[at + 1..at + len]);
            }
            rest = &rest[at + len + 1..];
        }
        found
    }

    fn descriptor(&self) -> &str {
        self.descriptors().first().copied().unwrap_or_default()
    }

    /// The quoted names among the arguments.
    fn names(&self) -> Vec<&str> {
        self.args.split('"').skip(1).step_by(2).collect()
    }

    /// Bytes that a send took.
    fn sent(&self) -> u64 {
        let is_send = matches!(&*self.name, "writev" | "sendto" | "sendmsg" | "write");
        let is_socket = self.descriptor().starts_with("socket:") || self.descriptor().starts_with("TCP");
        if is_send && is_socket { self.result.parse().unwrap_or(0) } else { 0 }
    }

    fn is_sync(&self) -> bool {
        matches!(&*self.name, "fsync" | "fdatasync") && self.is_ok()
    }
}

const CALLS: &str = "trace=accept4,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,fchmod,fchmodat,utimensat,\
    fsetxattr,ftruncate,fallocate,fsync,fdatasync,syncfs,sync_file_range,linkat,link,rename,renameat,renameat2,\
    mkdirat,mkdir,unlinkat,unlink,symlinkat,copy_file_range";

fn tracer(log: &Path, calls: &str) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        ["-D", "-f", "-y", "-s", "96", "-e", calls, "-e", "signal=none"].map(Into::into).into();
    args.extend(["-o".into(), log.into()]);
    args
}

pub(crate) fn strace_works() -> bool {
    has("strace", &["-D", "-o", "/dev/null", "true"], "system calls are not looked at")
}

/// All calls of a log whose process has ended.
fn calls(log: &Path) -> Vec<Call> {
    let text = until("the tracer has written its log", || {
        let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
        text.lines()
            .last()
            .is_some_and(|line| line.contains("+++ exited") || line.contains("+++ killed"))
            .then_some(text)
    });
    let mut calls: Vec<Call> = Vec::new();
    let mut open: Vec<(String, Call)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some(at) = open.iter().position(|(owner, _)| owner == thread) else { continue };
            let (_, mut call) = open.remove(at);
            let (_, rest) = resumed.split_once("resumed>").unwrap();
            let (args, result) = rest.rsplit_once(" = ").unwrap_or((rest, "?"));
            call.args.push_str(args);
            call.result = result.split(' ').next().unwrap().to_owned();
            call.end = index;
            calls.push(call);
            continue;
        }
        let Some((name, args)) = rest.split_once('(') else { continue };
        let mut call =
            Call { name: name.to_owned(), args: String::new(), result: "?".to_owned(), start: index, end: index };
        if let Some(args) = args.strip_suffix(" <unfinished ...>") {
            call.args = args.to_owned();
            call.end = usize::MAX;
            open.push((thread.to_owned(), call));
        } else if let Some((args, result)) = args.rsplit_once(" = ") {
            call.args = args.to_owned();
            call.result = result.split(' ').next().unwrap().to_owned();
            calls.push(call);
        }
    }
    calls.sort_by_key(|call| call.start);
    calls
}

/// What one command made a server do, from its connection on.
fn traced(world: &World, prepare: impl FnOnce(&rig::Server), command: &[&str]) -> Vec<Call> {
    let server = world.serve();
    prepare(&server);
    server.stop();
    let log = world.path("trace");
    let server = world.serve_by(wrapped("strace", tracer(&log, CALLS)), 0);
    let args = command
        .iter()
        .map(|arg| arg.replace("REMOTE", &server.at("")).replace("HERE", world.path("").to_str().unwrap()));
    let args: Vec<String> = args.collect();
    let output = server.client(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    server.stop();
    let calls = calls(&log);
    let accepted = calls.iter().position(|call| call.name == "accept4" && call.is_ok()).unwrap();
    calls[accepted..].to_vec()
}

/// The answer to the only request: the first thing sent after the last change that is more than an end of TLS.
fn answer(calls: &[Call], after: usize) -> usize {
    let answer = calls.iter().find(|call| call.start > after && call.sent() > 24);
    answer.unwrap_or_else(|| panic!("no answer after line {after} of {}", show(calls))).start
}

fn show(calls: &[Call]) -> String {
    calls.iter().map(|call| format!("\n{} {}({}) = {}", call.start, call.name, call.args, call.result)).collect()
}

fn is_hidden(name: &str) -> bool {
    name.rsplit('/').next().unwrap().starts_with(".sealift-")
}

fn is_state(path: &str) -> bool {
    path.contains("/.sealift/") || path.ends_with("/.sealift")
}

/// Whether this directory was synced wholly between two places of the log.
#[track_caller]
fn assert_synced(calls: &[Call], directory: &str, after: usize, before: usize) {
    let found = calls
        .iter()
        .any(|call| call.is_sync() && call.descriptor() == directory && call.start > after && call.end < before);
    assert!(found, "{directory} is not synced between lines {after} and {before} of {}", show(calls));
}

/// Where a publication gives a final name: its directory, the name, and the staging path that it had.
fn publication(calls: &[Call], call: &Call) -> Option<(String, String, String)> {
    if !call.is_ok() {
        return None;
    }
    let names = call.names();
    let descriptors = call.descriptors();
    match &*call.name {
        "linkat" => {
            let (from, name, directory) = (names.first()?, names.get(1)?, descriptors.last()?);
            if from.is_empty() {
                // The open file itself: the first descriptor.
                return Some(((*directory).to_owned(), (*name).to_owned(), (*descriptors.first()?).to_owned()));
            }
            let number = from.strip_prefix("/proc/self/fd/")?;
            let prefix = format!("{number}<");
            let staged =
                calls.iter().rev().find(|other| other.start < call.start && other.args.starts_with(&prefix))?;
            Some(((*directory).to_owned(), (*name).to_owned(), staged.descriptor().to_owned()))
        }
        "renameat" | "renameat2" => {
            let (from, name) = (names.first()?, names.get(1)?);
            let (source, directory) = (descriptors.first()?, descriptors.get(1)?);
            Some(((*directory).to_owned(), (*name).to_owned(), format!("{source}/{from}")))
        }
        _ => None,
    }
}

/// Checks the order of everything in this log. `told` gives the place of the answer that follows the last change.
#[track_caller]
fn check(calls: &[Call], told: impl Fn(&[Call], usize) -> usize) -> Counts {
    let mut counts = Counts::default();
    let is_change = |call: &&Call| {
        call.is_ok()
            && matches!(&*call.name, "linkat" | "renameat" | "renameat2" | "mkdirat" | "unlinkat" | "symlinkat")
            && !call.descriptors().iter().all(|path| is_state(path))
            && !call.names().iter().all(|name| is_hidden(name))
    };
    let last = calls.iter().filter(is_change).map(|call| call.end).max().expect("something is changed");
    let answer = told(calls, last);
    for call in calls.iter().filter(is_change) {
        let mut directory = (*call.descriptors().last().unwrap()).to_owned();
        if let Some(above) =
            call.names().first().and_then(|name| Path::new(name).parent()).filter(|above| above.is_absolute())
        {
            // Named from the machine's root: a directory that a client was told to save into.
            above.to_str().unwrap().clone_into(&mut directory);
        }
        match &*call.name {
            "mkdirat" | "unlinkat" => {
                counts.others += 1;
                // What is gone with the directory that it was in need not be synced there.
                let gone = calls.iter().any(|other| {
                    other.name == "unlinkat"
                        && other.is_ok()
                        && other.start > call.end
                        && format!("{}/{}", other.descriptor(), other.names()[0]) == directory
                });
                if !gone {
                    assert_synced(calls, &directory, call.end, answer);
                }
            }
            "linkat" | "renameat" | "renameat2" => {
                let Some((directory, name, staged)) = publication(calls, call) else {
                    panic!("what does {call:?} publish? {}", show(calls));
                };
                if is_hidden(&name) || is_state(&directory) {
                    continue;
                }
                counts.published += 1;
                assert_synced(calls, &directory, call.end, answer);
                if call.name != "linkat" && !is_hidden(&staged) {
                    // Moved: its old directory lost a name, and it was synced before.
                    assert_synced(calls, call.descriptor(), call.end, answer);
                    continue;
                }
                // A nameless file that was given a hidden name on the way is known by the name that it had before.
                let linked = calls.iter().find(|other| {
                    other.name == "linkat"
                        && publication(calls, other).is_some_and(|(d, n, _)| format!("{d}/{n}") == staged)
                });
                let staged = linked.and_then(|call| publication(calls, call)).map_or(staged, |(.., staged)| staged);
                let first = linked.unwrap_or(call);
                check_staged(calls, &staged, first.start, &mut counts);
            }
            _ => {}
        }
    }
    counts
}

#[derive(Debug, Default)]
struct Counts {
    published: usize,
    others: usize,
    written: usize,
    synced_alone: usize,
}

/// Write < metadata < sync < publication, for one staging file.
#[track_caller]
fn check_staged(calls: &[Call], staged: &str, published: usize, counts: &mut Counts) {
    let of_file = |names: &[&str]| -> Vec<&Call> {
        calls.iter().filter(|call| names.contains(&&*call.name) && call.descriptor() == staged).collect()
    };
    let writes = of_file(&["pwrite64", "pwritev", "ftruncate", "fallocate", "copy_file_range"]);
    let metadata = of_file(&["fchmod", "utimensat", "fsetxattr"]);
    let syncs = of_file(&["fsync", "fdatasync"]);
    // One without a name is made with its mode.
    let is_nameless = staged.rsplit('/').next().is_some_and(|name| name.starts_with('#'));
    let has_mode = is_nameless || metadata.iter().any(|call| call.name == "fchmod");
    assert!(has_mode && !metadata.is_empty(), "no mode for {staged}: {}", show(calls));
    let written = writes.iter().map(|call| call.end).max().unwrap_or(0);
    let described = metadata.iter().map(|call| call.start).min().unwrap();
    assert!(written < described, "{staged} is written after its metadata: {}", show(calls));
    let described = metadata.iter().map(|call| call.end).max().unwrap();
    let whole = calls.iter().filter(|call| call.name == "syncfs" && call.result == "0");
    let synced = syncs
        .iter()
        .copied()
        .chain(whole)
        .find(|call| call.result == "0" && call.start > described && call.end < published);
    assert!(synced.is_some(), "{staged} has no sync between metadata and name: {}", show(calls));
    counts.written += writes.len();
    counts.synced_alone += syncs.len();
}

#[test]
fn every_change_is_durable_before_its_answer() {
    if !strace_works() {
        return;
    }
    const LARGE: usize = (2 << 20) + 77;
    const DIRECT: usize = (5 << 20) + 77;
    // What is there before, what is run, publications, other changes.
    type Case = (&'static [(&'static str, usize)], &'static [&'static str], usize, usize);
    let cases: &[Case] = &[
        (&[], &["put", "HERE/small", "REMOTEx"], 1, 0),
        (&[], &["put", "HERE/empty", "REMOTEx"], 1, 0),
        (&[], &["put", "HERE/large", "REMOTEx"], 1, 0),
        (&[], &["put", "HERE/direct", "REMOTEx"], 1, 0),
        (&[("x", 10)], &["put", "HERE/small", "REMOTEx"], 1, 0),
        (&[("x", LARGE)], &["put", "HERE/small", "REMOTEx"], 1, 0),
        (&[("x", 10)], &["put", "HERE/large", "REMOTEx"], 1, 0),
        (&[("x", LARGE)], &["put", "HERE/large", "REMOTEx"], 1, 0),
        (&[("x", DIRECT)], &["put", "HERE/direct", "REMOTEx"], 1, 0),
        (&[("x", 10)], &["put", "--if-exists", "rename", "HERE/small", "REMOTEx"], 1, 0),
        (&[("x", 10)], &["put", "--if-exists", "rename", "HERE/large", "REMOTEx"], 1, 0),
        (&[], &["put", "--if-exists", "fail", "HERE/small", "REMOTEa/b/c/x"], 1, 3),
        (&[], &["put", "HERE/large", "REMOTEa/b/c/x"], 1, 3),
        (&[("a/y", 3)], &["put", "HERE/small", "REMOTEa/b/c/x"], 1, 2),
        (&[("x", 10)], &["mv", "REMOTEx", "REMOTEy"], 1, 0),
        (&[("a/x", 10)], &["mv", "REMOTEa/x", "REMOTEb/c/y"], 1, 2),
        (&[("a/x", 10), ("y", 3)], &["mv", "--if-exists", "overwrite", "REMOTEa/x", "REMOTEy"], 1, 0),
        (&[("a/b/x", 10)], &["mv", "REMOTEa/b", "REMOTEc"], 1, 0),
        (&[("a/x", 10)], &["rm", "REMOTEa/x"], 0, 1),
        (&[("a/b/x", 10), ("a/y", 1)], &["rm", "-r", "REMOTEa"], 0, 4),
        (&[], &["mkdir", "REMOTEa/b/c"], 0, 3),
    ];
    for &(before, command, published, others) in cases {
        let world = World::new();
        world.file("small", b"some bytes");
        world.file("empty", b"");
        world.file("large", &content(1, LARGE));
        world.file("direct", &content(2, DIRECT));
        let prepare = |server: &rig::Server| {
            for (name, len) in before {
                let source = world.file("before", &content(99, *len));
                server.put(&source, name);
            }
        };
        let calls = traced(&world, prepare, command);
        let counts = check(&calls, answer);
        let case = format!("{before:?} {command:?}: {counts:?}{}", show(&calls));
        assert_eq!((counts.published, counts.others), (published, others), "{case}");
        let is_empty = command.contains(&"HERE/empty");
        assert!(counts.written > 0 || is_empty || command[0] != "put", "nothing was written in {case}");
    }
}

#[test]
fn unchanged_is_synced_before_it_is_said() {
    if !strace_works() {
        return;
    }
    for (name, len) in [("small", 100), ("large", (2 << 20) + 5)] {
        for policy in ["overwrite", "skip", "fail"] {
            let world = World::new();
            let source = world.file(name, &content(7, len));
            let prepare = |server: &rig::Server| {
                server.put(&source, "a/x");
                // Another time, so that there is something to be made durable.
                let time = SystemTime::now() - Duration::from_secs(5000);
                fs::File::open(&source).unwrap().set_modified(time).unwrap();
            };
            let remote = format!("HERE/{name}");
            let calls = traced(&world, prepare, &["put", "--if-exists", policy, &remote, "REMOTEa/x"]);
            let said = calls.iter().rfind(|call| call.sent() > 24).unwrap().start;
            let file = world.root().join("a/x");
            let changed = calls.iter().filter(|call| matches!(&*call.name, "utimensat" | "fsetxattr" | "fchmod"));
            let changed = changed.map(|call| call.end).max().unwrap_or(0);
            assert_eq!(changed > 0, policy == "overwrite", "{name} {policy}: {}", show(&calls));
            assert_synced(&calls, file.to_str().unwrap(), changed, said);
            // The directory that has the name, and those above it: this server has not synced them yet.
            assert_synced(&calls, file.parent().unwrap().to_str().unwrap(), 0, said);
            assert_synced(&calls, world.root().to_str().unwrap(), 0, said);
        }
    }
}

#[test]
fn a_link_that_is_there_already_is_synced_before_it_is_said() {
    if !strace_works() {
        return;
    }
    for policy in ["overwrite", "skip", "fail"] {
        let world = World::new();
        fs::create_dir(world.path("t")).unwrap();
        std::os::unix::fs::symlink("nowhere", world.path("t/link")).unwrap();
        let prepare = |server: &rig::Server| drop(server.put(&world.path("t"), "t"));
        let calls = traced(&world, prepare, &["put", "--if-exists", policy, "HERE/t", "REMOTEt"]);
        // The directory's own mode and time come after the link and are another request: only what is before counts.
        let directory = world.root().join("t");
        let settled = calls.iter().find(|call| {
            call.name == "utimensat" && call.descriptor() == directory.to_str().unwrap() && call.args.contains("NULL")
        });
        let settled = settled.unwrap_or_else(|| panic!("{policy}: {}", show(&calls))).start;
        assert_synced(&calls, directory.to_str().unwrap(), 0, settled);
    }
}

#[test]
fn what_is_gone_already_is_synced_before_it_is_said() {
    if !strace_works() {
        return;
    }
    let world = World::new();
    fs::create_dir_all(world.root().join("d")).unwrap();
    let log = world.path("trace");
    let server = world.serve_by(wrapped("strace", tracer(&log, CALLS)), 0);
    // Another server removed it, and died before it synced or told.
    let output = server.client(&["rm", &server.at("d/gone")]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    server.stop();
    let calls = calls(&log);
    // The answer is the last that is sent, but for the end of TLS; a server that stops syncs nothing of its own.
    let accepted = calls.iter().find(|call| call.name == "accept4" && call.is_ok()).unwrap().start;
    let answered = calls.iter().rfind(|call| call.sent() > 24).unwrap().start;
    assert_synced(&calls, world.root().join("d").to_str().unwrap(), accepted, answered);
}

#[test]
fn many_small_files_share_their_syncs() {
    if !strace_works() {
        return;
    }
    let world = World::new();
    for index in 0..200 {
        world.file(&format!("many/{index}"), &content(index, 300));
    }
    let calls = traced(&world, |_| {}, &["put", "HERE/many", "REMOTEmany"]);
    let directory = world.root().join("many");
    let directory = directory.to_str().unwrap();
    // The answers of one batch go out while the next is stored, so the last is what everything is before.
    let counts = check(&calls, answer);
    assert_eq!(counts.published, 200, "{}", show(&calls));
    let whole = calls.iter().filter(|call| call.name == "syncfs").count();
    let of_directory = calls.iter().filter(|call| call.is_sync() && call.descriptor() == directory).count();
    println!("200 files: {whole} syncfs, {} fsync of files, {of_directory} of their directory", counts.synced_alone);
    if whole > 0 {
        assert!(whole + counts.synced_alone < 60, "{whole} syncfs, {counts:?}");
    }
    assert!(of_directory < 30, "{of_directory} syncs of one directory");
}

/// The times at which syncs of a slow disk returned, and those at which the client told each file: none is told
/// before its batch is durable.
#[test]
fn no_file_of_a_batch_is_told_before_a_slow_disk_has_it() {
    if !strace_works() {
        return;
    }
    let world = World::new();
    for index in 0..60 {
        world.file(&format!("many/{index}"), &content(index, 300));
    }
    let log = world.path("trace");
    let mut args = tracer(&log, CALLS);
    args.extend(["-ttt", "-e", "inject=fsync,fdatasync,syncfs:delay_exit=40000"].map(Into::into));
    let server = world.serve_by(wrapped("strace", args), 0);
    let mut client = server.client(&["put", "--json"]);
    let mut child =
        client.arg(world.path("many")).arg(server.at("many")).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut told: Vec<(f64, String)> = Vec::new();
    for line in std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap())) {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        if line["type"] == "done" && line["kind"] == "file" {
            let name = PathBuf::from(line["name"].as_str().unwrap());
            told.push((now, name.file_name().unwrap().to_str().unwrap().to_owned()));
        }
    }
    assert!(child.wait().unwrap().success());
    server.stop();
    calls(&log);
    assert_eq!(told.len(), 60);
    let text = fs::read_to_string(&log).unwrap();
    let time = |line: &str| line.split_whitespace().nth(1).and_then(|time| time.parse::<f64>().ok());
    let directory = format!("{}>", world.root().join("many").display());
    for (when, name) in told {
        let ending = format!("\"{name}\", AT_");
        let named = text.lines().position(|line| line.contains(&ending)).unwrap_or_else(|| panic!("{name} in {text}"));
        // The first sync of its directory that begins after it has its name.
        let synced = text.lines().skip(named + 1).find(|line| line.contains("fsync(") && line.contains(&directory));
        let begun = synced.and_then(time).unwrap_or_else(|| panic!("{name} in {text}"));
        assert!(when > begun + 0.039, "{name} was told {} s after its directory's sync began", when - begun);
    }
}

#[test]
fn a_download_is_durable_before_it_is_told() {
    if !strace_works() {
        return;
    }
    let world = World::new();
    let server = world.serve();
    for (name, len) in [("small", 100), ("empty", 0), ("large", (2 << 20) + 5), ("direct", (5 << 20) + 5)] {
        let source = world.file(&format!("up/{name}"), &content(3, len));
        server.put(&source, name);
    }
    // What is there before, what is fetched, where to.
    for (name, before, target) in [
        ("small", None, "x"),
        ("empty", None, "x"),
        ("large", None, "x"),
        ("direct", None, "x"),
        ("small", Some(10), "x"),
        ("large", Some(10), "x"),
        ("small", None, "new/deep/x"),
        ("large", None, "new/deep/x"),
    ] {
        let here = tempfile::tempdir().unwrap();
        if let Some(len) = before {
            fs::write(here.path().join("x"), content(9, len)).unwrap();
        }
        let log = here.path().join("trace");
        let mut client: Command = wrapped("strace", tracer(&log, CALLS));
        let target = here.path().join(target);
        client.args(["get", "--json", "--certs"]).arg(world.path("client")).arg(server.at(name)).arg(&target);
        let output = client.output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let calls = calls(&log);
        let told = |calls: &[Call], after: usize| {
            let is_told =
                |call: &&Call| call.name == "write" && call.args.starts_with("1<") && call.args.contains("b3");
            let told = calls.iter().find(is_told).unwrap_or_else(|| panic!("{}", show(calls))).start;
            assert!(told > after, "told before the last change: {}", show(calls));
            told
        };
        let counts = check(&calls, told);
        assert_eq!(counts.published, 1, "{name} to {}: {}", target.display(), show(&calls));
    }
}

/// A directory that takes the place of another: everything in it is synced before the exchange, the directory that
/// names it after, and then comes the answer; only then is the old one removed.
#[test]
fn a_tree_is_durable_before_it_takes_its_place() {
    if !strace_works() {
        return;
    }
    let world = World::new();
    world.file("root/site/old", b"carried over");
    world.file("root/site/sub/old", b"carried over too");
    world.file("root/site/sub/changed", b"before");
    world.file("source/sub/changed", b"after it");
    world.file("source/new/file", &content(1, 5000));
    world.file("source/large", &content(2, (1 << 20) + 9));
    let calls = traced(&world, |_| (), &["put", "--atomic", "HERE/source", "REMOTE/site"]);
    let exchanges: Vec<&Call> =
        calls.iter().filter(|call| call.is_ok() && call.args.contains("RENAME_EXCHANGE")).collect();
    let [exchange] = exchanges.as_slice() else { panic!("not one exchange: {}", show(&calls)) };
    let (container, parent) = (exchange.descriptors()[0], exchange.descriptors()[1]);
    assert!(is_state(container) && parent == world.root().to_str().unwrap(), "{exchange:?}");
    let tree = format!("{container}/tree");
    let is_whole = |call: &Call| call.name == "syncfs" && call.is_ok();
    let synced = |path: &str| {
        calls
            .iter()
            .any(|call| (call.is_sync() && call.descriptor() == path || is_whole(call)) && call.end < exchange.start)
    };
    for name in ["", "/old", "/sub", "/sub/old", "/sub/changed", "/new", "/new/file", "/large"] {
        assert!(synced(&format!("{tree}{name}")), "{name} is not synced before the exchange: {}", show(&calls));
    }
    // Nothing in it changes between its sync and the exchange.
    let last_sync =
        calls.iter().filter(|call| call.is_sync() && call.descriptor() == tree).map(|call| call.start).max();
    let is_change = |call: &&Call| {
        call.is_ok()
            && matches!(
                &*call.name,
                "linkat" | "renameat" | "renameat2" | "mkdirat" | "unlinkat" | "pwrite64" | "utimensat"
            )
            && call.descriptors().iter().any(|path| path.starts_with(&tree))
            && call.start > last_sync.unwrap()
            && call.start < exchange.start
    };
    assert_eq!(calls.iter().filter(is_change).count(), 0, "{}", show(&calls));
    let answered = answer(&calls, exchange.end);
    assert_synced(&calls, parent, exchange.end, answered);
    let is_removal =
        |call: &&Call| call.name == "unlinkat" && call.descriptor().starts_with(&tree) && !is_hidden(call.names()[0]);
    let removed = calls.iter().filter(is_removal);
    assert!(removed.clone().count() > 0, "the old tree is removed: {}", show(&calls));
    assert!(removed.clone().all(|call| call.start > exchange.end), "{}", show(&calls));
}
