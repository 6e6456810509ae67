//! Whether a file system answers, told from the calls that are under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::{Kind, Lane, Shared, State, THREADS};

/// How often one call is let through to a file system that hangs, to see whether it answers again. What hangs
/// on a mount that is gone may never come back, and another file system may be mounted there by then.
const TRIAL: Duration = Duration::from_secs(10);

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
    /// When a call was let through last although it hangs.
    tried: Option<Instant>,
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

    /// The calls that tell something, each with how long neither it nor any other has moved.
    fn still(&self, now: Instant) -> impl Iterator<Item = (&Call, Duration)> {
        let ended = self.health.ended.map_or(Duration::MAX, |ended| now.saturating_duration_since(ended));
        let telling = self.calls.values().filter(|call| !call.is_written_off);
        telling.map(move |call| (call, call.ticket.still_for(now).min(ended)))
    }
}

impl Shared {
    /// Whether another call may begin: on a file system that hangs none may, but for a trial now and then.
    pub(super) fn admits(&self, state: &mut State) -> bool {
        let now = Instant::now();
        if !self.notices(state, now) {
            return true;
        }
        let since = |tried: Instant| now.saturating_duration_since(tried);
        let tries = state.health.tried.is_none_or(|tried| since(tried) >= TRIAL) && state.calls.len() < 2 * THREADS;
        if tries {
            state.health.tried = Some(now);
        }
        tries
    }

    /// Whether the file system hangs; the log says so once.
    pub(super) fn notices(&self, state: &mut State, now: Instant) -> bool {
        let hangs = state.stands_still(now);
        if hangs && !state.health.is_told {
            tracing::error!(mount_point = %self.mount_point.display(), "a repository does not answer");
            // The call that hangs was a trial.
            (state.health.is_told, state.health.tried) = (true, Some(now));
        }
        hangs
    }

    /// Whether a job with the key of `kind` hangs.
    pub(super) fn key_hangs(&self, state: &State, kind: Kind) -> bool {
        let now = Instant::now();
        kind.key.is_some_and(|key| state.calls.values().any(|call| call.key == Some(key) && call.hangs(now)))
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
