//! System calls as this layer needs them: relative to a directory handle, retried when interrupted, typed results.
//!
//! Everything that exists on Linux only is called from here or from `upload.rs`.
//!
//! What changes files and names on the way in is called from here alone, and under test passes `simulated` first and
//! last: the simulation's disk, which fails calls and knows what a power cut would leave. There is nothing of it in a
//! build that is not a test.

use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    Advice, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, Stat, StatxFlags,
    Timestamps, XattrFlags,
};
use rustix::io::{Errno, Result, retry_on_intr};

#[cfg(test)]
use super::simulated;
use super::{Identity, Kind, Mtime, Version};
use crate::path::Component;

/// How a directory is opened, wherever it is.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Bytes of path that are handed to the kernel at a time; `PATH_MAX` counts a NUL too.
const OPEN_LEN_MAX: usize = 2048;

/// What `fstat` and `fstatat` say, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    pub(super) identity: Identity,
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) owner: u32,
    /// How many names it has.
    pub(super) names: u64,
    pub(super) mtime: Mtime,
    pub(super) ctime: Mtime,
}

impl Status {
    pub(super) fn version(&self) -> Version {
        Version { identity: self.identity, size: self.size, mtime: self.mtime, ctime: self.ctime }
    }
}

// The fields of `Stat` have other widths on other processors, where these casts are needed.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
impl From<Stat> for Status {
    fn from(stat: Stat) -> Status {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            _ => Kind::Special,
        };
        Status {
            identity: Identity { device: stat.st_dev as u64, inode: stat.st_ino as u64 },
            kind,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            owner: stat.st_uid,
            names: stat.st_nlink as u64,
            mtime: Mtime::clamped(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime: Mtime::clamped(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }
}

/// What an open file is.
pub(super) fn status(file: impl AsFd) -> Result<Status> {
    retry_on_intr(|| rustix::fs::fstat(&file)).map(Status::from)
}

/// What stands under a name; a link is itself.
pub(super) fn status_at(directory: impl AsFd, name: &[u8]) -> Result<Status> {
    retry_on_intr(|| rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)).map(Status::from)
}

/// Opens the directory of this one name.
pub(super) fn open_directory_at(directory: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    retry_on_intr(|| rustix::fs::openat(&directory, name, DIRECTORY, Mode::empty()))
}

/// Opens what this one name stands for, never through a link and never waiting.
pub(super) fn open_at(directory: impl AsFd, name: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd> {
    #[cfg(test)]
    let changes = flags.intersects(OFlags::CREATE | OFlags::TRUNC) || flags.contains(OFlags::TMPFILE);
    #[cfg(test)]
    if changes {
        simulated::before()?;
    }
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = retry_on_intr(|| rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(mode)))?;
    #[cfg(test)]
    if changes {
        simulated::opened(&directory, name, &file, flags.contains(OFlags::TRUNC));
    }
    Ok(file)
}

/// Whether this kernel (and what filters its calls) offers `openat2`.
pub(super) fn has_openat2(root: impl AsFd) -> bool {
    open_resolved(root, b".").is_ok()
}

fn open_resolved(from: impl AsFd, path: &[u8]) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // The kernel gives up with AGAIN when the tree is renamed underneath it while it resolves.
    let mut tries = 0;
    loop {
        match retry_on_intr(|| rustix::fs::openat2(&from, path, DIRECTORY, Mode::empty(), resolve)) {
            Err(Errno::AGAIN) if tries < 64 => tries += 1,
            result => return result,
        }
    }
}

/// Opens a directory below `root`. No link is followed in any component, and the kernel refuses to leave `root`.
pub(super) fn open_beneath(root: impl AsFd, components: &[Component], openat2: bool) -> Result<OwnedFd> {
    if components.is_empty() {
        return open_directory_at(root, b".");
    }
    let mut current: Option<OwnedFd> = None;
    let mut rest = components;
    while !rest.is_empty() {
        let mut text = rest[0].as_bytes().to_vec();
        let mut taken = 1;
        while openat2
            && let Some(next) = rest.get(taken)
            && text.len() + 1 + next.as_bytes().len() <= OPEN_LEN_MAX
        {
            text.push(b'/');
            text.extend_from_slice(next.as_bytes());
            taken += 1;
        }
        let from = current.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        let next = if openat2 {
            open_resolved(from, &text)?
        } else if rest.len() > 1 {
            // A directory on the way need not be readable.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            retry_on_intr(|| rustix::fs::openat(from, text.as_slice(), flags, Mode::empty()))?
        } else {
            open_directory_at(from, &text)?
        };
        current = Some(next);
        rest = &rest[taken..];
    }
    Ok(current.expect("there was at least one component"))
}

