//! Every command and flag. What they mean together is decided by whoever runs them; here they are only typed.
//!
//! Names of files are bytes: nothing here asks them to be text.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::cli::audit::AuditArgs;
use crate::cli::bench::BenchArgs;
use crate::cli::certs::CertsArgs;
use crate::cli::doctor::DoctorArgs;
use crate::cli::filters::{FilterArgs, UnlistedFilterArgs};
use crate::cli::generate::GenerateArgs;
use crate::cli::invite::InviteArgs;
use crate::cli::names::Named;
use crate::cli::receipt::ReceiptArgs;
use crate::cli::redeem::{Received, RedeemArgs};
use crate::cli::remotes::RemoteArgs;
use crate::cli::trust::{ServerIdentityArgs, TrustArgs};
use crate::cli::user::{GrantArgs, UserArgs};
use crate::cli::values;
use crate::client::compare::DeleteMax;
use crate::client::remote::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::Root;
use crate::limits::{self, CLIENT_PROGRESS_TIMEOUT};
use crate::net::Congestion;
use crate::protocol::{IfExists, Rights};
use crate::storage::ModeRange;

/// The command line.
#[derive(Parser, Debug)]
#[command(
    name = "sealift",
    version,
    about = "Encrypted file transfer: what is acknowledged is verified, durable and whole",
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
A REMOTE is sealift://HOST[:PORT]/PATH (port 7443 if none is given), or NAME:PATH for a NAME of
`sealift remote add`. PATH is literal. A local file with such a name is written ./NAME:PATH.
A destination that ends in / is a directory to put things into; without, it is the new name.

Exit codes: 0 all done, 1 some item failed, 2 usage, 3 cannot connect or trust, 4 refused,
5 content did not match its hash, 130 or 143 interrupted (run it again to continue).

Example:
  sealift put --certs certs backup.tar.zst sealift://nas.example.org/backups/"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make, renew, hand out and revoke certificates
    // The sentences on `CertsArgs` would make `--help` longer than `-h`; what matters of them stands below.
    #[command(
        long_about = None,
        after_help = "\
Running it again keeps what is there: keys stay, and with them the server's pin. A certificate is
issued again from its key for a new host, other days, or when it has under 30 days left.

Examples:
  sealift certs --host nas.example.org --client laptop
  sealift certs --export laptop --to laptop-certs"
    )]
    Certs(Box<CertsArgs>),
    /// Serve a directory
    Serve(Box<ServeArgs>),
    /// Name users in a policy file, and revoke them
    User(Box<UserArgs>),
    /// Say what a user may do at a path and below
    Grant(Box<GrantArgs>),
    /// Upload files and directories
    Put(Box<PutArgs>),
    /// Download files and directories
    Get(Box<GetArgs>),
    /// Compare files and directories here with what the server has
    Verify(Box<VerifyArgs>),
    /// Make the contents of one directory those of another, either way
    Sync(Box<SyncArgs>),
    /// Give somebody a link to a directory
    Invite(Box<InviteArgs>),
    /// List directories
    Ls(Box<LsArgs>),
    /// Show what the server knows about names
    Stat(Box<StatArgs>),
    /// Print BLAKE3 hashes of stored files, as b3sum does
    Hash(Box<HashArgs>),
    /// Remove files and directories
    Rm(Box<RmArgs>),
    /// Rename or move on the server
    Mv(Box<MvArgs>),
    /// Make directories
    Mkdir(Box<MkdirArgs>),
    /// List and remove uploads that were cut, where they are kept
    #[command(after_help = "\
An upload that was cut is kept for its owner to go on with (serve --keep-partial).

