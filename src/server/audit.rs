//! The audit log of a running server: what was asked, by whom, and what became of it, before the answer goes out.
//!
//! A change is written down before it is tried (`asked`) and again when it has ended. While the log cannot be written,
//! or was written and could not be synced, no change is taken: `Audit::ask` fails. What had begun before is written down as soon as that works again; of
//! what was read meanwhile only the number is kept (`gap`). Lines reach the file with the answer, and the disk within a second
//! ([`limits::AUDIT_SYNC_INTERVAL`]).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::{error, info};

use super::shared::Who;
use crate::access::Principal;
use crate::audit::{Chain, Entry, hash, hex};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::path::RemotePath;
use crate::protocol::{Outcome, Stored};
use crate::storage::Append;
use crate::tls::SigningKey;

/// An audit log that is open. Clones write to the same.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    path: PathBuf,
    key: Arc<SigningKey>,
    state: Mutex<State>,
}

struct State {
    file: Append,
    chain: Chain,
    /// What has happened and could not be written.
    waiting: Vec<Entry>,
    /// Lines that were given up.
    lost: u64,
    /// Since when it cannot be written.
    failing: Option<Instant>,
    /// Whether there are lines that are not known to be on the disk.
    is_dirty: bool,
    /// The disk has refused lines that are in the file: they are to be written again, and synced, before others.
    is_refused: bool,
    /// Where the last head was written.
    signed: u64,
}

impl Audit {
    /// Opens a log, goes on with its chain, and writes that the server starts.
    ///
    /// # Errors
    /// `Usage` when the file is not an audit log, or another process writes it; what opening and writing can fail
    /// with.
    pub fn open(path: &Path, key: Arc<SigningKey>) -> Result<Audit> {
        let (file, tail) = Append::open(path)?;
        let chain = match &tail.line {
            None => Chain::default(),
            Some(line) => Chain::after(line).ok_or_else(|| {
                let message = format!("the last line of {} is not one of an audit log", path.display());
                Error::new(ErrorKind::Usage, message)
            })?,
        };
        let (waiting, failing) = (Vec::new(), None);
        let state = State { file, chain, waiting, lost: 0, failing, is_dirty: true, is_refused: false, signed: 0 };
        let audit = Audit(Arc::new(Inner { path: path.to_path_buf(), key, state: Mutex::new(state) }));
        let mut start = Entry { key: Some(audit.0.key.public().to_string()), ..Entry::new("start") };
        let mut state = audit.lock();
        if !tail.torn.is_empty() {
            start.torn = Some(hex(&hash(&tail.torn)));
            state.file.add(b"\n").map_err(|error| audit.failed(error))?;
        }
        audit.write(&mut state, &[start])?;
        state.file.sync().and_then(|()| state.file.sync_directory()).map_err(|error| audit.failed(error))?;
        drop(state);
        Ok(audit)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Chain and file change together, after the last thing that can fail.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: std::io::Error) -> Error {
        let message = format!(
            "the audit log {} cannot be written, and no change is made without it",
            crate::path::Escaped(self.0.path.as_os_str().as_encoded_bytes())
        );
        Error::new(ErrorKind::Audit, message).with_source(error)
    }

    /// Writes down changes that are about to be tried.
    ///
    /// # Errors
    /// `Audit` when that is not possible: they must not be made.
    pub(super) fn ask(&self, entries: Vec<Entry>) -> Result<()> {
        let mut state = self.lock();
        let written = self.write(&mut state, &entries);
        drop(state);
        written
    }

