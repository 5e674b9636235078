//! The policy file: who is let in, where each is at home, and what each may do there.
//!
//! It is TOML. Anything in it that is not understood (an unknown key, a right that is none, two entries for one key)
//! makes the whole file unusable: [`Policy::parse`] says in which line, and nothing of it holds. `docs/OPERATING.md`
//! is its reference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::str::FromStr as _;
use std::sync::Arc;

use toml_edit::{Document, Item, TableLike, Value};

use super::{Grant, Limits, Principal};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{POLICY_LEN_MAX, RATE_MIN};
use crate::path::{Component, Escaped, RemotePath};
use crate::protocol::Rights;
use crate::tls::Pin;

/// What a policy file says.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Those without pins, by the common name of their certificates.
    by_name: HashMap<String, Arc<Grant>>,
    by_pin: HashMap<[u8; 32], Arc<Grant>>,
    anonymous: Option<Arc<Grant>>,
    revoked_names: BTreeSet<String>,
    revoked_pins: BTreeSet<[u8; 32]>,
}

/// Under which clients without a certificate are counted: no certificate can have this name ([`is_name`]).
const ANONYMOUS_KEY: &str = "anonymous – no certificate";

/// One `[user.NAME]`, or `[anonymous]`.
struct Entry {
    grant: Grant,
    pins: Vec<Pin>,
    /// It is meant that its home is, or holds, another's.
    overlap: bool,
    is_user: bool,
    span: Option<Range<usize>>,
}

/// The text, to tell in which line something is wrong.
struct Source<'a>(&'a str);

