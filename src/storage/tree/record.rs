//! What is written down of a tree that is being built: who builds it and in place of what, and how every entry of
//! that was when it began.
//!
//! Both files are claims: one that does not decode, or whose checksum is wrong, counts as damaged, and then the tree
//! is built anew. The record exists only once the manifest is whole and durable.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use minicbor::{Decode, Encode};
use rustix::fs::OFlags;
use rustix::io::Result as IoResult;

use crate::path::RemotePath;
use crate::storage::sys::{self, Status};
use crate::storage::{Identity, Kind, Mtime};

/// The file that says what is being built.
pub(super) const RECORD_NAME: &str = "record";
/// The file that says how the old tree was.
pub(super) const MANIFEST_NAME: &str = "manifest";
/// Bytes of a record that is read: it holds two paths.
const RECORD_LEN_MAX: u64 = 64 << 10;
/// Bytes of what the manifest says of one directory: one of several million names.
const BLOCK_LEN_MAX: u32 = 1 << 30;
/// What a record begins with: its kind and version.
const MAGIC: &[u8] = b"SLTREE\0\x01";

/// What is being built, by whom, and in place of what.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct TreeRecord {
    /// A hash of who builds it.
    #[n(0)]
    pub(super) owner: [u8; 32],
    /// What that one is called.
    #[n(1)]
    pub(super) owner_name: String,
    /// The run that builds it.
    #[n(2)]
    pub(super) run: [u8; 16],
    /// The name that it is to get, from the root of the store.
    #[n(3)]
    pub(super) at: RemotePath,
    /// When it was begun, in seconds since 1970.
    #[n(4)]
    pub(super) begun: u64,
    /// When somebody last took it up.
    #[n(5)]
    pub(super) touched: u64,
    /// The directory that is being built. Under another identity, or none, it is done: what lies in its place then
    /// is the old one.
    #[n(6)]
    pub(super) tree: (u64, u64),
    /// The directory in whose place it comes, if there was one.
    #[n(7)]
    pub(super) old: Option<(u64, u64)>,
    /// Whether it lies beside its target rather than in the state directory.
    #[n(8)]
    pub(super) is_beside: bool,
}

/// How one entry was.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct Seen {
    #[n(0)]
    identity: (u64, u64),
    #[n(1)]
    kind: u8,
    #[n(2)]
    size: u64,
    #[n(3)]
    mode: u32,
    #[n(4)]
    owner: u32,
    #[n(5)]
    mtime: (i64, u32),
    #[n(6)]
    ctime: (i64, u32),
}

impl Seen {
    pub(super) fn of(status: &Status) -> Seen {
        let kind = match status.kind {
            Kind::File => 0,
            Kind::Directory => 1,
            Kind::Link => 2,
            Kind::Special => 3,
        };
        let pair = |time: Mtime| (time.secs(), time.nanos());
        Seen {
            identity: pair_of(status.identity),
            kind,
            size: status.size,
            mode: status.mode,
            owner: status.owner,
            mtime: pair(status.mtime),
            ctime: pair(status.ctime),
        }
    }

    /// Whether it is as it was. Without `ctime` for what has got other names meanwhile: each of them changes it.
    pub(super) fn is_still(&self, now: &Status, with_ctime: bool) -> bool {
        let mut now = Seen::of(now);
        if !with_ctime {
            now.ctime = self.ctime;
        }
        *self == now
    }

    /// The same of a directory that was moved just now, which some file systems (XFS) take for a change of its content:
    /// what it holds has to be looked at.
    pub(super) fn is_still_where_it_was_moved(&self, now: &Status) -> bool {
        let now = Seen { mtime: self.mtime, ctime: self.ctime, ..Seen::of(now) };
        *self == now
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == 1
    }

    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    pub(super) fn mode(&self) -> u32 {
        self.mode
    }
}

pub(super) fn pair_of(identity: Identity) -> (u64, u64) {
    (identity.device, identity.inode)
}

/// One entry of the old tree, and what stands for it in the new one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct Carried {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(super) name: Vec<u8>,
    #[n(1)]
    pub(super) seen: Seen,
    /// What was made of it in the new tree.
    #[n(2)]
    pub(super) new: (u64, u64),
}

impl Carried {
    /// Whether the new tree has it under another name of the same file.
    pub(super) fn is_shared(&self) -> bool {
        self.seen.identity == self.new
    }
}