    /// Writes down what has happened. When that is not possible it is kept for later, as far as there is room.
    pub(super) fn tell(&self, entries: Vec<Entry>) {
        let mut state = self.lock();
        if self.write(&mut state, &entries).is_err() {
            let (changes, reads): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_change);
            let room = limits::AUDIT_WAITING_MAX.saturating_sub(state.waiting.len());
            state.lost += (reads.len() + changes.len().saturating_sub(room)) as u64;
            state.waiting.extend(changes.into_iter().take(room));
        }
    }

    /// It cannot be written. The log of the server says so when that begins.
    fn fails(&self, state: &mut State, error: std::io::Error) -> Error {
        let error = self.failed(error);
        if state.failing.is_none() {
            state.failing = Some(Instant::now());
            error!("{}", error.chain());
        }
        error
    }

    /// Writes what waits and then these, all or nothing.
    fn write(&self, state: &mut State, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() && state.waiting.is_empty() && state.lost == 0 {
            return Ok(());
        }
        let now = now();
        let (mut chain, mut bytes) = (state.chain, Vec::with_capacity(512 * entries.len()));
        for entry in &state.waiting {
            chain.append(&now, entry, &mut bytes);
        }
        if state.lost > 0 {
            let gap = Entry { lines: Some(state.lost), ..Entry::new("gap") };
            chain.append(&now, &gap, &mut bytes);
        }
        for entry in entries {
            chain.append(&now, entry, &mut bytes);
        }
        let added = match state.is_refused {
            true => Err(std::io::Error::other("its disk has refused what was written before")),
            false => state.file.add(&bytes),
        };
        if let Err(error) = added {
            return Err(self.fails(state, error));
        }
        if let Some(since) = state.failing.take() {
            info!("the audit log can be written again, after {} s", since.elapsed().as_secs());
        }
        state.waiting.clear();
        (state.lost, state.chain, state.is_dirty) = (0, chain, true);
        if state.file.size() > limits::AUDIT_FILE_LEN_MAX {
            self.turn_over(state, "size");
        }
        Ok(())
    }

    /// Signs what there is, and goes on in a new file. The old one is kept under its name, `.`, and the number of its
    /// last line. When that is not possible, the old one goes on, and the log says so.
    pub fn rotate(&self) {
        let mut state = self.lock();
        self.turn_over(&mut state, "asked");
    }

    fn turn_over(&self, state: &mut State, why: &str) {
        let now = now();
        let (mut chain, mut bytes) = (state.chain, Vec::new());
        chain.append(&now, &Entry { why: Some(why.to_owned()), ..Entry::new("rotate") }, &mut bytes);
        chain.append_head(&now, &self.0.key, &mut bytes);
        if let Err(error) = state.file.add(&bytes) {
            error!("{}", self.failed(error).chain());
            return;
        }
        (state.chain, state.signed) = (chain, chain.seq);
        if let Err(error) = state.file.sync() {
            (state.is_dirty, state.is_refused) = (true, true);
            self.fails(state, error);
            return;
        }
        if let Err(error) = state.file.turn_over(&format!(".{:012}", chain.seq)) {
            error!("the audit log goes on in the same file: {}", error.chain());
        }
    }

    /// Makes what is written durable. Called every [`limits::AUDIT_SYNC_INTERVAL`].
    pub(super) fn sync(&self) {
        let mut state = self.lock();
        // What waits is tried again even when nobody asks for anything.
        let _ = self.write(&mut state, &[]);
        if !state.is_dirty && !state.is_refused {
            return;
        }
        if state.is_refused
            && let Err(error) = state.file.add_again()
        {
            self.fails(&mut state, error);
            return;
        }
        state.is_dirty = false;
        let (handle, len) = (state.file.handle(), state.file.size());
        drop(state);
        // Without the lock: who writes meanwhile does not wait for the disk.
        let synced = handle.and_then(|handle| handle.sync_data().map(|()| handle));
        let mut state = self.lock();
        match synced {
            Ok(handle) => {
                state.file.made_durable(&handle, len);
                if std::mem::take(&mut state.is_refused) {
                    let _ = self.write(&mut state, &[]);
                }
            }
            Err(error) => {
                (state.is_dirty, state.is_refused) = (true, true);
                self.fails(&mut state, error);
            }
        }
    }

    /// Signs what was written since the last head, if anything was. Called every [`limits::AUDIT_HEAD_INTERVAL`].
    pub(super) fn sign(&self) {
        let mut state = self.lock();
        if state.chain.seq == state.signed {
            return;
        }
        let (mut chain, mut bytes) = (state.chain, Vec::new());
        chain.append_head(&now(), &self.0.key, &mut bytes);
        match state.file.add(&bytes) {
            Ok(()) => (state.chain, state.signed, state.is_dirty) = (chain, chain.seq, true),
            Err(error) => error!("{}", self.failed(error).chain()),
        }
    }

    /// Writes that the server stops, signs, and makes all of it durable.
    pub(super) fn stop(&self) {
        self.tell(vec![Entry::new("stop")]);
        self.sign();
        self.sync();
    }
}

