//! Whether a file system answers, told from the calls that are under way.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use super::{Executor, Kind, Lane, Shared, State, THREADS};

/// How long after the last look a file system that hangs is looked at again, to see whether it answers. What hangs
/// on a mount that is gone may never come back, and another file system may be mounted there by then. Each look that
/// hangs too doubles the time, so that threads are few; it is never much longer than the file system has been
/// hanging.
const TRIAL: Duration = Duration::from_secs(10);

/// The longest such time.
const LONGEST_TRIAL: Duration = Duration::from_secs(3600);

/// What a job and whoever waits for it know of each other.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    is_given_up: AtomicBool,
    /// When it began, and when it gave its last sign of life: milliseconds, 0 for "not yet".
    moved: AtomicU64,
}

impl Ticket {
    pub(super) fn has_begun(&self) -> bool {
        self.moved.load(Ordering::Relaxed) > 0
    }

    pub(super) fn beat(&self) {
        self.moved.store(milliseconds(Instant::now()), Ordering::Relaxed);
    }

    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.is_given_up.load(Ordering::Relaxed)
    }

    /// How long it has stood still since it began.
    pub(super) fn still_for(&self, now: Instant) -> Duration {
        match self.moved.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            moved => Duration::from_millis(milliseconds(now).saturating_sub(moved)),
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
    pub ticket: Arc<Ticket>,
    /// None: it is on the caller's own thread.
    pub lane: Option<Lane>,
    /// How long it may stand still.
    pub patience: Duration,
    pub key: Option<u128>,
    /// Whether calls that began later have ended, so that this one says nothing about the file system.
    pub is_written_off: bool,
}

impl Call {
    pub(super) fn hangs(&self, now: Instant) -> bool {
        self.ticket.still_for(now) > self.patience
    }
}

/// What is known about the file system.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// When a call ended last.
    ended: Option<Instant>,
    /// Whether the log says that it hangs.
    is_told: bool,
    /// When it was looked at last although it hangs, and how many of these looks are under way.
    tried: Option<Instant>,
    trials: usize,
}

impl Health {
    /// Whether a file system that hangs is to be looked at again.
    pub(super) fn is_look_due(&self, now: Instant) -> bool {
        let after = TRIAL.saturating_mul(1 << self.trials.min(16)).min(LONGEST_TRIAL);
        self.tried.is_none_or(|tried| now.saturating_duration_since(tried) >= after)
    }
}

impl State {
    /// For how long calls have been under way, and nothing moved.
    pub(super) fn stands_still_for(&self, now: Instant) -> Duration {
        self.still(now).map(|(_, still)| still).max().unwrap_or_default()
    }

    /// Whether a call stands still for longer than it may, and nothing else has moved meanwhile.
    pub(super) fn stands_still(&self, now: Instant) -> bool {
        self.still(now).any(|(call, still)| still > call.patience)
    }

    /// Whether a job of this kind cannot begin: one with its key hangs, or all threads of its lane do.
    pub(super) fn blocks(&self, kind: Kind) -> bool {
        let now = Instant::now();
        let hanging = || self.calls.values().filter(|call| call.hangs(now));
        kind.key.is_some_and(|key| hanging().any(|call| call.key == Some(key)))
            || hanging().filter(|call| call.lane == Some(kind.lane)).count() >= THREADS
    }

    /// The calls that tell something, each with how long neither it nor any other has moved.
    fn still(&self, now: Instant) -> impl Iterator<Item = (&Call, Duration)> {
        let ended = self.health.ended.map_or(Duration::MAX, |ended| now.saturating_duration_since(ended));
        let telling = self.calls.values().filter(|call| !call.is_written_off);
        telling.map(move |call| (call, call.ticket.still_for(now).min(ended)))
    }
}

impl Executor {
    /// Whether another call may begin. On a file system that hangs none may; it is tried now and then whether it
    /// answers again.
    pub(super) fn admits(&self, state: &mut State) -> bool {
        let now = Instant::now();
        if !self.0.notices(state, now) {
            return true;
        }
        if state.health.is_look_due(now) {
            self.try_again(state, now);
        }
        false
    }

    /// Lists the mount point, on a thread of its own: no caller has to wait for it. Its metadata alone may be in
    /// the kernel's memory.
    fn try_again(&self, state: &mut State, now: Instant) {
        state.health.tried = Some(now);
        let executor = self.clone();
        let trial = move || {
            let list = |path: &Path| std::fs::read_dir(path).map(|mut entries| drop(entries.next()));
            executor.lend_for(Kind::SHORT, |_| drop(list(&executor.0.mount_point)));
            executor.0.state().health.trials -= 1;
        };
        let started = thread::Builder::new().name("repository".to_owned()).stack_size(128 << 10).spawn(trial);
        if started.is_ok() {
            state.health.trials += 1;
        }
    }
}

impl Shared {
    /// Whether the file system hangs; the log says so once.
    pub(super) fn notices(&self, state: &mut State, now: Instant) -> bool {
        let hangs = state.stands_still(now);
        if hangs && !state.health.is_told {
            tracing::error!(mount_point = %self.mount_point.display(), "a repository does not answer");
            // It was looked at just now: by the call that hangs.
            (state.health.is_told, state.health.tried) = (true, Some(now));
        }
        hangs
    }

    /// A call has ended: the file system answers, whatever becomes of those that began before.
    pub(super) fn ended(&self, state: &mut State, number: u64) {
        let now = Instant::now();
        state.calls.remove(&number);
        state.health.ended = Some(now);
        for (_, call) in state.calls.range_mut(..number) {
            call.is_written_off |= call.hangs(now);
        }
        if std::mem::take(&mut state.health.is_told) {
            tracing::info!(mount_point = %self.mount_point.display(), "a repository answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_hangs_is_looked_at_again_without_an_end() {
        let tried = Instant::now();
        let is_due = |looks_that_hang, seconds| {
            let health = Health { tried: Some(tried), trials: looks_that_hang, ..Health::default() };
            health.is_look_due(tried + Duration::from_secs(seconds))
        };
        assert!(!is_due(0, 9) && is_due(0, 10));
        assert!(!is_due(4, 159) && is_due(4, 160));
        assert!(!is_due(1000, 3599) && is_due(1000, 3600));
    }
}
