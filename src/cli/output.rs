//! Shows what a transfer tells: bars on a terminal, lines elsewhere, JSON on request, and a summary at the end.
//!
//! A [`Reporter`] runs on a thread of its own, so that a terminal that is slow or stopped never holds up data. All
//! that comes from file names or peers is escaped. What is kept is bounded: counters, and the first few skipped names.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::cli::format;
use crate::cli::screen::Screen;
use crate::cli::signals::Signal;
use crate::client::event::{EVENTS_MAX, Event, ItemKind, Outcome, Summary};
use crate::client::stalls::{Limit, Waited};
use crate::error::{Error, ErrorKind};
use crate::path::Escaped;

/// How often bars are drawn, a second.
const DRAWS_PER_SECOND: u8 = 10;

/// The time between two drawings.
const DRAW_INTERVAL: Duration = Duration::from_millis(1000 / DRAWS_PER_SECOND as u64);
/// Events that come at once when there are many, and how long the next are then left to gather.
const BUSY_COUNT: usize = 32;
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// How often progress is told in JSON.
const JSON_PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Skipped names that the summary lists; a slot is at most 4 KiB. The others are counted.
const SKIPPED_LISTED_MAX: usize = 100;

/// Rules that the summary lists with what they left out. JSON has them all.
const RULES_LISTED_MAX: usize = 20;

/// The version of what `--json` prints. New keys and types may come at any time; a changed meaning changes it.
pub(super) const JSON_SCHEMA: u32 = 1;

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Failures only.
    Quiet,
    /// Failures, bars on a terminal, and the summary.
    Normal,
    /// Also every name, and what was negotiated.
    Verbose,
}

/// Who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A person, on standard error.
    Person,
    /// A program, on standard output.
    Program,
    /// A program, on standard error, because standard output carries data.
    ProgramBesideData,
}

/// How the command ended.
#[derive(Debug)]
pub enum Ending {
    /// It went through everything.
    Finished,
    /// Something ended it.
    Failed(Error),
    /// A signal ended it.
    Interrupted(Signal),
}

/// Wakes the thread that shows.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Shows events and adds them up.
pub struct Reporter {
    command: &'static str,
    detail: Detail,
    json: bool,
    out: Box<dyn Write + Send>,
    /// Whether what could not be written matters: programs rely on it, people have gone away.
    out_failed: Option<io::Error>,
    bar: Option<ProgressBar>,
    with_bar: ProgressStyle,
    without_bar: ProgressStyle,
    summary: Summary,
    skipped: VecDeque<String>,
    files_found: u64,
    bytes_found: u64,
    bytes_done: u64,
    found_all: bool,
    /// Whether something was only planned.
    is_dry_run: bool,
    /// Streams of which nobody knows how long they are.
    endless: u64,
    started: Instant,
    drawn: Instant,
}

impl Reporter {
    /// A reporter for one command, to standard error or output.
    #[must_use]
    pub fn new(command: &'static str, detail: Detail, reader: Reader) -> Reporter {
        let out: Box<dyn Write + Send> = match reader {
            Reader::Person | Reader::ProgramBesideData => Box::new(io::stderr()),
            Reader::Program => Box::new(io::stdout()),
        };
        let mut reporter = Reporter::to(out, command, detail, reader != Reader::Person);
        if reader == Reader::Person && detail != Detail::Quiet && Screen::is_there() {
            let target = ProgressDrawTarget::term_like_with_hz(Box::new(Screen::default()), DRAWS_PER_SECOND);
            let bar = ProgressBar::with_draw_target(None, target);
            reporter.bar = Some(bar);
        }
        reporter
    }

    fn to(out: Box<dyn Write + Send>, command: &'static str, detail: Detail, json: bool) -> Reporter {
        let started = Instant::now();
        Reporter {
            command,
            detail,
            json,
            out,
            out_failed: None,
            bar: None,
            with_bar: style("[{bar:24}] {prefix}\n{msg}"),
            without_bar: style("{prefix}\n{msg}"),
            summary: Summary::default(),
            skipped: VecDeque::new(),
            files_found: 0,
            bytes_found: 0,
            bytes_done: 0,
            found_all: false,
            is_dry_run: false,
            endless: 0,
            started,
            drawn: started,
        }
    }

