//! The control messages. Each is a CBOR map from small numbers to fields; a field that a receiver does not know is
//! skipped, an absent optional one has its default.
//!
//! `docs/PROTOCOL.md` says in which state each may come and what answers it.

use minicbor::{Decode, Encode};

use super::invite::Ticket;
use super::wire::{Bytes16, Bytes32, InviteId, List, Mtime};
use super::{Breach, FRAME_HEADER_LEN, Header, Kind};
use crate::error::{Error, ErrorKind};
use crate::hash::{GroupValue, Root};
use crate::limits;
use crate::path::{RemotePath, escape_text};
use crate::xattrs::Xattrs;

/// A message that travels in frames of one kind.
pub trait Message: Encode<()> + for<'b> Decode<'b, ()> {
    /// The kind of its frames.
    const KIND: Kind;

    /// The whole frame: header and payload.
    ///
    /// # Panics
    /// When the payload is longer than its kind allows: senders bound what they put in.
    fn to_frame(&self, transfer: u32) -> Vec<u8> {
        let mut frame = vec![0; FRAME_HEADER_LEN];
        minicbor::encode(self, &mut frame).expect("writing to memory cannot fail");
        let len = frame.len() - FRAME_HEADER_LEN;
        assert!(len <= Self::KIND.len_range().1, "a {:?} message of {len} bytes", Self::KIND);
        frame[..FRAME_HEADER_LEN].copy_from_slice(&Header::new(Self::KIND, transfer, len).encode());
        frame
    }

    /// Reads the payload of a frame of this kind.
    ///
    /// # Errors
    /// [`Breach::Malformed`] for bytes that are not exactly one such message.
    fn from_payload(payload: &[u8]) -> Result<Self, Breach> {
        let malformed = |what: String| Breach::Malformed { kind: Self::KIND, what: escape_text(&what) };
        let mut decoder = minicbor::Decoder::new(payload);
        let message = Self::decode(&mut decoder, &mut ()).map_err(|error| malformed(error.to_string()))?;
        if decoder.position() != payload.len() {
            return Err(malformed("bytes after its end".into()));
        }
        Ok(message)
    }
}

macro_rules! messages {
    ($($name:ident),+ $(,)?) => { $(impl Message for $name { const KIND: Kind = Kind::$name; })+ };
}

messages! {
    ClientHello, ServerHello, Goodbye, Working, Failed, Put, PutAnswer, Values, Finish, FinishAhead, Stored, StoredBatch,
    Written, Receipt, Zeros, Get, GetAnswer, Want, WantValues, Close, Stat, Hash, MakeDirectory, MakeLink, SetDirectory, Remove, Rename,
    Entry, Entries, Done, Space, Volume, BeginTree, TreeBegun, PublishTree, Invite, Invited, ListInvites, Invites, RevokeInvite,
}

impl Message for ListDirectory {
    const KIND: Kind = Kind::List;
}

macro_rules! wire_enum {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $vdoc:literal])+ $variant:ident = $code:literal,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
        #[cbor(index_only)]
        pub enum $name { $($(#[doc = $vdoc])+ #[n($code)] $variant,)+ }
    };
}

wire_enum! {
    /// What to do when something of that name is there.
    IfExists {
        /// Replace it at the moment of commit.
        Overwrite = 0,
        /// Leave it and say so; success.
        Skip = 1,
        /// Leave it and fail.
        Fail = 2,
        /// Store under a new name beside it.
        Rename = 3,
    }
}

wire_enum! {
    /// How an upload or a change ended well.
    Outcome {
        /// New content is under its final name, durably.
        Stored = 0,
        /// The same content was there already; it is durable.
        Unchanged = 1,
        /// Something else is there and was left ([`IfExists::Skip`]).
        Skipped = 2,
    }
}

wire_enum! {
    /// What an entry is.
    EntryKind {
        /// A regular file.
        File = 0,
        /// A directory.
        Directory = 1,
        /// A symbolic link.
        Link = 2,
        /// A device, socket or FIFO: named, never transferred.
        Special = 3,
    }
}

wire_enum! {
    /// What a server holds of a described file.
    Holding {
        /// Nothing: send all of it.
        Fresh = 0,
        /// Groups of an unfinished upload; their values follow.
        Held = 1,
        /// Another version under this name; the values of its groups follow.
        Base = 2,
    }
}

wire_enum! {
    /// What an invite is for.
    InviteKind {
        /// Storing under free names, and seeing what is there.
        Upload = 0,
        /// Seeing and reading.
        Download = 1,
        /// Storing, and seeing nothing; what has a name that is taken gets another.
        Drop = 2,
    }
}

impl InviteKind {
    /// The rights that its holder has, as far as whoever gave it has them.
    #[must_use]
    pub fn rights(self) -> Rights {
        match self {
            InviteKind::Upload => Rights::LIST.with(Rights::CREATE),
            InviteKind::Download => Rights::LIST.with(Rights::READ),
            InviteKind::Drop => Rights::CREATE,
        }
    }
}

impl std::fmt::Display for InviteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            InviteKind::Upload => "upload",
            InviteKind::Download => "download",
            InviteKind::Drop => "drop",
        })
    }
}

