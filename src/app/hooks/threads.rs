//! Threads that call pending post hooks and write their results. The service's pool may be blocked.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::hooks::run_isolated;

/// How many VMs are served at a time. With one, hanging hooks of a VM would delay all others.
const CONCURRENCY: usize = 8;

/// How long to wait for writes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Concurrent calls, at most [`CONCURRENCY`], each on its own thread.
#[derive(Default)]
pub(super) struct Calls(JoinSet<()>);

impl Calls {
    /// Starts a call when fewer than [`CONCURRENCY`] run.
    pub(super) async fn start(&mut self, call: impl Future<Output = ()> + Send + 'static) {
        while self.0.len() >= CONCURRENCY {
            self.0.join_next().await;
        }
        match run_isolated(call) {
            Ok(over) => drop(self.0.spawn(async move { drop(over.await) })),
            Err(error) => tracing::error!(%error, "cannot start a thread for pending post hooks"),
        }
    }

    /// Waits for all calls.
    pub(super) async fn finish(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

/// Writes to the database, on threads of their own.
#[derive(Default)]
pub(super) struct Writes(Vec<oneshot::Receiver<()>>);

impl Writes {
    pub(super) fn start(&mut self, write: impl FnOnce() + Send + 'static) {
        match run_isolated(async move { write() }) {
            Ok(done) => self.0.push(done),
            Err(error) => {
                tracing::error!(%error, "cannot start a thread to record the result of post hooks; the next round records it")
            }
        }
    }

    /// Waits for all of them, within a bounded time. One that does not end is retried in the next round.
    pub(super) async fn finish(self) {
        let all = async {
            for done in self.0 {
                drop(done.await);
            }
        };
        if tokio::time::timeout(WRITE_TIMEOUT, all).await.is_err() {
            tracing::error!("the database does not answer; the results of post hooks are not recorded yet");
        }
    }
}
