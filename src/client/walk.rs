//! Finds what an upload has to move, while the first of it already moves.
//!
//! A [`Walk`] is an iterator over the sources of a plan and everything in them, in the order of the disk: nothing is
//! gathered, so memory does not grow with the tree (an open directory a level, at most
//! [`limits::PATH_DEPTH_MAX`]). Symbolic links inside a tree are never followed; a link that is named as a source is.
//! Below a source everything is opened relative to it, and never through a link, so that a tree that is changed
//! meanwhile cannot lead elsewhere. A file that is read is told apart by its [`SourceVersion`].
//!
//! It blocks: it runs on a thread of its own and feeds a bounded channel.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::client::compare::Links;
use crate::client::filter::{Filter, IGNORE_LEN_MAX, IGNORE_NAME, Ignores, LeftOutBy, Subject};
use crate::client::link::{LinkRefusal, check_link};
use crate::client::plan::{PutItem, PutSource};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits;
use crate::path::{Component, Escaped, RemotePath};
use crate::protocol::{Bytes16, EntryKind, Mtime};
use crate::storage::read_xattrs;
use crate::xattrs::Xattrs;

/// Opening a directory to read it.
pub(super) const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opening a file to read it. Without `NONBLOCK`, a pipe that has taken the file's place would block for good.
const OPEN_FILE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

/// What an upload meets on its way.
#[derive(Debug)]
pub enum Found {
    /// A directory, before anything in it.
    Directory {
        /// Its name on the server.
        target: RemotePath,
        /// Its mode and time.
        attributes: Attributes,
        /// Where it is here.
        source: Source,
    },
    /// The same directory, after everything in it: now its mode and time can be set for good.
    DirectoryEnd {
        /// Its name on the server.
        target: RemotePath,
        /// Its mode and time when it was met.
        attributes: Attributes,
    },
    /// A file.
    File {
        /// Its name on the server.
        target: RemotePath,
        /// How to open it.
        source: Source,
        /// What it was like when it was met.
        version: SourceVersion,
        /// Its mode and time.
        attributes: Attributes,
        /// A file of the same size is known to be there: it is asked about before any content is sent.
        ask: bool,
        /// Which file it is, if that has several names.
        same: Option<Bytes16>,
    },
    /// A file with several names is known to be there already under the one that was met first.
    Known {
        /// Its name on the server.
        target: RemotePath,
        /// Which file it is here.
        same: Bytes16,
    },
    /// A symbolic link that is to be made as one.
    Link {
        /// Its name on the server.
        target: RemotePath,
        /// What it points to.
        points_to: Vec<u8>,
        /// Its own mode and time.
        attributes: Attributes,
    },
    /// Standard input, or a command: whatever the caller reads.
    Stream {
        /// Its name on the server.
        target: RemotePath,
    },
    /// Something that a rule of the person leaves out.
    LeftOut {
        /// The rule.
        rule: LeftOutBy,
    },
    /// Something that is not moved by its nature; this is no failure.
    Skipped {
        /// Its path here.
        path: PathBuf,
        /// Why.
        why: Skip,
    },
    /// Something that could not be looked at or cannot be named; the rest goes on.
    Failed {
        /// Its path here.
        path: PathBuf,
        /// What went wrong.
        error: Error,
    },
}

/// Why something in a tree is not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// A link that would not mean the same there.
    Link(LinkRefusal),
    /// A link, and none is wanted.
    UnwantedLink,
    /// A link on a server that a pattern met by its own name.
    NamedLink,
    /// A link that is to be followed, and leads nowhere.
    Dangling,
    /// A link that is to be followed, and leads to a directory that it lies in.
    Loop,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A device.
    Device,
    /// Something that this program does not know.
    Unknown,
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Skip::Link(refusal) => refusal.fmt(f),
            Skip::UnwantedLink => f.write_str("a link (--links skip)"),
            Skip::NamedLink => f.write_str("a link, which is not followed: name what it points to"),
            Skip::Dangling => f.write_str("a link that leads nowhere"),
            Skip::Loop => f.write_str("a link to a directory that it lies in"),
            Skip::Pipe => f.write_str("a named pipe"),
            Skip::Socket => f.write_str("a socket"),
            Skip::Device => f.write_str("a device"),
            Skip::Unknown => f.write_str("neither a file, a directory nor a link"),
        }
    }
}

