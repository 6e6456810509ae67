//! What was seen in a repository at the last look.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::shared_leases::SeenLeases;
use super::watched::Watched;
use crate::model::SnapshotId;
use crate::repository::listing::Listing;

/// A folder that is no snapshot yet is looked at again after a quarter of its age, within these limits.
const RETRIES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// An exporter needs less time between the creation of a folder and that of its marker.
const YOUNG: Duration = Duration::from_secs(600);

/// What was seen in a repository.
#[derive(Default)]
pub(super) struct Seen {
    /// When the last look began.
    pub looked: Option<Instant>,
    pub folder: Watched,
    pub ids: BTreeSet<SnapshotId>,
    /// Folders that the database does not know, and that are no complete snapshots so far.
    pub waiting: BTreeMap<SnapshotId, Waiting>,
    /// Snapshots of the database whose folders are gone.
    pub gone: BTreeMap<SnapshotId, Waiting>,
    pub leases: SeenLeases,
    /// Why the last look could not read them.
    pub lease_problem: Option<String>,
}

/// How the first listing differs from the database.
pub(super) struct Differences {
    pub unknown: Vec<SnapshotId>,
    pub missing: Vec<SnapshotId>,
}

impl Seen {
    /// Takes the first listing.
    pub fn begin(&mut self, Listing { version, ids }: Listing, differences: Differences, now: Instant) {
        self.folder.see(version, now);
        self.waiting = differences.unknown.into_iter().map(|id| (id, Waiting::new(now))).collect();
        self.gone = differences.missing.into_iter().map(|id| (id, Waiting::new(now))).collect();
        self.ids = ids;
    }

    /// Takes another listing.
    pub fn update(&mut self, Listing { version, ids }: Listing, now: Instant) {
        for id in ids.difference(&self.ids) {
            self.waiting.insert(*id, Waiting::new(now));
        }
        self.gone.extend(self.ids.difference(&ids).map(|id| (*id, Waiting::new(now))));
        self.gone.retain(|id, _| !ids.contains(id));
        self.waiting.retain(|id, _| ids.contains(id));
        if self.folder.see(version, now) {
            // Exporters touch the folder when they have finished a snapshot.
            let unfinished = self.waiting.values_mut().filter(|waiting| waiting.folder == Folder::Unfinished);
            unfinished.for_each(|waiting| waiting.next = now);
        }
        self.ids = ids;
    }
}

/// What a folder that is no complete snapshot was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Folder {
    /// Another exporter is making it, or has died while it did.
    Unfinished,
    Unfit,
    /// A repository could not be read.
    Unknown,
}

/// A folder that is no complete snapshot so far, or is gone.
pub(super) struct Waiting {
    since: Instant,
    pub next: Instant,
    pub folder: Folder,
    /// Why it is no snapshot, as far as that was logged.
    pub reason: String,
}

impl Waiting {
    fn new(now: Instant) -> Self {
        Self { since: now, next: now, folder: Folder::Unknown, reason: String::new() }
    }

    /// Whether it may have become complete although nothing else shows it.
    pub fn may_be_complete(&self, now: Instant) -> bool {
        self.folder != Folder::Unfit || now.duration_since(self.since) < YOUNG
    }

    pub fn postpone(&mut self, now: Instant) {
        let (least, most) = RETRIES;
        self.next = now + (now.duration_since(self.since) / 4).clamp(least, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(ids: &[u128]) -> Listing {
        Listing { version: None, ids: ids.iter().map(|id| SnapshotId::from_u128(*id)).collect() }
    }

    fn numbers<'a>(ids: impl IntoIterator<Item = &'a SnapshotId>) -> Vec<u128> {
        ids.into_iter().map(|id| id.as_u128()).collect()
    }

    #[test]
    fn new_folders_wait_and_missing_ones_are_gone() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        assert!(seen.folder.is_new() && seen.folder.settled().is_none());
        let id = SnapshotId::from_u128;
        seen.begin(listing(&[1, 2, 3]), Differences { unknown: vec![id(3)], missing: vec![id(7)] }, now);
        assert!(!seen.folder.is_new());
        assert_eq!((numbers(seen.waiting.keys()), numbers(seen.gone.keys())), (vec![3], vec![7]));

        seen.update(listing(&[2, 4, 7]), now);
        let state = |seen: &Seen| (numbers(seen.waiting.keys()), numbers(seen.gone.keys()));
        assert_eq!(state(&seen), (vec![4, 7], vec![1, 3]), "7 is there again");
        seen.update(listing(&[2, 4, 7]), now);
        assert_eq!(state(&seen), (vec![4, 7], vec![1, 3]));
    }

    #[test]
    fn folder_that_is_no_snapshot_is_looked_at_less_and_less() {
        let start = Instant::now();
        let mut waiting = Waiting::new(start);
        for (age, pause) in [(0, 250), (1_000, 250), (40_000, 10_000), (1_000_000, 60_000)] {
            let now = start + Duration::from_millis(age);
            waiting.postpone(now);
            assert_eq!(waiting.next - now, Duration::from_millis(pause), "{age}");
        }
    }
}
