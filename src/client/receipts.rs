//! Receipts for stored files: a line each, in a file of this run, and the keys that they are verified with.
//!
//! `DIR/receipts-TIME-RANDOM.jsonl` holds what one run was given. `DIR/known-keys` holds the receipt key of every
//! server that was met, with the pin under which it proved itself; lines are only ever added, so that receipts of a
//! key that the server has replaced can still be verified. Each line of receipts is an object whose `receipt` and
//! `signature` are the server's very bytes; the other fields say the same for people and are compared with them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind as IoKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::{Escaped, RemotePath};
use crate::protocol::{Mtime, Outcome, Receipt, Statement, Stored};
use crate::tls::{Pin, Purpose, VerifyingKey};

/// The name of the file of known keys in a folder of receipts.
pub const KNOWN_KEYS: &str = "known-keys";
/// Bytes of one line that are looked at: a path of 4 KiB in three spellings, and little else.
const LINE_LEN_MAX: u64 = 64 << 10;

/// A folder that receipts are kept in.
#[derive(Debug)]
pub struct Receipts {
    folder: PathBuf,
    server: String,
    /// Made with the first receipt.
    file: Mutex<Option<File>>,
}

#[derive(Serialize, Deserialize)]
struct KnownKey {
    server: String,
    pin: String,
    key: String,
    since: String,
}

/// One receipt, as it is kept.
#[derive(Serialize, Deserialize)]
struct Line {
    server: String,
    path: String,
    root: String,
    size: u64,
    time: String,
    principal: String,
    outcome: String,
    key: String,
    receipt: String,
    signature: String,
}

impl Receipts {
    /// A folder (made, 0700, if it is missing) for what `server` gives.
    ///
    /// # Errors
    /// What making and reading it can fail with.
    pub fn open(folder: &Path, server: String) -> Result<Receipts> {
        let shown = folder.display();
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != IoKind::AlreadyExists => {
                return Err(Error::io(format!("make the folder {shown} for receipts"), error));
            }
            _ => {}
        }
        let receipts = Receipts { folder: folder.to_path_buf(), server, file: Mutex::default() };
        // Now rather than when the first file is stored.
        receipts.append_to(KNOWN_KEYS)?;
        Ok(receipts)
    }

    fn append_to(&self, name: &str) -> Result<File> {
        let path = self.folder.join(name);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        file.while_doing(|| format!("open {}", path.display()))
    }

    /// Records which key signs for the server that proved itself under this pin.
    ///
    /// # Errors
    /// What reading and writing the file can fail with; a line in it that is not one of these.
    pub(crate) fn know(&self, pin: Pin, key: VerifyingKey) -> Result<()> {
        let path = self.folder.join(KNOWN_KEYS);
        let (pin, key) = (pin.to_string(), key.to_string());
        if read_known(&path)?.iter().any(|known| known.pin == pin && known.key == key) {
            return Ok(());
        }
        let since = written(OffsetDateTime::now_utc());
        let line = json(&KnownKey { server: self.server.clone(), pin, key, since });
        let mut file = self.append_to(KNOWN_KEYS)?;
        let write = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
        write.while_doing(|| format!("write {}", path.display()))
    }

    /// Checks that a receipt is by this key and for this file, and keeps it.
    ///
    /// # Errors
    /// `Mismatch` for one that is not; what writing can fail with. The file is stored in both cases.
    pub(crate) fn keep(&self, key: VerifyingKey, path: &RemotePath, stored: &Stored, receipt: &Receipt) -> Result<()> {
        let wrong = |why: &str| {
            Error::new(ErrorKind::Mismatch, format!("{path} is stored, but the server's receipt for it {why}"))
        };
        let statement = check(receipt).map_err(|error| wrong("is wrong").with_source(error))?;
        if VerifyingKey(statement.key.0) != key {
            return Err(wrong("is by another key than the server named"));
        }
        let path_is_right = statement.path == *stored.path.as_ref().unwrap_or(path);
        if !path_is_right || Some(statement.root) != stored.root || statement.size != stored.size {
            return Err(wrong("is for something else"));
        }
        let line = json(&Line::of(&self.server, &statement, receipt));
        let mut file = self.file();
        if file.is_none() {
            let now = OffsetDateTime::now_utc();
            let stamp = written(now).split('.').next().unwrap_or_default().replace([':', '-'], "");
            let random = getrandom::u32().unwrap_or_else(|_| now.nanosecond());
            *file = Some(self.append_to(&format!("receipts-{}Z-{random:08x}.jsonl", stamp.trim_end_matches('Z')))?);
        }
        // One short append to the page cache; who waits for it is the answer that it belongs to.
        let write = file.as_mut().map_or(Ok(()), |file| file.write_all(line.as_bytes()));
        write.while_doing(|| format!("{path} is stored; write its receipt in {}", self.folder.display()))
    }

    /// Makes what was kept durable.
    ///
    /// # Errors
    /// What syncing can fail with.
    pub fn sync(&self) -> Result<()> {
        let sync = || {
            if let Some(file) = &*self.file() {
                file.sync_all()?;
                File::open(&self.folder)?.sync_all()?;
            }
            Ok::<(), std::io::Error>(())
        };
        sync().while_doing(|| format!("make the receipts in {} durable", self.folder.display()))
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        // Nothing between lock and unlock leaves it half changed.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn of(server: &str, statement: &Statement, receipt: &Receipt) -> Line {
        Line {
            server: server.to_owned(),
            path: statement.path.to_string(),
            root: statement.root.to_string(),
            size: statement.size,
            time: time_of(statement.time),
            principal: Escaped(statement.principal.as_bytes()).to_string(),
            outcome: outcome_of(statement.outcome).to_owned(),
            key: VerifyingKey(statement.key.0).to_string(),
            receipt: URL_SAFE_NO_PAD.encode(&receipt.statement),
            signature: URL_SAFE_NO_PAD.encode(&receipt.signature),
        }
    }
}