    /// Shows events until their senders are gone. Blocks: it has a thread of its own.
    #[must_use]
    pub fn watch(mut self, mut events: mpsc::Receiver<Event>) -> Reporter {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut batch = Vec::new();
        loop {
            match events.poll_recv_many(&mut context, &mut batch, EVENTS_MAX) {
                // Every sender is gone; an event cannot fail to come.
                Poll::Ready(0) => return self,
                Poll::Ready(count) => {
                    batch.iter().for_each(|event| self.add(event));
                    batch.clear();
                    if count >= BUSY_COUNT {
                        // Each waking costs those who tell; what comes in the meantime waits in the queue.
                        std::thread::sleep(BUSY_PAUSE);
                    }
                }
                // What came last is shown though nothing follows it for long.
                Poll::Pending => {
                    std::thread::park_timeout(DRAW_INTERVAL);
                    self.show_progress();
                }
            }
        }
    }

    /// Shows one event.
    pub fn add(&mut self, event: &Event) {
        self.summary.add(event);
        self.is_dry_run |= matches!(event, Event::Done { outcome: Outcome::Planned | Outcome::PlannedRemoval, .. });
        if let Event::Started { size: None, .. } = event {
            self.endless += 1;
        }
        match event {
            Event::Found { files, bytes } => {
                self.files_found = self.files_found.saturating_add(*files);
                self.bytes_found = self.bytes_found.saturating_add(*bytes);
            }
            Event::FoundAll => self.found_all = true,
            Event::Progress { bytes, .. } => self.bytes_done = self.bytes_done.saturating_add_signed(*bytes),
            _ if self.json => self.add_json(event),
            _ => self.add_human(event),
        }
        self.show_progress();
    }

    /// Ends the bars and writes the summary. The answer is the exit code. An error that ended the command is left for
    /// the caller to print (once, with the errors of commands that have no reporter), except in JSON, where the
    /// summary holds it.
    #[must_use]
    pub fn finish(mut self, ending: &Ending) -> u8 {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Ending::Failed(error) = ending {
            self.summary.add_failure(error.kind());
        }
        if let Ending::Interrupted(signal) = ending {
            self.summary.exit = signal.exit_code();
            self.summary.retryable = true;
        }
        if self.json {
            self.summarize_json(ending);
            if self.out_failed.is_some() && self.summary.exit == 0 {
                self.summary.exit = ErrorKind::Io.exit_code();
            }
        } else if self.detail != Detail::Quiet {
            self.summarize(ending);
        }
        self.summary.exit
    }

    fn add_human(&mut self, event: &Event) {
        let verbose = self.detail == Detail::Verbose;
        let quiet = self.detail == Detail::Quiet;
        match event {
            Event::Done { name, kind, size, outcome, renamed_to, .. } => {
                if let (Outcome::Renamed, Some(new)) = (outcome, renamed_to) {
                    // A name that was not asked for must be told, or nobody finds the file.
                    let line = format!("{}: stored as {}", Escaped(name), Escaped(new));
                    self.line(&line);
                } else if verbose || matches!(outcome, Outcome::Planned | Outcome::PlannedRemoval) && !quiet {
                    let what = match outcome {
                        Outcome::Planned => "would be moved",
                        Outcome::PlannedRemoval => "would be removed",
                        outcome => outcome_name(*outcome),
                    };
                    let is_removal = matches!(outcome, Outcome::Removed | Outcome::PlannedRemoval);
                    let line = match kind {
                        ItemKind::File if is_removal => format!("{what}: {}", Escaped(name)),
                        ItemKind::File => format!("{what}: {} ({})", Escaped(name), format::size(*size)),
                        ItemKind::Directory => format!("{what}: {}/", Escaped(name)),
                        ItemKind::Link => format!("{what}: {} (link)", Escaped(name)),
                    };
                    self.line(&line);
                }
            }
            Event::Failed { name, error, .. } => self.line(&failure(name, error)),
            Event::Differs { name, how } => self.line(&format!("differs: {}: {how}", Escaped(name))),
            Event::Skipped { name, why } => {
                let line = format!("skipped: {}: {why}", Escaped(name));
                if verbose {
                    self.line(&line);
                } else if self.skipped.len() < SKIPPED_LISTED_MAX {
                    self.skipped.push_back(line);
                }
            }
            Event::Retrying { wait, reason } if !quiet => {
                let line = format!("{}; trying again in {}", reason.chain(), format::duration(*wait));
                self.line(&line);
            }
            Event::Warning(text) => self.line(&format!("sealift: warning: {text}")),
            Event::XattrsLost { count, why } => {
                self.line(&format!("sealift: warning: {}", xattrs_lost(*count, *why)));
            }
            Event::Note(text) if verbose => self.line(text),
            Event::Started { .. } | Event::Retrying { .. } | Event::Note(_) | Event::Waited(_) => {}
            Event::Found { .. } | Event::FoundAll | Event::Progress { .. } => {}
            Event::LeftOut { .. } | Event::Unchanged { .. } => {}
        }
    }