impl Policy {
    /// The same, but nobody without a certificate is let in.
    #[must_use]
    pub fn without_anonymous(self) -> Policy {
        Policy { anonymous: None, ..self }
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// `Usage`, with the line, for anything that is not as `docs/OPERATING.md` says.
    pub fn parse(text: &str) -> Result<Policy> {
        let source = Source(text);
        if text.len() > POLICY_LEN_MAX {
            return Err(source.wrong(None, format!("it is longer than {POLICY_LEN_MAX} bytes")));
        }
        let document =
            Document::parse(text).map_err(|error| source.wrong(error.span(), error.message().replace('\n', ", ")))?;
        let mut policy = Policy::default();
        let mut entries = Vec::new();
        for (key, item) in document.as_table().iter() {
            match key {
                "revoked" => policy.read_revoked(&source, item)?,
                "user" => {
                    let users = source.table(item, "[user.NAME]")?;
                    for (name, item) in users.iter() {
                        source.check_name(name, item)?;
                        entries.push(source.entry(name, item, true)?);
                    }
                }
                "anonymous" => entries.push(source.entry("anonymous", item, false)?),
                key => return Err(source.unknown(key, item, "the file", &["revoked", "user", "anonymous"])),
            }
        }
        source.check_homes(&entries)?;
        for Entry { grant, pins, span, is_user, .. } in entries {
            let grant = Arc::new(grant);
            if !is_user {
                policy.anonymous = Some(grant);
                continue;
            }
            for pin in &pins {
                if let Some(other) = policy.by_pin.insert(*pin.as_bytes(), Arc::clone(&grant)) {
                    let message = format!("the pin {pin} stands twice, for `{}` and `{}`", other.name, grant.name);
                    return Err(source.wrong(span, message));
                }
            }
            if pins.is_empty() {
                policy.by_name.insert(grant.name.clone(), grant);
            }
        }
        Ok(policy)
    }

    fn read_revoked(&mut self, source: &Source<'_>, item: &Item) -> Result<()> {
        for (text, span) in source.strings(item, "revoked")? {
            if text.starts_with("sha256:") {
                let pin = Pin::from_str(&text).map_err(|error| source.wrong(span, error.to_string()))?;
                self.revoked_pins.insert(*pin.as_bytes());
            } else if is_name(&text) {
                self.revoked_names.insert(text);
            } else {
                return Err(source.wrong(span, format!("`{}` can be nobody's name", Escaped(text.as_bytes()))));
            }
        }
        Ok(())
    }

    /// What this principal has: by its key if that is pinned, otherwise by its name.
    ///
    /// # Errors
    /// `Rights` for one that is revoked or not named.
    pub(super) fn admit(&self, principal: &Principal) -> Result<&Arc<Grant>> {
        let refused = |why: &str| Error::new(ErrorKind::Rights, format!("{principal} {why}"));
        let Principal::Certified { name, key } = principal else {
            let nobody = || refused("(a client without a certificate) has no rights on this server");
            return self.anonymous.as_ref().ok_or_else(nobody);
        };
        let grant = self.by_pin.get(key).or_else(|| self.by_name.get(name.as_ref()?));
        // Each of its names counts: a revoked one does not come back by a new key, nor by another's pin.
        let names = [name.as_ref(), grant.map(|grant| &grant.name)];
        if self.revoked_pins.contains(key) || names.into_iter().flatten().any(|name| self.revoked_names.contains(name))
        {
            return Err(refused("is revoked on this server"));
        }
        grant.ok_or_else(|| refused("has no rights on this server"))
    }

    /// Whether this name is let in no more.
    #[must_use]
    pub fn is_revoked(&self, name: &str) -> bool {
        self.revoked_names.contains(name)
    }

    /// Every name and key that is let in no more.
    pub fn revoked(&self) -> impl Iterator<Item = String> {
        self.revoked_names.iter().cloned().chain(self.revoked_pins.iter().map(|pin| Pin::from(*pin).to_string()))
    }

    /// The keys by which somebody is known.
    pub fn pins_of(&self, grant: &Grant) -> impl Iterator<Item = Pin> {
        let pins = self.by_pin.iter().filter(|(_, other)| other.key == grant.key).map(|(pin, _)| Pin::from(*pin));
        // In an order that is the same each time.
        pins.collect::<BTreeSet<_>>().into_iter()
    }

    /// Every grant, each once, by name; that of clients without a certificate last.
    #[must_use]
    pub fn grants(&self) -> Vec<Arc<Grant>> {
        let users: BTreeMap<&str, &Arc<Grant>> =
            self.by_name.values().chain(self.by_pin.values()).map(|grant| (&*grant.name, grant)).collect();
        users.into_values().chain(&self.anonymous).cloned().collect()
    }
}

impl Source<'_> {
    fn wrong(&self, span: Option<Range<usize>>, message: impl std::fmt::Display) -> Error {
        let line = span.and_then(|span| self.0.get(..span.start)).map(|before| before.matches('\n').count() + 1);
        let place = line.map_or_else(String::new, |line| format!("line {line}: "));
        Error::new(ErrorKind::Usage, format!("{place}{message}"))
    }

    fn unknown(&self, key: &str, item: &Item, place: &str, known: &[&str]) -> Error {
        let message = format!("unknown key `{}` in {place}; there are {}", Escaped(key.as_bytes()), known.join(", "));
        self.wrong(item.span(), message)
    }

