//! Caches the results of refined comparisons. Snapshots do not change, so the results stay valid.
//!
//! An extent map becomes stale when blocks are moved; the result of comparing contents does not. Before a result is
//! used, the files are opened and proven to be the compared ones.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::{Chunk, DiskName, FileIdentity, SnapshotId};

/// The most cached chunks of all comparisons together: 16 MiB.
const MAX_CHUNKS: usize = (16 << 20) / size_of::<Chunk>();

/// Identifies a comparison: base, target, disk, block size, and the identities of both files.
pub(crate) type Key = (SnapshotId, SnapshotId, DiskName, NonZero<u64>, [FileIdentity; 2]);

/// The result of one comparison.
#[derive(Debug, Default)]
pub(crate) struct Refinement {
    /// The chunks of the whole disk.
    pub chunks: Vec<Chunk>,
    /// Bytes of the data candidates.
    pub candidate_bytes: u64,
}

/// Ordered by last use, most recent last.
type Entries = VecDeque<(Key, Arc<Refinement>)>;

/// The most recently used comparisons.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefinedCache(Arc<Mutex<Entries>>);

impl RefinedCache {
    /// Whether a comparison with `chunks` chunks may be cached.
    pub(crate) fn has_room_for(chunks: usize) -> bool {
        chunks <= MAX_CHUNKS / 2
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Refinement>> {
        let mut entries = self.entries();
        let index = entries.iter().position(|(other, _)| other == key)?;
        let entry = entries.remove(index)?;
        let found = Arc::clone(&entry.1);
        entries.push_back(entry);
        Some(found)
    }

    pub(crate) fn put(&self, key: Key, refinement: Refinement) {
        let mut entries = self.entries();
        entries.retain(|(other, _)| *other != key);
        entries.push_back((key, Arc::new(refinement)));
        // The `+ 1` counts an empty comparison too.
        while entries.iter().map(|(_, entry)| entry.chunks.len() + 1).sum::<usize>() > MAX_CHUNKS {
            entries.pop_front();
        }
    }

    /// Removes all comparisons with the snapshot `id`.
    pub(crate) fn remove(&self, id: SnapshotId) {
        self.entries().retain(|((base, target, ..), _)| *base != id && *target != id);
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backing, ByteRange};

    fn key(base: u128, target: u128) -> Key {
        let id = SnapshotId::from_u128;
        let file = FileIdentity { inode: 1, size: 1, changed_ns: 1 };
        (id(base), id(target), "a.img".parse().unwrap(), NonZero::new(4096).unwrap(), [file; 2])
    }

    fn of(chunks: usize) -> Refinement {
        let chunk = Chunk::of(ByteRange::new(0, 1).unwrap(), Backing::Zero);
        Refinement { chunks: vec![chunk; chunks], candidate_bytes: 1 }
    }

    #[test]
    fn cache_is_bounded_and_drops_deleted_snapshots() {
        let cache = RefinedCache::default();
        cache.put(key(1, 2), of(MAX_CHUNKS / 2));
        cache.put(key(2, 3), of(MAX_CHUNKS / 3));
        assert!(cache.get(&key(1, 2)).is_some());
        // The least recently used comparison is removed.
        cache.put(key(3, 4), of(MAX_CHUNKS / 3));
        assert!(cache.get(&key(2, 3)).is_none());
        assert!(cache.get(&key(1, 2)).is_some() && cache.get(&key(3, 4)).is_some());
        cache.remove(SnapshotId::from_u128(2));
        assert!(cache.get(&key(1, 2)).is_none() && cache.get(&key(3, 4)).is_some());
        assert!(cache.get(&key(3, 5)).is_none());
    }
}
