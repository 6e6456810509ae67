//! Checksums of a disk, of a range of it, or of its blocks.

use std::collections::VecDeque;
use std::num::NonZero;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::pieces::Part;
use crate::app::Error;
use crate::app::cancellation::Cancellation;
use crate::app::common::Common;
use crate::app::compare::DiskRef;
use crate::app::files::{FileOpener, OpenDisk, lost};
use crate::app::retention::InUse;
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::model::SnapshotDisk;
use crate::repository::checksum::{self, Algorithm, BlockChecksums, ChecksumError, Content, Digest};
use crate::store::Store;

/// The checksum that a client requests.
#[derive(Clone, Copy, Debug)]
pub struct ChecksumRequest {
    pub algorithm: Algorithm,
    /// The offset to start from, bytes.
    pub start: u64,
    /// Bytes from there; without it, to the end.
    pub length: Option<u64>,
    /// The block size in bytes, to request the checksum of the blocks' checksums.
    pub block: Option<NonZero<u64>>,
    /// Whether the response lists the blocks' checksums too.
    pub list: bool,
}

/// A checksum of a range of a disk.
pub struct DiskChecksum {
    pub algorithm: Algorithm,
    pub block_size: Option<u64>,
    pub range: Range<u64>,
    pub digests: Digests,
}

pub enum Digests {
    One(Digest),
    /// The checksums of blocks, calculated lazily.
    Blocks(Box<DiskBlockChecksums>),
}

/// The most cached checksums of whole disks.
const CACHE_SIZE: usize = 1024;

/// The file as [`OpenDisk::version`] identifies it, and the algorithm.
type Key = (String, Algorithm);

/// Checksums of whole disks. Concurrent requests share one calculation.
#[derive(Default)]
struct ChecksumCache {
    /// Ordered by last use, most recent last.
    known: Mutex<VecDeque<(Key, Arc<OnceCell<Digest>>)>>,
}

impl ChecksumCache {
    fn of(&self, key: Key) -> Arc<OnceCell<Digest>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let index = known.iter().position(|(other, _)| *other == key);
        let entry = index.and_then(|index| known.remove(index)).unwrap_or_else(|| (key, Arc::default()));
        let cell = Arc::clone(&entry.1);
        known.push_back(entry);
        if known.len() > CACHE_SIZE {
            known.pop_front();
        }
        cell
    }
}

/// Calculates checksums of disks.
pub struct Checksums {
    files: Arc<FileOpener>,
    store: Store,
    cache: ChecksumCache,
    tasks: Tasks,
}

impl Service for Checksums {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Checksums {
    pub(crate) fn new(common: &Common, files: Arc<FileOpener>) -> Self {
        let Common { store, tasks, .. } = common.clone();
        Self { files, store, cache: ChecksumCache::default(), tasks }
    }

    /// The requested checksum.
    ///
    /// # Errors
    /// Those of [`FileOpener::open_disk`]; [`Error::BadRequest`] for a range past the end of the disk.
    pub async fn checksum(
        self: &Arc<Self>,
        session: &Session,
        (vm, snapshot, name): DiskRef,
        request: ChecksumRequest,
        cancellation: Cancellation,
    ) -> Result<DiskChecksum, Error> {
        let disk = self.files.open_disk(session, vm, snapshot, name).await?;
        let ChecksumRequest { algorithm, start, length, block, list } = request;
        let size = disk.file.size();
        let end = length.map_or(Some(size), |length| start.checked_add(length));
        let range = end.filter(|end| start <= *end && *end <= size).map(|end| start..end).ok_or_else(|| {
            let length = length.map_or_else(String::new, |length| format!(" and length={length}"));
            Error::BadRequest(format!("start={start}{length} is past the end of the disk; its size is {size} bytes"))
        })?;
        let digests = match block {
            None if range == (0..size) => Digests::One(self.of_disk(&disk, algorithm, &cancellation).await?),
            None => Digests::One(self.of_range(&disk, range.clone(), algorithm, &cancellation).await?),
            Some(block) => {
                let is_wanted = cancellation.is_wanted();
                let sums = BlockChecksums::new(Arc::clone(&disk.file), range.clone(), algorithm, block, is_wanted);
                let mut blocks = Box::new(DiskBlockChecksums { sums, disk: disk.disk, _in_use: disk.in_use });
                if list {
                    Digests::Blocks(blocks)
                } else {
                    let digest = self.blocking(move |_| {
                        while blocks.next()?.is_some() {}
                        blocks.finish()
                    });
                    Digests::One(digest.await?)
                }
            }
        };
        Ok(DiskChecksum { algorithm, block_size: block.map(NonZero::get), range, digests })
    }

