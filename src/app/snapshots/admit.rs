//! Admits a request for a snapshot: finds the snapshot of a repeated request, or waits for a slot.

use std::sync::Arc;

use super::create_request::CreateRequest;
use super::service::Snapshots;
use crate::app::Error;
use crate::app::admission::{Admitted, Creation};
use crate::app::audit::Actor;
use crate::app::error::Refusal;
use crate::app::tasks::Service;
use crate::model::{Snapshot, VmId};
use crate::store::RequestKey;

/// The result of admission.
pub(super) enum CreateAdmission {
    /// An earlier, identical request created this snapshot.
    Existing(Snapshot),
    /// The creation may start.
    Admitted { vm: VmId, admitted: Admitted },
}

impl Snapshots {
    /// Waits until the snapshot may be created.
    pub(super) async fn admit(
        self: &Arc<Self>,
        actor: &Actor,
        vm_ref: VmId,
        request: &CreateRequest,
    ) -> Result<CreateAdmission, Error> {
        let (by, wanted) = (actor.clone(), request.clone());
        let existing = self.blocking(move |snapshots| {
            let vm = snapshots.inventory.resolve_vm(&vm_ref)?;
            let existing = snapshots.existing(&by, &vm, &wanted)?;
            Ok((vm, existing))
        });
        let vm = match existing.await? {
            (_, Some(snapshot)) => return Ok(CreateAdmission::Existing(snapshot)),
            (vm, None) => vm,
        };
        let creation = Creation { vm: vm.clone(), user: actor.user().to_owned() };
        let admitted = self.admission.admit_creation(creation).await?;
        Ok(CreateAdmission::Admitted { vm, admitted })
    }

    /// The snapshot that an earlier, identical request created.
    pub(super) fn existing(
        &self,
        actor: &Actor,
        vm: &VmId,
        request: &CreateRequest,
    ) -> Result<Option<Snapshot>, Error> {
        let Some(key) = request_key(actor, request) else { return Ok(None) };
        let Some(used) = self.store.key_use(vm, &key, jiff::Timestamp::now())? else { return Ok(None) };
        if used.digest != key.digest {
            return Err(Refusal::KeyReused.into());
        }
        match self.store.snapshot(used.snapshot())? {
            Some(snapshot) => {
                tracing::info!(snapshot = %snapshot.id, %vm, "repeated request: responding with the existing snapshot");
                Ok(Some(snapshot))
            }
            None => Err(Refusal::KeySnapshotGone(used.snapshot()).into()),
        }
    }
}

/// The key that the request is recorded under, if it has one.
pub(super) fn request_key(actor: &Actor, request: &CreateRequest) -> Option<RequestKey> {
    let (key, digest) = request.key.clone()?;
    Some(RequestKey { user: actor.user().to_owned(), key, digest })
}
