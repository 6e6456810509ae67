//! The JSON bodies of the API, which extend those of the original exporter.
//!
//! The types serialize and deserialize, so that a client in the same program can use them.

mod capabilities;
mod checksum;
mod disk_map;
mod error_code;
pub mod formats;
mod inventory;
mod notification;
mod request;
mod session;
mod status;
mod ticket;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::model::Definition;
pub use capabilities::{Bounds, Capabilities, Limits};
pub use checksum::Checksum;
pub use disk_map::{Chunk, ChunkPage, ChunkType, DiskMap, Mode};
pub use error_code::ErrorCode;
pub use inventory::{Repository, Vm, VmDisk};
pub use notification::{
    CertificateEvent, DatabaseEvent, DeletionCause, EventDisk, FailureEvent, HookEvent, NOTIFICATION_SCHEMA,
    Notification, RepositoryEvent, SnapshotEvent, TestEvent, TestNotification, TestedWebhook, WebhookError,
    WebhookStatus,
};

pub use request::{CreateSnapshot, CreateSnapshots, Lease, Quiesce, TakeLease};
pub use session::{CertificateUser, Login, Refresh, Revoke, Revoked, SessionStatus, Token};
pub use status::{
    AuditHead, ConfigStatus, Confinement, CostRequest, Create, DatabaseStatus, Export, Leftover, LogIn, OwedHooks,
    Queue, RepositoryStatus, ServiceStatus, SnapshotCost, TlsStatus,
};

pub use ticket::{CreateTicket, NewTicket, Ticket, TicketOp};

/// Formats a time for bodies: RFC 3339, UTC, with milliseconds, because some parsers accept at most six digits.
pub fn time(at: jiff::Timestamp) -> String {
    format!("{at:.3}")
}

/// Whether an entry of a listing can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Ok,
    /// It cannot be used; `reason` says why.
    Error,
}

/// A snapshot of the disks of a VM. With a comparison, what has changed since its base.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d",
    "vm_id": "0004fb00000600000000000000000001",
    "vmID": "0004fb00000600000000000000000001",
    "created_at": "2026-11-27T09:14:03.127Z",
    "created_by": "admin",
    "consistency": "crash",
    "hooks": [],
    "compare_to": "0e8f2b0a-77c3-4b57-8d0c-6a1d5f1f9e42",
    "labels": {"job": "nightly"},
    "permissions": ["view", "read"],
    "disks": [{
        "parent_path": "/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718/VirtualDisks/system.img",
        "path": "/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718/CoriolisSnapshots/…/system.img",
        "snapshot_id": "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d",
        "snapshotID": "6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d",
        "name": "system.img",
        "repo_mountpoint": "/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718",
        "size": 10737418240_u64,
        "mode": "incremental",
        "chunks": [
            {"start": 0, "length": 65536, "physical_start": 1073741824, "type": "data"},
            {"start": 1048576, "length": 4096, "physical_start": 0, "type": "zero"}
        ],
        "data_bytes": 65536,
        "zero_bytes": 4096,
        "status": "ok"
    }]
}))]
pub struct Snapshot {
    #[schema(value_type = formats::Id)]
    pub id: String,
    /// The name of its VM.
    #[schema(value_type = formats::VmName)]
    pub vm_id: String,
    /// Another name of `vm_id`, because the original exporter's documentation and code spell it differently.
    #[serde(rename = "vmID")]
    #[schema(value_type = formats::VmName)]
    pub vm_id_legacy: String,
    /// When its disks were cloned.
    #[schema(value_type = formats::Time)]
    pub created_at: String,
    /// The user that created it.
    pub created_by: String,
    /// The state of a restored disk: `crash`, as after a power cut, or `quiesced`.
    #[schema(value_type = formats::Consistency)]
    pub consistency: String,
    /// Why it is `crash`, if a hook reported `quiesced`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency_reason: Option<String>,
    /// The longest time that the guest may have been frozen, milliseconds, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_ms: Option<u64>,
    /// The calls of hooks, in order.
    pub hooks: Vec<HookRun>,
    /// The id of the base, with `compareTo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Id>)]
    pub compare_to: Option<String>,
    /// `true` on the way back, otherwise missing: the disks are those of the base, with the chunks that lead back to it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub reverse: bool,
    #[serde(flatten)]
    pub retention: Retention,
    /// Its labels, which the user that created it has set.
    #[serde(default)]
    #[schema(required, value_type = formats::Labels)]
    pub labels: BTreeMap<String, String>,
    /// Its description, which the user that created it has set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What the user of the request may do with it: `view`, `read`, `delete_own` (only if the user created it),
    /// `administer`; `create` is for others with its labels. Missing while the service cannot tell, because a rule names VMs
    /// by friendly names, which it has not read yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub permissions: Option<Vec<Cow<'static, str>>>,
    /// The VM's definition when the snapshot was planned; missing if the service does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Definition>,
    /// Its disks; with `reverse`, those of the base.
    // Last, because the service streams them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(required)]
    pub disks: Vec<SnapshotDisk>,
}

