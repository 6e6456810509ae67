//! How long snapshots are kept: which may be swept, and when.
//!
//! The wall clock may leap. So it only says how much time a snapshot has left when that is looked at
//! for the first time; from there on the monotonic clock counts. A leap ahead sweeps nothing early.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::id::SnapshotId;

/// How long a snapshot is kept that has expired already when it is first looked at: after a start
/// with a wrong clock there is time to put it right.
pub const STARTUP_GRACE: Duration = Duration::from_secs(10 * 60);

/// Until when a snapshot is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// When it expires; nothing: it does not.
    pub expires_at: Option<Timestamp>,
    /// Until when a client needs it all the same.
    pub leased_until: Option<Timestamp>,
}

impl Retention {
    /// From when on it may be swept; nothing: never.
    pub fn kept_until(self) -> Option<Timestamp> {
        self.expires_at.map(|expiry| self.leased_until.map_or(expiry, |lease| lease.max(expiry)))
    }
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The wall clock.
    pub wall: Timestamp,
    /// The monotonic clock, from any start.
    pub monotonic: Duration,
}

/// A snapshot of which it is asked whether it may be swept.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which.
    pub id: SnapshotId,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it is kept.
    pub retention: Retention,
    /// Whether somebody reads it, or did a short time ago.
    pub in_use: bool,
}

/// Remembers when which snapshot is due.
#[derive(Debug, Default)]
pub struct Watch {
    seen: HashMap<SnapshotId, Seen>,
    /// How long a snapshot is kept after its successor was committed: it is the base of the comparison
    /// that the successor was made for.
    grace: Duration,
    superseded: HashMap<SnapshotId, Superseded>,
}

/// A snapshot that is not the newest of its VM any more.
#[derive(Debug)]
struct Superseded {
    /// The next newer snapshot.
    by: SnapshotId,
    /// When its grace ends, on the monotonic clock.
    grace_ends: Duration,
}

#[derive(Debug)]
struct Seen {
    kept_until: Timestamp,
    /// On the monotonic clock.
    due: Duration,
}

impl Watch {
    /// Keeps each snapshot for at least `grace` after its successor was committed.
    pub fn new(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    /// Starts the grace of the snapshot `id`: its successor `by` is committed now.
    pub fn supersede(&mut self, now: Moment, id: SnapshotId, by: SnapshotId) {
        let grace_ends = now.monotonic.saturating_add(self.grace);
        self.superseded.insert(id, Superseded { by, grace_ends });
    }

    /// Whether the grace of the snapshot `id` is over, whose next newer one is `successor`.
    ///
    /// After a restart, or where the direct successor was deleted, the wall clock says how much of the
    /// grace is left; as for expiries, it is not trusted with the last minutes of it.
    fn grace_is_over(&mut self, now: Moment, id: SnapshotId, successor: &Candidate) -> bool {
        if self.superseded.get(&id).is_none_or(|known| known.by != successor.id) {
            let age = Duration::try_from(now.wall.duration_since(successor.created_at)).unwrap_or_default();
            let left = self.grace.saturating_sub(age).max(self.grace.min(STARTUP_GRACE));
            let grace_ends = now.monotonic.saturating_add(left);
            self.superseded.insert(id, Superseded { by: successor.id, grace_ends });
        }
        self.superseded.get(&id).is_some_and(|known| now.monotonic >= known.grace_ends)
    }

    /// Looks at a snapshot with this retention: from now on the monotonic clock counts.
    pub fn observe(&mut self, now: Moment, id: SnapshotId, created_at: Timestamp, retention: Retention) {
        // A clock that is behind what happened already is wrong, and says nothing.
        let Some(kept_until) = retention.kept_until().filter(|_| now.wall >= created_at) else {
            self.seen.remove(&id);
            return;
        };
        let due = match self.seen.get(&id) {
            Some(seen) if seen.kept_until == kept_until => return,
            // A new retention moves the end by as much, whatever the wall clock says now.
            Some(seen) => {
                let longer = Duration::try_from(kept_until.duration_since(seen.kept_until)).unwrap_or_default();
                let shorter = Duration::try_from(seen.kept_until.duration_since(kept_until)).unwrap_or_default();
                let due = seen.due.saturating_add(longer).saturating_sub(shorter);
                due.max(now.monotonic.saturating_add(STARTUP_GRACE))
            }
            None => {
                let left = Duration::try_from(kept_until.duration_since(now.wall)).unwrap_or_default();
                now.monotonic.saturating_add(left.max(STARTUP_GRACE))
            }
        };
        self.seen.insert(id, Seen { kept_until, due });
    }

    /// Leaves a snapshot alone for `pause`: what was tried with it failed.
    pub fn postpone(&mut self, now: Moment, id: SnapshotId, pause: Duration) {
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.due = now.monotonic.saturating_add(pause);
        }
    }

