//! The policy: what is refused before anything is written, and what would help.

use std::os::fd::AsFd;

use crate::app::{App, Error};
use crate::model::SnapshotDraft;
use crate::repository::clone::Source;
use crate::repository::executor::JobKind;
use crate::sys::fiemap;

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

/// Extents of a disk past which its clone is worth a word in the log.
pub const MANY_EXTENTS: u32 = 100_000;

impl App {
    /// Checks that the policy lets `snapshot` be made of `sources`, its disks in their order.
    pub(crate) fn check_policy(&self, snapshot: &SnapshotDraft, sources: &[Source]) -> Result<(), Error> {
        if let Some(limit) = self.policy.max_snapshots_per_vm {
            let there = self.store.snapshots_of(&snapshot.vm)?.len();
            if there >= limit {
                return Err(Refusal::TooManySnapshots { there, limit }.into());
            }
        }
        for id in snapshot.repositories() {
            let Some(repository) = self.repository(id) else { continue };
            let mounted = repository.mounted();
            let space = mounted.map_err(|absent| Error::Unavailable(format!("the repository {id} {absent}")))?.space;
            let floor = self.policy.min_free_space.of(space.total);
            if space.free < floor {
                let (free, total) = (space.free, space.total);
                return Err(Refusal::LowSpace { repository: id.to_string(), free, total, floor }.into());
            }
        }
        for (disk, source) in snapshot.disks.iter().zip(sources) {
            let Some(repository) = self.repository(&disk.source.repository) else { continue };
            let step = || format!("counting the extents of {}", disk.name);
            let file = source.file.try_clone().map_err(|error| Error::of_step(step(), error))?;
            let counted = repository.run(JobKind::CHANGE, move |_, _| fiemap::Reader::count(file.as_fd()));
            let extents = counted.map_err(|error| Error::of_step(step(), error))?;
            if let Some(limit) = self.policy.max_extents.filter(|limit| extents > *limit) {
                return Err(Refusal::TooManyExtents { disk: disk.name.to_string(), extents, limit }.into());
            }
            if extents > MANY_EXTENTS {
                let remedy = "its clone holds up the guest's writes; a copy of the disk has fewer";
                tracing::warn!(vm = %snapshot.vm, disk = %disk.name, extents, remedy, "a disk in very many pieces");
            }
        }
        Ok(())
    }
}