Examples:
  sealift uploads ls --root /srv/files
  sealift uploads rm --root /srv/files 0123456789abcdef")]
    Uploads(Box<UploadsArgs>),
    /// Check receipts for stored files
    Receipt(Box<ReceiptArgs>),
    /// Verify an audit log
    Audit(Box<AuditArgs>),
    /// Keep names for servers: add, list, show, remove
    Remote(Box<RemoteArgs>),
    /// Look for what keeps a server from being reached, or slow
    Doctor(Box<DoctorArgs>),
    /// Make completions and manual pages
    #[command(hide = true)]
    Generate(Box<GenerateArgs>),
    /// Look through a served directory for files that rotted
    Scrub(Box<ScrubArgs>),
    /// Measure what this machine can do
    #[command(hide = true)]
    Bench(Box<BenchArgs>),
}

/// What to do when something of a name is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IfExistsArg {
    /// Replace it at the moment when the new one is whole.
    Overwrite,
    /// Leave it.
    Skip,
    /// Leave it and fail.
    Fail,
    /// Store under a new name beside it.
    Rename,
}

impl From<IfExistsArg> for IfExists {
    fn from(argument: IfExistsArg) -> IfExists {
        match argument {
            IfExistsArg::Overwrite => IfExists::Overwrite,
            IfExistsArg::Skip => IfExists::Skip,
            IfExistsArg::Fail => IfExists::Fail,
            IfExistsArg::Rename => IfExists::Rename,
        }
    }
}

/// The flags of every command that connects.
#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// Longest time without progress, reconnects included [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub timeout: Option<Duration>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Print only failures
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print every name, and what was negotiated
    #[arg(short, long)]
    pub verbose: bool,
    /// Whom to trust.
    #[command(flatten)]
    pub trust: TrustArgs,
    /// What the configuration says of the remote that is named, once [`crate::cli::names::resolve`] has looked.
    #[arg(skip)]
    pub named: Option<Named>,
    /// The invite that is redeemed, once [`crate::cli::redeem`] has looked.
    #[arg(skip)]
    pub invited: Option<Received>,
}

impl ConnectArgs {
    /// The longest time without progress: of the flag, the environment or the remote of the configuration.
    ///
    /// # Errors
    /// What is wrong with the variable.
    pub fn timeout(&self, environment: impl Fn(&str) -> Option<OsString>) -> Result<Duration> {
        if let Some(timeout) = self.timeout {
            return Ok(timeout);
        }
        let variable = variable("SEALIFT_TIMEOUT", environment, values::duration)?;
        let profile = self.named.as_ref().and_then(|named| named.profile.timeout);
        Ok(variable.or(profile).unwrap_or(CLIENT_PROGRESS_TIMEOUT))
    }

    /// Connections of one transfer, of the same three; none: as many as make it fast.
    ///
    /// # Errors
    /// What is wrong with the variable.
    pub fn streams(&self, flag: Option<u16>, environment: impl Fn(&str) -> Option<OsString>) -> Result<Option<u16>> {
        if flag.is_some() {
            return Ok(flag);
        }
        let parse = |text: &str| text.parse().map_err(|_| "it is a number".to_owned()).and_then(values::streams);
        let variable = variable("SEALIFT_STREAMS", environment, parse)?;
        Ok(variable.or(self.named.as_ref().and_then(|named| named.profile.streams)))
    }
}

