//! Why a request that could be carried out is refused.

/// Why the policy refuses a request that could be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A name that no disk of the VM has.
    #[error("the VM has no disk {name:?}; it has {there}")]
    UnknownDisk {
        /// What was asked for.
        name: String,
        /// The disks there are.
        there: String,
    },
    /// A name that several disks have.
    #[error("{name:?} is the name of several disks; name one by its device: {there}")]
    AmbiguousDisk {
        /// What was asked for.
        name: String,
        /// The disks there are.
        there: String,
    },
    /// A disk that was asked for by name, and is none that a snapshot takes.
    #[error("{device} cannot be taken: {reason}; leave it out of disks")]
    UnfitDisk {
        /// The disk.
        device: String,
        /// What it is.
        reason: String,
    },
    /// Every disk is excluded.
    #[error("exclude_disks leaves no disk to take; leave one in")]
    NoDiskLeft,
    /// The VM has as many snapshots as it may have.
    #[error(
        "the VM has {there} snapshots, and the limit is {limit} (policy.max_snapshots_per_vm); \
         delete one that is not needed any more"
    )]
    TooManySnapshots {
        /// How many it has.
        there: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A disk is in more pieces than may be cloned.
    #[error(
        "disk {disk} is in {extents} pieces, and the limit is {limit} (policy.max_extents): to clone it would \
         hold up the guest's writes; copy the disk to a new file while the VM is off, or raise the limit"
    )]
    TooManyExtents {
        /// The disk.
        disk: String,
        /// Its extents.
        extents: u32,
        /// How many it may have.
        limit: u32,
    },
    /// A repository has too little free space.
    #[error(
        "repository {repository} has {free} bytes free of {total}, and {floor} have to stay free \
         (policy.min_free_space); delete snapshots that are not needed any more"
    )]
    LowSpace {
        /// Its id.
        repository: String,
        /// Bytes.
        free: u64,
        /// Bytes.
        total: u64,
        /// Bytes.
        floor: u64,
    },
    /// As many wait as may.
    #[error("too many {0} wait already; try again later")]
    QueueFull(&'static str),
    /// No place came free in time.
    #[error("no place came free for this export in {seconds} s (policy.export_wait); try again later")]
    QueueTimeout {
        /// The time, seconds.
        seconds: f64,
    },
    /// The key was used for something else.
    #[error("this Idempotency-Key was used for a request with another body; use a new key")]
    KeyReused,
    /// What the key made is gone.
    #[error("the snapshot {0} that this Idempotency-Key made has been deleted; use a new key to make another")]
    KeySnapshotGone(crate::model::SnapshotId),
}
