//! How sizes, times, names and entries are written for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::hash::Root;
use crate::path::Escaped;
use crate::protocol::{Entry, EntryKind, Mtime};

/// A number of bytes with three digits that matter: `999 B`, `1.00 KiB`, `12.3 MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // What would round to 1000 is one of the next unit.
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Bytes in a length of time.
#[must_use]
pub fn rate(bytes: u64, time: Duration) -> String {
    let per_second = bytes as f64 / time.as_secs_f64().max(0.001);
    format!("{}/s", size(per_second as u64))
}

/// A length of time: `0.3 s`, `42 s`, `3 min 05 s`, `2 h 07 min`, `3 d 04 h`.
#[must_use]
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A time as `2026-11-23 08:36:33Z`; one that no calendar has as `@SECONDS`.
#[must_use]
pub fn time(mtime: Mtime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    OffsetDateTime::from_unix_timestamp(mtime.seconds)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_else(|| format!("@{}", mtime.seconds))
}

fn kind_letter(kind: EntryKind) -> char {
    match kind {
        EntryKind::File => '-',
        EntryKind::Directory => 'd',
        EntryKind::Link => 'l',
        EntryKind::Special => '?',
    }
}

fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
        EntryKind::Link => "link",
        EntryKind::Special => "special",
    }
}

/// `drwxr-x---`.
fn permissions(entry: &Entry) -> String {
    let bits = [(0o400, 'r'), (0o200, 'w'), (0o100, 'x'), (0o40, 'r'), (0o20, 'w'), (0o10, 'x'), (4, 'r'), (2, 'w')];
    std::iter::once(kind_letter(entry.kind))
        .chain(bits.into_iter().chain([(1, 'x')]).map(|(bit, c)| if entry.mode & bit == 0 { '-' } else { c }))
        .collect()
}

/// One line of `ls`: the name alone, a directory's with a slash, everything escaped. `name` is the path below the
/// directory that is listed.
#[must_use]
pub fn short_entry(name: &[u8], entry: &Entry) -> String {
    let slash = if entry.kind == EntryKind::Directory { "/" } else { "" };
    format!("{}{slash}", Escaped(name))
}

/// One line of `ls -l`: permissions, size in bytes, time in UTC, name.
#[must_use]
pub fn long_entry(name: &[u8], entry: &Entry) -> String {
    let mut line =
        format!("{} {:>15} {} {}", permissions(entry), entry.size, time(entry.mtime), short_entry(name, entry));
    if let Some(target) = &entry.target {
        // Writing to a String does not fail.
        let _ = write!(line, " -> {}", Escaped(target));
    }
    line
}

/// What `stat` prints of an entry: several lines, each with its newline.
#[must_use]
pub fn stat(name: &[u8], entry: &Entry) -> String {
    let mut text = format!(
        "name: {}\nkind: {}\nsize: {} ({})\ntime: {}\nmode: {:04o}\n",
        Escaped(name),
        kind_name(entry.kind),
        entry.size,
        size(entry.size),
        time(entry.mtime),
        entry.mode & 0o7777,
    );
    if let Some(target) = &entry.target {
        // Writing to a String does not fail.
        let _ = writeln!(text, "link: {}", Escaped(target));
    }
    text
}

/// An entry for `--json`.
#[must_use]
pub fn entry_json(name: &[u8], entry: &Entry) -> Value {
    let mut object = Map::new();
    object.insert("type".to_owned(), json!("entry"));
    insert_name(&mut object, "name", name);
    object.insert("kind".to_owned(), json!(kind_name(entry.kind)));
    object.insert("size".to_owned(), json!(entry.size));
    object.insert("mtime".to_owned(), json!({ "seconds": entry.mtime.seconds, "nanos": entry.mtime.nanos }));
    object.insert("mode".to_owned(), json!(format!("{:04o}", entry.mode & 0o7777)));
    if let Some(target) = &entry.target {
        insert_name(&mut object, "target", target);
    }
    Value::Object(object)
}

/// Puts a name into an object. One that is not UTF-8 is there escaped, and its bytes under `KEY_base64`.
pub fn insert_name(object: &mut Map<String, Value>, key: &str, name: &[u8]) {
    match std::str::from_utf8(name) {
        Ok(text) => {
            object.insert(key.to_owned(), json!(text));
        }
        Err(_) => {
            object.insert(key.to_owned(), json!(Escaped(name).to_string()));
            object.insert(format!("{key}_base64"), json!(STANDARD.encode(name)));
        }
    }
}

