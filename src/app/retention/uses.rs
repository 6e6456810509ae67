//! Tracks snapshots that are in use, or were recently. They are not swept.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::SnapshotId;

/// How long a snapshot counts as in use after a request for it ended: the client may still work on the result.
const RECENT: Duration = Duration::from_secs(10 * 60);

/// The snapshots that are in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotUses(Arc<Mutex<HashMap<SnapshotId, Use>>>);

#[derive(Debug, Default)]
struct Use {
    holders: usize,
    /// When the last request ended.
    ended: Option<Instant>,
    /// Whether the sweeper has decided to delete it.
    is_swept: bool,
}

impl Use {
    fn is_unused(&self) -> bool {
        self.holders == 0 && self.ended.is_none() && !self.is_swept
    }

    fn counts(&self) -> bool {
        self.holders > 0 || self.ended.is_some_and(|at| at.elapsed() < RECENT)
    }
}

/// Keeps a snapshot from being swept until this is dropped, and for ten more minutes if a client works on the snapshot.
/// Code that reads a snapshot for a response holds one until the response ends.
#[derive(Debug)]
pub struct InUse {
    uses: SnapshotUses,
    id: SnapshotId,
    is_work: bool,
}

impl InUse {
    /// The snapshot does not exist, so this use leaves no entry behind.
    pub(crate) fn ignore(&mut self) {
        self.is_work = false;
    }
}

/// The sweeper's right to delete a snapshot. Until this is dropped, no client can start to use the snapshot.
#[derive(Debug)]
pub(crate) struct SweepGuard {
    uses: SnapshotUses,
    id: SnapshotId,
}

impl SnapshotUses {
    /// Holds the snapshot for a client that works on it. Returns nothing if it is being swept. Call this before reading
    /// the snapshot's record.
    pub(crate) fn hold(&self, id: SnapshotId) -> Option<InUse> {
        self.take(id, true)
    }

    /// As [`SnapshotUses::hold`], for an access that does not imply further use, such as a list.
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

    /// Keeps clients from starting to use the snapshot. Returns nothing if it is in use.
    pub(crate) fn sweep(&self, id: SnapshotId) -> Option<SweepGuard> {
        let mut uses = self.lock();
        if uses.get(&id).is_some_and(|entry| entry.is_swept || entry.counts()) {
            return None;
        }
        uses.entry(id).or_default().is_swept = true;
        Some(SweepGuard { uses: self.clone(), id })
    }

    /// Whether the snapshot is in use, or was recently.
    pub(crate) fn counts(&self, id: SnapshotId) -> bool {
        self.lock().get(&id).is_some_and(Use::counts)
    }

    /// The snapshots that are in use, or were recently.
    pub(crate) fn all(&self) -> HashSet<SnapshotId> {
        self.lock().iter().filter(|(_, entry)| entry.counts()).map(|(id, _)| *id).collect()
    }

    /// Removes entries that are no longer in use.
    pub(crate) fn remove_old(&self) {
        self.lock().retain(|_, entry| entry.is_swept || entry.counts());
    }

    /// Changes an entry, and removes it if it is then unused.
    fn change(&self, id: SnapshotId, change: impl FnOnce(&mut Use)) {
        let mut uses = self.lock();
        if let Some(entry) = uses.get_mut(&id) {
            change(entry);
            if entry.is_unused() {
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
    fn snapshot_is_in_use_until_last_holder_ends_and_ten_minutes_longer() {
        let (uses, id) = (SnapshotUses::default(), SnapshotId::from_u128(1));
        assert!(!uses.counts(id));
        let (first, second) = (uses.hold(id), uses.hold_briefly(id));
        drop(first);
        // Simulates that the first use ended long ago.
        uses.lock().get_mut(&id).unwrap().ended = None;
        assert!(uses.counts(id) && uses.sweep(id).is_none());
        uses.remove_old();
        drop(second);
        assert!(!uses.counts(id), "a brief access does not imply further use");
        drop(uses.hold(id));
        assert!(uses.counts(id) && uses.sweep(id).is_none(), "the client may still work on the result");
        uses.lock().get_mut(&id).unwrap().ended = Instant::now().checked_sub(RECENT);
        assert!(!uses.counts(id));
    }

    #[test]
    fn use_of_unknown_snapshot_leaves_no_entry() {
        let uses = SnapshotUses::default();
        for id in (0..1000).map(SnapshotId::from_u128) {
            let (mut held, other) = (uses.hold(id).unwrap(), uses.hold_briefly(id));
            held.ignore();
            drop(held);
            assert!(uses.counts(id));
            drop(other);
            drop(uses.sweep(id));
        }
        assert!(uses.lock().is_empty());
    }

    #[test]
    fn snapshot_being_swept_cannot_be_held() {
        let (uses, id) = (SnapshotUses::default(), SnapshotId::from_u128(1));
        let swept = uses.sweep(id);
        assert!(swept.is_some() && uses.sweep(id).is_none());
        uses.remove_old();
        assert!(uses.hold(id).is_none() && uses.hold_briefly(id).is_none());
        assert!(uses.hold(SnapshotId::from_u128(2)).is_some());
        drop(swept);
        assert!(uses.hold(id).is_some());
    }
}
