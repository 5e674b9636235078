//! What differs between two versions of one directory: two listings in, what is to be done out. Pure.
//!
//! A file counts as the same when size and time are: to the nanosecond, or as finely as the coarser of the two file
//! systems keeps times. What is left out at the source, or is not moved by its nature, keeps what has its name at the
//! destination from being removed, as does a rule that leaves that out.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::client::filter::LeftOutBy;
use crate::client::link::check_link;
use crate::client::walk::Skip;
use crate::error::{Error, ErrorKind};
use crate::path::Escaped;
use crate::protocol::{Bytes16, Entry, EntryKind, IfExists, Mtime};
use crate::storage::{ModeRange, StoreOptions};

/// What becomes of symbolic links in the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Kept as links when they are relative and stay in the tree; the others are skipped.
    #[default]
    Copy,
    /// Skipped.
    Skip,
    /// What they point to is moved. Only here, never on a server.
    Follow,
}

/// How two directories are compared.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What to do with something else of the same name. Synchronising always overwrites.
    pub if_exists: IfExists,
    /// Files of the same size are compared by their hash, whatever their times.
    pub checksum: bool,
    /// What only the destination has is to be removed.
    pub delete: bool,
    /// That goes for what the rules leave out, too.
    pub delete_excluded: bool,
    /// What becomes of links.
    pub links: Links,
    /// The permission bits that the destination gives files.
    pub file_mode: ModeRange,
    /// The permission bits that it gives directories.
    pub directory_mode: ModeRange,
    /// Extended attributes are compared, too.
    pub xattrs: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        let defaults = StoreOptions::default();
        Settings {
            if_exists: IfExists::Overwrite,
            checksum: false,
            delete: false,
            delete_excluded: false,
            links: Links::Copy,
            file_mode: defaults.file_mode,
            directory_mode: defaults.directory_mode,
            xattrs: false,
        }
    }
}

/// Something in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What it is.
    pub entry: Entry,
    /// Why it is not moved by its nature, where that is known better than from its kind.
    pub skip: Option<Skip>,
}

impl From<Entry> for Listed {
    fn from(entry: Entry) -> Listed {
        Listed { entry, skip: None }
    }
}

/// What is to be done about one name.
#[derive(Debug)]
pub enum Action {
    /// A file or link is moved.
    Send {
        /// What it is at the source.
        source: Entry,
        /// A file of the same size is there: what is the same of it is not sent.
        is_there: bool,
        /// Size and time are the same there, and the extended attributes are not: the content probably is.
        looks_same: bool,
    },
    /// A file with several names at the source that is the same: whether these are names of one file at the
    /// destination, too, is seen over all directories.
    Same {
        /// At the source.
        source: Entry,
        /// Which file it is there, if that has several names.
        there: Option<Bytes16>,
    },
    /// Files of the same size are compared by their hashes, and moved if these differ.
    Check {
        /// At the source.
        source: Entry,
        /// Which file it is at the destination, if that has several names.
        there: Option<Bytes16>,
        /// Whether time and mode are the same, so that nothing is left to do when the content is.
        is_same_otherwise: bool,
    },
    /// A directory is compared.
    Enter {
        /// At the source.
        source: Entry,
        /// Whether it is at the destination, too.
        is_there: bool,
        /// Whether its mode or time is another there.
        differs: bool,
    },
    /// Something of another kind is in the way, and has to be removed first.
    Conflict {
        /// At the source.
        source: Entry,
        /// At the destination.
        there: Entry,
    },
    /// Only the destination has it, and it is to be removed.
    Surplus(Entry),
    /// Something else has the name, and is left (`--if-exists skip`).
    Kept(Entry),
    /// It is not moved by its nature.
    Skip {
        /// Its name.
        name: Vec<u8>,
        /// Why.
        why: Skip,
    },
    /// It cannot be moved.
    Refuse {
        /// Its name.
        name: Vec<u8>,
        /// Why.
        error: Error,
    },
}

