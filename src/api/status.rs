//! Body of `GET /status`: running and waiting work, and the state of the repositories.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{SessionStatus, SkippedFolder, Status, WebhookStatus, formats};

/// Running and waiting work, and the state of the service.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// The version of the program.
    pub version: String,
    /// The time of this answer.
    #[schema(value_type = formats::Time)]
    pub at: String,
    /// Log-ins that are being checked at the manager. Empty for users who are not admins of all VMs.
    pub log_ins: Queue<LogIn>,
    /// Requests for the cost of snapshots. None waits. Empty for users who are not admins of all VMs.
    pub cost_requests: Queue<CostRequest>,
    /// Creations of snapshots.
    pub creates: Queue<Create>,
    /// Downloads.
    pub exports: Queue<Export>,
    /// The repositories.
    pub repositories: Vec<RepositoryStatus>,
    /// The last check of the database, and its rebuilding after damage.
    #[serde(default)]
    #[schema(required, nullable = false)]
    pub database: Option<DatabaseStatus>,
    /// The certificates and revocation lists. Only for admins of all VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
    /// The config of the running service. Only for admins of all VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigStatus>,
    /// Deleted or unfinished snapshots whose files could not be removed yet. The service tries again each minute.
    pub leftovers: Vec<Leftover>,
    /// Operations with pending `post` hooks that have failed: something may still be frozen.
    pub owed_hooks: Vec<OwedHooks>,
    /// The log-ins. Only for admins of all VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionStatus>,
    /// The newest line of the audit file. Missing if the audit is in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditHead>,
    /// What the service can no longer do since it started. Only for admins of all VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement: Option<Confinement>,
    /// What an operator should change: secrets that others may read, a certificate that ends in less than 30 days. Only
    /// for admins of all VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
    /// The webhooks. Only for admins of all VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhooks: Option<Vec<WebhookStatus>>,
    /// The cost of each snapshot, with `cost=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<SnapshotCost>>,
}

/// A line of the audit file. `audit verify --expect SEQ:HASH` checks that it is still there.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditHead {
    /// The number of the line.
    pub seq: u64,
    /// The SHA-256 of the line.
    #[schema(value_type = formats::Digest)]
    pub hash: String,
}

/// What the service can no longer do, even if an attacker takes it over.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Confinement {
    /// Use capabilities that it does not need.
    pub capabilities: bool,
    /// Reach files that it does not need.
    pub files: bool,
    /// Make system calls that it does not need.
    pub system_calls: bool,
    /// Why something is not restricted, and what makes it weaker.
    pub problems: Vec<String>,
}

/// Work of one kind.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Queue<T> {
    /// The number of concurrency slots.
    pub limit: usize,
    /// Running work, oldest first.
    pub running: Vec<T>,
    /// Waiting work, oldest first.
    pub waiting: Vec<T>,
}

/// A running or waiting log-in.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogIn {
    /// The client's address; `unix:uid=0,pid=4711` for a process on the Unix socket.
    #[schema(required)]
    pub address: Option<String>,
    /// Seconds since it was queued, or since it started.
    pub seconds: f64,
}

/// A running request for the cost of snapshots.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CostRequest {
    pub user: String,
    /// Seconds since it started.
    pub seconds: f64,
}

/// A running or waiting creation of snapshots.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Create {
    /// Name of its VM, or of the first one.
    #[schema(value_type = formats::VmName)]
    pub vm_id: String,
    /// Names of all its VMs.
    #[serde(default)]
    #[schema(required, value_type = Vec<formats::VmName>)]
    pub vm_ids: Vec<String>,
    pub user: String,
    /// Seconds since it was queued, or since it started.
    pub seconds: f64,
}

/// A running or waiting download.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Export {
    #[schema(value_type = formats::VmName)]
    pub vm_id: String,
    #[schema(value_type = formats::Id)]
    pub snapshot_id: String,
    pub disk: String,
    pub user: String,
    /// The client's address.
    #[schema(required)]
    pub address: Option<String>,
    /// When it was queued or started.
    #[schema(value_type = formats::Time)]
    pub since: String,
    /// Seconds since then.
    pub seconds: f64,
    /// Bytes of its body.
    pub bytes_total: u64,
    /// Bytes that were handed to the connection.
    pub bytes_done: u64,
    /// The mean since it started.
    pub bytes_per_second: u64,
    /// The remaining time at that rate. `null` before the first byte.
    #[schema(required)]
    pub seconds_left: Option<u64>,
}

