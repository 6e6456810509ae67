//! The checks of what a user may do. A request's VM or snapshot is only found through these, so that no operation can
//! forget them. `http::routes` has the permission that each route needs.
//!
//! A VM or a snapshot that the user may not see is answered like one that does not exist. For one that the user may
//! see, the refusal names the role that is missing.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::service::Inventory;
use super::view::{NO_SUCH_SNAPSHOT, Names, View};
use crate::app::Error;
use crate::auth::Session;
use crate::model::{Annotations, Permission, Snapshot, SnapshotId, VmId};

/// How long the friendly names of VMs are kept: clients send thousands of range requests a second, and the names are in
/// the definitions.
const NAMES_TTL: Duration = Duration::from_secs(5);

impl Inventory {
    /// The names of all VMs, at most `max_age` old.
    fn names(&self, max_age: Duration) -> Result<Arc<Names>, Error> {
        let cached = self.names.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, names)) = cached.filter(|(read_at, _)| read_at.elapsed() < max_age) {
            return Ok(names);
        }
        // The time before the names are read: they are not newer than that.
        let (now, list) = (Instant::now(), self.vms()?);
        let named = list.vms.iter().filter_map(|vm| Some((vm.id.clone()?, vm.friendly_name.clone())));
        let is_incomplete = list.missing.iter().any(|missing| !missing.is_cached);
        let names = Arc::new(Names { by_id: named.collect(), is_incomplete });
        *self.names.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Arc::clone(&names)));
        Ok(names)
    }

    fn view_of(&self, session: &Session, max_age: Duration) -> Result<View, Error> {
        let names = if session.grants().has_vm_names() { self.names(max_age)? } else { Arc::default() };
        Ok(View { session: session.clone(), names })
    }

    /// The VMs and snapshots for which the user has the session's permission.
    ///
    /// # Errors
    /// Those of [`Inventory::vms`], if the rules name VMs by their friendly names.
    pub(crate) fn view(&self, session: &Session) -> Result<View, Error> {
        self.view_of(session, Duration::ZERO)
    }

    /// Checks that the user has the session's permission for a VM that exists, or for a snapshot of it with these
    /// annotations.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the user may see it; otherwise the error for one that does not exist.
    /// [`Error::Unavailable`] if the friendly name of the VM is needed and unknown.
    pub(crate) fn check(&self, session: &Session, vm: &VmId, annotations: Option<&Annotations>) -> Result<(), Error> {
        let permission = session.permission();
        if session.grants().has_for_all(permission)
            || self.view_of(session, NAMES_TTL)?.permits(permission, vm, annotations)
        {
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
            let is_unknown = view.names.is_incomplete && !view.names.by_id.contains_key(vm);
            let reason =
                || "the name of this VM cannot be read, so it is unknown whether the user may use it".to_owned();
            return Err(if is_unknown { Error::Unavailable(reason()) } else { self.vms()?.no_such_vm() });
        }
        let of_snapshot = annotations.is_some() && permission != Permission::Create;
        if of_snapshot && !permits(Permission::View, annotations) {
            return Err(NO_SUCH_SNAPSHOT);
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
        if self.may_see(session, vm, annotations) { Error::OtherVm(id) } else { NO_SUCH_SNAPSHOT }
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
