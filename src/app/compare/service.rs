//! Comparing disks of snapshots.

use std::num::NonZero;
use std::sync::Arc;

use super::comparison::{DiskComparison, Mode, Sides};
use super::disk_map::DiskMap;
use super::options::{ChunkQuery, DiskRef, MapOptions};
use super::refined_cache::RefinedCache;
use crate::app::Error;
use crate::app::cancellation::Cancellation;
use crate::app::files::{FileOpener, lost, temporary};
use crate::app::inventory::Inventory;
use crate::app::retention::{InUse, Retention};
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::config::{self, Refine};
use crate::model::{Chunk, ChunkKind, ExtentMap, Snapshot, SnapshotDisk, SnapshotId, SnapshotPair};
use crate::repository::refine::BaseContents;
use crate::repository::seal::Proof;
use crate::repository::{Changes, CompareError, DiskFile, MapError, OpenError};
use crate::store::Store;

/// Compares disks of snapshots.
pub struct Comparisons {
    inventory: Arc<Inventory>,
    retention: Arc<Retention>,
    files: Arc<FileOpener>,
    store: Store,
    config: config::Compare,
    refined_cache: RefinedCache,
    tasks: Tasks,
}

/// The chunks of one disk, found as they are taken.
pub struct DiskChunks {
    map: DiskMap,
    /// Only chunks of this kind.
    kind: Option<ChunkKind>,
    /// Keeps the snapshots from being swept.
    _in_use: Vec<InUse>,
}

/// A page of the chunks of one disk.
pub struct ChunkPage {
    /// Size of the disk, bytes.
    pub size: u64,
    pub mode: Mode,
    /// Why it is full, although a base was named.
    pub reason: Option<&'static str>,
    pub chunks: Vec<Chunk>,
    /// The offset of the next page, if there is one.
    pub next_offset: Option<u64>,
}

impl Service for Comparisons {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Comparisons {
    pub(crate) fn new(
        inventory: Arc<Inventory>,
        retention: Arc<Retention>,
        files: Arc<FileOpener>,
        store: Store,
        config: config::Compare,
        tasks: Tasks,
    ) -> Self {
        Self { inventory, retention, files, store, config, refined_cache: RefinedCache::default(), tasks }
    }

    /// The chunks of a disk as they are found, in order.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::NotOlder`], [`Error::BaseLost`], [`Error::SnapshotLost`];
    /// [`Error::BadRequest`] for an offset past the end.
    pub async fn chunks(
        self: &Arc<Self>,
        _session: &Session,
        disk: DiskRef,
        query: ChunkQuery,
        cancellation: Cancellation,
    ) -> Result<DiskChunks, Error> {
        self.blocking(move |comparisons| comparisons.find_chunks(&disk, query, &cancellation)).await
    }

    /// One page of the chunks of a disk.
    ///
    /// # Errors
    /// As [`Comparisons::chunks`].
    pub async fn chunk_page(
        self: &Arc<Self>,
        _session: &Session,
        disk: DiskRef,
        query: ChunkQuery,
        cancellation: Cancellation,
    ) -> Result<ChunkPage, Error> {
        self.blocking(move |comparisons| comparisons.find_chunks(&disk, query, &cancellation)?.page(query.limit)).await
    }

    fn find_chunks(
        &self,
        (vm_ref, id, name): &DiskRef,
        query: ChunkQuery,
        cancellation: &Cancellation,
    ) -> Result<DiskChunks, Error> {
        let in_use = self.hold(*id, query.options)?;
        let snapshot = self.inventory.snapshot_of(vm_ref, *id)?;
        let disk = snapshot.disk(name).ok_or(Error::NotFound("the snapshot has no such disk"))?;
        let size = disk.identity.size;
        if query.from > size {
            let text = format!("startingOffset={} is past the end of the disk, which is at {size}", query.from);
            return Err(Error::BadRequest(text));
        }
        // Blocks are compared whole, so that they are listed the same from any offset.
        let start = match query.options.refine {
            Some(Refine::By(block)) => query.from - query.from % block,
            _ => query.from,
        };
        let base = self.base_of(query.options)?;
        let pair = base.as_ref().map(|base| SnapshotPair::new(base, &snapshot)).transpose()?;
        let found = self.compare(&snapshot, pair.as_ref(), disk, query.options, start, cancellation)?;
        let map = DiskMap::new(found, query.options, query.from);
        Ok(DiskChunks { map, kind: query.kind, _in_use: in_use })
    }

    /// Keeps the snapshots that `options` are about from being swept.
    ///
    /// # Errors
    /// [`Error::NotFound`] if one of them is being swept.
    pub(crate) fn hold(&self, id: SnapshotId, options: MapOptions) -> Result<Vec<InUse>, Error> {
        let ids = [Some(id), options.compare_to];
        ids.into_iter().flatten().map(|id| self.retention.hold(id)).collect()
    }

