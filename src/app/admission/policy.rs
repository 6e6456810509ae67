//! The policy: what is refused before anything is written, and what would help.

use std::sync::Arc;

use crate::app::inventory::Inventory;
use crate::app::{Error, error::Refusal};
use crate::config::Policy;
use crate::model::SnapshotDraft;
use crate::repository::clone::Source;
use crate::repository::executor::JobKind;
use crate::store::Store;

/// Extents of a disk past which its clone is worth a word in the log.
pub const MANY_EXTENTS: u32 = 100_000;

/// The policy of the config, with what it is checked against.
pub(crate) struct PolicyCheck {
    pub policy: Policy,
    pub(super) inventory: Arc<Inventory>,
    pub(super) store: Store,
}

impl PolicyCheck {
    /// Checks that the policy allows `snapshot` of `sources`, which are its disks in their order.
    pub(crate) fn check(&self, snapshot: &SnapshotDraft, sources: &[Source]) -> Result<(), Error> {
        if let Some(limit) = self.policy.max_snapshots_per_vm {
            let there = self.store.snapshots_of(&snapshot.vm)?.len();
            if there >= limit {
                return Err(Refusal::TooManySnapshots { there, limit }.into());
            }
        }
        for id in snapshot.repositories() {
            let Some(repository) = self.inventory.repository(id) else { continue };
            let mounted = repository.mounted();
            let space = mounted.map_err(|absent| Error::Unavailable(format!("the repository {id} {absent}")))?.space;
            let floor = self.policy.min_free_space.of(space.total);
            if space.free < floor {
                let (free, total) = (space.free, space.total);
                return Err(Refusal::LowSpace { repository: id.to_string(), free, total, floor }.into());
            }
        }
        for (disk, source) in snapshot.disks.iter().zip(sources) {
            let Some(repository) = self.inventory.repository(&disk.source.repository) else { continue };
            let step = || format!("counting the extents of {}", disk.name);
            let file = source.file.try_clone().map_err(|error| Error::of_step(step(), error))?;
            let counted = repository.run(JobKind::CHANGE, move |_, _| Source::extent_count(&file));
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