/// What a receipt says, if the key that it names has signed it.
///
/// # Errors
/// `Mismatch` when it has not, or the statement cannot be read.
pub fn check(receipt: &Receipt) -> Result<Statement> {
    let statement = Statement::from_bytes(&receipt.statement)
        .map_err(|error| Error::new(ErrorKind::Mismatch, "it cannot be read").with_source(error))?;
    if VerifyingKey(statement.key.0).verify(Purpose::Receipt, &receipt.statement, &receipt.signature) {
        Ok(statement)
    } else {
        Err(Error::new(ErrorKind::Mismatch, "its signature is wrong"))
    }
}

/// How a statement's outcome is written.
#[must_use]
pub fn outcome_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Stored => "stored",
        Outcome::Unchanged => "unchanged",
        Outcome::Skipped => "skipped",
    }
}

/// How a statement's time is written.
#[must_use]
pub fn time_of(time: Mtime) -> String {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos).map_or_else(|_| time.seconds.to_string(), written)
}

fn written(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.unix_timestamp().to_string())
}

fn json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("texts and numbers can always be written") + "\n"
}

/// The keys that a folder of receipts knows; none where there is no such file.
///
/// # Errors
/// What reading it can fail with, and a line that is not one of these.
pub fn known_keys(folder: &Path) -> Result<Vec<VerifyingKey>> {
    let path = folder.join(KNOWN_KEYS);
    let known = read_known(&path)?;
    known.iter().map(|known| known.key.parse().map_err(|error: Error| error.context(path.display()))).collect()
}

fn read_known(path: &Path) -> Result<Vec<KnownKey>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == IoKind::NotFound => return Ok(Vec::new()),
        text => text.while_doing(|| format!("read {}", path.display()))?,
    };
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| {
            serde_json::from_str(line).map_err(|_| {
                Error::new(ErrorKind::Usage, format!("{}: a line is not one of known keys", path.display()))
            })
        })
        .collect()
}

