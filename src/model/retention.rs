//! How long snapshots are kept: which ones may be swept, and when.
//!
//! The wall clock may jump. It is used once, to compute how long a snapshot has left when it is first observed. From
//! then on the monotonic clock counts, so a jump ahead sweeps nothing early.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::id::SnapshotId;

/// How long a snapshot is kept that has already expired when it is first observed. It leaves time to correct a wrong
/// clock after a start.
pub const STARTUP_GRACE: Duration = Duration::from_secs(10 * 60);

/// A user needs a snapshot for some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub snapshot: SnapshotId,
    pub user: String,
    pub until: Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// `None`: the snapshot does not expire.
    pub expires_at: Option<Timestamp>,
    /// A lease extends the life of a snapshot that expires.
    pub leased_until: Option<Timestamp>,
}

impl Retention {
    /// When the snapshot may be swept. `None`: never.
    pub fn kept_until(self) -> Option<Timestamp> {
        self.expires_at.map(|expiry| self.leased_until.map_or(expiry, |lease| lease.max(expiry)))
    }
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub wall: Timestamp,
    /// The monotonic clock, from any origin.
    pub monotonic: Duration,
}

/// A snapshot that may be swept, or not.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub id: SnapshotId,
    pub created_at: Timestamp,
    pub retention: Retention,
    /// Whether a client reads it, or did a short time ago.
    pub in_use: bool,
}

/// Tracks when snapshots are due.
#[derive(Debug, Default)]
pub struct Watch {
    seen: HashMap<SnapshotId, Seen>,
    /// How long a snapshot is kept after its successor was committed. It is the base of the comparison that the
    /// successor was made for.
    grace: Duration,
    superseded: HashMap<SnapshotId, Superseded>,
}

/// A snapshot that is no longer the newest of its VM.
#[derive(Debug)]
struct Superseded {
    /// The next newer snapshot.
    by: SnapshotId,
    /// On the monotonic clock.
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

    /// Replaces the grace period of snapshots that are superseded from now on.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Starts the grace period of the snapshot `id`, whose successor `by` is committed now.
    pub fn supersede(&mut self, now: Moment, id: SnapshotId, by: SnapshotId) {
        let grace_ends = now.monotonic.saturating_add(self.grace);
        self.superseded.insert(id, Superseded { by, grace_ends });
    }

    /// Whether the grace period of the snapshot `id` is over.
    ///
    /// After a restart, or if the direct successor was deleted, the wall clock tells how much of the period is left,
    /// but at least [`STARTUP_GRACE`] remains, because the clock may be wrong.
    fn grace_is_over(&mut self, now: Moment, id: SnapshotId, successor: &Candidate) -> bool {
        if self.superseded.get(&id).is_none_or(|known| known.by != successor.id) {
            let age = Duration::try_from(now.wall.duration_since(successor.created_at)).unwrap_or_default();
            let left = self.grace.saturating_sub(age).max(self.grace.min(STARTUP_GRACE));
            let grace_ends = now.monotonic.saturating_add(left);
            self.superseded.insert(id, Superseded { by: successor.id, grace_ends });
        }
        self.superseded.get(&id).is_some_and(|known| now.monotonic >= known.grace_ends)
    }