    /// The checksum of a whole disk. It is cached, and concurrent requests share one calculation.
    ///
    /// # Errors
    /// [`Error::SnapshotLost`], [`Error::Io`].
    pub async fn of_disk(
        self: &Arc<Self>,
        disk: &OpenDisk,
        algorithm: Algorithm,
        cancellation: &Cancellation,
    ) -> Result<Digest, Error> {
        let known = self.cache.of((disk.version.clone(), algorithm));
        let calculate = || async {
            let digest = self.of_range(disk, 0..disk.file.size(), algorithm, cancellation).await?;
            self.record(disk, algorithm, digest).await;
            Ok(digest)
        };
        known.get_or_try_init(calculate).await.copied()
    }

    /// Records the checksum of a whole disk. If the file is touched later, the checksum can prove its content.
    async fn record(self: &Arc<Self>, disk: &OpenDisk, algorithm: Algorithm, digest: Digest) {
        let ((_, id), name) = (disk.snapshot.clone(), disk.disk.name.clone());
        let recorded = self.blocking(move |checksums| {
            Ok(checksums.store.proofs().record_checksum(id, &name, algorithm.name(), &digest.0)?)
        });
        if let Err(error) = recorded.await {
            tracing::warn!(snapshot = %id, %error, "cannot record the checksum");
        }
    }

    /// The checksum of a body with these parts.
    ///
    /// # Errors
    /// As [`Checksums::of_disk`].
    pub async fn of_body(
        self: &Arc<Self>,
        disk: &OpenDisk,
        parts: &[Part],
        algorithm: Algorithm,
        cancellation: &Cancellation,
    ) -> Result<Digest, Error> {
        let content = parts.iter().map(|part| match part {
            Part::Text(text) => Content::Text(text.to_vec()),
            Part::Disk(range) => Content::Range(range.clone()),
        });
        self.of_content(disk, content.collect(), algorithm, cancellation).await
    }

    async fn of_range(
        self: &Arc<Self>,
        disk: &OpenDisk,
        range: Range<u64>,
        algorithm: Algorithm,
        cancellation: &Cancellation,
    ) -> Result<Digest, Error> {
        self.of_content(disk, vec![Content::Range(range)], algorithm, cancellation).await
    }

    async fn of_content(
        self: &Arc<Self>,
        disk: &OpenDisk,
        content: Vec<Content>,
        algorithm: Algorithm,
        cancellation: &Cancellation,
    ) -> Result<Digest, Error> {
        let (file, of, is_wanted) = (Arc::clone(&disk.file), disk.disk.clone(), cancellation.is_wanted());
        let sum = move |_: &Self| checksum::of_content(file, content, algorithm, &is_wanted);
        self.blocking(move |checksums| sum(checksums).map_err(|error| sum_error(&of, error))).await
    }
}

/// The checksums of blocks, calculated lazily.
pub struct DiskBlockChecksums {
    sums: BlockChecksums,
    disk: SnapshotDisk,
    /// Keeps the snapshot from being swept.
    _in_use: Arc<InUse>,
}

impl DiskBlockChecksums {
    /// The checksum of the next block, or nothing after the last. Blocks.
    ///
    /// # Errors
    /// [`Error::SnapshotLost`], [`Error::Io`], [`Error::Cancelled`].
    pub fn next(&mut self) -> Result<Option<Digest>, Error> {
        self.sums.next_block().map_err(|error| sum_error(&self.disk, error))
    }

    /// The checksum of the blocks' checksums.
    ///
    /// # Errors
    /// As [`DiskBlockChecksums::next`].
    pub fn finish(self) -> Result<Digest, Error> {
        self.sums.finish().map_err(|error| sum_error(&self.disk, error))
    }
}

fn sum_error(disk: &SnapshotDisk, error: ChecksumError) -> Error {
    match error {
        ChecksumError::Cancelled => Error::Cancelled,
        ChecksumError::File(cause) => lost(disk, cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recently_used_checksums_stay_cached() {
        let checksums = ChecksumCache::default();
        let key = |n: usize| (n.to_string(), Algorithm::Sha256);
        checksums.of(key(0)).set(Digest([7; 32])).unwrap();
        checksums.of(key(1)).set(Digest([8; 32])).unwrap();
        for n in 2..=CACHE_SIZE {
            // Repeated use keeps an entry.
            assert_eq!(checksums.of(key(0)).get(), Some(&Digest([7; 32])));
            checksums.of(key(n));
        }
        assert_eq!(checksums.known.lock().unwrap().len(), CACHE_SIZE);
        assert_eq!(checksums.of(key(0)).get(), Some(&Digest([7; 32])));
        assert_eq!(checksums.of(key(1)).get(), None, "the least recently used entry is removed");
        assert_eq!(checksums.of((0.to_string(), Algorithm::Blake3)).get(), None, "another algorithm");
    }
}