wire_enum! {
    /// Whether an invite can be redeemed.
    InviteState {
        /// It can.
        Open = 0,
        /// Its time is over.
        Expired = 1,
        /// All its uses are spent.
        UsedUp = 2,
        /// It was taken back.
        Revoked = 3,
        /// Whoever gave it may not share that any more, or has no place on the server.
        Ended = 4,
        /// What the server kept of it cannot be read.
        Damaged = 5,
    }
}

wire_enum! {
    /// What keeps a peer busy.
    Phase {
        /// Waiting for its own source or for its turn.
        Waiting = 0,
        /// Hashing what it holds.
        Hashing = 1,
        /// Making content durable.
        Syncing = 2,
    }
}

/// The first frame of a client. It names no file: the requests that do follow it, or the server's hello.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ClientHello {
    /// Protocol versions, best first.
    #[n(0)]
    pub versions: List<u16, 16>,
    /// Program and version, for logs.
    #[n(1)]
    pub agent: String,
    /// The token of a session that this connection joins.
    #[n(2)]
    pub join: Option<Bytes16>,
    /// What proves the invite that this connection redeems.
    #[n(3)]
    pub redeem: Option<Ticket>,
    /// With it: a random number of this run of the command, the same on each of its connections.
    #[n(4)]
    pub run: Option<Bytes16>,
    /// Send a [`Receipt`] for every file that is stored.
    #[n(8)]
    pub receipts: Option<bool>,
}

/// The first frame of a server: the version that it chose, and what this client may do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServerHello {
    /// The version of all that follows.
    #[n(0)]
    pub version: u16,
    /// Program and version, for logs.
    #[n(1)]
    pub agent: String,
    /// The name by which the server knows this client; none for an anonymous one.
    #[n(2)]
    pub principal: Option<String>,
    /// Bits of [`Rights`] that this client has somewhere.
    #[n(3)]
    pub rights: u32,
    /// The token with which further connections join this session.
    #[n(4)]
    pub token: Option<Bytes16>,
    /// Bytes that may be unasked and unanswered on this connection.
    #[n(5)]
    pub unasked_max: u64,
    /// Transfers and requests that may be open in this session.
    #[n(6)]
    pub open_max: u32,
    /// Seconds after which the server ends an idle connection.
    #[n(7)]
    pub idle_seconds: u32,
    /// Seconds since 1970 by the server's clock.
    #[n(8)]
    pub now: i64,
    /// The permission bits that stored files get at least and at most; not told by every server.
    #[n(9)]
    pub file_mode: Option<(u32, u32)>,
    /// The same of directories.
    #[n(10)]
    pub directory_mode: Option<(u32, u32)>,
    /// It takes [`Zeros`].
    #[n(11)]
    pub zeros: Option<bool>,
    /// It takes [`FinishAhead`].
    #[n(12)]
    pub finish_ahead: Option<bool>,
    /// The public key of its receipts (Ed25519). None: it gives no receipts.
    #[n(16)]
    pub receipt_key: Option<Bytes32>,
    /// Whether it gives and takes invites. None: it does not.
    #[n(17)]
    pub invites: Option<bool>,
    /// Whether directories can be built here and take the place of others as a whole. None: they cannot.
    #[n(24)]
    pub trees: Option<bool>,
    /// Whether extended attributes are given and taken. None: they are not.
    #[n(32)]
    pub xattrs: Option<bool>,
}

/// Bits of what a principal may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rights(pub u32);

