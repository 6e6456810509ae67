//! The JSON bodies of the API: those that clients of the original read, and more.
//!
//! Plain types, which serialize and deserialize: a client in the same program reads what the server writes.

mod checksum;
mod disk_map;
mod error_code;
mod request;
mod status;

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize, Serializer};

pub use checksum::Checksum;
pub use disk_map::{Chunk, ChunkPage, ChunkType, DiskMap, Mode};
pub use error_code::ErrorCode;

pub use request::{CreateSnapshot, Lease, TakeLease};
pub use status::{Create, Export, Leftover, OwedHooks, Queue, RepositoryStatus, ServiceStatus, SnapshotCost};

/// A time as the bodies have it: RFC 3339, UTC. Milliseconds: not every parser takes more than six
/// digits.
pub fn time(at: jiff::Timestamp) -> String {
    format!("{at:.3}")
}

/// Body of `POST /auth/login`.
#[derive(Serialize, Deserialize)]
pub struct Login {
    pub username: String,
    #[serde(serialize_with = "expose")]
    pub password: secrecy::SecretString,
}

/// A client sends the password.
fn expose<S: Serializer>(password: &secrecy::SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(password.expose_secret())
}

/// Answer to a log-in.
#[derive(Debug, Serialize, Deserialize)]
pub struct Token {
    /// The JWT for `Authorization: Bearer`.
    pub token: String,
}

/// Whether an entry of a listing can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It can.
    Ok,
    /// It cannot; `reason` says why.
    Error,
}

/// A virtual machine.
#[derive(Debug, Serialize, Deserialize)]
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
#[derive(Debug, Serialize, Deserialize)]
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
#[derive(Debug, Serialize, Deserialize)]
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

/// A snapshot. The VM's name has both spellings that the original's texts and code have.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: String,
    /// Name of its VM.
    pub vm_id: String,
    #[serde(rename = "vmID")]
    pub vm_id_legacy: String,
    /// When its disks were cloned: RFC 3339, UTC.
    pub created_at: String,
    /// The user who asked for it.
    pub created_by: String,
    /// What a restored disk is like: `crash`, as after a power cut, or `quiesced`.
    pub consistency: String,
    /// Why it is `crash`, if a hook has said `quiesced`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency_reason: Option<String>,
    /// The longest time that the guest can have been held for it, milliseconds, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_ms: Option<u64>,
    /// The hooks that ran, in their order.
    pub hooks: Vec<HookRun>,
    /// Id of the snapshot that it is compared to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare_to: Option<String>,
    /// When it expires: RFC 3339, UTC. A lease keeps it longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When the last lease of it ends: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leased_until: Option<String>,
    /// The server writes them one after the other, so they are last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<SnapshotDisk>,
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
    /// How long it ran, milliseconds.
    pub duration_ms: u64,
    /// What there is to say about its end, for people.
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
    /// Its name, unique in the snapshot.
    pub name: String,
    /// Where its repository is mounted.
    pub repo_mountpoint: String,
    /// Bytes.
    pub size: u64,
    /// What a client has to fetch or fill with zeros. Absent with `chunks=false`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub map: Option<DiskMap>,
    /// Whether its file is there and unchanged. It comes after the map: a fault may be found while the map is read.
    pub status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
}

/// Answer to `POST /adopt`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Adoption {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The snapshots that were taken over, or would be.
    pub adopted: Vec<AdoptedSnapshot>,
    /// The folders that were not taken over.
    #[serde(default)]
    pub skipped: Vec<SkippedFolder>,
    /// The same, by its old name.
    #[serde(rename = "left", default)]
    pub skipped_legacy: Vec<SkippedFolder>,
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

/// A folder that was not taken over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SkippedFolder {
    /// The folder.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// The body of every error.
#[derive(Debug, Serialize, Deserialize)]
pub struct Error {
    /// What the status means, in words.
    pub error: String,
    /// What happened, and what to do.
    pub details: String,
    /// Stable, for programs.
    pub code: ErrorCode,
    /// Under which the log tells more.
    pub request_id: String,
}

/// Body of `GET /capabilities`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Capabilities {
    /// The program's version.
    pub version: String,
    /// What the API can do.
    pub features: Vec<String>,
    /// How checksums can be made.
    pub checksum_algorithms: Vec<String>,
    /// What it does not go beyond.
    pub limits: Limits,
}

/// Bounds of the API.
#[derive(Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Ranges in one `Range` header.
    pub ranges_per_request: usize,
    /// Bytes of a request's body.
    pub request_body_bytes: usize,
    /// Seconds that a token is good for.
    pub token_seconds: u64,
}

/// Body of `GET /healthz` and `GET /readyz`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Health {
    /// Whether all is well.
    pub status: Status,
    /// What is not. Says no more than a stranger may know.
    pub problems: Vec<String>,
}
