//! The audit log: what its lines say, how each holds the one before, and how a log is verified.
//!
//! A line is a JSON object. `seq` counts from 1 over all files of a log, `prev` is the BLAKE3 hash of the line before
//! (its bytes, without the line's end; zeros for the first). A `head` line signs number
//! and hash of the line before it, and so all lines before, with its own `time`. A server that starts again after a crash leaves half a line where it is and says in its
//! `start` line what it left (`torn`, the hash of those bytes); the chain goes on from the last whole line.
//!
//! Nothing here looks at a disk: lines come in and go out as bytes.

use serde::{Deserialize, Serialize};

use crate::tls::{Purpose, SigningKey, VerifyingKey};

/// The hash of a line.
pub type Hash = [u8; 32];

/// What happened. Absent fields are left out; names are escaped by who fills them in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What: `start`, `stop`, `rotate`, `head`, `gap`, `connect`, or a request of a client.
    pub event: String,
    /// `asked` (before a change is tried), `done`, `refused` (by rights, limits or names) or `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The number of the connection, as in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    /// The address that it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// By what name the server knows who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// SHA-256 of that one's public key, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal_key: Option<String>,
    /// The name that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The other name: where something was renamed to, or stored instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The hash of the content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// How a change ended: `stored`, `unchanged`, `skipped`, or how many entries it touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why something was refused or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The public key that signs heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The signature of a head, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The hash of the half line before a `start`, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub torn: Option<String>,
    /// How many lines could not be written, for `gap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
}

impl Entry {
    /// An entry that says no more than this yet.
    #[must_use]
    pub fn new(event: &str) -> Entry {
        Entry { event: event.to_owned(), ..Entry::default() }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    seq: u64,
    time: String,
    prev: String,
    #[serde(flatten)]
    entry: Entry,
}

impl Line {
    /// A line exactly as it is written: no other spelling, order or field.
    fn read(bytes: &[u8]) -> Option<Line> {
        let line: Line = serde_json::from_slice(bytes).ok()?;
        (serde_json::to_vec(&line).ok()? == bytes).then_some(line)
    }
}

/// Where a chain is: the number and the hash of its last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The number of the last line; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl std::fmt::Display for Chain {
    /// `SEQ:HASH`, as `--head` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, hex(&self.hash))
    }
}

impl std::str::FromStr for Chain {
    type Err = String;

    fn from_str(text: &str) -> Result<Chain, String> {
        let parsed = text
            .split_once(':')
            .and_then(|(seq, hash)| Some(Chain { seq: seq.parse().ok()?, hash: unhex(hash)?.try_into().ok()? }));
        parsed.ok_or_else(|| "a head is NUMBER:HASH, as `sealift audit verify` prints it".to_owned())
    }
}

impl Chain {
    /// Where a chain is after this line; none for bytes that are not a line of an audit log.
    #[must_use]
    pub fn after(line: &[u8]) -> Option<Chain> {
        let parsed = Line::read(line)?;
        Some(Chain { seq: parsed.seq, hash: hash(line) })
    }

    /// Writes the next line, its end included, to `out`.
    pub fn append(&mut self, time: &str, entry: &Entry, out: &mut Vec<u8>) {
        let start = out.len();
        let seq = self.seq.saturating_add(1);
        let line = Line { seq, time: time.to_owned(), prev: hex(&self.hash), entry: entry.clone() };
        serde_json::to_writer(&mut *out, &line).expect("texts and numbers can always be written to memory");
        *self = Chain { seq, hash: hash(&out[start..]) };
        out.push(b'\n');
    }

    /// Writes a line that signs all those before it.
    pub fn append_head(&mut self, time: &str, key: &SigningKey, out: &mut Vec<u8>) {
        let signature = key.sign(Purpose::AuditHead, &self.to_sign(time));
        let entry =
            Entry { key: Some(key.public().to_string()), signature: Some(hex(&signature)), ..Entry::new("head") };
        self.append(time, &entry, out);
    }