/// How two directories compare.
#[derive(Debug, Default)]
pub struct Compared {
    /// What is to be done, in the order of the names.
    pub actions: Vec<Action>,
    /// How many files and links are the same.
    pub unchanged: u64,
    /// Bytes in them.
    pub unchanged_bytes: u64,
    /// Files and links of the source that are moved or the same.
    pub source_files: u64,
    /// Files and links of the destination that a removal may concern.
    pub destination_files: u64,
    /// Whether the destination holds something that no removal may concern.
    pub has_hidden: bool,
    /// Whether names at the destination are made or replaced, which changes its time.
    pub is_touched: bool,
    /// What the rules left out of the source: how many names by which rule.
    pub left_out: BTreeMap<LeftOutBy, u64>,
}

/// Whether two times are the same, as finely as the coarser of two file systems keeps them.
#[must_use]
pub fn is_same_time(left: Mtime, right: Mtime) -> bool {
    if left.seconds != right.seconds {
        return false;
    }
    let is_cut = |fine: u32, coarse: u32| {
        [1, 100, 1_000, 1_000_000, 1_000_000_000].iter().any(|unit| fine - fine % unit == coarse)
    };
    is_cut(left.nanos, right.nanos) || is_cut(right.nanos, left.nanos)
}

/// Compares two directories `depth` levels below the top. `judge` says which rule leaves a name out, if one does;
/// the flag tells whether it is one of the source.
pub fn compare(
    mut source: Vec<Listed>,
    mut there: Vec<Entry>,
    depth: usize,
    settings: &Settings,
    mut judge: impl FnMut(&Entry, bool) -> Option<LeftOutBy>,
) -> Compared {
    source.sort_unstable_by(|left, right| left.entry.name.cmp(&right.entry.name));
    there.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    let mut compared = Compared::default();
    let (mut source, mut there) = (source.into_iter().peekable(), there.into_iter().peekable());
    loop {
        let order = match (source.peek(), there.peek()) {
            (None, None) => return compared,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.entry.name.cmp(&right.name),
        };
        let ours = if order.is_le() { source.next() } else { None };
        let theirs = if order.is_ge() { there.next() } else { None };
        let is_hidden = theirs.as_ref().is_some_and(|theirs| {
            theirs.kind == EntryKind::Special || (!settings.delete_excluded && judge(theirs, false).is_some())
        });
        if let Some(theirs) = &theirs
            && !is_hidden
            && matches!(theirs.kind, EntryKind::File | EntryKind::Link)
        {
            compared.destination_files += 1;
        }
        compared.has_hidden |= is_hidden;
        match (ours, theirs) {
            (Some(ours), theirs) => match judge(&ours.entry, true) {
                Some(rule) => {
                    *compared.left_out.entry(rule).or_default() += 1;
                    match theirs {
                        Some(theirs) if settings.delete_excluded && !is_hidden => compared.surplus(theirs, settings),
                        Some(_) => compared.has_hidden = true,
                        None => {}
                    }
                }
                None => compared.add(ours, theirs, is_hidden, depth, settings),
            },
            (None, Some(theirs)) if !is_hidden => compared.surplus(theirs, settings),
            (None, _) => {}
        }
    }
}

impl Compared {
    fn surplus(&mut self, there: Entry, settings: &Settings) {
        if settings.delete {
            self.actions.push(Action::Surplus(there));
        }
    }

    fn same(&mut self, size: u64) {
        self.unchanged += 1;
        self.unchanged_bytes = self.unchanged_bytes.saturating_add(size);
    }

    /// A file is the same.
    pub(crate) fn same_file(&mut self, source: Entry, there: Option<Bytes16>) {
        if source.same.is_some() {
            self.actions.push(Action::Same { source, there });
        } else {
            self.same(source.size);
        }
    }

    fn send(&mut self, source: Entry, is_there: bool) {
        self.is_touched = true;
        self.actions.push(Action::Send { source, is_there, looks_same: false });
    }

