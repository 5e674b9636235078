//! Which source goes to which name: the rules of destinations, decided before anything moves.
//!
//! A destination that ends in a slash (or in `.` or `..`, or is empty) is a directory to put things into; without
//! it, it is the name to store under. Everything here is a function of the arguments; what stands at a destination
//! already is only known later, and judged by [`check_target`].

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::client::remote::{Ending, Endpoint, Location, Remote};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::path::{Component, Escaped, RemotePath};

/// Where the sources were named. From a list or a pattern there can be any number of them, so that even a single
/// one needs a directory to go into: the same command must not mean something else the next day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// One by one, as arguments.
    Named,
    /// In a list (`--files-from`) or by a pattern (`--glob`).
    Listed,
}

/// Where bytes of an upload come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutSource {
    /// A file or directory here, without slashes at its end.
    Local(PathBuf),
    /// Standard input, or what a command prints.
    Stream,
}

/// One thing to upload, and the name to store it under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutItem {
    /// What is uploaded.
    pub source: PutSource,
    /// Its name on the server.
    pub target: RemotePath,
}

/// What a `put` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutPlan {
    /// The server.
    pub endpoint: Endpoint,
    /// Whether the destination was written as a directory to put things into.
    pub into_directory: bool,
    /// What is uploaded, in the order of the arguments.
    pub items: Vec<PutItem>,
}

/// One thing to download, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetItem {
    /// Its name on the server.
    pub source: RemotePath,
    /// Where it goes.
    pub target: GetTarget,
}

/// Where bytes of a download go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetTarget {
    /// The name to store under.
    Local(PathBuf),
    /// Standard output.
    Stream,
}

/// What a `get` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetPlan {
    /// The server.
    pub endpoint: Endpoint,
    /// Whether the destination was written (or defaulted) as a directory to put things into.
    pub into_directory: bool,
    /// What is downloaded, in the order of the arguments.
    pub items: Vec<GetItem>,
}

/// What the arguments of a `get` name, before patterns are expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetArguments {
    /// The server.
    pub endpoint: Endpoint,
    /// What was named there.
    pub sources: Vec<Remote>,
    /// Where it goes.
    pub destination: GetDestination,
}

/// The last argument of a `get`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetDestination {
    /// A file or directory here.
    Local {
        /// Its path.
        path: PathBuf,
        /// Whether it is a directory to put things into.
        is_directory: bool,
    },
    /// Standard output.
    Stream,
}

/// One thing to rename.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveItem {
    /// The name that it has.
    pub source: RemotePath,
    /// The name that it gets.
    pub target: RemotePath,
}

/// What a `mv` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovePlan {
    /// The server.
    pub endpoint: Endpoint,
    /// Whether the destination was written as a directory to put things into.
    pub into_directory: bool,
    /// What is renamed, in the order of the arguments.
    pub items: Vec<MoveItem>,
}

/// Splits the arguments of `put` into local sources and the remote destination. `listed` are further sources from
/// a list, which are local whatever they look like.
///
/// # Errors
/// [`ErrorKind::Usage`] when the last is not a remote, or another one is.
pub fn put_arguments(arguments: &[OsString], listed: Vec<OsString>) -> Result<(Vec<PutSource>, Remote)> {
    let Some((last, rest)) = arguments.split_last() else {
        return Err(usage("put needs a destination: sealift://HOST[:PORT]/PATH"));
    };
    let Location::Remote(destination) = Location::parse(last)? else {
        return Err(usage(format!(
            "the last argument of put is its destination and must be a remote (sealift://HOST[:PORT]/PATH), not `{}`",
            shown(last)
        )));
    };
    let mut sources = Vec::with_capacity(rest.len() + listed.len());
    for argument in rest {
        sources.push(match Location::parse(argument)? {
            Location::Local(path) => local_source(path)?,
            Location::Stream if sources.contains(&PutSource::Stream) => {
                return Err(usage("standard input (`-`) can be a source only once"));
            }
            Location::Stream => PutSource::Stream,
            Location::Remote(remote) => {
                return Err(usage(format!("put uploads local files, and `{remote}` is a remote one")));
            }
        });
    }
    for path in listed {
        sources.push(local_source(PathBuf::from(path))?);
    }
    Ok((sources, destination))
}

