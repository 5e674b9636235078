//! The frame header: kind, transfer, length.
//!
//! ```text
//! 0       1       2               4                               8                              12
//! | kind  | flags | reserved      | transfer (u32 BE)             | length of payload (u32 BE)    |
//! ```
//!
//! A data frame's payload is an offset (u64 BE) and 1 to [`limits::DATA_LEN_MAX`] bytes of content that lie in one
//! group; every other payload is one CBOR map (`message`). Flags and reserved are zero when sent and refused
//! otherwise. Kinds from 0x80 on may be skipped by who does not know them; an unknown one below ends the connection.

use super::Breach;
use crate::limits;

/// Bytes of a frame header.
pub const FRAME_HEADER_LEN: usize = 12;
/// Bytes of the offset at the start of a data payload.
pub const OFFSET_LEN: usize = 8;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal;)+) => {
        /// What a frame carries. Numbers never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[doc = $doc])+ $name = $code,)+ }

        impl Kind {
            /// All kinds of this version.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)+];

            /// The kind of this number, when this version knows it.
            #[must_use]
            pub fn from_code(code: u8) -> Option<Kind> { match code { $($code => Some(Kind::$name),)+ _ => None } }
        }
    };
}

kinds! {
    /// The first frame of a client.
    ClientHello = 0x01;
    /// The first frame of a server.
    ServerHello = 0x02;
    /// The end of the connection and its reason, from either side.
    Goodbye = 0x03;
    /// Still at work on what is open; counts as life, not as progress of bytes.
    Working = 0x04;
    /// The end of one transfer or request by failure, from either side.
    Failed = 0x05;
    /// A client describes a file that it wants stored.
    Put = 0x10;
    /// A server says what it holds of it.
    PutAnswer = 0x11;
    /// Group values of a version that the sender of this message holds.
    Values = 0x12;
    /// Content.
    Data = 0x13;
    /// All content is sent: size and root.
    Finish = 0x14;
    /// The durable end of an upload.
    Stored = 0x15;
    /// The durable ends of several uploads.
    StoredBatch = 0x16;
    /// Over a connection that has joined: groups of an upload that need not be sent again.
    Written = 0x17;
    /// A server signs what it stored; before the `Stored` of the same transfer.
    Receipt = 0x18;
    /// Groups of an upload that are all zeros, and are told instead of sent.
    Zeros = 0x19;
    /// What the finish will say, while content is still under way.
    FinishAhead = 0x1a;
    /// A client wants a file's content.
    Get = 0x20;
    /// A server describes the version that it opened.
    GetAnswer = 0x21;
    /// A client asks for ranges of an open download.
    Want = 0x22;
    /// A client asks for group values of an open download.
    WantValues = 0x23;
    /// A client ends an open download.
    Close = 0x24;
    /// Asks for one entry.
    Stat = 0x30;
    /// Asks for the entries of a directory.
    List = 0x31;
    /// Asks for the root of a file's content.
    Hash = 0x32;
    /// Asks for a directory.
    MakeDirectory = 0x33;
    /// Asks for a symbolic link.
    MakeLink = 0x34;
    /// Asks for a directory's final mode and time.
    SetDirectory = 0x35;
    /// Asks for a removal.
    Remove = 0x36;
    /// Asks for a renaming.
    Rename = 0x37;
    /// One entry.
    Entry = 0x38;
    /// Some entries of a directory.
    Entries = 0x39;
    /// A request is done, durably if it changed anything.
    Done = 0x3a;
    /// Asks for the space of the volume that a name is, or would be, on.
    Space = 0x3b;
    /// The space of a volume.
    Volume = 0x3c;
    /// Asks for an invite.
    Invite = 0x40;
    /// The invite that was made.
    Invited = 0x41;
    /// Asks for the invites to what is at or below a place.
    ListInvites = 0x42;
    /// Some of them.
    Invites = 0x43;
    /// Asks that an invite ends.
    RevokeInvite = 0x44;
    /// A client begins to build a directory that takes the place of another as a whole.
    BeginTree = 0x48;
    /// It is begun, or there already.
    TreeBegun = 0x49;
    /// Asks that what was built takes its place.
    PublishTree = 0x4a;
}

