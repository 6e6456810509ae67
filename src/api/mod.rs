//! The JSON bodies of the API: what an unmodified client of the original reads, and ours on top.

mod array;
mod checksum;
mod disk_map;
mod request;
mod status;

use serde::{Deserialize, Serialize};

pub use array::Array;
pub use checksum::{BlockSum, Checksum, Deferred};
pub use disk_map::{ChunkPage, ChunkStream, DiskMap, DiskState, Mode, StreamAborted, Totals, WireChunk};

pub use request::{CreateSnapshot, Lease, TakeLease};
pub use status::{Create, Export, Leftover, OwedHooks, Queue, RepositoryStatus, ServiceStatus, SnapshotCost};

/// A time as the bodies have it: RFC 3339, UTC. Milliseconds: not every parser takes more than six
/// digits.
pub fn time(at: jiff::Timestamp) -> String {
    format!("{at:.3}")
}

/// Body of `POST /auth/login`.
#[derive(Deserialize)]
pub struct Login {
    /// The user's name at the manager.
    pub username: String,
    /// The user's password there.
    pub password: secrecy::SecretString,
}

/// Answer to a log-in.
#[derive(Debug, Serialize)]
pub struct Token {
    /// The JWT for `Authorization: Bearer`.
    pub token: String,
}

/// Whether an entry of a listing can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It can.
    Ok,
    /// It cannot; `reason` says why.
    Error,
}

/// A virtual machine.
#[derive(Debug, Serialize)]
pub struct Vm {
    /// The name that people gave it.
    pub friendly_name: String,
    /// Its name: 32 hexadecimal digits.
    pub name: String,
    /// Its uuid, dashed.
    pub uuid: String,
    /// Its disks, as its definition lists them.
    pub disks: Vec<VmDisk>,
    /// Whether a snapshot of it can be made.
    pub snapshot_compatible: bool,
    /// Ids of its snapshots, oldest first.
    pub snapshots: Vec<String>,
    /// Whether its definition can be used.
    pub status: Status,
    /// Why not, or why no snapshot can be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Id of the repository, where this is no VM, but stands for all those of a repository that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable_repository: Option<String>,
}

/// A disk of a virtual machine.
#[derive(Debug, Serialize)]
pub struct VmDisk {
    /// File name.
    pub name: String,
    /// Path, as the definition has it.
    pub path: String,
    /// What the guest sees it as, such as `xvda`.
    pub device_name: String,
    /// Whether a snapshot takes it.
    pub snapshot_compatible: bool,
    /// `r`, `w`, or `w!` for one that several VMs share.
    pub mode: String,
    /// Size, bytes, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The name that people gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub friendly_name: Option<String>,
    /// Id of the repository that it lies in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Why a snapshot does not take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incompatible_reason: Option<String>,
}

/// A repository.
#[derive(Debug, Serialize)]
pub struct Repository {
    /// Its id.
    pub id: String,
    /// The name that people gave it, where ovs-agent knows it.
    pub alias: Option<String>,
    /// Where it is mounted.
    pub mount_point: Option<String>,
    /// The file system that is mounted there, such as `ocfs2`.
    pub filesystem: Option<String>,
    /// The manager that owns it, where ovs-agent knows it.
    pub manager_uuid: Option<String>,
    /// Version of its layout, where ovs-agent knows it.
    pub version: Option<String>,
    /// Whether files in it can be snapshotted: found out by doing it.
    pub reflink: bool,
    /// Size of the file system, bytes.
    pub total_bytes: Option<u64>,
    /// Bytes that can still be written.
    pub free_bytes: Option<u64>,
    /// Whether it is there, and is what ovs-agent says.
    pub status: Status,
    /// Why not, or why nothing in it can be snapshotted.
    pub reason: Option<String>,
}

