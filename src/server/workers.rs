//! The threads that connections live on: each drives its own, and none moves.
//!
//! A connection's work is many short steps, each woken by the one before. On one shared scheduler every wake-up lets
//! another thread take the connection over, with cold caches and a system call to wake it; a thread of its own runtime
//! for each core costs a fifth less CPU per byte. Disk work goes to the blocking threads of that runtime.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{IoContext as _, Result};
use crate::limits::BLOCKING_THREADS_MAX;

/// Threads with a runtime each; none means the runtime that the server runs in.
pub(super) struct Workers {
    workers: Vec<Worker>,
    next: AtomicUsize,
    end: CancellationToken,
}

struct Worker {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Workers {
    /// Starts so many.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor for one.
    pub(super) fn start(count: usize) -> Result<Workers> {
        let end = CancellationToken::new();
        let mut workers = Vec::with_capacity(count);
        for _ in 0..count {
            workers.push(Worker::start(BLOCKING_THREADS_MAX.div_ceil(count).max(2), end.clone())?);
        }
        Ok(Workers { workers, next: AtomicUsize::new(0), end })
    }

    /// Runs a task on the next of them.
    pub(super) fn spawn(&self, tasks: &TaskTracker, task: impl Future<Output = ()> + Send + 'static) {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1);
        match self.workers.get(index) {
            Some(worker) => drop(tasks.spawn_on(task, &worker.handle)),
            None => drop(tasks.spawn(task)),
        }
    }

    /// Ends the threads. Tasks that still run are dropped.
    pub(super) async fn stop(self) {
        self.end.cancel();
        let join = move || self.workers.into_iter().for_each(|worker| drop(worker.thread.join()));
        // They end by themselves; joining only sees to it that they are gone.
        let _ = tokio::task::spawn_blocking(join).await;
    }
}

impl Worker {
    fn start(blocking_threads: usize, end: CancellationToken) -> Result<Worker> {
        let what = || "start a thread for connections".to_owned();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(blocking_threads)
            .thread_name("sealift")
            .build()
            .while_doing(what)?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new()
            .name("sealift".to_owned())
            .spawn(move || runtime.block_on(end.cancelled()))
            .while_doing(what)?;
        Ok(Worker { handle, thread })
    }
}
