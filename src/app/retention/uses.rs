//! Which snapshots are being worked on, or were a short time ago: those are not swept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::SnapshotId;

/// How long a snapshot counts as in use after the work on it ended: a client works on what it has.
const RECENT: Duration = Duration::from_secs(10 * 60);

/// The snapshots that are in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotUses(Arc<Mutex<HashMap<SnapshotId, Use>>>);

#[derive(Debug, Default)]
struct Use {
    holders: usize,
    /// When the last work on it ended.
    ended: Option<Instant>,
    /// Whether the sweeper has decided to delete it.
    is_swept: bool,
}

impl Use {
    fn is_nothing(&self) -> bool {
        self.holders == 0 && self.ended.is_none() && !self.is_swept
    }

    fn counts(&self) -> bool {
        self.holders > 0 || self.ended.is_some_and(|at| at.elapsed() < RECENT)
    }
}

/// Keeps a snapshot from being swept until this is dropped, and, for a client's work, for ten minutes more.
/// Whatever reads a snapshot for an answer holds one until the answer's end.
#[derive(Debug)]
pub struct InUse {
    uses: SnapshotUses,
    id: SnapshotId,
    is_work: bool,
}

impl InUse {
    /// There is no such snapshot: nothing is kept of the use when this is dropped.
    pub(crate) fn names_nothing(&mut self) {
        self.is_work = false;
    }
}

/// The sweeper's right to delete a snapshot, until this is dropped: nobody begins to work on it meanwhile.
#[derive(Debug)]
pub(crate) struct SweepGuard {
    uses: SnapshotUses,
    id: SnapshotId,
}

impl SnapshotUses {
    /// Holds the snapshot for a client that works on it; nothing where it is being swept. It has to be held
    /// before its record is looked at.
    pub(crate) fn hold(&self, id: SnapshotId) -> Option<InUse> {
        self.take(id, true)
    }

    /// The same for a look at it that says nothing about further use, such as a list.
    pub(crate) fn hold_briefly(&self, id: SnapshotId) -> Option<InUse> {
        self.take(id, false)
    }

    fn take(&self, id: SnapshotId, is_work: bool) -> Option<InUse> {
        let mut uses = self.lock();
        let entry = uses.entry(id).or_default();
        if entry.is_swept {
            return None;
        }
        entry.holders += 1;
        Some(InUse { uses: self.clone(), id, is_work })
    }

    /// Keeps everybody from beginning to work on the snapshot; nothing where it is in use.
    pub(crate) fn sweep(&self, id: SnapshotId) -> Option<SweepGuard> {
        let mut uses = self.lock();
        if uses.get(&id).is_some_and(|entry| entry.is_swept || entry.counts()) {
            return None;
        }
        uses.entry(id).or_default().is_swept = true;
        Some(SweepGuard { uses: self.clone(), id })
    }

    /// Whether somebody works on the snapshot, or did a short time ago.
    pub(crate) fn counts(&self, id: SnapshotId) -> bool {
        self.lock().get(&id).is_some_and(Use::counts)
    }

    /// Forgets what does not count any more.
    pub(crate) fn forget_old(&self) {
        self.lock().retain(|_, entry| entry.is_swept || entry.counts());
    }

    /// Changes an entry, and removes it where nothing is left to remember.
    fn change(&self, id: SnapshotId, change: impl FnOnce(&mut Use)) {
        let mut uses = self.lock();
        if let Some(entry) = uses.get_mut(&id) {
            change(entry);
            if entry.is_nothing() {
                uses.remove(&id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SnapshotId, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.uses.change(self.id, |entry| {
            entry.holders = entry.holders.saturating_sub(1);
            if self.is_work {
                entry.ended = Some(Instant::now());
            }
        });
    }
}

impl Drop for SweepGuard {
    fn drop(&mut self) {
        self.uses.change(self.id, |entry| entry.is_swept = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_in_use_until_the_last_holder_is_gone_and_a_while_longer() {
        let (uses, id) = (SnapshotUses::default(), SnapshotId::from_u128(1));
        assert!(!uses.counts(id));
        let (first, second) = (uses.hold(id), uses.hold_briefly(id));
        drop(first);
        // As if the first had ended long ago.
        uses.lock().get_mut(&id).unwrap().ended = None;
        assert!(uses.counts(id) && uses.sweep(id).is_none());
        uses.forget_old();
        drop(second);
        assert!(!uses.counts(id), "a look at it is no work");
        drop(uses.hold(id));
        assert!(uses.counts(id) && uses.sweep(id).is_none(), "a client works on what it has");
        uses.lock().get_mut(&id).unwrap().ended = Instant::now().checked_sub(RECENT);
        assert!(!uses.counts(id));
    }

    #[test]
    fn what_names_no_snapshot_leaves_nothing_behind() {
        let uses = SnapshotUses::default();
        for id in (0..1000).map(SnapshotId::from_u128) {
            let (mut held, other) = (uses.hold(id).unwrap(), uses.hold_briefly(id));
            held.names_nothing();
            drop(held);
            assert!(uses.counts(id));
            drop(other);
            drop(uses.sweep(id));
        }
        assert!(uses.lock().is_empty());
    }

    #[test]
    fn nobody_begins_to_work_on_what_is_being_swept() {
        let (uses, id) = (SnapshotUses::default(), SnapshotId::from_u128(1));
        let swept = uses.sweep(id);
        assert!(swept.is_some() && uses.sweep(id).is_none());
        uses.forget_old();
        assert!(uses.hold(id).is_none() && uses.hold_briefly(id).is_none());
        assert!(uses.hold(SnapshotId::from_u128(2)).is_some());
        drop(swept);
        assert!(uses.hold(id).is_some());
    }
}
