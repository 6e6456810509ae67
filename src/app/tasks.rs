//! Runs the work of operations.
//!
//! Each connection has its own thread and runtime, which end with it. Work that may outlive a connection runs on the
//! service's runtime.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::app::Error;

/// The service's runtime, and the operations that continue after their client has disconnected.
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

    /// Runs blocking `work` on the runtime's thread pool.
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

    /// Waits for the detached operations. None may be started after this call.
    pub async fn finish(&self) {
        self.detached.close();
        self.detached.wait().await;
    }
}

/// A part of the application whose work runs on [`Tasks`].
pub trait Service: Send + Sync + Sized + 'static {
    fn tasks(&self) -> &Tasks;

    /// As [`Tasks::blocking`]; `work` gets the service.
    fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        let (service, tasks) = (Arc::clone(self), self.tasks().clone());
        async move { tasks.blocking(move || work(&service)).await }
    }

    /// As [`Tasks::detached`]; `operation` gets the service. For each change of which more is done after a wait, such as
    /// its line in the audit: otherwise a client that disconnects during the wait escapes that.
    fn detached<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send + 'static>(
        self: &Arc<Self>,
        operation: impl FnOnce(Arc<Self>) -> F,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        let (operation, tasks) = (operation(Arc::clone(self)), self.tasks().clone());
        async move { tasks.detached(operation).await }
    }

    /// As [`Service::blocking`], but on the current thread if that is a connection's own. For work that is short, or
    /// that only delays this connection.
    fn run_inline_or_blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        let service = Arc::clone(self);
        async move { if is_own_thread() { work(&service) } else { service.blocking(work).await } }
    }
}

/// Whether this is a connection's thread: only those have a single-threaded runtime.
pub(crate) fn is_own_thread() -> bool {
    Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

/// The timer of a background task. The first tick is immediate. After a late tick, a whole `pause` follows.
pub fn rounds(pause: Duration) -> Interval {
    let mut rounds = tokio::time::interval(pause);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}
