//! Comparing disks of snapshots.

use std::num::NonZero;
use std::sync::Arc;

use super::bases::base_disk;
use super::comparison::{DiskComparison, Mode, Sides};
use super::disk_chunks::{ChunkPage, DiskChunks};
use super::disk_map::DiskMap;
use super::measured::Measured;
use super::options::{ChunkQuery, DiskRef, MapOptions};
use super::refined_cache::RefinedCache;
use crate::app::Error;
use crate::app::cancellation::Cancellation;
use crate::app::changeable::Changeable;
use crate::app::common::Common;
use crate::app::files::{FileOpener, temporary};
use crate::app::inventory::Inventory;
use crate::app::retention::{InUse, Retention};
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::config::{self, Refine};
use crate::metrics::Metrics;
use crate::model::{ChunkKind, ExtentMap, Snapshot, SnapshotDisk, SnapshotId, SnapshotPair, VmId};
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
    config: Changeable<config::Compare>,
    refined_cache: RefinedCache,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

impl Service for Comparisons {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Comparisons {
    pub(crate) fn new(common: &Common, files: Arc<FileOpener>, config: config::Compare) -> Self {
        let Common { inventory, retention, metrics, store, tasks, .. } = common.clone();
        let (config, refined_cache) = (Changeable::new(config), RefinedCache::default());
        Self { inventory, retention, files, store, config, refined_cache, metrics, tasks }
    }

    /// Replaces the defaults of requests.
    pub(crate) fn set_config(&self, config: config::Compare) {
        self.config.set(config);
    }

    /// The chunks of a disk, in order. They are found lazily.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::NotOlder`], [`Error::BaseLost`], [`Error::SnapshotLost`];
    /// [`Error::BadRequest`] for an offset past the end.
    pub async fn chunks(
        self: &Arc<Self>,
        session: &Session,
        disk: DiskRef,
        query: ChunkQuery,
        cancellation: Cancellation,
    ) -> Result<DiskChunks, Error> {
        let session = session.clone();
        self.blocking(move |comparisons| comparisons.find_chunks(&session, &disk, query, &cancellation)).await
    }

    /// One page of the chunks of a disk.
    ///
    /// # Errors
    /// As [`Comparisons::chunks`].
    pub async fn chunk_page(
        self: &Arc<Self>,
        session: &Session,
        disk: DiskRef,
        query: ChunkQuery,
        cancellation: Cancellation,
    ) -> Result<ChunkPage, Error> {
        let session = session.clone();
        let find = move |comparisons: &Self| comparisons.find_chunks(&session, &disk, query, &cancellation);
        self.blocking(move |comparisons| find(comparisons)?.page(query.limit)).await
    }

    fn find_chunks(
        &self,
        session: &Session,
        (vm_ref, id, name): &DiskRef,
        query: ChunkQuery,
        cancellation: &Cancellation,
    ) -> Result<DiskChunks, Error> {
        let in_use = self.hold(session, (vm_ref, *id), query.options)?;
        let snapshot = self.inventory.snapshot_of(session, vm_ref, *id)?;
        let base = self.base_of(session, query.options)?;
        let pair = pair(base.as_ref(), &snapshot, query.options)?;
        let listed = pair.as_ref().map_or(&snapshot, SnapshotPair::target);
        let disk = listed.disk(name).ok_or(Error::NotFound(match query.options.reverse {
            false => "the snapshot has no such disk",
            true => "the base has no such disk; the way back removes it",
        }))?;
        let size = disk.identity.size;
        if query.from > size {
            let text = format!("startingOffset={} is past the end of the disk; its size is {size} bytes", query.from);
            return Err(Error::BadRequest(text));
        }
        // Start at a block boundary: whole blocks are compared, so the list is the same from any offset.
        let start = match query.options.refine {
            Some(Refine::By(block)) => query.from - query.from % block,
            _ => query.from,
        };
        let found = self.compare(listed, pair.as_ref(), disk, query.options, start, cancellation)?;
        let map = DiskMap::new(found, query.options, query.from);
        Ok(DiskChunks::new(map, query.kind, in_use))
    }