/// A trailing slash on a source means nothing.
fn local_source(path: PathBuf) -> Result<PutSource> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(usage("a source with an empty name"));
    }
    let end = bytes.iter().rposition(|&byte| byte != b'/').map_or(1, |last| last + 1);
    Ok(PutSource::Local(PathBuf::from(OsStr::from_bytes(&bytes[..end]))))
}

/// Plans a `put`. `real_path` resolves a source that names a directory without saying its name (`.`, `a/..`).
///
/// # Errors
/// [`ErrorKind::Usage`] when the destination does not fit the sources, when a source has no name to be stored under,
/// or when two have the same; what `real_path` says otherwise.
pub fn plan_put(
    sources: Vec<PutSource>,
    kind: Sources,
    destination: &Remote,
    real_path: impl Fn(&Path) -> Result<PathBuf>,
) -> Result<PutPlan> {
    let into_directory = destination.is_directory();
    check_count(sources.len(), kind, into_directory, destination)?;
    let mut finals = Finals::default();
    let mut items = Vec::with_capacity(sources.len());
    for source in sources {
        let target = if into_directory {
            let name = put_name(&source, &real_path)?;
            finals.add(&name, &source)?;
            join(&destination.path, name, &source)?
        } else {
            destination.path.clone()
        };
        items.push(PutItem { source, target });
    }
    Ok(PutPlan { endpoint: destination.endpoint.clone(), into_directory, items })
}

/// Asks the file system what a directory is really called.
///
/// # Errors
/// What the file system says.
pub fn real_path(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path)
        .while_doing(|| format!("find the real name of `{}`", Escaped(path.as_os_str().as_bytes())))
}

fn put_name(source: &PutSource, real_path: &impl Fn(&Path) -> Result<PathBuf>) -> Result<Component> {
    let PutSource::Local(path) = source else {
        return Err(usage("standard input has no name: end the destination in the name to store it under, not in `/`"));
    };
    let bytes = path.as_os_str().as_bytes();
    let last = bytes.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let real;
    let name = if matches!(last, b"." | b"..") {
        real = real_path(path)?;
        real.file_name().map(OsStr::as_bytes).unwrap_or_default()
    } else {
        last
    };
    if name.is_empty() {
        return Err(usage(format!(
            "`{source}` has no name: give a destination that ends in the name to store it under, not in `/`"
        )));
    }
    Component::new(name).map_err(|error| Error::new(ErrorKind::Usage, format!("source `{source}`")).with_source(error))
}

impl fmt::Display for PutSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PutSource::Local(path) => shown(path.as_os_str()).fmt(f),
            PutSource::Stream => f.write_str("-"),
        }
    }
}

/// Splits the arguments of `get` into remote sources and the local destination; none means `./`. `listed` are
/// further sources from a list.
///
/// # Errors
/// [`ErrorKind::Usage`] when there is no source, when an argument but the last is not a remote, or when they are on
/// several servers.
pub fn get_arguments(arguments: &[OsString], listed: &[OsString]) -> Result<GetArguments> {
    let mut sources = Vec::with_capacity(arguments.len() + listed.len());
    let mut destination = None;
    for (index, argument) in arguments.iter().enumerate() {
        let place = match Location::parse(argument)? {
            Location::Remote(remote) => {
                sources.push(remote);
                continue;
            }
            Location::Local(path) => GetDestination::local(path),
            Location::Stream => GetDestination::Stream,
        };
        if index + 1 != arguments.len() {
            return Err(usage(format!(
                "`{}` is not a remote: only the last argument of get may be local",
                shown(argument)
            )));
        }
        destination = Some(place);
    }
    for line in listed {
        sources.push(remote_argument(line)?);
    }
    let endpoint = one_endpoint(&sources)?.clone();
    let destination = destination.unwrap_or_else(|| GetDestination::local(PathBuf::from("./")));
    Ok(GetArguments { endpoint, sources, destination })
}

impl GetDestination {
    fn local(path: PathBuf) -> GetDestination {
        let bytes = path.as_os_str().as_bytes();
        let last = bytes.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let is_directory = matches!(last, b"" | b"." | b"..");
        let path = if bytes.is_empty() { PathBuf::from(".") } else { path };
        GetDestination::Local { path, is_directory }
    }
}