    fn refuse(&mut self, name: Vec<u8>, kind: ErrorKind, why: &str) {
        self.actions.push(Action::Refuse { name, error: Error::new(kind, why) });
    }

    /// Something else has the name of a file or link.
    fn replace(&mut self, source: Entry, settings: &Settings) {
        match settings.if_exists {
            IfExists::Overwrite | IfExists::Rename => self.send(source, false),
            IfExists::Skip => self.actions.push(Action::Kept(source)),
            IfExists::Fail => self.refuse(source.name, ErrorKind::Exists, "it exists and must not be replaced"),
        }
    }

    fn add(&mut self, ours: Listed, theirs: Option<Entry>, is_hidden: bool, depth: usize, settings: &Settings) {
        let Listed { entry: source, skip } = ours;
        let skip = skip.or(match source.kind {
            EntryKind::Special => Some(Skip::Unknown),
            EntryKind::Link if settings.links == Links::Skip => Some(Skip::UnwantedLink),
            EntryKind::Link => check_link(depth, source.target.as_deref().unwrap_or_default()).err().map(Skip::Link),
            EntryKind::File | EntryKind::Directory => None,
        });
        if let Some(why) = skip {
            self.has_hidden |= theirs.is_some();
            return self.actions.push(Action::Skip { name: source.name, why });
        }
        if source.kind != EntryKind::Directory {
            self.source_files += 1;
        }
        let Some(there) = theirs else {
            if source.kind == EntryKind::Directory {
                self.is_touched = true;
                return self.actions.push(Action::Enter { source, is_there: false, differs: true });
            }
            return self.send(source, false);
        };
        match (source.kind, there.kind) {
            (EntryKind::Directory, EntryKind::Directory) => {
                let is_same = is_same_time(source.mtime, there.mtime)
                    && is_same_directory_mode(source.mode, there.mode, settings.directory_mode)
                    && are_same_xattrs(&source, &there, settings);
                self.actions.push(Action::Enter { source, is_there: true, differs: !is_same });
            }
            (EntryKind::File, EntryKind::File) => self.add_file(source, &there, settings),
            (EntryKind::Link, EntryKind::Link)
                if source.target == there.target && settings.if_exists != IfExists::Rename =>
            {
                if is_same_time(source.mtime, there.mtime) || settings.if_exists != IfExists::Overwrite {
                    self.same(0);
                } else {
                    self.send(source, false);
                }
            }
            (EntryKind::File | EntryKind::Link, EntryKind::File | EntryKind::Link) => self.replace(source, settings),
            (_, EntryKind::Special) => {
                let why = "a device, pipe or socket has its name at the destination, and is not replaced";
                self.refuse(source.name, ErrorKind::Special, why);
            }
            (EntryKind::Directory, _) | (_, EntryKind::Directory) if settings.delete && is_hidden => {
                let why = "what has its name at the destination is left out by the rules, and so stays in the way";
                self.refuse(source.name, ErrorKind::Exists, why);
            }
            (EntryKind::Directory, _) | (_, EntryKind::Directory) if settings.delete => {
                // It is not looked into before the other is gone, and shall not count as nothing until then.
                self.source_files += u64::from(source.kind == EntryKind::Directory);
                self.actions.push(Action::Conflict { source, there });
            }
            (_, EntryKind::Directory) => {
                self.refuse(source.name, ErrorKind::IsDirectory, "a directory has its name at the destination");
            }
            (EntryKind::Directory, _) => {
                self.refuse(source.name, ErrorKind::NotDirectory, "a file has its name at the destination");
            }
            (EntryKind::Special, _) => {}
        }
    }

