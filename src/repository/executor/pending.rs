//! A job: queued, running, ended, or abandoned by its caller.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::health::JobStatus;
use super::{Access, Executor, Interrupted, JobKind, Unresponsive};

/// How often a waiting caller checks for progress.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Work that is queued for a thread.
pub(super) struct Job {
    pub kind: JobKind,
    pub status: Arc<JobStatus>,
    work: Box<dyn FnOnce(&Access<'_>) + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Job").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Job {
    pub(super) fn run(self) {
        (self.work)(&Access(&self.status));
    }
}

/// The result of a job, or its panic.
type Outcome<T> = Result<T, Box<dyn Any + Send>>;

/// The result of a job, which may not exist yet. Dropping it abandons the job: it no longer starts.
pub struct Pending<T>(Option<Submitted<T>>);

struct Submitted<T> {
    executor: Executor,
    kind: JobKind,
    status: Arc<JobStatus>,
    outcome: Receiver<Outcome<T>>,
}

impl<T: Send + 'static> Pending<T> {
    pub(super) fn refused() -> Self {
        Self(None)
    }

    pub(super) fn of(
        executor: Executor,
        kind: JobKind,
        work: impl FnOnce(&Access<'_>) -> T + Send + 'static,
    ) -> (Job, Self) {
        let (sender, outcome) = sync_channel(1);
        let span = tracing::Span::current();
        let work = move |access: &Access<'_>| {
            let _in_span = span.entered();
            // Without a caller the result is dropped.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(|| work(access))));
        };
        let status = Arc::<JobStatus>::default();
        let job = Job { kind, status: Arc::clone(&status), work: Box::new(work) };
        (job, Self(Some(Submitted { executor, kind, status, outcome })))
    }

    /// Waits for the result while there is progress.
    pub fn wait(self) -> Result<T, Unresponsive> {
        self.wait_while(|| true).map_err(|_| Unresponsive)
    }

    /// Waits for the result while there is progress and `is_wanted` returns true.
    pub fn wait_while(self, is_wanted: impl Fn() -> bool) -> Result<T, Interrupted> {
        let waiting = self.0.as_ref().ok_or(Unresponsive)?;
        loop {
            // Checked here too, because each step of long work may be short.
            if !is_wanted() {
                return Err(Interrupted::Cancelled);
            }
            match waiting.outcome.recv_timeout(POLL_INTERVAL) {
                Ok(Ok(result)) => return Ok(result),
                Ok(Err(panic)) => resume_unwind(panic),
                Err(RecvTimeoutError::Disconnected) => return Err(Unresponsive.into()),
                Err(RecvTimeoutError::Timeout) if waiting.is_stalled() => return Err(Unresponsive.into()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl<T> Submitted<T> {
    /// Whether the job has stalled, or is queued behind stalled ones.
    fn is_stalled(&self) -> bool {
        let shared = &self.executor.0;
        let (mut state, now) = (shared.state(), Instant::now());
        if self.status.has_started() {
            shared.check_stalled(&mut state, now);
            return self.status.stalled_for(now) > self.kind.stall_timeout;
        }
        // Threads may have become stuck since it was queued.
        self.executor.start_threads(&mut state, self.kind.lane);
        state.is_blocked(self.kind) || !self.executor.admits(&mut state)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let Some(waiting) = &self.0 {
            waiting.status.abandon();
        }
    }
}
