//! Every bound and deadline, with its unit, its reason and what happens when it is reached.
//!
//! A peer's number is compared with one of these before it sizes anything. Wire limits are part of the protocol
//! (`docs/PROTOCOL.md`, "Limits") and change only with a version.

use std::time::Duration;

// ---- names -------------------------------------------------------------------------------------------------

/// Bytes in one name: what Linux file systems take. Longer: refused by name.
pub const COMPONENT_LEN_MAX: usize = 255;
/// Bytes in a path, slashes included: `PATH_MAX`. Longer: refused by name.
pub const PATH_LEN_MAX: usize = 4096;
/// Components in a path. Deeper: refused by name; a walk stops there.
pub const PATH_DEPTH_MAX: usize = 256;
/// Bytes of a peer's text (error messages, agent names) that are looked at; the rest is cut off.
pub const PEER_TEXT_LEN_MAX: usize = 2048;

// ---- the wire ----------------------------------------------------------------------------------------------

/// Bytes of content in one data frame. More: protocol error, the connection ends.
pub const DATA_LEN_MAX: usize = 256 * KIB;
/// Bytes of payload in one control frame, sized for a page of a listing. More: protocol error.
pub const CONTROL_LEN_MAX: usize = 64 * KIB;
/// Bytes of payload of a frame from a peer that has not been greeted yet. More: protocol error.
pub const HELLO_LEN_MAX: usize = 4 * KIB;
/// Bytes in a group: the unit of offering, hashing and disk I/O.
pub const GROUP_LEN: usize = MIB;
/// Bytes in a part of a group, but for the last one of a file: a download may ask for its last groups in parts, over
/// several connections.
pub const PART_LEN: usize = 256 * KIB;
/// Groups of a download of which a server remembers at once that some parts of them, and not all, were sent.
pub const SPLIT_GROUPS_MAX: usize = 128;
/// Steps in which the received prefix of an open group counts.
pub const PREFIX_STEP: usize = 64 * KIB;
/// Bytes of a file that may follow its description unasked; a file of at most this size never waits.
pub const UNASKED_FILE_MAX: u64 = 256 * KIB as u64;
/// Bytes over all files of a connection that may be unasked and unanswered. More: protocol error.
pub const UNASKED_CONNECTION_MAX: u64 = 4 * MIB as u64;
/// Files described and not yet ended, of one session. A slot is about 1 KiB of server memory; a download has the hashes of
/// what it sent besides.
pub const OPEN_TRANSFERS_MAX: usize = 1024;
/// Groups of one connection that are begun and not whole, those of unasked files not counted: each holds a buffer
/// of up to 1 MiB until it is. More: protocol error.
pub const OPEN_GROUPS_MAX: usize = 8;
/// Connections that may join one session, over its whole life. One more: refused, and the client goes on without it.
pub const JOINS_MAX: usize = 32;
/// Bytes of a file: what file systems and signed offsets can express, and a group index fits 32 bits
/// (4 PiB). More: refused before data.
pub const FILE_SIZE_MAX: u64 = 1 << 52;
/// Bytes of control frames waiting to be written to one peer; at the bound no more requests are read from it.
pub const CONTROL_QUEUE_MAX: usize = 512 * KIB;
/// Bytes of data frames waiting to be written ahead of a control frame.
pub const DATA_QUEUE_MAX: usize = 256 * KIB;
/// Bytes that a download may have asked for and not yet received, per connection: fills 1 Gbit/s at 500 ms.
pub const WANTED_MAX: u64 = 64 * MIB as u64;
/// Ranges that a download may have asked for and not yet received, per connection. More: protocol error.
pub const WANTED_RANGES_MAX: usize = 4096;
/// Ranges that a server claims to hold of an unfinished upload; more are not claimed, and are sent again.
pub const HELD_RANGES_MAX: usize = 2048;
/// Entries of a listing in one frame; a page also ends when the frame is full.
pub const LIST_PAGE_MAX: usize = 512;
/// Runs of groups of zeros in one message: 18 bytes each at most. Of a file that is sent, the rest follows in others; of
/// one that is fetched, the rest is asked for.
pub const ZERO_RUNS_IN_MESSAGE: usize = 2048;
/// Runs of groups of zeros in one upload, 16 bytes each: 1 MiB. More: protocol error; a sender sends the rest as
/// content.
pub const ZERO_RUNS_MAX: usize = 65_536;
/// Ends of holes in a file that are looked for when it is opened for download; what lies behind them is sent.
pub const HOLES_SOUGHT_MAX: usize = 4096;
/// Files with several names that a transfer remembers, to keep them one file at the destination: about 200 bytes each,
/// 50 MiB. The names of more are moved as files of their own, which is told.
pub const SHARED_FILES_MAX: usize = 262_144;
/// Further names of such files that wait for the first to be there: about 400 bytes each. At the bound they are made
/// before anything else is moved.
pub const SHARED_WAITING_MAX: usize = 4096;
/// Extended attributes of one file or directory that are moved: many times what programs set. More: that file fails.
pub const XATTR_COUNT_MAX: usize = 256;
/// Bytes in the name of one, `user.` included: what Linux takes.
pub const XATTR_NAME_LEN_MAX: usize = 255;
/// Bytes in the value of one: half of what Linux takes, and far more than most file systems. More: that file fails.
pub const XATTR_VALUE_LEN_MAX: usize = 32 * KIB;
/// Bytes in the names and values of all of one file: with two of the longest paths they fit a control frame. More: that
/// file fails.
pub const XATTRS_LEN_MAX: usize = 48 * KIB;
/// Bytes of extended attributes over all uploads of one connection that were described and are not ended, those of
/// unasked ones not counted. More: protocol error. A client never has so many on their way.
pub const XATTRS_CONNECTION_MAX: usize = 4 * MIB;
/// Runs of groups of zeros in the description of a download that also tells extended attributes. The rest is asked for.
pub const ZERO_RUNS_WITH_XATTRS: usize = 512;
/// Bytes of symbolic link target: what Linux takes.
pub const LINK_TARGET_LEN_MAX: usize = 4095;