    /// What a head of this time signs: the line before it, and so all before that.
    fn to_sign(self, time: &str) -> Vec<u8> {
        [&self.seq.to_be_bytes()[..], &self.hash, time.as_bytes()].concat()
    }
}

/// The hash of a line's bytes, without its end.
#[must_use]
pub fn hash(line: &[u8]) -> Hash {
    *blake3::hash(line).as_bytes()
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).filter(|_| !c.is_ascii_uppercase());
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()).collect()
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In which of the files, counted from 0.
    pub file: usize,
    /// Which line of it, counted from 1.
    pub line: usize,
    /// What.
    pub what: String,
}

/// What a log looks like.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything that is wrong, in the order of the log.
    pub problems: Vec<Problem>,
    /// Lines that were looked at.
    pub lines: u64,
    /// Where the log begins: 1, unless older files are left out.
    pub first: u64,
    /// Where it ends.
    pub end: Chain,
    /// The last line that a verified head covers; 0: none does.
    pub signed: u64,
    /// Whether the head that was asked for is in it.
    pub head_found: bool,
    /// The keys that heads were verified with.
    pub keys: Vec<VerifyingKey>,
}

/// Verifies a log, line by line.
///
/// A line that was changed breaks the link to it, which the next line holds; if what it holds of the line before was
/// changed too, both links are broken. So a broken link names its line only when the next link is known.
pub struct Verifier<'a> {
    keys: &'a [VerifyingKey],
    head: Option<Chain>,
    report: Report,
    last: Chain,
    last_place: Place,
    /// A broken link: the places of the two lines.
    suspect: Option<(Place, Place)>,
    /// Bytes before this line that are none: what they are when the next line does not explain them.
    torn: Option<(Place, Hash)>,
}

/// A file, counted from 0, and a line of it, counted from 1.
type Place = (usize, usize);

impl<'a> Verifier<'a> {
    /// A verifier that takes signatures of these keys (of those that the log names, when there are none), and looks
    /// for a head that is known to have been there.
    #[must_use]
    pub fn new(keys: &'a [VerifyingKey], head: Option<Chain>) -> Verifier<'a> {
        let (last, last_place) = (Chain::default(), (0, 0));
        Verifier { keys, head, report: Report::default(), last, last_place, suspect: None, torn: None }
    }

    /// Takes the next line, without its end; `whole` tells whether it had one.
    pub fn line(&mut self, file: usize, number: usize, bytes: &[u8], whole: bool) {
        let place = (file, number);
        self.report.lines += 1;
        let Some(line) = whole.then(|| Line::read(bytes)).flatten() else {
            self.report_torn();
            self.torn = Some((place, hash(bytes)));
            return;
        };
        let explained = line.entry.torn.as_deref().and_then(unhash);
        // A line that can't be read any more counts as one, unless it is what a crash left.
        let unread = match self.torn {
            Some((_, left)) if Some(left) == explained => {
                self.torn = None;
                false
            }
            torn => torn.is_some(),
        };
        self.report_torn();
        let prev = unhash(&line.prev);
        if self.last_place.1 == 0 {
            self.report.first = line.seq;
            // The one that begins a chain, or one of a log whose older files are left out.
            if (line.seq == 1) != (prev == Some(Hash::default())) || line.seq == 0 {
                self.problem(place, "the first line does not begin a chain");
            }
        } else {
            self.check_link(place, line.seq, prev, unread);
        }
        if line.entry.event == "head" || line.entry.signature.is_some() {
            self.check_head(place, &line, prev);
        }
        if line.entry.event == "gap" {
            let lines = line.entry.lines.unwrap_or_default();
            self.problem(place, &format!("the server could not write {lines} lines before this one"));
        }
        self.last = Chain { seq: line.seq, hash: hash(bytes) };
        self.last_place = place;
        self.report.head_found |= self.head == Some(self.last);
    }

    fn check_link(&mut self, place: Place, seq: u64, prev: Option<Hash>, unread: bool) {
        let expected = self.last.seq.saturating_add(1 + u64::from(unread));
        let suspect = self.suspect.take();
        let is_broken = seq == expected && !unread && prev != Some(self.last.hash);
        match suspect {
            Some((_, changed)) if is_broken => return self.problem(changed, "this line was changed"),
            Some((changed, _)) => self.problem(changed, "this line was changed"),
            None => {}
        }
        if seq > expected {
            self.problem(place, &format!("lines {expected} to {} of the log are missing before this one", seq - 1));
        } else if seq < expected {
            self.problem(
                place,
                &format!("line {seq} of the log stands where line {expected} should: moved or repeated"),
            );
        } else if is_broken {
            self.suspect = Some((self.last_place, place));
        }
    }

    /// Everything that was found.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.report_torn();
        if let Some((first, second)) = self.suspect.take() {
            self.problem(first, "this line was changed, or the next one");
            self.problem(second, "this line was changed, or the one before");
        }
        self.report.end = self.last;
        self.report.problems.sort_by_key(|problem| (problem.file, problem.line));
        self.report
    }