impl Rights {
    /// See names, kinds, sizes and times.
    pub const LIST: Rights = Rights(1);
    /// Read content and hashes.
    pub const READ: Rights = Rights(2);
    /// Store under names that are free; make directories and links.
    pub const CREATE: Rights = Rights(4);
    /// Replace content under a name.
    pub const OVERWRITE: Rights = Rights(8);
    /// Give something another name.
    pub const RENAME: Rights = Rights(16);
    /// Remove.
    pub const DELETE: Rights = Rights(32);
    /// Hand rights on to others.
    pub const SHARE: Rights = Rights(64);
    /// Every right.
    pub const ALL: Rights = Rights(127);
    /// No right.
    pub const NONE: Rights = Rights(0);

    /// Whether all of `other` are among these.
    #[must_use]
    pub fn contains(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    /// These without `other`.
    #[must_use]
    pub const fn without(self, other: Rights) -> Rights {
        Rights(self.0 & !other.0)
    }

    /// Those that are among both.
    #[must_use]
    pub const fn and(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }

    /// Names and bits, for messages and flags.
    pub const NAMES: &'static [(&'static str, Rights)] = &[
        ("list", Rights::LIST),
        ("read", Rights::READ),
        ("create", Rights::CREATE),
        ("overwrite", Rights::OVERWRITE),
        ("rename", Rights::RENAME),
        ("delete", Rights::DELETE),
        ("share", Rights::SHARE),
    ];

    /// The right of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Rights> {
        Rights::NAMES.iter().find(|(known, _)| *known == name).map(|(_, right)| *right)
    }
}

impl std::fmt::Display for Rights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> =
            Rights::NAMES.iter().filter(|(_, right)| self.contains(*right)).map(|(name, _)| *name).collect();
        f.write_str(if names.is_empty() { "nothing" } else { "" })?;
        f.write_str(&names.join(", "))
    }
}

/// The end of a connection, with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Goodbye {
    /// A wire code ([`ErrorKind`]).
    #[n(0)]
    pub code: u16,
    /// A sentence for a person.
    #[n(1)]
    pub text: String,
}

/// The end of one transfer or request by failure.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Failed {
    /// A wire code ([`ErrorKind`]).
    #[n(0)]
    pub code: u16,
    /// A sentence for a person.
    #[n(1)]
    pub text: String,
    /// Whether the same request may succeed later, where the code alone does not say.
    #[n(2)]
    pub retry: Option<bool>,
}

macro_rules! reasons {
    ($($name:ident { $($extra:tt)* }),+) => { $(
        impl $name {
            /// The message that reports `error`.
            #[must_use]
            pub fn from_error(error: &Error) -> $name {
                let mut text = error.chain();
                let mut end = text.len().min(limits::PEER_TEXT_LEN_MAX);
                while !text.is_char_boundary(end) { end -= 1; }
                text.truncate(end);
                $name { code: error.kind().code(), text, $($extra)* }
            }

            /// The failure that the peer reports; its text is escaped.
            #[must_use]
            pub fn to_error(&self) -> Error {
                Error::from_peer(ErrorKind::from_code(self.code), escape_text(&self.text))
            }
        }
    )+ };
}

reasons! { Goodbye {}, Failed { retry: None } }

/// Numbers in [`Working::spent`]: more than this version tells.
pub const SPENT_MAX: usize = 8;

/// Still at work.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Working {
    /// On what.
    #[n(0)]
    pub phase: Phase,
    /// Bytes done.
    #[n(1)]
    pub done: u64,
    /// Bytes in all; 0 where unknown.
    #[n(2)]
    pub total: u64,
    /// From a server: what this session has taken its time with so far, in microseconds: the disk and the processor
    /// (for all its connections), a limit of the server, content on its way, a client that did not take more (by the first).
    #[n(3)]
    pub spent: Option<List<u64, SPENT_MAX>>,
}

