//! What refined comparisons found, for who asks again: snapshots do not change.
//!
//! Unlike a map, which goes stale when blocks are moved, this is about contents. The files are opened
//! and proven to be the ones that were compared before any of it is used.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::{Chunk, DiskName, FileIdentity, SnapshotId};

/// Chunks that are kept, of all comparisons together: 16 MiB.
const ROOM: usize = (16 << 20) / size_of::<Chunk>();

/// Which comparison: base, target, disk, block size, and which files the first two are.
pub(crate) type Key = (SnapshotId, SnapshotId, DiskName, NonZero<u64>, [FileIdentity; 2]);

/// What one comparison found.
#[derive(Debug, Default)]
pub(crate) struct Refinement {
    /// The chunks of the whole disk.
    pub chunks: Vec<Chunk>,
    /// Bytes of the candidates of data.
    pub candidate_bytes: u64,
}

/// The last one asked for last.
type Kept = VecDeque<(Key, Arc<Refinement>)>;

/// The comparisons that were asked for last.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefinedCache(Arc<Mutex<Kept>>);

impl RefinedCache {
    /// Whether a comparison of so many chunks can be kept.
    pub(crate) fn has_room_for(chunks: usize) -> bool {
        chunks <= ROOM / 2
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Refinement>> {
        let mut kept = self.kept();
        let place = kept.iter().position(|(other, _)| other == key)?;
        let entry = kept.remove(place)?;
        let found = Arc::clone(&entry.1);
        kept.push_back(entry);
        Some(found)
    }

    pub(crate) fn put(&self, key: Key, refinement: Refinement) {
        let mut kept = self.kept();
        kept.retain(|(other, _)| *other != key);
        kept.push_back((key, Arc::new(refinement)));
        // An empty one takes room as well.
        while kept.iter().map(|(_, entry)| entry.chunks.len() + 1).sum::<usize>() > ROOM {
            kept.pop_front();
        }
    }

    /// Drops all that is about the snapshot `id`.
    pub(crate) fn forget(&self, id: SnapshotId) {
        self.kept().retain(|((base, target, ..), _)| *base != id && *target != id);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
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
    fn the_room_is_bounded_and_the_deleted_are_dropped() {
        let cache = RefinedCache::default();
        cache.put(key(1, 2), of(ROOM / 2));
        cache.put(key(2, 3), of(ROOM / 3));
        assert!(cache.get(&key(1, 2)).is_some());
        // The one that was asked for longest ago makes room.
        cache.put(key(3, 4), of(ROOM / 3));
        assert!(cache.get(&key(2, 3)).is_none());
        assert!(cache.get(&key(1, 2)).is_some() && cache.get(&key(3, 4)).is_some());
        cache.forget(SnapshotId::from_u128(2));
        assert!(cache.get(&key(1, 2)).is_none() && cache.get(&key(3, 4)).is_some());
        assert!(cache.get(&key(3, 5)).is_none());
    }
}
