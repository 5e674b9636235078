//! Patterns in remote names: `*`, `?` and `[...]`, each inside one component.
//!
//! As in a shell, a name that begins with a dot is met only by a pattern that does too.

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::path::{Component, RemotePath};
use crate::protocol::EntryKind;

/// Names that one pattern may stand for: more than any list that a person means.
const MATCHES_MAX: usize = 1 << 20;

/// Whether a path holds a character that means something in a pattern.
#[must_use]
pub fn is_pattern(path: &RemotePath) -> bool {
    path.components().iter().any(is_pattern_component)
}

fn is_pattern_component(component: &Component) -> bool {
    component.as_bytes().iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

impl Client {
    /// The names on the server that a pattern stands for, in the order of their bytes.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Limit` when there are too many; what listing can fail with.
    pub async fn expand(&self, pattern: &RemotePath) -> Result<Vec<RemotePath>> {
        let mut found = vec![RemotePath::root()];
        let last = pattern.components().len().saturating_sub(1);
        for (index, component) in pattern.components().iter().enumerate() {
            let mut next = Vec::new();
            for base in found {
                if !is_pattern_component(component) {
                    next.extend(base.join(component.clone()));
                    continue;
                }
                let entries = match self.list(&base).await {
                    Ok(entries) => entries,
                    // A literal component behind a pattern need not be there in every match.
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotDirectory) => continue,
                    Err(error) => return Err(error),
                };
                for entry in entries {
                    let can_hold_more = index == last || entry.kind == EntryKind::Directory;
                    if can_hold_more && matches(component.as_bytes(), &entry.name) {
                        next.extend(Component::new(&entry.name).and_then(|name| base.join(name)));
                    }
                }
                if next.len() > MATCHES_MAX {
                    let message = format!("{pattern} stands for more than {MATCHES_MAX} names");
                    return Err(Error::new(ErrorKind::Limit, message));
                }
            }
            found = next;
        }
        // A literal end is only known to be there when it was asked for.
        if pattern.components().last().is_some_and(|last| !is_pattern_component(last)) {
            let mut there = Vec::new();
            for path in found {
                match self.stat(&path).await {
                    Ok(_) => there.push(path),
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotDirectory) => {}
                    Err(error) => return Err(error),
                }
            }
            found = there;
        }
        found.sort();
        if found.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, format!("no name matches {pattern}")));
        }
        Ok(found)
    }
}

/// Whether a name is one that a pattern stands for. Takes time in proportion to the product of their lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut at, mut position) = (0, 0);
    // Where the last `*` was, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while position < name.len() {
        // The next place in the pattern, and how much of the name is taken.
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, position));
                at += 1;
                continue;
            }
            Some(b'[') => match class(pattern, at, name[position]) {
                Some((end, is_member)) => is_member.then_some((end, 1)),
                // Without its end it is an ordinary character.
                None => (name[position] == b'[').then_some((at + 1, 1)),
            },
            Some(b'?') => Some((at + 1, char_len(&name[position..]))),
            Some(&byte) => (byte == name[position]).then_some((at + 1, 1)),
            None => None,
        };
        match (step, star) {
            (Some((next, len)), _) => {
                at = next;
                position += len;
            }
            (None, Some((star_at, taken))) => {
                star = Some((star_at, taken + 1));
                (at, position) = (star_at + 1, taken + 1);
            }
            (None, None) => return false,
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|&byte| byte == b'*'))
}

/// `?` takes one character of UTF-8, or one byte of what is none.
fn char_len(rest: &[u8]) -> usize {
    let len = match rest.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => 1,
    };
    let is_whole = rest.get(..len).is_some_and(|bytes| std::str::from_utf8(bytes).is_ok());
    if is_whole { len } else { 1 }
}

/// The end of the class that begins at `at`, and whether it has `byte`.
fn class(pattern: &[u8], at: usize, byte: u8) -> Option<(usize, bool)> {
    let mut index = at + 1;
    let is_negated = matches!(pattern.get(index), Some(b'!' | b'^'));
    index += usize::from(is_negated);
    let start = index;
    let mut is_member = false;
    loop {
        let low = *pattern.get(index)?;
        if low == b']' && index > start {
            return Some((index + 1, is_member != is_negated));
        }
        match (pattern.get(index + 1), pattern.get(index + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                is_member |= (low..=high).contains(&byte);
                index += 3;
            }
            _ => {
                is_member |= low == byte;
                index += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} and {name}");
    }

    #[test]
    fn patterns_are_those_of_a_shell() {
        check("*", "a", true);
        check("*", ".a", false);
        check(".*", ".a", true);
        check("*.rs", "main.rs", true);
        check("*.rs", "main.rsx", false);
        check("a*b*c", "aXbXbXc", true);
        check("a*b*c", "aXbXbX", false);
        check("?", "a", true);
        check("?", "ü", true);
        check("??", "ü", false);
        check("?x", "üx", true);
        check("[a-c]x", "bx", true);
        check("[a-c]x", "dx", false);
        check("[!a-c]x", "dx", true);
        check("[]]", "]", true);
        check("[a", "[a", true);
        check("[a-]", "-", true);
        check("**", "", true);
        check("a**", "a", true);
        check("", "a", false);
        check(&format!("{}b", "a*".repeat(50)), &"a".repeat(200), false);
    }
}
