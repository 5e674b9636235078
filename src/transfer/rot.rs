//! Whether what was read of a stored file is what was stored.

use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;

/// Compares the hash of what was read of a version with the one that was recorded of that very version, if any was.
/// Both sides of a download do: the server, so that nobody is given damaged content for good, and the client, which
/// believes no server.
///
/// # Errors
/// `Rotten` when they differ: size and time are those of what was stored, and the content is not.
pub fn check_recorded(recorded: Option<Root>, found: Root) -> Result<()> {
    let Some(recorded) = recorded.filter(|&recorded| recorded != found) else { return Ok(()) };
    let message = format!(
        "its content on the server is not what was stored there ({recorded} then, {found} now), while its size and \
         time say that nobody changed it: it is damaged. Get it from elsewhere; or, to have it as it is, `touch` it on \
         the server, and it counts as changed"
    );
    Err(Error::new(ErrorKind::Rotten, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_hash_than_the_recorded_one_is_rot() {
        let (one, other) = (Root::of(b"one"), Root::of(b"other"));
        check_recorded(None, one).unwrap();
        check_recorded(Some(one), one).unwrap();
        let error = check_recorded(Some(one), other).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rotten);
        assert!(error.to_string().contains(&format!("({one} then, {other} now)")), "{error}");
    }
}