// ---- time --------------------------------------------------------------------------------------------------

/// From accept to the end of the TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of the handshake to a whole client hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection with nothing in progress and nothing said. Then the server says so and closes.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// The window over which [`PROGRESS_LEN_MIN`] bytes must move while something is in progress.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that must move in each [`PROGRESS_TIMEOUT`], or the peer counts as gone: about 70 bytes a second.
pub const PROGRESS_LEN_MIN: u64 = 4 * KIB as u64;
/// How often a side that works without bytes to move says so.
pub const WORKING_INTERVAL: Duration = Duration::from_secs(5);
/// How long a peer may do nothing but say that it works. Then it counts as gone, as after [`PROGRESS_TIMEOUT`]: long
/// enough for a client that waits for a program's output or reads a slow disk.
pub const WORKING_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// How long a server that refused a peer goes on reading what comes, so that its reason is not lost in a reset.
pub const REFUSAL_DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes that such a server reads at most.
pub const REFUSAL_DRAIN_LEN_MAX: usize = 4 * MIB;
/// How long running transfers may go on after SIGTERM.
pub const SHUTDOWN_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take to say goodbye after a second SIGTERM, and one in its handshake after the first.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Waits after failed accepts: doubled from the first to the last.
pub const ACCEPT_BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// A client's first connection: all addresses tried, handshake and hello included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Default of `--timeout`: the longest time without progress, reconnects included.
pub const CLIENT_PROGRESS_TIMEOUT: Duration = Duration::from_secs(300);
/// Waits between a client's attempts: doubled from the first to the last, with jitter.
pub const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// The least rate, in bytes per second, that a limit may have: with less, many connections that share it would run
/// into deadlines.
pub const RATE_MIN: u64 = 16 * KIB as u64;
/// A round trip shorter than this is one to a near peer: one connection fills the path, and BBR is not needed.
pub const NEAR_ROUND_TRIP: Duration = Duration::from_millis(2);

// ---- resources of a server ---------------------------------------------------------------------------------