    fn table<'a>(&self, item: &'a Item, what: &str) -> Result<&'a dyn TableLike> {
        item.as_table_like().ok_or_else(|| self.wrong(item.span(), format!("{what} is a table")))
    }

    fn check_name(&self, name: &str, item: &Item) -> Result<()> {
        if is_name(name) {
            return Ok(());
        }
        let message = format!(
            "`{}` can be no certificate's name: that is 1 to 64 printable ASCII characters, not beginning with `sha256:`",
            Escaped(name.as_bytes())
        );
        Err(self.wrong(item.span(), message))
    }

    fn strings(&self, item: &Item, what: &str) -> Result<Vec<(String, Option<Range<usize>>)>> {
        let wrong = |span| self.wrong(span, format!("`{what}` is a list of texts, as in [\"a\", \"b\"]"));
        let list = item.as_array().ok_or_else(|| wrong(item.span()))?;
        list.iter()
            .map(|value| Ok((value.as_str().ok_or_else(|| wrong(value.span()))?.to_owned(), value.span())))
            .collect()
    }

    fn rights(&self, item: &Item, what: &str) -> Result<Rights> {
        let mut rights = Rights::NONE;
        for (name, span) in self.strings(item, what)? {
            let right = Rights::named(&name).ok_or_else(|| {
                let names: Vec<&str> = Rights::NAMES.iter().map(|(name, _)| *name).collect();
                self.wrong(span, format!("`{}` is no right; they are {}", Escaped(name.as_bytes()), names.join(", ")))
            })?;
            rights = rights.with(right);
        }
        Ok(rights)
    }

    fn path(&self, text: &str, span: Option<Range<usize>>) -> Result<RemotePath> {
        let path = RemotePath::parse(text.as_bytes());
        path.map_err(|error| {
            self.wrong(span, format!("`{}` is no path below the root: {error}", Escaped(text.as_bytes())))
        })
    }

    fn entry(&self, name: &str, item: &Item, is_user: bool) -> Result<Entry> {
        let place = if is_user { format!("[user.{}]", Escaped(name.as_bytes())) } else { "[anonymous]".to_owned() };
        let table = self.table(item, &place)?;
        let known = ["home", "rights", "pins", "overlap", "paths", "limits"];
        if let Some((key, item)) = table.iter().find(|(key, _)| !known.contains(key) || *key == "pins" && !is_user) {
            return Err(self.unknown(key, item, &place, &known));
        }
        let missing = |key: &str| self.wrong(item.span(), format!("{place} has no `{key}`"));
        let home = table.get("home").ok_or_else(|| missing("home"))?;
        let home_text = home.as_str().ok_or_else(|| self.wrong(home.span(), "`home` is a text"))?;
        let home = self.path(home_text, home.span())?;
        let rights = self.rights(table.get("rights").ok_or_else(|| missing("rights"))?, "rights")?;
        let mut grant = Grant::new(name, home, rights);
        if !is_user {
            (grant.key, grant.meter) = (ANONYMOUS_KEY.to_owned(), ANONYMOUS_KEY.to_owned());
        }
        let mut entry = Entry { grant, pins: Vec::new(), overlap: false, is_user, span: item.span() };
        for (key, item) in table.iter() {
            match key {
                "home" | "rights" => {}
                "pins" if is_user => {
                    for (text, span) in self.strings(item, "pins")? {
                        entry.pins.push(Pin::from_str(&text).map_err(|error| self.wrong(span, error))?);
                    }
                    if entry.pins.is_empty() {
                        // It could be read as "any key" or as "no key": let it be said.
                        return Err(self.wrong(item.span(), "`pins` is empty: leave it out to go by the name"));
                    }
                }
                "overlap" => {
                    let value = item.as_bool();
                    entry.overlap = value.ok_or_else(|| self.wrong(item.span(), "`overlap` is true or false"))?;
                }
                "paths" => self.read_paths(&mut entry.grant, item, &place)?,
                "limits" => entry.grant.limits = self.limits(item, &place)?,
                key => return Err(self.unknown(key, item, &place, &known)),
            }
        }
        Ok(entry)
    }

    fn read_paths(&self, grant: &mut Grant, item: &Item, place: &str) -> Result<()> {
        for (text, item) in self.table(item, &format!("`paths` in {place}"))?.iter() {
            let path = self.path(text, item.span())?;
            if path == grant.home {
                return Err(self.wrong(item.span(), format!("for {path} itself, {place} has `rights`")));
            }
            if !path.starts_with(&grant.home) {
                let message = format!("{path} is not below the home of {place}, {}: it could never hold", grant.home);
                return Err(self.wrong(item.span(), message));
            }
            let rights = self.rights(item, text)?;
            if !grant.rule(&path, rights) {
                return Err(self.wrong(item.span(), format!("there are two rules for {path} in {place}")));
            }
        }
        Ok(())
    }

    fn limits(&self, item: &Item, place: &str) -> Result<Limits> {
        let mut limits = Limits::default();
        for (key, item) in self.table(item, &format!("`limits` in {place}"))?.iter() {
            let number = || match item.as_value() {
                Some(Value::Integer(number)) => {
                    u64::try_from(*number.value()).map_err(|_| "a limit is no negative number".to_owned())
                }
                Some(Value::String(text)) => size(text.value()),
                _ => Err(format!("`{key}` is a number, or a text as in \"50G\"")),
            };
            let number = number().map_err(|error| self.wrong(item.span(), error))?;
            let rate = || match number {
                0..RATE_MIN => {
                    let message =
                        format!("`{key}` is at least {RATE_MIN} bytes per second: with less nothing gets anywhere");
                    Err(self.wrong(item.span(), message))
                }
                rate => Ok(rate),
            };
            let few = || u32::try_from(number).map_err(|_| self.wrong(item.span(), format!("`{key}` is too large")));
            match key {
                "bytes" => limits.bytes = Some(number),
                "files" => limits.files = Some(number),
                "file-size" => limits.file_size = Some(number),
                "uploads" => limits.uploads = Some(few()?),
                "connections" => limits.connections = Some(few()?),
                "rate-up" => limits.rate_up = Some(rate()?),
                "rate-down" => limits.rate_down = Some(rate()?),
                key => {
                    let known = ["bytes", "files", "file-size", "uploads", "connections", "rate-up", "rate-down"];
                    return Err(self.unknown(key, item, &format!("the limits of {place}"), &known));
                }
            }
        }
        Ok(limits)
    }

    /// A home that is or holds another's gives power over it, so it must be said: by both for the same home, by the
    /// wider one otherwise.
    fn check_homes(&self, entries: &[Entry]) -> Result<()> {
        let mut homes: HashMap<&[Component], Vec<&Entry>> = HashMap::new();
        for entry in entries {
            homes.entry(entry.grant.home.components()).or_default().push(entry);
        }
        for deep in entries {
            let home = deep.grant.home.components();
            let wider = (0..=home.len()).filter_map(|len| homes.get(&home[..len])).flatten();
            for wide in wider.filter(|wide| !std::ptr::eq(**wide, deep)) {
                let is_same = wide.grant.home == deep.grant.home;
                if !wide.overlap || is_same && !deep.overlap {
                    let silent = if wide.overlap { deep } else { wide };
                    let message = format!(
                        "the home of `{}`, {}, {} that of `{}`; if that is meant, say `overlap = true` for `{}`",
                        wide.grant.name,
                        wide.grant.home,
                        if is_same { "is also" } else { "holds" },
                        deep.grant.name,
                        silent.grant.name
                    );
                    return Err(self.wrong(silent.span.clone(), message));
                }
            }
        }
        Ok(())
    }
}