/// What is kept of a file or directory beside its name and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-id and sticky bits included: who sends them leaves out what is not asked for.
    pub mode: u32,
    /// The last change of content.
    pub mtime: Mtime,
}

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceVersion {
    /// The file system.
    pub device: u64,
    /// The file in it.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// The last change of content.
    pub mtime: Mtime,
    /// The last change of content or attributes, which nobody can set back.
    pub ctime: Mtime,
}

#[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "the fields' types differ between platforms")]
pub(super) fn look(stat: &Stat) -> (SourceVersion, Attributes) {
    let mtime = Mtime { seconds: stat.st_mtime as i64, nanos: stat.st_mtime_nsec as u32 };
    let version = SourceVersion {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime,
        ctime: Mtime { seconds: stat.st_ctime as i64, nanos: stat.st_ctime_nsec as u32 },
    };
    (version, Attributes { mode: stat.st_mode as u32 & 0o7777, mtime })
}

/// Which file this is, if it is a file with several names.
pub(super) fn same_of(stat: &Stat) -> Option<Bytes16> {
    let has_several = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink > 1;
    has_several.then(|| look(stat).0.file())
}

impl SourceVersion {
    /// Which file it is of.
    pub(super) fn file(&self) -> Bytes16 {
        same_file(self.device, self.inode)
    }
}

/// Which file this is, on this machine.
pub(super) fn same_file(device: u64, inode: u64) -> Bytes16 {
    let mut file = [0; 16];
    let (first, second) = file.split_at_mut(8);
    first.copy_from_slice(&device.to_be_bytes());
    second.copy_from_slice(&inode.to_be_bytes());
    Bytes16(file)
}

/// How to open a file that was met; cheap to keep for the many that wait for their turn.
#[derive(Clone, Debug)]
pub struct Source {
    /// The tree that it is in; none for a file that was itself named.
    tree: Option<Arc<Tree>>,
    /// Below the tree, or the whole path.
    path: PathBuf,
}

/// The directory that was named as a source, held open. One descriptor serves all files of the tree.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) path: PathBuf,
    pub(super) handle: OwnedFd,
    /// Links in it are followed, because the person said so.
    pub(super) follows: bool,
}

impl Tree {
    /// Opens a directory that was named, which may be a link.
    pub(super) fn open(path: &Path, follows: bool) -> Result<Arc<Tree>> {
        let handle = rustix::fs::openat(CWD, path, OPEN_DIRECTORY, Mode::empty());
        let handle = handle.while_doing(|| doing("open", path))?;
        Ok(Arc::new(Tree { path: path.to_path_buf(), handle, follows }))
    }

    /// Opens what lies below it.
    pub(super) fn open_below(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        if self.follows && !path.as_os_str().is_empty() {
            return rustix::fs::openat(&self.handle, path, flags, Mode::empty());
        }
        open_beneath(&self.handle, path, flags)
    }

    /// A file below it.
    pub(super) fn source(self: &Arc<Tree>, path: PathBuf) -> Source {
        Source { tree: Some(Arc::clone(self)), path }
    }