/// One line of JSON in pure printable ASCII: whatever a name holds, it cannot reach a terminal.
#[must_use]
pub fn json_line(value: &Value) -> String {
    let mut line = String::new();
    for c in value.to_string().chars() {
        if matches!(c, ' '..='~') {
            line.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String does not fail.
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
    }
    line.push('\n');
    line
}

/// A line as `b3sum` prints it: a name with a newline, carriage return or backslash has these escaped and a backslash
/// before the hash; one that is not UTF-8 has replacement characters (`b3sum --check` refuses those). On a terminal
/// everything else that is not printable is escaped too, which `b3sum` does not do.
#[must_use]
pub fn hash_line(root: Root, name: &[u8], is_terminal: bool) -> String {
    let text = String::from_utf8_lossy(name);
    let mut written = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            '\r' => written.push_str("\\r"),
            c if is_terminal => written.push_str(&Escaped(c.encode_utf8(&mut [0; 4]).as_bytes()).to_string()),
            c => written.push(c),
        }
    }
    let marker = if text.contains(['\\', '\n', '\r']) { "\\" } else { "" };
    format!("{marker}{root}  {written}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1023, "1.00 KiB"),
            (1024, "1.00 KiB"),
            (10_230, "9.99 KiB"),
            (10_240, "10.0 KiB"),
            (102_400, "100 KiB"),
            (1_023_999, "0.98 MiB"),
            (1 << 20, "1.00 MiB"),
            (3 << 30, "3.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), expected, "{bytes}");
        }
        assert_eq!(rate(10 << 20, Duration::from_secs(2)), "5.00 MiB/s");
        assert_eq!(rate(0, Duration::ZERO), "0 B/s");
    }

    #[test]
    fn times() {
        for (seconds, expected) in [(5, "5.0 s"), (42, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")] {
            assert_eq!(duration(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(duration(Duration::from_secs(273_600)), "3 d 04 h");
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00Z"),
            (-1, "1969-12-31 23:59:59Z"),
            (1_795_423_000, "2026-11-23 08:36:40Z"),
            (i64::MAX, "@9223372036854775807"),
            (i64::MIN, "@-9223372036854775808"),
        ] {
            assert_eq!(time(Mtime { seconds, nanos: 5 }), expected);
        }
    }

    fn entry(kind: EntryKind, target: Option<&[u8]>) -> Entry {
        Entry {
            name: b"x".to_vec(),
            kind,
            size: 1234,
            mtime: Mtime { seconds: 0, nanos: 7 },
            mode: 0o640,
            target: target.map(<[u8]>::to_vec),
            same: None,
            xattrs_digest: None,
            xattrs: None,
        }
    }

    #[test]
    fn entries() {
        assert_eq!(short_entry(b"a\x1b[2Jb", &entry(EntryKind::File, None)), "a\\x1b[2Jb");
        assert_eq!(
            long_entry(b"sub", &entry(EntryKind::Directory, None)),
            "drw-r-----            1234 1970-01-01 00:00:00Z sub/"
        );
        assert_eq!(
            long_entry(b"l", &entry(EntryKind::Link, Some(b"to\n"))),
            "lrw-r-----            1234 1970-01-01 00:00:00Z l -> to\\n"
        );
        assert_eq!(
            stat(b"x", &entry(EntryKind::Link, Some(b"to"))),
            "name: x\nkind: link\nsize: 1234 (1.21 KiB)\ntime: 1970-01-01 00:00:00Z\nmode: 0640\nlink: to\n"
        );
    }

    #[test]
    fn json_is_ascii_and_keeps_every_name_apart() {
        let name = "naïve \u{202e}\u{9b}\u{7f}\n\u{1f600}";
        let line = json_line(&entry_json(name.as_bytes(), &entry(EntryKind::File, None)));
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')), "{line}");
        let back: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["name"], name);
        let back: Value =
            serde_json::from_str(&json_line(&entry_json(b"\xff", &entry(EntryKind::File, None)))).unwrap();
        assert_eq!((back["name"].as_str(), back["name_base64"].as_str()), (Some("\\xff"), Some("/w==")));
    }

    /// What b3sum 1.8 prints for these names.
    #[test]
    fn hashes_are_printed_as_b3sum_does() {
        let root = Root::of(b"");
        let hex = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        for (name, expected) in [
            (&b"in/x"[..], format!("{hex}  in/x\n")),
            (b"a b", format!("{hex}  a b\n")),
            (b"a\nb", format!("\\{hex}  a\\nb\n")),
            (b"a\rb", format!("\\{hex}  a\\rb\n")),
            (b"a\\nb", format!("\\{hex}  a\\\\nb\n")),
            ("ü".as_bytes(), format!("{hex}  ü\n")),
            (b"\xff", format!("{hex}  \u{fffd}\n")),
            (b"\x1b[m", format!("{hex}  \x1b[m\n")),
        ] {
            assert_eq!(hash_line(root, name, false), expected, "{}", Escaped(name));
        }
        assert_eq!(hash_line(root, b"\x1b[m\\", true), format!("\\{hex}  \\x1b[m\\\\\n"));
    }
}
