//! The hash of a stored file, kept with the file, so that telling what is here costs no reading.
//!
//! It is an extended attribute of exactly [`RECORD_LEN`] bytes, small enough to lie in a 256-byte ext4 inode; the
//! layout is in `docs/STORAGE.md`, "Recorded root". It holds for the size and mtime that it names. Absent, damaged
//! or outdated, the file merely counts as unrecorded.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};

use super::Mtime;
use super::sys::{self, Status};
use crate::hash::Root;
use crate::limits::FILE_SIZE_MAX;

/// The name of the attribute.
pub(super) const RECORD_NAME: &str = crate::xattrs::OWN_NAME;
/// Bytes of the attribute.
pub(super) const RECORD_LEN: usize = 64;
/// The version of the layout.
const RECORD_VERSION: u8 = 1;

const _: () = assert!(FILE_SIZE_MAX < 1 << 56, "a size leaves the top byte to the version");

/// What is recorded with a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The BLAKE3 root of its content.
    pub root: Root,
    /// The upload that stored it.
    pub upload_id: [u8; 16],
}

impl Recorded {
    /// The attribute for a file of this size and mtime; none when they cannot be expressed.
    pub(super) fn encode(&self, size: u64, mtime: Mtime) -> Option<[u8; RECORD_LEN]> {
        let nanos = mtime.as_nanos()?;
        if size > FILE_SIZE_MAX {
            return None;
        }
        let mut bytes = [0; RECORD_LEN];
        bytes[..32].copy_from_slice(&self.root.0);
        bytes[32..48].copy_from_slice(&self.upload_id);
        bytes[48..56].copy_from_slice(&(u64::from(RECORD_VERSION) << 56 | size).to_be_bytes());
        bytes[56..].copy_from_slice(&nanos.to_be_bytes());
        Some(bytes)
    }

    /// What the attribute of a file of this size and mtime says, if it belongs to them.
    pub(super) fn decode(bytes: &[u8; RECORD_LEN], size: u64, mtime: Mtime) -> Option<Recorded> {
        let (root, rest) = bytes.split_first_chunk::<32>()?;
        let (upload_id, rest) = rest.split_first_chunk::<16>()?;
        let recorded = Recorded { root: Root(*root), upload_id: *upload_id };
        // Version, size and mtime have one encoding each, so comparing them needs no decoding.
        (rest == &recorded.encode(size, mtime)?[48..]).then_some(recorded)
    }

    /// Sets the attribute of an open file that is as `status` says.
    pub(super) fn set(&self, file: impl AsFd, status: &Status) -> Result<()> {
        let Some(bytes) = self.encode(status.size, status.mtime) else { return Ok(()) };
        match sys::set_attribute(&file, RECORD_NAME.as_bytes(), &bytes) {
            // Not offered, not allowed, or no room: the file is stored all the same, only unrecorded.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::DQUOT | Errno::TOOBIG)
            | Err(Errno::NOSYS | Errno::RANGE) => Recorded::remove(file),
            result => result,
        }
    }

    /// Removes what an earlier attempt may have recorded in an open file: it is of other content, and would make this
    /// one look rotten.
    fn remove(file: impl AsFd) -> Result<()> {
        match sys::remove_attribute(file, RECORD_NAME.as_bytes()) {
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::NOSYS) => Ok(()),
            result => result,
        }
    }

    /// Reads the attribute of an open file that is as `status` says.
    pub(super) fn read(file: impl AsFd, status: &Status) -> Option<Recorded> {
        // One byte more, to notice what is too long.
        let mut bytes = [0; RECORD_LEN + 1];
        let len = rustix::fs::fgetxattr(file, RECORD_NAME, &mut bytes[..]).ok()?;
        let record: &[u8; RECORD_LEN] = bytes.get(..len)?.try_into().ok()?;
        Recorded::decode(record, status.size, status.mtime)
    }
}

/// What is recorded with a file, whether it still belongs to it or not.
pub(super) struct Record {
    pub(super) recorded: Recorded,
    pub(super) size: u64,
    /// In nanoseconds since 1970.
    pub(super) mtime: i64,
}

impl Record {
    /// Reads the attribute of an open file; none when there is none, or of another form.
    pub(super) fn of(file: impl AsFd) -> Option<Record> {
        let mut bytes = [0; RECORD_LEN + 1];
        let len = rustix::fs::fgetxattr(file, RECORD_NAME, &mut bytes[..]).ok()?;
        let record: &[u8; RECORD_LEN] = bytes.get(..len)?.try_into().ok()?;
        let (root, rest) = record.split_first_chunk::<32>()?;
        let (upload_id, rest) = rest.split_first_chunk::<16>()?;
        let (size, mtime) = rest.split_first_chunk::<8>()?;
        let size = u64::from_be_bytes(*size);
        if size >> 56 != u64::from(RECORD_VERSION) {
            return None;
        }
        let mtime = i64::from_be_bytes(mtime.try_into().ok()?);
        let recorded = Recorded { root: Root(*root), upload_id: *upload_id };
        Some(Record { recorded, size: size & ((1 << 56) - 1), mtime })
    }
}
