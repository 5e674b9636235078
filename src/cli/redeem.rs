//! Where the link of an invite comes from, for who received it, and the number of the run that redeems it.
//!
//! The documented ways show it to nobody: `--invite` asks on the terminal without echo, `--invite-file` reads a file,
//! `SEALIFT_INVITE` is a variable. A link among the arguments works too, with a warning: everybody on the machine can
//! read them.
//!
//! A run that was cut is gone on with by the next command for the same link: its number is kept, with a lock, in
//! `$XDG_STATE_HOME/sealift/runs` until the command has done all. Who has the number and the link can go on with that
//! use of the invite, and no more.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustix::fs::{FlockOperation, flock};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::cli::args::{Command, ConnectArgs};
use crate::cli::secret;
use crate::cli::trust::environment;
use crate::client::invite::{Link, Redemption};
use crate::client::remote::{contains_invite, is_url, named, split_name};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::Escaped;
use crate::protocol::{Bytes16, InviteId};

/// Bytes that are read of a file or terminal: more than any link has.
const TEXT_LEN_MAX: usize = 16 * 1024;
/// Runs of one invite that go on beside one another from one account and are known again.
const RUNS_MAX: usize = 64;

/// The flags of every command that can redeem an invite.
#[derive(Args, Clone, Debug, Default)]
pub struct RedeemArgs {
    /// Ask for an invite's link here (or --invite-file FILE, SEALIFT_INVITE)
    #[arg(long)]
    pub invite: bool,
    /// Read an invite's link from FILE
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "invite")]
    pub invite_file: Option<PathBuf>,
}

/// A link that was received. Its `Debug` shows nothing.
#[derive(Clone)]
pub struct Received {
    /// The link.
    pub link: Arc<Link>,
    /// Whether it stood among the arguments.
    pub is_visible: bool,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Received(…)")
    }
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

/// Which arguments of a command are names on the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// The last.
    Put,
    /// All but a last local one.
    Get,
    /// All.
    Remote,
}

/// Finds the link that a command redeems, if it does, and makes its other arguments whole.
///
/// # Errors
/// `Usage` for what is no link, one in the wrong place, or two; what reading one fails with.
pub(super) fn resolve(command: &mut Command) -> Result<()> {
    let (paths, connect, redeem, shape, is_listed) = match command {
        Command::Put(args) => {
            if args.stdin_from_command {
                return refuse_with_command(args.redeem.is_asked(), args.paths.first());
            }
            let is_listed = args.transfer.files_from.is_some();
            (&mut args.paths, &mut args.connect, &args.redeem, Shape::Put, is_listed)
        }
        Command::Get(args) => {
            let is_listed = args.transfer.files_from.is_some();
            (&mut args.paths, &mut args.connect, &args.redeem, Shape::Get, is_listed)
        }
        Command::Ls(args) => (&mut args.paths, &mut args.connect, &args.redeem, Shape::Remote, false),
        Command::Stat(args) => (&mut args.paths, &mut args.connect, &args.redeem, Shape::Remote, false),
        _ => return Ok(()),
    };
    if let Some(received) = find(paths, redeem, shape)? {
        refuse_trust(connect)?;
        take(paths, &received.link, shape, is_listed)?;
        connect.invited = Some(received);
    } else if paths.is_empty() && !(shape == Shape::Get && is_listed) {
        return Err(usage(match shape {
            Shape::Put => "put needs a source and a destination",
            _ => "no remote is named (sealift://HOST[:PORT]/PATH, or --invite)",
        }));
    }
    Ok(())
}

fn refuse_with_command(is_asked: bool, destination: Option<&OsString>) -> Result<()> {
    if is_asked || destination.is_some_and(|argument| contains_invite(argument.as_bytes())) {
        return Err(usage("--stdin-from-command needs a name to store under, and an invite gives none: store a file"));
    }
    Ok(())
}

impl RedeemArgs {
    fn is_asked(&self) -> bool {
        self.invite || self.invite_file.is_some()
    }
}

/// The link itself is the whole of trust.
fn refuse_trust(connect: &ConnectArgs) -> Result<()> {
    let trust = &connect.trust;
    if trust.certs.is_some() || trust.ca.is_some() || trust.cert.is_some() || !trust.pin.is_empty() {
        return Err(usage(
            "an invite says itself whom to trust, and needs no certificate: leave out --certs, --ca, --cert and --pin",
        ));
    }
    Ok(())
}

