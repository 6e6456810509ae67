//! Admits a request for a snapshot: finds the snapshot of a repeated request, or waits for a slot.

use std::sync::Arc;

use super::create_request::CreateRequest;
use super::service::Snapshots;
use crate::app::Error;
use crate::app::admission::{Admitted, Creation};
use crate::app::audit::Actor;
use crate::app::error::Refusal;
use crate::app::tasks::Service;
use crate::auth::Session;
use crate::model::{RequestKey, Snapshot, VmId};

/// The result of admission.
pub(super) enum CreateAdmission {
    /// An earlier, identical request created these snapshots.
    Existing(Vec<Snapshot>),
    /// The creation may start.
    Admitted { vms: Vec<VmId>, admitted: Admitted },
}

impl Snapshots {
    /// Checks that the user may create the snapshots, and waits until they may be created.
    pub(super) async fn admit(
        self: &Arc<Self>,
        session: &Session,
        vm_refs: Vec<VmId>,
        request: &CreateRequest,
    ) -> Result<CreateAdmission, Error> {
        let (by, wanted) = (session.clone(), request.clone());
        let existing = self.blocking(move |snapshots| {
            let is_group = vm_refs.len() > 1;
            let resolve = |vm_ref: &VmId| {
                let vm = snapshots.inventory.resolve_vm(&by, vm_ref)?;
                snapshots.inventory.check(&by, &vm, Some(&wanted.annotations))?;
                Ok(vm)
            };
            let resolve = |vm: &VmId| resolve(vm).map_err(|error: Error| error.of_vm(vm, is_group));
            let vms = vm_refs.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
            if let Some(twice) = (1..vms.len()).find(|index| vms[..*index].contains(&vms[*index])) {
                return Err(Error::BadRequest(format!("the VM {} is given twice; name it once", vms[twice])));
            }
            let existing = snapshots.existing(&Actor::from(&by), &vms, &wanted)?;
            Ok((vms, existing))
        });
        let vms = match existing.await? {
            (_, Some(snapshots)) => return Ok(CreateAdmission::Existing(snapshots)),
            (vms, None) => vms,
        };
        let (annotations, user) = (request.annotations.clone(), session.subject().to_owned());
        let creation = Creation { vms: vms.clone(), annotations, user };
        let admitted = self.admission.admit_creation(creation).await?;
        Ok(CreateAdmission::Admitted { vms, admitted })
    }

    /// The snapshots that an earlier, identical request created. It has recorded its key for each VM.
    pub(super) fn existing(
        &self,
        actor: &Actor,
        vms: &[VmId],
        request: &CreateRequest,
    ) -> Result<Option<Vec<Snapshot>>, Error> {
        let Some(key) = request_key(actor, request) else { return Ok(None) };
        let (mut existing, now) = (Vec::new(), jiff::Timestamp::now());
        for vm in vms {
            let Some(used) = self.store.key_use(vm, &key, now)? else { continue };
            if used.digest != key.digest {
                return Err(Refusal::KeyReused.into());
            }
            match self.store.snapshot(used.snapshot())? {
                Some(snapshot) => existing.push(snapshot),
                None => return Err(Refusal::KeySnapshotGone(used.snapshot()).into()),
            }
        }
        if existing.len() != vms.len() {
            // The keys of some VMs may have been forgotten; all are recorded and expire together.
            return Ok(None);
        }
        for snapshot in &existing {
            let (id, vm) = (&snapshot.id, &snapshot.vm);
            tracing::info!(snapshot = %id, %vm, "repeated request: responding with the existing snapshot");
        }
        Ok(Some(existing))
    }
}

/// The key that the request is recorded under, if it has one.
pub(super) fn request_key(actor: &Actor, request: &CreateRequest) -> Option<RequestKey> {
    let (key, digest) = request.key.clone()?;
    Some(RequestKey { user: actor.user().to_owned(), key, digest })
}
