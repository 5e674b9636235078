//! The server: accepts many clients and saves what they send.
//!
//! [`listen`] opens listeners, [`Server::new`] takes them, [`Server::run`] accepts until it is told to stop. Accepting
//! never waits for a peer: handshake and all later work happen in a task per connection (`connection`), which stays
//! on one of a few threads (`workers`). Disk work runs on a bounded set of others (`commit`, `requests`).

pub mod audit;
mod audited;
mod commit;
mod connection;
mod convert;
mod crowd;
mod ends;
mod flow;
mod greeting;
mod groups;
mod held;
mod invites;
mod lane;
mod movers;
mod names;
mod newest;
mod offer;
mod outcomes;
mod outlet;
mod own;
mod proven;
mod quota;
mod rates;
mod receipts;
mod recent;
mod requests;
mod scrub;
mod session;
mod share;
mod shared;
mod source;
mod spent;
mod tree;
mod workers;
mod zeros;

#[cfg(test)]
#[path = "../../tests/sim/mod.rs"]
mod sim;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
pub use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::access::Access;
use crate::error::{IoContext as _, Result};
use crate::limits;
use crate::net::{self, Congestion};
use crate::storage::{self, Store};
use crate::tls::{ServerTls, SigningKey};

pub use crowd::CrowdLimits;
pub use scrub::{ScrubOptions, Told, scrub};

/// What a server is made of.
pub struct ServerOptions {
    /// Where it saves.
    pub store: Store,
    /// Its certificates, and whom it lets in.
    pub tls: ServerTls,
    /// Who may do what.
    pub access: Access,
    /// Where it accepts ([`listen`]).
    pub listeners: Vec<std::net::TcpListener>,
    /// What signs receipts for stored files; none: there are none.
    pub receipt_key: Option<Arc<SigningKey>>,
    /// Where all that is asked and done is written down.
    pub audit: Option<audit::Audit>,
    /// Whether it gives and takes invites. The store was opened for them then.
    pub invites: Option<InviteOptions>,
    /// Bytes of group buffers over all connections.
    pub memory: usize,
    /// Connections of one address and of one principal.
    pub crowd: CrowdLimits,
    /// Threads for connections, each with a runtime of its own: one for each core is best. With none, connections run
    /// in the runtime that the server runs in.
    pub threads: usize,
    /// Threads for disk calls and hashing, over all of these.
    pub disk_threads: usize,
    /// What is asked of the system for each connection.
    pub congestion: Congestion,
    /// Bytes of content per second in each direction, over all connections; none: as many as there can be.
    pub rate: Option<u64>,
    /// The same for all connections of one principal.
    pub rate_of_one: Option<u64>,
}

/// How a server gives invites.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InviteOptions {
    /// `HOST:PORT` by which it wants to be reached; none: as who gives an invite reaches it.
    pub public: Option<String>,
}

/// A server that is bound and not yet running.
pub struct Server {
    shared: Arc<shared::Shared>,
    listeners: Vec<TcpListener>,
    workers: workers::Workers,
}

/// Changes the rules of a server that runs.
#[derive(Clone)]
pub struct Control {
    shared: Arc<shared::Shared>,
}

impl Control {
    /// From now on these certificates are shown and looked for, and these rights hold: for new connections, for the
    /// next operation of each that is open, and for what runs. Homes that are missing are made. Blocks.
    ///
    /// # Errors
    /// A home that cannot be one: then everything stays as it was.
    pub fn replace(&self, tls: ServerTls, access: Access) -> Result<()> {
        self.shared.replace(shared::Rules { tls, access })
    }
}