/// Connections at once. At the bound, accepting waits until one ends.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Connections in the handshake or before their hello, at once. At the bound the newest is closed.
pub const HALF_OPEN_MAX: usize = 2048;
/// Connections of one address, or IPv6 network of 64 bits, at once (`--per-address`). More are closed at once.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 2048;
/// Of these, those in the handshake or before their hello; an eighth of them where that is more, up to half of
/// [`HALF_OPEN_MAX`]. More are closed at once.
pub const HALF_OPEN_PER_ADDRESS_MAX: usize = 256;
/// Connections of one principal at once (`--per-principal`). More are told to come again.
pub const CONNECTIONS_PER_PRINCIPAL_MAX: usize = 2048;
/// Transfers and requests of one principal that are open at once, over all its connections. More are told to come
/// again one by one. An open file is one or two descriptors.
pub const OPEN_PER_PRINCIPAL_MAX: usize = 8192;
/// Steps of hashing stored files of one principal at once: a quarter of [`BLOCKING_THREADS_MAX`]. The others wait.
pub const HASHES_PER_PRINCIPAL_MAX: usize = 16;
/// Connections whose uploads are laid to rest, and files that are closed, at once: a quarter of
/// [`BLOCKING_THREADS_MAX`]. The others wait, and leave the disk to who is still there.
pub const DROPS_MAX: usize = 16;
/// Bytes in group buffers over all connections (`--memory`). At the bound, reading from peers waits.
pub const BUFFER_BUDGET: usize = 256 * MIB;
/// The part of [`BUFFER_BUDGET`] that one principal can hold: a quarter.
pub const BUFFER_SHARE: usize = 4;
/// How long a leased buffer may take to fill. Then what has come is written and the buffer goes to somebody else.
pub const LEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// Group buffers that one connection fills or empties at once: enough to overlap network, hash and disk.
pub const BUFFERS_PER_CONNECTION: usize = 8;
/// Bytes of socket reads and writes under TLS: 16 records in one system call.
pub const SOCKET_READ_LEN: usize = 256 * KIB;
/// Bytes of TLS records that may wait to be written to a socket, per connection that moves data.
pub const TLS_WRITE_BUFFER_LEN: usize = 512 * KIB;
/// Outcomes of commits that are remembered for a client that lost the answer. The oldest is forgotten first;
/// a slot is about 130 bytes.
pub const OUTCOMES_MAX: usize = 65_536;
/// Names of which is remembered who stored them, for who may not read them and stores the same again. The oldest is
/// forgotten first, and then the name counts as taken; a slot is about 65 bytes.
pub const OWN_MAX: usize = 65_536;
/// Names of which is remembered when something was last stored under them, so that what comes late is known as such.
/// The one that was stored under first is forgotten first, and an unasked upload to a forgotten name costs its client
/// a question; a slot is about 90 bytes.
pub const NEWEST_NAMES_MAX: usize = 65_536;
/// Bytes of one file of the audit log; after that it goes on in another.
pub const AUDIT_FILE_LEN_MAX: u64 = 256 * MIB as u64;
/// Lines that are kept while the audit log cannot be written; a line is about 400 bytes.
pub const AUDIT_WAITING_MAX: usize = 4096;
/// How soon a line of the audit log is on the disk.
pub const AUDIT_SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// How often the audit log is signed, when something was written.
pub const AUDIT_HEAD_INTERVAL: Duration = Duration::from_secs(60);
/// How often a root is looked at: whether it still is where it was opened, and whether a disk that failed works again.
pub const STORE_TRIAL_INTERVAL: Duration = Duration::from_secs(2);
/// Threads for disk calls and hashing of whole groups.
pub const BLOCKING_THREADS_MAX: usize = 64;
/// Directories that are known to be durable; the set is emptied when it is full. A slot is about 40 bytes.
pub const DURABLE_DIRECTORIES_MAX: usize = 65_536;

/// How long a look at a connection's certificate and revocation holds, as long as no rule has changed.
pub const PASS_LIFETIME: Duration = Duration::from_secs(1);
/// How often a server looks whether its certificates or rules have changed; twice this until it follows them.
pub const RELOAD_INTERVAL: Duration = Duration::from_millis(250);
/// How often a server that runs warns of certificates and lists that end soon: it reads all of them anew.
pub const WARN_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked whether what lies in a home with a quota must be counted (again).
pub const QUOTA_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How old a count of what lies in a home may be. It follows all that this server does; others may write there too.
pub const QUOTA_COUNT_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a policy file: some ten thousand principals. Longer: the file is not used.
pub const POLICY_LEN_MAX: usize = 4 * MIB;

// ---- invites -----------------------------------------------------------------------------------------------

/// Invites that a server keeps, those that have ended among them until [`INVITE_KEPT`] is over. One more is refused.
/// Each is a file of about 1 KiB, and as much memory.
pub const INVITES_MAX: usize = 16_384;
/// Uses of one invite. A run that is under way takes about 100 bytes of its record.
pub const INVITE_USES_MAX: u32 = 10_000;
/// How long an invite may be good for.
pub const INVITE_LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// How long it is good for unless something else is asked for.
pub const INVITE_LIFETIME: Duration = Duration::from_secs(3 * 24 * 3600);
/// How long a run that has begun may go on after its invite has expired.
pub const INVITE_GRACE: Duration = Duration::from_secs(3600);
/// How long a use stays reserved for a run that has committed nothing and has no connection: longer than a client
/// tries to come back ([`CLIENT_PROGRESS_TIMEOUT`]). Then somebody else may have it.
pub const INVITE_RESERVED: Duration = Duration::from_secs(600);
/// How long an invite that has ended is still known, so that its holder is told what became of it.
pub const INVITE_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of a download that may be handed out before the record of their invite says so: after a crash, so many more
/// count as handed out.
pub const INVITE_SIZE_STEP: u64 = 16 * MIB as u64;
/// Bytes of the certificates of who gives an invite, which are kept with it. More: refused.
pub const INVITE_CHAIN_LEN_MAX: usize = 16 * KIB;