/// One directory of the old tree.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct Block {
    /// Where in the tree.
    #[n(0)]
    pub(super) path: RemotePath,
    #[n(1)]
    pub(super) seen: Seen,
    #[n(2)]
    pub(super) entries: Vec<Carried>,
}

impl TreeRecord {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        minicbor::encode(self, &mut bytes).expect("writing to memory cannot fail");
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<TreeRecord> {
        let (body, checksum) = bytes.split_last_chunk::<32>()?;
        if blake3::hash(body).as_bytes() != checksum {
            return None;
        }
        minicbor::decode(body.strip_prefix(MAGIC)?).ok()
    }

    /// What is recorded in this directory, if that is whole.
    pub(super) fn read(directory: impl AsFd) -> Option<TreeRecord> {
        let file = sys::open_at(directory, RECORD_NAME.as_bytes(), OFlags::RDONLY, 0).ok()?;
        let mut bytes = Vec::new();
        std::fs::File::from(file).take(RECORD_LEN_MAX).read_to_end(&mut bytes).ok()?;
        TreeRecord::decode(&bytes)
    }

    /// Writes it, durably.
    pub(super) fn write(&self, directory: impl AsFd) -> io::Result<()> {
        let new = format!("{RECORD_NAME}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let mut file = std::fs::File::from(sys::open_at(&directory, new.as_bytes(), flags, 0o600)?);
        file.write_all(&self.encode())?;
        file.sync_all()?;
        sys::rename_over(&directory, new.as_bytes(), &directory, RECORD_NAME.as_bytes())?;
        Ok(sys::sync(&directory)?)
    }
}

/// Writes down the old tree, one directory after the other.
pub(super) struct ManifestWriter {
    file: BufWriter<std::fs::File>,
    hasher: blake3::Hasher,
}

impl ManifestWriter {
    pub(super) fn create(directory: impl AsFd) -> IoResult<ManifestWriter> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let file = sys::open_at(directory, MANIFEST_NAME.as_bytes(), flags, 0o600)?;
        Ok(ManifestWriter { file: BufWriter::new(file.into()), hasher: blake3::Hasher::new() })
    }

    pub(super) fn add(&mut self, block: &Block) -> io::Result<()> {
        let bytes = minicbor::to_vec(block).expect("writing to memory cannot fail");
        let len = u32::try_from(bytes.len()).ok().filter(|&len| len <= BLOCK_LEN_MAX);
        let len = len.ok_or_else(|| io::Error::other("a directory with too many names"))?;
        for part in [&len.to_be_bytes()[..], &bytes] {
            self.hasher.update(part);
            self.file.write_all(part)?;
        }
        Ok(())
    }

    /// Makes it whole and durable.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.write_all(&0_u32.to_be_bytes())?;
        self.file.write_all(self.hasher.finalize().as_bytes())?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }
}

/// Reads what was written down.
pub(super) struct ManifestReader {
    file: BufReader<std::fs::File>,
    hasher: blake3::Hasher,
}

impl ManifestReader {
    pub(super) fn open(directory: &OwnedFd) -> IoResult<ManifestReader> {
        let file = sys::open_at(directory, MANIFEST_NAME.as_bytes(), OFlags::RDONLY, 0)?;
        Ok(ManifestReader { file: BufReader::new(file.into()), hasher: blake3::Hasher::new() })
    }

    /// The next directory; none at the end, which is one only with the right checksum.
    pub(super) fn next(&mut self) -> io::Result<Option<Block>> {
        let damaged = || io::Error::other("what was written down of the old tree is damaged");
        let mut len = [0; 4];
        self.file.read_exact(&mut len)?;
        let count = u32::from_be_bytes(len);
        if count == 0 {
            let mut checksum = [0; 32];
            self.file.read_exact(&mut checksum)?;
            return if self.hasher.finalize() == checksum { Ok(None) } else { Err(damaged()) };
        }
        if count > BLOCK_LEN_MAX {
            return Err(damaged());
        }
        // The memory follows the bytes that are there.
        let mut bytes = Vec::new();
        (&mut self.file).take(u64::from(count)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != u64::from(count) {
            return Err(damaged());
        }
        self.hasher.update(&len).update(&bytes);
        minicbor::decode(&bytes).map(Some).map_err(|_| damaged())
    }
}