    /// What a link in the directory `path` leads to, when links are followed.
    pub(super) fn follow(&self, directory: BorrowedFd<'_>, path: &Path, name: &CStr) -> Result<Stat, Skip> {
        let stat = match rustix::fs::statat(directory, name, AtFlags::empty()) {
            Ok(stat) => stat,
            Err(Errno::LOOP) => return Err(Skip::Loop),
            Err(_) => return Err(Skip::Dangling),
        };
        let is_same = |above: &Stat| above.st_dev == stat.st_dev && above.st_ino == stat.st_ino;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            for above in path.ancestors() {
                let above = match above.as_os_str().is_empty() {
                    true => rustix::fs::fstat(&self.handle),
                    false => rustix::fs::statat(&self.handle, above, AtFlags::empty()),
                };
                // What cannot be looked at any more is taken for a loop: nothing is lost by that.
                if !above.is_ok_and(|above| !is_same(&above)) {
                    return Err(Skip::Loop);
                }
            }
        }
        Ok(stat)
    }
}

/// A file that is open for reading, and what it was like before the first byte was read.
#[derive(Debug)]
pub struct OpenSource {
    /// The file.
    pub file: File,
    /// What it was like when it was opened.
    pub version: SourceVersion,
    /// Its mode and time then.
    pub attributes: Attributes,
    path: PathBuf,
}

impl Source {
    /// A file by its path, which may be a link.
    #[must_use]
    pub fn named(path: PathBuf) -> Source {
        Source { tree: None, path }
    }

    /// Its path, to be shown.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.tree.as_ref().map_or_else(|| self.path.clone(), |tree| tree.path.join(&self.path))
    }

    /// Opens the file, through no link below the named source.
    ///
    /// # Errors
    /// What the file system says, and [`ErrorKind::Special`] when something else has taken its place.
    pub fn open(&self) -> Result<OpenSource> {
        let path = self.path();
        let handle = match &self.tree {
            None => rustix::fs::openat(CWD, &self.path, OPEN_FILE, Mode::empty()),
            Some(tree) => tree.open_below(&self.path, OPEN_FILE),
        }
        .while_doing(|| doing("open", &path))?;
        let stat = rustix::fs::fstat(&handle).while_doing(|| doing("look at", &path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::new(ErrorKind::Special, format!("{}: no longer a file", doing("open", &path))));
        }
        let (version, attributes) = look(&stat);
        Ok(OpenSource { file: File::from(handle), version, attributes, path })
    }

    /// The extended attributes of the directory that this is.
    ///
    /// # Errors
    /// `Unsupported` when they are more, or longer, than are moved; what the file system says.
    pub fn directory_xattrs(&self) -> Result<Xattrs> {
        let path = self.path();
        let directory = match &self.tree {
            None => rustix::fs::openat(CWD, &self.path, OPEN_DIRECTORY, Mode::empty()),
            Some(tree) => tree.open_below(&self.path, OPEN_DIRECTORY),
        };
        let directory = directory.while_doing(|| doing("open", &path))?;
        read_xattrs(&directory).map_err(|error| error.context(doing("look at", &path)))
    }

    /// Removes the file, if it is still the one that `version` tells of. Of one with several names, the removal of
    /// another name is no change.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] when it is another by now, [`ErrorKind::Link`] when it was named through a link (only
    /// the link could be removed, and the file would stay), or what the file system says.
    pub fn remove(&self, version: &SourceVersion, has_several_names: bool) -> Result<()> {
        let path = self.path();
        let (parent, name) = match (self.path.parent(), self.path.file_name()) {
            (Some(parent), Some(name)) => (parent, name),
            _ => return Err(Error::new(ErrorKind::Internal, format!("{}: no name", doing("remove", &path)))),
        };
        let directory = match &self.tree {
            None if parent.as_os_str().is_empty() => rustix::fs::openat(CWD, c".", OPEN_DIRECTORY, Mode::empty()),
            None => rustix::fs::openat(CWD, parent, OPEN_DIRECTORY, Mode::empty()),
            Some(tree) => open_beneath(&tree.handle, parent, OPEN_DIRECTORY),
        }
        .while_doing(|| doing("open the directory of", &path))?;
        let stat =
            rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).while_doing(|| doing("look at", &path))?;
        if self.tree.is_none() && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            return Err(Error::new(
                ErrorKind::Link,
                format!("{}: it is a link, and its file is elsewhere", doing("remove", &path)),
            ));
        }
        let mut now = look(&stat).0;
        if has_several_names {
            now.ctime = version.ctime;
        }
        if now != *version {
            return Err(changed(&path));
        }
        rustix::fs::unlinkat(&directory, name, AtFlags::empty()).while_doing(|| doing("remove", &path))
    }
}