    /// The snapshot to compare to.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such snapshot.
    pub(crate) fn base_of(&self, options: MapOptions) -> Result<Option<Snapshot>, Error> {
        let Some(base) = options.compare_to else { return Ok(None) };
        self.store.snapshot(base)?.ok_or(Error::NotFound("compareTo names no snapshot")).map(Some)
    }

    /// Drops the results that are kept of comparisons with the snapshot `id`.
    pub(crate) fn forget(&self, id: SnapshotId) {
        self.refined_cache.forget(id);
    }

    /// The map of a disk: what changed since the base of the `pair`, or all of it without one.
    ///
    /// # Errors
    /// Those of the comparison's start. A later one ends the map.
    pub(crate) fn map(
        &self,
        snapshot: &Snapshot,
        pair: Option<&SnapshotPair<'_>>,
        disk: &SnapshotDisk,
        options: MapOptions,
        cancellation: &Cancellation,
    ) -> Result<DiskMap, Error> {
        let found = self.compare(snapshot, pair, disk, options, 0, cancellation)?;
        let mut map = DiskMap::new(found, options, 0);
        if options.summary {
            map.exhaust()?;
        }
        Ok(map)
    }

    /// The map of all of a disk. It never fails: what cannot be read is listed as data, and the map has the failure.
    /// Nothing if another service has deleted the snapshot.
    pub(crate) fn map_anyway(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        options: MapOptions,
        cancellation: &Cancellation,
    ) -> Option<DiskMap> {
        let mut map = match self.whole(snapshot, disk, options, 0, cancellation) {
            Ok(found) => DiskMap::that_never_fails(found, options),
            Err(Error::SnapshotGone) => return None,
            Err(error) => DiskMap::everything(disk.identity.size, error),
        };
        if options.summary && map.exhaust().is_err() {
            return None; // it never fails
        }
        Some(map)
    }

    fn compare(
        &self,
        snapshot: &Snapshot,
        pair: Option<&SnapshotPair<'_>>,
        disk: &SnapshotDisk,
        options: MapOptions,
        from: u64,
        cancellation: &Cancellation,
    ) -> Result<DiskComparison, Error> {
        match pair {
            Some(pair) => self.changed(pair, disk, options, from, cancellation),
            None => self.whole(snapshot, disk, options, from, cancellation),
        }
    }

    /// All of a disk, for a client that holds nothing of it.
    fn whole(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        options: MapOptions,
        from: u64,
        cancellation: &Cancellation,
    ) -> Result<DiskComparison, Error> {
        let target = self.files.open(snapshot, disk).map_err(|error| lost(disk, error))?;
        let held = if options.zeros == Some(true) { ExtentMap::unknown() } else { ExtentMap::empty() };
        let sides = full(disk, Arc::new(target), held, None, from, cancellation)?;
        Ok(DiskComparison::new(sides, cancellation.clone()))
    }

    /// What changed on a disk since the base.
    fn changed(
        &self,
        pair: &SnapshotPair<'_>,
        disk: &SnapshotDisk,
        options: MapOptions,
        from: u64,
        cancellation: &Cancellation,
    ) -> Result<DiskComparison, Error> {
        let target = Arc::new(self.files.open(pair.target(), disk).map_err(|error| lost(disk, error))?);
        let not_incremental = |target, reason: &'static str| {
            tracing::info!(snapshot = %pair.target().id, disk = %disk.name, reason, "full instead of incremental");
            // A client may hold a file of this name, from any snapshot: zeros are listed too.
            let sides = full(disk, target, ExtentMap::unknown(), Some(reason), from, cancellation)?;
            let refine = match options.refine {
                Some(Refine::By(block)) => Some(block),
                _ => None,
            };
            Ok(DiskComparison::new(Sides { refine, ..sides }, cancellation.clone()))
        };
        let Some(base_disk) = pair.base().disk(&disk.name) else {
            return not_incremental(target, "the base has no such disk");
        };
        if base_disk.source != disk.source {
            return not_incremental(target, "the base's disk of this name is another disk");
        }
        let error = compare_error(disk, base_disk);
        let base = self.files.open_base(pair.base(), base_disk);
        let (base, proof) = base.map_err(|cause| error(CompareError::Base(cause.into())))?;
        let base = Arc::new(base);
        let changes = Changes::incremental(Arc::clone(&base), Arc::clone(&target), from, cancellation.is_wanted());
        let Some(changes) = changes.map_err(&error)? else {
            return not_incremental(target, "the base lies on another file system");
        };
        let refine = match proof {
            // Only the base's map is proven, not its bytes: they are compared with nothing.
            Proof::Map => None,
            _ => self.block_to_refine_by(options, &base, &target, cancellation).map_err(&error)?,
        };
        let files = [base_disk.identity, disk.identity];
        let key = |block| (pair.base().id, pair.target().id, disk.name.clone(), block, files);
        let cache = refine.map(|block| (self.refined_cache.clone(), key(block)));
        let (base, mode, error) = (BaseContents::File(base), Mode::Incremental, Box::new(error));
        let sides = Sides { changes, base, target, mode, reason: None, refine, cache, from, error };
        Ok(DiskComparison::new(sides, cancellation.clone()))
    }

