//! Directories that take the place of others as a whole: begun before anything moves, published after everything has.
//!
//! On the server what is built is part of the session: a connection that is made anew takes it up again before
//! anything else goes over it. Here it is a [`Tree`] of the store that is saved into. In both cases all that is
//! stored, made, removed and compared in between is so in what is built, and nothing of it is seen before the end.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use tokio::task::spawn_blocking;

use crate::client::api::{Client, random_id};
use crate::client::event::Event;
use crate::client::plan::PutItem;
use crate::client::session::{Reply, Session};
use crate::client::upload::PutOptions;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::limits::{UNASKED_FILE_MAX, UNASKED_RESUMED_FILE_MAX};
use crate::path::{Escaped, RemotePath};
use crate::protocol::{BeginTree, PublishTree, TreeBegun};
use crate::storage::{Store, StoreOptions, Tree, TreeBuilder};

/// What a client builds on its server.
pub(crate) struct OpenTree {
    begin: BeginTree,
    /// Whether the server had something to go on with when it was begun.
    is_resumed: bool,
}

impl Client {
    /// As [`Client::put`] of one directory, which takes the place of what is there as a whole, or not at all. What
    /// only the old directory has is in the new one too.
    ///
    /// # Errors
    /// As [`Client::put`]; `Usage` for the root; `Unsupported` when the server, or its file system there, cannot do
    /// that.
    ///
    /// # Cancel safety
    /// The old directory is there, or the new one. What has come is kept for a day and not sent again.
    pub async fn put_atomic(&self, item: PutItem, options: PutOptions) -> Result<()> {
        if options.dry_run {
            return self.put(vec![item], options).await;
        }
        let (path, failures) = (item.target.clone(), self.events().failures());
        let building = self.begin_tree(&path).await?;
        self.put(vec![item], options).await?;
        building.publish(failures).await
    }