/// A variable that is set and not empty.
fn variable<T>(
    name: &str,
    environment: impl Fn(&str) -> Option<OsString>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>> {
    let Some(value) = environment(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let parsed = value.to_str().ok_or_else(|| "it is not text".to_owned()).and_then(parse);
    parsed.map(Some).map_err(|why| Error::new(ErrorKind::Usage, format!("{name}: {why}")))
}

/// How the connections of a transfer are used.
#[derive(Args, Clone, Debug, Default)]
pub struct PaceArgs {
    /// Connections of one transfer [default: computed]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(values::STREAMS_MAX)))]
    pub streams: Option<u16>,
    /// Bytes of content per second, at most
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub bwlimit: Option<u64>,
    /// TCP congestion control [default: bbr when far, cubic when near]
    #[arg(long, value_name = "NAME", value_parser = values::congestion)]
    pub cc: Option<Congestion>,
}

/// The same flags for a command whose help has no room for them.
#[derive(Clone, Debug, Default)]
pub struct UnlistedPaceArgs(pub PaceArgs);

impl FromArgMatches for UnlistedPaceArgs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<UnlistedPaceArgs, clap::Error> {
        PaceArgs::from_arg_matches(matches).map(UnlistedPaceArgs)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Args for UnlistedPaceArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        ["streams", "bwlimit", "cc"]
            .iter()
            .fold(PaceArgs::augment_args(command), |command, name| command.mut_arg(name, |arg| arg.hide(true)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        UnlistedPaceArgs::augment_args(command)
    }
}

/// The flags of every command that moves content.
#[derive(Args, Clone, Debug)]
pub struct TransferArgs {
    /// For a taken name: overwrite, skip, fail, rename
    #[arg(long, value_name = "WHAT", value_enum, default_value = "overwrite", hide_possible_values = true)]
    pub if_exists: IfExistsArg,
    /// How connections are used.
    #[command(flatten)]
    pub pace: PaceArgs,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Accepted and needless: directories are moved whole
    // Whoever is used to it need not be told of it: the help fits a screen.
    #[arg(short, long, hide = true)]
    pub recursive: bool,
    /// Further names from FILE (or `-`), one a line
    #[arg(long, value_name = "FILE")]
    pub files_from: Option<PathBuf>,
    /// Names in that file end in NUL bytes
    #[arg(short = '0', long = "null", requires = "files_from")]
    pub null: bool,
}

/// Upload files and directories.
#[derive(Args, Debug)]
#[command(
    override_usage = "sealift put [OPTIONS] SOURCE... DEST (or, for DEST, --invite)\n       \
                      sealift put [OPTIONS] --stdin-from-command DEST -- CMD [ARG]...",
    after_help = "\
Examples:
  sealift put --certs certs photos sealift://nas/in/       stored as in/photos/...
  sealift put --certs certs --stdin-from-command sealift://nas/db.sql -- pg_dump shop
Also --atomic, --links, --exclude and whatever else leaves things out: see `sealift sync --help`."
)]
pub struct PutArgs {
    /// Local files and directories (`-` is standard input), then the remote destination
    // With `--stdin-from-command`: the destination, then the command. See `PutArgs::command`.
    #[arg(value_name = "PATH")]
    pub paths: Vec<OsString>,
    /// How content is moved.
    #[command(flatten)]
    pub transfer: TransferArgs,
    /// Upload what CMD prints, if it exits 0; no shell is involved
    #[arg(long, conflicts_with_all = ["files_from", "remove_source"])]
    pub stdin_from_command: bool,
    /// Write a stream to a temporary file first, so that it can be sent again
    #[arg(long, conflicts_with = "remove_source")]
    pub spool: bool,
    /// Store nothing unless the source has this size
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub expect_size: Option<u64>,
    /// Store nothing unless the source has this BLAKE3 hash
    #[arg(long, value_name = "HASH", value_parser = values::root)]
    pub expect_b3: Option<Root>,
    /// Remove each file once it is durable there, if it did not change
    #[arg(long)]
    pub remove_source: bool,
    /// A directory is there all at once, or not at all
    #[arg(long, hide = true, conflicts_with_all = ["stdin_from_command", "files_from", "remove_source", "receipts"])]
    pub atomic: bool,
    /// Keep the server's signed receipts for what is stored here
    #[arg(long, value_name = "DIR")]
    pub receipts: Option<PathBuf>,
    /// Where the link of an invite is.
    #[command(flatten)]
    pub redeem: RedeemArgs,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What is left out.
    #[command(flatten)]
    pub filters: UnlistedFilterArgs,
}

/// Download files and directories.
#[derive(Args, Debug)]
#[command(
    override_usage = "sealift get [OPTIONS] REMOTE... [LOCAL] (or, for REMOTE, --invite)",
    after_help = "\
Examples:
  sealift get --certs certs sealift://nas/in/photos        stored as ./photos/...
  sealift get --certs certs sealift://nas/in/photos old/   stored as old/photos/...
  sealift get --certs certs sealift://nas/db.sql.zst - | zstd -d | psql shop
Also --links, --exclude and whatever else leaves things out: see `sealift sync --help`."
)]
pub struct GetArgs {
    /// Remotes, then where to store them (`-` is standard output) [default: ./]
    #[arg(value_name = "REMOTE")]
    pub paths: Vec<OsString>,
    /// How content is moved.
    #[command(flatten)]
    pub transfer: TransferArgs,
    /// Take *, ? and [...] in remote names for patterns
    #[arg(long)]
    pub glob: bool,
    /// Where the link of an invite is.
    #[command(flatten)]
    pub redeem: RedeemArgs,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What is left out.
    #[command(flatten)]
    pub filters: UnlistedFilterArgs,
}

