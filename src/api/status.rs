//! Body of `GET /status`: running and waiting work, and the state of the repositories.

use serde::{Deserialize, Serialize};

use super::{SessionStatus, SkippedFolder, Status};

/// The body.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub version: String,
    /// The time of this status: RFC 3339, UTC.
    pub at: String,
    /// Log-ins that are checked at the manager.
    pub log_ins: Queue<LogIn>,
    /// Requests for the cost of snapshots. None waits.
    pub cost_requests: Queue<CostRequest>,
    /// Creations of snapshots.
    pub creates: Queue<Create>,
    /// Downloads.
    pub exports: Queue<Export>,
    pub repositories: Vec<RepositoryStatus>,
    /// `None` from services before 0.3.0.
    #[serde(default)]
    pub database: Option<DatabaseStatus>,
    /// Only for admins of all VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
    /// The config of the running service. Only for admins of all VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigStatus>,
    /// Deleted or unfinished snapshots whose files could not be removed yet.
    pub leftovers: Vec<Leftover>,
    /// Pending post hooks that have failed. Their guests may still be frozen.
    pub owed_hooks: Vec<OwedHooks>,
    /// The log-ins. Missing for users who are not administrators, and from services before 0.3.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionStatus>,
    /// The newest line of the audit file. Missing if the audit is in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditHead>,
    /// What the service can no longer do since it started. Only for administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement: Option<Confinement>,
    /// What an operator should change: secrets that others may read, certificates that end soon. Only for
    /// administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
    /// The cost of each snapshot, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<SnapshotCost>>,
}

/// A line of the audit file. `audit verify --expect SEQ:HASH` checks that it is still there.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditHead {
    /// The number of the line.
    pub seq: u64,
    /// The SHA-256 of the line.
    pub hash: String,
}

/// What the service can no longer do, even if an attacker takes it over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
#[derive(Debug, Serialize, Deserialize)]
pub struct Queue<T> {
    /// The number of concurrency slots.
    pub limit: usize,
    /// Running work, oldest first.
    pub running: Vec<T>,
    /// Waiting work, oldest first.
    pub waiting: Vec<T>,
}

/// A running or waiting log-in.
#[derive(Debug, Serialize, Deserialize)]
pub struct LogIn {
    /// The client's address.
    pub address: Option<String>,
    /// Seconds since it was queued, or since it started.
    pub seconds: f64,
}

/// A running request for the cost of snapshots.
#[derive(Debug, Serialize, Deserialize)]
pub struct CostRequest {
    pub user: String,
    /// Seconds since it started.
    pub seconds: f64,
}

/// A running or waiting creation of snapshots.
#[derive(Debug, Serialize, Deserialize)]
pub struct Create {
    /// Name of its VM, or of the first one.
    pub vm_id: String,
    /// Names of all its VMs.
    #[serde(default)]
    pub vm_ids: Vec<String>,
    pub user: String,
    /// Seconds since it was queued, or since it started.
    pub seconds: f64,
}

/// A running or waiting download.
#[derive(Debug, Serialize, Deserialize)]
pub struct Export {
    pub vm_id: String,
    pub snapshot_id: String,
    pub disk: String,
    pub user: String,
    /// The client's address.
    pub address: Option<String>,
    /// When it was queued or started: RFC 3339, UTC.
    pub since: String,
    /// Seconds since then.
    pub seconds: f64,
    /// Bytes of this body.
    pub bytes_total: u64,
    /// Bytes that were handed to the connection.
    pub bytes_done: u64,
    /// The mean since it started.
    pub bytes_per_second: u64,
    /// The remaining time at that rate. `null` before the first byte.
    pub seconds_left: Option<u64>,
}

/// The state of a repository.
#[derive(Debug, Serialize, Deserialize)]
pub struct RepositoryStatus {
    pub id: String,
    /// The name that users gave it, if ovs-agent knows it.
    pub alias: Option<String>,
    pub mount_point: Option<String>,
    /// Size of the file system, bytes.
    pub total_bytes: Option<u64>,
    /// Bytes that are available.
    pub free_bytes: Option<u64>,
    /// With fewer available bytes, no snapshot is created.
    pub min_free_bytes: Option<u64>,
    /// Snapshots with a disk in it.
    pub snapshots: usize,
    /// Snapshots in it that the database does not know. `null` before the first scan.
    pub unknown_snapshots: Option<usize>,
    /// Whether it is available and writable.
    pub status: Status,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The state of the database.
#[derive(Debug, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// The time of the last check: RFC 3339, UTC.
    pub checked_at: String,
    /// What that found. `error` if the database is damaged, or could not be checked.
    pub status: Status,
    /// Why it is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether it was damaged, and not all snapshots were found since.
    pub rebuilding: bool,
    /// What the rebuilding could not search yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsearched: Vec<SkippedFolder>,
    /// When it was last rebuilt: RFC 3339, UTC.
    pub rebuilt_at: Option<String>,
    /// What the rebuilding has lost.
    pub lost: Vec<String>,
}

/// The state of the files of `[api.tls]`.
#[derive(Debug, Serialize, Deserialize)]
pub struct TlsStatus {
    /// When the files in use were loaded: RFC 3339, UTC.
    pub loaded_at: Option<String>,
    /// When the first of the revocation lists expires: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocations_end: Option<String>,
    /// `error` if newer files could not be loaded, or a revocation list has expired.
    pub status: Status,
    /// Why it is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The config of the running service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// When the config in use was loaded: RFC 3339, UTC.
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
#[derive(Debug, Serialize, Deserialize)]
pub struct OwedHooks {
    /// Id of the snapshot, if it is known.
    pub snapshot_id: Option<String>,
    /// Name of its VM, if it is known.
    pub vm_id: Option<String>,
    /// The operation, if it is known.
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
#[derive(Debug, Serialize, Deserialize)]
pub struct Leftover {
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    /// Ids of its repositories.
    pub repositories: Vec<String>,
    /// Why the files could not be removed.
    pub reason: String,
}

/// The cost of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotCost {
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    /// When its disks were cloned: RFC 3339, UTC.
    pub created_at: String,
    /// Bytes that only it references, which its deletion would free. `null` if that is unknown.
    pub exclusive_bytes: Option<u64>,
    /// Bytes of it whose other references are unknown.
    pub unknown_bytes: u64,
    /// Why `exclusive_bytes` is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
