//! Admission of a request for a snapshot: what was made before is found, the rest waits.

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

/// What becomes of a request for a snapshot.
pub(super) enum Outcome {
    /// The same request was carried out before.
    MadeBefore(Snapshot),
    /// It may start.
    Now { vm: VmId, admitted: Admitted },
}

impl Snapshots {
    /// Waits until the snapshot may be made.
    pub(super) async fn admit(
        self: &Arc<Self>,
        actor: &Actor,
        vm_ref: VmId,
        request: &CreateRequest,
    ) -> Result<Outcome, Error> {
        let (by, asked) = (actor.clone(), request.clone());
        let known = self.blocking(move |snapshots| {
            let vm = snapshots.inventory.resolve_vm(&vm_ref)?;
            let made = snapshots.made_before(&by, &vm, &asked)?;
            Ok((vm, made))
        });
        let vm = match known.await? {
            (_, Some(snapshot)) => return Ok(Outcome::MadeBefore(snapshot)),
            (vm, None) => vm,
        };
        let creation = Creation { vm: vm.clone(), user: actor.user().to_owned() };
        let admitted = self.admission.admit_creation(creation).await?;
        Ok(Outcome::Now { vm, admitted })
    }

    /// The snapshot that the same request has made already.
    pub(super) fn made_before(
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
                tracing::info!(snapshot = %snapshot.id, %vm, "a request repeated: answered with what it made");
                Ok(Some(snapshot))
            }
            None => Err(Refusal::KeySnapshotGone(used.snapshot()).into()),
        }
    }
}

/// Under which a request is remembered, where it wants to be.
pub(super) fn request_key(actor: &Actor, request: &CreateRequest) -> Option<RequestKey> {
    let (key, digest) = request.key.clone()?;
    Some(RequestKey { user: actor.user().to_owned(), key, digest })
}
