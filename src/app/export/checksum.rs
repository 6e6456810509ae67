//! The journey to checksums: of a disk, of a part of it, of its blocks.

use std::collections::VecDeque;
use std::num::NonZero;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::api::{self, Array, StreamAborted};
use crate::app::compare::chunks::DiskRef;
use crate::app::compare::comparison::Cancellation;
use crate::app::files::open_disk::{OpenDisk, lost};
use crate::app::retention::uses::InUse;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::model::SnapshotDisk;
use crate::repository::checksum::{self, Algorithm, BlockChecksums, ChecksumError, Digest};

/// Which checksum is wanted.
#[derive(Clone, Copy, Debug)]
pub struct ChecksumRequest {
    /// How it is made.
    pub algorithm: Algorithm,
    /// Where it starts, bytes.
    pub start: u64,
    /// Bytes from there; nothing: to the end.
    pub length: Option<u64>,
    /// Bytes of a block, where it is to be the checksum of the blocks' checksums.
    pub block: Option<NonZero<u64>>,
    /// Whether the blocks' checksums are wanted too.
    pub list: bool,
}

/// Checksums of whole disks that are remembered, at most.
const REMEMBERED: usize = 1024;

/// The file, which an [`OpenDisk::version`] tells from any other, and the algorithm.
type Key = (String, Algorithm);

/// Checksums of whole disks: made once, whoever asks.
#[derive(Default)]
pub(crate) struct ChecksumCache {
    /// Those asked for last are last.
    known: Mutex<VecDeque<(Key, Arc<OnceCell<Digest>>)>>,
}

impl ChecksumCache {
    fn of(&self, key: Key) -> Arc<OnceCell<Digest>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let index = known.iter().position(|(other, _)| *other == key);
        let entry = index.and_then(|index| known.remove(index)).unwrap_or_else(|| (key, Arc::default()));
        let cell = Arc::clone(&entry.1);
        known.push_back(entry);
        if known.len() > REMEMBERED {
            known.pop_front();
        }
        cell
    }
}

impl App {
    /// The checksum that is `wanted` of a disk. Where the blocks are listed it is made while it is
    /// written out; `stop` ends it.
    ///
    /// # Errors
    /// Those of [`App::open_disk`]; [`Error::BadRequest`] for a range that the disk does not have.
    pub async fn checksum(
        self: &Arc<Self>,
        session: &Session,
        (vm, snapshot, name): DiskRef,
        wanted: ChecksumRequest,
        stop: Cancellation,
    ) -> Result<api::Checksum, Error> {
        let disk = self.open_disk(session, vm, snapshot, name).await?;
        let ChecksumRequest { algorithm, start, length, block, list } = wanted;
        let size = disk.file.size();
        let end = length.map_or(Some(size), |length| start.checked_add(length));
        let range = end.filter(|end| start <= *end && *end <= size).map(|end| start..end).ok_or_else(|| {
            let length = length.map_or_else(String::new, |length| format!(" and length={length}"));
            Error::BadRequest(format!("start={start}{length} is past the end of the disk, which is at {size}"))
        })?;
        let (digest, blocks) = match block {
            None if range == (0..size) => (self.sum_of_disk(&disk, algorithm, &stop).await?.into(), None),
            None => (self.sum(&disk, range.clone(), algorithm, &stop).await?.into(), None),
            Some(block) => {
                let is_wanted = stop.is_wanted();
                let checksums = BlockChecksums::new(Arc::clone(&disk.file), range.clone(), algorithm, block, is_wanted);
                let (checksum, held) = (api::Deferred::default(), disk.held);
                let mut blocks =
                    Blocks { checksums: Some(checksums), checksum: checksum.clone(), disk: disk.disk, stop, held };
                if list {
                    (checksum, Some(Array::new(blocks)))
                } else {
                    self.blocking(move |_| blocks.run()).await?;
                    (checksum, None)
                }
            }
        };
        Ok(api::Checksum {
            algorithm: algorithm.name(),
            block_size: block.map(NonZero::get),
            start,
            length: range.end - range.start,
            blocks,
            checksum: digest,
        })
    }