/// Whether an entry tells of something that changed, or may have.
fn is_change(entry: &Entry) -> bool {
    !matches!(entry.event.as_str(), "get" | "hash" | "list" | "stat" | "space" | "invites" | "connect")
}

fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.format(&Rfc3339).unwrap_or_else(|_| now.unix_timestamp().to_string())
}

/// An entry about a request of this client for this name.
pub(super) fn entry(who: &Who, event: &str, path: &RemotePath) -> Entry {
    let (principal, principal_key) = principal(&who.principal);
    Entry {
        connection: Some(who.connection),
        principal: Some(principal),
        principal_key,
        path: Some(path.to_string()),
        ..Entry::new(event)
    }
}

/// Name and key of a principal.
pub(super) fn principal(principal: &Principal) -> (String, Option<String>) {
    let key = match principal {
        Principal::Certified { key, .. } => Some(hex(key)),
        Principal::Invite(_) | Principal::Anonymous => None,
    };
    (crate::path::escape_text(&principal.to_string()), key)
}

/// The entry with how the request ended.
pub(super) fn ended<T>(mut entry: Entry, result: &Result<T>) -> Entry {
    entry.result = Some(
        match result {
            Ok(_) => "done",
            Err(error) => match error.kind() {
                ErrorKind::Rights | ErrorKind::Limit | ErrorKind::Name => "refused",
                _ => "failed",
            },
        }
        .to_owned(),
    );
    // It may quote a name: those are escaped where messages are made.
    entry.why = result.as_ref().err().map(Error::chain);
    entry
}

/// The entry with how something was stored.
pub(super) fn stored(mut entry: Entry, result: &Result<Stored>) -> Entry {
    if let Ok(stored) = result {
        let outcome = match stored.outcome {
            Outcome::Stored => "stored",
            Outcome::Unchanged => "unchanged",
            Outcome::Skipped => "skipped",
        };
        entry.outcome = Some(outcome.to_owned());
        entry.root = stored.root.map(|root| root.to_string());
        entry.size = stored.root.map(|_| stored.size);
        entry.to = stored.path.as_ref().map(RemotePath::to_string);
    }
    ended(entry, result)
}

/// The entry of something that is about to be tried.
pub(super) fn asked(entry: &Entry) -> Entry {
    Entry { result: Some("asked".to_owned()), ..entry.clone() }
}