/// Make the contents of one directory those of another.
#[derive(Args, Debug)]
#[command(
    override_usage = "sealift sync [OPTIONS] SOURCE DEST",
    after_help = "\
Example:
  sealift sync --certs certs --delete --atomic -n site sealift://www/site   -n: look before it runs"
)]
pub struct SyncArgs {
    /// A directory, here or remote
    #[arg(value_name = "SOURCE")]
    pub source: OsString,
    /// The directory that becomes the same; one of the two is remote
    #[arg(value_name = "DEST")]
    pub destination: OsString,
    /// Compare files of the same size by BLAKE3 hash, not by time
    #[arg(short, long)]
    pub checksum: bool,
    /// At the end, remove what SOURCE lacks; --delete-excluded: filtered too
    #[arg(long)]
    pub delete: bool,
    /// Also what is left out
    #[arg(long, hide = true)]
    pub delete_excluded: bool,
    /// Remove nothing if more files than this would go
    #[arg(long, value_name = "N|N%", default_value = "25%")]
    pub max_delete: DeleteMax,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// DEST becomes so all at once, or stays as it was
    #[arg(long)]
    pub atomic: bool,
    /// How connections are used, as in `put`.
    #[command(flatten)]
    pub pace: UnlistedPaceArgs,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What is left out.
    #[command(flatten)]
    pub filters: FilterArgs,
}

/// Compare files and directories here with what the server has.
#[derive(Args, Debug)]
#[command(
    override_usage = "sealift verify [OPTIONS] SOURCE... DEST",
    after_help = "\
Names are those of `put` with the same arguments. Both sides read and hash their own; no content
crosses. Exit code 1: something differs or is missing on one side. 5: content differs though
size and time are the same, so one of the two is damaged.

