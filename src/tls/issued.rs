//! The file `issued`: every certificate that was ever issued in a folder, so that all of a name can be revoked.
//!
//! A line is `SERIAL AUTHORITY KIND NAME UNTIL STATE`, with spaces between: serial and authority in hex, `server` or
//! `client`, the name (`server` for servers), the Unix time at which it ends, and `valid` or `revoked:` with the Unix
//! time. Lines are never removed, also not when the authority is replaced. What begins with `#` is a comment.

use std::fmt::Write as _;

use time::OffsetDateTime;

use super::x509::hex;
use crate::error::{Error, ErrorKind, Result};

const HEADER: &str = "\
# What was issued here: `sealift certs --revoke NAME` finds the serial numbers of NAME in this list. Keep it.
# serial authority kind name until state
";

/// Server or client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Client,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) serial: Vec<u8>,
    pub(super) authority: String,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) until: OffsetDateTime,
    pub(super) revoked: Option<OffsetDateTime>,
}

/// All certificates of a folder, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Issued {
    pub(super) entries: Vec<Entry>,
}

impl Issued {
    /// # Errors
    /// [`ErrorKind::Usage`] with the number of a line that is not understood: dropping it could let someone in again.
    pub(super) fn parse(text: &str) -> Result<Issued> {
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let entry = parse_line(line)
                .ok_or_else(|| Error::new(ErrorKind::Usage, format!("line {} is damaged", index + 1)))?;
            entries.push(entry);
        }
        Ok(Issued { entries })
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = HEADER.to_owned();
        for entry in &self.entries {
            let kind = match entry.kind {
                Kind::Server => "server",
                Kind::Client => "client",
            };
            let state = match entry.revoked {
                Some(time) => format!("revoked:{}", time.unix_timestamp()),
                None => "valid".to_owned(),
            };
            let (serial, until) = (hex(&entry.serial), entry.until.unix_timestamp());
            // Writing to a string does not fail.
            let _ = writeln!(text, "{serial} {} {kind} {} {until} {state}", entry.authority, entry.name);
        }
        text
    }

    pub(super) fn find(&self, serial: &[u8]) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.serial == serial)
    }

    pub(super) fn is_revoked(&self, serial: &[u8]) -> bool {
        self.find(serial).is_some_and(|entry| entry.revoked.is_some())
    }

    /// The names of all clients, each once, in the order of their first certificate.
    pub(super) fn clients(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for entry in &self.entries {
            if entry.kind == Kind::Client && !names.contains(&entry.name.as_str()) {
                names.push(&entry.name);
            }
        }
        names
    }
}

fn parse_line(line: &str) -> Option<Entry> {
    let mut fields = line.split(' ');
    let mut next = || fields.next();
    let serial = from_hex(next()?)?;
    let authority = next().filter(|id| !id.is_empty())?.to_owned();
    let kind = match next()? {
        "server" => Kind::Server,
        "client" => Kind::Client,
        _ => return None,
    };
    let name = next().filter(|name| !name.is_empty())?.to_owned();
    let until = time(next()?)?;
    let revoked = match next()? {
        "valid" => None,
        state => Some(time(state.strip_prefix("revoked:")?)?),
    };
    fields.next().is_none().then_some(Entry { serial, authority, kind, name, until, revoked })
}

fn time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(text.parse().ok()?).ok()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) {
        return None;
    }
    let digits = text.chars().map(|c| c.to_digit(16)).collect::<Option<Vec<u32>>>()?;
    digits.chunks(2).map(|pair| u8::try_from(pair.iter().fold(0, |value, digit| value * 16 + digit)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_goes_round_and_damage_is_named() {
        let moment = |seconds| OffsetDateTime::from_unix_timestamp(seconds).expect("in range");
        let issued = Issued {
            entries: vec![
                Entry {
                    serial: vec![0x40, 1],
                    authority: "00ff".to_owned(),
                    kind: Kind::Server,
                    name: "server".to_owned(),
                    until: moment(2_000_000_000),
                    revoked: None,
                },
                Entry {
                    serial: vec![0x41, 2],
                    authority: "00ff".to_owned(),
                    kind: Kind::Client,
                    name: "alice".to_owned(),
                    until: moment(2_000_000_000),
                    revoked: Some(moment(1_900_000_000)),
                },
            ],
        };
        let text = issued.to_text();
        assert_eq!(Issued::parse(&text).expect("parses"), issued);
        assert_eq!(issued.clients(), ["alice"]);
        assert!(issued.is_revoked(&[0x41, 2]) && !issued.is_revoked(&[0x40, 1]) && !issued.is_revoked(&[9]));
        let good = text.lines().last().expect("a line");
        for (index, _) in good.char_indices().filter(|(_, c)| *c == ' ') {
            assert!(Issued::parse(&good[..index]).is_err(), "{:?}", &good[..index]);
        }
        for bad in ["x", &format!("{good} more"), &good.replace("revoked:", "revoke:"), &good.replace("41", "4")] {
            let error = Issued::parse(&format!("# c\n\n{bad}")).expect_err("damaged");
            assert!(error.to_string().contains("line 3"), "{error}");
        }
    }
}
