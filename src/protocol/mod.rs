//! The wire: bytes to types and back. Pure: no sockets, no clock, no files.
//!
//! `docs/PROTOCOL.md` is normative and holds hex vectors that a test decodes and re-encodes; text, vectors and this
//! module change together. [`frame`] is the header that everything travels under, [`message`] the control messages,
//! `wire` the small encodings that they share.

pub mod frame;
pub mod invite;
pub mod message;
mod wire;

pub use frame::{FRAME_HEADER_LEN, Header, Kind, OFFSET_LEN};
pub use invite::{InviteSecret, Ticket, Verifier};
pub use message::*;
pub use wire::{Bytes16, Bytes32, InviteId, List, Mtime};

/// The ALPN protocol name of native connections.
pub const ALPN: &[u8] = b"sealift/1";
/// The protocol versions that this program speaks, best first.
pub const VERSIONS: &[u16] = &[1];
/// The default TCP port.
pub const DEFAULT_PORT: u16 = 7443;

/// How a peer's bytes break the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Breach {
    /// A kind number that this version does not know and may not ignore.
    UnknownKind(u8),
    /// Flag or reserved bits that must be zero are not.
    Reserved,
    /// A frame longer than its kind may be.
    TooLong {
        /// The kind of the frame.
        kind: Kind,
        /// The length that was announced.
        len: u32,
    },
    /// A frame shorter than its kind must be.
    TooShort {
        /// The kind of the frame.
        kind: Kind,
        /// The length that was announced.
        len: u32,
    },
    /// A payload that does not decode to its message.
    Malformed {
        /// The kind of the frame.
        kind: Kind,
        /// What the decoder found.
        what: String,
    },
    /// A message that has no place in this state, or for a transfer that is not open.
    Unexpected {
        /// The kind of the frame.
        kind: Kind,
        /// Why it has no place here.
        why: &'static str,
    },
    /// Data out of range, out of order or twice.
    Data(&'static str),
    /// More of something than was agreed.
    Excess(&'static str),
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Breach::UnknownKind(kind) => write!(f, "an unknown frame kind {kind:#04x}"),
            Breach::Reserved => f.write_str("reserved bits of a frame header are set"),
            Breach::TooLong { kind, len } => write!(f, "a {kind:?} frame of {len} bytes is too long"),
            Breach::TooShort { kind, len } => write!(f, "a {kind:?} frame of {len} bytes is too short"),
            Breach::Malformed { kind, what } => write!(f, "a malformed {kind:?} message ({what})"),
            Breach::Unexpected { kind, why } => write!(f, "an unexpected {kind:?} message ({why})"),
            Breach::Data(why) => write!(f, "bad data: {why}"),
            Breach::Excess(what) => write!(f, "more {what} than agreed"),
        }
    }
}

impl std::error::Error for Breach {}

impl From<Breach> for crate::Error {
    fn from(breach: Breach) -> crate::Error {
        crate::Error::new(crate::ErrorKind::Protocol, format!("the peer sent {breach}"))
    }
}

#[cfg(test)]
mod tests;
