//! Between the words of the wire and those of the disk.

use super::names;
use crate::protocol::{Bytes16, Entry, EntryKind, IfExists, Mtime};
use crate::storage;

pub(super) fn if_exists(policy: IfExists) -> storage::IfExists {
    match policy {
        IfExists::Overwrite => storage::IfExists::Overwrite,
        IfExists::Skip => storage::IfExists::Skip,
        IfExists::Fail => storage::IfExists::Fail,
        IfExists::Rename => storage::IfExists::Rename,
    }
}

pub(super) fn mtime_to_storage(mtime: Mtime) -> Option<storage::Mtime> {
    storage::Mtime::new(mtime.seconds, mtime.nanos)
}

pub(super) fn mtime(mtime: storage::Mtime) -> Mtime {
    Mtime { seconds: mtime.secs(), nanos: mtime.nanos() }
}

pub(super) fn entry(entry: storage::Entry) -> Entry {
    let kind = match entry.kind {
        storage::Kind::File => EntryKind::File,
        storage::Kind::Directory => EntryKind::Directory,
        storage::Kind::Link => EntryKind::Link,
        storage::Kind::Special => EntryKind::Special,
    };
    Entry {
        name: entry.name,
        kind,
        size: if entry.kind == storage::Kind::File { entry.size } else { 0 },
        mtime: mtime(entry.mtime),
        mode: entry.mode,
        target: entry.link_target,
        same: names::same(kind, entry.names, entry.version.identity),
        xattrs_digest: entry.xattrs_digest.map(Bytes16),
        xattrs: None,
    }
}