/// The link, from wherever it comes; an argument that is one is taken out.
fn find(paths: &mut Vec<OsString>, redeem: &RedeemArgs, shape: Shape) -> Result<Option<Received>> {
    let is_link = |argument: &OsString| {
        (is_url(argument) || split_name(argument).is_some()) && contains_invite(argument.as_bytes())
    };
    let links: Vec<usize> = (0..paths.len()).filter(|&index| is_link(&paths[index])).collect();
    let text = match (links.as_slice(), redeem.is_asked()) {
        ([_, ..], true) | ([_, _, ..], false) => {
            return Err(usage("one command redeems one invite: give its link once"));
        }
        ([index], false) => {
            if shape == Shape::Put && index + 1 != paths.len() {
                return Err(usage("put takes the link of an invite as its last argument, the destination"));
            }
            // Not trimmed: what a shell made of it is to be exactly what was given.
            let text = Zeroizing::new(paths.remove(*index).into_vec());
            return Ok(Some(Received { link: Arc::new(Link::parse(&text)?), is_visible: true }));
        }
        ([], true) => match &redeem.invite_file {
            Some(file) => read_file(file)?,
            None => ask()?,
        },
        ([], false) => {
            let is_remote = |argument: &OsString| is_url(argument) || split_name(argument).is_some();
            let Some(text) = environment("SEALIFT_INVITE").filter(|text| !text.is_empty()) else { return Ok(None) };
            if paths.iter().any(is_remote) {
                // A command that names its server is not about an invite.
                return Ok(None);
            }
            Zeroizing::new(text.into_vec())
        }
    };
    let link = Link::parse(text.trim_ascii())?;
    Ok(Some(Received { link: Arc::new(link), is_visible: false }))
}

/// Writes the arguments as they would be with a remote.
fn take(paths: &mut Vec<OsString>, link: &Link, shape: Shape, is_listed: bool) -> Result<()> {
    let root = || named(&link.endpoint, "".as_ref());
    match shape {
        Shape::Put => {
            if paths.iter().any(|path| path == "-") {
                return Err(usage(
                    "standard input has no name to be stored under, and an invite gives none: name a file",
                ));
            }
            if paths.is_empty() && !is_listed {
                return Err(usage("put needs something to store: sealift put FILE --invite"));
            }
            paths.push(root());
        }
        Shape::Get => {
            if paths.len() > 1 || is_listed {
                return Err(usage(
                    "get takes all that an invite is for, and one place to store it: sealift get --invite [LOCAL]",
                ));
            }
            let local = paths.pop().unwrap_or_else(|| "./".into());
            let ends_open = local.as_bytes().rsplit(|&byte| byte == b'/').next();
            let mut target = local.clone();
            if matches!(ends_open, None | Some(b"" | b"." | b"..")) {
                let name = link.path.name().ok_or_else(|| {
                    usage(
                        "what the invite is for has no name: say where to store it, as in `sealift get --invite NAME`",
                    )
                })?;
                target = PathBuf::from(&local).join(std::ffi::OsStr::from_bytes(name.as_bytes())).into_os_string();
            }
            // Not a name of the configuration, nor a link.
            if split_name(&target).is_some() {
                target = PathBuf::from(".").join(&target).into_os_string();
            }
            paths.extend([root(), target]);
        }
        Shape::Remote if paths.is_empty() => paths.push(root()),
        Shape::Remote => {
            for path in paths {
                if is_url(path) {
                    return Err(usage("with an invite, names are those in its directory, without a server"));
                }
                *path = named(&link.endpoint, path);
            }
        }
    }
    Ok(())
}

fn read_file(file: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let doing = || format!("read the invite in `{}`", Escaped(file.as_os_str().as_bytes()));
    let mut text = Zeroizing::new(Vec::with_capacity(TEXT_LEN_MAX));
    let opened = File::open(file).while_doing(doing).map_err(|error| error.with_kind(ErrorKind::Usage))?;
    opened.take(TEXT_LEN_MAX as u64).read_to_end(&mut text).while_doing(doing)?;
    Ok(text)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet<'a>(&'a File, Termios);

impl<'a> Quiet<'a> {
    fn new(terminal: &'a File) -> io::Result<Quiet<'a>> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        // Signals too come as characters: the terminal must not stay as it is when the person gives up.
        quiet.local_modes &= !(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Quiet(terminal, before))
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(self.0.as_fd(), OptionalActions::Flush, &self.1);
    }
}