// ---- resources of a client ---------------------------------------------------------------------------------

/// Bytes of one directory's listing that a client holds: names, targets of links, and [`LISTED_COST`] for each. About
/// three and a half million names of 50 bytes. More: that directory is refused where all of it is needed at once.
pub const LISTING_LEN_MAX: usize = 640 * MIB;
/// What an entry of a listing takes beside its name and target.
pub const LISTED_COST: usize = 144;
/// Bytes of directories that were found and wait to be fetched: about 150,000 of them. More: told as failures.
pub const WAITING_LEN_MAX: usize = 128 * MIB;

// ---- unfinished uploads ------------------------------------------------------------------------------------

/// How long an unfinished upload is kept after something of it last came (`--keep-partial`).
pub const KEEP_PARTIAL: Duration = Duration::from_secs(24 * 3600);
/// Unfinished uploads that rest of which a server remembers what it has read back, at most: a bit for each MiB of theirs.
pub const PROVEN_MAX: usize = 256;
/// Bytes of an upload from which on it is kept when it is cut: a smaller one is sent again as quickly.
pub const KEPT_SIZE_MIN: u64 = GROUP_LEN as u64 + 1;
/// Unfinished uploads that rest at once, of all principals. Beyond it, those go that rested longest.
pub const KEPT_COUNT_MAX: usize = 16_384;
/// Bytes on disk in unfinished uploads that rest (`--keep-partial-max`), of all principals. Beyond it, those go that
/// rested longest; the newest stays.
pub const KEPT_BYTES_MAX: u64 = 1 << 40;
/// Trees that are being built to take the place of others, or were and are unfinished (`--atomic`), of one principal.
/// Each holds two or three directories open and, on disk, what it has besides the old tree. More are refused.
pub const TREES_PER_OWNER_MAX: usize = 16;
/// The same of all principals.
pub const TREES_MAX: usize = 256;
/// How long a connection that begins to build a tree waits for an older one of the same principal to let go of it.
pub const TREE_TAKEOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a file that is sent unasked although an earlier run has left something of its tree: asking for less costs
/// more than sending it again.
pub const UNASKED_RESUMED_FILE_MAX: u64 = 16 * KIB as u64;
/// The part of [`KEPT_COUNT_MAX`] and [`KEPT_BYTES_MAX`] that one principal can have: a quarter.
pub const KEPT_SHARE: usize = 4;
/// How often a server looks for those that have rested too long.
pub const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);
/// How often what is held is recorded while it grows, for the death of the process: without a sync.
pub const RECORD_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes after which what is held is made durable and recorded durably: what a power cut costs at most, with
/// [`CHECKPOINT_INTERVAL`].
pub const CHECKPOINT_LEN: u64 = 256 * MIB as u64;
/// Time after which the same is done.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// Recording may cost so much of what came since the last record: one byte in this many. A record of a file of
/// 1 TiB has 32 MiB.
pub const RECORD_COST: u64 = 16;

/// 1024 bytes.
pub const KIB: usize = 1 << 10;
/// 1024 [`KIB`].
pub const MIB: usize = 1 << 20;

const _: () = assert!(GROUP_LEN.is_power_of_two() && GROUP_LEN.is_multiple_of(DATA_LEN_MAX));
const _: () = assert!(DATA_LEN_MAX.is_multiple_of(PREFIX_STEP) && PREFIX_STEP >= 1024);
const _: () = assert!(PART_LEN.is_power_of_two() && GROUP_LEN.is_multiple_of(PART_LEN));
const _: () = assert!(UNASKED_FILE_MAX <= GROUP_LEN as u64, "an unasked file has one group");
const _: () = assert!(FILE_SIZE_MAX / (GROUP_LEN as u64) <= u32::MAX as u64 + 1, "a group index fits 32 bits");
const _: () = assert!(HASHES_PER_PRINCIPAL_MAX * 4 <= BLOCKING_THREADS_MAX);
const _: () = assert!(DROPS_MAX * 4 <= BLOCKING_THREADS_MAX);
const _: () = assert!(PATH_LEN_MAX + 512 < CONTROL_LEN_MAX, "any one path fits a control frame");
/// The most that a set of extended attributes takes in a frame: three bytes about each, and three about each part.
const XATTRS_ENCODED_MAX: usize = XATTRS_LEN_MAX + 9 * XATTR_COUNT_MAX + 16;
const _: () = assert!(XATTRS_ENCODED_MAX + 2 * (PATH_LEN_MAX + 1024) + 512 < CONTROL_LEN_MAX, "with two paths");
const _: () = assert!(XATTRS_ENCODED_MAX + 18 * ZERO_RUNS_WITH_XATTRS + 512 < CONTROL_LEN_MAX, "with runs of zeros");