    /// Records a snapshot's retention. From now on the monotonic clock counts for it.
    pub fn observe(&mut self, now: Moment, id: SnapshotId, created_at: Timestamp, retention: Retention) {
        // A clock that is behind the snapshot's creation is wrong.
        let Some(kept_until) = retention.kept_until().filter(|_| now.wall >= created_at) else {
            self.seen.remove(&id);
            return;
        };
        let due = match self.seen.get(&id) {
            Some(seen) if seen.kept_until == kept_until => return,
            // A new retention moves the due time by the same amount, whatever the wall clock says now.
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

    /// Skips a snapshot for `pause`, after an attempt to sweep it failed.
    pub fn postpone(&mut self, now: Moment, id: SnapshotId, pause: Duration) {
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.due = now.monotonic.saturating_add(pause);
        }
    }

    /// The snapshots of one VM that may be swept now. `snapshots` are all of the VM's snapshots, oldest first. Never
    /// swept are the newest, those in use, and those whose successor was committed a short time ago.
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

    /// Drops all snapshots for which `exists` is false.
    pub fn retain(&mut self, exists: impl Fn(SnapshotId) -> bool) {
        self.seen.retain(|id, _| exists(*id));
        self.superseded.retain(|id, _| exists(*id));
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

    /// A snapshot made at hour 0, with this retention in hours.
    fn candidate(number: u128, expires: Option<i64>, leased: Option<i64>) -> Candidate {
        let retention = Retention { expires_at: expires.map(wall), leased_until: leased.map(wall) };
        Candidate { id: id(number), created_at: wall(0), retention, in_use: false }
    }

    #[test]
    fn an_expired_snapshot_is_swept() {
        let mut watch = Watch::default();
        let all = [candidate(1, Some(2), None), candidate(2, None, None), candidate(3, Some(2), None)];
        assert_eq!(watch.sweepable(at(0, 100), &all), []);
        assert_eq!(watch.sweepable(at(1, 101), &all), []);
        assert_eq!(watch.sweepable(at(2, 102), &all), [id(1)], "neither the one without expiry nor the newest");
        assert_eq!(watch.sweepable(at(1000, 1100), &all[..1]), [], "the only one is the newest");
        assert_eq!(watch.sweepable(at(1000, 1100), &[]), []);
    }

    #[test]
    fn leases_and_readers_keep_a_snapshot() {
        let mut watch = Watch::default();
        let newest = candidate(9, None, None);
        let leased = [candidate(1, Some(1), Some(5)), newest];
        assert_eq!(watch.sweepable(at(0, 0), &leased), []);
        assert_eq!(watch.sweepable(at(4, 4), &leased), []);
        assert_eq!(watch.sweepable(at(5, 5), &leased), [id(1)]);
        let read = [Candidate { in_use: true, ..leased[0] }, newest];
        assert_eq!(watch.sweepable(at(6, 6), &read), []);
        // A lease that ends before the expiry shortens nothing. A lease alone is no expiry.
        assert_eq!(candidate(1, Some(5), Some(1)).retention.kept_until(), Some(wall(5)));
        assert_eq!(candidate(1, None, Some(1)).retention.kept_until(), None);
        // A new lease counts from now on.
        let again = [candidate(1, Some(1), Some(8)), newest];
        assert_eq!(watch.sweepable(at(6, 6), &again), []);
        assert_eq!(watch.sweepable(at(7, 7), &again), []);
        assert_eq!(watch.sweepable(at(8, 8), &again), [id(1)]);
    }

    #[test]
    fn a_clock_jump_sweeps_nothing_early() {
        let all = [candidate(1, Some(2), None), candidate(2, None, None)];
        let mut watch = Watch::default();
        watch.observe(at(0, 0), id(1), wall(0), all[0].retention);
        // The clock jumps ten years ahead within a minute. The time that was left still counts.
        assert_eq!(watch.sweepable(at(87_600, 0), &all), []);
        assert_eq!(watch.sweepable(at(87_601, 1), &all), []);
        assert_eq!(watch.sweepable(at(2, 2), &all), [id(1)], "the clock is right again");
        // The clock jumps back. The snapshot is swept later, never earlier.
        assert_eq!(watch.sweepable(at(1, 3), &all), []);
        assert_eq!(watch.sweepable(at(2, 4), &all), [id(1)]);
    }

    #[test]
    fn a_new_retention_continues_from_the_old_one() {
        let newest = candidate(9, None, None);
        let mut watch = Watch::default();
        assert_eq!(watch.sweepable(at(0, 0), &[candidate(1, Some(5), Some(20)), newest]), []);
        // The clock is a year ahead when the lease is returned. The expiry stays five hours after the start.
        let given_back = [candidate(1, Some(5), None), newest];
        assert_eq!(watch.sweepable(at(8760, 1), &given_back), []);
        assert_eq!(watch.sweepable(at(8763, 4), &given_back), []);
        assert_eq!(watch.sweepable(at(8764, 5), &given_back), [id(1)]);
        watch.postpone(at(8764, 5), id(1), Duration::from_secs(2 * HOUR));
        assert_eq!(watch.sweepable(at(8765, 6), &given_back), []);
        assert_eq!(watch.sweepable(at(8766, 7), &given_back), [id(1)]);
    }

    #[test]
    fn a_snapshot_expired_before_it_is_observed_is_kept_for_a_while() {
        let all = [candidate(1, Some(2), None), candidate(2, None, None)];
        let mut watch = Watch::default();
        let soon = |seconds| Moment { wall: wall(50), monotonic: Duration::from_secs(seconds) };
        assert_eq!(watch.sweepable(soon(0), &all), []);
        assert_eq!(watch.sweepable(soon(STARTUP_GRACE.as_secs() - 1), &all), []);
        assert_eq!(watch.sweepable(soon(STARTUP_GRACE.as_secs()), &all), [id(1)]);
    }

    #[test]
    fn a_clock_behind_the_snapshot_is_ignored() {
        let all = [candidate(1, Some(2), None), candidate(2, None, None)];
        let mut watch = Watch::default();
        // The clock of a host starts in 1970 until it is set: by that clock, decades would be left.
        assert_eq!(watch.sweepable(at(-400_000, 0), &all), []);
        assert_eq!(watch.sweepable(at(3, 1), &all), []);
        assert_eq!(watch.sweepable(at(4, 2), &all), [id(1)]);
        watch.retain(|_| false);
        assert_eq!(watch.sweepable(at(4, 2), &all), [], "after retain it is observed for the first time");
    }

    #[test]
    fn a_superseded_snapshot_is_kept_for_the_grace_period() {
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
            // A jump ahead does not end the grace period.
            wall: wall(300),
        };
        watch.observe(at(30, 30), id(1), wall(0), base.retention);
        assert_eq!(watch.sweepable(minutes(1), &night), []);
        assert_eq!(watch.sweepable(minutes(59), &night), []);
        assert_eq!(watch.sweepable(minutes(60), &night), [id(1)]);
        // The successor is deleted and another one is made: the grace period of the new pair counts.
        watch.supersede(minutes(70), id(1), id(3));
        assert_eq!(watch.sweepable(minutes(71), &[base, successor(3, 31)]), []);
        assert_eq!(watch.sweepable(minutes(130), &[base, successor(3, 31)]), [id(1)]);
        // Without a successor it is the newest again.
        assert_eq!(watch.sweepable(minutes(200), &[base]), []);
    }

    #[test]
    fn a_restart_keeps_the_rest_of_the_grace_period() {
        let restarted = |grace: u64, made: i64, minutes: u64| {
            let mut watch = Watch::new(Duration::from_secs(grace * 60));
            let pair = [candidate(1, Some(1), None), Candidate { created_at: wall(made), ..candidate(2, None, None) }];
            assert_eq!(watch.sweepable(at(30, 0), &pair), []);
            let later = |minutes: u64| Moment { wall: wall(31), monotonic: Duration::from_secs(minutes * 60) };
            assert_eq!(watch.sweepable(later(minutes - 1), &pair), []);
            assert_eq!(watch.sweepable(later(minutes), &pair), [id(1)]);
        };
        // Two of three hours have passed; all of one hour; the clock is behind; a short grace period; none.
        restarted(180, 28, 60);
        restarted(60, 28, 10);
        restarted(60, 35, 60);
        restarted(5, 28, 10);
        restarted(0, 28, 10);
    }
}
