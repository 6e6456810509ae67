//! The checks of what a user may do. A request's VM or snapshot is only found through these, so that no operation can
//! forget them. `http::routes` has the permission that each route needs.
//!
//! A VM or a snapshot that the user may not see is answered like one that does not exist. For one that the user may
//! see, the refusal names the role that is missing.

use std::time::Duration;

use super::catalog::no_such_vm;
use super::service::Inventory;
use super::view::{NO_SUCH_SNAPSHOT, View};
use crate::app::Error;
use crate::auth::Session;
use crate::model::{Annotations, Permission, Snapshot, SnapshotId, VmId};

/// How long the friendly names of VMs are kept: clients send thousands of range requests a second, and the names are in
/// the definitions.
const NAMES_TTL: Duration = Duration::from_secs(5);

/// How long they are kept while a request reads new ones.
const MAX_NAMES_TTL: Duration = Duration::from_secs(15);

/// How long that request waits for a repository whose names are known. It may hang, and downloads from others must not
/// wait for it; its last names count until it responds.
const NAMES_PATIENCE: Duration = Duration::from_secs(1);

impl Inventory {
    /// The view with the names that were read last, if they are not too old.
    ///
    /// # Errors
    /// As [`Inventory::view`].
    pub(crate) fn recent_view(&self, session: &Session) -> Result<View, Error> {
        let read = |has_older| {
            if has_older {
                return Ok((&self.catalog.list_within(&self.repositories(), NAMES_PATIENCE)).into());
            }
            Ok((&*self.vms()?).into())
        };
        let names = || self.names.get(NAMES_TTL, MAX_NAMES_TTL, read);
        let names = session.grants().has_vm_names().then(names).transpose()?;
        Ok(View { session: session.clone(), names })
    }

    /// The VMs and snapshots for which the user has the session's permission.
    ///
    /// # Errors
    /// Those of [`Inventory::vms`], if the rules name VMs by their friendly names.
    pub(crate) fn view(&self, session: &Session) -> Result<View, Error> {
        let names = || self.names.get(Duration::ZERO, Duration::ZERO, |_| Ok((&*self.vms()?).into()));
        let names = session.grants().has_vm_names().then(names).transpose()?;
        Ok(View { session: session.clone(), names })
    }

    /// Checks that the user has the session's permission for a VM that exists, or for a snapshot of it with these
    /// annotations.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the user may see it; otherwise the error for one that does not exist.
    /// [`Error::Unavailable`] if the friendly name of the VM is needed and unknown.
    pub(crate) fn check(&self, session: &Session, vm: &VmId, annotations: Option<&Annotations>) -> Result<(), Error> {
        let permission = session.permission();
        if session.grants().has_for_all(permission) || self.recent_view(session)?.permits(permission, vm, annotations) {
            return Ok(());
        }
        // The VM may be new, or have a new name.
        let view = self.view(session)?;
        let permits = |permission, annotations| view.permits(permission, vm, annotations);
        if permits(permission, annotations) {
            return Ok(());
        }
        // The VM first: if the user may not see it, the answer must say nothing about its snapshots.
        if !permits(Permission::View, None) {
            return Err(match &view.names {
                // If a repository cannot be read, this VM's name may be there.
                Some(names) => no_such_vm(&names.missing),
                None => self.vms()?.no_such_vm(),
            });
        }
        let of_snapshot = annotations.is_some() && permission != Permission::Create;
        if of_snapshot && !permits(Permission::View, annotations) {
            return Err(self.unknown_snapshot(NO_SUCH_SNAPSHOT));
        }
        let has_other_labels = annotations.is_some() && permits(permission, None);
        let what = if has_other_labels { "for snapshots of this VM with these labels" } else { "for this VM" };
        Err(Error::forbidden(permission, what))
    }

    /// Checks that the user has the session's permission for the snapshot.
    ///
    /// # Errors
    /// As [`Inventory::check`].
    pub(crate) fn check_snapshot(&self, session: &Session, snapshot: &Snapshot) -> Result<(), Error> {
        self.check(session, &snapshot.vm, Some(&snapshot.annotations))
    }

    /// The error for a snapshot that belongs to another VM than the request says. Only a user who may see that snapshot
    /// learns that it exists.
    pub(crate) fn of_other_vm(
        &self,
        session: &Session,
        (vm, id): (&VmId, SnapshotId),
        annotations: Option<&Annotations>,
    ) -> Error {
        if self.may_see(session, vm, annotations) {
            Error::OtherVm(id)
        } else {
            self.unknown_snapshot(NO_SUCH_SNAPSHOT)
        }
    }

    /// Whether the user may certainly see the VM, or the snapshot of it.
    pub(crate) fn may_see(&self, session: &Session, vm: &VmId, annotations: Option<&Annotations>) -> bool {
        self.check(&session.needing(Permission::View), vm, annotations).is_ok()
    }

    /// Checks the user's permission for the snapshot `id` of the VM `vm_ref` if it is limited, before anything is done
    /// for the request.
    ///
    /// # Errors
    /// As [`Inventory::snapshot_of`].
    pub(crate) fn check_early(&self, session: &Session, vm_ref: &VmId, id: SnapshotId) -> Result<(), Error> {
        if session.grants().has_for_all(session.permission()) {
            return Ok(());
        }
        self.snapshot_of(session, vm_ref, id).map(drop)
    }
}
