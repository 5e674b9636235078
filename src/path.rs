//! Names that come from a peer: checked once, in one place, and escaped wherever they are shown.
//!
//! A [`RemotePath`] is a list of components of 1 to 255 bytes, none of them `.` or `..`, none holding `/` or NUL.
//! The empty list is the root. A value of this type cannot name anything outside the directory that it is
//! applied to; which of these names a server *accepts* is its policy ([`NamePolicy`]).

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::limits;

/// Why a list of bytes is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// A component has no bytes.
    Empty,
    /// A component is `.` or `..`.
    Dots,
    /// A component holds `/`.
    Slash,
    /// A component holds a NUL byte.
    Nul,
    /// A component is longer than [`limits::COMPONENT_LEN_MAX`].
    ComponentTooLong,
    /// The path is longer than [`limits::PATH_LEN_MAX`].
    PathTooLong,
    /// The path has more than [`limits::PATH_DEPTH_MAX`] components.
    TooDeep,
    /// A control character, which this server's policy refuses.
    Control,
    /// Not UTF-8, which this server's policy refuses.
    NotUtf8,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Empty => f.write_str("an empty name"),
            NameError::Dots => f.write_str("`.` and `..` are not names"),
            NameError::Slash => f.write_str("a name with `/` in it"),
            NameError::Nul => f.write_str("a name with a NUL byte in it"),
            NameError::ComponentTooLong => {
                write!(f, "a name longer than {} bytes", limits::COMPONENT_LEN_MAX)
            }
            NameError::PathTooLong => write!(f, "a path longer than {} bytes", limits::PATH_LEN_MAX),
            NameError::TooDeep => write!(f, "a path deeper than {} directories", limits::PATH_DEPTH_MAX),
            NameError::Control => f.write_str("a name with a control character (newline, escape, …) in it"),
            NameError::NotUtf8 => f.write_str("a name that is not UTF-8"),
        }
    }
}

impl std::error::Error for NameError {}

/// One name inside a directory: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Component(Box<[u8]>);

impl Component {
    /// Checks the bytes of one name.
    ///
    /// # Errors
    /// The rule that the bytes break.
    pub fn new(bytes: &[u8]) -> Result<Component, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes == b"." || bytes == b".." {
            return Err(NameError::Dots);
        }
        if bytes.contains(&0) {
            return Err(NameError::Nul);
        }
        if bytes.contains(&b'/') {
            return Err(NameError::Slash);
        }
        if bytes.len() > limits::COMPONENT_LEN_MAX {
            return Err(NameError::ComponentTooLong);
        }
        Ok(Component(bytes.into()))
    }

    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a peer calls a file or directory, below the served root. The empty path is the root itself.
///
/// ```
/// use sealift::path::RemotePath;
/// let path = RemotePath::parse(b"in//2026/dump.sql").unwrap();
/// assert_eq!(path.to_string(), "in/2026/dump.sql");
/// assert!(RemotePath::parse(b"in/../../etc").is_err());
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemotePath(Vec<Component>);

impl RemotePath {
    /// The served root.
    #[must_use]
    pub fn root() -> RemotePath {
        RemotePath(Vec::new())
    }