    /// Keeps the snapshot and its base from being swept.
    ///
    /// # Errors
    /// [`Error::NotFound`] if one of them is being swept.
    pub(crate) fn hold(
        &self,
        session: &Session,
        (vm_ref, id): (&VmId, SnapshotId),
        options: MapOptions,
    ) -> Result<Vec<InUse>, Error> {
        let ids = [Some(id), options.compare_to];
        ids.into_iter().flatten().map(|id| self.retention.hold(session, vm_ref, id)).collect()
    }

    /// The base, if the user may use it too.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it does not exist; [`Error::Rebuilding`]; [`Error::Forbidden`].
    pub(crate) fn base_of(&self, session: &Session, options: MapOptions) -> Result<Option<Snapshot>, Error> {
        let Some(base) = options.compare_to else { return Ok(None) };
        let found = self.store.snapshot(base)?;
        let missing = || self.inventory.not_in_database(base, "the snapshot in compareTo does not exist");
        let base = found.ok_or_else(missing)?;
        self.inventory.check_snapshot(session, &base)?;
        Ok(Some(base))
    }

    /// Removes cached comparisons with the snapshot `id`.
    pub(crate) fn remove_cached(&self, id: SnapshotId) {
        self.refined_cache.remove(id);
    }

    /// The map of a disk: the changes since the base of `pair`, or the whole disk without a pair.
    ///
    /// # Errors
    /// If the comparison cannot start. A later error ends the map.
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

    /// The map of a whole disk. After a failure it lists the rest as data, and holds the failure. Returns nothing if
    /// another exporter has deleted the snapshot.
    pub(crate) fn infallible_map(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        options: MapOptions,
        cancellation: &Cancellation,
    ) -> Option<DiskMap> {
        let mut map = match self.whole(snapshot, disk, options, 0, cancellation) {
            Ok(found) => DiskMap::infallible(found, options),
            Err(Error::SnapshotGone) => return None,
            Err(error) => DiskMap::everything(disk.identity.size, error),
        };
        if options.summary {
            map.by_ref().for_each(drop);
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
            Some(pair) => {
                let mut measured = Measured::begin(&self.metrics);
                match self.changed(pair, disk, options, from, cancellation) {
                    Ok(comparison) => Ok(comparison.measured(measured)),
                    Err(error) => {
                        measured.failed(&error);
                        Err(error)
                    }
                }
            }
            None => self.whole(snapshot, disk, options, from, cancellation),
        }
    }

    /// The whole disk.
    fn whole(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        options: MapOptions,
        from: u64,
        cancellation: &Cancellation,
    ) -> Result<DiskComparison, Error> {
        let target = self.files.open(snapshot, disk).map_err(|error| self.files.lost(snapshot.id, disk, error))?;
        let base_map = if options.zeros == Some(true) { ExtentMap::unknown() } else { ExtentMap::empty() };
        let error = self.error(snapshot.id, disk, disk);
        let sides = full(error, Arc::new(target), base_map, None, from, cancellation)?;
        Ok(DiskComparison::new(sides, cancellation.clone()))
    }