    fn add_file(&mut self, source: Entry, there: &Entry, settings: &Settings) {
        if settings.if_exists == IfExists::Rename || source.size != there.size {
            return self.replace(source, settings);
        }
        let is_same_time = is_same_time(source.mtime, there.mtime);
        let is_same_mode = is_same_mode(source.mode, there.mode, settings.file_mode);
        let are_same_xattrs = are_same_xattrs(&source, there, settings);
        if settings.checksum {
            let is_same_otherwise = is_same_time && is_same_mode && are_same_xattrs;
            self.actions.push(Action::Check { source, there: there.same, is_same_otherwise });
        } else if is_same_time && (is_same_mode && are_same_xattrs || settings.if_exists != IfExists::Overwrite) {
            self.same_file(source, there.same);
        } else if settings.if_exists == IfExists::Overwrite {
            self.is_touched = true;
            let looks_same = is_same_time && !are_same_xattrs;
            self.actions.push(Action::Send { source, is_there: true, looks_same });
        } else {
            self.replace(source, settings);
        }
    }
}

/// Whether what a file or directory has of extended attributes is the same on both sides, or does not matter. What could
/// not be read on one side counts as another.
#[must_use]
pub fn are_same_xattrs(source: &Entry, there: &Entry, settings: &Settings) -> bool {
    !settings.xattrs || source.xattrs_digest.is_some() && source.xattrs_digest == there.xattrs_digest
}

/// Setuid, setgid, sticky and world-writable: kept only by who asks for it (`--special-modes`).
pub const SPECIAL_MODES: u32 = 0o7002;

/// The bits of a mode that are sent.
#[must_use]
pub fn sent_mode(mode: u32, special_modes: bool) -> u32 {
    mode & if special_modes { 0o7777 } else { 0o7777 & !SPECIAL_MODES }
}

/// What the destination keeps of the modes that are asked for.
#[must_use]
pub fn asked_modes(range: ModeRange, special_modes: bool) -> ModeRange {
    ModeRange { max: sent_mode(range.max, special_modes), ..range }
}

/// Whether the destination would keep these bits for that mode. Set-id and sticky bits are looked at only where some
/// may be set.
#[must_use]
pub fn is_same_mode(wanted: u32, there: u32, range: ModeRange) -> bool {
    let seen = 0o777 | range.max & 0o7000;
    range.apply(wanted) & seen == there & seen
}

/// The same for a directory, which may have inherited its setgid bit.
#[must_use]
pub fn is_same_directory_mode(wanted: u32, there: u32, range: ModeRange) -> bool {
    is_same_mode(wanted, if wanted & 0o2000 == 0 { there & !0o2000 } else { there }, range)
}

/// A name below another, as it is told.
#[must_use]
pub fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// How much may be removed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteMax {
    /// So many files.
    Files(u64),
    /// So many of a hundred files that are there, and always [`DELETE_ALWAYS`].
    Percent(u8),
}

/// Files whose removal is never too much when the bound is a share of what is there.
pub const DELETE_ALWAYS: u64 = 10;

impl Default for DeleteMax {
    fn default() -> DeleteMax {
        DeleteMax::Percent(25)
    }
}

impl DeleteMax {
    /// Whether `count` files of `all` may be removed.
    #[must_use]
    pub fn allows(self, count: u64, all: u64) -> bool {
        match self {
            DeleteMax::Files(max) => count <= max,
            DeleteMax::Percent(percent) => {
                count <= DELETE_ALWAYS || u128::from(count) * 100 <= u128::from(all) * u128::from(percent)
            }
        }
    }
}

impl std::fmt::Display for DeleteMax {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeleteMax::Files(max) => write!(f, "{max}"),
            DeleteMax::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl std::str::FromStr for DeleteMax {
    type Err = String;

    fn from_str(text: &str) -> Result<DeleteMax, String> {
        let hint =
            || format!("`{}`: write a number of files, or a share of them: 100 or 25%", Escaped(text.as_bytes()));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.strip_suffix('%') {
            Some(percent) if is_number(percent) => {
                percent.parse().ok().filter(|&percent| percent <= 100).map(DeleteMax::Percent).ok_or_else(hint)
            }
            None if is_number(text) => text.parse().map(DeleteMax::Files).map_err(|_| hint()),
            _ => Err(hint()),
        }
    }
}

#[cfg(test)]
mod tests;
