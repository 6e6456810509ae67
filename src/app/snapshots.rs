//! The journeys to a snapshot's document: alone, in a list, compared to an older one.

use std::sync::Arc;

use super::read_disk::{lost, passing};
use super::{App, Error};
use crate::auth::Session;
use crate::model::chunk::squash;
use crate::model::diff::changed;
use crate::model::retention::Terms;
use crate::model::{
    ByteRange, Chunk, ChunkKind, ExtentMap, HookRun, Snapshot, SnapshotDisk, SnapshotId, SnapshotPair, VmId,
};
use crate::repository::SnapshotDir;
use crate::repository::map::{self, CompareError};
use crate::wire::{self, DiskMap, Mode, Status, WireChunk};

/// What of a snapshot a client wants to see.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The older snapshot to list the changes from.
    pub compare_to: Option<SnapshotId>,
    /// Whether maps are wanted at all.
    pub chunks: bool,
    /// Whether chunks that touch are joined.
    pub squash: bool,
    /// Whether `zero` chunks are listed; by default where there is something to compare to.
    pub zeros: Option<bool>,
}

impl View {
    /// A new snapshot, as its creation answers.
    pub const NEW: Self = Self { compare_to: None, chunks: true, squash: false, zeros: None };
}

impl App {
    /// The document of the snapshot `id` of the VM that `called` names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::NotOlder`], [`Error::BaseLost`],
    /// [`Error::SnapshotLost`].
    pub async fn snapshot(
        self: &Arc<Self>,
        _session: &Session,
        called: VmId,
        id: SnapshotId,
        view: View,
    ) -> Result<wire::Snapshot, Error> {
        self.blocking(move |app| {
            // Before anything is looked at: from here on they are not swept.
            [Some(id), view.compare_to].into_iter().flatten().for_each(|id| app.reads.note(id));
            let snapshot = app.snapshot_of(&called, id)?;
            let base = match view.compare_to {
                Some(base) => Some(app.store.snapshot(base)?.ok_or(Error::NotFound("compareTo names no snapshot"))?),
                None => None,
            };
            let pair = base.as_ref().map(|base| SnapshotPair::new(base, &snapshot)).transpose()?;
            app.describe(&snapshot, pair.as_ref(), view)
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
    ) -> Result<wire::Snapshot, Error> {
        self.blocking(move |app| Ok(app.describe_anyway(&snapshot, View::NEW))).await
    }

    /// The documents of all snapshots of the VM that `called` names, oldest first. One that is lost
    /// says so, and fails nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`].
    pub async fn snapshots(
        self: &Arc<Self>,
        _session: &Session,
        called: VmId,
        view: View,
    ) -> Result<Vec<wire::Snapshot>, Error> {
        self.blocking(move |app| {
            let vm = app.resolve_vm(&called)?;
            let snapshots = app.store.snapshots_of(&vm)?;
            Ok(snapshots.iter().map(|snapshot| app.describe_anyway(snapshot, view)).collect())
        })
        .await
    }

    fn describe(
        &self,
        snapshot: &Snapshot,
        pair: Option<&SnapshotPair<'_>>,
        view: View,
    ) -> Result<wire::Snapshot, Error> {
        let mut document = self.document(snapshot);
        document.compare_to = pair.map(|pair| pair.base().id.to_string());
        for (entry, disk) in document.disks.iter_mut().zip(&snapshot.disks) {
            let change = match pair {
                Some(pair) => self.compare(pair, disk)?,
                None => self.whole(snapshot, disk, view)?,
            };
            entry.map = view.chunks.then(|| change.into_wire(disk.identity.size, view));
        }
        Ok(document)
    }

    /// As [`App::describe`], without a comparison, and for lists: a disk that is lost is listed as
    /// data from end to end. Who knows no `status` then asks for its bytes, and is told.
    fn describe_anyway(&self, snapshot: &Snapshot, view: View) -> wire::Snapshot {
        let mut document = self.document(snapshot);
        for (entry, disk) in document.disks.iter_mut().zip(&snapshot.disks) {
            let change = self.whole(snapshot, disk, view).unwrap_or_else(|error| {
                entry.status = Status::Error;
                entry.status_reason = Some(error.to_string());
                let everything = ByteRange::new(0, disk.identity.size);
                let everything = everything.map(|range| Chunk { range, kind: ChunkKind::Data, address: None });
                Change::full(everything.into_iter().collect())
            });
            entry.map = view.chunks.then(|| change.into_wire(disk.identity.size, view));
        }
        document
    }

    /// All of a disk, for a client that holds nothing of it. Without maps, that it is there.
    fn whole(&self, snapshot: &Snapshot, disk: &SnapshotDisk, view: View) -> Result<Change, Error> {
        let file = self.open(snapshot, disk).map_err(|error| lost(disk, error))?;
        if !view.chunks {
            return Ok(Change::full(Vec::new()));
        }
        let map = map::read(&file).map_err(|error| lost(disk, error))?;
        let held = if view.zeros == Some(true) { ExtentMap::unknown() } else { ExtentMap::empty() };
        Ok(Change::full(changed(&held, &map)))
    }

    /// What changed on a disk since the base.
    fn compare(&self, pair: &SnapshotPair<'_>, disk: &SnapshotDisk) -> Result<Change, Error> {
        let base_lost = |cause: String| Error::BaseLost { disk: disk.name.to_string(), cause };
        let target_file = self.open(pair.target(), disk).map_err(|error| lost(disk, error))?;
        let full = |held: ExtentMap, reason: &'static str| {
            let map = map::read(&target_file).map_err(|error| lost(disk, error))?;
            tracing::info!(snapshot = %pair.target().id, disk = %disk.name, reason, "full instead of incremental");
            Ok(Change { chunks: changed(&held, &map), mode: Mode::Full, reason: Some(reason) })
        };
        // A client may hold a file of this name, from whatever snapshot: zeros are listed too.
        let Some(base_disk) = pair.base().disk(&disk.name) else {
            return full(ExtentMap::unknown(), "the base has no such disk");
        };
        if base_disk.source != disk.source {
            return full(ExtentMap::unknown(), "the base's disk of this name is another disk");
        }
        let base_file = self.open(pair.base(), base_disk).map_err(|error| {
            let error = error.into();
            passing(base_disk, &error).unwrap_or_else(|| base_lost(error.to_string()))
        })?;
        match map::read_both(&base_file, &target_file) {
            Ok(Some(maps)) => {
                Ok(Change { chunks: changed(&maps.base, &maps.target), mode: Mode::Incremental, reason: None })
            }
            Ok(None) => full(ExtentMap::unknown(), "the base lies on another file system"),
            Err(CompareError::Target(error)) => Err(lost(disk, error)),
            Err(CompareError::Base(error)) => {
                Err(passing(base_disk, &error).unwrap_or_else(|| base_lost(error.to_string())))
            }
            Err(CompareError::Unsettled) => Err(Error::Unsettled { disk: disk.name.to_string() }),
        }
    }

    /// A snapshot's document, without maps.
    fn document(&self, snapshot: &Snapshot) -> wire::Snapshot {
        let terms = self.store.terms(snapshot.id).unwrap_or_else(|error| {
            tracing::error!(snapshot = %snapshot.id, %error, "it is not known how long it is kept");
            Terms::default()
        });
        let leased_until = terms.leased_until.filter(|until| *until > jiff::Timestamp::now());
        let id = snapshot.id.to_string();
        let vm = snapshot.vm.to_string();
        wire::Snapshot {
            id: id.clone(),
            vm_id: vm.clone(),
            vm_id_too: vm,
            disks: snapshot.disks.iter().map(|disk| self.disk_document(&id, snapshot, disk)).collect(),
            created_at: wire::time(snapshot.created_at),
            created_by: snapshot.created_by.clone(),
            consistency: snapshot.taken.consistency.as_str(),
            freeze_ms: snapshot.taken.freeze_ms,
            hooks: snapshot.taken.hooks.iter().map(hook_document).collect(),
            compare_to: None,
            expires_at: terms.expires_at.map(wire::time),
            leased_until: leased_until.map(wire::time),
        }
    }

    fn disk_document(&self, id: &str, snapshot: &Snapshot, disk: &SnapshotDisk) -> wire::SnapshotDisk {
        // A repository that is not in the config any more has no paths that could be named.
        let repository = self.repository(&disk.source.repository);
        let mount_point =
            repository.as_ref().map(|repository| repository.mount_point().to_path_buf()).unwrap_or_default();
        let path = repository
            .as_ref()
            .map(|repository| SnapshotDir::new(repository, snapshot.id).disk(&disk.name))
            .unwrap_or_default();
        wire::SnapshotDisk {
            parent_path: mount_point.join(&disk.source.path).display().to_string(),
            path: path.display().to_string(),
            snapshot_id: id.to_owned(),
            snapshot_id_too: id.to_owned(),
            name: disk.name.to_string(),
            repo_mountpoint: mount_point.display().to_string(),
            size: disk.identity.size,
            map: None,
            status: Status::Ok,
            status_reason: None,
        }
    }
}

fn hook_document(run: &HookRun) -> wire::HookRun {
    wire::HookRun {
        name: run.name.clone(),
        kind: run.kind.as_str(),
        stage: run.stage.as_str(),
        outcome: run.outcome.as_str(),
        duration_ms: run.duration_ms,
        detail: run.detail.clone(),
    }
}

/// What a client has to do with a disk, before it is put as it asked.
struct Change {
    chunks: Vec<Chunk>,
    mode: Mode,
    reason: Option<&'static str>,
}

impl Change {
    fn full(chunks: Vec<Chunk>) -> Self {
        Self { chunks, mode: Mode::Full, reason: None }
    }

    fn into_wire(self, size: u64, view: View) -> DiskMap {
        let sum = |kind| self.chunks.iter().filter(|chunk| chunk.kind == kind).map(|chunk| chunk.range.len()).sum();
        let data_bytes: u64 = sum(ChunkKind::Data);
        let zero_bytes = match self.mode {
            Mode::Incremental => sum(ChunkKind::Zero),
            // What is not data is zeros, whether or not it was listed.
            Mode::Full => size - data_bytes,
        };
        let zeros = view.zeros.unwrap_or(view.compare_to.is_some());
        let mut chunks = self.chunks;
        chunks.retain(|chunk| zeros || chunk.kind == ChunkKind::Data);
        if view.squash {
            chunks = squash(chunks);
        }
        let chunks = chunks.into_iter().map(WireChunk).collect();
        DiskMap { chunks, data_bytes, zero_bytes, mode: self.mode, reason: self.reason }
    }
}
