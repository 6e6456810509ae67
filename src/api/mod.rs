//! The JSON bodies of the API, which extend those of the original exporter.
//!
//! The types serialize and deserialize, so that a client in the same program can use them.

mod capabilities;
mod checksum;
mod disk_map;
mod error_code;
mod request;
mod session;
mod status;
mod ticket;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::model::Definition;
pub use capabilities::{Bounds, Capabilities, Limits};
pub use checksum::Checksum;
pub use disk_map::{Chunk, ChunkPage, ChunkType, DiskMap, Mode};
pub use error_code::ErrorCode;

pub use request::{CreateSnapshot, CreateSnapshots, Lease, Quiesce, TakeLease};
pub use session::{Login, Refresh, Revoke, Revoked, SessionStatus, Token};
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Ok,
    /// It cannot be used; `reason` says why.
    Error,
}

/// A virtual machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct Vm {
    /// The name that users gave it.
    pub friendly_name: String,
    /// 32 hexadecimal digits.
    pub name: String,
    /// With dashes.
    pub uuid: String,
    /// In the order of the definition.
    pub disks: Vec<VmDisk>,
    /// Whether a snapshot of it is possible.
    pub snapshot_compatible: bool,
    /// Ids of its snapshots, oldest first.
    pub snapshots: Vec<String>,
    /// Whether it may have more: the database is being rebuilt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub snapshots_incomplete: bool,
    /// Whether its definition can be used. The original exporter lists only such VMs, without this member.
    #[serde(default)]
    pub status: Status,
    /// Why the definition is unusable, or why no snapshot is possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Id of a repository that cannot be read. Then this entry is not a VM, but a placeholder for all VMs in that
    /// repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable_repository: Option<String>,
}

/// A disk of a virtual machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmDisk {
    /// File name.
    pub name: String,
    /// Path in the definition.
    pub path: String,
    /// Device in the guest, such as `xvda`.
    pub device_name: String,
    /// Whether a snapshot includes it.
    pub snapshot_compatible: bool,
    /// `r`, `w`, or `w!` for a disk that several VMs share.
    pub mode: String,
    /// Size in bytes, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The name that users gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub friendly_name: Option<String>,
    /// Id of its repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Why a snapshot omits it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incompatible_reason: Option<String>,
}

/// A repository.
#[derive(Debug, Serialize, Deserialize)]
pub struct Repository {
    pub id: String,
    /// The name that users gave it, if ovs-agent knows it.
    pub alias: Option<String>,
    pub mount_point: Option<String>,
    /// The mounted file system, such as `ocfs2`.
    pub filesystem: Option<String>,
    /// The manager that owns it, if ovs-agent knows it.
    pub manager_uuid: Option<String>,
    /// Version of its layout, if ovs-agent knows it.
    pub version: Option<String>,
    /// Whether files in it can be snapshotted, according to a test.
    pub reflink: bool,
    /// Size of the file system, bytes.
    pub total_bytes: Option<u64>,
    /// Bytes that are available.
    pub free_bytes: Option<u64>,
    /// Whether it is available and matches ovs-agent's entry.
    pub status: Status,
    /// Why not, or why files in it cannot be snapshotted.
    pub reason: Option<String>,
}

/// A snapshot. The VM's name is in two members, because the original exporter's documentation and code spell it
/// differently.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    #[serde(rename = "vmID")]
    pub vm_id_legacy: String,
    /// When its disks were cloned: RFC 3339, UTC.
    pub created_at: String,
    /// The user that created it.
    pub created_by: String,
    /// The state of a restored disk: `crash`, as after a power cut, or `quiesced`.
    pub consistency: String,
    /// Why it is `crash`, if a hook reported `quiesced`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency_reason: Option<String>,
    /// The longest time that the guest may have been frozen, milliseconds, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_ms: Option<u64>,
    /// The calls of hooks, in order.
    pub hooks: Vec<HookRun>,
    /// Id of the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare_to: Option<String>,
    /// Whether the disks are those of the base, with the chunks that lead back to it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub reverse: bool,
    #[serde(flatten)]
    pub retention: Retention,
    /// Set by the user that created it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Set by the user that created it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The VM's definition when the snapshot was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Definition>,
    /// Last, because the server streams them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<SnapshotDisk>,
}

/// For members that are written only if they are true.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// How long a snapshot is kept.
#[derive(Debug, Serialize, Deserialize)]
pub struct Retention {
    /// When the snapshot expires: RFC 3339, UTC. A lease extends this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When its last lease ends: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leased_until: Option<String>,
}

/// A call of a hook.
#[derive(Debug, Serialize, Deserialize)]
pub struct HookRun {
    /// The program's file name, or the server's URL.
    pub name: String,
    /// `directory` or `sync`.
    pub kind: String,
    /// `pre` or `post`.
    pub stage: String,
    /// `ok`, `failed`, `timeout` or `skipped`.
    pub outcome: String,
    pub duration_ms: u64,
    /// Details about its end, for people.
    pub detail: String,
}

/// A disk of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotDisk {
    /// Path of the VM's disk.
    pub parent_path: String,
    /// Path of the snapshot's file.
    pub path: String,
    pub snapshot_id: String,
    #[serde(rename = "snapshotID")]
    pub snapshot_id_legacy: String,
    /// Unique in the snapshot.
    pub name: String,
    /// Mount point of its repository.
    pub repo_mountpoint: String,
    /// Size in bytes.
    pub size: u64,
    /// What a client must fetch or fill with zeros. Absent with `chunks=false`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub map: Option<DiskMap>,
    /// Whether its file exists unchanged. After the map, because reading the map may find a fault.
    pub status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
}

/// Response to `POST /adopt`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Adoption {
    /// Whether this is only a report, and nothing was changed.
    pub dry_run: bool,
    /// The snapshots that were adopted, or would be.
    pub adopted: Vec<AdoptedSnapshot>,
    /// The folders that were not adopted.
    #[serde(default)]
    pub skipped: Vec<SkippedFolder>,
    /// The former name of `skipped`.
    #[serde(rename = "left", default)]
    pub skipped_legacy: Vec<SkippedFolder>,
}

/// An adopted snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct AdoptedSnapshot {
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    /// When it was created, according to its files: RFC 3339, UTC.
    pub created_at: String,
    /// Its folders.
    pub paths: Vec<String>,
}

/// A folder that was not adopted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SkippedFolder {
    pub path: String,
    /// Why it was not adopted.
    pub reason: String,
}

/// The body of every error.
#[derive(Debug, Serialize, Deserialize)]
pub struct Error {
    /// The name of the HTTP status.
    pub error: String,
    /// What happened, and what to do.
    pub details: String,
    /// Stable; for programs.
    pub code: ErrorCode,
    /// The id of the request in the log.
    pub request_id: String,
}

/// Body of `GET /healthz` and `GET /readyz`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Health {
    pub status: Status,
    /// Unauthenticated clients can read this, so it contains no paths.
    pub problems: Vec<String>,
}
