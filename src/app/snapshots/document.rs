//! The journeys to a snapshot's document: alone, in a list, compared to an older one.

use std::num::NonZero;
use std::sync::Arc;

use crate::api::{self, Array, DiskMap, DiskState, Mode, Totals, WireChunk};
use crate::app::compare::comparison::{Cancellation, DiskComparison};
use crate::app::files::open_disk::{lost, passing};
use crate::app::{App, Error};
use crate::auth::Session;
use crate::config::Refine;
use crate::model::retention::Retention;
use crate::model::{
    ByteRange, Chunk, ChunkKind, ExtentMap, HookRun, Snapshot, SnapshotDisk, SnapshotId, SnapshotPair, VmId,
};
use crate::repository::refine::BaseContents;
use crate::repository::seal::Proof;
use crate::repository::{Changes, CompareError, DiskFile, MapError, OpenError};

/// What of a snapshot a client wants to see.
#[derive(Clone, Copy, Debug)]
pub struct MapOptions {
    /// The older snapshot to list the changes from.
    pub compare_to: Option<SnapshotId>,
    /// Whether maps are wanted at all.
    pub chunks: bool,
    /// Whether chunks that touch are joined.
    pub squash: bool,
    /// Whether `zero` chunks are listed; by default where there is something to compare to.
    pub zeros: Option<bool>,
    /// Whether only the sums of the chunks are wanted.
    pub summary: bool,
    /// Whether contents are compared, where a base is named; by default as the config says.
    pub refine: Option<Refine>,
}

impl MapOptions {
    /// Whether anything of the maps is wanted.
    fn maps(self) -> bool {
        self.chunks || self.summary
    }
}

impl App {
    /// The document of the snapshot `id` of the VM that `vm_ref` names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::NotOlder`], [`Error::BaseLost`],
    /// [`Error::SnapshotLost`].
    pub async fn snapshot(
        self: &Arc<Self>,
        _session: &Session,
        vm_ref: VmId,
        id: SnapshotId,
        view: MapOptions,
        stop: Cancellation,
    ) -> Result<api::Snapshot, Error> {
        self.blocking(move |app| {
            app.hold_viewed(id, view, &stop)?;
            let snapshot = app.snapshot_of(&vm_ref, id)?;
            let base = app.base_of(view)?;
            let pair = base.as_ref().map(|base| SnapshotPair::new(base, &snapshot)).transpose()?;
            app.describe(&snapshot, pair.as_ref(), view, &stop)
        })
        .await
    }