    /// A path from its components, as they come off the wire.
    ///
    /// # Errors
    /// The rule that a component, or the whole, breaks.
    pub fn from_components<'a>(components: impl IntoIterator<Item = &'a [u8]>) -> Result<RemotePath, NameError> {
        let mut path = RemotePath::root();
        for bytes in components {
            path.push(Component::new(bytes)?)?;
        }
        Ok(path)
    }

    /// A path as a person writes it: components between slashes. Leading, trailing and doubled slashes and `.`
    /// mean nothing; `..` is refused rather than resolved.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &[u8]) -> Result<RemotePath, NameError> {
        RemotePath::from_components(text.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b"."))
    }

    /// Appends one component.
    ///
    /// # Errors
    /// [`NameError::TooDeep`] or [`NameError::PathTooLong`]; the path is unchanged then.
    pub fn push(&mut self, component: Component) -> Result<(), NameError> {
        if self.0.len() >= limits::PATH_DEPTH_MAX {
            return Err(NameError::TooDeep);
        }
        let separator = usize::from(!self.0.is_empty());
        if self.len() + separator + component.0.len() > limits::PATH_LEN_MAX {
            return Err(NameError::PathTooLong);
        }
        self.0.push(component);
        Ok(())
    }

    /// This path with one more component.
    ///
    /// # Errors
    /// As [`RemotePath::push`].
    pub fn join(&self, component: Component) -> Result<RemotePath, NameError> {
        let mut path = self.clone();
        path.push(component)?;
        Ok(path)
    }

    /// This path followed by all components of `tail`.
    ///
    /// # Errors
    /// As [`RemotePath::push`].
    pub fn join_all(&self, tail: &RemotePath) -> Result<RemotePath, NameError> {
        let mut path = self.clone();
        for component in &tail.0 {
            path.push(component.clone())?;
        }
        Ok(path)
    }

    /// The components, outermost first.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        &self.0
    }

    /// Bytes of the path as text, slashes included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|part| part.0.len()).sum::<usize>() + self.0.len().saturating_sub(1)
    }

    /// Whether this is the served root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// As [`RemotePath::is_root`]: a path of no components has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_root()
    }

    /// The last component; none for the root.
    #[must_use]
    pub fn name(&self) -> Option<&Component> {
        self.0.last()
    }

    /// The directory that this is in, and its name there; none for the root.
    #[must_use]
    pub fn split(&self) -> Option<(RemotePath, &Component)> {
        let (name, parent) = self.0.split_last()?;
        Some((RemotePath(parent.to_vec()), name))
    }

    /// Whether `self` is `ancestor` or lies beneath it, by components (`a/bc` is not beneath `a/b`).
    #[must_use]
    pub fn starts_with(&self, ancestor: &RemotePath) -> bool {
        self.0.starts_with(&ancestor.0)
    }

    /// The raw bytes with `/` between components, to be printed by `hash` or compared, never opened as one string.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let parts: Vec<&[u8]> = self.0.iter().map(Component::as_bytes).collect();
        parts.join(&b'/')
    }
}

impl std::str::FromStr for RemotePath {
    type Err = Error;

