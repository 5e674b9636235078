//! What all connections of a server share, and what each of them is allowed now.
//!
//! The rules (who is let in, who may do what) are one value that is replaced as a whole ([`Rules`]). A connection
//! asks for its [`Pass`] at its hello and before every operation: by it alone it reaches the store, and the pass is
//! looked at anew when the rules have changed, and every second.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::outcomes::Outcomes;
use super::share::{Share, Shares};
use crate::access::{Access, Action, Grant, Principal};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::net::SocketBuffers;
use crate::path::RemotePath;
use crate::protocol::{IfExists, Rights};
use crate::storage::{Kind, Store};
use crate::tls::ServerTls;

/// Handles and counters; connections hold it in an `Arc`.
pub(super) struct Shared {
    store: Store,
    pub(super) rules: watch::Sender<Arc<Rules>>,
    pub(super) shares: Shares,
    pub(super) socket_buffers: SocketBuffers,
    pub(super) outcomes: Outcomes,
    /// Connections, and commits that outlive them.
    pub(super) tasks: TaskTracker,
    /// No new work: finish what runs.
    pub(super) draining: CancellationToken,
    /// End now.
    pub(super) stopping: CancellationToken,
    pub(super) connection_count: AtomicUsize,
    pub(super) next_connection: AtomicU64,
}

/// Who is let in and who may do what, from one moment to the next.
pub(super) struct Rules {
    pub(super) tls: ServerTls,
    pub(super) access: Access,
}

/// For whom a connection acts.
pub(super) struct Who {
    pub(super) principal: Principal,
    /// What it showed in the handshake, its own certificate first.
    chain: Vec<CertificateDer<'static>>,
    pub(super) share: Arc<Share>,
    pass: Mutex<Option<(Instant, Pass)>>,
}

/// What a connection may do: asked for before each operation, and not kept over it.
#[derive(Clone)]
pub(super) struct Pass {
    rules: Arc<Rules>,
    principal: Principal,
    pub(super) grant: Arc<Grant>,
    /// The principal's home: its paths and those of the store are the same.
    pub(super) store: Store,
}

impl Shared {
    pub(super) fn new(store: Store, rules: Rules, memory: usize) -> Shared {
        Shared {
            store,
            rules: watch::Sender::new(Arc::new(rules)),
            shares: Shares::new(memory),
            socket_buffers: SocketBuffers::new(),
            outcomes: Outcomes::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            connection_count: AtomicUsize::new(0),
            next_connection: AtomicU64::new(1),
        }
    }

    /// Puts other rules in the place of those that hold. Homes that are missing are made first.
    ///
    /// # Errors
    /// A home that cannot be one; then the old rules go on to hold.
    pub(super) fn replace(&self, rules: Rules) -> Result<()> {
        prepare(&self.store, &rules.access)?;
        self.rules.send_replace(Arc::new(rules));
        Ok(())
    }

    /// What this connection may do now: its certificate is valid and not revoked, and its principal has a place here.
    /// The one way to the store.
    ///
    /// # Errors
    /// `Trust` when its certificate would not be let in any more; `Rights` when its principal would not, or when its
    /// home is another one by now.
    pub(super) fn pass(&self, who: &Who) -> Result<Pass> {
        let rules = Arc::clone(&self.rules.borrow());
        let mut kept = who.pass.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, pass)) = &*kept
            && Arc::ptr_eq(&pass.rules, &rules)
            && seen.elapsed() < limits::PASS_LIFETIME
        {
            return Ok(pass.clone());
        }
        rules.tls.verify_client(&who.chain, SystemTime::now())?;
        let grant = Arc::clone(rules.access.admit(&who.principal)?);
        if let Some((_, before)) = &*kept
            && before.grant.home != grant.home
        {
            return Err(Error::new(ErrorKind::Rights, "your place on this server was changed: connect again"));
        }
        let store = self.store.within(&grant.home);
        let pass = Pass { rules, principal: who.principal.clone(), grant, store };
        *kept = Some((Instant::now(), pass.clone()));
        Ok(pass)
    }
}

/// Makes the homes that are missing, and so finds those that cannot be any.
pub(super) fn prepare(store: &Store, access: &Access) -> Result<()> {
    for grant in access.grants() {
        let what = || format!("the home of `{}`", grant.name);
        store.make_directory(&grant.home, None, true).map_err(|error| error.context(what()))?;
    }
    Ok(())
}

impl Who {
    pub(super) fn new(principal: Principal, chain: Vec<CertificateDer<'static>>, shares: &Shares) -> Who {
        let share = shares.of(&principal);
        Who { principal, chain, share, pass: Mutex::default() }
    }
}

impl Pass {
    /// Decides whether the principal may do this.
    ///
    /// # Errors
    /// As [`Access::decide`].
    pub(super) fn decide(&self, action: Action<'_>) -> Result<()> {
        self.rules.access.decide(&self.principal, action)
    }

    pub(super) fn may(&self, action: Action<'_>) -> bool {
        self.decide(action).is_ok()
    }

    /// What the client is told that it is called here.
    pub(super) fn name(&self) -> Option<String> {
        match &self.principal {
            Principal::Certified { name, .. } => self.rules.access.label(&self.grant).or_else(|| name.clone()),
            Principal::Anonymous => None,
        }
    }

    /// The rights at the principal's `/`.
    pub(super) fn rights(&self) -> Rights {
        self.rules.access.rights(&self.principal, &RemotePath::root()).unwrap_or_default()
    }

    /// As [`Pass::decide`] for what gives `path` to something: directories above it that may not be made are there.
    ///
    /// # Errors
    /// `Rights` also for a missing one; what looking for it can fail with.
    pub(super) fn decide_new(&self, action: Action<'_>, path: &RemotePath) -> Result<()> {
        self.decide(action)?;
        let Some(needed) = self.rules.access.needed_parent(&self.principal, path) else { return Ok(()) };
        match self.store.stat(&needed) {
            Ok(entry) if entry.kind == Kind::Directory => Ok(()),
            Ok(_) => Err(Error::new(ErrorKind::NotDirectory, format!("{needed} is not a directory"))),
            Err(error) if error.kind() == ErrorKind::NotFound => self.decide(Action::Create(&needed)),
            Err(error) => Err(error),
        }
    }

    /// What happens to something that is at `path` already.
    pub(super) fn if_exists(&self, path: &RemotePath, asked: IfExists) -> IfExists {
        self.rules.access.if_exists(&self.principal, path, asked)
    }

    /// Whether some entries of this directory must be left out of its listing.
    pub(super) fn hides_some(&self, directory: &RemotePath) -> bool {
        self.rules.access.hides_some(&self.principal, directory)
    }
}