/// Does what a client asked for, with its entries: one before, for a change, and one after.
///
/// # Errors
/// What doing it fails with; `Audit` when it cannot be written down.
pub(super) fn around<T>(
    audit: Option<&Audit>,
    entry: impl FnOnce() -> Entry,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some(audit) = audit else { return act() };
    let entry = entry();
    if is_change(&entry) {
        audit.ask(vec![asked(&entry)])?;
    }
    let result = act();
    audit.tell(vec![ended(entry, &result)]);
    result
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::audit::Verifier;

    /// A log that was just begun, in a directory of its own.
    fn begin() -> (tempfile::TempDir, PathBuf, Audit) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("audit.jsonl");
        let (key, _) = SigningKey::generate().unwrap();
        let audit = Audit::open(&file, Arc::new(key)).unwrap();
        (folder, file, audit)
    }

    fn lines(file: &Path) -> Vec<String> {
        std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
    }

    /// What of this file is wrong, and up to which line it is signed.
    fn look(audit: &Audit, file: &Path) -> (Vec<String>, u64) {
        let keys = [audit.0.key.public()];
        let mut verifier = Verifier::new(&keys, None);
        for (number, line) in lines(file).iter().enumerate() {
            verifier.line(0, number + 1, line.as_bytes(), true);
        }
        let report = verifier.finish();
        (report.problems.iter().map(|problem| format!("{problem:?}")).collect(), report.signed)
    }

    /// By the clock of the test: a minute passes at once.
    #[tokio::test(start_paused = true)]
    async fn the_head_is_signed_every_minute_when_something_was_written_and_at_rotation() {
        let (_folder, file, audit) = begin();
        let mut upkeep = tokio::task::JoinSet::new();
        upkeep.spawn(super::super::keep_up(audit.clone()));
        let minute = limits::AUDIT_HEAD_INTERVAL;
        audit.tell(vec![Entry::new("stat")]);
        tokio::time::sleep(minute - Duration::from_secs(2)).await;
        assert_eq!(look(&audit, &file), (Vec::new(), 0), "not yet");
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(look(&audit, &file), (Vec::new(), 2), "start, stat, head");
        // Nothing new: nothing to sign.
        tokio::time::sleep(5 * minute).await;
        assert_eq!(lines(&file).len(), 3);
        audit.tell(vec![Entry::new("stat")]);
        tokio::time::sleep(minute + Duration::from_secs(2)).await;
        assert_eq!(look(&audit, &file), (Vec::new(), 4));
        // The end of a file is signed whenever it comes.
        audit.tell(vec![Entry::new("stat")]);
        audit.rotate();
        let old = file.with_file_name(format!("audit.jsonl.{:012}", 8));
        assert_eq!(look(&audit, &old), (Vec::new(), 7), "{:?}", lines(&old));
        assert!(lines(&file).is_empty());
        audit.tell(vec![Entry::new("stat")]);
        tokio::time::sleep(minute + Duration::from_secs(2)).await;
        assert!(lines(&file).last().unwrap().contains("\"event\":\"head\""));
    }

    /// A sync that follows one that failed says nothing of what that one was for.
    #[test]
    fn while_lines_cannot_be_synced_nothing_is_asked_and_they_are_written_again() {
        let (_folder, file, audit) = begin();
        audit.ask(vec![Entry::new("put")]).unwrap();
        // It takes what is written, and cannot be synced.
        let null = std::fs::OpenOptions::new().read(true).append(true).open("/dev/null").unwrap();
        let whole = audit.lock().file.swap(null);
        audit.sync();
        assert_eq!(audit.ask(vec![Entry::new("put")]).unwrap_err().kind(), ErrorKind::Audit);
        audit.tell(vec![Entry::new("remove"), Entry::new("stat")]);
        audit.sync();
        assert!(audit.ask(vec![Entry::new("put")]).is_err(), "nothing can be written again there");
        audit.lock().file.swap(whole);
        assert!(audit.ask(vec![Entry::new("put")]).is_err(), "not before it is synced");
        audit.sync();
        audit.ask(vec![Entry::new("rename")]).unwrap();
        audit.sign();
        let events: Vec<String> = lines(&file)
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(events, ["start", "put", "remove", "gap", "rename", "head"]);
        let problems = look(&audit, &file).0;
        assert!(matches!(&*problems, [gap] if gap.contains("could not write 1 lines")), "{problems:?}");
    }

    /// What clients send as names and words never makes a line of its own, nor is shown as it is.
    #[test]
    fn names_that_would_forge_lines_stay_in_theirs() {
        let (_folder, file, audit) = begin();
        let forged = "x\n{\"seq\":9,\"event\":\"put\",\"result\":\"done\"}";
        let names: [&[u8]; 8] = [
            forged.as_bytes(),
            b"\r\n\0\x1b[2J\x1b]8;;http://x\x07",
            b"\"},{\"event\":\"start\"",
            b"\\u000a\\n\\\"",
            "\u{2028}\u{2029}\u{85}\u{202e}\u{200b}\u{feff}".as_bytes(),
            b"\xff\xfe\xc0\x80\xed\xa0\x80",
            b"head ed25519:AAAA",
            &[b'"'; 255],
        ];
        for name in names {
            // A peer's name is a path or none at all.
            let Ok(path) = RemotePath::from_components([name]) else { continue };
            let failure = Error::new(ErrorKind::Rights, format!("x may not create {path}"));
            let entry = Entry { path: Some(path.to_string()), to: Some(path.to_string()), ..Entry::new("put") };
            audit.tell(vec![ended::<()>(entry, &Err(failure))]);
        }
        audit.sign();
        assert_eq!(look(&audit, &file).0, Vec::<String>::new());
        let text = std::fs::read(&file).unwrap();
        assert!(text.iter().all(|&byte| byte == b'\n' || (b' '..=b'~').contains(&byte)), "only visible ASCII");
        for line in lines(&file) {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(["start", "put", "head"].contains(&line["event"].as_str().unwrap()), "{line}");
        }
        assert!(lines(&file).len() >= 8, "most of them are names");
    }
}
