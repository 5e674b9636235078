//! Opening a tree: what is refused as a root, the lock, what a dead server left, and what the file system can do.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::change::{LEFTOVER_AGE, make_private, remove_below};
use super::health::Place;
use super::partial::{PARTIAL_NAME, Partials};
use super::publish::WholeSync;
use super::recorded::RECORD_NAME;
use super::sys;
use super::tree::{Exchanges, TREES_NAME};
use super::upload::{is_in_memory, probe_rename};
use super::walk::{Directory, Shared};
use super::{Core, Identity, Kind, STATE_NAME, State, Store, StoreOptions, durable};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::limits::KEEP_PARTIAL;
use crate::path::Escaped;

/// The name of the lock in the state directory.
pub(super) const LOCK_NAME: &str = "lock";
/// The name of the directory for staging files in the state directory.
const STAGING_NAME: &str = "staging";
/// The name of the directory for records of invites in the state directory.
pub(super) const INVITES_NAME: &str = "invites";
/// Bytes of the lock file that are shown to who finds it taken.
pub(super) const LOCK_LEN_MAX: u64 = 256;

impl Store {
    /// Opens a root to be served: makes its last component (0700) if it is missing, takes its lock, removes what a
    /// dead server left in staging, and finds out what its file system can do ([`Store::warnings`]).
    ///
    /// # Errors
    /// `Usage` for a root that is `/` or a home directory, that cannot be written, or that another server serves.
    pub fn open_served(root: &Path, options: StoreOptions) -> Result<Store> {
        let label = Escaped(root.as_os_str().as_encoded_bytes()).to_string();
        make_last(root, &label)?;
        let fd = open_root(root, &label).map_err(usage)?;
        refuse_precious(root, &fd, &label, options.home.as_deref())?;
        let (state, reserved) = open_state(&fd, &label, options.invites)?;
        let mut warnings = Vec::new();
        let openat2 = sys::has_openat2(&fd);
        if !openat2 {
            warnings.push(
                "openat2 is not available here (kernel before 5.6, or a filter): paths are walked one component at a time"
                    .to_owned(),
            );
        }
        let nameless = probe(&fd, &state, &label, &mut warnings)?;
        let mut core = build(fd, label.clone(), options, Some(state), openat2, nameless, warnings)?;
        core.reserved = reserved;
        core.place = Some(Place::of(root, &core.root, &core.reserved, &core.label)?);
        let store = Store::from(core);
        let what = || format!("look through the unfinished uploads in {label}/{STATE_NAME}/{PARTIAL_NAME}");
        store.inner.load_partials().while_doing(what).map_err(usage)?;
        let what = || format!("look through the unfinished trees in {label}/{STATE_NAME}/{TREES_NAME}");
        store.inner.load_trees().while_doing(what).map_err(usage)?;
        Ok(store)
    }

    /// Opens a directory to save into: no lock, no state directory, staging beside the targets. It is made, with
    /// those above it, if it is missing.
    ///
    /// # Errors
    /// `NotDirectory`; what making and opening a directory can fail with.
    pub fn open_local(directory: &Path) -> Result<Store> {
        Store::open_local_with(directory, StoreOptions::default())
    }

    /// As [`Store::open_local`], with options.
    ///
    /// # Errors
    /// As [`Store::open_local`].
    pub fn open_local_with(directory: &Path, options: StoreOptions) -> Result<Store> {
        let label = Escaped(directory.as_os_str().as_encoded_bytes()).to_string();
        make_all(directory, &label)?;
        let fd = open_root(directory, &label)?;
        let openat2 = sys::has_openat2(&fd);
        build(fd, label, options, None, openat2, true, Vec::new()).map(Store::from)
    }
}

/// A root that cannot be served is a mistake of who starts the server.
fn usage(error: Error) -> Error {
    error.with_kind(ErrorKind::Usage)
}

pub(super) fn build(
    root: OwnedFd,
    label: String,
    options: StoreOptions,
    state: Option<State>,
    openat2: bool,
    nameless: bool,
    warnings: Vec<String>,
) -> Result<Core> {
    let directories = Shared::default();
    let root = Directory::new(root).while_doing(|| format!("look at {label}"))?;
    let root = directories.share(root);
    let in_memory = is_in_memory(&*root);
    let is_served = state.is_some();
    Ok(Core {
        root,
        in_memory,
        label,
        options,
        state,
        reserved: Vec::new(),
        openat2,
        warnings,
        nameless: AtomicBool::new(nameless),
        directories,
        durable: durable::Directories::default(),
        staging_places: Mutex::default(),
        // A client keeps what it has of large files for its next run.
        leftover_age: if is_served { LEFTOVER_AGE } else { KEEP_PARTIAL },
        place: None,
        health: Mutex::default(),
        sync_failures: AtomicU32::new(0),
        next_order: AtomicU64::new(0),
        whole_sync: WholeSync::new(),
        partials: Partials::default(),
        exchanges: Exchanges::default(),
    })
}