/// For members that are written only if they are true.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// How long a snapshot is kept.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Retention {
    /// When the snapshot expires, if it does. A lease extends this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Time>)]
    pub expires_at: Option<String>,
    /// Until when a lease keeps it, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Time>)]
    pub leased_until: Option<String>,
}

/// A call of a hook.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HookRun {
    /// The program's file name, or the server's URL.
    pub name: String,
    /// Whether it is a program or a server.
    #[schema(value_type = formats::HookKind)]
    pub kind: String,
    /// When it was called.
    #[schema(value_type = formats::HookStage)]
    pub stage: String,
    /// How the call ended.
    #[schema(value_type = formats::HookOutcome)]
    pub outcome: String,
    /// How long it took, milliseconds.
    pub duration_ms: u64,
    /// Details about its end, for people.
    pub detail: String,
}

impl From<&crate::model::HookRun> for HookRun {
    fn from(run: &crate::model::HookRun) -> Self {
        Self {
            name: run.name.clone(),
            kind: run.kind.as_str().to_owned(),
            stage: run.stage.as_str().to_owned(),
            outcome: run.outcome.as_str().to_owned(),
            duration_ms: run.duration_ms,
            detail: run.detail.clone(),
        }
    }
}

/// A disk of a snapshot.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDisk {
    /// The path of the VM's disk.
    pub parent_path: String,
    /// The path of the snapshot's file.
    pub path: String,
    #[schema(value_type = formats::Id)]
    pub snapshot_id: String,
    /// Another name of `snapshot_id`.
    #[serde(rename = "snapshotID")]
    #[schema(value_type = formats::Id)]
    pub snapshot_id_legacy: String,
    /// Unique in the snapshot: the file name, with a prefix if an earlier disk has the same.
    pub name: String,
    /// The mount point of its repository.
    pub repo_mountpoint: String,
    /// Size in bytes.
    pub size: u64,
    /// What a client must fetch or fill with zeros. Absent with `chunks=false`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub map: Option<DiskMap>,
    /// `error`, only in lists and for a new snapshot: its file is missing or modified, or its repository is unavailable.
    // After the map, because reading the map may find a fault.
    pub status: Status,
    /// Why `status` is `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
}

/// What was adopted.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"dry_run": true, "adopted": [], "skipped": [], "left": []}))]
pub struct Adoption {
    /// Whether this is only a report, and nothing was changed.
    pub dry_run: bool,
    /// The snapshots that were adopted, or would be.
    pub adopted: Vec<AdoptedSnapshot>,
    /// The folders that were not adopted.
    #[serde(default)]
    #[schema(required)]
    pub skipped: Vec<SkippedFolder>,
    /// The former name of `skipped`.
    #[serde(rename = "left", default)]
    #[schema(required)]
    pub skipped_legacy: Vec<SkippedFolder>,
}

/// An adopted snapshot.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AdoptedSnapshot {
    #[schema(value_type = formats::Id)]
    pub id: String,
    /// Name of its VM.
    #[schema(value_type = formats::VmName)]
    pub vm_id: String,
    /// The earliest time of its files, or the time in its manifest.
    #[schema(value_type = formats::Time)]
    pub created_at: String,
    /// Its folders.
    pub paths: Vec<String>,
}

/// A folder that was skipped.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SkippedFolder {
    pub path: String,
    /// Why it was skipped.
    pub reason: String,
}

/// The body of every error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "error": "Conflict",
    "details": "a file of the base is missing: make a full copy into an empty file",
    "code": "base_lost",
    "request_id": "0c9c2e0b-5a0e-4b7e-9d53-5b1c1f6e7a90"
}))]
pub struct Error {
    /// The name of the HTTP status, for people.
    pub error: String,
    /// What happened, and what to do, for people.
    pub details: String,
    /// Stable; for programs.
    pub code: ErrorCode,
    /// The id of the request in the log.
    #[schema(value_type = formats::Id)]
    pub request_id: String,
}

/// The health of the service.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"status": "ok", "problems": []}))]
pub struct Health {
    pub status: Status,
    /// Why it is not ready. Clients without a token can read this, so it contains no paths.
    pub problems: Vec<String>,
}