/// Describes a file to be stored.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Put {
    /// Its name.
    #[n(0)]
    pub path: RemotePath,
    /// Its size in bytes; none for a stream whose end is not known.
    #[n(1)]
    pub size: Option<u64>,
    /// Its modification time; none: the time of the commit.
    #[n(2)]
    pub mtime: Option<Mtime>,
    /// Its permission bits; none: the server's default.
    #[n(3)]
    pub mode: Option<u32>,
    /// Random; the same in every attempt to store this file in this run.
    #[n(4)]
    pub upload_id: Bytes16,
    /// What to do when something of that name is there.
    #[n(5)]
    pub if_exists: IfExists,
    /// Content and finish follow at once, within the bounds for unasked content; no [`PutAnswer`] comes.
    #[n(6)]
    pub unasked: bool,
    /// Offer neither a base nor what is held: an attempt with them failed.
    #[n(7)]
    pub no_base: bool,
    /// From a client without a certificate: its secret, by which what is held of this upload is its own.
    #[n(8)]
    pub resume: Option<Bytes16>,
    /// It is another name of the file that has this one: if that is so there, no content comes and the name is made.
    #[n(9)]
    pub same_as: Option<RemotePath>,
    /// The hash that the file of that name has, as far as the sender knows it.
    #[n(10)]
    pub same_root: Option<Root>,
    /// The extended attributes of users that it shall have, and no others. None: they are left alone.
    #[n(16)]
    pub xattrs: Option<Xattrs>,
}

/// What the server holds of a described file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PutAnswer {
    /// What it holds.
    #[n(0)]
    pub holding: Holding,
    /// The number of this attempt at this file; a higher one takes the upload over.
    #[n(1)]
    pub generation: u64,
    /// Bytes of the version whose values follow.
    #[n(2)]
    pub held_size: u64,
    /// Content must not be sent: the values only tell whether it is the same.
    #[n(3)]
    pub compare_only: bool,
    /// For `held`: ranges that the server claims to hold, ascending pairs of offset and length in steps of 64 KiB.
    #[n(4)]
    pub ranges: List<(u64, u64), { limits::HELD_RANGES_MAX }>,
}

/// The most group values in one message: 32 KiB of them.
pub const VALUES_MAX: usize = 1024;

/// Values of consecutive groups.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Values {
    /// The index of the first.
    #[n(0)]
    pub first: u64,
    /// Their chaining values, group 0 included: equal values mean equal bytes and length.
    #[n(1)]
    pub values: List<GroupValue, VALUES_MAX>,
}

/// All content of a transfer is sent (or claimed as held).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Finish {
    /// The size in bytes.
    #[n(0)]
    pub size: u64,
    /// The BLAKE3 hash of the whole, as its reader computed it.
    #[n(1)]
    pub root: Root,
}

/// What the [`Finish`] of an upload will say: all of it is read, and sent but for what lanes have and may lose. The
/// server need not wait for the finish. Or what the server will answer to the [`Close`] of a download, of which all is
/// sent: the client need not wait for that answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FinishAhead {
    /// The size in bytes.
    #[n(0)]
    pub size: u64,
    /// The BLAKE3 hash of the whole, as its reader computed it.
    #[n(1)]
    pub root: Root,
}

/// The durable end of an upload or of another change that stores something.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stored {
    /// How it ended.
    #[n(0)]
    pub outcome: Outcome,
    /// The hash of the content, as the server computed it. None when nothing was read (skipped, links).
    #[n(1)]
    pub root: Option<Root>,
    /// The size of the content.
    #[n(2)]
    pub size: u64,
    /// The name that it was stored under, when that is another than the one asked for.
    #[n(3)]
    pub path: Option<RemotePath>,
    /// Why it has not all the extended attributes that were asked for, by a wire code ([`ErrorKind`]).
    #[n(16)]
    pub xattrs_lost: Option<u16>,
}

/// The most groups in one [`Written`].
pub const WRITTEN_MAX: usize = 1024;

/// Groups of an upload that need not be sent again, over the joined connection that they came over.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Written {
    /// Their indices.
    #[n(0)]
    pub groups: List<u64, WRITTEN_MAX>,
}

/// Groups of an upload that are all zeros, and do not come as content. Told between the content and the finish.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Zeros {
    /// The first of each run of groups, and how many there are; ascending.
    #[n(0)]
    pub runs: List<(u64, u64), { limits::ZERO_RUNS_IN_MESSAGE }>,
}

/// One durable end among several.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StoredItem {
    /// The transfer that ended.
    #[n(0)]
    pub transfer: u32,
    /// How.
    #[n(1)]
    pub stored: Stored,
}

/// The durable ends of several uploads, as their batch committed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StoredBatch {
    /// Each with its transfer. The frame's own transfer number is 0.
    #[n(0)]
    pub items: List<StoredItem, 512>,
}