    /// Writes a line above the bars.
    fn line(&mut self, text: &str) {
        let out = &mut self.out;
        let mut write = || writeln!(out, "{text}").and_then(|()| out.flush());
        let written = match &self.bar {
            Some(bar) => bar.suspend(&mut write),
            None => write(),
        };
        if let Err(error) = written {
            self.out_failed.get_or_insert(error);
        }
    }

    fn show_progress(&mut self) {
        let is_shown = if self.json { self.detail != Detail::Quiet } else { self.bar.is_some() };
        if !is_shown {
            return;
        }
        let now = Instant::now();
        if self.json {
            if now.duration_since(self.drawn) >= JSON_PROGRESS_INTERVAL {
                self.drawn = now;
                self.json(&json!({
                    "type": "progress",
                    "files_done": self.summary.files_done(),
                    "files_found": self.files_found,
                    "bytes_done": self.bytes_done,
                    "bytes_found": self.bytes_found,
                    "bytes_moved": self.summary.bytes_moved,
                    "found_all": self.found_all,
                }));
            }
        } else if let Some(bar) = &self.bar
            && now.duration_since(self.drawn) >= DRAW_INTERVAL
        {
            self.drawn = now;
            let (bytes, files) = self.progress_text(bar.per_sec());
            // Without a total there is nothing that a bar could show.
            bar.set_style(if self.endless > 0 || self.bytes_found == 0 {
                self.without_bar.clone()
            } else {
                self.with_bar.clone()
            });
            bar.update(|state| {
                state.set_len(self.bytes_found.max(self.bytes_done));
                state.set_pos(self.bytes_done);
            });
            bar.set_prefix(bytes);
            bar.set_message(files);
        }
    }

    /// What is beside the bar and below it; each fits 80 columns.
    fn progress_text(&self, per_second: f64) -> (String, String) {
        let left = self.bytes_found.saturating_sub(self.bytes_done);
        let done = self.summary.files_done() + self.summary.failed + self.summary.differing;
        // While the tree is still being walked, what is left is at least this.
        let more = if self.found_all { "" } else { "+" };
        let mut bytes = format::size(self.bytes_done);
        if self.endless == 0 {
            bytes.push_str(&format!(" of {}{more}", format::size(self.bytes_found.max(self.bytes_done))));
        }
        bytes.push_str(&format!("  {}/s", format::size(per_second.max(0.0) as u64)));
        if self.found_all && self.endless == 0 && per_second >= 1.0 {
            let eta = Duration::from_secs_f64((left as f64 / per_second).min(1e9));
            bytes.push_str(&format!("  {} left", format::duration(eta)));
        }
        let mut files = format!("files: {done} done, {}{more} left", self.files_found.saturating_sub(done));
        let skipped = self.summary.skipped + self.summary.kept;
        if skipped > 0 {
            files.push_str(&format!(", {skipped} skipped"));
        }
        if self.summary.differing > 0 {
            files.push_str(&format!(", {} differ", self.summary.differing));
        }
        if self.summary.failed > 0 {
            files.push_str(&format!(", {} failed", self.summary.failed));
        }
        (bytes, files)
    }