    /// The document of a snapshot that was just made. It is there, whatever becomes of its maps:
    /// none of them fails the answer.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub async fn describe_new(
        self: &Arc<Self>,
        _session: &Session,
        snapshot: Snapshot,
        view: MapOptions,
        stop: Cancellation,
    ) -> Result<api::Snapshot, Error> {
        self.blocking(move |app| {
            app.uses.hold(snapshot.id).into_iter().for_each(|held| stop.hold(held));
            app.describe_anyway(&snapshot, view, &stop).ok_or(Error::NotFound("it was deleted at once"))
        })
        .await
    }

    /// The documents of all snapshots of the VM that `vm_ref` names, oldest first. One that is lost
    /// says so, and fails nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`].
    pub async fn snapshots(
        self: &Arc<Self>,
        _session: &Session,
        vm_ref: VmId,
        view: MapOptions,
        stop: Cancellation,
    ) -> Result<Array<api::Snapshot>, Error> {
        let answer = stop.clone();
        let snapshots = self
            .blocking(move |app| {
                let vm = app.resolve_vm(&vm_ref)?;
                let snapshots = app.store.snapshots_of(&vm)?;
                // A client that lists often must not keep them all for ever: this is no work on them.
                let held = snapshots.iter().filter(|_| view.maps()).filter_map(|one| app.uses.hold_briefly(one.id));
                held.for_each(|held| answer.hold(held));
                Ok(snapshots)
            })
            .await?;
        // Each when it is its turn: so many files are not open at once.
        let app = Arc::clone(self);
        let documents = snapshots.into_iter().filter_map(move |snapshot| app.describe_anyway(&snapshot, view, &stop));
        Ok(Array::new(documents))
    }

    /// The snapshot to compare to.
    pub(crate) fn base_of(&self, view: MapOptions) -> Result<Option<Snapshot>, Error> {
        let Some(base) = view.compare_to else { return Ok(None) };
        self.store.snapshot(base)?.ok_or(Error::NotFound("compareTo names no snapshot")).map(Some)
    }

    fn describe(
        &self,
        snapshot: &Snapshot,
        pair: Option<&SnapshotPair<'_>>,
        view: MapOptions,
        stop: &Cancellation,
    ) -> Result<api::Snapshot, Error> {
        let mut document = self.document(snapshot);
        document.compare_to = pair.map(|pair| pair.base().id.to_string());
        for (entry, disk) in document.disks.iter_mut().zip(&snapshot.disks) {
            let found = self.find(snapshot, pair, disk, view, 0, stop)?;
            entry.map = view.maps().then(|| found.into_map(view, stop, None)).transpose()?;
        }
        Ok(document)
    }

    /// As [`App::describe`], without a comparison, and for lists: what is lost of a disk is listed as
    /// data to its end. Who knows no `status` then asks for its bytes, and is told. Nothing where another service
    /// has deleted it.
    fn describe_anyway(&self, snapshot: &Snapshot, view: MapOptions, stop: &Cancellation) -> Option<api::Snapshot> {
        let mut document = self.document(snapshot);
        for (entry, disk) in document.disks.iter_mut().zip(&snapshot.disks) {
            let found = self.whole(snapshot, disk, view, 0, stop);
            let map = found.and_then(|found| found.into_map(view, stop, Some(&entry.state)));
            if matches!(map, Err(Error::NotFound(_))) {
                return None;
            }
            let map = map.unwrap_or_else(|error| {
                entry.state.fail(error.to_string());
                everything(disk.identity.size)
            });
            entry.map = view.maps().then_some(map);
        }
        Some(document)
    }

    /// Holds the snapshots that `view` is about until the answer's end.
    pub(crate) fn hold_viewed(&self, id: SnapshotId, view: MapOptions, answer: &Cancellation) -> Result<(), Error> {
        for id in [Some(id), view.compare_to].into_iter().flatten() {
            answer.hold(self.hold(id)?);
        }
        Ok(())
    }

    /// What changed on a disk since the base of the `pair`, or all of it where there is none.
    pub(crate) fn find(
        &self,
        snapshot: &Snapshot,
        pair: Option<&SnapshotPair<'_>>,
        disk: &SnapshotDisk,
        view: MapOptions,
        from: u64,
        stop: &Cancellation,
    ) -> Result<DiskComparison, Error> {
        match pair {
            Some(pair) => self.compared(pair, disk, view, from, stop),
            None => self.whole(snapshot, disk, view, from, stop),
        }
    }

    /// All of a disk, for a client that holds nothing of it.
    fn whole(
        &self,
        snapshot: &Snapshot,
        disk: &SnapshotDisk,
        view: MapOptions,
        from: u64,
        stop: &Cancellation,
    ) -> Result<DiskComparison, Error> {
        let target = self.open(snapshot, disk).map_err(|error| lost(disk, error))?;
        let held = if view.zeros == Some(true) { ExtentMap::unknown() } else { ExtentMap::empty() };
        full(disk, Arc::new(target), held, None, from, stop)
    }

    /// What changed on a disk since the base.
    fn compared(
        &self,
        pair: &SnapshotPair<'_>,
        disk: &SnapshotDisk,
        view: MapOptions,
        from: u64,
        stop: &Cancellation,
    ) -> Result<DiskComparison, Error> {
        let target = Arc::new(self.open(pair.target(), disk).map_err(|error| lost(disk, error))?);
        let not_incremental = |target, reason: &'static str| {
            tracing::info!(snapshot = %pair.target().id, disk = %disk.name, reason, "full instead of incremental");
            // A client may hold a file of this name, from whatever snapshot: zeros are listed too.
            let found = full(disk, target, ExtentMap::unknown(), Some(reason), from, stop)?;
            let refine = match view.refine {
                Some(Refine::By(block)) => Some(block),
                _ => None,
            };
            Ok(DiskComparison { refine, ..found })
        };
        let Some(base_disk) = pair.base().disk(&disk.name) else {
            return not_incremental(target, "the base has no such disk");
        };
        if base_disk.source != disk.source {
            return not_incremental(target, "the base's disk of this name is another disk");
        }
        let error = compare_error(disk, base_disk);
        let base = self.open_base(pair.base(), base_disk).map_err(|cause| error(CompareError::Base(cause.into())));
        let (base, proof) = base?;
        let base = Arc::new(base);
        let changes = Changes::incremental(Arc::clone(&base), Arc::clone(&target), from, stop.is_wanted());
        let changes = changes.map_err(&error)?;
        let Some(changes) = changes else {
            return not_incremental(target, "the base lies on another file system");
        };
        let refine = match proof {
            // What the map lists is listed: those bytes of the base are not proven, and compared with nothing.
            Proof::Map => None,
            _ => self.block_to_refine_by(view, &base, &target, stop).map_err(&error)?,
        };
        let files = [base_disk.identity, disk.identity];
        let key = |block| (pair.base().id, pair.target().id, disk.name.clone(), block, files);
        let cache = refine.map(|block| (self.refined_cache.clone(), key(block)));
        let (held, mode, error) = (BaseContents::File(base), Mode::Incremental, Box::new(error));
        Ok(DiskComparison { changes, held, target, mode, reason: None, refine, cache, from, error })
    }

    /// What contents are compared by: as `view` asks, or else as the config says.
    fn block_to_refine_by(
        &self,
        view: MapOptions,
        base: &Arc<DiskFile>,
        target: &Arc<DiskFile>,
        stop: &Cancellation,
    ) -> Result<Option<NonZero<u64>>, CompareError> {
        let usual = match (view.refine, self.compare.refine) {
            (Some(Refine::By(block)), _) => return Ok(Some(block)),
            (Some(Refine::Never), _) | (_, Refine::Never) => None,
            _ if !view.maps() => None,
            (_, Refine::By(block)) => Some(block),
            (_, Refine::Auto) => {
                let copies_more = target.copies_more_than_was_written();
                let copies_more = copies_more.map_err(|error| CompareError::Target(OpenError::from(error).into()))?;
                NonZero::new(4096).filter(|_| copies_more)
            }
        };
        let Some(block) = usual else { return Ok(None) };
        // Who did not ask waits no longer than the limit allows.
        let mut candidates = 0;
        let changes = Changes::incremental(Arc::clone(base), Arc::clone(target), 0, stop.is_wanted())?;
        for chunk in changes.into_iter().flatten() {
            let chunk = chunk?;
            if chunk.kind == ChunkKind::Data {
                candidates += chunk.range.len();
            }
            if candidates > self.compare.refine_limit {
                tracing::info!(limit = self.compare.refine_limit, "too much to compare by content unless asked to");
                return Ok(None);
            }
        }
        Ok(Some(block))
    }

    /// A snapshot's document, without maps.
    fn document(&self, snapshot: &Snapshot) -> api::Snapshot {
        let retention = self.store.retentions().of(snapshot.id).unwrap_or_else(|error| {
            tracing::error!(snapshot = %snapshot.id, %error, "it is not known how long it is kept");
            Retention::default()
        });
        let leased_until = retention.leased_until.filter(|until| *until > jiff::Timestamp::now());
        let id = snapshot.id.to_string();
        let vm = snapshot.vm.to_string();
        api::Snapshot {
            id: id.clone(),
            vm_id: vm.clone(),
            vm_id_legacy: vm,
            disks: snapshot.disks.iter().map(|disk| self.disk_document(&id, snapshot, disk)).collect(),
            created_at: api::time(snapshot.created_at),
            created_by: snapshot.created_by.clone(),
            consistency: snapshot.provenance.consistency.as_str(),
            consistency_reason: snapshot.provenance.consistency_reason(),
            freeze_ms: snapshot.provenance.freeze_ms,
            hooks: snapshot.provenance.hooks.iter().map(hook_document).collect(),
            compare_to: None,
            expires_at: retention.expires_at.map(api::time),
            leased_until: leased_until.map(api::time),
        }
    }

    fn disk_document(&self, id: &str, snapshot: &Snapshot, disk: &SnapshotDisk) -> api::SnapshotDisk {
        // A repository that is not in the config any more has no paths that could be named.
        let repository = self.repository(&disk.source.repository);
        let mount_point =
            repository.as_ref().map(|repository| repository.mount_point().to_path_buf()).unwrap_or_default();
        let path =
            repository.as_ref().map(|repository| repository.snapshot_path(snapshot.id, &disk.name)).unwrap_or_default();
        api::SnapshotDisk {
            parent_path: mount_point.join(&disk.source.path).display().to_string(),
            path: path.display().to_string(),
            snapshot_id: id.to_owned(),
            snapshot_id_legacy: id.to_owned(),
            name: disk.name.to_string(),
            repo_mountpoint: mount_point.display().to_string(),
            size: disk.identity.size,
            map: None,
            state: DiskState::default(),
        }
    }
}

