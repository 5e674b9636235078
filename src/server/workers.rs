//! The threads that connections live on: each drives its own, and none moves.
//!
//! A connection's work is many short steps, each woken by the one before. On one shared scheduler every wake-up lets
//! another thread take the connection over, with cold caches and a system call to wake it; a thread of its own runtime
//! for each core costs a fifth less CPU per byte. Disk work goes to the blocking threads of that runtime.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{IoContext as _, Result};

/// Threads with a runtime each; none means the runtime that the server runs in.
pub(super) struct Workers {
    workers: Vec<Worker>,
    next: AtomicUsize,
    end: CancellationToken,
}

struct Worker {
    handle: Handle,
    thread: JoinHandle<()>,
    /// Each connection that it drives holds one.
    load: Arc<()>,
}

impl Workers {
    /// Starts so many, with so many threads for the disk over all of them.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor for one.
    pub(super) fn start(count: usize, disk_threads: usize) -> Result<Workers> {
        let end = CancellationToken::new();
        let mut workers = Vec::with_capacity(count);
        for _ in 0..count {
            workers.push(Worker::start(disk_threads.div_ceil(count).max(1), end.clone())?);
        }
        Ok(Workers { workers, next: AtomicUsize::new(0), end })
    }

    /// Runs a task on the one that has the fewest; of several, on the next in turn. What lasts is spread evenly so,
    /// whatever came and went in between.
    pub(super) fn spawn(&self, tasks: &TaskTracker, task: impl Future<Output = ()> + Send + 'static) {
        let start = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1);
        let in_turn = self.workers.iter().cycle().skip(start).take(self.workers.len());
        match in_turn.min_by_key(|worker| Arc::strong_count(&worker.load)) {
            Some(worker) => {
                let load = Arc::clone(&worker.load);
                // On the heap: as it is, it would be kept twice, as what was captured and as what is waited for.
                let task = Box::pin(task);
                let task = async move {
                    task.await;
                    drop(load);
                };
                drop(tasks.spawn_on(task, &worker.handle));
            }
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
        Ok(Worker { handle, thread, load: Arc::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{ThreadId, current};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn those_that_last_are_spread_whatever_came_between() {
        let (workers, tasks) = (Workers::start(2, 2).unwrap(), TaskTracker::new());
        let run = |lasts: bool| {
            let (tell, told) = oneshot::channel::<ThreadId>();
            workers.spawn(&tasks, async move {
                tell.send(current().id()).unwrap();
                if lasts {
                    std::future::pending::<()>().await;
                }
            });
            told
        };
        let mut places = Vec::new();
        for _ in 0..2 {
            places.push(run(true).await.unwrap());
            let before = tasks.len();
            run(false).await.unwrap();
            while tasks.len() > before {
                tokio::task::yield_now().await;
            }
        }
        assert_ne!(places[0], places[1]);
        let loads: Vec<usize> = workers.workers.iter().map(|worker| Arc::strong_count(&worker.load)).collect();
        assert_eq!(loads, [2, 2]);
        workers.stop().await;
    }
}
