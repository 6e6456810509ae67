//! Refusals by the policy.

use super::reason::Reason;
use crate::model::size;

/// Why the policy refuses a valid request.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No disk of the VM has this name.
    #[error("the VM has no disk {name:?}; its disks are {existing}")]
    UnknownDisk { name: String, existing: String },
    /// Several disks have this name.
    #[error("several disks are named {name:?}; select one by its device: {existing}")]
    AmbiguousDisk { name: String, existing: String },
    /// The request names a disk that cannot be in a snapshot.
    #[error("{device} cannot be snapshotted: {reason}; remove it from disks")]
    UnfitDisk { device: String, reason: Reason },
    /// Every disk is excluded.
    #[error("exclude_disks excludes all disks; keep at least one")]
    NoDiskLeft,
    /// The VM already has the most snapshots that the policy allows. The user may not see all of them.
    #[error(
        "the VM has no room for another snapshot: the limit is {limit} (policy.max_snapshots_per_vm); \
         delete one that is no longer needed"
    )]
    TooManySnapshots { limit: usize },
    /// A disk has more extents than the policy allows.
    #[error(
        "disk {disk} has {extents} extents, and the limit is {limit} (policy.max_extents): cloning it would stall the \
         guest's writes; copy the disk to a new file while the VM is off, or raise the limit"
    )]
    TooManyExtents { disk: String, extents: u32, limit: u32 },
    /// A repository has too little free space.
    #[error(
        "repository {repository} has {} of {} free, and {} must stay free (policy.min_free_space); delete snapshots that \
         are no longer needed", size(*.free), size(*.total), size(*.min_free)
    )]
    LowSpace { repository: String, free: u64, total: u64, min_free: u64 },
    /// The queue is full.
    #[error("too many {0} are already waiting; retry later")]
    QueueFull(&'static str),
    /// Each copy of the database takes space until it is sent.
    #[error("{limit} copies of the database are being made or sent already; retry later")]
    TooManyCopies { limit: usize },
    /// No concurrency slot became free in time.
    #[error("no export slot became free within {seconds} s (policy.export_wait); retry later")]
    QueueTimeout { seconds: f64 },
    /// Another VM of the request did not become free in time.
    #[error("VM {vm} is still busy after {seconds} s; retry later, or create its snapshot by itself")]
    GroupTimeout { vm: String, seconds: u64 },
    /// There are too many tickets.
    #[error(
        "there are too many tickets: at most {of_user} of one user and {of_all} of all; end those that are not needed, \
         or wait until they expire"
    )]
    TooManyTickets { of_user: usize, of_all: usize },
    /// The key belongs to another request.
    #[error("this Idempotency-Key was used for a request with another body; use a new key")]
    KeyReused,
    /// The snapshot that was created with the key is deleted.
    #[error("snapshot {0}, created with this Idempotency-Key, has been deleted; use a new key to create another")]
    KeySnapshotGone(crate::model::SnapshotId),
}