    /// As [`RemotePath::parse`].
    fn from_str(text: &str) -> Result<RemotePath, Error> {
        RemotePath::parse(text.as_bytes())
            .map_err(|error| Error::new(ErrorKind::Name, format!("remote path `{}`: {error}", escape_text(text))))
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        for (index, part) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("/")?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Which of the possible names a server accepts for new files and directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NamePolicy {
    /// Accept names that are not UTF-8.
    pub allow_non_utf8: bool,
    /// Accept names with control characters (C0, DEL, C1 and line separators).
    pub allow_control: bool,
}

impl NamePolicy {
    /// Whether this policy accepts every component of `path`.
    ///
    /// # Errors
    /// The first rule that a component breaks.
    pub fn check(&self, path: &RemotePath) -> Result<(), NameError> {
        for component in &path.0 {
            match std::str::from_utf8(&component.0) {
                Ok(text) => {
                    if !self.allow_control && text.chars().any(is_control) {
                        return Err(NameError::Control);
                    }
                }
                Err(_) if !self.allow_non_utf8 => return Err(NameError::NotUtf8),
                Err(_) if !self.allow_control && component.0.iter().any(u8::is_ascii_control) => {
                    return Err(NameError::Control);
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}

fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Characters that print nothing or turn text around, and so can disguise a name.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Bytes from a peer, shown so that a terminal, a log line or a JSON string cannot be led astray.
///
/// Printable UTF-8 stays as it is. Everything else is `\n`, `\t`, `\r`, `\xNN` (bytes that are not UTF-8, C0, DEL)
/// or `\u{NNNN}` (C1, separators, bidirectional overrides, zero-width characters). A backslash stays a backslash
/// unless it could be taken for one of these escapes; then it is doubled, so that two names never look alike.
#[derive(Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            let mut chars = chunk.valid().chars().peekable();
            while let Some(c) = chars.next() {
                match c {
                    '\\' if matches!(chars.peek(), Some('n' | 'r' | 't' | 'x' | 'u' | '\\')) => {
                        f.write_str("\\\\")?;
                    }
                    c => write_visibly(f, c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Writes a character so that it is seen and does nothing.
fn write_visibly(f: &mut impl fmt::Write, c: char) -> fmt::Result {
    match c {
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c)),
        c if is_control(c) || is_deceptive(c) => write!(f, "\\u{{{:x}}}", u32::from(c)),
        c => f.write_char(c),
    }
}

/// Text from a peer (messages, agent names), cut to a bound and made harmless. Backslashes stay as they are: names in
/// it are escaped already.
#[must_use]
pub fn escape_text(text: &str) -> String {
    let mut end = text.len().min(limits::PEER_TEXT_LEN_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut shown = String::with_capacity(end);
    for c in text[..end].chars() {
        write_visibly(&mut shown, c).expect("writing to memory cannot fail");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_component(bytes: &[u8], expected: Result<(), NameError>) {
        assert_eq!(Component::new(bytes).map(|_| ()), expected, "component {:?}", Escaped(bytes).to_string());
    }

    #[test]
    fn components_are_ordinary_names_and_nothing_else() {
        for good in [&b"a"[..], b"...", b"..a", b"-rf", b"C:x", b"~", b"a\\b", b"con", b"\xff\xfe", b" ", &[b'x'; 255]]
        {
            check_component(good, Ok(()));
        }
        check_component(b"", Err(NameError::Empty));
        check_component(b".", Err(NameError::Dots));
        check_component(b"..", Err(NameError::Dots));
        check_component(b"a/b", Err(NameError::Slash));
        check_component(b"/", Err(NameError::Slash));
        check_component(b"a\0", Err(NameError::Nul));
        check_component(&[b'x'; 256], Err(NameError::ComponentTooLong));
    }

    #[test]
    fn parsing_never_resolves_dots_upwards() {
        assert_eq!(RemotePath::parse(b"/a//b/./c/").unwrap().to_string(), "a/b/c");
        assert!(RemotePath::parse(b"").unwrap().is_root());
        assert_eq!(RemotePath::parse(b"a/../b"), Err(NameError::Dots));
        assert_eq!(RemotePath::parse(&[b'x'; 4097]), Err(NameError::ComponentTooLong));
        let deep = vec!["d"; 257].join("/");
        assert_eq!(RemotePath::parse(deep.as_bytes()), Err(NameError::TooDeep));
        let long = vec!["x".repeat(255); 17].join("/");
        assert_eq!(RemotePath::parse(long.as_bytes()), Err(NameError::PathTooLong));
    }

    #[test]
    fn prefixes_are_counted_by_components() {
        let path = |text: &str| RemotePath::parse(text.as_bytes()).unwrap();
        assert!(path("a/b/c").starts_with(&path("a/b")));
        assert!(!path("a/bc").starts_with(&path("a/b")));
        assert!(path("a").starts_with(&RemotePath::root()));
    }

    #[test]
    fn the_default_policy_refuses_what_hides() {
        let policy = NamePolicy::default();
        let check = |bytes: &[u8]| policy.check(&RemotePath::from_components([bytes]).unwrap());
        assert_eq!(check(b"a\nb"), Err(NameError::Control));
        assert_eq!(check("a\u{85}b".as_bytes()), Err(NameError::Control));
        assert_eq!(check(b"\xff"), Err(NameError::NotUtf8));
        assert_eq!(check("naïve \\ name".as_bytes()), Ok(()));
    }

    #[test]
    fn a_peers_text_is_escaped_once() {
        assert_eq!(escape_text("a\\nb \u{1b}[2J"), "a\\nb \\x1b[2J");
        assert_eq!(escape_text(&"é".repeat(5000)).len(), limits::PEER_TEXT_LEN_MAX);
    }

    #[test]
    fn what_is_shown_is_unambiguous_and_harmless() {
        for (bytes, shown) in [
            (&b"plain \\ name"[..], "plain \\ name"),
            (b"a\\b", "a\\b"),
            (b"a\nb", "a\\nb"),
            (b"a\\nb", "a\\\\nb"),
            (b"\x1b[31m", "\\x1b[31m"),
            (b"\xff", "\\xff"),
            ("\u{202e}txt".as_bytes(), "\\u{202e}txt"),
            ("\u{9b}".as_bytes(), "\\u{9b}"),
        ] {
            assert_eq!(Escaped(bytes).to_string(), shown);
        }
    }
}
