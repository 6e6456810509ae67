//! Checks the policy before a snapshot is created.

use std::sync::Arc;

use crate::app::changeable::Changeable;
use crate::app::inventory::Inventory;
use crate::app::{Error, error::Refusal};
use crate::config::Policy;
use crate::model::SnapshotDraft;
use crate::repository::clone::Source;
use crate::repository::executor::JobKind;
use crate::store::Store;

/// A disk with more extents gets a warning: its clone stalls the guest's writes.
pub const MANY_EXTENTS: u32 = 100_000;

/// The config's policy, and the data that it is checked against.
pub(crate) struct PolicyCheck {
    pub limits: Changeable<Policy>,
    pub(super) inventory: Arc<Inventory>,
    pub(super) store: Store,
}

impl PolicyCheck {
    /// Checks that the policy allows `snapshot`. `sources` are its disks, in the same order. Returns the extents of each.
    pub(crate) fn check(&self, snapshot: &SnapshotDraft, sources: &[Source]) -> Result<Vec<u32>, Error> {
        let limits = self.limits.get();
        if let Some(limit) = limits.max_snapshots_per_vm
            && self.store.snapshots_of(&snapshot.vm)?.len() >= limit
        {
            return Err(Refusal::TooManySnapshots { limit }.into());
        }
        for id in snapshot.repositories() {
            let Some(repository) = self.inventory.repository(id) else { continue };
            let mounted = repository.mounted();
            let space = mounted.map_err(|cause| Error::Unavailable(format!("the repository {id} {cause}")))?.space;
            let min_free = limits.min_free_space.of(space.total);
            if space.free < min_free {
                let (free, total) = (space.free, space.total);
                return Err(Refusal::LowSpace { repository: id.to_string(), free, total, min_free }.into());
            }
        }
        let mut counts = Vec::with_capacity(sources.len());
        for (disk, source) in snapshot.disks.iter().zip(sources) {
            let Some(repository) = self.inventory.repository(&disk.source.repository) else { continue };
            let step = || format!("counting the extents of {}", disk.name);
            let file = source.file.try_clone().map_err(|error| Error::of_step(step(), error))?;
            let counted = repository.run(JobKind::CHANGE, move |_, _| Source::extent_count(&file));
            let extents = counted.map_err(|error| Error::of_step(step(), error))?;
            counts.push(extents);
            if let Some(limit) = limits.max_extents.filter(|limit| extents > *limit) {
                return Err(Refusal::TooManyExtents { disk: disk.name.to_string(), extents, limit }.into());
            }
            if extents > MANY_EXTENTS {
                let remedy = "cloning it stalls the guest's writes; copy the disk to a new file while the VM is off";
                tracing::warn!(vm = %snapshot.vm, disk = %disk.name, extents, remedy, "the disk has very many extents");
            }
        }
        Ok(counts)
    }
}