Examples:
  sealift verify --certs certs photos sealift://nas/in/      compared with in/photos/...
  sealift verify --certs certs dump.sql sealift://nas/today"
)]
pub struct VerifyArgs {
    /// Local files and directories, then the remote destination
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
    /// Accepted and needless: directories are compared whole
    #[arg(short, long)]
    pub recursive: bool,
    /// Further names from FILE (or `-`), one a line
    #[arg(long, value_name = "FILE")]
    pub files_from: Option<PathBuf>,
    /// Names in that file end in NUL bytes
    #[arg(short = '0', long = "null", requires = "files_from")]
    pub null: bool,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// List directories.
#[derive(Args, Debug)]
#[command(after_help = "\
Names with control characters or bytes that are not text are printed escaped.

Examples:
  sealift ls --certs certs sealift://nas/
  sealift ls --certs certs -lR sealift://nas/backups/")]
pub struct LsArgs {
    /// Directories and files
    #[arg(value_name = "REMOTE")]
    pub paths: Vec<OsString>,
    /// Kind and permissions, size and time (UTC) of each
    #[arg(short, long)]
    pub long: bool,
    /// Directories below, too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Take *, ? and [...] for patterns
    #[arg(long)]
    pub glob: bool,
    /// Where the link of an invite is.
    #[command(flatten)]
    pub redeem: RedeemArgs,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Show what the server knows about names.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints name, kind, size, time (UTC), permissions, and where a link points to.

Example:
  sealift stat --certs certs sealift://nas/backups/today.tar.zst")]
pub struct StatArgs {
    /// Files and directories
    #[arg(value_name = "REMOTE")]
    pub paths: Vec<OsString>,
    /// Take *, ? and [...] for patterns
    #[arg(long)]
    pub glob: bool,
    /// Where the link of an invite is.
    #[command(flatten)]
    pub redeem: RedeemArgs,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Print BLAKE3 hashes of stored files, as b3sum does.
#[derive(Args, Debug)]
#[command(after_help = "\
The server reads the files; what is printed can be checked with `b3sum --check`.

Example:
  sealift hash --certs certs sealift://nas/backups/today.tar.zst")]
pub struct HashArgs {
    /// Files
    #[arg(required = true, value_name = "REMOTE")]
    pub paths: Vec<OsString>,
    /// Files in directories, too
    #[arg(short, long)]
    pub recursive: bool,
    /// Take *, ? and [...] for patterns
    #[arg(long)]
    pub glob: bool,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Remove files and directories.
#[derive(Args, Debug)]
#[command(after_help = "\
The root of a server cannot be removed. What is said to be removed is gone for good.

Example:
  sealift rm --certs certs -r sealift://nas/backups/2019/")]
pub struct RmArgs {
    /// Files and directories
    #[arg(required = true, value_name = "REMOTE")]
    pub paths: Vec<OsString>,
    /// Directories with all that is in them, too
    #[arg(short, long)]
    pub recursive: bool,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Take *, ? and [...] for patterns
    #[arg(long)]
    pub glob: bool,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Rename or move on the server.
#[derive(Args, Debug)]
#[command(
    override_usage = "sealift mv [OPTIONS] REMOTE... DEST",
    after_help = "\
Examples:
  sealift mv --certs certs sealift://nas/in/a sealift://nas/b       becomes b
  sealift mv --certs certs sealift://nas/in/a sealift://nas/done/   becomes done/a"
)]
pub struct MvArgs {
    /// Names that there are, then the new name, or the directory to move them into
    #[arg(required = true, value_name = "REMOTE")]
    pub paths: Vec<OsString>,
    /// If the name is taken: overwrite, skip, fail or rename
    #[arg(long, value_name = "WHAT", value_enum, default_value = "fail", hide_possible_values = true)]
    pub if_exists: IfExistsArg,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Make directories.
#[derive(Args, Debug)]
#[command(after_help = "\
Missing parents are made. A directory that exists already is success.

Example:
  sealift mkdir --certs certs sealift://nas/backups/2026/")]
pub struct MkdirArgs {
    /// Directories
    #[arg(required = true, value_name = "REMOTE")]
    pub paths: Vec<OsString>,
    /// How to connect.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// List and remove unfinished uploads.
#[derive(Args, Debug)]
pub struct UploadsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: UploadsCommand,
}

/// What to do with unfinished uploads.
#[derive(Subcommand, Debug)]
pub enum UploadsCommand {
    /// List them: id, bytes held and in all, when something last came, whose, and the name
    #[command(after_help = "Example:\n  sealift uploads ls --root /srv/files")]
    Ls {
        /// The directory that is served
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Remove those with these ids; one that is being received is left
    #[command(after_help = "Example:\n  sealift uploads rm --root /srv/files 0123456789abcdef")]
    Rm {
        /// The directory that is served
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// As `ls` prints them
        #[arg(value_name = "ID", required_unless_present = "all")]
        ids: Vec<String>,
        /// All of them
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
}

/// Serve a directory.
#[derive(Args, Debug)]
#[command(
    override_usage = "sealift serve --root DIR (--certs DIR | --cert F --key F) [OPTIONS]",
    after_help = "\
Prints `listening on ADDR:PORT` once it accepts; logs go to standard error.
SIGTERM and ctrl-C let transfers go on for up to 30 s, a second one stops at once.

Example:
  sealift serve --root /srv/files --certs certs --listen 0.0.0.0:7443"
)]
pub struct ServeArgs {
    /// Directory to serve; its last component is made if missing
    #[arg(long, value_name = "DIR", required_unless_present = "show_limits")]
    pub root: Option<PathBuf>,
    /// Where to accept (repeatable; port 0: any)
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7443")]
    pub listen: Vec<SocketAddr>,
    /// Bytes of memory for content in flight
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = values::size)]
    pub memory: u64,
    /// Threads for disk calls and hashing
    #[arg(long, value_name = "N", default_value_t = limits::BLOCKING_THREADS_MAX, hide = true)]
    pub disk_threads: usize,
    /// Connections of one address (IPv6: of its /64) at most
    #[arg(long, value_name = "N", default_value_t = limits::CONNECTIONS_PER_ADDRESS_MAX, hide = true)]
    pub per_address: usize,
    /// Connections of one certificate at most
    #[arg(long, value_name = "N", default_value_t = limits::CONNECTIONS_PER_PRINCIPAL_MAX, hide = true)]
    pub per_principal: usize,
    /// Sync each small file by itself, to measure what group commits are worth
    #[arg(long, hide = true)]
    pub sync_each: bool,
    /// Bytes of content per second in each direction, all clients together
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub bwlimit: Option<u64>,
    /// The same for each client, whatever number of connections it makes
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub bwlimit_client: Option<u64>,
    /// TCP congestion control [default: bbr when far, cubic when near]
    #[arg(long, value_name = "NAME", value_parser = values::congestion)]
    pub cc: Option<Congestion>,
    /// Permissions of stored files, at least and at most, octal
    #[arg(long, value_name = "MIN[:MAX]", value_parser = values::mode_range)]
    pub file_mode: Option<ModeRange>,
    /// Permissions of made directories, at least and at most
    #[arg(long, value_name = "MIN[:MAX]", value_parser = values::mode_range)]
    pub dir_mode: Option<ModeRange>,
    /// How long what was cut is kept; 0: not at all
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = values::duration_or_none)]
    pub keep_partial: Duration,
    /// Bytes on disk that those take at most
    // In the manual and in --show-limits: the help fits a screen.
    #[arg(long, value_name = "SIZE", default_value = "1024G", value_parser = values::size, hide = true)]
    pub keep_partial_max: u64,
    /// Write down all that is asked and done; no change is made without
    #[arg(long, value_name = "FILE")]
    pub audit: Option<PathBuf>,
    /// Do not confine the process to the directories that it needs
    #[arg(long)]
    pub no_sandbox: bool,
    /// Validate everything and exit
    #[arg(long)]
    pub check: bool,
    /// Print the limits and exit
    #[arg(long)]
    pub show_limits: bool,
    /// Log more: -v messages, -vv frames
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log only warnings and errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Who is who.
    #[command(flatten)]
    pub identity: ServerIdentityArgs,
    /// Who may do what.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Look through a served directory for files that rotted.
#[derive(Args, Debug)]
#[command(after_help = "\
Every file is read from the disk, past the cache, and compared with the hash that was recorded
when it was stored. Only reads, and may run beside the server of that directory.

rotten: the content differs, size and time do not. changed: somebody changed it since.
unrecorded (-v names them): another program put it there.
Exit code 5: something rotted. 1: something could not be read.

Example:
  sealift scrub --root /srv/files --rate 100M")]
pub struct ScrubArgs {
    /// Directory that is or was served
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Only this file or directory in it
    #[arg(long, value_name = "SUB")]
    pub path: Option<OsString>,
    /// Bytes a second to read at most; 0 is without a bound
    #[arg(long, value_name = "SIZE", default_value = "50M", value_parser = values::size)]
    pub rate: u64,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
    /// Print only what is rotten or cannot be read
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print every name
    #[arg(short, long)]
    pub verbose: bool,
}

/// What narrows or widens the rights of those who connect.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Who may do what")]
pub struct AccessArgs {
    /// Each client's home and rights (`sealift user`)
    #[arg(long, value_name = "FILE", conflicts_with = "anonymous_rights")]
    pub policy: Option<PathBuf>,
    /// Let in clients without a certificate, to store new files only
    #[arg(long)]
    pub allow_anonymous: bool,
    /// Instead: some of list,read,create,overwrite,rename,delete
    #[arg(long, value_name = "RIGHTS", value_parser = values::rights, requires = "allow_anonymous")]
    pub anonymous_rights: Option<Rights>,
    /// Give links to those without a certificate, and take them (`sealift invite`)
    #[arg(long)]
    pub invites: bool,
    /// Address in these links
    #[arg(long, value_name = "HOST:PORT", requires = "invites")]
    pub public: Option<Endpoint>,
    /// Nobody may change anything
    #[arg(long)]
    pub read_only: bool,
    /// Nobody may replace what is there
    #[arg(long)]
    pub no_overwrite: bool,
    /// Nobody may remove what is there
    #[arg(long)]
    pub no_delete: bool,
    /// Clients may set setuid, setgid, sticky and world-writable
    #[arg(long)]
    pub allow_special_modes: bool,
}

impl PutArgs {
    /// With `--stdin-from-command`, the destination and the command; `--` between them may be left out when no
    /// argument of the command begins with `-`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when there is no command.
    pub fn command(&self) -> Result<Option<(&OsString, &[OsString])>> {
        if !self.stdin_from_command {
            return Ok(None);
        }
        match self.paths.split_first() {
            // `put --stdin-from-command -- DEST -- CMD`: the second `--` is taken for a name.
            Some((destination, [dashes, command @ ..])) if dashes == "--" && !command.is_empty() => {
                Ok(Some((destination, command)))
            }
            Some((destination, command)) if !command.is_empty() => Ok(Some((destination, command))),
            _ => Err(usage("--stdin-from-command needs a destination and, after `--`, a command")),
        }
    }

