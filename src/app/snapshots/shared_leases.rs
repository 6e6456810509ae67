//! Keeps the leases in the database as they are in the repositories, where all exporters write them.

use std::sync::Arc;
use std::time::Instant;

use super::watched::Watched;
use crate::app::Error;
use crate::app::common::Common;
use crate::app::inventory::Inventory;
use crate::model::Lease;
use crate::repository::Repository;
use crate::repository::executor::JobKind;
use crate::repository::leases::{self, Leases};
use crate::store::Store;

/// The leases of a repository at the last look.
#[derive(Default)]
pub(super) struct SeenLeases {
    folder: Watched,
    all: Vec<Lease>,
}

pub(super) struct SharedLeases {
    inventory: Arc<Inventory>,
    store: Store,
}

impl SharedLeases {
    pub fn new(common: &Common) -> Self {
        let Common { inventory, store, .. } = common.clone();
        Self { inventory, store }
    }

    /// Takes the leases in the repository into the database.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Io`], [`Error::Store`].
    pub fn take(&self, repository: &Repository, seen: &mut SeenLeases, now: Instant) -> Result<(), Error> {
        let known = seen.folder.settled();
        let read = repository.run(JobKind::SHORT, move |_, root| leases::read(root, known));
        let Some(Leases { version, mut all }) = read.map_err(|error| Error::of_step("reading the leases", error))?
        else {
            return Ok(());
        };
        all.sort_by(|a, b| (a.snapshot, &a.user).cmp(&(b.snapshot, &b.user)));
        if seen.folder.is_new() || seen.all != all {
            self.store.retentions().replace_leases(repository.id(), &all)?;
        }
        seen.folder.see(version, now);
        seen.all = all;
        Ok(())
    }

    /// Before the first look: writes the leases that only the database has into the repositories, once.
    ///
    /// # Errors
    /// As [`SharedLeases::take`]; another start tries again.
    pub fn set_shared(&self, is_shared: bool) -> Result<(), Error> {
        let retentions = self.store.retentions();
        if is_shared && !retentions.are_shared()? {
            for lease in retentions.all_leases()? {
                let Some(of) = self.store.snapshot(lease.snapshot)? else { continue };
                let repository = self.inventory.first_repository(&of)?;
                let checked = repository.clone();
                let written = repository.run(JobKind::CHANGE, move |access, root| {
                    checked.mounted_now(access)?;
                    leases::put(root, &lease)
                });
                written.map_err(|error| Error::of_step("writing the lease", error))?;
            }
        }
        Ok(retentions.set_shared(is_shared)?)
    }
}
