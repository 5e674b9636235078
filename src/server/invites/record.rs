//! What is kept of an invite on the disk: the terms, and how far it is used. No secret is in it.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::limits::INVITE_USES_MAX;
use crate::path::RemotePath;
use crate::protocol::{Bytes16, Bytes32, InviteKind, List};

/// The version of a record. A server that does not know it takes the record for damaged.
const VERSION: u16 = 1;

/// An invite as its file has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Record {
    #[n(0)]
    pub(super) version: u16,
    /// What its ticket is known by.
    #[n(1)]
    pub(super) verifier: Bytes32,
    /// Below the served root.
    #[n(2)]
    pub(super) place: RemotePath,
    #[n(3)]
    pub(super) kind: InviteKind,
    #[n(4)]
    pub(super) issuer_name: Option<String>,
    #[n(5)]
    pub(super) issuer_key: Bytes32,
    /// The certificates that its giver showed, its own first.
    #[n(6)]
    pub(super) chain: List<ByteVec, 16>,
    /// Seconds since 1970.
    #[n(7)]
    pub(super) issued: i64,
    #[n(8)]
    pub(super) expires: i64,
    #[n(9)]
    pub(super) uses: u32,
    #[n(10)]
    pub(super) max_size: Option<u64>,
    /// When it was taken back.
    #[n(11)]
    pub(super) revoked: Option<i64>,
    /// Spent uses of runs that are over.
    #[n(12)]
    pub(super) spent: u32,
    /// Bytes of content that are used, at most.
    #[n(13)]
    pub(super) used: u64,
    /// Runs that are not over.
    #[n(14)]
    pub(super) runs: List<RunRecord, { INVITE_USES_MAX as usize }>,
    /// Certificates that its giver showed later, where they are good for longer.
    #[n(15)]
    pub(super) latest: Option<List<ByteVec, 16>>,
}

/// A run that is not over.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct RunRecord {
    /// A hash of its number.
    #[n(0)]
    pub(super) key: Bytes16,
    /// It has committed something, or was about to.
    #[n(1)]
    pub(super) is_spent: bool,
}

impl Record {
    /// A record that says nothing yet, for what each of them must say to be added.
    pub(super) fn empty() -> Record {
        Record {
            version: VERSION,
            verifier: Bytes32([0; 32]),
            place: RemotePath::root(),
            kind: InviteKind::Drop,
            issuer_name: None,
            issuer_key: Bytes32([0; 32]),
            chain: List::default(),
            issued: 0,
            expires: 0,
            uses: 0,
            max_size: None,
            revoked: None,
            spent: 0,
            used: 0,
            runs: List::default(),
            latest: None,
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing to memory cannot fail")
    }

    /// Reads a record; none for anything but a whole one of this version.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Record> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let record = Record::decode(&mut decoder, &mut ()).ok()?;
        (decoder.position() == bytes.len() && record.version == VERSION).then_some(record)
    }
}
