//! Extended attributes of what is moved (`--xattrs`): whether the other side knows of them, and what was not kept.
//!
//! A destination that cannot keep some stores the file all the same and says so; these are counted here and told once,
//! each reason by itself, so that no run loses any without a word.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::api::Client;
use crate::client::event::Event;
use crate::client::session::Reply;
use crate::error::{Error, ErrorKind, Result};
use crate::path::RemotePath;
use crate::protocol::{Bytes16, Entry, EntryKind, ServerHello, Stat};
use crate::xattrs::Xattrs;

/// Files and directories whose attributes were not all kept, by the reason.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    unsupported: AtomicU64,
    no_space: AtomicU64,
    rights: AtomicU64,
}

impl Lost {
    /// Counts one.
    pub(crate) fn add(&self, why: ErrorKind) {
        let count = match why {
            ErrorKind::Unsupported => &self.unsupported,
            ErrorKind::NoSpace => &self.no_space,
            _ => &self.rights,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what a server says of one, by its code.
    pub(crate) fn add_code(&self, code: Option<u16>) {
        if let Some(code) = code {
            self.add(ErrorKind::from_code(code));
        }
    }

    /// Tells of them.
    pub(crate) async fn tell(&self, client: &Client) {
        for (count, why) in [
            (&self.unsupported, ErrorKind::Unsupported),
            (&self.no_space, ErrorKind::NoSpace),
            (&self.rights, ErrorKind::Rights),
        ] {
            let count = count.swap(0, Ordering::Relaxed);
            if count > 0 && client.check_alive().is_ok() {
                client.events().tell(Event::XattrsLost { count, why }).await;
            }
        }
    }
}

/// What a set is known by in a listing.
pub(crate) fn digest_of(xattrs: &Xattrs) -> Bytes16 {
    Bytes16(xattrs.digest())
}

/// Whether a listing says that there are no attributes.
pub(crate) fn has_none(entry: &Entry) -> bool {
    entry.xattrs_digest == Some(digest_of(&Xattrs::default()))
}

/// Refuses a server that would not know what to do with attributes.
///
/// # Errors
/// `Unsupported`.
pub(crate) fn check_server(hello: &ServerHello) -> Result<()> {
    if hello.xattrs == Some(true) {
        return Ok(());
    }
    let text = "this server does not move extended attributes (--xattrs): it is too old for that";
    Err(Error::new(ErrorKind::Unsupported, text))
}

impl Client {
    /// What stands under a name, and its extended attributes.
    ///
    /// # Errors
    /// `NotFound`; `Rights` for who may list and not read; `Unsupported` when they are more, or longer, than are moved,
    /// and from a server that does not know of them.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn stat_with_xattrs(&self, path: &RemotePath) -> Result<(Entry, Xattrs)> {
        check_server(self.session().await?.hello())?;
        match self.request(&Stat { path: path.clone(), xattrs: Some(true) }).await? {
            (Reply::Entry(mut entry), session) => {
                let is_told = entry.xattrs.is_some() || !matches!(entry.kind, EntryKind::File | EntryKind::Directory);
                let xattrs = entry.xattrs.take().map(|xattrs| *xattrs).unwrap_or_default();
                if !is_told {
                    return Err(session.unexpected(&Reply::Entry(entry)));
                }
                entry.xattrs_digest = Some(digest_of(&xattrs));
                Ok((entry, xattrs))
            }
            (other, session) => Err(session.unexpected(&other)),
        }
    }
}
