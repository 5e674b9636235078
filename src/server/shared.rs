//! What all connections of a server share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::audit::Audit;
use super::outcomes::Outcomes;
use super::session::Sessions;
use super::share::{Share, Shares};
use crate::access::{Access, Principal};
use crate::net::{Congestion, SocketBuffers};
use crate::protocol::Rights;
use crate::storage::Store;
use crate::tls::SigningKey;

/// Handles and counters; connections hold it in an `Arc`.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) access: Access,
    pub(super) receipt_key: Option<Arc<SigningKey>>,
    pub(super) audit: Option<Audit>,
    pub(super) shares: Shares,
    pub(super) socket_buffers: SocketBuffers,
    /// What is asked of the system for each connection.
    pub(super) congestion: Congestion,
    pub(super) outcomes: Outcomes,
    /// What further connections can join.
    pub(super) sessions: Sessions,
    /// Connections, and commits that outlive them.
    pub(super) tasks: TaskTracker,
    /// No new work: finish what runs.
    pub(super) draining: CancellationToken,
    /// End now.
    pub(super) stopping: CancellationToken,
    pub(super) connection_count: AtomicUsize,
    pub(super) next_connection: AtomicU64,
}

/// For whom a connection acts.
pub(super) struct Who {
    pub(super) principal: Principal,
    pub(super) rights: Rights,
    pub(super) share: Arc<Share>,
    /// The number of the connection.
    pub(super) connection: u64,
    /// It asked for a receipt for each file.
    pub(super) wants_receipts: bool,
}
