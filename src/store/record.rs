//! The stored form of a snapshot: postcard bytes. It is separate from the model, so that each can change alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::model::{
    Annotations, DiskSource, FileIdentity, HookRun, Provenance, RepositoryId, Seal, Snapshot, SnapshotDisk,
    SnapshotFiles, SnapshotId, UnfinishedSnapshot, VmId, VolumeId,
};

/// What the database knows of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Its files are being made. After a crash they are removed.
    Creating(SnapshotFiles),
    /// It is complete and on stable storage. Clients see no other snapshots.
    Ready(Snapshot),
    /// Its files are being removed.
    Deleting(SnapshotFiles),
}

impl Record {
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_))
    }

    pub fn vm(&self) -> &VmId {
        match self {
            Self::Ready(snapshot) => &snapshot.vm,
            Self::Creating(files) | Self::Deleting(files) => &files.vm,
        }
    }

    /// The order of the records of a VM, as [`Snapshot::order`]. An unfinished snapshot has no time.
    pub(super) fn order(&self) -> (u64, bool, jiff::Timestamp, SnapshotId) {
        match self {
            Self::Ready(snapshot) => (snapshot.sequence, false, snapshot.created_at, snapshot.id),
            Self::Creating(files) | Self::Deleting(files) => {
                (files.sequence, true, jiff::Timestamp::default(), files.id)
            }
        }
    }

    pub fn state(&self) -> State {
        match self {
            Self::Creating(_) => State::Creating,
            Self::Ready(_) => State::Ready,
            Self::Deleting(_) => State::Deleting,
        }
    }

    /// The labels and the description of a complete snapshot.
    pub fn annotations(&self) -> Option<&Annotations> {
        match self {
            Self::Ready(snapshot) => Some(&snapshot.annotations),
            Self::Creating(_) | Self::Deleting(_) => None,
        }
    }

    /// The repositories that hold files of the snapshot, each once.
    pub fn repositories(&self) -> Vec<&RepositoryId> {
        match self {
            Self::Ready(snapshot) => snapshot.repositories(),
            Self::Creating(files) | Self::Deleting(files) => files.repositories(),
        }
    }

    pub(super) fn ready(self) -> Option<Snapshot> {
        match self {
            Self::Ready(snapshot) => Some(snapshot),
            Self::Creating(_) | Self::Deleting(_) => None,
        }
    }

    /// The files of a snapshot that is not complete.
    pub(super) fn unfinished(self) -> Option<SnapshotFiles> {
        match self {
            Self::Ready(_) => None,
            Self::Creating(files) | Self::Deleting(files) => Some(files),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Creating,
    Ready,
    Deleting,
}

/// The stored bytes: postcard writes the fields in this order, without names.
#[derive(Serialize, Deserialize)]
struct StoredRecord {
    state: State,
    vm: String,
    sequence: u64,
    created_at_ns: i128,
    created_by: String,
    disks: Vec<RecordDisk>,
    consistency: String,
    freeze_ms: Option<u64>,
    hooks: Vec<RecordHook>,
    /// One for each disk, in the same order. Empty in records from before files were recorded.
    files: Vec<RecordFile>,
    labels: BTreeMap<String, String>,
    description: Option<String>,
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

pub fn encode(state: State, snapshot: &Snapshot) -> Result<Vec<u8>, StoreError> {
    let record = StoredRecord {
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
        labels: snapshot.annotations.labels().clone(),
        description: snapshot.annotations.description().map(str::to_owned),
    };
    postcard::to_stdvec(&record).map_err(|error| StoreError::Record { id: snapshot.id, cause: error.to_string() })
}

/// The record of a snapshot that is being made. Its files have no identities yet, and the record has zeros in their
/// place.
pub(super) fn encode_unfinished(unfinished: &UnfinishedSnapshot) -> Result<Vec<u8>, StoreError> {
    let draft = &unfinished.draft;
    let disks = draft.disks.iter().map(|disk| SnapshotDisk {
        name: disk.name.clone(),
        source: disk.source.clone(),
        identity: FileIdentity { inode: 0, size: disk.size, changed_ns: 0 },
        volume: disk.volume,
        seal: None,
    });
    let placeholder = Snapshot {
        id: draft.id,
        vm: draft.vm.clone(),
        sequence: unfinished.sequence,
        created_at: draft.created_at,
        created_by: draft.created_by.clone(),
        disks: disks.collect(),
        provenance: Provenance::crash_consistent(),
        annotations: draft.annotations.clone(),
    };
    encode(State::Creating, &placeholder)
}

/// The record in another state.
pub(super) fn with_state(id: SnapshotId, bytes: &[u8], state: State) -> Result<Vec<u8>, StoreError> {
    let record = postcard::from_bytes::<StoredRecord>(bytes);
    let changed = record.and_then(|record| postcard::to_stdvec(&StoredRecord { state, ..record }));
    changed.map_err(|error| StoreError::Record { id, cause: error.to_string() })
}

pub fn decode(id: u128, bytes: &[u8]) -> Result<Record, StoreError> {
    let id = SnapshotId::from_u128(id);
    let (state, snapshot) = stored(id, bytes).map_err(|cause| StoreError::Record { id, cause })?;
    Ok(match state {
        State::Creating => Record::Creating(SnapshotFiles::from(&snapshot)),
        State::Ready => Record::Ready(snapshot),
        State::Deleting => Record::Deleting(SnapshotFiles::from(&snapshot)),
    })
}

fn stored(id: SnapshotId, bytes: &[u8]) -> Result<(State, Snapshot), String> {
    fn damaged(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let record: StoredRecord = postcard::from_bytes(bytes).map_err(damaged)?;
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
        annotations: Annotations::new(record.labels, record.description).map_err(damaged)?,
    };
    Ok((record.state, snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PlannedDisk, SnapshotDraft};

    /// These bytes are in the databases of running services.
    #[test]
    fn an_unfinished_record_stores_zeros_for_what_is_not_known() {
        let disk = PlannedDisk {
            name: "a.img".parse().unwrap(),
            source: DiskSource { repository: "r".parse().unwrap(), path: "d/a".to_owned() },
            size: 4096,
            volume: Some(VolumeId([0xa5; 16])),
        };
        let draft = SnapshotDraft {
            id: SnapshotId::from_u128(7),
            vm: "0004fb00000600000000000000000001".parse().unwrap(),
            created_at: jiff::Timestamp::from_nanosecond(1).unwrap(),
            created_by: "admin".to_owned(),
            disks: vec![disk],
            annotations: Annotations::new([("k".to_owned(), "v".to_owned())].into(), None).unwrap(),
        };
        let unfinished = UnfinishedSnapshot::new(draft, 5);
        let bytes = encode_unfinished(&unfinished).unwrap();
        let expected = [
            b"\x00\x200004fb00000600000000000000000001\x05\x02\x05admin".as_slice(),
            b"\x01\x05a.img\x01r\x03d/a\x80\x20\x00\x00",
            b"\x05crash\x00\x00",
            b"\x01\x01",
            &[0xa5; 16],
            b"\x00\x01\x01k\x01v\x00",
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(decode(7, &bytes).unwrap(), Record::Creating(unfinished.files()));
    }
}
