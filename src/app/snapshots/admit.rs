//! From a request for a snapshot to its turn: what was made before is found, the rest waits.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use crate::app::admission::policy::Refusal;
use crate::app::admission::queue::Permit;
use crate::app::audit::Actor;
use crate::app::ops::status::Creation;
use crate::app::snapshots::create_request::CreateRequest;
use crate::app::{App, Error};
use crate::model::{Snapshot, VmId};
use crate::store::RequestKey;

/// What becomes of a request for a snapshot.
pub(crate) enum Admission {
    /// It was carried out before.
    MadeBefore(Snapshot),
    Now(Admitted),
}

/// A VM whose turn it is.
pub(crate) struct Admitted {
    pub vm: VmId,
    pub held: (Permit<Creation>, OwnedMutexGuard<()>),
}

/// Snapshots that may wait for a place.
pub(crate) const QUEUE: usize = 64;

/// Those that may be before one VM, the one that is being made counted.
const QUEUE_OF_VM: usize = 4;

impl App {
    /// Waits until the snapshot may be made.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        actor: &Actor,
        vm_ref: VmId,
        request: &CreateRequest,
    ) -> Result<Admission, Error> {
        let (by, asked) = (actor.clone(), request.clone());
        let known = self.blocking(move |app| {
            let vm = app.resolve_vm(&vm_ref)?;
            let made = app.made_before(&by, &vm, &asked)?;
            Ok((vm, made))
        });
        let vm = match known.await? {
            (_, Some(snapshot)) => return Ok(Admission::MadeBefore(snapshot)),
            (vm, None) => vm,
        };
        let creation = Creation { vm: vm.clone(), user: actor.user().to_owned() };
        let ticket = self.creations.join(creation).map_err(|_| Refusal::QueueFull("snapshots"))?;
        // First the turn, then the place: those who wait for one VM hold up no other.
        let turn = self.vm_locks.take_behind(&vm, QUEUE_OF_VM).await;
        let turn = turn.ok_or(Refusal::QueueFull("changes of this VM's snapshots"))?;
        let place = ticket.place().await.map_err(|_| Refusal::QueueFull("snapshots"))?;
        Ok(Admission::Now(Admitted { vm, held: (place, turn) }))
    }

    /// The snapshot that the same request has made already.
    pub(crate) fn made_before(
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
pub(crate) fn request_key(actor: &Actor, request: &CreateRequest) -> Option<RequestKey> {
    let (key, digest) = request.key.clone()?;
    Some(RequestKey { user: actor.user().to_owned(), key, digest })
}
