//! From `NAME:PATH` to `sealift://HOST/PATH`: what the configuration says, before a command looks at its arguments.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::cli::args::Command;
use crate::cli::config::{Config, Profile};
use crate::cli::invite::InviteCommand;
use crate::cli::trust::environment;
use crate::client::remote::{Location, is_name, is_url, named, split_name};
use crate::error::{Error, ErrorKind, Result};
use crate::path::Escaped;

/// The remote of the configuration that a command speaks to.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// What the file says of it.
    pub profile: Profile,
    /// The file.
    pub config: PathBuf,
}

/// Makes the arguments of a command whole that are written `NAME:PATH`, and gives it what the file says of NAME.
///
/// # Errors
/// [`ErrorKind::Usage`] for an unknown NAME, for two, and for a configuration that is not understood.
pub fn resolve(command: &mut Command) -> Result<()> {
    let (arguments, connect) = match command {
        // The command that is run has arguments of its own.
        Command::Put(args) if args.stdin_from_command => {
            let paths = args.paths.iter_mut().take(1).collect();
            (paths, &mut args.connect)
        }
        Command::Put(args) => (args.paths.iter_mut().collect::<Vec<_>>(), &mut args.connect),
        Command::Get(args) => (args.paths.iter_mut().collect(), &mut args.connect),
        Command::Verify(args) => (args.paths.iter_mut().collect(), &mut args.connect),
        Command::Sync(args) => (vec![&mut args.source, &mut args.destination], &mut args.connect),
        Command::Invite(args) => match &mut args.command {
            None => (args.path.iter_mut().collect(), &mut args.connect),
            Some(InviteCommand::Ls { path, connect } | InviteCommand::Revoke { path, connect, .. }) => {
                (vec![path], connect)
            }
        },
        Command::Ls(args) => (args.paths.iter_mut().collect(), &mut args.connect),
        Command::Stat(args) => (args.paths.iter_mut().collect(), &mut args.connect),
        Command::Hash(args) => (args.paths.iter_mut().collect(), &mut args.connect),
        Command::Rm(args) => (args.paths.iter_mut().collect(), &mut args.connect),
        Command::Mv(args) => (args.paths.iter_mut().collect(), &mut args.connect),
        Command::Mkdir(args) => (args.paths.iter_mut().collect(), &mut args.connect),
        Command::Doctor(args) => {
            // It can only be a remote: the colon may be left out.
            if args.remote.to_str().is_some_and(is_name) {
                args.remote.push(":");
            }
            (vec![&mut args.remote], &mut args.connect)
        }
        _ => return Ok(()),
    };
    connect.named = expand(arguments)?;
    Ok(())
}

/// Makes further arguments whole, which a list named. They are on the remote that the others (`arguments`, whole by
/// now) are on.
///
/// # Errors
/// As [`resolve`].
pub fn expand_listed(arguments: &[OsString], listed: &mut [OsString], known: Option<Named>) -> Result<Option<Named>> {
    let is_known = known.is_some();
    let url = arguments.iter().find(|argument| !is_known && is_url(argument)).cloned();
    expand_beside(listed.iter_mut().collect(), known, url)
}

fn expand(arguments: Vec<&mut OsString>) -> Result<Option<Named>> {
    expand_beside(arguments, None, None)
}

fn expand_beside(
    arguments: Vec<&mut OsString>,
    known: Option<Named>,
    mut url: Option<OsString>,
) -> Result<Option<Named>> {
    let mut found = known;
    for argument in arguments {
        if is_url(argument) {
            url.get_or_insert_with(|| argument.clone());
            continue;
        }
        let Some((name, path)) = split_name(argument) else { continue };
        let remote = match found.take() {
            Some(remote) if remote.name == name => remote,
            Some(other) => {
                return Err(usage(format!(
                    "`{}:` and `{name}:` are two remotes: one command speaks to one server",
                    other.name
                )));
            }
            None => look_up(name, path, argument)?,
        };
        *argument = named(&remote.profile.address, path);
        found = Some(remote);
    }
    match (&found, url) {
        // They may be one server, but whom to believe there is told by the name only.
        (Some(remote), Some(url)) => Err(usage(format!(
            "`{}:` and `{}` are named in two ways: write `{}:PATH` in both places",
            remote.name,
            Escaped(url.as_bytes()),
            remote.name
        ))),
        _ => Ok(found),
    }
}

fn look_up(name: &str, path: &OsStr, argument: &OsStr) -> Result<Named> {
    let config = Config::load(environment)?;
    match config.remote(name) {
        Ok(profile) => Ok(Named { name: name.to_owned(), profile: profile.clone(), config: config.path().to_owned() }),
        // `http://…`, or an invite: that has a sentence of its own.
        Err(_) if path.as_bytes().starts_with(b"//") || contains_invite(path) => {
            Err(Location::parse(argument).err().unwrap_or_else(|| usage("not a remote")))
        }
        // `./NAME:` is hardly what was meant.
        Err(error) if path.is_empty() => Err(error),
        Err(error) => {
            Err(usage(format!("{}; for a local file write ./{}", error.chain(), Escaped(argument.as_bytes()))))
        }
    }
}

fn contains_invite(path: &OsStr) -> bool {
    path.as_bytes().windows(5).any(|window| window == b"#sl1.")
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}
