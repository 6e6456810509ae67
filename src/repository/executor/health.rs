//! Whether a file system responds, judging by its running calls.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use super::{Executor, JobKind, Lane, MAX_THREADS, Shared, State};

/// How long after the last probe a hanging file system is probed again. A call on a mount that is gone may never
/// return, although another file system may be mounted there by now. Each probe that hangs too doubles the interval, to
/// bound the threads; the interval stays in proportion to the time that the file system has been hanging.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// The upper limit of that interval.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(3600);

/// How long after a call has ended the next short one may run on a caller's own thread. On a file system that hangs, it
/// blocks that thread. Handing it over to another thread takes longer than the call itself.
const JUST_RESPONDED: Duration = Duration::from_millis(50);

/// Shared by a job and its caller.
#[derive(Debug, Default)]
pub(super) struct JobStatus {
    is_abandoned: AtomicBool,
    /// The start, or the last progress: milliseconds, 0 before the start.
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

    /// The time since the start, or since the last progress.
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

/// A call that has started and not ended.
#[derive(Debug)]
pub(super) struct Call {
    pub status: Arc<JobStatus>,
    /// `None`: it runs on the caller's own thread.
    pub lane: Option<Lane>,
    /// How long it may go without progress.
    pub stall_timeout: Duration,
    pub key: Option<u128>,
    /// Calls that started later have ended, so this one no longer says anything about the file system.
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
    /// Whether the log says that the file system hangs.
    is_logged: bool,
    /// The last probe of a hanging file system, and how many probes are running.
    last_probe: Option<Instant>,
    running_probes: usize,
}

impl Health {
    /// Whether a hanging file system is to be probed again.
    pub(super) fn is_probe_due(&self, now: Instant) -> bool {
        let after = PROBE_INTERVAL.saturating_mul(1 << self.running_probes.min(16)).min(MAX_PROBE_INTERVAL);
        self.last_probe.is_none_or(|last_probe| now.saturating_duration_since(last_probe) >= after)
    }
}

impl State {
    /// How long there has been no progress in any running call.
    pub(super) fn stalled_for(&self, now: Instant) -> Duration {
        self.stalls(now).map(|(_, still)| still).max().unwrap_or_default()
    }

    /// Whether a call has exceeded its stall timeout, and no other call has made progress meanwhile.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.stalls(now).any(|(call, still)| still > call.stall_timeout)
    }

    /// Whether a call has ended just now, and no other has been waiting for longer.
    pub(super) fn has_just_responded(&self, now: Instant) -> bool {
        let has_ended = |ended| now.saturating_duration_since(ended) < JUST_RESPONDED;
        self.health.ended.is_some_and(has_ended)
            && self.calls.values().all(|call| call.status.stalled_for(now) < JUST_RESPONDED)
    }

    /// Whether a job of this kind cannot start: a job with its key hangs, or all threads of its lane do.
    pub(super) fn is_blocked(&self, kind: JobKind) -> bool {
        let now = Instant::now();
        let hanging = || self.calls.values().filter(|call| call.is_stalled(now));
        kind.key.is_some_and(|key| hanging().any(|call| call.key == Some(key)))
            || hanging().filter(|call| call.lane == Some(kind.lane)).count() >= MAX_THREADS
    }

    /// The calls that count, each with the time since its own last progress or the last end of any call.
    fn stalls(&self, now: Instant) -> impl Iterator<Item = (&Call, Duration)> {
        let ended = self.health.ended.map_or(Duration::MAX, |ended| now.saturating_duration_since(ended));
        let relevant = self.calls.values().filter(|call| !call.is_written_off);
        relevant.map(move |call| (call, call.status.stalled_for(now).min(ended)))
    }
}

impl Executor {
    /// Whether another call may start. On a hanging file system it may not; instead, a probe is started now and then.
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

    /// Lists the mount point on a thread of its own, so that no caller waits. Its metadata would not do: the kernel may
    /// have that cached.
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
    /// Whether the file system hangs. The log says so once.
    pub(super) fn check_stalled(&self, state: &mut State, now: Instant) -> bool {
        let hangs = state.is_stalled(now);
        if hangs && !state.health.is_logged {
            tracing::error!(mount_point = %self.mount_point.display(), "a repository does not respond");
            // The call that hangs counts as the first probe.
            (state.health.is_logged, state.health.last_probe) = (true, Some(now));
        }
        hangs
    }

    /// A call has ended, so the file system responds. Older calls that still hang no longer count.
    pub(super) fn call_ended(&self, state: &mut State, number: u64) {
        let now = Instant::now();
        state.calls.remove(&number);
        state.health.ended = Some(now);
        for (_, call) in state.calls.range_mut(..number) {
            call.is_written_off |= call.is_stalled(now);
        }
        if std::mem::take(&mut state.health.is_logged) {
            tracing::info!(mount_point = %self.mount_point.display(), "a repository responds again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hanging_file_system_is_probed_without_end() {
        let last_probe = Instant::now();
        let is_due = |hanging_probes, seconds| {
            let health = Health { last_probe: Some(last_probe), running_probes: hanging_probes, ..Health::default() };
            health.is_probe_due(last_probe + Duration::from_secs(seconds))
        };
        assert!(!is_due(0, 9) && is_due(0, 10));
        assert!(!is_due(4, 159) && is_due(4, 160));
        assert!(!is_due(1000, 3599) && is_due(1000, 3600));
    }
}
