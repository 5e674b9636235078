//! The beginning of a new tree: everything that the old one has, under second names of the same files where that can
//! be, as copies elsewhere, and written down as it was found.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result as IoResult, retry_on_intr};

use super::record::{Block, Carried, ManifestWriter, Seen, pair_of};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::{Component, RemotePath};
use crate::storage::read::{modified_at, read_full, read_link};
use crate::storage::sys::{self, Status};
use crate::storage::walk::is_hidden;
use crate::storage::{Identity, Kind};

/// Bytes that are read and written at a time where the kernel does not copy by itself.
const COPY_LEN: usize = 256 * 1024;
/// Bytes of the names or of one value of extended attributes: what the kernel allows.
const XATTR_LEN_MAX: usize = 64 * 1024;

/// Copies one tree.
pub(super) struct Copier<'a> {
    /// What it is called, for messages.
    pub(super) shown: &'a RemotePath,
    pub(super) manifest: ManifestWriter,
    pub(super) is_reserved: &'a dyn Fn(Identity) -> bool,
}

impl Copier<'_> {
    fn name(&self, path: &RemotePath) -> RemotePath {
        self.shown.join_all(path).unwrap_or_else(|_| path.clone())
    }

    fn changed(&self, path: &RemotePath) -> Error {
        let message = format!("{} changed while a new tree was begun beside it: run it again", self.name(path));
        Error::new(ErrorKind::Changed, message)
    }

    /// Fills `new` with what `old` has, and gives it the same metadata. As deep as a path can be.
    pub(super) fn directory(&mut self, old: &OwnedFd, new: &OwnedFd, path: &RemotePath) -> Result<()> {
        let what = |path: &RemotePath| format!("carry {path} over to the new tree");
        let shown = self.name(path);
        let before = sys::status(old).while_doing(|| what(&shown))?;
        let mut entries = Vec::new();
        for name in all_names(old).while_doing(|| what(&shown))? {
            // Staging files of others are no part of it.
            if is_hidden(&name) {
                continue;
            }
            let component = Component::new(&name).map_err(|error| Error::new(ErrorKind::Name, error.to_string()))?;
            let below = path.join(component).map_err(|error| {
                Error::new(ErrorKind::Name, format!("{shown} has names too deep to be carried over: {error}"))
            })?;
            let shown = self.name(&below);
            let status = match sys::status_at(old, &name) {
                Ok(status) => status,
                Err(Errno::NOENT) => return Err(self.changed(&below)),
                Err(errno) => return Err(Error::io(what(&shown), errno)),
            };
            if status.identity.device != before.identity.device || is_mount_point(old, &name) {
                let message = format!("{shown} is a mount point, and what holds one cannot be replaced as a whole");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            if (self.is_reserved)(status.identity) {
                let message = format!("{shown} is the server's own, and what holds it cannot be replaced as a whole");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            let (status, made) = if status.kind == Kind::Directory {
                sys::make_directory(new, &name, Mode::RWXU).while_doing(|| what(&shown))?;
                let from = sys::open_directory_at(old, &name).while_doing(|| what(&shown))?;
                let to = sys::open_directory_at(new, &name).while_doing(|| what(&shown))?;
                if sys::status(&from).while_doing(|| what(&shown))?.identity != status.identity {
                    return Err(self.changed(&below));
                }
                self.directory(&from, &to, &below)?;
                (status, sys::status(&to).while_doing(|| what(&shown))?.identity)
            } else {
                self.other(old, new, &name, status, &below)?
            };
            entries.push(Carried { name, seen: Seen::of(&status), new: pair_of(made) });
        }
        copy_attributes(old, new).while_doing(|| what(&shown))?;
        let block = Block { path: path.clone(), seen: Seen::of(&before), entries };
        self.manifest.add(&block).while_doing(|| format!("write down what {shown} holds"))
    }

    /// What is no directory. Returns how it was, and what stands for it.
    fn other(
        &self,
        old: &OwnedFd,
        new: &OwnedFd,
        name: &[u8],
        status: Status,
        path: &RemotePath,
    ) -> Result<(Status, Identity)> {
        let shown = self.name(path);
        let what = || format!("carry {shown} over to the new tree");
        match retry_on_intr(|| rustix::fs::linkat(old, name, new, name, AtFlags::empty())) {
            Ok(()) => {
                // The new name has changed its ctime; all else must be as it was.
                let linked = sys::status_at(new, name).while_doing(what)?;
                if linked.identity != status.identity {
                    return Err(self.changed(path));
                }
                Ok((linked, linked.identity))
            }
            Err(Errno::NOENT) => Err(self.changed(path)),
            // Too many names, somebody else's file, a file system without second names.
            Err(Errno::PERM | Errno::MLINK | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV) => {
                let made = match status.kind {
                    Kind::File => match copy_file(old, name, new, &status) {
                        Ok(true) => sys::status_at(new, name).while_doing(what)?,
                        Ok(false) => return Err(self.changed(path)),
                        Err(errno) => return Err(Error::io(what(), errno)),
                    },
                    Kind::Link => copy_link(old, name, new, &status).while_doing(what)?,
                    Kind::Directory | Kind::Special => {
                        let message = format!("{shown} is {}, which cannot be carried over here", status.kind);
                        return Err(Error::new(ErrorKind::Unsupported, message));
                    }
                };
                Ok((status, made.identity))
            }
            Err(errno) => Err(Error::io(what(), errno)),
        }
    }
}

/// All names in a directory but `.` and `..`.
pub(super) fn all_names(directory: impl AsFd) -> IoResult<Vec<Vec<u8>>> {
    // A handle of its own: its place in the directory is nobody else's.
    let directory = sys::open_directory_at(directory, b".")?;
    let mut memory = Vec::with_capacity(32 * 1024);
    let mut all = Vec::new();
    loop {
        let names = sys::read_names(&directory, &mut memory)?;
        if names.is_empty() {
            return Ok(all);
        }
        all.extend(names.into_iter().map(|name| name.bytes));
    }
}

/// Whether something is mounted there, also from the same file system.
pub(super) fn is_mount_point(directory: impl AsFd, name: &[u8]) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS).is_ok_and(|status| {
        status.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
            && status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

/// False: it changed meanwhile.
fn copy_file(old: &OwnedFd, name: &[u8], new: &OwnedFd, status: &Status) -> IoResult<bool> {
    let from = sys::open_at(old, name, OFlags::RDONLY, 0)?;
    let to = sys::open_at(new, name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600)?;
    if sys::status(&from)?.version() != status.version() {
        return Ok(false);
    }
    if retry_on_intr(|| rustix::fs::ioctl_ficlone(&to, &from)).is_err() && !copy_content(&from, &to, status.size)? {
        return Ok(false);
    }
    copy_attributes(&from, &to)?;
    Ok(sys::status(&from)?.version() == status.version())
}

fn copy_content(from: &OwnedFd, to: &OwnedFd, size: u64) -> IoResult<bool> {
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(COPY_LEN)];
    let mut offset = 0;
    while offset < size {
        let len = usize::try_from(size - offset).unwrap_or(usize::MAX).min(COPY_LEN);
        if !read_full(from, offset, &mut buffer[..len])? {
            return Ok(false);
        }
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            match retry_on_intr(|| rustix::io::pwrite(to, rest, offset))? {
                0 => return Err(Errno::IO),
                count => {
                    offset += count as u64;
                    rest = &rest[count..];
                }
            }
        }
    }
    Ok(true)
}

