//! Whether the database knows all snapshots, while it is rebuilt.
//!
//! "I do not know" must not look like "there is none": a client would make a full backup, or take a snapshot for
//! deleted.

use std::sync::Arc;

use super::service::Inventory;
use super::unsearched::Unsearched;
use crate::app::Error;
use crate::inventory::{Disk, Vm};
use crate::model::{SnapshotId, VmId};
use crate::repository::assign;

impl Inventory {
    pub(crate) fn unsearched(&self) -> Arc<Unsearched> {
        self.search.get()
    }

    pub(crate) fn set_unsearched(&self, unsearched: Unsearched) {
        self.search.set(unsearched);
    }

    /// The error for the snapshot `id`, which the database did not have. It may have been adopted just then.
    pub(crate) fn not_in_database(&self, id: SnapshotId, what: &'static str) -> Error {
        match (self.unknown_snapshot(what), self.store.snapshot(id)) {
            (error, Ok(None)) => error,
            (_, Ok(Some(_))) => not_found_so_far(),
            (_, Err(error)) => error.into(),
        }
    }

    /// The error for a snapshot that the user may not see, which is that for one that does not exist.
    pub(crate) fn unknown_snapshot(&self, what: &'static str) -> Error {
        if *self.unsearched() == Unsearched::Nothing { Error::NotFound(what) } else { not_found_so_far() }
    }

    /// Checks that the database knows all snapshots of the VM.
    ///
    /// # Errors
    /// [`Error::Rebuilding`].
    pub(crate) fn check_all_known(&self, id: &VmId) -> Result<(), Error> {
        // Before the inventory is read: mostly it is not needed.
        if *self.unsearched() == Unsearched::Nothing {
            return Ok(());
        }
        let list = self.vms();
        let vm = list.as_ref().ok().and_then(|list| list.vms.iter().find(|vm| vm.id.as_ref() == Some(id)));
        match vm {
            Some(vm) if !self.may_have_more(&self.unsearched(), vm) => Ok(()),
            _ => {
                Err(Error::Rebuilding { reason: "not all that may have snapshots of this VM was searched".to_owned() })
            }
        }
    }

    /// Whether the VM may have snapshots that the database did not know when `unsearched` was read. Its snapshots are
    /// clones, so they are in the repositories of its disks.
    pub(super) fn may_have_more(&self, unsearched: &Unsearched, vm: &Vm) -> bool {
        let parts = match unsearched {
            Unsearched::Nothing => return false,
            Unsearched::Everything => return true,
            Unsearched::Some(parts) => parts,
        };
        if parts.iter().any(|part| part.vm.is_some() && part.vm == vm.id) {
            return true;
        }
        let Ok(disks) = &vm.disks else { return true };
        let found = self.repositories();
        let repositories: Vec<_> = found.usable().collect();
        let is_searched = |disk: &Disk| {
            let Some(path) = disk.file() else { return true };
            let Ok(assigned) = assign(repositories.iter().copied(), path.as_ref()) else { return false };
            let name = assigned.repository.id().as_str();
            !parts.iter().any(|part| part.vm.is_none() && part.repository.as_deref() == Some(name))
        };
        !disks.iter().all(is_searched)
    }
}

fn not_found_so_far() -> Error {
    Error::Rebuilding { reason: "this one was not found so far".to_owned() }
}