impl Kind {
    /// Whether a frame of this kind begins a transfer or request, under a number of its own.
    #[must_use]
    pub fn opens_transfer(self) -> bool {
        match self {
            Kind::Put
            | Kind::Get
            | Kind::Stat
            | Kind::List
            | Kind::Hash
            | Kind::MakeDirectory
            | Kind::MakeLink
            | Kind::SetDirectory
            | Kind::Remove
            | Kind::Rename
            | Kind::Space
            | Kind::BeginTree
            | Kind::PublishTree
            | Kind::Invite
            | Kind::ListInvites
            | Kind::RevokeInvite => true,
            Kind::ClientHello
            | Kind::ServerHello
            | Kind::Goodbye
            | Kind::Working
            | Kind::Failed
            | Kind::PutAnswer
            | Kind::Values
            | Kind::Data
            | Kind::Finish
            | Kind::Stored
            | Kind::StoredBatch
            | Kind::Receipt
            | Kind::Zeros
            | Kind::FinishAhead
            | Kind::Written
            | Kind::GetAnswer
            | Kind::Want
            | Kind::WantValues
            | Kind::Close
            | Kind::Entry
            | Kind::Entries
            | Kind::Done
            | Kind::Volume
            | Kind::TreeBegun
            | Kind::Invited
            | Kind::Invites => false,
        }
    }

    /// The payload lengths that a frame of this kind may have.
    #[must_use]
    pub fn len_range(self) -> (usize, usize) {
        match self {
            Kind::ClientHello => (1, limits::HELLO_LEN_MAX),
            Kind::Data => (OFFSET_LEN + 1, OFFSET_LEN + limits::DATA_LEN_MAX),
            _ => (1, limits::CONTROL_LEN_MAX),
        }
    }
}

/// A frame header whose length is within the bounds of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame carries; none for a kind that may be skipped and is not known.
    pub kind: Option<Kind>,
    /// The transfer or request that it belongs to; 0 for the connection.
    pub transfer: u32,
    /// Bytes of payload.
    pub len: u32,
}

impl Header {
    /// The header of a frame.
    #[must_use]
    pub fn new(kind: Kind, transfer: u32, len: usize) -> Header {
        let len = u32::try_from(len).expect("payloads are bounded far below 4 GiB");
        Header { kind: Some(kind), transfer, len }
    }

    /// The header's bytes.
    ///
    /// # Panics
    /// For a header without a kind: those are only received.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let kind = self.kind.expect("only known kinds are sent");
        let mut bytes = [0; FRAME_HEADER_LEN];
        bytes[0] = kind as u8;
        bytes[4..8].copy_from_slice(&self.transfer.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Reads a header and compares its length with the bounds of its kind.
    ///
    /// # Errors
    /// [`Breach::UnknownKind`], [`Breach::Reserved`], [`Breach::TooLong`] or [`Breach::TooShort`].
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Result<Header, Breach> {
        let [code, flags, r0, r1, t0, t1, t2, t3, l0, l1, l2, l3] = *bytes;
        let (transfer, len) = (u32::from_be_bytes([t0, t1, t2, t3]), u32::from_be_bytes([l0, l1, l2, l3]));
        let Some(kind) = Kind::from_code(code) else {
            // Flags of a kind that we do not know may mean something to it; its length is bounded all the same.
            return if code < 0x80 || len as usize > limits::CONTROL_LEN_MAX {
                Err(Breach::UnknownKind(code))
            } else {
                Ok(Header { kind: None, transfer, len })
            };
        };
        if (flags, r0, r1) != (0, 0, 0) {
            return Err(Breach::Reserved);
        }
        let (min, max) = kind.len_range();
        if len as usize > max {
            return Err(Breach::TooLong { kind, len });
        }
        if (len as usize) < min {
            return Err(Breach::TooShort { kind, len });
        }
        Ok(Header { kind: Some(kind), transfer, len })
    }
}