    fn report_torn(&mut self) {
        if let Some((place, _)) = self.torn.take() {
            self.problem(place, "this is not a line of an audit log, or half of one");
        }
    }

    fn check_head(&mut self, place: Place, line: &Line, prev: Option<Hash>) {
        let key = line.entry.key.as_deref().and_then(|key| key.parse::<VerifyingKey>().ok());
        let signature = line.entry.signature.as_deref().and_then(unhex);
        let (Some(key), Some(signature), Some(prev)) = (key, signature, prev) else {
            return self.problem(place, "this head is not signed");
        };
        if line.entry.event != "head" {
            return self.problem(place, "only heads are signed");
        }
        if !self.keys.is_empty() && !self.keys.contains(&key) {
            return self.problem(place, &format!("this head is signed by another key, {key}"));
        }
        let signed = Chain { seq: line.seq.saturating_sub(1), hash: prev };
        if !key.verify(Purpose::AuditHead, &signed.to_sign(&line.time), &signature) {
            return self.problem(place, "the signature of this head is wrong: it, or the log before it, was changed");
        }
        if !self.report.keys.contains(&key) {
            self.report.keys.push(key);
        }
        self.report.signed = signed.seq;
    }

    fn problem(&mut self, (file, line): Place, what: &str) {
        self.report.problems.push(Problem { file, line, what: what.to_owned() });
    }
}