/// Plans a `get`. With patterns, `sources` are what they matched, and `kind` is [`Sources::Listed`].
///
/// # Errors
/// As [`plan_put`].
pub fn plan_get(
    endpoint: Endpoint,
    sources: Vec<Remote>,
    kind: Sources,
    destination: &GetDestination,
) -> Result<GetPlan> {
    let GetDestination::Local { path, is_directory } = destination else {
        let [source] = <[Remote; 1]>::try_from(sources)
            .map_err(|sources| usage(format!("standard output takes one file, not {}", sources.len())))?;
        let item = GetItem { source: source.path, target: GetTarget::Stream };
        return Ok(GetPlan { endpoint, into_directory: false, items: vec![item] });
    };
    check_count(sources.len(), kind, *is_directory, shown(path.as_os_str()))?;
    let mut finals = Finals::default();
    let mut items = Vec::with_capacity(sources.len());
    for source in sources {
        let target = if *is_directory {
            let name = remote_name(&source)?;
            finals.add(name, &source)?;
            path.join(OsStr::from_bytes(name.as_bytes()))
        } else {
            path.clone()
        };
        items.push(GetItem { source: source.path, target: GetTarget::Local(target) });
    }
    Ok(GetPlan { endpoint, into_directory: *is_directory, items })
}

/// The local path of something below the target of a download.
#[must_use]
pub fn local_path(base: &Path, below: &RemotePath) -> PathBuf {
    let mut path = base.to_path_buf();
    for component in below.components() {
        path.push(OsStr::from_bytes(component.as_bytes()));
    }
    path
}

/// Plans a `mv`.
///
/// # Errors
/// As [`plan_put`]; also when something would be moved onto itself, or beneath itself, or is the root.
pub fn plan_move(arguments: &[OsString]) -> Result<MovePlan> {
    let mut remotes = remote_arguments(arguments)?;
    let endpoint = one_endpoint(&remotes)?.clone();
    let destination = remotes.pop().filter(|_| !remotes.is_empty());
    let destination = destination.ok_or_else(|| usage("mv needs a name that there is, and a new one"))?;
    let into_directory = destination.is_directory();
    check_count(remotes.len(), Sources::Named, into_directory, &destination)?;
    let mut finals = Finals::default();
    let mut items = Vec::with_capacity(remotes.len());
    for source in remotes {
        check_removable(&source, "moved")?;
        let target = if into_directory {
            let name = remote_name(&source)?;
            finals.add(name, &source)?;
            join(&destination.path, name.clone(), &source)?
        } else {
            destination.path.clone()
        };
        if target == source.path {
            return Err(usage(format!("`{source}` already has that name")));
        }
        if target.starts_with(&source.path) {
            return Err(usage(format!("`{source}` cannot be moved into itself")));
        }
        items.push(MoveItem { source: source.path, target });
    }
    Ok(MovePlan { endpoint, into_directory, items })
}

/// What is to be removed, and where.
///
/// # Errors
/// [`ErrorKind::Usage`] for the root, for a path that ends in `.` or `..`, and for several servers.
pub fn plan_remove(arguments: &[OsString]) -> Result<(Endpoint, Vec<RemotePath>)> {
    let remotes = remote_arguments(arguments)?;
    let endpoint = one_endpoint(&remotes)?.clone();
    remotes.iter().try_for_each(|remote| check_removable(remote, "removed"))?;
    Ok((endpoint, remotes.into_iter().map(|remote| remote.path).collect()))
}

/// Arguments that must all be remote and on one server (`ls`, `stat`, `hash`, `mkdir`).
///
/// # Errors
/// [`ErrorKind::Usage`] when they are not.
pub fn on_one_server(arguments: &[OsString]) -> Result<(Endpoint, Vec<Remote>)> {
    let remotes = remote_arguments(arguments)?;
    let endpoint = one_endpoint(&remotes)?.clone();
    Ok((endpoint, remotes))
}

fn remote_arguments(arguments: &[OsString]) -> Result<Vec<Remote>> {
    arguments.iter().map(|argument| remote_argument(argument)).collect()
}

fn remote_argument(argument: &OsStr) -> Result<Remote> {
    match Location::parse(argument)? {
        Location::Remote(remote) => Ok(remote),
        _ => Err(usage(format!("`{}` is not a remote (sealift://HOST[:PORT]/PATH)", shown(argument)))),
    }
}