pub(super) fn open_root(path: &Path, label: &str) -> Result<OwnedFd> {
    // The person who runs this may name the root through links; below it none is followed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
        let user = rustix::process::geteuid().as_raw();
        let hint = match rustix::fs::stat(path) {
            Ok(stat) if errno == Errno::ACCESS => {
                format!(" (it belongs to user {}, and this runs as user {user})", stat.st_uid)
            }
            _ => String::new(),
        };
        Error::io(format!("open the directory {label}{hint}"), errno)
    })
}

/// Makes the last component of a path if it is missing, and its name durable.
fn make_last(path: &Path, label: &str) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) => sync_parent(path, label),
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::io(format!("make the directory {label}"), errno).with_kind(ErrorKind::Usage)),
    }
}

/// Makes a directory and those above it, as far as they are missing, durably.
fn make_all(path: &Path, label: &str) -> Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|part| !part.as_os_str().is_empty() && matches!(rustix::fs::stat(*part), Err(Errno::NOENT)))
        .collect();
    for part in missing.into_iter().rev() {
        match rustix::fs::mkdir(part, Mode::from_raw_mode(0o777)) {
            Ok(()) => sync_parent(part, label)?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::io(format!("make the directory {label}"), errno)),
        }
    }
    Ok(())
}

fn sync_parent(path: &Path, label: &str) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let what = || format!("make the directory {label} durable");
    let parent = rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .while_doing(what)?;
    sys::sync(parent).while_doing(what)
}

/// Refuses a root whose other content nobody would want to serve.
pub(super) fn refuse_precious(path: &Path, root: &OwnedFd, label: &str, home: Option<&Path>) -> Result<()> {
    let identity = sys::status(root).while_doing(|| format!("look at {label}"))?.identity;
    let refuse = |why: &str| {
        Err(Error::new(ErrorKind::Usage, format!("the root {label} is {why}: name a directory made for this")))
    };
    let is = |other: &Path| rustix::fs::stat(other).is_ok_and(|stat| sys::Status::from(stat).identity == identity);
    if is(Path::new("/")) {
        return refuse("the root of the machine");
    }
    if home.is_some_and(is) || is(Path::new("/root")) {
        return refuse("a home directory");
    }
    // Not following what it is called, but where it is.
    let real: PathBuf = path.canonicalize().while_doing(|| format!("look at {label}"))?;
    if real == Path::new("/home") || real.parent() == Some(Path::new("/home")) {
        return refuse("a home directory");
    }
    Ok(())
}

fn open_state(root: &OwnedFd, label: &str, with_invites: bool) -> Result<(State, Vec<Identity>)> {
    let directory = private_directory(root, STATE_NAME, label)?;
    let lock = take_lock(&directory, label)?;
    let staging = private_directory(&directory, STAGING_NAME, label)?;
    let partial = private_directory(&directory, PARTIAL_NAME, label)?;
    let trees = private_directory(&directory, TREES_NAME, label)?;
    let invites = with_invites.then(|| private_directory(&directory, INVITES_NAME, label)).transpose()?;
    let what = || format!("remove what an earlier server left in {label}/{STATE_NAME}/{STAGING_NAME}");
    clean(&staging).while_doing(what)?;
    sys::sync(&directory).and_then(|()| sys::sync(root)).while_doing(|| format!("sync {label}"))?;
    let reserved = reserved_in(&directory).while_doing(|| format!("read {label}/{STATE_NAME}"))?;
    Ok((State { directory, staging, partial, trees, invites, _lock: lock }, reserved))
}

/// The state directory and every directory in it.
pub(super) fn reserved_in(state: &OwnedFd) -> rustix::io::Result<Vec<Identity>> {
    // A handle of its own: its place in the directory is nobody else's.
    let directory = sys::open_directory_at(state, b".")?;
    let mut reserved = vec![sys::status(&directory)?.identity];
    let mut memory = Vec::with_capacity(32 * 1024);
    loop {
        let names = sys::read_names(&directory, &mut memory)?;
        if names.is_empty() {
            return Ok(reserved);
        }
        let others = names.iter().filter_map(|name| sys::status_at(&directory, &name.bytes).ok());
        reserved.extend(others.filter(|status| status.kind == Kind::Directory).map(|status| status.identity));
    }
}