    /// What no single flag can tell: which of them go together.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`].
    pub fn check(&self) -> Result<()> {
        if self.command()?.is_some() {
            return Ok(());
        }
        let lists = self.transfer.files_from.is_some();
        let reads_stdin = self.paths.iter().any(|path| path == "-");
        if !lists && self.paths.len() < 2 {
            return Err(usage("put needs a source and a destination"));
        }
        if self.remove_source && reads_stdin {
            return Err(usage("--remove-source cannot remove standard input"));
        }
        if self.transfer.files_from.as_ref().is_some_and(|path| path.as_os_str() == "-") && reads_stdin {
            return Err(usage("standard input cannot be both a list of names and a source"));
        }
        if (self.expect_size.is_some() || self.expect_b3.is_some()) && (lists || self.paths.len() > 2) {
            return Err(usage("--expect-size and --expect-b3 tell of one source"));
        }
        Ok(())
    }
}

fn usage(message: &str) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[track_caller]
    fn check(line: &str, accepted: bool) {
        let got = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string()).and_then(|cli| {
            if let Command::Put(arguments) = &cli.command {
                arguments.check().map_err(|error| error.chain())?;
            }
            Ok(cli)
        });
        assert_eq!(got.is_ok(), accepted, "{line}: {got:?}");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_put() {
        check("sealift put a sealift://nas/x", true);
        check("sealift put -r -n -q --streams 4 --timeout 2s --json a b sealift://nas/x/", true);
        check("sealift put sealift://nas/x", false);
        check("sealift put a sealift://nas/x --streams 0", false);
        check("sealift put a sealift://nas/x --streams 33", false);
        check("sealift put a sealift://nas/x --timeout 5", false);
        check("sealift put a sealift://nas/x --if-exists maybe", false);
        check("sealift put a sealift://nas/x --if-exists rename", true);
        check("sealift put -q -v a sealift://nas/x", false);
        check("sealift put --files-from - sealift://nas/x/", true);
        check("sealift put --files-from - -0 sealift://nas/x/", true);
        check("sealift put -0 a sealift://nas/x/", false);
        check("sealift put --files-from - - sealift://nas/x/", false);
        check("sealift put --stdin-from-command sealift://nas/x -- pg_dump -Fc shop", true);
        check("sealift put --expect-size 3G --stdin-from-command sealift://nas/x -- pg_dump -Fc shop", true);
        check("sealift put -- -x sealift://nas/x", true);
        check("sealift put --stdin-from-command sealift://nas/x", false);
        check("sealift put --expect-size 3G - sealift://nas/x", true);
        check("sealift put --expect-size 3G a b sealift://nas/x/", false);
        check("sealift put --expect-b3 abc - sealift://nas/x", false);
        check("sealift put --remove-source a sealift://nas/x", true);
        check("sealift put --remove-source - sealift://nas/x", false);
        check("sealift put --certs c --ca a a sealift://nas/x", false);
        check("sealift put --cert c a sealift://nas/x", false);
        let pin = format!("sha256:{}", "0a".repeat(32));
        check(&format!("sealift put --pin {pin} --pin {pin} a sealift://nas/x"), true);
        check("sealift put --pin sha256:0a a sealift://nas/x", false);
    }