impl Server {
    /// A server over its listeners. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// A listener that the runtime cannot wait for, a home that cannot be one, or no threads to serve with.
    pub fn new(options: ServerOptions) -> Result<Server> {
        let ServerOptions { store, tls, access, receipt_key, audit, listeners, memory, threads, .. } = options;
        listeners.iter().for_each(|listener| net::prepare_listener(listener, &options.congestion));
        let listeners = listeners.into_iter().map(TcpListener::from_std).collect::<std::io::Result<_>>();
        let listeners = listeners.while_doing(|| "wait for connections".into())?;
        shared::prepare(&store, &access)?;
        let invites = match options.invites {
            Some(InviteOptions { public }) => Some(Arc::new(invites::Invites::open(store.invite_records()?, public)?)),
            None => None,
        };
        let workers = workers::Workers::start(threads, options.disk_threads)?;
        let crowd = crowd::Crowd::new(options.crowd);
        let shares = share::Shares::new(memory, options.rate, options.rate_of_one);
        let rules = shared::Rules { tls, access: access.clone() };
        let mut shared = shared::Shared::new(store, rules, shares, options.congestion, receipt_key, audit, crowd);
        shared.invites = invites;
        shared.movers = movers::Movers::new(threads);
        let shared = Arc::new(shared);
        shared.keep_accounts(&access);
        Ok(Server { shared, listeners, workers })
    }

    /// A handle to change the rules while it runs.
    #[must_use]
    pub fn control(&self) -> Control {
        Control { shared: Arc::clone(&self.shared) }
    }

    /// The addresses that it listens on, with their real ports.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let addresses = self.listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<_>>();
        addresses.while_doing(|| "ask for the address of a listener".into())
    }

    /// Accepts and serves until `drain` is cancelled; then lets what runs come to its end, for at most
    /// [`limits::SHUTDOWN_DRAIN_TIMEOUT`] or until `stop` is cancelled. Returns after every task has ended.
    ///
    /// # Cancel safety
    /// Not safe: use the tokens.
    pub async fn run(self, drain: CancellationToken, stop: CancellationToken) {
        let Server { shared, listeners, workers } = self;
        let workers = Arc::new(workers);
        let permits = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
        let half_open = Arc::new(Semaphore::new(limits::HALF_OPEN_MAX));
        let mut accepting = JoinSet::new();
        let mut watching = JoinSet::new();
        watching.spawn(watch_store(Arc::clone(&shared)));
        watching.spawn(Arc::clone(&shared).count_again());
        shared.tasks.spawn(expire(Arc::clone(&shared), drain.clone()));
        for listener in listeners {
            let loop_ = accept(
                Arc::clone(&shared),
                listener,
                Arc::clone(&permits),
                Arc::clone(&half_open),
                drain.clone(),
                Arc::clone(&workers),
            );
            accepting.spawn(loop_);
        }
        let mut upkeep = JoinSet::new();
        if let Some(audit) = shared.audit.clone() {
            upkeep.spawn(keep_up(audit));
        }
        while let Some(ended) = accepting.join_next().await {
            if let Err(error) = ended {
                error!("an accept loop failed: {error}");
            }
        }
        shared.draining.cancel();
        watching.abort_all();
        shared.tasks.close();
        let running = shared.connection_count.load(Ordering::Relaxed);
        if running > 0 {
            info!("draining {running} connections");
        }
        let drained = async {
            tokio::select! {
                () = shared.tasks.wait() => {}
                () = stop.cancelled() => {}
            }
        };
        if timeout(limits::SHUTDOWN_DRAIN_TIMEOUT, drained).await.is_err() {
            warn!("some transfers did not end in time and are cut off");
        }
        shared.stopping.cancel();
        // Connections say goodbye within their own bound; commits that have begun finish.
        shared.tasks.wait().await;
        drop(upkeep);
        if let Some(audit) = shared.audit.clone()
            && let Err(error) = tokio::task::spawn_blocking(move || audit.stop()).await
        {
            error!("the end of the audit log failed: {error}");
        }
        // The accept loops, which had it too, have ended.
        if let Some(workers) = Arc::into_inner(workers) {
            workers.stop().await;
        }
    }
}

/// Syncs the audit log and signs it, for as long as the server runs.
async fn keep_up(audit: audit::Audit) {
    let mut sync = interval(limits::AUDIT_SYNC_INTERVAL);
    sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut signed = Instant::now();
    loop {
        sync.tick().await;
        let is_due = signed.elapsed() >= limits::AUDIT_HEAD_INTERVAL;
        if is_due {
            signed = Instant::now();
        }
        let audit = audit.clone();
        let work = move || {
            if is_due {
                audit.sign();
            }
            audit.sync();
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            error!("the upkeep of the audit log failed: {error}");
        }
    }
}