impl OpenSource {
    /// A file that is open already and has, or needs, no name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of(file: File, path: PathBuf) -> Result<OpenSource> {
        let stat = rustix::fs::fstat(&file).while_doing(|| doing("look at", &path))?;
        let (version, attributes) = look(&stat);
        Ok(OpenSource { file, version, attributes, path })
    }

    /// Its extended attributes. That they are those of this version is for [`OpenSource::check_unchanged`] to say.
    ///
    /// # Errors
    /// `Unsupported` when they are more, or longer, than are moved; what the file system says.
    pub fn xattrs(&self) -> Result<Xattrs> {
        read_xattrs(&self.file).map_err(|error| error.context(doing("look at", &self.path)))
    }

    /// Whether the file is still what it was when it was opened: to be asked after the last byte was read, and
    /// before it is said to be whole.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] when it is not.
    pub fn check_unchanged(&self) -> Result<()> {
        let stat = rustix::fs::fstat(&self.file).while_doing(|| doing("look at", &self.path))?;
        if look(&stat).0 == self.version { Ok(()) } else { Err(changed(&self.path)) }
    }
}

fn changed(path: &Path) -> Error {
    Error::new(ErrorKind::Changed, format!("`{}` changed while it was being read", shown(path)))
}

pub(super) fn doing(what: &str, path: &Path) -> String {
    format!("{what} `{}`", shown(path))
}

fn shown(path: &Path) -> Escaped<'_> {
    Escaped(path.as_os_str().as_bytes())
}

/// Opens what lies below `root`, through no link. An empty path is `root` itself.
fn open_beneath(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW;
    if path.as_os_str().is_empty() {
        return rustix::fs::openat(root, c".", flags, Mode::empty());
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{ResolveFlags, openat2};
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // Not known to the kernel, forbidden by a sandbox, a path of exactly the maximum, or a rename raced.
            Err(Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG | Errno::AGAIN) => {}
            result => return result,
        }
    }
    open_by_steps(root, path, flags)
}

/// The same, a name at a time.
fn open_by_steps(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names = path.components().map(|component| component.as_os_str()).peekable();
    let mut directory: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        let from = directory.as_ref().unwrap_or(root);
        if names.peek().is_none() {
            return rustix::fs::openat(from, name, flags | OFlags::NOFOLLOW, Mode::empty());
        }
        let next = rustix::fs::openat(from, name, OPEN_DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        directory = Some(next);
    }
    Err(Errno::INVAL)
}

/// The sources of a plan and everything in them.
#[derive(Debug)]
pub struct Walk {
    items: std::vec::IntoIter<PutItem>,
    filter: Arc<Filter>,
    links: Links,
    tree: Option<Arc<Tree>>,
    levels: Vec<Level>,
}

/// A directory that is being read.
#[derive(Debug)]
struct Level {
    entries: Dir,
    /// Its path below the tree.
    path: PathBuf,
    target: RemotePath,
    attributes: Attributes,
    ignores: Option<Arc<Ignores>>,
}

impl Walk {
    /// Walks these sources, one after the other.
    #[must_use]
    pub fn new(items: Vec<PutItem>) -> Walk {
        Walk::with(items, Arc::default(), Links::Copy)
    }

    /// The same without what the rules leave out.
    #[must_use]
    pub fn with(items: Vec<PutItem>, filter: Arc<Filter>, links: Links) -> Walk {
        Walk { items: items.into_iter(), filter, links, tree: None, levels: Vec::new() }
    }

