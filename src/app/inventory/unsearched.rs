//! What may have snapshots that the database does not know, while it is rebuilt from the manifests.
//!
//! "I do not know" must not look like "there is none": a client would make a full backup, or take a snapshot for
//! deleted.

use std::sync::{Arc, Mutex, PoisonError};

use super::service::Inventory;
use crate::api;
use crate::app::Error;
use crate::inventory::{Disk, Vm};
use crate::model::VmId;
use crate::repository::assign;

/// What was not searched yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unsearched {
    /// The database is not rebuilt, or the search is complete.
    #[default]
    Nothing,
    /// The first search runs.
    Everything,
    /// The search left these out.
    Some(Vec<UnsearchedPart>),
}

/// A repository, or something in it, that could not be searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnsearchedPart {
    /// The repository's name. Without: there may be other repositories.
    pub repository: Option<String>,
    /// The only VM whose snapshots are concerned, if that is known.
    pub vm: Option<VmId>,
    /// For operators.
    pub path: String,
    pub reason: String,
}

/// The current state.
#[derive(Default)]
pub(super) struct Search(Mutex<Arc<Unsearched>>);

impl Unsearched {
    /// For `GET /status`.
    pub(crate) fn describe(&self) -> Vec<api::SkippedFolder> {
        let describe =
            |part: &UnsearchedPart| api::SkippedFolder { path: part.path.clone(), reason: part.reason.clone() };
        match self {
            Self::Some(parts) => parts.iter().map(describe).collect(),
            Self::Nothing | Self::Everything => Vec::new(),
        }
    }
}

impl Inventory {
    pub(crate) fn unsearched(&self) -> Arc<Unsearched> {
        Arc::clone(&self.search.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_unsearched(&self, unsearched: Unsearched) {
        *self.search.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(unsearched);
    }

    /// The error for a snapshot that the database does not know.
    pub(crate) fn unknown_snapshot(&self, what: &'static str) -> Error {
        match &*self.unsearched() {
            Unsearched::Nothing => Error::NotFound(what),
            _ => Error::Rebuilding { reason: "this one was not found so far".to_owned() },
        }
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
            Some(vm) if !self.may_have_more(vm) => Ok(()),
            _ => {
                Err(Error::Rebuilding { reason: "not all that may have snapshots of this VM was searched".to_owned() })
            }
        }
    }

    /// Whether the VM may have snapshots that the database does not know. Its snapshots are clones, so they are in the
    /// repositories of its disks.
    pub(super) fn may_have_more(&self, vm: &Vm) -> bool {
        let unsearched = self.unsearched();
        let parts = match &*unsearched {
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