/// What the server says of a stored file, over its signature. It comes before the [`Stored`] of the same transfer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Receipt {
    /// A [`Statement`], encoded. These very bytes are signed.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub statement: Vec<u8>,
    /// Ed25519, 64 bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
}

/// What a receipt says: this server holds this content, durably, at this time.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Statement {
    /// The BLAKE3 hash of the content.
    #[n(0)]
    pub root: Root,
    /// Its size.
    #[n(1)]
    pub size: u64,
    /// The name that it was stored under.
    #[n(2)]
    pub path: RemotePath,
    /// By what name the server knows who stored it.
    #[n(3)]
    pub principal: String,
    /// SHA-256 of that one's public key (SubjectPublicKeyInfo); none for an anonymous one.
    #[n(4)]
    pub principal_key: Option<Bytes32>,
    /// When, by the server's clock.
    #[n(5)]
    pub time: Mtime,
    /// Whether it was stored now or had been there already.
    #[n(6)]
    pub outcome: Outcome,
    /// The public key that signs.
    #[n(7)]
    pub key: Bytes32,
}

impl Statement {
    /// The bytes that are signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing to memory cannot fail")
    }

    /// Reads what was signed.
    ///
    /// # Errors
    /// [`Breach::Malformed`] for bytes that are not exactly one statement.
    pub fn from_bytes(bytes: &[u8]) -> Result<Statement, Breach> {
        let malformed = |what: String| Breach::Malformed { kind: Kind::Receipt, what: escape_text(&what) };
        let mut decoder = minicbor::Decoder::new(bytes);
        let statement: Statement = decoder.decode().map_err(|error| malformed(error.to_string()))?;
        if decoder.position() != bytes.len() {
            return Err(malformed("bytes after its end".into()));
        }
        Ok(statement)
    }
}

/// Asks for a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Get {
    /// Its name.
    #[n(0)]
    pub path: RemotePath,
    /// Send all of it at once if it has at most this many bytes (bounded by `UNASKED_FILE_MAX`).
    #[n(1)]
    pub unasked_max: u64,
    /// Say with [`FinishAhead`] when all was sent, without being asked.
    #[n(2)]
    pub finish_ahead: Option<bool>,
    /// If it has more bytes than may come at once, and at most this many, send the first group with the answer, as though
    /// it had been asked for by one range.
    #[n(3)]
    pub first_max: Option<u64>,
    /// Tell its extended attributes.
    #[n(16)]
    pub xattrs: Option<bool>,
}

/// The version that the server opened. With `unasked`, content and [`Finish`] follow.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GetAnswer {
    /// Bytes.
    #[n(0)]
    pub size: u64,
    /// Modification time.
    #[n(1)]
    pub mtime: Mtime,
    /// Permission bits.
    #[n(2)]
    pub mode: u32,
    /// Content follows unasked.
    #[n(3)]
    pub unasked: bool,
    /// The hash recorded when this version was stored, if it was stored here and is unchanged since.
    #[n(4)]
    pub root: Option<Root>,
    /// Names the version: equal bytes, equal version.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub version: Vec<u8>,
    /// Groups that lie in holes, and are all zeros: the first of each run, and how many there are. They need not be
    /// asked for.
    #[n(6)]
    pub zeros: Option<List<(u64, u64), { limits::ZERO_RUNS_IN_MESSAGE }>>,
    /// The first group comes, as though it had been asked for by one range.
    #[n(7)]
    pub first: Option<bool>,
    /// Its extended attributes, when they were asked for.
    #[n(16)]
    pub xattrs: Option<Xattrs>,
}

/// Asks for ranges of an open download.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Want {
    /// Pairs of offset and length, each inside one group. Content comes in this order.
    #[n(0)]
    pub ranges: List<(u64, u64), 1024>,
}

/// Asks for group values of an open download.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WantValues {
    /// The first group.
    #[n(0)]
    pub first: u64,
    /// How many.
    #[n(1)]
    pub count: u64,
}

/// Ends an open download; the server answers [`Finish`] when all groups were sent whole in this session, else
/// [`Done`], in both cases after it has checked that the version is still the same.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Close {}

/// Asks for one entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stat {
    /// Of what.
    #[n(0)]
    pub path: RemotePath,
    /// Tell its extended attributes, if it is a file or directory.
    #[n(16)]
    pub xattrs: Option<bool>,
}

