//! Body of `GET /status`: what is running, what waits, how full it is.

use serde::{Deserialize, Serialize};

use super::Status;

/// The whole answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The program's version.
    pub version: String,
    /// When this was so: RFC 3339, UTC.
    pub at: String,
    /// Snapshots that are being made.
    pub creates: Queue<Create>,
    /// Bodies of disks that are being sent.
    pub exports: Queue<Export>,
    /// The repositories.
    pub repositories: Vec<RepositoryStatus>,
    /// Snapshots that are deleted, or were never finished, and whose files could not be removed yet.
    pub leftovers: Vec<Leftover>,
    /// Operations after which `post` hooks have failed: something may be frozen still.
    pub owed_hooks: Vec<OwedHooks>,
    /// What deleting each snapshot would free; only where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<SnapshotCost>>,
}

/// Work of one kind.
#[derive(Debug, Serialize, Deserialize)]
pub struct Queue<T> {
    /// How much of it is done at a time.
    pub limit: usize,
    /// What is being done, oldest first.
    pub running: Vec<T>,
    /// What waits, oldest first.
    pub waiting: Vec<T>,
}

/// A snapshot that is being made, or is to be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Create {
    /// Name of its VM.
    pub vm_id: String,
    /// Who asked for it.
    pub user: String,
    /// Seconds since it was asked for, or begun.
    pub seconds: f64,
}

/// A body that is being sent, or is to be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Export {
    /// Name of the VM.
    pub vm_id: String,
    /// Id of the snapshot.
    pub snapshot_id: String,
    /// Name of the disk.
    pub disk: String,
    /// Who asked for it.
    pub user: String,
    /// From which address.
    pub address: Option<String>,
    /// When it was asked for, or begun: RFC 3339, UTC.
    pub since: String,
    /// Seconds since it was asked for, or begun.
    pub seconds: f64,
    /// Bytes of this body.
    pub bytes_total: u64,
    /// Bytes of it that were handed to the connection.
    pub bytes_done: u64,
    /// The mean since it was begun.
    pub bytes_per_second: u64,
    /// What is left, at that rate; nothing while there is none.
    pub seconds_left: Option<u64>,
}

/// A repository, and what the policy says of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Its id.
    pub id: String,
    /// The name that people gave it, where ovs-agent knows it.
    pub alias: Option<String>,
    /// Where it is mounted.
    pub mount_point: Option<String>,
    /// Size of the file system, bytes.
    pub total_bytes: Option<u64>,
    /// Bytes that can still be written.
    pub free_bytes: Option<u64>,
    /// With less than this free, no snapshot is made; bytes.
    pub min_free_bytes: Option<u64>,
    /// Snapshots that have a disk there.
    pub snapshots: usize,
    /// Snapshots in it that the database does not know; nothing where it was not looked yet.
    pub unknown_snapshots: Option<usize>,
    /// Whether it is there.
    pub status: Status,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `post` hooks that have failed, of one operation.
#[derive(Debug, Serialize, Deserialize)]
pub struct OwedHooks {
    /// Id of the snapshot, where that is known.
    pub snapshot_id: Option<String>,
    /// Name of its VM, where that is known.
    pub vm_id: Option<String>,
    /// The operation, where that is known.
    pub operation: Option<String>,
    /// The hooks; nothing where nobody knows which.
    pub hooks: Vec<String>,
    /// How often they were called in vain.
    pub attempts: u32,
    /// Why they cannot be called again: what is written down of them cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A snapshot whose files are still there, though nobody sees it any more.
#[derive(Debug, Serialize, Deserialize)]
pub struct Leftover {
    /// Its id.
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    /// Ids of its repositories.
    pub repositories: Vec<String>,
    /// Why the files could not be removed.
    pub reason: String,
}

/// What a snapshot costs.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotCost {
    /// Its id.
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    /// When it was asked for: RFC 3339, UTC.
    pub created_at: String,
    /// Bytes that only it references: what its deletion frees. Nothing where that cannot be told.
    pub exclusive_bytes: Option<u64>,
    /// Bytes of it of which nobody can say who else references them.
    pub unknown_bytes: u64,
    /// Why there is no figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