    /// The block size to compare contents by: as `options` ask, or else as the config says.
    fn block_to_refine_by(
        &self,
        options: MapOptions,
        base: &Arc<DiskFile>,
        target: &Arc<DiskFile>,
        cancellation: &Cancellation,
    ) -> Result<Option<NonZero<u64>>, CompareError> {
        let default = match (options.refine, self.config.refine) {
            (Some(Refine::By(block)), _) => return Ok(Some(block)),
            (Some(Refine::Never), _) | (_, Refine::Never) => None,
            _ if !options.maps() => None,
            (_, Refine::By(block)) => Some(block),
            (_, Refine::Auto) => {
                let copies_more = target.copies_more_than_was_written();
                let copies_more = copies_more.map_err(|error| CompareError::Target(OpenError::from(error).into()))?;
                NonZero::new(4096).filter(|_| copies_more)
            }
        };
        let Some(block) = default else { return Ok(None) };
        // A client that did not ask for it waits no longer than the limit allows.
        let mut candidates = 0;
        let changes = Changes::incremental(Arc::clone(base), Arc::clone(target), 0, cancellation.is_wanted())?;
        for chunk in changes.into_iter().flatten() {
            let chunk = chunk?;
            if chunk.kind == ChunkKind::Data {
                candidates += chunk.range.len();
            }
            if candidates > self.config.refine_limit {
                tracing::info!(limit = self.config.refine_limit, "too much to compare by content unless asked to");
                return Ok(None);
            }
        }
        Ok(Some(block))
    }
}

/// A listing of the whole target for a client that holds `held`.
fn full(
    disk: &SnapshotDisk,
    target: Arc<DiskFile>,
    held: ExtentMap,
    reason: Option<&'static str>,
    from: u64,
    cancellation: &Cancellation,
) -> Result<Sides, Error> {
    let error = compare_error(disk, disk);
    let changes = Changes::full(held, Arc::clone(&target), from, cancellation.is_wanted()).map_err(&error)?;
    let (base, mode, error) = (BaseContents::Unknown, Mode::Full, Box::new(error));
    Ok(Sides { changes, base, target, mode, reason, refine: None, cache: None, from, error })
}

/// What the caller hears if a comparison of `disk` with `base` fails.
fn compare_error(disk: &SnapshotDisk, base: &SnapshotDisk) -> impl Fn(CompareError) -> Error + Send + 'static {
    let (disk, base) = (disk.clone(), base.clone());
    move |error| match error {
        CompareError::Target(cause) => lost(&disk, cause),
        CompareError::Base(cause) => {
            let base_lost =
                |cause: &MapError| Error::BaseLost { disk: base.name.to_string(), cause: cause.to_string() };
            temporary(&base, &cause).unwrap_or_else(|| base_lost(&cause))
        }
        CompareError::BaseUnstable => Error::BaseUnstable { disk: disk.name.to_string() },
        CompareError::Cancelled => Error::Cancelled,
    }
}

impl DiskChunks {
    /// The next of the chunks that were asked for.
    fn find(&mut self) -> Option<Result<Chunk, Error>> {
        let is_wanted = |chunk: &Chunk| self.kind.is_none_or(|kind| chunk.kind == kind);
        self.map.find(|chunk| chunk.as_ref().map_or(true, is_wanted))
    }

    /// The first `limit` chunks, and an error after them if the files are not what they were.
    pub fn first(self, limit: usize) -> impl Iterator<Item = Result<Chunk, Error>> + Send {
        let (mut chunks, mut left, mut is_over) = (self, limit, false);
        std::iter::from_fn(move || {
            if is_over {
                return None;
            }
            let next = if left > 0 { chunks.find() } else { None };
            left = left.saturating_sub(1);
            next.or_else(|| {
                is_over = true;
                // What is cut off before its end was not checked by its end.
                chunks.map.verify().err().map(Err)
            })
        })
    }

    fn page(mut self, limit: usize) -> Result<ChunkPage, Error> {
        let mut chunks = Vec::new();
        let mut next_offset = None;
        while let Some(chunk) = self.find() {
            let chunk = chunk?;
            if chunks.len() == limit {
                // The next page finds it again.
                next_offset = Some(chunk.range.start());
                break;
            }
            chunks.push(chunk);
        }
        self.map.verify()?;
        let DiskMap { size, mode, reason, .. } = self.map;
        Ok(ChunkPage { size, mode, reason, chunks, next_offset })
    }
}