    /// The snapshots of one VM that may be swept now; `snapshots` are all it has, oldest first. The
    /// newest never is, nor one that is in use, nor one whose successor was committed a short time ago.
    pub fn sweepable(&mut self, now: Moment, snapshots: &[Candidate]) -> Vec<SnapshotId> {
        let mut due = Vec::new();
        for pair in snapshots.windows(2) {
            let (snapshot, successor) = (&pair[0], &pair[1]);
            self.observe(now, snapshot.id, snapshot.created_at, snapshot.retention);
            let grace_is_over = self.grace_is_over(now, snapshot.id, successor);
            let is_due = |seen: &Seen| now.wall >= seen.kept_until && now.monotonic >= seen.due;
            if self.seen.get(&snapshot.id).is_some_and(is_due) && grace_is_over && !snapshot.in_use {
                due.push(snapshot.id);
            }
        }
        due
    }

    /// Forgets all but the snapshots that are `there`.
    pub fn retain(&mut self, there: impl Fn(SnapshotId) -> bool) {
        self.seen.retain(|id, _| there(*id));
        self.superseded.retain(|id, _| there(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn wall(hours: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + hours * 3600).unwrap()
    }

    fn at(hours: i64, monotonic_hours: u64) -> Moment {
        Moment { wall: wall(hours), monotonic: Duration::from_secs(monotonic_hours * HOUR) }
    }

    fn id(number: u128) -> SnapshotId {
        SnapshotId::from_u128(number)
    }

    /// Made at hour 0, with this retention in hours.
    fn candidate(number: u128, expires: Option<i64>, leased: Option<i64>) -> Candidate {
        let retention = Retention { expires_at: expires.map(wall), leased_until: leased.map(wall) };
        Candidate { id: id(number), created_at: wall(0), retention, in_use: false }
    }

    #[test]
    fn what_expires_goes_when_its_time_is_over() {
        let mut watch = Watch::default();
        let all = [candidate(1, Some(2), None), candidate(2, None, None), candidate(3, Some(2), None)];
        assert_eq!(watch.sweepable(at(0, 100), &all), []);
        assert_eq!(watch.sweepable(at(1, 101), &all), []);
        assert_eq!(watch.sweepable(at(2, 102), &all), [id(1)], "not the one without end, nor the newest");
        assert_eq!(watch.sweepable(at(1000, 1100), &all[..1]), [], "the only one is the newest");
        assert_eq!(watch.sweepable(at(1000, 1100), &[]), []);
    }

    #[test]
    fn a_lease_and_a_reader_keep_it() {
        let mut watch = Watch::default();
        let newest = candidate(9, None, None);
        let leased = [candidate(1, Some(1), Some(5)), newest];
        assert_eq!(watch.sweepable(at(0, 0), &leased), []);
        assert_eq!(watch.sweepable(at(4, 4), &leased), []);
        assert_eq!(watch.sweepable(at(5, 5), &leased), [id(1)]);
        let read = [Candidate { in_use: true, ..leased[0] }, newest];
        assert_eq!(watch.sweepable(at(6, 6), &read), []);
        // A lease that ends before the expiry shortens nothing; one alone is no expiry.
        assert_eq!(candidate(1, Some(5), Some(1)).retention.kept_until(), Some(wall(5)));
        assert_eq!(candidate(1, None, Some(1)).retention.kept_until(), None);
        // A new lease counts anew.
        let again = [candidate(1, Some(1), Some(8)), newest];
        assert_eq!(watch.sweepable(at(6, 6), &again), []);
        assert_eq!(watch.sweepable(at(7, 7), &again), []);
        assert_eq!(watch.sweepable(at(8, 8), &again), [id(1)]);
    }

    #[test]
    fn a_clock_that_leaps_sweeps_nothing_early() {
        let all = [candidate(1, Some(2), None), candidate(2, None, None)];
        let mut watch = Watch::default();
        watch.observe(at(0, 0), id(1), wall(0), all[0].retention);
        // Ten years ahead, within a minute: what it had left counts on.
        assert_eq!(watch.sweepable(at(87_600, 0), &all), []);
        assert_eq!(watch.sweepable(at(87_601, 1), &all), []);
        assert_eq!(watch.sweepable(at(2, 2), &all), [id(1)], "the clock is right again");
        // Back again: later, never earlier.
        assert_eq!(watch.sweepable(at(1, 3), &all), []);
        assert_eq!(watch.sweepable(at(2, 4), &all), [id(1)]);
    }

    #[test]
    fn new_terms_count_on_from_the_old_ones() {
        let newest = candidate(9, None, None);
        let mut watch = Watch::default();
        assert_eq!(watch.sweepable(at(0, 0), &[candidate(1, Some(5), Some(20)), newest]), []);
        // The clock is a year ahead when the lease is given back: the expiry is five hours after the start.
        let given_back = [candidate(1, Some(5), None), newest];
        assert_eq!(watch.sweepable(at(8760, 1), &given_back), []);
        assert_eq!(watch.sweepable(at(8763, 4), &given_back), []);
        assert_eq!(watch.sweepable(at(8764, 5), &given_back), [id(1)]);
        watch.postpone(at(8764, 5), id(1), Duration::from_secs(2 * HOUR));
        assert_eq!(watch.sweepable(at(8765, 6), &given_back), []);
        assert_eq!(watch.sweepable(at(8766, 7), &given_back), [id(1)]);
    }

    #[test]
    fn what_has_expired_before_the_first_look_is_kept_for_a_while() {
        let all = [candidate(1, Some(2), None), candidate(2, None, None)];
        let mut watch = Watch::default();
        let soon = |seconds| Moment { wall: wall(50), monotonic: Duration::from_secs(seconds) };
        assert_eq!(watch.sweepable(soon(0), &all), []);
        assert_eq!(watch.sweepable(soon(STARTUP_GRACE.as_secs() - 1), &all), []);
        assert_eq!(watch.sweepable(soon(STARTUP_GRACE.as_secs()), &all), [id(1)]);
    }

    #[test]
    fn a_clock_behind_the_snapshot_is_not_believed() {
        let all = [candidate(1, Some(2), None), candidate(2, None, None)];
        let mut watch = Watch::default();
        // A host whose clock starts in 1970, until it is set: the time left would be decades.
        assert_eq!(watch.sweepable(at(-400_000, 0), &all), []);
        assert_eq!(watch.sweepable(at(3, 1), &all), []);
        assert_eq!(watch.sweepable(at(4, 2), &all), [id(1)]);
        watch.retain(|_| false);
        assert_eq!(watch.sweepable(at(4, 2), &all), [], "forgotten, it is looked at for the first time");
    }

    #[test]
    fn the_former_newest_is_kept_for_a_grace_after_its_successor_was_committed() {
        let mut watch = Watch::new(Duration::from_secs(HOUR));
        let base = candidate(1, Some(24), None);
        let successor =
            |number: u128, hours: i64| Candidate { created_at: wall(hours), ..candidate(number, None, None) };
        // It expired while it was the newest of its VM.
        assert_eq!(watch.sweepable(at(30, 30), &[base]), []);
        let night = [base, successor(2, 30)];
        watch.supersede(at(30, 30), id(1), id(2));
        let minutes = |minutes: u64| Moment {
            monotonic: at(30, 30).monotonic + Duration::from_secs(minutes * 60),
            // A leap ahead ends no grace.
            wall: wall(300),
        };
        watch.observe(at(30, 30), id(1), wall(0), base.retention);
        assert_eq!(watch.sweepable(minutes(1), &night), []);
        assert_eq!(watch.sweepable(minutes(59), &night), []);
        assert_eq!(watch.sweepable(minutes(60), &night), [id(1)]);
        // The successor is deleted, and another one is made: the grace is of the newer pair.
        watch.supersede(minutes(70), id(1), id(3));
        assert_eq!(watch.sweepable(minutes(71), &[base, successor(3, 31)]), []);
        assert_eq!(watch.sweepable(minutes(130), &[base, successor(3, 31)]), [id(1)]);
        // What is not superseded any more is the newest again.
        assert_eq!(watch.sweepable(minutes(200), &[base]), []);
    }

    #[test]
    fn after_a_restart_the_rest_of_the_grace_is_kept() {
        let restarted = |grace: u64, made: i64, minutes: u64| {
            let mut watch = Watch::new(Duration::from_secs(grace * 60));
            let pair = [candidate(1, Some(1), None), Candidate { created_at: wall(made), ..candidate(2, None, None) }];
            assert_eq!(watch.sweepable(at(30, 0), &pair), []);
            let later = |minutes: u64| Moment { wall: wall(31), monotonic: Duration::from_secs(minutes * 60) };
            assert_eq!(watch.sweepable(later(minutes - 1), &pair), []);
            assert_eq!(watch.sweepable(later(minutes), &pair), [id(1)]);
        };
        // Two of three hours had passed; of one hour, all; the clock is behind; a short grace; none.
        restarted(180, 28, 60);
        restarted(60, 28, 10);
        restarted(60, 35, 60);
        restarted(5, 28, 10);
        restarted(0, 28, 10);
    }
}
