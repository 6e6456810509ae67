//! Whether a file system answers, told from the calls that are under way.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use super::{Executor, JobKind, Lane, MAX_THREADS, Shared, State};

/// How long after the last look a file system that hangs is looked at again, to see whether it answers. What hangs
/// on a mount that is gone may never come back, and another file system may be mounted there by then. Each look that
/// hangs too doubles the time, so that threads are few; it is never much longer than the file system has been
/// hanging.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// The longest such time.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(3600);

/// What a job and whoever waits for it know of each other.
#[derive(Debug, Default)]
pub(super) struct JobStatus {
    is_abandoned: AtomicBool,
    /// When it began, and when it gave its last sign of life: milliseconds, 0 for "not yet".
    progressed_at: AtomicU64,
}

impl JobStatus {
    pub(super) fn has_started(&self) -> bool {
        self.progressed_at.load(Ordering::Relaxed) > 0
    }

    pub(super) fn record_progress(&self) {
        self.progressed_at.store(milliseconds(Instant::now()), Ordering::Relaxed);
    }

    pub(super) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.is_abandoned.load(Ordering::Relaxed)
    }

    /// How long it has stood still since it began.
    pub(super) fn stalled_for(&self, now: Instant) -> Duration {
        match self.progressed_at.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            progressed_at => Duration::from_millis(milliseconds(now).saturating_sub(progressed_at)),
        }
    }
}

/// Milliseconds since some moment, never 0.
fn milliseconds(at: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let start = *START;
    u64::try_from(at.saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// A call that has begun and not ended.
#[derive(Debug)]
pub(super) struct Call {
    pub status: Arc<JobStatus>,
    /// None: it is on the caller's own thread.
    pub lane: Option<Lane>,
    /// How long it may stand still.
    pub stall_timeout: Duration,
    pub key: Option<u128>,
    /// Whether calls that began later have ended, so that this one says nothing about the file system.
    pub is_written_off: bool,
}

impl Call {
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.status.stalled_for(now) > self.stall_timeout
    }
}

/// What is known about the file system.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// When a call ended last.
    ended: Option<Instant>,
    /// Whether the log says that it hangs.
    is_logged: bool,
    /// When it was looked at last although it hangs, and how many of these looks are under way.
    last_probe: Option<Instant>,
    running_probes: usize,
}

impl Health {
    /// Whether a file system that hangs is to be looked at again.
    pub(super) fn is_probe_due(&self, now: Instant) -> bool {
        let after = PROBE_INTERVAL.saturating_mul(1 << self.running_probes.min(16)).min(MAX_PROBE_INTERVAL);
        self.last_probe.is_none_or(|last_probe| now.saturating_duration_since(last_probe) >= after)
    }
}

impl State {
    /// For how long calls have been under way, and nothing progressed_at.
    pub(super) fn stalled_for(&self, now: Instant) -> Duration {
        self.stalls(now).map(|(_, still)| still).max().unwrap_or_default()
    }

    /// Whether a call stands still for longer than it may, and nothing else has progressed_at meanwhile.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.stalls(now).any(|(call, still)| still > call.stall_timeout)
    }

    /// Whether a job of this kind cannot begin: one with its key hangs, or all threads of its lane do.
    pub(super) fn is_blocked(&self, kind: JobKind) -> bool {
        let now = Instant::now();
        let hanging = || self.calls.values().filter(|call| call.is_stalled(now));
        kind.key.is_some_and(|key| hanging().any(|call| call.key == Some(key)))
            || hanging().filter(|call| call.lane == Some(kind.lane)).count() >= MAX_THREADS
    }

    /// The calls that tell something, each with how long neither it nor any other has progressed_at.
    fn stalls(&self, now: Instant) -> impl Iterator<Item = (&Call, Duration)> {
        let ended = self.health.ended.map_or(Duration::MAX, |ended| now.saturating_duration_since(ended));
        let relevant = self.calls.values().filter(|call| !call.is_written_off);
        relevant.map(move |call| (call, call.status.stalled_for(now).min(ended)))
    }
}

impl Executor {
    /// Whether another call may begin. On a file system that hangs none may; it is last_probe now and then whether it
    /// answers again.
    pub(super) fn admits(&self, state: &mut State) -> bool {
        let now = Instant::now();
        if !self.0.check_stalled(state, now) {
            return true;
        }
        if state.health.is_probe_due(now) {
            self.probe(state, now);
        }
        false
    }

    /// Lists the mount point, on a thread of its own: no caller has to wait for it. Its metadata alone may be in
    /// the kernel's memory.
    fn probe(&self, state: &mut State, now: Instant) {
        state.health.last_probe = Some(now);
        let executor = self.clone();
        let trial = move || {
            let list = |path: &Path| std::fs::read_dir(path).map(|mut entries| drop(entries.next()));
            executor.run_here_as(JobKind::SHORT, |_| drop(list(&executor.0.mount_point)));
            executor.0.state().health.running_probes -= 1;
        };
        let started = thread::Builder::new().name("repository".to_owned()).stack_size(128 << 10).spawn(trial);
        if started.is_ok() {
            state.health.running_probes += 1;
        }
    }
}

impl Shared {
    /// Whether the file system hangs; the log says so once.
    pub(super) fn check_stalled(&self, state: &mut State, now: Instant) -> bool {
        let hangs = state.is_stalled(now);
        if hangs && !state.health.is_logged {
            tracing::error!(mount_point = %self.mount_point.display(), "a repository does not answer");
            // It was looked at just now: by the call that hangs.
            (state.health.is_logged, state.health.last_probe) = (true, Some(now));
        }
        hangs
    }

    /// A call has ended: the file system answers, whatever becomes of those that began before.
    pub(super) fn call_ended(&self, state: &mut State, number: u64) {
        let now = Instant::now();
        state.calls.remove(&number);
        state.health.ended = Some(now);
        for (_, call) in state.calls.range_mut(..number) {
            call.is_written_off |= call.is_stalled(now);
        }
        if std::mem::take(&mut state.health.is_logged) {
            tracing::info!(mount_point = %self.mount_point.display(), "a repository answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_hangs_is_looked_at_again_without_an_end() {
        let last_probe = Instant::now();
        let is_due = |looks_that_hang, seconds| {
            let health = Health { last_probe: Some(last_probe), running_probes: looks_that_hang, ..Health::default() };
            health.is_probe_due(last_probe + Duration::from_secs(seconds))
        };
        assert!(!is_due(0, 9) && is_due(0, 10));
        assert!(!is_due(4, 159) && is_due(4, 160));
        assert!(!is_due(1000, 3599) && is_due(1000, 3600));
    }
}
