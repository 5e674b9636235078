//! `sealift scrub`: looks through a served directory for files that rotted.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::cli::args::ScrubArgs;
use crate::cli::output::JSON_SCHEMA;
use crate::cli::signals::{Signal, Signals};
use crate::cli::{after_output, format, print_error};
use crate::client::event::worse;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::{Escaped, RemotePath};
use crate::server::{ScrubOptions, Told, scrub};
use crate::storage::{Condition, Store};

/// How often the bar is drawn, a second.
const DRAWS_PER_SECOND: u8 = 5;

/// Runs the command; the answer is the exit code.
///
/// # Errors
/// What is wrong with its arguments, or keeps everything from being looked at.
pub(super) fn run(args: &ScrubArgs) -> Result<u8> {
    let below = match &args.path {
        Some(path) => RemotePath::parse(path.as_encoded_bytes())
            .map_err(|error| Error::new(ErrorKind::Usage, format!("--path {}", shown(args))).with_source(error))?,
        None => RemotePath::root(),
    };
    let store = Store::open_to_look(&args.root).map_err(|error| error.with_kind(ErrorKind::Usage))?;
    // Who else uses the disk goes first. Where that is not allowed, the rate alone is gentle.
    let _ = rustix::process::setpriority_process(None, 19);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .while_doing(|| "start the runtime".to_owned())?;
    let options = ScrubOptions { below, rate: args.rate };
    let stop = Arc::new(AtomicBool::new(false));
    let (asked, mut report) = (Arc::clone(&stop), Report::new(args));
    let (mut report, ended, signal) = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut work = tokio::task::spawn_blocking(move || {
            let ended = scrub(&store, &options, &asked, &mut |told| {
                if !report.add(told) {
                    // Nobody reads it any more.
                    asked.store(true, Ordering::Relaxed);
                }
            });
            (report, ended)
        });
        let mut signal = None;
        let done = tokio::select! {
            done = &mut work => done,
            which = signals.next() => {
                signal = Some(which);
                stop.store(true, Ordering::Relaxed);
                work.await
            }
        };
        let (report, ended) =
            done.map_err(|panic| Error::new(ErrorKind::Internal, "looking at files failed").with_source(panic))?;
        Ok::<_, Error>((report, ended, signal))
    })?;
    if let Err(error) = ended {
        report.clear();
        print_error(&error);
        report.counts.exit = worse(report.counts.exit, error.kind().exit_code());
    }
    report.finish(signal)
}

fn shown(args: &ScrubArgs) -> String {
    args.path.as_ref().map(|path| Escaped(path.as_encoded_bytes()).to_string()).unwrap_or_default()
}

#[derive(Default)]
struct Counts {
    intact: u64,
    touched: u64,
    misread: u64,
    rotten: u64,
    changed: u64,
    unrecorded: u64,
    unreadable: u64,
    /// Bytes that were read.
    bytes: u64,
    exit: u8,
}

impl Counts {
    fn files(&self) -> u64 {
        self.intact + self.rotten + self.changed + self.unrecorded
    }
}

/// Shows what is found, and adds it up.
struct Report {
    json: bool,
    quiet: bool,
    verbose: bool,
    bar: Option<ProgressBar>,
    counts: Counts,
    begun: Instant,
    drawn: Instant,
    failed: Option<Error>,
}