/// Asks for the link on the terminal, whatever standard input is.
fn ask() -> Result<Zeroizing<Vec<u8>>> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(|_| {
        usage("there is no terminal to ask for the link at: give --invite-file FILE, or set SEALIFT_INVITE")
    })?;
    let doing = || "ask for the link on the terminal".to_owned();
    let mut text = Zeroizing::new(Vec::with_capacity(TEXT_LEN_MAX));
    {
        let quiet = Quiet::new(&terminal).while_doing(doing)?;
        (&terminal).write_all(b"Link (it is not shown): ").while_doing(doing)?;
        let mut byte = [0];
        loop {
            if (&terminal).read(&mut byte).while_doing(doing)? == 0 {
                break;
            }
            match byte[0] {
                b'\r' | b'\n' | 0x04 => break,
                0x03 | 0x1c => {
                    drop(quiet);
                    // The line is the terminal's: whether it could be ended is no matter.
                    let _ = (&terminal).write_all(b"\n");
                    return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
                }
                0x08 | 0x7f => drop(text.pop()),
                _ if text.len() == TEXT_LEN_MAX => {}
                other => text.push(other),
            }
        }
    }
    (&terminal).write_all(b"\n").while_doing(doing)?;
    Ok(text)
}

/// The run of a command that redeems an invite.
pub(super) struct Run {
    number: Bytes16,
    /// Where the number is kept, with a lock; none: it is not.
    kept: Option<(PathBuf, File)>,
}

impl Run {
    /// The run that a cut command has left for this invite, or a new one.
    ///
    /// # Errors
    /// `Internal` when the system has no random bytes.
    pub(super) fn begin(id: InviteId) -> Result<Run> {
        let kept =
            secret::directory(|name| std::env::var_os(name)).and_then(|directory| keep(&directory.join("runs"), id));
        match kept {
            Some((number, path, file)) => Ok(Run { number, kept: Some((path, file)) }),
            // Deliberate loss: without it a cut command takes another use, that is all.
            None => Ok(Run { number: new_number()?, kept: None }),
        }
    }

    /// What is shown to the server.
    pub(super) fn redemption(&self, link: &Link) -> Redemption {
        Redemption { ticket: link.ticket(), run: self.number }
    }

    /// The command has done all: nobody goes on with it.
    pub(super) fn end(self) {
        if let Some((path, _file)) = self.kept {
            // Left behind, it would be a run that the server does not know any more.
            let _ = fs::remove_file(path);
        }
    }
}

fn new_number() -> Result<Bytes16> {
    let mut number = [0; 16];
    getrandom::fill(&mut number)
        .map_err(|error| Error::new(ErrorKind::Internal, "get random bytes from the system").with_source(error))?;
    Ok(Bytes16(number))
}

/// The number in the first file that no other command has locked; a new one is written there if it holds none.
fn keep(directory: &Path, id: InviteId) -> Option<(Bytes16, PathBuf, File)> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).ok()?;
    for slot in 0..RUNS_MAX {
        let path = directory.join(format!("{id}.{slot}"));
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.ok()?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        // Who had it may have removed it before letting go.
        let is_there =
            fs::metadata(&path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
        let is_ours = file.metadata().is_ok_and(|ours| ours.mode() & 0o077 == 0);
        if !is_there || !is_ours {
            continue;
        }
        let mut number = Vec::new();
        file.read_to_end(&mut number).ok()?;
        if let Ok(number) = <[u8; 16]>::try_from(number) {
            return Some((Bytes16(number), path, file));
        }
        let number = new_number().ok()?;
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&number.0)).ok()?;
        return Some((number, path, file));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_run_is_known_again_and_two_at_once_are_two() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("state/runs");
        let id = InviteId([7; 8]);
        let first = keep(&directory, id).unwrap();
        let second = keep(&directory, id).unwrap();
        assert!(first.0 != second.0, "beside one another");
        let number = first.0;
        drop(first);
        let again = keep(&directory, id).unwrap();
        assert!(again.0 == number, "after a cut");
        Run { number, kept: Some((again.1, again.2)) }.end();
        let third = keep(&directory, id).unwrap();
        assert!(third.0 != number && third.0 != second.0, "after its end");
        assert!(keep(&directory, InviteId([8; 8])).unwrap().0 != third.0, "another invite");
        // A number that others could read is nobody's.
        let (number, path) = (third.0, third.1.clone());
        drop(third);
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        assert!(keep(&directory, id).unwrap().0 != number);
    }
}