/// Binds an address and listens on it; port 0 picks a free one. Needs no runtime, so that it can come before the
/// process is confined.
///
/// # Errors
/// An address that cannot be listened on.
pub fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    let bind = || {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // A restart must not wait for the old connections' last packets.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, 4096)?;
        Ok::<_, rustix::io::Errno>(socket.into())
    };
    bind().while_doing(|| format!("listen on {address}"))
}

/// Accepts until told to drain. An error waits and goes on; a slow peer is its own task's matter.
async fn accept(
    shared: Arc<shared::Shared>,
    listener: TcpListener,
    permits: Arc<Semaphore>,
    half_open: Arc<Semaphore>,
    drain: CancellationToken,
    workers: Arc<workers::Workers>,
) {
    let (backoff_min, backoff_max) = limits::ACCEPT_BACKOFF;
    let mut backoff = backoff_min;
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = drain.cancelled() => return,
            accepted = accepted => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a peer that was gone before we took it: neither may end or spin the loop.
                warn!("accept: {error}");
                wait(backoff, &drain).await;
                backoff = (backoff * 2).min(backoff_max);
                continue;
            }
        };
        backoff = backoff_min;
        let Ok(half_open) = Arc::clone(&half_open).try_acquire_owned() else {
            warn!("{peer}: closed, too many connections have not said hello");
            continue;
        };
        let seat = match shared.crowd.enter(peer.ip()) {
            Ok(seat) => seat,
            Err((count, what)) => {
                // A flood shall not fill the log.
                if count.is_power_of_two() {
                    warn!("{peer}: closed, its address has too many {what} (refusal {count}; told at 1, 2, 4, 8, …)");
                }
                continue;
            }
        };
        let id = shared.next_connection.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&shared);
        let acceptor = TlsAcceptor::from(shared.rules.borrow().tls.config());
        // It belongs to the runtime that it is used in.
        let tcp = match tcp.into_std() {
            Ok(tcp) => tcp,
            Err(error) => {
                warn!("{peer}: closed: {error}");
                continue;
            }
        };
        let tasks = shared.tasks.clone();
        workers.spawn(&tasks, async move {
            shared.connection_count.fetch_add(1, Ordering::Relaxed);
            match TcpStream::from_std(tcp) {
                Ok(tcp) => greeting::serve(Arc::clone(&shared), acceptor, tcp, peer, id, (half_open, seat)).await,
                Err(error) => warn!("{peer}: closed: {error}"),
            }
            shared.connection_count.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
        });
    }
}

/// Looks at the disk now and then, so that the log tells when it fails or goes away, and when it is back.
async fn watch_store(shared: Arc<shared::Shared>) {
    let mut was_well = true;
    loop {
        sleep(limits::STORE_TRIAL_INTERVAL).await;
        let store = shared.whole_store();
        let checked = tokio::task::spawn_blocking(move || store.check()).await;
        match &checked {
            Ok(Ok(())) if !was_well => info!("the disk can be written to again"),
            Ok(Err(error)) if was_well => error!("nothing is stored for now: {}", error.chain()),
            Err(error) => error!("looking at the disk failed: {error}"),
            Ok(_) => {}
        }
        was_well = matches!(checked, Ok(Ok(())));
    }
}

/// Removes unfinished uploads that have rested too long, until told to drain.
async fn expire(shared: Arc<shared::Shared>, drain: CancellationToken) {
    while !drain.is_cancelled() {
        wait(limits::EXPIRE_INTERVAL, &drain).await;
        let removing = Arc::clone(&shared);
        let removed = shared.tasks.spawn_blocking(move || remove_old(&removing));
        match removed.await {
            Ok(0) => {}
            Ok(count) => info!("{count} unfinished uploads have rested too long and are removed"),
            Err(error) => error!("looking for old unfinished uploads failed: {error}"),
        }
    }
}

/// Removes what has rested too long now; tells how many that were. Blocks.
fn remove_old(shared: &shared::Shared) -> usize {
    let (store, now) = (shared.whole_store(), storage::now());
    store.forget_removed();
    let trees = store.expire_trees(now);
    if trees > 0 {
        shared.accounts.count_soon();
    }
    store.expire_partials(now) + trees
}

async fn wait(time: Duration, drain: &CancellationToken) {
    tokio::select! {
        () = drain.cancelled() => {}
        () = sleep(time) => {}
    }
}