    /// The rules of the directory that was just opened, if it has any.
    fn ignores_of(&self, tree: &Tree, path: &Path, parent: Option<Arc<Ignores>>) -> Result<Option<Arc<Ignores>>> {
        if !self.filter.ignore_files {
            return Ok(parent);
        }
        match read_ignores(tree, path)? {
            None => Ok(parent),
            Some(content) => Ignores::new(path.as_os_str().as_bytes(), &content, parent).map(Some),
        }
    }

    fn judge(&self, path: &Path, kind: EntryKind, stat: &Stat) -> Option<LeftOutBy> {
        let (version, attributes) = look(stat);
        let subject = Subject { path: path.as_os_str().as_bytes(), kind, size: version.size, mtime: attributes.mtime };
        self.filter.judge(subject, self.levels.last().and_then(|level| level.ignores.as_ref()))
    }

    fn start(&mut self, item: PutItem) -> Found {
        let PutSource::Local(path) = item.source else {
            return Found::Stream { target: item.target };
        };
        self.open_named(&path, item.target).unwrap_or_else(|error| Found::Failed { path, error })
    }

    /// A source that was named: followed when it is a link.
    fn open_named(&mut self, path: &Path, target: RemotePath) -> Result<Found> {
        let stat = rustix::fs::statat(CWD, path, AtFlags::empty()).while_doing(|| doing("look at", path))?;
        let (version, attributes) = look(&stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let name = path.file_name().map_or(path, Path::new);
                if let Some(rule) = self.judge(name, EntryKind::File, &stat) {
                    return Ok(Found::LeftOut { rule });
                }
                let source = Source::named(path.to_path_buf());
                let same = same_of(&stat);
                Ok(Found::File { target, source, version, attributes, ask: false, same })
            }
            FileType::Directory => {
                let tree = Tree::open(path, self.links == Links::Follow)?;
                let entries = Dir::read_from(&tree.handle).while_doing(|| doing("read", path))?;
                let ignores = self.ignores_of(&tree, Path::new(""), None)?;
                let source = tree.source(PathBuf::new());
                self.tree = Some(tree);
                let (path, shown_target) = (PathBuf::new(), target.clone());
                self.levels.push(Level { entries, path, target: shown_target, attributes, ignores });
                Ok(Found::Directory { target, attributes, source })
            }
            kind => Err(Error::new(
                ErrorKind::Special,
                format!("`{}` is {}; to upload what can be read from it, pipe it into `-`", shown(path), skip(kind)),
            )),
        }
    }

    /// The next entry of the innermost directory; none when it is read.
    fn advance(&mut self, tree: &Arc<Tree>) -> Option<Found> {
        let level = self.levels.last_mut()?;
        loop {
            let entry = match level.entries.read()? {
                Ok(entry) => entry,
                Err(error) => {
                    let path = tree.path.join(&level.path);
                    let error = Error::io(doing("read", &path), error);
                    // A directory that cannot be read any further would say the same for ever.
                    return self.levels.pop().map(|_| Found::Failed { path, error });
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let name = name.to_owned();
            let path = level.path.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
            let found = self.enter(tree, &name, path.clone());
            return Some(found.unwrap_or_else(|error| Found::Failed { path: tree.path.join(path), error }));
        }
    }

    /// What an entry of the innermost directory is.
    fn enter(&mut self, tree: &Arc<Tree>, name: &CStr, path: PathBuf) -> Result<Found> {
        let level = self.levels.last().expect("an entry comes from an open directory");
        let shown_path = tree.path.join(&path);
        let handle = level.entries.fd().while_doing(|| doing("read", &tree.path.join(&level.path)))?;
        let stat = rustix::fs::statat(handle, name, AtFlags::SYMLINK_NOFOLLOW)
            .while_doing(|| doing("look at", &shown_path))?;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let stat = if is_link && self.links == Links::Follow {
            match tree.follow(handle, &level.path, name) {
                Ok(stat) => stat,
                Err(why) => return Ok(Found::Skipped { path: shown_path, why }),
            }
        } else {
            stat
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let (version, attributes) = look(&stat);
        if let Some(rule) = self.judge(&path, kind_of(kind), &stat) {
            return Ok(Found::LeftOut { rule });
        }
        if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            return Ok(Found::Skipped { path: shown_path, why: skip(kind) });
        }
        if kind == FileType::Symlink && self.links == Links::Skip {
            return Ok(Found::Skipped { path: shown_path, why: Skip::UnwantedLink });
        }
        let target = Component::new(name.to_bytes()).and_then(|name| level.target.join(name)).map_err(|error| {
            Error::new(ErrorKind::Name, format!("`{}` cannot be stored", shown(&shown_path))).with_source(error)
        })?;
        match kind {
            FileType::RegularFile => {
                let source = tree.source(path);
                let same = same_of(&stat);
                Ok(Found::File { target, source, version, attributes, ask: false, same })
            }
            FileType::Symlink => {
                let points_to = rustix::fs::readlinkat(handle, name, Vec::new())
                    .while_doing(|| doing("read the link", &shown_path))?
                    .into_bytes();
                match check_link(self.levels.len() - 1, &points_to) {
                    Ok(()) => Ok(Found::Link { target, points_to, attributes }),
                    Err(refusal) => Ok(Found::Skipped { path: shown_path, why: Skip::Link(refusal) }),
                }
            }
            _ => {
                let flags = if tree.follows { OPEN_DIRECTORY } else { OPEN_DIRECTORY | OFlags::NOFOLLOW };
                let child = rustix::fs::openat(handle, name, flags, Mode::empty())
                    .while_doing(|| doing("open", &shown_path))?;
                let entries = Dir::new(child).while_doing(|| doing("read", &shown_path))?;
                let ignores = self.ignores_of(tree, &path, level.ignores.clone())?;
                let source = tree.source(path.clone());
                self.levels.push(Level { entries, path, target: target.clone(), attributes, ignores });
                Ok(Found::Directory { target, attributes, source })
            }
        }
    }
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if let Some(tree) = self.tree.clone() {
            if let Some(found) = self.advance(&tree) {
                return Some(found);
            }
            if let Some(level) = self.levels.pop() {
                return Some(Found::DirectoryEnd { target: level.target, attributes: level.attributes });
            }
            self.tree = None;
        }
        self.items.next().map(|item| self.start(item))
    }
}