/// The state of a repository.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RepositoryStatus {
    pub id: String,
    /// The name that users gave it, if ovs-agent knows it.
    #[schema(required)]
    pub alias: Option<String>,
    #[schema(required)]
    pub mount_point: Option<String>,
    /// Size of the file system, bytes.
    #[schema(required)]
    pub total_bytes: Option<u64>,
    /// Bytes that are available.
    #[schema(required)]
    pub free_bytes: Option<u64>,
    /// With fewer available bytes, no snapshot is created.
    #[schema(required)]
    pub min_free_bytes: Option<u64>,
    /// Snapshots with a disk in it.
    pub snapshots: usize,
    /// Snapshot folders in it that the database does not know. `null` before the first scan.
    #[schema(required)]
    pub unknown_snapshots: Option<usize>,
    /// Whether it is available and writable.
    pub status: Status,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The state of the database.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DatabaseStatus {
    /// The time of the last check.
    #[schema(value_type = formats::Time)]
    pub checked_at: String,
    /// What that found. `error` if the database is damaged, could not be checked, or has a record that this version cannot
    /// read.
    pub status: Status,
    /// Why it is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether it was damaged, and not all snapshots were found since.
    pub rebuilding: bool,
    /// What the rebuilding could not search yet. Only for admins of all VMs, and missing if it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsearched: Vec<SkippedFolder>,
    /// When it was last rebuilt after damage.
    #[schema(required, value_type = Option<formats::Time>)]
    pub rebuilt_at: Option<String>,
    /// What the rebuilt database does not have: `expiries`, `leases`, `idempotency_keys`, `pending_post_hooks`, `proofs`,
    /// `checksums`, `tickets`, `refresh_tokens`, `revocations`.
    pub lost: Vec<String>,
}

/// The state of the files of `[api.tls]`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TlsStatus {
    /// When the files in use were loaded.
    #[schema(required, value_type = Option<formats::Time>)]
    pub loaded_at: Option<String>,
    /// When the first of the revocation lists expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Time>)]
    pub revocations_end: Option<String>,
    /// `error` if newer files could not be loaded, or a revocation list has expired.
    pub status: Status,
    /// Why it is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The config of the running service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigStatus {
    /// When the config in use was loaded: RFC 3339, UTC.
    #[schema(value_type = formats::Time)]
    pub loaded_at: String,
    /// `error` if it could not be loaded again, and all keys stay as they were.
    pub status: Status,
    /// Why it could not be loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Keys that were changed since the start, and that only a restart changes in the service.
    pub needs_restart: Vec<String>,
}

impl ConfigStatus {
    /// What an operator has to do about the config, each in a line.
    pub fn problems(&self) -> Vec<String> {
        let refused = self.problem.iter().map(|problem| format!("the config could not be loaded again: {problem}"));
        let keys = Some(self.needs_restart.join(", ")).filter(|keys| !keys.is_empty());
        refused.chain(keys.map(|keys| format!("changed keys that need a restart of the service: {keys}"))).collect()
    }
}

/// The failed post hooks of one operation.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OwedHooks {
    /// Id of the snapshot, if it is known.
    #[schema(required, value_type = Option<formats::Id>)]
    pub snapshot_id: Option<String>,
    /// Name of its VM, if it is known.
    #[schema(required, value_type = Option<formats::VmName>)]
    pub vm_id: Option<String>,
    /// The operation, if it is known.
    #[schema(required)]
    pub operation: Option<String>,
    /// The hooks. Empty if they are unknown.
    pub hooks: Vec<String>,
    /// The number of failed calls.
    pub attempts: u32,
    /// Why they cannot be called again: their record is unreadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A deleted or unfinished snapshot whose files still exist.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Leftover {
    #[schema(value_type = formats::Id)]
    pub id: String,
    /// Name of its VM.
    #[schema(value_type = formats::VmName)]
    pub vm_id: String,
    /// Ids of its repositories.
    pub repositories: Vec<String>,
    /// Why the files could not be removed.
    pub reason: String,
}

/// The cost of a snapshot.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotCost {
    #[schema(value_type = formats::Id)]
    pub id: String,
    /// Name of its VM.
    #[schema(value_type = formats::VmName)]
    pub vm_id: String,
    /// When its disks were cloned.
    #[schema(value_type = formats::Time)]
    pub created_at: String,
    /// Bytes that deleting only this snapshot frees: blocks that neither the live disk nor another snapshot of the disk
    /// references. On XFS, blocks shared with an unrelated file are not counted; OCFS2 does not report such sharing, so
    /// there they are. `null`, with a `reason`, if a file of the disk cannot be read, or if the disk and its snapshots
    /// together have more than 1,048,576 extents.
    #[schema(required)]
    pub exclusive_bytes: Option<u64>,
    /// Bytes without a physical address.
    pub unknown_bytes: u64,
    /// Why `exclusive_bytes` is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