impl Report {
    fn new(args: &ScrubArgs) -> Report {
        let bar = (!args.json && !args.quiet && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
            bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is well-formed"));
            bar
        });
        let begun = Instant::now();
        let (json, quiet, verbose) = (args.json, args.quiet, args.verbose);
        Report { json, quiet, verbose, bar, counts: Counts::default(), begun, drawn: begun, failed: None }
    }

    /// Adds what was told; tells whether anybody still reads.
    fn add(&mut self, told: Told) -> bool {
        let is_heard = match told {
            Told::Read(bytes) => {
                self.counts.bytes += bytes;
                true
            }
            Told::File { path, size, condition, was_misread } => self.file(&path, size, condition, was_misread),
            Told::Failed { path, error } => {
                self.counts.unreadable += 1;
                self.counts.exit = worse(self.counts.exit, ErrorKind::Io.exit_code());
                let details = [("message", json!(error.chain()))];
                self.tell("unreadable", &path, &error.chain(), details)
            }
        };
        if self.drawn.elapsed() >= Duration::from_secs(1) / u32::from(DRAWS_PER_SECOND) {
            self.drawn = Instant::now();
            if let Some(bar) = &self.bar {
                let time = self.begun.elapsed();
                let (files, read) = (self.counts.files(), format::size(self.counts.bytes));
                let mut text = format!("{files} files, {read} read, {}", format::rate(self.counts.bytes, time));
                if self.counts.rotten > 0 {
                    text.push_str(&format!(", {} rotten", self.counts.rotten));
                }
                bar.set_message(text);
                bar.tick();
            }
        }
        is_heard
    }

    fn file(&mut self, path: &RemotePath, size: u64, condition: Condition, was_misread: bool) -> bool {
        match condition {
            Condition::Intact | Condition::Touched => {
                self.counts.intact += 1;
                self.counts.touched += u64::from(condition == Condition::Touched);
                if was_misread {
                    self.counts.misread += 1;
                    self.counts.exit = worse(self.counts.exit, ErrorKind::Io.exit_code());
                    let why = "the disk read it wrongly once and rightly the second time: mind memory and cables";
                    return self.tell("misread", path, why, [("size", json!(size))]);
                }
                !self.verbose || self.tell("intact", path, "", [("size", json!(size))])
            }
            Condition::Rotten { recorded, found } => {
                self.counts.rotten += 1;
                self.counts.exit = worse(self.counts.exit, ErrorKind::Mismatch.exit_code());
                let why = format!(
                    "its content is not what was stored, and its size and time say that nobody changed it (stored: {recorded}, now: {found})"
                );
                let details = [
                    ("size", json!(size)),
                    ("recorded_b3", json!(recorded.to_string())),
                    ("b3", json!(found.to_string())),
                ];
                self.tell("rotten", path, &why, details)
            }
            Condition::Changed => {
                self.counts.changed += 1;
                self.quiet
                    || self.tell("changed", path, "somebody changed it after it was stored", [("size", json!(size))])
            }
            Condition::Unrecorded => {
                self.counts.unrecorded += 1;
                self.quiet || !(self.verbose || self.json) || self.tell("unrecorded", path, "", [("size", json!(size))])
            }
        }
    }

    /// Prints one finding to standard output; tells whether anybody still reads.
    fn tell<const N: usize>(&mut self, kind: &str, path: &RemotePath, why: &str, details: [(&str, Value); N]) -> bool {
        let text = if self.json {
            let mut object = Map::new();
            object.insert("type".to_owned(), json!(kind));
            format::insert_name(&mut object, "name", &path.to_bytes());
            object.extend(details.into_iter().map(|(key, value)| (key.to_owned(), value)));
            format::json_line(&Value::Object(object))
        } else if why.is_empty() {
            format!("{kind}: {path}\n")
        } else {
            format!("{kind}: {path}: {why}\n")
        };
        self.print(&text)
    }

    fn print(&mut self, text: &str) -> bool {
        let write = || {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        };
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        match after_output(written) {
            Ok(heard) => heard.is_continue(),
            Err(error) => {
                self.failed.get_or_insert(error);
                false
            }
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn finish(mut self, signal: Option<Signal>) -> Result<u8> {
        self.clear();
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let counts = &self.counts;
        let exit = signal.map_or(counts.exit, Signal::exit_code);
        if self.json {
            let object = json!({
                "type": "summary", "schema": JSON_SCHEMA, "command": "scrub", "exit": exit,
                "retryable": signal.is_some(), "files": counts.files(), "intact": counts.intact,
                "touched": counts.touched, "misread": counts.misread, "rotten": counts.rotten,
                "changed": counts.changed, "unrecorded": counts.unrecorded, "unreadable": counts.unreadable,
                "bytes": counts.bytes, "seconds": self.begun.elapsed().as_secs_f64(),
            });
            self.print(&format::json_line(&object));
            return Ok(exit);
        }
        if !self.quiet {
            let mut parts = vec![format!("{} files: {} intact", counts.files(), counts.intact)];
            for (count, what) in [
                (counts.rotten, "rotten"),
                (counts.changed, "changed after they were stored"),
                (counts.unrecorded, "without a record"),
                (counts.unreadable, "unreadable"),
                (counts.misread, "read wrongly once"),
            ] {
                if count > 0 {
                    parts.push(format!("{count} {what}"));
                }
            }
            let time = self.begun.elapsed();
            let line =
                format!("{}; read {} in {}", parts.join(", "), format::size(counts.bytes), format::duration(time));
            // Standard error is where people look; when it is closed there is nobody to tell.
            let _ = writeln!(stderr(), "{line}");
            if signal.is_some() {
                let _ = writeln!(stderr(), "interrupted: what was not looked at is not counted");
            }
        }
        Ok(exit)
    }
}
