//! A snapshot as it is stored: postcard bytes, apart from the model so that each can change alone.

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::model::{DiskSource, FileIdentity, HookRun, Provenance, Seal, Snapshot, SnapshotDisk, SnapshotId, VolumeId};

/// How far a snapshot has come. Only ready ones are shown to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Its files are being made; the identities of its disks are not known yet.
    Creating,
    /// Complete, on stable storage.
    Ready,
    /// Its files are being removed.
    Deleting,
}

#[derive(Serialize, Deserialize)]
struct Record {
    state: State,
    vm: String,
    sequence: u64,
    created_at_ns: i128,
    created_by: String,
    disks: Vec<RecordDisk>,
    consistency: String,
    freeze_ms: Option<u64>,
    hooks: Vec<RecordHook>,
    /// One for each disk, in their order; none where nothing was recorded.
    files: Vec<RecordFile>,
}

#[derive(Serialize, Deserialize)]
struct RecordDisk {
    name: String,
    repository: String,
    source: String,
    size: u64,
    inode: u64,
    changed_ns: i128,
}

#[derive(Default, Serialize, Deserialize)]
struct RecordFile {
    volume: Option<[u8; 16]>,
    seal: Option<RecordSeal>,
}

#[derive(Serialize, Deserialize)]
struct RecordSeal {
    modified_ns: i128,
    map: Option<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct RecordHook {
    name: String,
    kind: String,
    stage: String,
    outcome: String,
    duration_ms: u64,
    detail: String,
}

pub(super) fn encode(state: State, snapshot: &Snapshot) -> Result<Vec<u8>, StoreError> {
    let record = Record {
        state,
        vm: snapshot.vm.to_string(),
        sequence: snapshot.sequence,
        created_at_ns: snapshot.created_at.as_nanosecond(),
        created_by: snapshot.created_by.clone(),
        disks: snapshot
            .disks
            .iter()
            .map(|disk| RecordDisk {
                name: disk.name.to_string(),
                repository: disk.source.repository.to_string(),
                source: disk.source.path.clone(),
                size: disk.identity.size,
                inode: disk.identity.inode,
                changed_ns: disk.identity.changed_ns,
            })
            .collect(),
        consistency: snapshot.provenance.consistency.as_str().to_owned(),
        freeze_ms: snapshot.provenance.freeze_ms,
        hooks: snapshot
            .provenance
            .hooks
            .iter()
            .map(|run| RecordHook {
                name: run.name.clone(),
                kind: run.kind.as_str().to_owned(),
                stage: run.stage.as_str().to_owned(),
                outcome: run.outcome.as_str().to_owned(),
                duration_ms: run.duration_ms,
                detail: run.detail.clone(),
            })
            .collect(),
        files: snapshot
            .disks
            .iter()
            .map(|disk| RecordFile {
                volume: disk.volume.map(|volume| volume.0),
                seal: disk.seal.map(|Seal { modified_ns, map }| RecordSeal { modified_ns, map }),
            })
            .collect(),
    };
    postcard::to_stdvec(&record).map_err(|error| StoreError::Record { id: snapshot.id, cause: error.to_string() })
}

pub(super) fn decode(id: u128, bytes: &[u8]) -> Result<(State, Snapshot), StoreError> {
    let id = SnapshotId::from_u128(id);
    record(id, bytes).map_err(|cause| StoreError::Record { id, cause })
}

fn record(id: SnapshotId, bytes: &[u8]) -> Result<(State, Snapshot), String> {
    fn damaged(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let record: Record = postcard::from_bytes(bytes).map_err(damaged)?;
    let mut files = record.files.into_iter();
    let disk = |disk: RecordDisk| {
        let file = files.next().unwrap_or_default();
        Ok(SnapshotDisk {
            name: disk.name.parse().map_err(damaged)?,
            source: DiskSource { repository: disk.repository.parse().map_err(damaged)?, path: disk.source },
            identity: FileIdentity { inode: disk.inode, size: disk.size, changed_ns: disk.changed_ns },
            volume: file.volume.map(VolumeId),
            seal: file.seal.map(|RecordSeal { modified_ns, map }| Seal { modified_ns, map }),
        })
    };
    let hook = |run: RecordHook| {
        Ok(HookRun {
            name: run.name,
            kind: run.kind.parse().map_err(damaged)?,
            stage: run.stage.parse().map_err(damaged)?,
            outcome: run.outcome.parse().map_err(damaged)?,
            duration_ms: run.duration_ms,
            detail: run.detail,
        })
    };
    let provenance = Provenance {
        consistency: record.consistency.parse().map_err(damaged)?,
        freeze_ms: record.freeze_ms,
        hooks: record.hooks.into_iter().map(hook).collect::<Result<_, String>>()?,
    };
    let snapshot = Snapshot {
        id,
        vm: record.vm.parse().map_err(damaged)?,
        sequence: record.sequence,
        created_at: jiff::Timestamp::from_nanosecond(record.created_at_ns).map_err(damaged)?,
        created_by: record.created_by,
        disks: record.disks.into_iter().map(disk).collect::<Result<_, String>>()?,
        provenance,
    };
    Ok((record.state, snapshot))
}