fn copy_link(old: &OwnedFd, name: &[u8], new: &OwnedFd, status: &Status) -> IoResult<Status> {
    let target = read_link(old, name)?;
    retry_on_intr(|| rustix::fs::symlinkat(target.as_slice(), new, name))?;
    let times = modified_at(status.mtime);
    retry_on_intr(|| rustix::fs::utimensat(new, name, &times, AtFlags::SYMLINK_NOFOLLOW))?;
    sys::status_at(new, name)
}

/// Owner, extended attributes, mode and times: everything that a copy has besides its content.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> IoResult<()> {
    let stat = rustix::fs::fstat(from)?;
    // Who may not give files away keeps them: they are the copier's then, as what it stores anew is.
    let _ = rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), None);
    let _ = rustix::fs::fchown(to, None, Some(Gid::from_raw(stat.st_gid)));
    copy_extended(from, to)?;
    // Bits that run a program as its owner or group are for that owner and group alone.
    let new = rustix::fs::fstat(to)?;
    let kept = [(stat.st_uid == new.st_uid, 0o4000_u32), (stat.st_gid == new.st_gid, 0o2000)];
    let mode = kept.iter().filter(|(is_same, _)| !is_same).fold(stat.st_mode & 0o7777, |mode, (_, bit)| mode & !bit);
    sys::set_mode(to, mode)?;
    // The times as they are, to the nanosecond.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // the types differ between processors
    let time = |secs: i64, nanos: i64| Timespec { tv_sec: secs, tv_nsec: nanos };
    #[allow(clippy::unnecessary_cast)]
    let times = Timestamps {
        last_access: time(stat.st_atime as i64, stat.st_atime_nsec as i64),
        last_modification: time(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
    };
    sys::set_times(to, &times)
}

fn copy_extended(from: &OwnedFd, to: &OwnedFd) -> IoResult<()> {
    let mut names = vec![0; XATTR_LEN_MAX];
    let len = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut value = vec![0; XATTR_LEN_MAX];
    let has = |name: &[u8]| names[..len.min(XATTR_LEN_MAX)].split(|&byte| byte == 0).any(|other| other == name);
    for name in [&b"system.posix_acl_default"[..], b"system.posix_acl_access"] {
        if !has(name) {
            // Inherited from where it is built; where there is none, or no such thing, nothing is to be done.
            let _ = rustix::fs::fremovexattr(to, name);
        }
    }
    for name in names[..len.min(XATTR_LEN_MAX)].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let len = match rustix::fs::fgetxattr(from, name, &mut value[..]) {
            Ok(len) => len,
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(errno),
        };
        let set = rustix::fs::fsetxattr(to, name, &value[..len.min(XATTR_LEN_MAX)], XattrFlags::empty());
        // Labels of the system are given to new files by the system.
        let must = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        match set {
            Err(errno) if must => return Err(errno),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
