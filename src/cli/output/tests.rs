use std::sync::{Arc, Mutex};

use super::*;
use crate::client::link::LinkRefusal;
use crate::client::walk::Skip;
use crate::hash::Root;

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn done(name: &[u8], outcome: Outcome, renamed_to: Option<&[u8]>) -> Event {
    Event::Done {
        item: 1,
        name: name.to_vec(),
        kind: ItemKind::File,
        size: 2048,
        root: Some(Root::of(b"")),
        outcome,
        renamed_to: renamed_to.map(<[u8]>::to_vec),
    }
}

fn failed(name: &[u8], kind: ErrorKind, message: &str) -> Event {
    Event::Failed { item: None, name: name.to_vec(), error: Error::new(kind, message) }
}

fn show(detail: Detail, json: bool, events: &[Event], ending: &Ending) -> (String, u8) {
    let paper = Paper::default();
    let mut reporter = Reporter::to(Box::new(paper.clone()), "put", detail, json);
    events.iter().for_each(|event| reporter.add(event));
    let exit = reporter.finish(ending);
    let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
    (text, exit)
}

fn events() -> Vec<Event> {
    vec![
        Event::Found { files: 4, bytes: 6144 },
        Event::Started { item: 1, name: b"a".to_vec(), size: Some(2048) },
        done(b"a", Outcome::Stored, None),
        done(b"b", Outcome::Unchanged, None),
        done(b"c\x1b[31m", Outcome::Renamed, Some(b"c-1\n")),
        Event::Skipped { name: b"l".to_vec(), why: Skip::Link(LinkRefusal::Absolute) },
        failed(b"d\n", ErrorKind::NotFound, "open `d\\n`: gone"),
        failed(b"e", ErrorKind::Rights, "may not"),
        Event::Note("x25519mlkem768".to_owned()),
    ]
}

#[test]
fn people_read_lines() {
    let (text, exit) = show(Detail::Normal, false, &events(), &Ending::Finished);
    assert_eq!(
        text,
        "c\\x1b[31m: stored as c-1\\n\n\
         sealift: open `d\\n`: gone\n\
         sealift: e: may not\n\
         skipped: l: a link to an absolute path\n\
         2 stored, 1 unchanged, 1 skipped, 2 failed (6.00 KiB)\n"
    );
    assert_eq!(exit, 4);
}

#[test]
fn quiet_leaves_the_failures() {
    let (text, exit) = show(Detail::Quiet, false, &events(), &Ending::Finished);
    assert!(text.contains("sealift: e: may not\n") && !text.contains("2 stored"), "{text}");
    assert_eq!(exit, 4);
    let (text, exit) = show(Detail::Quiet, false, &[done(b"a", Outcome::Stored, None)], &Ending::Finished);
    assert_eq!((text.as_str(), exit), ("", 0));
}

#[test]
fn verbose_names_everything() {
    let (text, _) = show(Detail::Verbose, false, &events(), &Ending::Finished);
    for line in ["stored: a (2.00 KiB)\n", "unchanged: b", "x25519mlkem768\n", "skipped: l"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn what_is_skipped_is_listed_up_to_a_bound() {
    let skipped: Vec<Event> =
        (0..150).map(|n| Event::Skipped { name: n.to_string().into_bytes(), why: Skip::Socket }).collect();
    let (text, exit) = show(Detail::Normal, false, &skipped, &Ending::Finished);
    assert_eq!(text.lines().filter(|line| line.ends_with(": a socket")).count(), SKIPPED_LISTED_MAX);
    assert!(text.contains("skipped: 50 more"), "{text}");
    assert_eq!(exit, 0);
}

#[test]
fn an_interruption_says_how_to_go_on() {
    let (text, exit) = show(Detail::Normal, false, &events(), &Ending::Interrupted(Signal::Terminate));
    assert!(text.ends_with("interrupted: run the same command again to continue\n"), "{text}");
    assert_eq!(exit, 143);
    let (text, exit) = show(Detail::Normal, true, &[], &Ending::Interrupted(Signal::Interrupt));
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((exit, summary["exit"].as_u64(), summary["retryable"].as_bool()), (130, Some(130), Some(true)));
}

#[test]
fn an_error_that_ends_it_is_left_to_the_caller() {
    let ending = Ending::Failed(Error::new(ErrorKind::Connection, "connect to nas: refused"));
    let (text, exit) = show(Detail::Normal, false, &[], &ending);
    assert_eq!((text.as_str(), exit), ("", 3));
}

#[test]
fn programs_read_one_object_a_line_and_last_a_summary() {
    let ending = Ending::Failed(Error::new(ErrorKind::Connection, "lost"));
    let (text, exit) = show(Detail::Normal, true, &events(), &ending);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let types: Vec<&str> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["done", "done", "done", "skipped", "failed", "failed", "summary"]);
    assert_eq!(lines[2]["name"], "c\u{1b}[31m");
    assert_eq!(lines[2]["renamed_to"], "c-1\n");
    assert_eq!(lines[4]["error"], "not_found");
    let summary = &lines[6];
    assert_eq!(exit, 3);
    assert_eq!(summary["schema"], 1);
    assert_eq!(summary["exit"], 3);
    assert_eq!(summary["retryable"], true);
    assert_eq!((&summary["stored"], &summary["failed"]), (&json!(2), &json!(2)));
    assert_eq!(summary["error"]["message"], "lost");
    assert!(text.is_ascii() && !text.contains('\x1b'));
}

#[test]
fn a_program_that_could_not_be_told_sees_a_failure() {
    let mut reporter = Reporter::to(Box::new(Closed), "put", Detail::Normal, true);
    reporter.add(&done(b"a", Outcome::Stored, None));
    assert_eq!(reporter.finish(&Ending::Finished), 1);
    let mut reporter = Reporter::to(Box::new(Closed), "put", Detail::Verbose, false);
    reporter.add(&done(b"a", Outcome::Stored, None));
    assert_eq!(reporter.finish(&Ending::Finished), 0);
}

#[test]
fn the_bar_says_what_is_done_and_left() {
    let mut reporter = Reporter::to(Box::new(Paper::default()), "put", Detail::Normal, false);
    events().iter().for_each(|event| reporter.add(event));
    reporter.add(&Event::Progress { item: 1, bytes: 2048, moved: 2048, resent: 0, held: 0 });
    let (bytes, files) = reporter.progress_text(1024.0);
    assert_eq!(bytes, "2.00 KiB of 6.00 KiB+  1.00 KiB/s");
    assert_eq!(files, "files: 5 done, 0+ left, 1 skipped, 2 failed");
    reporter.add(&Event::Found { files: 3, bytes: 0 });
    reporter.add(&Event::FoundAll);
    let (bytes, files) = reporter.progress_text(1024.0);
    assert_eq!(bytes, "2.00 KiB of 6.00 KiB  1.00 KiB/s  4.0 s left");
    assert_eq!(files, "files: 5 done, 2 left, 1 skipped, 2 failed");
}