/// What the file of rules in this directory holds, if there is one.
pub(super) fn read_ignores(tree: &Tree, directory: &Path) -> Result<Option<Vec<u8>>> {
    let path = directory.join(IGNORE_NAME);
    let shown = || doing("read", &tree.path.join(&path));
    let file = match tree.open_below(&path, OPEN_FILE) {
        Ok(handle) => File::from(handle),
        Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(Error::io(shown(), errno)),
    };
    let mut content = Vec::new();
    file.take(IGNORE_LEN_MAX as u64 + 1).read_to_end(&mut content).while_doing(shown)?;
    if content.len() > IGNORE_LEN_MAX {
        return Err(Error::new(ErrorKind::Limit, format!("{}: longer than {IGNORE_LEN_MAX} bytes", shown())));
    }
    Ok(Some(content))
}

/// The kind as it is told to others.
pub(super) fn kind_of(kind: FileType) -> EntryKind {
    match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Link,
        _ => EntryKind::Special,
    }
}

pub(super) fn skip(kind: FileType) -> Skip {
    match kind {
        FileType::Fifo => Skip::Pipe,
        FileType::Socket => Skip::Socket,
        FileType::CharacterDevice | FileType::BlockDevice => Skip::Device,
        _ => Skip::Unknown,
    }
}

const _: () = assert!(limits::PATH_DEPTH_MAX <= 256, "an open directory a level stays far below the usual 1024");

#[cfg(test)]
mod tests;
