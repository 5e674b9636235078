//! What a client without a certificate keeps, so that a server knows its unfinished uploads again.
//!
//! 128 random bits in `$XDG_STATE_HOME/sealift/resume-secret` (without the variable: `~/.local/state`). Who has them
//! can go on with those uploads and learn whether what they hold is some content; nothing else.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Bytes of the secret.
const LEN: usize = 16;

/// The secret, made when there is none. None where it cannot be kept: then what is cut begins anew.
pub(super) fn load() -> Option<[u8; LEN]> {
    let directory = directory(|name| std::env::var_os(name))?;
    // Deliberate loss: everything works without it, only from the beginning.
    load_from(&directory).ok()
}

/// Where this user's state lies.
pub(super) fn directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("sealift"))
}

fn load_from(directory: &Path) -> io::Result<[u8; LEN]> {
    let path = directory.join("resume-secret");
    match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut secret = [0; LEN];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    let new = directory.join(format!("resume-secret.{}", std::process::id()));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
        file.write_all(&secret)?;
        file.sync_all()
    });
    // Whoever is first has made it: of two runs, both use that one.
    let linked = written.and_then(|()| match fs::hard_link(&new, &path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    });
    // Deliberate loss: a few bytes under a name that nobody reads.
    let _ = fs::remove_file(&new);
    linked.and_then(|()| read(&path))
}

fn read(path: &Path) -> io::Result<[u8; LEN]> {
    let mut file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others may read it"));
    }
    let mut secret = [0; LEN];
    file.read_exact(&mut secret)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_shown_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("state/sealift");
        let secret = load_from(&directory).unwrap();
        assert_eq!(load_from(&directory).unwrap(), secret);
        let path = directory.join("resume-secret");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load_from(&directory).is_err(), "one that others may read is not used");
    }

    #[test]
    fn it_lies_where_state_lies() {
        let of = |pairs: &[(&str, &str)]| {
            directory(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        assert_eq!(of(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), Some("/s/sealift".into()));
        assert_eq!(of(&[("XDG_STATE_HOME", "s"), ("HOME", "/h")]), Some("/h/.local/state/sealift".into()));
        assert_eq!(of(&[]), None);
    }
}