/// Asks for the root of a file's content.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hash {
    /// Of which file.
    #[n(0)]
    pub path: RemotePath,
    /// Whether the content is read for it. Without, the recorded root is enough where it is valid.
    #[n(1)]
    pub read: Option<bool>,
}

/// Asks for the space of the volume that a name is on, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Space {
    /// Of which name.
    #[n(0)]
    pub path: RemotePath,
}

/// Asks for the entries of a directory, all or so many from a place on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ListDirectory {
    /// Which directory.
    #[n(0)]
    pub path: RemotePath,
    /// From behind this place: [`Done::next`] of an earlier answer.
    #[n(1)]
    pub after: Option<u64>,
    /// At most so many entries; none: all.
    #[n(2)]
    pub count_max: Option<u64>,
    /// Tell of each file and directory what its extended attributes are known by.
    #[n(16)]
    pub xattrs: Option<bool>,
    /// Of which directory `after` is: [`Done::directory`] of the same answer.
    #[n(17)]
    pub directory: Option<Bytes16>,
}

/// Asks for a directory; its parents are made too. One that is there is success.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MakeDirectory {
    /// Its name.
    #[n(0)]
    pub path: RemotePath,
}

/// Asks for a symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MakeLink {
    /// Its name.
    #[n(0)]
    pub path: RemotePath,
    /// What it points to: relative, inside the served tree.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub target: Vec<u8>,
    /// Its modification time.
    #[n(2)]
    pub mtime: Option<Mtime>,
    /// What to do when something of that name is there.
    #[n(3)]
    pub if_exists: IfExists,
}

/// Asks for the final mode and time of a directory, after its contents.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SetDirectory {
    /// Its name.
    #[n(0)]
    pub path: RemotePath,
    /// Permission bits.
    #[n(1)]
    pub mode: Option<u32>,
    /// Modification time.
    #[n(2)]
    pub mtime: Option<Mtime>,
    /// The extended attributes of users that it shall have, and no others. None: they are left alone.
    #[n(16)]
    pub xattrs: Option<Xattrs>,
}

/// Begins to build a directory: what this session then stores, makes, removes and looks at below its name is in what
/// is built, which nobody else sees before [`PublishTree`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BeginTree {
    /// The name that it shall have; not the root.
    #[n(0)]
    pub path: RemotePath,
    /// The same in every attempt of one run; another run begins anew.
    #[n(1)]
    pub run: Bytes16,
    /// From a client without a certificate: a secret of its own, as in [`Put`].
    #[n(2)]
    pub resume: Option<Bytes16>,
}

/// What is built now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TreeBegun {
    /// An earlier connection or run has left something of it: what is asked for may be there already.
    #[n(0)]
    pub resumed: bool,
    /// It has taken its place; the answer that said so was lost.
    #[n(1)]
    pub done: bool,
}

/// Asks that what was built takes its place, if what was there is as it was when it was begun.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PublishTree {
    /// Its name.
    #[n(0)]
    pub path: RemotePath,
}

/// Asks for a removal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Remove {
    /// Of what.
    #[n(0)]
    pub path: RemotePath,
    /// A directory with all that is in it.
    #[n(1)]
    pub recursive: bool,
}

/// Asks for a renaming.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Rename {
    /// The name that it has.
    #[n(0)]
    pub from: RemotePath,
    /// The name that it shall have.
    #[n(1)]
    pub to: RemotePath,
    /// What to do when something of that name is there.
    #[n(2)]
    pub if_exists: IfExists,
    /// Random; the same in every attempt.
    #[n(3)]
    pub id: Bytes16,
}

/// One entry of the served tree.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Entry {
    /// The name in its directory, unchecked bytes: a receiver that makes a path of it checks it. Empty for the root.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// What it is.
    #[n(1)]
    pub kind: EntryKind,
    /// Bytes of a file's content; 0 for others.
    #[n(2)]
    pub size: u64,
    /// Modification time.
    #[n(3)]
    pub mtime: Mtime,
    /// Permission bits.
    #[n(4)]
    pub mode: u32,
    /// Where a symbolic link points.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub target: Option<Vec<u8>>,
    /// For a file with several names: which file it is. Names of one file have the same.
    #[n(6)]
    pub same: Option<Bytes16>,
    /// In a listing: what its extended attributes are known by, equal for equal ones ([`Xattrs::digest`]).
    #[n(16)]
    pub xattrs_digest: Option<Bytes16>,
    /// In an answer to [`Stat`]: its extended attributes.
    #[n(17)]
    pub xattrs: Option<Box<Xattrs>>,
}