    /// The changes of a disk since the base.
    fn changed(
        &self,
        pair: &SnapshotPair<'_>,
        disk: &SnapshotDisk,
        options: MapOptions,
        from: u64,
        cancellation: &Cancellation,
    ) -> Result<DiskComparison, Error> {
        let target = self.files.open(pair.target(), disk);
        let target = Arc::new(target.map_err(|error| self.files.lost(pair.target().id, disk, error))?);
        let not_incremental = |target, reason: &'static str| {
            if options.refuse_full {
                return Err(Error::FullRequired { disk: disk.name.to_string(), reason });
            }
            tracing::info!(
                snapshot = %pair.target().id, disk = %disk.name, reason,
                "listing the full disk instead of its changes"
            );
            // The client may have a copy with any content, so zeros are listed too.
            let error = self.error(pair.target().id, disk, disk);
            let sides = full(error, target, ExtentMap::unknown(), Some(reason), from, cancellation)?;
            let refine = match options.refine {
                Some(Refine::By(block)) => Some(block),
                _ => None,
            };
            Ok(DiskComparison::new(Sides { refine, ..sides }, cancellation.clone()))
        };
        let of_direction = |forward, back| if pair.is_reversed() { back } else { forward };
        let base_disk = match base_disk(pair, disk) {
            Ok(base_disk) => base_disk,
            Err(reason) => return not_incremental(target, reason),
        };
        let error = self.error(pair.target().id, disk, base_disk);
        let base = self.files.open_base(pair.base(), base_disk);
        let (base, proof) = base.map_err(|cause| error(CompareError::Base(cause.into())))?;
        let base = Arc::new(base);
        let changes = Changes::incremental(Arc::clone(&base), Arc::clone(&target), from, cancellation.is_wanted());
        let Some(changes) = changes.map_err(&error)? else {
            let reason =
                of_direction("the base is on another file system", "the newer snapshot is on another file system");
            return not_incremental(target, reason);
        };
        let refine = match proof {
            // Only the base's map is proven, not its content, so there is nothing to compare contents with.
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

    /// The block size of the refinement: from `options`, or else from the config.
    fn block_to_refine_by(
        &self,
        options: MapOptions,
        base: &Arc<DiskFile>,
        target: &Arc<DiskFile>,
        cancellation: &Cancellation,
    ) -> Result<Option<NonZero<u64>>, CompareError> {
        let default = match (options.refine, self.config.get().refine) {
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
        // Without an explicit request, refinement is limited, so that the client does not wait too long.
        let mut candidates = 0;
        let changes = Changes::incremental(Arc::clone(base), Arc::clone(target), 0, cancellation.is_wanted())?;
        for chunk in changes.into_iter().flatten() {
            let chunk = chunk?;
            if chunk.kind == ChunkKind::Data {
                candidates += chunk.range.len();
            }
            let limit = self.config.get().refine_limit;
            if candidates > limit {
                tracing::info!(limit, "not refining: more candidate bytes than compare.refine_limit");
                return Ok(None);
            }
        }
        Ok(Some(block))
    }

    /// The caller's error if a comparison of `disk` of the snapshot `id` with `base` fails.
    fn error(
        &self,
        id: SnapshotId,
        disk: &SnapshotDisk,
        base: &SnapshotDisk,
    ) -> impl Fn(CompareError) -> Error + Send + use<> {
        let (files, disk, base) = (Arc::clone(&self.files), disk.clone(), base.clone());
        move |error| match error {
            CompareError::Target(cause) => files.lost(id, &disk, cause),
            CompareError::Base(cause) => {
                let base_lost =
                    |cause: &MapError| Error::BaseLost { disk: base.name.to_string(), cause: cause.to_string() };
                temporary(&base, &cause).unwrap_or_else(|| base_lost(&cause))
            }
            CompareError::BaseUnstable => Error::BaseUnstable { disk: disk.name.to_string() },
            CompareError::Cancelled => Error::Cancelled,
        }
    }
}

/// The snapshots to compare, if there is a base, in the direction that the options ask for.
///
/// # Errors
/// [`Error::OtherVm`], [`Error::NotOlder`].
pub(crate) fn pair<'a>(
    base: Option<&'a Snapshot>,
    snapshot: &'a Snapshot,
    options: MapOptions,
) -> Result<Option<SnapshotPair<'a>>, Error> {
    let pair = base.map(|base| SnapshotPair::new(base, snapshot)).transpose()?;
    Ok(pair.map(|pair| if options.reverse { pair.reversed() } else { pair }))
}

/// A comparison that lists the whole target, for a client whose copy has the map `base_map`.
fn full(
    error: impl Fn(CompareError) -> Error + Send + 'static,
    target: Arc<DiskFile>,
    base_map: ExtentMap,
    reason: Option<&'static str>,
    from: u64,
    cancellation: &Cancellation,
) -> Result<Sides, Error> {
    let changes = Changes::full(base_map, Arc::clone(&target), from, cancellation.is_wanted()).map_err(&error)?;
    let (base, mode, error) = (BaseContents::Unknown, Mode::Full, Box::new(error));
    Ok(Sides { changes, base, target, mode, reason, refine: None, cache: None, from, error })
}