/// Renames without replacing anything, also where the file system has no such rename.
pub(super) fn rename_new(from: impl AsFd, old: &[u8], to: impl AsFd, new: &[u8]) -> Result<()> {
    #[cfg(test)]
    simulated::before()?;
    let renamed = rename_new_unseen(&from, old, &to, new);
    #[cfg(test)]
    if renamed.is_ok() {
        simulated::renamed(from, old, to, new);
    }
    renamed
}

fn rename_new_unseen(from: impl AsFd, old: &[u8], to: impl AsFd, new: &[u8]) -> Result<()> {
    match retry_on_intr(|| rustix::fs::renameat_with(&from, old, &to, new, RenameFlags::NOREPLACE)) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            // A second name fails when something is there, as atomically as the rename would have.
            match retry_on_intr(|| rustix::fs::linkat(&from, old, &to, new, AtFlags::empty())) {
                Ok(()) => unlink(from, old),
                // A directory has only one name: the rename was refused for what it asked.
                Err(Errno::PERM) => Err(Errno::INVAL),
                Err(errno) => Err(errno),
            }
        }
        result => result,
    }
}

/// Gives each of two things the name of the other, in one step.
pub(super) fn exchange(from: impl AsFd, old: &[u8], to: impl AsFd, new: &[u8]) -> Result<()> {
    retry_on_intr(|| rustix::fs::renameat_with(&from, old, &to, new, RenameFlags::EXCHANGE))
}

/// Renames over whatever file or link is there.
pub(super) fn rename_over(from: impl AsFd, old: &[u8], to: impl AsFd, new: &[u8]) -> Result<()> {
    #[cfg(test)]
    simulated::before()?;
    retry_on_intr(|| rustix::fs::renameat(&from, old, &to, new))?;
    #[cfg(test)]
    simulated::renamed(from, old, to, new);
    Ok(())
}

/// Gives a file without a name (`O_TMPFILE`) its name; fails when something is there.
pub(super) fn link_open_file(file: impl AsFd, to: impl AsFd, name: &[u8]) -> Result<()> {
    #[cfg(test)]
    simulated::before()?;
    let linked = link_open_file_unseen(&file, &to, name);
    #[cfg(test)]
    if linked.is_ok() {
        simulated::linked(file, to, name);
    }
    linked
}

fn link_open_file_unseen(file: impl AsFd, to: impl AsFd, name: &[u8]) -> Result<()> {
    // The direct way, which Linux 6.10 opened to whoever opened the file; before that it needs a privilege, and says
    // that there is no such file. It may not even be asked twice for each file.
    static HAS_DIRECT_WAY: AtomicBool = AtomicBool::new(true);
    if HAS_DIRECT_WAY.load(Ordering::Relaxed) {
        match retry_on_intr(|| rustix::fs::linkat(&file, c"", &to, name, AtFlags::EMPTY_PATH)) {
            Err(Errno::NOENT | Errno::INVAL | Errno::PERM) => {}
            result => return result,
        }
    }
    // The long way through /proc needs no privilege, but that to be mounted.
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let result = retry_on_intr(|| rustix::fs::linkat(CWD, path.as_str(), &to, name, AtFlags::SYMLINK_FOLLOW));
    if result.is_ok() {
        HAS_DIRECT_WAY.store(false, Ordering::Relaxed);
    }
    result
}

/// Removes a name that is not a directory.
pub(super) fn unlink(directory: impl AsFd, name: &[u8]) -> Result<()> {
    #[cfg(test)]
    simulated::before()?;
    retry_on_intr(|| rustix::fs::unlinkat(&directory, name, AtFlags::empty()))?;
    #[cfg(test)]
    simulated::unlinked(directory, name);
    Ok(())
}

/// Removes an empty directory.
pub(super) fn remove_directory(directory: impl AsFd, name: &[u8]) -> Result<()> {
    retry_on_intr(|| rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR))
}

/// Makes a directory.
pub(super) fn make_directory(parent: impl AsFd, name: &[u8], mode: Mode) -> Result<()> {
    #[cfg(test)]
    simulated::before()?;
    retry_on_intr(|| rustix::fs::mkdirat(&parent, name, mode))?;
    #[cfg(test)]
    simulated::made_directory(parent, name);
    Ok(())
}

/// Sets the permission bits of an open file or directory.
pub(super) fn set_mode(file: impl AsFd, mode: u32) -> Result<()> {
    change(&file, || rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)))
}

/// Sets the times of an open file or directory.
pub(super) fn set_times(file: impl AsFd, times: &Timestamps) -> Result<()> {
    change(&file, || rustix::fs::futimens(&file, times))
}