/// Some entries of a directory; [`Done`] follows the last.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Entries {
    /// At most as many as fit a frame.
    #[n(0)]
    pub entries: List<Entry, { limits::LIST_PAGE_MAX }>,
}

/// A request is done; what it changed is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Done {
    /// How many entries it removed, made or listed.
    #[n(0)]
    pub count: u64,
    /// For [`Hash`](struct@Hash): the root.
    #[n(1)]
    pub root: Option<Root>,
    /// For [`Hash`](struct@Hash): the size.
    #[n(2)]
    pub size: Option<u64>,
    /// For [`Rename`]: the name that it got, when that is another than the one asked for.
    #[n(3)]
    pub path: Option<RemotePath>,
    /// For [`ListDirectory`]: the place from behind which to go on, when `count_max` entries were sent.
    #[n(4)]
    pub next: Option<u64>,
    /// For [`SetDirectory`]: as in [`Stored`].
    #[n(16)]
    pub xattrs_lost: Option<u16>,
    /// For [`ListDirectory`]: which directory `next` is a place of. It means something only to the server.
    #[n(17)]
    pub directory: Option<Bytes16>,
    /// For [`ListDirectory`]: by the client's rights, names are left out in this directory, if there are any of them.
    #[n(18)]
    pub hidden: Option<bool>,
}

/// The space of a volume, as far as its file system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Volume {
    /// Bytes that the server could still store.
    #[n(0)]
    pub free: u64,
    /// Bytes that it has in all.
    #[n(1)]
    pub total: u64,
}

/// Asks for an invite to a directory: for a link whose holder may do something there without a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Invite {
    /// The directory, which is the holder's `/`.
    #[n(0)]
    pub path: RemotePath,
    /// What for.
    #[n(1)]
    pub kind: InviteKind,
    /// By what the server knows the link's ticket ([`Verifier`](super::Verifier)).
    #[n(2)]
    pub verifier: Bytes32,
    /// For how many seconds, from now on.
    #[n(3)]
    pub seconds: u64,
    /// For how many runs.
    #[n(4)]
    pub uses: u32,
    /// Bytes of content over all runs.
    #[n(5)]
    pub max_size: Option<u64>,
}

/// The invite that was made, durably.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Invited {
    /// Its name.
    #[n(0)]
    pub id: InviteId,
    /// When it ends, in seconds since 1970 by the server's clock.
    #[n(1)]
    pub expires: i64,
    /// `HOST:PORT` by which the server wants to be reached, if its operator said.
    #[n(2)]
    pub address: Option<String>,
}

/// Asks for the invites to what is at or below a place, as far as the principal may share that.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ListInvites {
    /// The place.
    #[n(0)]
    pub path: RemotePath,
    /// Only those behind this one, by their names.
    #[n(1)]
    pub after: Option<InviteId>,
}

/// Some invites, by their names.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Invites {
    /// At most as many as fit a frame.
    #[n(0)]
    pub invites: List<InviteFacts, 256>,
    /// Whether there are more behind the last.
    #[n(1)]
    pub more: bool,
}

/// What is told of one invite.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct InviteFacts {
    /// Its name.
    #[n(0)]
    pub id: InviteId,
    /// Whether it can be redeemed.
    #[n(1)]
    pub state: InviteState,
    /// To what.
    #[n(2)]
    pub path: RemotePath,
    /// What for.
    #[n(3)]
    pub kind: InviteKind,
    /// By what name the server knows who gave it.
    #[n(4)]
    pub issuer: String,
    /// When it was made, and when it ends, in seconds since 1970.
    #[n(5)]
    pub issued: i64,
    /// See there.
    #[n(6)]
    pub expires: i64,
    /// For how many runs.
    #[n(7)]
    pub uses: u32,
    /// How many of these are spent.
    #[n(8)]
    pub spent: u32,
    /// How many are reserved for runs that have committed nothing yet.
    #[n(9)]
    pub reserved: u32,
    /// Bytes of content over all runs, and how many of them are used.
    #[n(10)]
    pub max_size: Option<u64>,
    /// See there.
    #[n(11)]
    pub used_size: u64,
}

/// Asks that an invite ends, and with it what runs by it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RevokeInvite {
    /// Its name.
    #[n(0)]
    pub id: InviteId,
}