fn one_endpoint(remotes: &[Remote]) -> Result<&Endpoint> {
    let Some((first, rest)) = remotes.split_first() else {
        return Err(usage("no remote is named (sealift://HOST[:PORT]/PATH)"));
    };
    match rest.iter().find(|remote| remote.endpoint != first.endpoint) {
        Some(other) => {
            Err(usage(format!("`{first}` and `{other}` are on two servers: one command speaks to one server")))
        }
        None => Ok(&first.endpoint),
    }
}

fn check_removable(remote: &Remote, what: &str) -> Result<()> {
    if remote.ending == Ending::Dots {
        return Err(usage(format!("a path that ends in `.` or `..` is not {what}: write its name")));
    }
    if remote.path.is_root() {
        return Err(usage(format!("the root of a server cannot be {what}")));
    }
    Ok(())
}

fn remote_name(remote: &Remote) -> Result<&Component> {
    remote.path.name().ok_or_else(|| {
        usage(format!("`{remote}` has no name: give a destination that ends in the name to store it under, not in `/`"))
    })
}

fn check_count(count: usize, kind: Sources, into_directory: bool, destination: impl fmt::Display) -> Result<()> {
    let who = match kind {
        Sources::Named if count == 0 => return Err(usage("no source is named")),
        _ if into_directory => return Ok(()),
        Sources::Named if count == 1 => return Ok(()),
        Sources::Named => "several sources",
        Sources::Listed => "sources from a list or a pattern",
    };
    Err(usage(format!("{who} need a directory to go into: end the destination in `/` (`{destination}/`)")))
}

fn join(directory: &RemotePath, name: Component, source: &impl fmt::Display) -> Result<RemotePath> {
    directory.join(name).map_err(|error| usage(format!("the name to store `{source}` under")).with_source(error))
}

/// The names that were given so far, each with who has it.
#[derive(Default)]
struct Finals(HashMap<Component, String>);

impl Finals {
    fn add(&mut self, name: &Component, source: &impl fmt::Display) -> Result<()> {
        match self.0.insert(name.clone(), source.to_string()) {
            None => Ok(()),
            Some(other) => {
                Err(usage(format!("`{other}` and `{source}` would both be stored as `{name}`: store them one by one")))
            }
        }
    }
}

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, or a link that is stored as one.
    File,
    /// A directory.
    Directory,
}

/// Judges what stands at a destination: a file replaces a file, a tree merges into a directory, nothing else goes.
/// `target` is the destination as it is shown; `into_directory` whether it was written with a slash.
///
/// # Errors
/// [`ErrorKind::IsDirectory`] and [`ErrorKind::NotDirectory`], with what to write instead.
pub fn check_target(
    source: Kind,
    existing: Option<Kind>,
    target: &impl fmt::Display,
    into_directory: bool,
) -> Result<()> {
    let (kind, text) = match (source, existing) {
        (_, None) | (Kind::File, Some(Kind::File)) | (Kind::Directory, Some(Kind::Directory)) => return Ok(()),
        (Kind::File, Some(Kind::Directory)) if into_directory => {
            (ErrorKind::IsDirectory, format!("`{target}` is a directory there, and a file does not replace it"))
        }
        (Kind::File, Some(Kind::Directory)) => (
            ErrorKind::IsDirectory,
            format!("`{target}` is a directory there: add `/` (`{target}/`) to put the file into it"),
        ),
        (Kind::Directory, Some(Kind::File)) if into_directory => {
            (ErrorKind::NotDirectory, format!("`{target}` is a file there, and a directory does not replace it"))
        }
        (Kind::Directory, Some(Kind::File)) => (
            ErrorKind::NotDirectory,
            format!(
                "`{target}` is a file there, and a directory does not replace it: choose another name, or add `/` to \
                 the name of a directory to put it inside"
            ),
        ),
    };
    Err(Error::new(kind, text))
}

/// Splits a list of names (`--files-from`): one a line, or one before each NUL byte. Empty ones mean nothing.
#[must_use]
pub fn split_list(bytes: &[u8], separator: u8) -> Vec<OsString> {
    bytes
        .split(|&byte| byte == separator)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect()
}

fn shown(text: &OsStr) -> Escaped<'_> {
    Escaped(text.as_bytes())
}

fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

#[cfg(test)]
mod tests;