/// A snapshot. The VM's name goes out in both spellings that the original's texts and code have.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    /// The same.
    #[serde(rename = "vmID")]
    pub vm_id_legacy: String,
    /// Its disks.
    pub disks: Vec<SnapshotDisk>,
    /// When it was asked for: RFC 3339, UTC.
    pub created_at: String,
    /// Who asked for it.
    pub created_by: String,
    /// What a restored disk is like: `crash`, as after a power cut, or `quiesced`.
    pub consistency: &'static str,
    /// Why it is `crash`, where a hook has said `quiesced`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency_reason: Option<String>,
    /// The longest that the guest can have been held up for it, milliseconds, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_ms: Option<u64>,
    /// What ran around it, in its order.
    pub hooks: Vec<HookRun>,
    /// Id of the snapshot that it is compared to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare_to: Option<String>,
    /// When it may be swept, unless it is leased: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Until when somebody needs it all the same: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leased_until: Option<String>,
}

/// A call of a hook.
#[derive(Debug, Serialize)]
pub struct HookRun {
    /// The program's file name, or the server's URL.
    pub name: String,
    /// `directory` or `sync`.
    pub kind: &'static str,
    /// `pre` or `post`.
    pub stage: &'static str,
    /// `ok`, `failed`, `timeout` or `skipped`.
    pub outcome: &'static str,
    /// How long it ran, milliseconds.
    pub duration_ms: u64,
    /// What there is to say about its end, for people.
    pub detail: String,
}

/// A disk of a snapshot.
#[derive(Debug, Serialize)]
pub struct SnapshotDisk {
    /// Path of the disk that it is a state of.
    pub parent_path: String,
    /// Path of its file.
    pub path: String,
    /// Id of the snapshot, in both spellings.
    pub snapshot_id: String,
    /// The same.
    #[serde(rename = "snapshotID")]
    pub snapshot_id_legacy: String,
    /// Its name, unique in the snapshot.
    pub name: String,
    /// Where its repository is mounted.
    pub repo_mountpoint: String,
    /// Size, bytes.
    pub size: u64,
    /// What a client has to fetch or make zeros. Left out with `chunks=false`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub map: Option<DiskMap>,
    /// Whether its file is there and is the one that was taken: what came to light while the map
    /// was written out, which is why it stands behind it.
    #[serde(flatten)]
    pub state: DiskState,
}

/// Answer to `POST /adopt`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Adoption {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The snapshots that were taken over, or would be.
    pub adopted: Vec<AdoptedSnapshot>,
    /// What was left as it is.
    pub left: Vec<LeftFolder>,
}

/// A snapshot that was taken over.
#[derive(Debug, Serialize, Deserialize)]
pub struct AdoptedSnapshot {
    /// Its id.
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    /// When it was made, as far as its files tell: RFC 3339, UTC.
    pub created_at: String,
    /// Its folders.
    pub paths: Vec<String>,
}

/// A folder that was left as it is.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeftFolder {
    /// The folder.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// The body of every error.
#[derive(Debug, Serialize)]
pub struct Error {
    /// What the status means, in words.
    pub error: String,
    /// What happened, and what to do.
    pub details: String,
    /// A stable word for programs.
    pub code: &'static str,
    /// Under which the log tells more.
    pub request_id: String,
}

/// Body of `GET /capabilities`.
#[derive(Debug, Serialize)]
pub struct Capabilities {
    /// The program's version.
    pub version: &'static str,
    /// What the API can do.
    pub features: &'static [&'static str],
    /// How checksums can be made.
    pub checksum_algorithms: Vec<&'static str>,
    /// What it does not go beyond.
    pub limits: Limits,
}

/// Bounds of the API.
#[derive(Debug, Serialize)]
pub struct Limits {
    /// Ranges in one `Range` header.
    pub ranges_per_request: usize,
    /// Bytes of a request's body.
    pub request_body_bytes: usize,
    /// Seconds that a token is good for.
    pub token_seconds: u64,
}

/// Body of `GET /healthz` and `GET /readyz`.
#[derive(Debug, Serialize)]
pub struct Health {
    /// Whether all is well.
    pub status: Status,
    /// What is not. Says no more than a stranger may know.
    pub problems: Vec<String>,
}