fn unhash(text: &str) -> Option<Hash> {
    unhex(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-01T00:00:00Z";

    /// A log of 12 lines with two heads, and the lines of it.
    fn log() -> (SigningKey, Vec<Vec<u8>>) {
        let key = SigningKey::generate().unwrap().0;
        let (mut chain, mut out) = (Chain::default(), Vec::new());
        for index in 0..10 {
            chain.append(TIME, &Entry { path: Some(format!("name {index}")), ..Entry::new("put") }, &mut out);
            if index % 5 == 4 {
                chain.append_head(TIME, &key, &mut out);
            }
        }
        let lines: Vec<Vec<u8>> = out.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
        assert_eq!(lines.len(), 13);
        (key, lines[..12].to_vec())
    }

    fn verify(lines: &[Vec<u8>], keys: &[VerifyingKey], head: Option<Chain>) -> Report {
        let mut verifier = Verifier::new(keys, head);
        for (index, line) in lines.iter().enumerate() {
            verifier.line(0, index + 1, line, true);
        }
        verifier.finish()
    }

    #[test]
    fn a_log_as_it_was_written_holds() {
        let (key, lines) = log();
        let report = verify(&lines, &[key.public()], None);
        assert_eq!(report.problems, []);
        assert_eq!((report.lines, report.first, report.signed, report.end.seq), (12, 1, 11, 12));
        let end = Chain::after(&lines[11]).unwrap();
        assert_eq!(report.end, end);
        assert_eq!(end.to_string().parse::<Chain>().unwrap(), end);
        // Without its older part too: that is told by where it begins.
        let report = verify(&lines[4..], &[key.public()], Some(end));
        assert_eq!((report.problems.len(), report.first, report.head_found), (0, 5, true));
        let other = SigningKey::generate().unwrap().0.public();
        assert_eq!(verify(&lines, &[other], None).problems.len(), 2);
    }

    #[test]
    fn every_changed_bit_is_found_and_its_line_named() {
        let (key, lines) = log();
        for index in 0..lines.len() {
            for position in 0..lines[index].len() {
                let mut changed = lines.clone();
                changed[index][position] ^= 1 << (position % 7);
                let report = verify(&changed, &[key.public()], None);
                let named: Vec<usize> = report.problems.iter().map(|problem| problem.line).collect();
                assert!(named.contains(&(index + 1)), "{index} {position}: {:?}", report.problems);
            }
        }
    }

    #[test]
    fn missing_repeated_and_moved_lines_are_found() {
        let (key, lines) = log();
        let keys = [key.public()];
        for index in 1..lines.len() - 1 {
            let mut missing = lines.clone();
            missing.remove(index);
            let problems = verify(&missing, &keys, None).problems;
            assert_eq!(problems[0].line, index + 1, "{problems:?}");
            let mut repeated = lines.clone();
            repeated.insert(index, lines[index].clone());
            assert_eq!(verify(&repeated, &keys, None).problems[0].line, index + 2);
            let mut moved = lines.clone();
            moved.swap(index - 1, index);
            assert!(!verify(&moved, &keys, None).problems.is_empty());
        }
    }

    #[test]
    fn a_log_that_was_cut_off_is_found_by_a_known_head() {
        let (key, lines) = log();
        let known = Chain::after(&lines[11]).unwrap();
        for end in 1..lines.len() {
            let report = verify(&lines[..end], &[key.public()], Some(known));
            assert!(!report.head_found, "{end}");
            // Nothing else tells: what is there is right.
            assert_eq!(report.problems, []);
        }
        assert!(verify(&lines, &[key.public()], Some(known)).head_found);
    }

    #[test]
    fn who_writes_a_log_anew_needs_the_key() {
        let (key, _) = log();
        let forger = SigningKey::generate().unwrap().0;
        let (mut chain, mut out) = (Chain::default(), Vec::new());
        chain.append(TIME, &Entry::new("put"), &mut out);
        chain.append_head(TIME, &forger, &mut out);
        let text = String::from_utf8(out).unwrap().replace(&forger.public().to_string(), &key.public().to_string());
        let lines: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
        assert_eq!(verify(&lines, &[key.public()], None).problems.len(), 1);
    }

    #[test]
    fn half_a_line_is_right_only_before_the_start_that_tells_of_it() {
        let (key, lines) = log();
        let keys = [key.public()];
        let torn = lines[5][..20].to_vec();
        let start = |chain: &mut Chain, torn: &[u8]| {
            let mut out = Vec::new();
            chain.append(TIME, &Entry { torn: Some(hex(&hash(torn))), ..Entry::new("start") }, &mut out);
            out[..out.len() - 1].to_vec()
        };
        let last = Chain::after(&lines[4]).unwrap();
        let crashed = [lines[..5].to_vec(), vec![torn.clone(), start(&mut last.clone(), &torn)]].concat();
        assert_eq!(verify(&crashed, &keys, None).problems, []);
        let other = [lines[..5].to_vec(), vec![torn.clone(), start(&mut last.clone(), b"other")]].concat();
        assert_eq!(verify(&other, &keys, None).problems[0].line, 6);
        let end = [lines[..5].to_vec(), vec![torn]].concat();
        assert_eq!(verify(&end, &keys, None).problems[0].line, 6);
    }
}
