//! Where the work of operations runs.
//!
//! Connections have threads and runtimes of their own, which end with them. Whatever may outlive a connection runs on
//! the service's runtime.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::app::Error;

/// The service's runtime, and the operations that run to their end after their client has disconnected.
#[derive(Clone)]
pub struct Tasks {
    runtime: Handle,
    detached: TaskTracker,
}

impl Tasks {
    /// Uses the current runtime.
    pub fn new() -> Self {
        Self { runtime: Handle::current(), detached: TaskTracker::new() }
    }

    /// Runs `work`, which blocks, on a thread of the runtime's pool.
    ///
    /// # Errors
    /// Those of `work`; [`Error::Internal`] if it panics.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let span = tracing::Span::current();
        let done = self.runtime.spawn_blocking(move || span.in_scope(work)).await;
        done.unwrap_or_else(|panic| Err(Error::Internal(panic.to_string())))
    }

    /// Runs `operation` to its end, even if the client disconnects.
    ///
    /// # Errors
    /// Those of `operation`; [`Error::Internal`] if it panics.
    pub async fn detached<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.detached.spawn_on(operation.in_current_span(), &self.runtime).await;
        done.unwrap_or_else(|panic| Err(Error::Internal(panic.to_string())))
    }

    /// Starts a background task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.runtime.spawn(task)
    }

    /// Waits for the detached operations. No new one is waited for.
    pub async fn finish(&self) {
        self.detached.close();
        self.detached.wait().await;
    }
}

/// A part of the application whose work runs on [`Tasks`].
pub trait Service: Send + Sync + Sized + 'static {
    /// Where its work runs.
    fn tasks(&self) -> &Tasks;

    /// As [`Tasks::blocking`], with the service at hand.
    fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        let (service, tasks) = (Arc::clone(self), self.tasks().clone());
        async move { tasks.blocking(move || work(&service)).await }
    }

    /// As [`Service::blocking`], but at once if the caller is a connection with its own thread: for work that is
    /// short, or that only that connection waits for.
    fn run_inline_or_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        let service = Arc::clone(self);
        async move { if is_own_thread() { work(&service) } else { service.blocking(work).await } }
    }
}

/// Whether this is the thread of a connection, which has a runtime of its own.
fn is_own_thread() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}

/// The rounds of a background task: the first is at once, and a late one is followed by a whole pause.
pub fn rounds(pause: Duration) -> Interval {
    let mut rounds = tokio::time::interval(pause);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}