/// Sets an extended attribute of an open file.
pub(super) fn set_attribute(file: impl AsFd, name: &[u8], value: &[u8]) -> Result<()> {
    change(&file, || rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty()))
}

/// Removes an extended attribute of an open file.
pub(super) fn remove_attribute(file: impl AsFd, name: &[u8]) -> Result<()> {
    change(&file, || rustix::fs::fremovexattr(&file, name))
}

/// Writes some of these bytes, and tells how many.
pub(super) fn write_some(file: impl AsFd, bytes: &[u8], offset: u64) -> Result<usize> {
    #[cfg(test)]
    let bytes = &bytes[..simulated::write_len(bytes.len())];
    change(&file, || rustix::io::pwrite(&file, bytes, offset))
}

/// Gives an open file this length.
pub(super) fn set_len(file: impl AsFd, len: u64) -> Result<()> {
    change(&file, || rustix::fs::ftruncate(&file, len))
}

/// Changes what is allocated to a file.
pub(super) fn allocate(file: impl AsFd, flags: FallocateFlags, offset: u64, len: u64) -> Result<()> {
    change(&file, || rustix::fs::fallocate(&file, flags, offset, len))
}

/// Changes content or metadata of an open file.
fn change<T>(file: impl AsFd, act: impl FnMut() -> Result<T>) -> Result<T> {
    #[cfg(test)]
    simulated::before()?;
    let done = retry_on_intr(act);
    #[cfg(test)]
    simulated::changed(&file);
    let _ = file;
    done
}

/// Makes an open file or directory durable.
pub(super) fn sync(file: impl AsFd) -> Result<()> {
    #[cfg(test)]
    simulated::before()?;
    retry_on_intr(|| rustix::fs::fsync(&file))?;
    #[cfg(test)]
    simulated::synced(file, false);
    Ok(())
}

/// Makes the content of an open file durable.
pub(super) fn sync_content(file: impl AsFd) -> Result<()> {
    #[cfg(test)]
    simulated::before()?;
    retry_on_intr(|| rustix::fs::fdatasync(&file))?;
    #[cfg(test)]
    simulated::synced(file, true);
    Ok(())
}

/// Asks the kernel to begin writing what is dirty, without waiting.
pub(super) fn begin_writeback(file: impl AsFd) {
    // Deliberate loss: this only makes the sync that follows quicker, and that one reports errors.
    let _ = rustix::fs::fadvise(file, 0, None::<NonZeroU64>, Advice::DontNeed);
}

/// What direct I/O on this file needs: offsets and lengths in multiples of the first, memory of the second.
pub(super) fn direct_alignment(file: impl AsFd) -> Option<(u32, u32)> {
    let statx = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let told = statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let (offset, memory) = (statx.stx_dio_offset_align, statx.stx_dio_mem_align);
    (told && offset.is_power_of_two() && memory.is_power_of_two()).then_some((offset, memory))
}

/// When it was made, in nanoseconds; 0 where the file system does not tell. What has the number of something that was
/// removed has another.
pub(super) fn birth(file: impl AsFd) -> i128 {
    match rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME) {
        Ok(statx) if statx.stx_mask & StatxFlags::BTIME.bits() != 0 => {
            i128::from(statx.stx_btime.tv_sec) * 1_000_000_000 + i128::from(statx.stx_btime.tv_nsec)
        }
        _ => 0,
    }
}

/// One name in a directory, and the place after it.
pub(super) struct Name {
    pub(super) bytes: Vec<u8>,
    pub(super) cookie: u64,
}

/// The next names of a directory, `.` and `..` left out: as many as one call returns. No names: the end.
pub(super) fn read_names(directory: impl AsFd, memory: &mut Vec<u8>) -> Result<Vec<Name>> {
    memory.clear();
    let mut names = Vec::new();
    // A call may return nothing but `.` and `..`; that is not the end.
    while names.is_empty() {
        let mut raw = RawDir::new(&directory, memory.spare_capacity_mut());
        loop {
            match raw.next() {
                Some(Ok(entry)) => {
                    let bytes = entry.file_name().to_bytes();
                    if bytes != b"." && bytes != b".." {
                        names.push(Name { bytes: bytes.to_vec(), cookie: entry.next_entry_cookie() });
                    }
                }
                Some(Err(Errno::INTR)) => continue,
                Some(Err(error)) => return Err(error),
                None => return Ok(names),
            }
            if raw.is_buffer_empty() {
                break;
            }
        }
    }
    Ok(names)
}

/// 128 bits from the operating system, as 32 hexadecimal digits.
pub(super) fn random_digits() -> Result<String> {
    #[cfg(test)]
    if let Some(digits) = simulated::digits() {
        return Ok(digits);
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