    fn summarize(&mut self, ending: &Ending) {
        let listed = self.skipped.len() as u64;
        while let Some(line) = self.skipped.pop_front() {
            self.line(&line);
        }
        let summary = self.summary.clone();
        if self.detail == Detail::Normal && summary.skipped > listed {
            let rest = summary.skipped - listed;
            self.line(&format!("skipped: {rest} more (--verbose names each)"));
        }
        for (rule, count) in summary.left_out.iter().take(RULES_LISTED_MAX) {
            self.line(&format!("left out by {}: {count}", Escaped(rule.as_bytes())));
        }
        let time = self.started.elapsed();
        let mut parts = Vec::new();
        let mut part = |count: u64, what: &str| {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        };
        part(summary.stored, "stored");
        part(summary.linked, if summary.linked == 1 { "of them a hard link" } else { "of them hard links" });
        part(summary.planned, "would be moved");
        part(summary.unchanged, "unchanged");
        part(summary.equal, "equal");
        part(summary.differing, if summary.differing == 1 { "difference" } else { "differences" });
        part(summary.kept, if summary.kept == 1 { "left as it was" } else { "left as they were" });
        part(summary.removed, if self.is_dry_run { "would be removed" } else { "removed" });
        part(summary.directories, if summary.directories == 1 { "directory" } else { "directories" });
        part(summary.left_out.values().sum(), "left out");
        part(summary.skipped, "skipped");
        part(summary.failed, "failed");
        if parts.is_empty() {
            let whole = matches!(ending, Ending::Finished);
            parts.push(if whole { "nothing to do" } else { "nothing was finished" }.to_owned());
        }
        let moved = summary.bytes_moved;
        let mut line = format!("{} ({})", parts.join(", "), format::size(summary.bytes));
        if moved > 0 {
            line.push_str(&format!(
                "; moved {} in {}, {}",
                format::size(moved),
                format::duration(time),
                format::rate(moved, time)
            ));
            if let Some(limit) = summary.limit(time) {
                line.push_str(&format!("; limited by {limit}"));
            }
        }
        // Without a single item the error that ended the command says all there is to say.
        if !matches!(ending, Ending::Failed(_)) || summary.files_done() + summary.failed + summary.differing > 0 {
            self.line(&line);
        }
        if let Ending::Interrupted(_) = ending {
            self.line("interrupted: run the same command again to continue");
        }
    }

    fn add_json(&mut self, event: &Event) {
        let verbose = self.detail == Detail::Verbose;
        let quiet = self.detail == Detail::Quiet;
        let mut object = Map::new();
        let kind = match event {
            Event::Done { name, kind, size, root, outcome, renamed_to, .. } if !quiet => {
                format::insert_name(&mut object, "name", name);
                object.insert("kind".to_owned(), json!(item_name(*kind)));
                object.insert("outcome".to_owned(), json!(outcome_name(*outcome)));
                object.insert("size".to_owned(), json!(size));
                if let Some(root) = root {
                    object.insert("b3".to_owned(), json!(root.to_string()));
                }
                if let Some(new) = renamed_to {
                    format::insert_name(&mut object, "renamed_to", new);
                }
                "done"
            }
            Event::Started { name, size, .. } if verbose => {
                format::insert_name(&mut object, "name", name);
                object.insert("size".to_owned(), json!(size));
                "started"
            }
            Event::Failed { name, error, .. } => {
                format::insert_name(&mut object, "name", name);
                insert_error(&mut object, error);
                "failed"
            }
            Event::Differs { name, how } => {
                format::insert_name(&mut object, "name", name);
                object.insert("how".to_owned(), json!(how.name()));
                object.insert("message".to_owned(), json!(how.to_string()));
                "differs"
            }
            Event::Skipped { name, why } if !quiet => {
                format::insert_name(&mut object, "name", name);
                object.insert("why".to_owned(), json!(why.to_string()));
                "skipped"
            }
            Event::Retrying { wait, reason } if !quiet => {
                insert_error(&mut object, reason);
                object.insert("wait_seconds".to_owned(), json!(wait.as_secs_f64()));
                "retrying"
            }
            Event::Warning(text) => {
                object.insert("message".to_owned(), json!(text));
                "warning"
            }
            Event::XattrsLost { count, why } => {
                object.insert("message".to_owned(), json!(xattrs_lost(*count, *why)));
                object.insert("count".to_owned(), json!(count));
                object.insert("why".to_owned(), json!(kind_name(*why)));
                "xattrs_lost"
            }
            Event::Note(text) if verbose => {
                object.insert("message".to_owned(), json!(text));
                "note"
            }
            _ => return,
        };
        object.insert("type".to_owned(), json!(kind));
        self.json(&Value::Object(object));
    }

