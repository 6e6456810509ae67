//! Calls on the callers' own threads, which block if the file system hangs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::health::JobStatus;
use super::{Access, Executor, JobKind, READ_STALL_TIMEOUT, RunningCall, Unresponsive};

/// How many callers may be in calls on their own threads: a file system that hangs must not take a thread of each
/// connection. From [`MANY_CALLER_THREADS`] on, a stall of [`SHORT_STALL`] is enough to refuse more.
pub(super) const MAX_CALLER_THREADS: usize = 256;
const MANY_CALLER_THREADS: usize = 64;
/// Short calls go to the repository's own threads while this many callers are in calls: if the file system hangs just
/// now, only these few get no answer.
const MAX_SHORT_CALLERS: usize = 8;
const SHORT_STALL: Duration = Duration::from_secs(1);

impl Executor {
    /// Runs a short call: on the caller's own thread if the file system has responded just now, as it does between the
    /// requests of a client; otherwise as [`Executor::run`].
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn run_short_here<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Access<'_>) -> T + Send + 'static,
    ) -> Result<T, Unresponsive> {
        let status = Arc::<JobStatus>::default();
        let number = {
            let mut state = self.0.state();
            let callers = state.calls.values().filter(|call| call.lane.is_none()).count();
            let is_safe = callers < MAX_SHORT_CALLERS && state.has_just_responded(Instant::now());
            // Under one lock, so that of many callers at once only few go on.
            (is_safe && self.admits(&mut state)).then(|| state.start(None, JobKind::SHORT, Arc::clone(&status)))
        };
        let Some(number) = number else { return self.run(JobKind::SHORT, work) };
        let _running = RunningCall { shared: &self.0, number };
        Ok(work(&Access(&status)))
    }

    /// Runs `work` on the caller's own thread, which blocks if the file system hangs. While the file system hangs, no
    /// work is started: callers' threads must not all block there.
    pub fn run_here<T>(&self, work: impl FnOnce(&Access<'_>) -> T) -> Result<T, Unresponsive> {
        self.admit_caller()?;
        Ok(self.run_here_started(work))
    }

    /// Refuses further calls on callers' own threads if there are too many, or if the file system hangs.
    fn admit_caller(&self) -> Result<(), Unresponsive> {
        let mut state = self.0.state();
        let callers = state.calls.values().filter(|call| call.lane.is_none()).count();
        let is_stalled = callers >= MANY_CALLER_THREADS && state.stalled_for(Instant::now()) >= SHORT_STALL;
        let is_refused = is_stalled || callers >= MAX_CALLER_THREADS || !self.admits(&mut state);
        if is_refused { Err(Unresponsive) } else { Ok(()) }
    }

    /// As [`Executor::run_here`], for work that has started before: it is never refused.
    pub fn run_here_started<T>(&self, work: impl FnOnce(&Access<'_>) -> T) -> T {
        self.run_here_as(JobKind { stall_timeout: READ_STALL_TIMEOUT, ..JobKind::BULK }, work)
    }

    /// As [`Executor::run_here_started`], for work of another kind. Its key is not waited for.
    pub fn run_here_as<T>(&self, kind: JobKind, work: impl FnOnce(&Access<'_>) -> T) -> T {
        let status = Arc::<JobStatus>::default();
        let number = self.0.state().start(None, kind, Arc::clone(&status));
        let _running = RunningCall { shared: &self.0, number };
        work(&Access(&status))
    }
}