/// Opens a directory that only this user may enter, making it if it is missing.
fn private_directory(parent: &OwnedFd, name: &str, label: &str) -> Result<OwnedFd> {
    let user = rustix::process::geteuid().as_raw();
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => {
            let owner = sys::status(parent).map_or(0, |status| status.owner);
            let message =
                format!("the root {label} can't be written: it belongs to user {owner}, and this runs as user {user}");
            return Err(Error::io(message, errno).with_kind(ErrorKind::Usage));
        }
    }
    let what = || format!("open {name} in the root {label}");
    let directory = sys::open_directory_at(parent, name.as_bytes())
        .map_err(|errno| Error::io(what(), errno).with_kind(ErrorKind::Usage))?;
    let status = sys::status(&directory).while_doing(what)?;
    if status.owner != user {
        let owner = status.owner;
        let message = format!("{name} in the root {label} belongs to user {owner}, and this runs as user {user}");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    if status.mode != 0o700 {
        make_private(&directory).while_doing(what)?;
    }
    Ok(directory)
}

/// Takes the lock of a root for as long as the handle lives, and leaves word of who has it.
fn take_lock(directory: &OwnedFd, label: &str) -> Result<OwnedFd> {
    let what = || format!("lock the root {label}");
    let file = sys::open_at(directory, LOCK_NAME.as_bytes(), OFlags::RDWR | OFlags::CREATE, 0o600).while_doing(what)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = Vec::new();
            let read = std::fs::File::from(file).take(LOCK_LEN_MAX).read_to_end(&mut holder);
            let holder = match read {
                Ok(1..) => Escaped(holder.trim_ascii()).to_string(),
                Ok(0) | Err(_) => "another process".to_owned(),
            };
            return Err(Error::new(ErrorKind::Usage, format!("the root {label} is already served by {holder}")));
        }
        Err(errno) => return Err(Error::io(what(), errno).with_kind(ErrorKind::Usage)),
    }
    let since = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_else(|_| "an unknown time".to_owned());
    let word = format!("process {} since {since}\n", rustix::process::getpid().as_raw_pid());
    rustix::fs::ftruncate(&file, 0).while_doing(what)?;
    let mut file = std::fs::File::from(file);
    file.write_all(word.as_bytes()).while_doing(what)?;
    Ok(file.into())
}

/// Removes everything in the staging directory.
fn clean(staging: &OwnedFd) -> rustix::io::Result<()> {
    let mut memory = Vec::with_capacity(32 * 1024);
    loop {
        // From the beginning each time: what was seen is gone.
        let directory = sys::open_directory_at(staging, b".")?;
        let names = sys::read_names(&directory, &mut memory)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            match sys::unlink(&directory, &name.bytes) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    remove_below(&directory, &name.bytes, |_| false).map_err(|failure| match failure {
                        super::change::RemoveFailure::System(errno) => errno,
                        _ => Errno::IO,
                    })?;
                }
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Finds out what works here; tells whether nameless files do.
fn probe(root: &OwnedFd, state: &State, label: &str, warnings: &mut Vec<String>) -> Result<bool> {
    let name = super::walk::hidden_name().while_doing(|| "ask for random bytes".to_owned())?;
    let cannot = || format!("the root {label} can't be written");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let file = sys::open_at(root, name.as_bytes(), flags, 0o600).while_doing(cannot).map_err(usage)?;
    let attributes = rustix::fs::fsetxattr(&file, RECORD_NAME, b"probe", XattrFlags::empty());
    let written = rustix::io::pwrite(&file, b"probe", 0);
    sys::unlink(root, name.as_bytes()).while_doing(cannot).map_err(usage)?;
    written.while_doing(cannot).map_err(usage)?;
    if let Err(errno) = attributes {
        warnings.push(format!(
            "{label} takes no user attributes ({errno}): hashes are not kept with the files, and are computed anew each time"
        ));
    }
    if let Err(errno) = probe_rename(&state.staging, root) {
        warnings.push(format!(
            "files can't be renamed from {STATE_NAME} into {label} ({errno}): staging lies beside targets"
        ));
    }
    let nameless = sys::open_at(root, b".", OFlags::TMPFILE | OFlags::RDWR, 0o600).and_then(|file| {
        sys::link_open_file(&file, root.as_fd(), name.as_bytes())?;
        sys::unlink(root, name.as_bytes())
    });
    if let Err(errno) = nameless {
        warnings.push(format!("{label} has no nameless files ({errno}): small files are staged under hidden names"));
    }
    Ok(nameless.is_ok())
}
