//! Servers without an end, and without a word: memory stays flat, deadlines hold, and ctrl-C ends it.

use std::fs;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sealift::protocol::*;

use super::server::*;

/// Interrupts a client, as ctrl-C does, and says how long it takes to end.
#[track_caller]
pub(super) fn interrupt(child: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
    // A second on a machine that has time; the tests must hold on one that has none.
    let code = end_of(child, SOON);
    println!("ended {:?} after the interruption", begun.elapsed());
    code
}

/// The most memory that a process has had, in MiB.
fn memory(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("VmHWM: 0 kB");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Runs clients against a server without an end, for a while or until they refuse it, and then interrupts them.
#[track_caller]
fn endless(evil: &Evil, commands: &[&[&str]], sent: &AtomicU64, enough: u64) {
    for command in commands {
        let place = Place::new();
        let arguments: Vec<String> = command
            .iter()
            .map(|argument| argument.strip_prefix('@').map_or_else(|| (*argument).to_owned(), |path| evil.url(path)))
            .collect();
        let mut child = place.start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        // What it prints is thrown away.
        let mut outputs: Vec<Box<dyn std::io::Read + Send>> =
            vec![Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let readers: Vec<_> = outputs
            .drain(..)
            .map(|mut from| std::thread::spawn(move || std::io::copy(&mut from, &mut std::io::sink()).unwrap()))
            .collect();
        let (before, begun) = (sent.load(Ordering::Relaxed), Instant::now());
        while sent.load(Ordering::Relaxed) < before + enough && begun.elapsed() < SOON {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let used = if child.try_wait().unwrap().is_some() { 0 } else { memory(&child) };
        let code = interrupt_if_running(&mut child);
        for reader in readers {
            reader.join().unwrap();
        }
        assert!(code.is_some_and(|code| [1, 3, 4, 130].contains(&code)), "{command:?}: {code:?}");
        assert!(used < 300, "{command:?}: {used} MiB");
        place.check(&format!("{command:?}"));
    }
}

#[track_caller]
fn interrupt_if_running(child: &mut Child) -> Option<i32> {
    if let Some(status) = child.try_wait().unwrap() { status.code() } else { interrupt(child) }
}

const ASKING: &[&[&str]] = &[
    &["get", "@top", "target/top"],
    &["get", "--glob", "@top/*", "target/"],
    &["get", "@top/f", "-"],
    &["sync", "--delete", "@top", "target"],
    &["sync", "target", "@top"],
    &["ls", "-lR", "@top"],
    &["stat", "@top"],
    &["hash", "@top"],
    &["doctor", "@top"],
    &["verify", "target", "@top"],
    &["rm", "@top/f"],
    &["mkdir", "@top/new"],
    &["put", "/bin/true", "@top/f"],
];

#[test]
fn a_server_that_says_nothing_is_left_at_once_on_ctrl_c() {
    // After the hello, in the middle of a frame, and one byte at a time.
    for kind in 0..3 {
        let evil = Evil::start(Tree::default(), move |request| {
            (request.transfer > 0).then(|| match kind {
                0 => vec![Say::Hang],
                1 => vec![Say::Bytes(Header::new(Kind::Entry, request.transfer, 500).encode().to_vec()), Say::Hang],
                _ => vec![Say::Trickle(directory("x").to_frame(request.transfer), Duration::from_secs(30))],
            })
        });
        for command in ASKING {
            let place = Place::new();
            let arguments: Vec<String> = command
                .iter()
                .map(|argument| {
                    argument.strip_prefix('@').map_or_else(|| (*argument).to_owned(), |path| evil.url(path))
                })
                .collect();
            let asked = evil.total();
            let mut child = place.start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            let begun = Instant::now();
            while evil.total() < asked + 2 && begun.elapsed() < SOON && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let code = interrupt_if_running(&mut child);
            assert_eq!(code, Some(130), "{command:?} {kind}");
            place.check(&format!("{command:?}"));
        }
    }
}

#[test]
fn listings_without_an_end_are_refused_or_take_no_memory() {
    // The bounds themselves are far off: see `client::listing::tests`. Entries of one answer; answers that say that there is more; the same with long names, links and directories.
    let number = AtomicU64::new(0);
    let sent: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
    let number: &'static AtomicU64 = Box::leak(Box::new(number));
    let page = move |transfer: u32, kind: u64| {
        let entries = (0..60).map(|_| {
            let name = format!("{:0>200}", number.fetch_add(1, Ordering::Relaxed));
            match kind {
                0 => Entry { size: 0, ..file(name) },
                1 => directory(name),
                _ => link(name, "x".repeat(700)),
            }
        });
        let entries: Vec<Entry> = entries.take(if kind == 2 { 50 } else { 60 }).collect();
        sent.fetch_add(entries.len() as u64, Ordering::Relaxed);
        Entries { entries: List(entries) }.to_frame(transfer)
    };
    for kind in 0..3 {
        for pieces in [false, true] {
            let evil = Evil::start(Tree::default().with("", [directory("top")]).with("top", []), move |request| {
                let list = request.is::<ListDirectory>()?;
                let transfer = request.transfer;
                if !pieces {
                    return Some(vec![Say::Endless(Box::new(move || page(transfer, kind)))]);
                }
                let next = list.after.unwrap_or(0) + 1;
                let done = Done { count: 60, next: Some(next), ..Done::default() };
                Some(vec![Say::Bytes(page(transfer, kind)), say(transfer, &done)])
            });
            let commands: [&[&str]; 4] = [
                &["get", "@top", "target/top"],
                &["sync", "@top", "target"],
                &["ls", "@top"],
                &["get", "--glob", "@top/*", "target/"],
            ];
            endless(&evil, &commands[..if kind == 0 { 4 } else { 2 }], sent, 3_000);
        }
    }
}

#[test]
fn frames_without_an_end_and_without_meaning_take_no_memory() {
    let sent: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
    let working = Working { phase: Phase::Hashing, done: 1, total: u64::MAX, spent: None }.to_frame(0);
    let mut unknown = Header::new(Kind::Working, 0, 60_000).encode().to_vec();
    unknown[0] = 0x80;
    unknown.extend_from_slice(&[7; 60_000]);
    let failed_other = Failed { code: 20, text: "x".repeat(2000), retry: None }.to_frame(1);
    let values = Values { first: 0, values: List(vec![sealift::hash::GroupValue([1; 32]); 1024]) }.to_frame(1);
    for bytes in [working, unknown, failed_other, values] {
        let evil = Evil::start(Tree::default(), move |request| {
            let bytes = bytes.clone();
            (request.transfer > 0).then(|| {
                let next = move || {
                    sent.fetch_add(1, Ordering::Relaxed);
                    bytes.clone()
                };
                vec![Say::Endless(Box::new(next))]
            })
        });
        endless(&evil, &[ASKING[0], ASKING[2], ASKING[6], ASKING[12]], sent, 300);
    }
}

#[test]
fn a_billion_entries_of_great_size_are_counted_without_overflow() {
    let entries: Vec<Entry> =
        (0..500).map(|index| Entry { size: u64::MAX - index, ..file(format!("{index}")) }).collect();
    let tree = Tree::default().with("", [directory("top")]).with("top", entries);
    let evil = Evil::start(tree, |request| {
        (request.kind == Kind::Get).then(|| vec![failed(request.transfer, sealift::ErrorKind::Io, "not today")])
    });
    for command in [
        &["get", "top", "target/top"][..],
        &["get", "--dry-run", "top", "target/top"],
        &["sync", "top", "target/top"],
        &["sync", "--dry-run", "top", "target/top"],
        &["ls", "-l", "top"],
    ] {
        let url = evil.url("top");
        let arguments: Vec<&str> =
            command.iter().map(|&argument| if argument == "top" { url.as_str() } else { argument }).collect();
        for json in [&[][..], &["--json"]] {
            let place = Place::new();
            let (code, stdout, stderr) = place.run(&[&arguments[..], json].concat());
            let what = format!("{command:?}: {code} {stdout} {stderr}");
            assert!([0, 1].contains(&code), "{what}");
            place.check(&what);
        }
    }
}