/// Whether a certificate can have this name (`tls::principal`), and it is told from a pin.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    is_plain && (1..=64).contains(&text.len()) && !text.starts_with("sha256:")
}

/// A number of bytes: digits, and `K`, `M`, `G` or `T` for powers of 1024.
///
/// # Errors
/// What is wrong with it.
pub fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    // Digits only: `u64::from_str` takes a sign.
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: Option<u64> = is_number.then(|| digits.parse().ok()).flatten();
    let number = number.ok_or("a size is written 4096, 64K, 256M or 2G (powers of 1024)")?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large a size".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "[user.alice]\nhome = \"alice\"\nrights = [\"list\", \"read\"]\n";

    fn certified(name: &str, key: u8) -> Principal {
        Principal::Certified { name: Some(name.to_owned()), key: [key; 32] }
    }

    fn pin(key: u8) -> String {
        format!("sha256:{}", format!("{key:02x}").repeat(32))
    }

    #[track_caller]
    fn check(policy: &Policy, principal: &Principal, expected: Result<&str, &str>) {
        match (policy.admit(principal), expected) {
            (Ok(grant), expected) => assert_eq!(Ok(&*grant.name), expected, "{principal}"),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{principal}: {error}"),
            (Err(error), Ok(_)) => panic!("{principal}: {error}"),
        }
    }

    #[test]
    fn the_pin_wins_over_the_name() {
        let text = format!(
            "{ALICE}[user.bob]\nhome = \"bob\"\nrights = []\npins = [\"{}\", \"{}\"]\n[user.bob.paths]\n\"bob/in\" = [\"create\"]\n",
            pin(7),
            pin(8)
        );
        let policy = Policy::parse(&text).unwrap();
        check(&policy, &certified("alice", 1), Ok("alice"));
        check(&policy, &certified("alice", 7), Ok("bob"));
        check(&policy, &certified("bob", 8), Ok("bob"));
        check(&policy, &Principal::Certified { name: None, key: [8; 32] }, Ok("bob"));
        // Who has pins is not known by the name.
        check(&policy, &certified("bob", 9), Err("no rights"));
        check(&policy, &certified("Alice", 1), Err("no rights"));
        check(&policy, &Principal::Anonymous, Err("no rights"));
        assert_eq!(policy.grants().len(), 2);
    }

    #[test]
    fn a_revoked_name_or_key_stays_out() {
        let text = format!(
            "revoked = [\"alice\", \"{}\"]\n{ALICE}[user.bob]\nhome = \"bob\"\nrights = []\npins = [\"{}\", \"{}\"]\n[user.carol]\nhome = \"carol\"\nrights = []\n",
            pin(3),
            pin(7),
            pin(8)
        );
        let policy = Policy::parse(&text).unwrap();
        for key in 1..5 {
            check(&policy, &certified("alice", key), Err("revoked"));
        }
        // Neither by another's key, nor under another name.
        check(&policy, &certified("alice", 7), Err("revoked"));
        check(&policy, &certified("carol", 3), Err("revoked"));
        check(&policy, &certified("carol", 4), Ok("carol"));
        check(&policy, &certified("bob", 7), Ok("bob"));
        let policy = Policy::parse(&text.replace("\"alice\",", "\"bob\",")).unwrap();
        check(&policy, &certified("x", 7), Err("revoked"));
        check(&policy, &certified("alice", 1), Ok("alice"));
    }

    #[test]
    fn what_is_not_understood_makes_it_unusable() {
        let bob = "[user.bob]\nhome = \"bob\"\nrights = []\n";
        for (text, expected) in [
            ("rihgts = 1\n".to_owned(), "line 1: unknown key `rihgts`"),
            (format!("{ALICE}rigths = []\n"), "line 4: unknown key `rigths` in [user.alice]"),
            (ALICE.replace("read", "raed"), "line 3: `raed` is no right"),
            (ALICE.replace("[\"list\", \"read\"]", "\"list\""), "list of texts"),
            (ALICE.replace("[\"list\", \"read\"]", "[1]"), "list of texts"),
            (ALICE.replace("home = \"alice\"\n", ""), "no `home`"),
            (ALICE.replace("rights = [\"list\", \"read\"]\n", ""), "no `rights`"),
            (ALICE.replace("\"alice\"\n", "\"../alice\"\n"), "is no path"),
            (ALICE.replace("\"alice\"\n", "1\n"), "is a text"),
            (format!("{ALICE}{ALICE}"), "line 4: "),
            (format!("{ALICE}pins = []\n"), "`pins` is empty"),
            (format!("{ALICE}pins = [\"x\"]\n"), "is not a pin"),
            (format!("{ALICE}pins = [\"{0}\", \"{0}\"]\n", pin(1)), "stands twice"),
            (format!("{ALICE}pins = [\"{0}\"]\n{bob}pins = [\"{0}\"]\n", pin(1)), "stands twice"),
            (format!("{ALICE}overlap = 1\n"), "true or false"),
            (format!("{ALICE}[user.alice.paths]\n\"alice2/x\" = []\n"), "line 5: alice2/x is not below the home"),
            (format!("{ALICE}[user.alice.paths]\n\"alice/\" = []\n"), "itself"),
            (format!("{ALICE}[user.alice.paths]\n\"alice/x\" = []\n\"alice//x\" = []\n"), "two rules for alice/x"),
            (format!("{ALICE}[user.alice.limits]\nbites = 1\n"), "unknown key `bites`"),
            (format!("{ALICE}[user.alice.limits]\nbytes = -1\n"), "negative"),
            (format!("{ALICE}[user.alice.limits]\nbytes = \"1Q\"\n"), "a size is written"),
            (format!("{ALICE}[user.alice.limits]\nuploads = 4294967296\n"), "too large"),
            (format!("{ALICE}[user.alice.limits]\nrate-up = 16383\n"), "line 5: `rate-up` is at least 16384"),
            (format!("{ALICE}[user.alice.limits]\nrate-down = 0\n"), "`rate-down` is at least"),
            (format!("{ALICE}[user.alice.limits]\nrate = \"1M\"\n"), "unknown key `rate`"),
            (ALICE.replace("user.alice", "user.\"a\u{e4}\""), "no certificate's name"),
            (ALICE.replace("user.alice", "user.\"\""), "no certificate's name"),
            ("user = 1\n".into(), "is a table"),
            ("revoked = \"alice\"\n".into(), "list of texts"),
            ("revoked = [\"sha256:x\"]\n".into(), "is not a pin"),
            ("[anonymous]\nhome = \"x\"\nrights = []\npins = []\n".into(), "unknown key `pins`"),
            (ALICE.replace(']', ""), "line 1: "),
            (format!("#{}", "x".repeat(POLICY_LEN_MAX)), "longer than"),
        ] {
            let error = Policy::parse(&text).expect_err(&text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        // Nobody is named, so nobody comes in.
        check(&Policy::parse("").unwrap(), &certified("alice", 1), Err("no rights"));
    }

    /// One policy may be written in several ways; whichever it is, it says the same or nothing.
    #[test]
    fn other_ways_to_write_it_say_the_same_or_nothing() {
        let plain = "[user.alice]\nhome = \"a\"\nrights = [\"list\"]\n[user.alice.paths]\n\"a/b\" = []\n";
        let expected = Policy::parse(plain).unwrap().grants();
        for text in [
            "user.alice.home = \"a\"\nuser.alice.rights = [\"list\"]\nuser.alice.paths.\"a/b\" = []\n",
            "user = { alice = { home = \"a\", rights = [\"list\"], paths = { \"a/b\" = [] } } }\n",
            "[user]\nalice = { home = 'a', rights = ['list'] }\nalice.paths.\"a/b\" = []\n",
            "[\"user\".\"alice\"]\n\"home\" = \"\\u0061\"\nrights = [\n  # seen\n  \"list\",\n]\npaths = { 'a/b' = [] }\n",
            "\u{feff}[user.alice]\r\nhome = \"/a/\"\r\nrights = [\"list\", \"list\"]\r\n[user.alice.paths]\r\n\"//a//b/\" = []\r\n",
            "[user.alice.paths]\n\"a/b\" = []\n[user.alice]\nhome = \"\"\"a\"\"\"\nrights = [\"list\"]\n",
        ] {
            match Policy::parse(text) {
                Ok(policy) => assert_eq!(policy.grants(), expected, "{text}"),
                // TOML may forbid one of them: then nothing holds.
                Err(error) => assert!(text.contains("alice = {"), "{text}: {error}"),
            }
        }
        for text in [
            // Lists of tables, where a table is meant.
            "[[user]]\nalice = { home = \"a\", rights = [] }\n",
            "[[user.alice]]\nhome = \"a\"\nrights = []\n",
            "[[anonymous]]\nhome = \"a\"\nrights = []\n",
            "[[user.alice.paths]]\n\"a/b\" = []\n",
            // Others' types.
            "[user.alice]\nhome = 1979-05-27\nrights = []\n",
            "[user.alice]\nhome = [\"a\"]\nrights = []\n",
            "[user.alice]\nhome = \"a\"\nrights = [[\"list\"]]\n",
            "[user.alice]\nhome = \"a\"\nrights = [{ list = true }]\n",
            "[user.alice]\nhome = \"a\"\nrights = { list = true }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\nlimits = [\"bytes\"]\n",
            "[user.alice]\nhome = \"a\"\nrights = []\nlimits = { bytes = 1.5 }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\nlimits = { bytes = inf }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\nlimits = { bytes = \"+1\" }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\nlimits = { bytes = \"\" }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\nlimits = { bytes = \" 1\" }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\nlimits = { bytes = \"99999999999999999999\" }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\nlimits = { bytes = \"99999999999999999T\" }\n",
            "revoked = { alice = true }\n",
            "revoked = [\"alice\", 1]\n",
            "revoked = [\"\"]\n",
            "revoked = [\"al\\u0000ice\"]\n",
            "revoked = [\"\u{430}lice\"]\n",
            // Names that no certificate has, or that only look like one.
            "[user.\"al\\u0000ice\"]\nhome = \"a\"\nrights = []\n",
            "[user.\"\u{430}lice\"]\nhome = \"a\"\nrights = []\n",
            "[user.\"al\\nice\"]\nhome = \"a\"\nrights = []\n",
            "[user.\"sha256:00\"]\nhome = \"a\"\nrights = []\n",
            // Places that are none, or others than they look.
            "[user.alice]\nhome = \"a\\u0000b\"\nrights = []\n",
            "[user.alice]\nhome = \"a/./b/..\"\nrights = []\n",
            "[user.alice]\nhome = \"..\"\nrights = []\n",
            "[user.alice]\nhome = \"a\"\nrights = []\npaths = { \"a/../b\" = [] }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\npaths = { \"a/b\" = [], \"/a/b\" = [\"list\"] }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\npaths = { \"b\" = [] }\n",
            "[user.alice]\nhome = \"a\"\nrights = []\npaths = { \"\" = [\"list\"] }\n",
            // The same thing said twice.
            "[user.alice]\nhome = \"a\"\nrights = []\nhome = \"b\"\n",
            "[user.alice]\nhome = \"a\"\nrights = []\n[user.\"alice\"]\nhome = \"b\"\nrights = []\n",
            "user.alice.home = \"a\"\n[user.alice]\nrights = []\n",
            "revoked = []\nrevoked = [\"alice\"]\n",
            // Other letters.
            "[User.alice]\nhome = \"a\"\nrights = []\n",
            "[user.alice]\nHome = \"a\"\nrights = []\n",
            "[user.alice]\nhome = \"a\"\nrights = [\"List\"]\n",
            "[user.alice]\nhome = \"a\"\nrights = [\" list\"]\n",
            "[user.alice]\nhome = \"a\"\nrights = [\"all\"]\n",
            "[user.alice]\nhome = \"a\"\nrights = [\"*\"]\n",
            "[user.alice]\nhome = \"a\"\nrights = [\"\"]\n",
            "[user.alice]\nhome = \"a\"\nrights = []\noverlap = \"true\"\n",
            "[user.alice]\nhome = \"a\"\nrights = []\n[anonymous]\nhome = \"b\"\nrights = []\noverlap = 0\n",
        ] {
            assert!(Policy::parse(text).is_err(), "{text}");
        }
    }

    /// Case A13: whatever single slip is made in a word that means something, nothing of the file holds.
    #[test]
    fn no_slip_of_the_pen_is_taken_for_something_else() {
        let text = format!(
            "revoked = [\"bob\"]\n{ALICE}pins = [\"{}\"]\noverlap = true\n[user.alice.paths]\n\"alice/in\" = \
             [\"create\", \"overwrite\", \"rename\", \"delete\", \"share\"]\n[user.alice.limits]\nbytes = \"1G\"\n\
             files = 10\nfile-size = 10\nuploads = 1\nconnections = 1\nrate-up = \"1M\"\nrate-down = \"1M\"\n\
             [anonymous]\nhome = \"drop\"\nrights = [\"create\"]\n",
            pin(1)
        );
        Policy::parse(&text).unwrap();
        let words: BTreeSet<&str> = [
            "revoked",
            "user",
            "home",
            "rights",
            "pins",
            "overlap",
            "paths",
            "limits",
            "bytes",
            "files",
            "file-size",
            "uploads",
            "connections",
            "rate-up",
            "rate-down",
            "anonymous",
            "list",
            "read",
            "create",
            "overwrite",
            "rename",
            "delete",
            "share",
            "true",
        ]
        .into();
        let mut tried = 0;
        for &word in &words {
            let at = text.match_indices(word).find(|(at, _)| {
                let around = |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
                let bytes = text.as_bytes();
                around(bytes.get(at.wrapping_sub(1))) && around(bytes.get(at + word.len()))
            });
            let (at, _) = at.unwrap();
            for index in 0..word.len() {
                let (before, rest) = word.split_at(index);
                let letter = &rest[..1];
                let mut slips = vec![
                    format!("{before}{}", &rest[1..]),
                    format!("{before}{letter}{rest}"),
                    format!("{before}{}{}", letter.to_uppercase(), &rest[1..]),
                ];
                if rest.len() > 1 {
                    slips.push(format!("{before}{}{letter}{}", &rest[1..2], &rest[2..]));
                }
                for slip in slips.into_iter().filter(|slip| !words.contains(&**slip)) {
                    let changed = format!("{}{slip}{}", &text[..at], &text[at + word.len()..]);
                    assert!(Policy::parse(&changed).is_err(), "`{slip}` for `{word}`");
                    tried += 1;
                }
            }
        }
        assert!(tried > 400, "{tried}");
    }

    #[test]
    fn homes_overlap_only_where_it_is_said() {
        let user = |name: &str, home: &str, overlap: bool| {
            format!("[user.{name}]\nhome = \"{home}\"\nrights = []\noverlap = {overlap}\n")
        };
        for (first, second, expected) in [
            (("a", false), ("a", false), false),
            (("a", true), ("/a/", false), false),
            (("a", true), ("a", true), true),
            (("a", false), ("a/b", true), false),
            (("a", true), ("a/b", false), true),
            (("a", false), ("ab", false), true),
            (("", false), ("ab", true), false),
            (("/", true), ("ab", false), true),
        ] {
            for (one, two) in [(first, second), (second, first)] {
                let text = user("x", one.0, one.1) + &user("y", two.0, two.1);
                assert_eq!(Policy::parse(&text).is_ok(), expected, "{text}");
            }
        }
        let anonymous = "[anonymous]\nhome = \"alice/drop\"\nrights = [\"create\"]\n";
        assert!(Policy::parse(&format!("{ALICE}{anonymous}")).is_err());
        let policy = Policy::parse(&format!("{ALICE}overlap = true\n{anonymous}")).unwrap();
        check(&policy, &Principal::Anonymous, Ok("anonymous"));
        // Whoever has the name in a certificate is somebody else.
        check(&policy, &certified("anonymous", 1), Err("no rights"));
        let named = "[user.anonymous]\nhome = \"named\"\nrights = []\n";
        let policy = Policy::parse(&format!("{ALICE}overlap = true\n{anonymous}{named}")).unwrap();
        let keys = [Principal::Anonymous, certified("anonymous", 1)].map(|who| policy.admit(&who).unwrap().key.clone());
        assert_ne!(keys[0], keys[1]);
        assert!(!is_name(&keys[0]), "no name can be this key");
    }
}