    /// The checksum of all of an open disk. It is remembered, and one makes it for all who ask
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::SnapshotLost`], [`Error::Io`].
    pub async fn sum_of_disk(
        self: &Arc<Self>,
        disk: &OpenDisk,
        algorithm: Algorithm,
        stop: &Cancellation,
    ) -> Result<Digest, Error> {
        let known = self.checksums.of((disk.version.clone(), algorithm));
        let make = || async {
            let digest = self.sum(disk, 0..disk.file.size(), algorithm, stop).await?;
            self.note_sum(disk, algorithm, digest).await;
            Ok(digest)
        };
        known.get_or_try_init(make).await.copied()
    }

    /// Writes a checksum of all of a disk down: should its file be touched, its content can be proven by that.
    async fn note_sum(self: &Arc<Self>, disk: &OpenDisk, algorithm: Algorithm, digest: Digest) {
        let ((_, id), name) = (disk.snapshot.clone(), disk.disk.name.clone());
        let noted = self
            .blocking(move |app| Ok(app.store.proofs().record_checksum(id, &name, algorithm.name(), &digest.0)?))
            .await;
        if let Err(error) = noted {
            tracing::warn!(snapshot = %id, %error, "its checksum cannot be written down");
        }
    }

    /// The checksum of a part of an open disk.
    ///
    /// # Errors
    /// As [`App::sum_of_disk`].
    pub async fn sum(
        self: &Arc<Self>,
        disk: &OpenDisk,
        range: Range<u64>,
        algorithm: Algorithm,
        stop: &Cancellation,
    ) -> Result<Digest, Error> {
        let (file, of, is_wanted) = (Arc::clone(&disk.file), disk.disk.clone(), stop.is_wanted());
        self.blocking(move |_| {
            checksum::of_range(file, range, algorithm, &is_wanted).map_err(|error| sum_error(&of, error))
        })
        .await
    }
}

/// The checksums of blocks as they are written out, and then the one of them all.
struct Blocks {
    checksums: Option<BlockChecksums>,
    checksum: api::Deferred,
    disk: SnapshotDisk,
    stop: Cancellation,
    #[expect(dead_code, reason = "holds the snapshot until the last block")]
    held: Arc<InUse>,
}

impl Blocks {
    fn run(&mut self) -> Result<(), Error> {
        self.by_ref().try_for_each(|block| block.0.map(drop)).map_err(|StreamAborted| self.stop.cause_or_internal())
    }

    fn advance(&mut self) -> Result<Option<String>, ChecksumError> {
        let Some(checksums) = &mut self.checksums else { return Ok(None) };
        if let Some(digest) = checksums.next_block()? {
            return Ok(Some(digest.to_string()));
        }
        if let Some(checksums) = self.checksums.take() {
            self.checksum.set(checksums.finish()?.to_string());
        }
        Ok(None)
    }
}

impl Iterator for Blocks {
    type Item = api::BlockSum;

    fn next(&mut self) -> Option<api::BlockSum> {
        let block = self.advance().map_err(|error| {
            self.checksums = None;
            self.stop.broke(sum_error(&self.disk, error))
        });
        block.transpose().map(api::BlockSum)
    }
}

fn sum_error(disk: &SnapshotDisk, error: ChecksumError) -> Error {
    match error {
        ChecksumError::Cancelled => Error::Internal("the client is gone".to_owned()),
        ChecksumError::File(cause) => lost(disk, cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_of_the_files_asked_for_last_are_remembered() {
        let checksums = ChecksumCache::default();
        let key = |n: usize| (n.to_string(), Algorithm::Sha256);
        checksums.of(key(0)).set(Digest([7; 32])).unwrap();
        checksums.of(key(1)).set(Digest([8; 32])).unwrap();
        for n in 2..=REMEMBERED {
            // What is asked for again and again stays.
            assert_eq!(checksums.of(key(0)).get(), Some(&Digest([7; 32])));
            checksums.of(key(n));
        }
        assert_eq!(checksums.known.lock().unwrap().len(), REMEMBERED);
        assert_eq!(checksums.of(key(0)).get(), Some(&Digest([7; 32])));
        assert_eq!(checksums.of(key(1)).get(), None, "the bound is kept");
        assert_eq!(checksums.of((0.to_string(), Algorithm::Blake3)).get(), None, "another algorithm");
    }
}
