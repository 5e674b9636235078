//! Which symbolic links of a tree may be made on the other side: relative ones that cannot lead out of it.

use std::fmt;

use crate::limits;

/// Why a link is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRefusal {
    /// The target is empty, too long or holds a NUL byte: no file system makes such a link.
    Malformed,
    /// The target begins with a slash.
    Absolute,
    /// The target leads out of the tree.
    Outside,
    /// The target goes up after it went down: where that leads depends on other links.
    Winding,
}

impl fmt::Display for LinkRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkRefusal::Malformed => "a link with a target that cannot be",
            LinkRefusal::Absolute => "a link to an absolute path",
            LinkRefusal::Outside => "a link that leads out of the tree",
            LinkRefusal::Winding => "a link that goes up through other names",
        })
    }
}

impl std::error::Error for LinkRefusal {}

/// Checks the target of a link that lies in a directory `depth` levels below the top of the transferred tree.
///
/// Only leading `..` count their way up: `name/..` may be somewhere else when `name` is itself a link. As the
/// directory of the link is a real one, and each link on the way keeps this rule, none of them ever leads out.
///
/// # Errors
/// The rule that it breaks.
pub fn check_link(depth: usize, target: &[u8]) -> Result<(), LinkRefusal> {
    if target.is_empty() || target.len() > limits::LINK_TARGET_LEN_MAX || target.contains(&0) {
        return Err(LinkRefusal::Malformed);
    }
    if target.first() == Some(&b'/') {
        return Err(LinkRefusal::Absolute);
    }
    let mut level = depth;
    let mut went_down = false;
    for part in target.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part != b".." {
            went_down = true;
        } else if went_down {
            return Err(LinkRefusal::Winding);
        } else {
            level = level.checked_sub(1).ok_or(LinkRefusal::Outside)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(depth: usize, target: &str, expected: Result<(), LinkRefusal>) {
        assert_eq!(check_link(depth, target.as_bytes()), expected, "{target} at depth {depth}");
    }

    #[test]
    fn only_links_that_stay_inside_are_made() {
        check(0, "x", Ok(()));
        check(0, ".", Ok(()));
        check(0, "a/b/./c//d", Ok(()));
        check(0, "..", Err(LinkRefusal::Outside));
        check(0, "../tree/x", Err(LinkRefusal::Outside));
        check(1, "..", Ok(()));
        check(2, "../../x", Ok(()));
        check(2, "./.././../x", Ok(()));
        check(2, "../../../x", Err(LinkRefusal::Outside));
        check(2, "/etc/passwd", Err(LinkRefusal::Absolute));
        check(2, "a/../b", Err(LinkRefusal::Winding));
        check(2, "../a/..", Err(LinkRefusal::Winding));
        check(0, "", Err(LinkRefusal::Malformed));
        check(0, "a\0b", Err(LinkRefusal::Malformed));
        check(0, &"x".repeat(limits::LINK_TARGET_LEN_MAX + 1), Err(LinkRefusal::Malformed));
        check(0, "...", Ok(()));
    }
}
