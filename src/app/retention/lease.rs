//! The journey of a lease: a client says until when it needs a snapshot.
//!
//! A lease holds off the sweeper, and nobody else: who deletes a snapshot outright means it, and may
//! be a client that knows no leases.

use std::sync::Arc;
use std::time::Duration;

use crate::api;
use crate::app::audit::Actor;
use crate::app::snapshots::create_request::parse_duration;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::model::{SnapshotId, VmId};

/// The longest lease: a client that needs more takes it anew, as long as it lives.
pub const LONGEST_LEASE: Duration = Duration::from_secs(7 * 24 * 3600);

impl App {
    /// Keeps the snapshot `id` of the VM that `vm_ref` names from being swept, for the time that
    /// `asked` says from now on. The user's earlier lease of it is replaced.
    ///
    /// # Errors
    /// [`Error::BadRequest`], [`Error::NotFound`], [`Error::OtherVm`], [`Error::Store`].
    pub async fn take_lease(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        id: SnapshotId,
        asked: api::TakeLease,
    ) -> Result<api::Lease, Error> {
        let actor = Actor::from(session);
        self.blocking(move |app| {
            let outcome = app.lease_until(&actor, &vm_ref, id, &asked);
            actor.did("lease", format_args!("{vm_ref}/{id}"), &outcome);
            outcome
        })
        .await
    }

    fn lease_until(
        &self,
        actor: &Actor,
        vm_ref: &VmId,
        id: SnapshotId,
        asked: &api::TakeLease,
    ) -> Result<api::Lease, Error> {
        let duration = parse_duration("ttl", &asked.ttl, LONGEST_LEASE)?;
        let snapshot = self.snapshot_of(vm_ref, id)?;
        // Another host may have made it, by a clock that is ahead of ours: a lease is never shorter than asked for.
        let until = jiff::Timestamp::now().max(snapshot.created_at) + duration;
        if !self.store.retentions().lease(id, actor.user(), until)? {
            return Err(Error::NotFound("the VM has no such snapshot"));
        }
        self.watch(&snapshot)?;
        Ok(api::Lease { expires_at: api::time(until) })
    }

    /// Gives the user's lease of the snapshot back. Where there is none, there is none.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::Store`].
    pub async fn give_lease_back(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        id: SnapshotId,
    ) -> Result<(), Error> {
        let actor = Actor::from(session);
        self.blocking(move |app| {
            let outcome =
                app.snapshot_of(&vm_ref, id).and_then(|_| Ok(app.store.retentions().release(id, actor.user())?));
            actor.did("lease-end", format_args!("{vm_ref}/{id}"), &outcome);
            outcome
        })
        .await
    }
}