/// Verifies every receipt of a file by one of these keys, without a server. `tell` is called for each with the number
/// of its line, and what it says or why it does not hold.
///
/// # Errors
/// What reading the file can fail with.
pub fn verify_file(
    path: &Path,
    keys: &[VerifyingKey],
    mut tell: impl FnMut(usize, Result<Statement>) -> Result<()>,
) -> Result<()> {
    let reading = || format!("read {}", path.display());
    let mut reader = BufReader::new(File::open(path).while_doing(reading)?);
    let mut number = 0;
    loop {
        let mut line = Vec::new();
        let len = std::io::Read::take(&mut reader, LINE_LEN_MAX).read_until(b'\n', &mut line).while_doing(reading)?;
        if len == 0 {
            return Ok(());
        }
        number += 1;
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        tell(number, verify_line(text, keys))?;
    }
}

fn verify_line(text: &[u8], keys: &[VerifyingKey]) -> Result<Statement> {
    let wrong = |why: &str| Error::new(ErrorKind::Mismatch, why);
    let line: Line = serde_json::from_slice(text).map_err(|_| wrong("this is not a receipt"))?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong("this is not a receipt"));
    let receipt = Receipt { statement: decode(&line.receipt)?, signature: decode(&line.signature)? };
    let statement = check(&receipt)?;
    let key = VerifyingKey(statement.key.0);
    if !keys.contains(&key) {
        return Err(wrong(&format!("its key {key} is not known here: give it with --key if you trust it")));
    }
    if json(&Line::of(&line.server, &statement, &receipt)) != json(&line) {
        return Err(wrong("what it shows is not what was signed"));
    }
    Ok(statement)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Root;
    use crate::protocol::Bytes32;
    use crate::tls::SigningKey;

    #[test]
    fn only_the_servers_receipt_for_this_very_file_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let receipts = Receipts::open(&folder.path().join("receipts"), "nas:7443".into()).unwrap();
        let (key, other) = (SigningKey::generate().unwrap().0, SigningKey::generate().unwrap().0);
        let path = RemotePath::parse(b"a/b").unwrap();
        let root = Root::of(b"abc");
        let stored = Stored { outcome: Outcome::Stored, root: Some(root), size: 3, path: None, xattrs_lost: None };
        let statement = Statement {
            root,
            size: 3,
            path: path.clone(),
            principal: "alice".into(),
            principal_key: None,
            time: Mtime::default(),
            outcome: Outcome::Stored,
            key: Bytes32(key.public().0),
        };
        let sign = |statement: &Statement, key: &SigningKey, purpose: Purpose| {
            let statement = statement.to_bytes();
            let signature = key.sign(purpose, &statement).to_vec();
            Receipt { statement, signature }
        };
        let right = sign(&statement, &key, Purpose::Receipt);
        receipts.keep(key.public(), &path, &stored, &right).unwrap();
        let elsewhere = RemotePath::parse(b"a/b (1)").unwrap();
        let renamed = Stored { path: Some(elsewhere.clone()), ..stored.clone() };
        let of_elsewhere = sign(&Statement { path: elsewhere, ..statement.clone() }, &key, Purpose::Receipt);
        receipts.keep(key.public(), &path, &renamed, &of_elsewhere).unwrap();
        for (what, stored, receipt) in [
            ("another key", &stored, sign(&statement, &other, Purpose::Receipt)),
            ("another purpose", &stored, sign(&statement, &key, Purpose::AuditHead)),
            ("another name", &stored, of_elsewhere),
            ("the name that was asked for", &renamed, right),
            ("another size", &stored, sign(&Statement { size: 4, ..statement.clone() }, &key, Purpose::Receipt)),
            ("another root", &stored, {
                sign(&Statement { root: Root::of(b"x"), ..statement.clone() }, &key, Purpose::Receipt)
            }),
            ("another key named", &stored, {
                let key_of_other = Bytes32(other.public().0);
                sign(&Statement { key: key_of_other, ..statement.clone() }, &other, Purpose::Receipt)
            }),
            ("no statement", &stored, Receipt { statement: vec![0xa0], signature: vec![0; 64] }),
        ] {
            let error = receipts.keep(key.public(), &path, stored, &receipt).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}");
        }
        let mut files = std::fs::read_dir(folder.path().join("receipts")).unwrap().map(|entry| entry.unwrap().path());
        let file = files.find(|path| path.extension().is_some()).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap().lines().count(), 2);
    }
}