fn hook_document(run: &HookRun) -> api::HookRun {
    api::HookRun {
        name: run.name.clone(),
        kind: run.kind.as_str(),
        stage: run.stage.as_str(),
        outcome: run.outcome.as_str(),
        duration_ms: run.duration_ms,
        detail: run.detail.clone(),
    }
}

fn full(
    disk: &SnapshotDisk,
    target: Arc<DiskFile>,
    held: ExtentMap,
    reason: Option<&'static str>,
    from: u64,
    stop: &Cancellation,
) -> Result<DiskComparison, Error> {
    let error = compare_error(disk, disk);
    let changes = Changes::full(held, Arc::clone(&target), from, stop.is_wanted()).map_err(&error)?;
    let (held, mode, error) = (BaseContents::Unknown, Mode::Full, Box::new(error));
    Ok(DiskComparison { changes, held, target, mode, reason, refine: None, cache: None, from, error })
}

/// What a caller is told of a comparison of `disk` with `base` that failed.
fn compare_error(disk: &SnapshotDisk, base: &SnapshotDisk) -> impl Fn(CompareError) -> Error + Send + 'static {
    let (disk, base) = (disk.clone(), base.clone());
    move |error| match error {
        CompareError::Target(cause) => lost(&disk, cause),
        CompareError::Base(cause) => {
            let base_lost =
                |cause: &MapError| Error::BaseLost { disk: base.name.to_string(), cause: cause.to_string() };
            passing(&base, &cause).unwrap_or_else(|| base_lost(&cause))
        }
        CompareError::BaseUnstable => Error::BaseUnstable { disk: disk.name.to_string() },
        CompareError::Cancelled => Error::Internal("the client is gone".to_owned()),
    }
}

/// The map of a disk of which nothing is known but its size.
fn everything(size: u64) -> DiskMap {
    let range =
        ByteRange::new(0, size).map(|range| WireChunk(Ok(Chunk { range, kind: ChunkKind::Data, address: None })));
    let totals = Totals { data: size.into(), ..Totals::default() };
    let chunks = Some(Array::new(range.into_iter()));
    DiskMap { mode: Mode::Full, reason: None, refine: None, chunks, totals: Arc::new(totals) }
}