    fn summarize_json(&mut self, ending: &Ending) {
        let summary = &self.summary;
        let mut object = Map::new();
        object.insert("type".to_owned(), json!("summary"));
        object.insert("schema".to_owned(), json!(JSON_SCHEMA));
        object.insert("command".to_owned(), json!(self.command));
        object.insert("exit".to_owned(), json!(summary.exit));
        object.insert("retryable".to_owned(), json!(summary.retryable));
        for (key, count) in [
            ("stored", summary.stored),
            ("renamed", summary.renamed),
            ("linked", summary.linked),
            ("unchanged", summary.unchanged),
            ("kept", summary.kept),
            ("planned", summary.planned),
            ("equal", summary.equal),
            ("differing", summary.differing),
            ("skipped", summary.skipped),
            ("failed", summary.failed),
            ("removed", summary.removed),
            ("directories", summary.directories),
            ("xattrs_lost", summary.xattrs_lost),
            ("bytes", summary.bytes),
            ("bytes_moved", summary.bytes_moved),
            ("bytes_resent", summary.bytes_resent),
            ("bytes_held", summary.bytes_held),
            ("retries", summary.retries),
        ] {
            object.insert(key.to_owned(), json!(count));
        }
        let left_out: Map<String, Value> =
            summary.left_out.iter().map(|(rule, count)| (rule.to_string(), json!(count))).collect();
        object.insert("left_out".to_owned(), Value::Object(left_out));
        let time = self.started.elapsed();
        object.insert("seconds".to_owned(), json!(time.as_secs_f64()));
        object.insert("limited_by".to_owned(), json!(summary.limit(time).map(Limit::word)));
        object.insert("waited".to_owned(), waited_json(&summary.waited));
        if let Ending::Failed(error) = ending {
            let mut detail = Map::new();
            insert_error(&mut detail, error);
            object.insert("error".to_owned(), Value::Object(detail));
        }
        self.json(&Value::Object(object));
    }

    fn json(&mut self, value: &Value) {
        let line = format::json_line(value);
        let written = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush());
        if let Err(error) = written {
            self.out_failed.get_or_insert(error);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is well-formed")
}

/// Which extended attributes were not kept, and why.
fn xattrs_lost(count: u64, why: ErrorKind) -> String {
    let whose = if count == 1 { "1 file or directory".to_owned() } else { format!("{count} files and directories") };
    let why = match why {
        ErrorKind::Unsupported => "the file system of the destination keeps none",
        ErrorKind::NoSpace => "the file system of the destination has no room for so many",
        _ => "they may not be set at the destination",
    };
    format!("extended attributes of {whose} were not all kept, because {why}; everything else is there")
}

/// `sealift: NAME: …`, without the name when the message has it already.
fn failure(name: &[u8], error: &Error) -> String {
    let chain = error.chain();
    let name = Escaped(name).to_string();
    if chain.contains(&name) { format!("sealift: {chain}") } else { format!("sealift: {name}: {chain}") }
}

/// What a transfer waited for and worked at, in seconds, each added up over all that ran at once.
fn waited_json(waited: &Waited) -> Value {
    let seconds = |time: Duration| json!((time.as_secs_f64() * 1e6).round() / 1e6);
    json!({
        "source": seconds(waited.source),
        "room": seconds(waited.room),
        "window": seconds(waited.window),
        "answer": seconds(waited.answer),
        "content": seconds(waited.content),
        "saving": seconds(waited.saving),
        "lost": seconds(waited.lost),
        "reading": seconds(waited.reading),
        "hashing": seconds(waited.hashing),
        "writing": seconds(waited.writing),
        "driving": seconds(waited.driving),
        "own_limit": seconds(waited.own_limit),
        "link_busy": seconds(waited.link_busy),
        "link_held": seconds(waited.link_held),
        "link_rate": waited.delivery_rate,
        "server": waited.server.map(|server| json!({
            "disk": seconds(server.disk),
            "processor": seconds(server.processor),
            "limit": seconds(server.limit),
            "sending": seconds(server.sending),
            "held": seconds(server.held),
        })),
    })
}

fn insert_error(object: &mut Map<String, Value>, error: &Error) {
    object.insert("error".to_owned(), json!(kind_name(error.kind())));
    object.insert("message".to_owned(), json!(error.chain()));
    object.insert("exit".to_owned(), json!(error.kind().exit_code()));
    object.insert("retryable".to_owned(), json!(error.kind().is_retryable()));
}

/// The kind in snake case: `not_found`.
fn kind_name(kind: ErrorKind) -> String {
    let mut name = String::new();
    for c in format!("{kind:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Stored => "stored",
        Outcome::Linked => "linked",
        Outcome::Unchanged => "unchanged",
        Outcome::Kept => "kept",
        Outcome::Renamed => "renamed",
        Outcome::Planned => "planned",
        Outcome::Equal => "equal",
        Outcome::Removed => "removed",
        Outcome::PlannedRemoval => "planned_removal",
    }
}

fn item_name(kind: ItemKind) -> &'static str {
    match kind {
        ItemKind::File => "file",
        ItemKind::Directory => "directory",
        ItemKind::Link => "link",
    }
}

#[cfg(test)]
mod tests;
