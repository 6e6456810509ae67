//! Whether the database knows all snapshots: after the start, and while it is rebuilt.
//!
//! "I do not know" must not look like "there is none": a client would make a full backup, or take a snapshot for
//! deleted.

use std::sync::Arc;

use super::service::Inventory;
use super::unsearched::Unsearched;
use crate::app::Error;
use crate::model::{SnapshotId, VmId};

impl Inventory {
    pub(crate) fn unsearched(&self) -> Arc<Unsearched> {
        self.search.get()
    }

    pub(crate) fn set_unsearched(&self, unsearched: Unsearched) {
        self.search.set(unsearched);
    }

    /// The repositories were listed once, as far as they respond.
    pub(crate) fn end_first_look(&self) {
        self.search.end_first_look();
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
        if self.may_have_more(&self.unsearched(), Some(id)) {
            let reason = "not all that may have snapshots of this VM was searched".to_owned();
            return Err(Error::Rebuilding { reason });
        }
        Ok(())
    }

    /// Whether the VM may have snapshots that the database did not know when `unsearched` was read. What could not be
    /// searched may have snapshots of each VM: its disks may have been moved away, or removed, since.
    pub(super) fn may_have_more(&self, unsearched: &Unsearched, vm: Option<&VmId>) -> bool {
        match unsearched {
            Unsearched::Nothing => false,
            Unsearched::Everything => true,
            Unsearched::Some(parts) => parts.iter().any(|part| part.vm.is_none() || part.vm.as_ref() == vm),
        }
    }
}

fn not_found_so_far() -> Error {
    Error::Rebuilding { reason: "this one was not found so far".to_owned() }
}