    /// Begins to build what shall be under `path`.
    ///
    /// # Errors
    /// What the server refuses with.
    pub(crate) async fn begin_tree(&self, path: &RemotePath) -> Result<Building> {
        if path.is_root() {
            let text = "the root of a server cannot be replaced as a whole (--atomic): name a directory in it";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        if self.session().await?.hello().trees != Some(true) {
            let text = "this server cannot replace a directory as a whole (--atomic): it is too old for that";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let begin = BeginTree { path: path.clone(), run: random_id()?, resume: self.resume_key() };
        let building = Building { client: self.clone(), path: path.clone(), is_done: false };
        let begun = match self.request(&begin).await? {
            (Reply::TreeBegun(begun), _) => begun,
            (other, session) => return Err(session.unexpected(&other)),
        };
        *self.tree() = Some(OpenTree { begin, is_resumed: begun.resumed });
        if begun.resumed {
            self.events().tell(Event::Note(format!("going on with what an earlier run has left of {path}"))).await;
        }
        Ok(building)
    }

    /// Takes up what is being built over a connection that was made just now.
    ///
    /// # Errors
    /// As [`Client::begin_tree`].
    pub(crate) async fn take_up_tree(&self, session: &Session) -> Result<()> {
        let begin = self.tree().as_ref().map(|tree| tree.begin.clone());
        let Some(begin) = begin else { return Ok(()) };
        match session.open(&begin).await?.next().await? {
            Reply::TreeBegun(TreeBegun { resumed: true, .. }) => Ok(()),
            Reply::TreeBegun(_) => {
                let text = format!("what was there of the new {} is gone from the server: run it again", begin.path);
                Err(Error::new(ErrorKind::NotFound, text))
            }
            other => Err(session.unexpected(&other)),
        }
    }

    /// Up to which size files are sent before the server has said whether it has them.
    pub(crate) fn unasked_file_max(&self) -> u64 {
        let is_resumed = self.tree().as_ref().is_some_and(|tree| tree.is_resumed);
        if is_resumed { UNASKED_RESUMED_FILE_MAX } else { UNASKED_FILE_MAX }
    }

    async fn may_publish(&self, shown: &str, failures_before: u64) -> bool {
        let failures = self.events().failures() - failures_before;
        if failures > 0 {
            let text = format!(
                "{shown} is as it was, because {failures} of the above failed: run it again, and what has come need \
                 not come once more"
            );
            self.events().tell(Event::Warning(text)).await;
        }
        failures == 0
    }

    fn tree(&self) -> std::sync::MutexGuard<'_, Option<OpenTree>> {
        self.open_tree().lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is being built on the server, from its beginning to its end. Dropped before that, the connection is let go of
/// with it, so that what comes next sees what is there.
pub(crate) struct Building {
    client: Client,
    path: RemotePath,
    is_done: bool,
}

impl Building {
    /// Has it put in its place, unless anything has failed since there were `failures_before`.
    ///
    /// # Errors
    /// What ended the whole; what kept it from being put there is told as an event.
    pub(crate) async fn publish(mut self, failures_before: u64) -> Result<()> {
        let (client, path) = (self.client.clone(), self.path.clone());
        client.check_alive()?;
        if !client.may_publish(&path.to_string(), failures_before).await {
            return Ok(());
        }
        let request = PublishTree { path: path.clone() };
        let mut retry = client.retry();
        loop {
            let error = match client.request_once(&request).await {
                Ok((Reply::Done(_), _)) => break,
                Ok((other, session)) => return Err(session.unexpected(&other)),
                Err(error) => error,
            };
            // Somebody has changed what is there, and trying again does not undo that.
            let ended = if error.kind() == ErrorKind::Changed { Err(error) } else { retry.after(error).await };
            if let Err(error) = ended {
                client.check_alive()?;
                client.events().tell(Event::Failed { item: None, name: path.to_bytes(), error }).await;
                return Ok(());
            }
        }
        self.is_done = true;
        *client.tree() = None;
        client.events().tell(Event::Note(format!("{path} is in its place as a whole"))).await;
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.is_done {
            *self.client.tree() = None;
            self.client.leave();
        }
    }
}

/// A directory here that is being built.
pub(crate) struct LocalTree {
    tree: Arc<Tree>,
    /// What is built, as the root of a store.
    pub(crate) store: Store,
    shown: PathBuf,
}

impl LocalTree {
    /// Begins to build what shall be under this name here. Blocks.
    ///
    /// # Errors
    /// `Usage` for the root of the machine; what [`Store::begin_tree`] can fail with.
    pub(crate) fn begin(path: &Path, special_modes: bool) -> Result<LocalTree> {
        let shown = || format!("`{}`", Escaped(path.as_os_str().as_bytes()));
        let real = match path.canonicalize() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::path::absolute(path).while_doing(|| format!("look for {}", shown()))?
            }
            real => real.while_doing(|| format!("look for {}", shown()))?,
        };
        let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
            let text = format!("{} cannot be replaced as a whole (--atomic): name a directory in it", shown());
            return Err(Error::new(ErrorKind::Usage, text));
        };
        let name = RemotePath::parse(OsStr::as_bytes(name)).map_err(crate::client::side::name_error)?;
        let store = Store::open_local_with(parent, StoreOptions::local(special_modes))?;
        // Nobody else has the right to what lies here, and each run begins anew with what there is.
        let builder = TreeBuilder { owner: [0; 32], name: String::new(), run: random_id()?.0 };
        let tree = Arc::new(store.begin_tree(&name, &builder)?);
        let store = store.grafted(&tree).within(&name);
        Ok(LocalTree { tree, store, shown: path.to_path_buf() })
    }

    /// Puts it in its place, unless anything has failed.
    ///
    /// # Errors
    /// What ended the whole; what kept it from being put there is told as an event.
    pub(crate) async fn publish(&self, client: &Client, failures_before: u64) -> Result<()> {
        client.check_alive()?;
        let shown = Escaped(self.shown.as_os_str().as_bytes()).to_string();
        if !client.may_publish(&shown, failures_before).await {
            return Ok(());
        }
        let tree = Arc::clone(&self.tree);
        let work = spawn_blocking(move || {
            tree.publish(&mut |_| Ok(()))?;
            Ok((tree.is_done(), tree.clean()))
        });
        let ended = work.await.map_err(|error| {
            Error::new(ErrorKind::Internal, "the thread that puts a directory in its place failed").with_source(error)
        })?;
        match ended {
            Ok((_, cleaned)) => {
                client.events().tell(Event::Note(format!("{shown} is in its place as a whole"))).await;
                if let Err(error) = cleaned {
                    let text =
                        format!("{shown} is in its place; what it replaced is not all removed: {}", error.chain());
                    client.events().tell(Event::Warning(text)).await;
                }
            }
            Err(error) => {
                let name = self.shown.as_os_str().as_bytes().to_vec();
                client.events().tell(Event::Failed { item: None, name, error }).await;
            }
        }
        Ok(())
    }
}