    #[test]
    fn flags_of_sync() {
        check("sealift sync a sealift://nas/x", true);
        check("sealift sync sealift://nas/x a --delete --max-delete 50% -n -c --exclude *.o --include keep.o", true);
        check("sealift sync a sealift://nas/x --max-delete 50", true);
        check("sealift sync a sealift://nas/x --max-delete many", false);
        check("sealift sync a b sealift://nas/x", false);
        check("sealift sync a sealift://nas/x --newer-than 3d --older-than 2s --min-size 1 --max-size 2G", true);
        check("sealift sync a sealift://nas/x --newer-than 3", false);
        check("sealift put a sealift://nas/x --exclude .git --links follow --ignore-files", true);
    }

    #[test]
    fn flags_of_serve() {
        check("sealift serve --root r --certs c", true);
        check("sealift serve --certs c", false);
        check("sealift serve --show-limits", true);
        check("sealift serve --root r --cert c", false);
        check(
            "sealift serve --root r --cert c --key k --client-ca a --crl l --listen [::1]:0 --listen 0.0.0.0:1",
            true,
        );
        check("sealift serve --root r --certs c --crl l", false);
        check("sealift serve --root r --certs c --anonymous-rights list", false);
        check("sealift serve --root r --certs c --allow-anonymous --anonymous-rights list,create", true);
        check("sealift serve --root r --certs c --file-mode 0640:0660 --dir-mode 0750 --memory 1G", true);
        check("sealift serve --root r --certs c --file-mode 9", false);
        check("sealift serve --root r --certs c --listen 7443", false);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        check("sealift sync a", false);
        check("sealift", false);
        // An invite may say what to get; without one, that is told by the command.
        check("sealift get", true);
        check("sealift get --files-from list", true);
        check("sealift ls -lR sealift://nas/", true);
        check("sealift rm", false);
    }

    #[test]
    fn defaults_are_those_of_the_limits() {
        let cli = Cli::try_parse_from(["sealift", "get", "sealift://nas/x"]).unwrap();
        let Command::Get(arguments) = cli.command else { panic!("not a get") };
        assert_eq!(arguments.connect.timeout(|_| None).unwrap(), Duration::from_secs(300));
        assert_eq!(crate::limits::CLIENT_PROGRESS_TIMEOUT, Duration::from_secs(300), "as --help says");
        assert_eq!(arguments.transfer.if_exists, IfExistsArg::Overwrite);
        let cli = Cli::try_parse_from(["sealift", "serve", "--show-limits"]).unwrap();
        let Command::Serve(arguments) = cli.command else { panic!("not a serve") };
        assert_eq!(arguments.memory, crate::limits::BUFFER_BUDGET as u64);
        assert_eq!(arguments.listen, ["127.0.0.1:7443".parse().unwrap()]);
    }
}
