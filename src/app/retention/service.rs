//! Decides how long each snapshot is kept.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::duration::parse_duration;
use super::uses::{InUse, SnapshotUses, SweepGuard};
use crate::api;
use crate::app::Error;
use crate::app::audit::AuditTrail;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::model::retention::{Candidate, Moment, Watch};
use crate::model::{Lease, Snapshot, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::hold::{self, Sharing};
use crate::repository::leases;
use crate::store::Store;

/// The longest lease. A client that needs the snapshot for longer renews it.
pub const LONGEST_LEASE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Expiry, leases, and which snapshots are in use.
pub struct Retention {
    inventory: Arc<Inventory>,
    store: Store,
    uses: SnapshotUses,
    watch: Mutex<Watch>,
    /// Start of the monotonic clock.
    started: Instant,
    /// Whether other exporters have to know the leases.
    is_shared: bool,
    trail: Arc<AuditTrail>,
    tasks: Tasks,
}

impl Service for Retention {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Retention {
    /// Keeps each snapshot for at least `grace` after its successor was committed.
    pub(crate) fn new(
        inventory: Arc<Inventory>,
        store: Store,
        (grace, is_shared): (Duration, bool),
        trail: Arc<AuditTrail>,
        tasks: Tasks,
    ) -> Self {
        let watch = Mutex::new(Watch::new(grace));
        Self {
            inventory,
            store,
            uses: SnapshotUses::default(),
            watch,
            started: Instant::now(),
            is_shared,
            trail,
            tasks,
        }
    }

    /// Replaces the grace period of snapshots that are superseded from now on.
    pub(crate) fn set_grace(&self, grace: Duration) {
        self.watch().set_grace(grace);
    }

    /// Keeps the snapshot `id` of the VM `vm_ref` from being swept while a client works on it. Call it before reading
    /// the record.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is being swept; [`Error::Forbidden`], because a user who may not use it must not keep it
    /// either; [`Error::Store`].
    pub(crate) fn hold(&self, session: &Session, vm_ref: &VmId, id: SnapshotId) -> Result<InUse, Error> {
        self.inventory.check_early(session, vm_ref, id)?;
        let mut held =
            self.hold_existing(id).ok_or(Error::NotFound("the snapshot has expired and is being deleted"))?;
        if self.store.snapshot(id)?.is_none() {
            held.ignore();
        }
        Ok(held)
    }

    /// As [`Retention::hold`], for a snapshot that certainly exists.
    pub(crate) fn hold_existing(&self, id: SnapshotId) -> Option<InUse> {
        self.uses.hold(id)
    }

    /// Keeps the snapshot from being swept during an access that does not imply further use, such as a list.
    pub(crate) fn hold_briefly(&self, id: SnapshotId) -> Option<InUse> {
        self.uses.hold_briefly(id)
    }

    /// Keeps clients from starting to use the snapshot. Returns nothing if a client uses it.
    pub(crate) fn begin_sweep(&self, id: SnapshotId) -> Option<SweepGuard> {
        self.uses.sweep(id)
    }

    /// The snapshots that clients use here.
    pub(crate) fn used(&self) -> HashSet<SnapshotId> {
        self.uses.all()
    }

    fn moment(&self) -> Moment {
        Moment { wall: jiff::Timestamp::now(), monotonic: self.started.elapsed() }
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Observes a new expiry or lease. From now on, the monotonic clock measures it.
    fn observe(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let retention = self.store.retentions().of(snapshot.id)?;
        self.watch().observe(self.moment(), snapshot.id, snapshot.created_at, retention);
        Ok(())
    }

    /// Observes a snapshot that was just committed, and starts the grace period of its predecessor.
    pub(crate) fn observe_new(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.observe(snapshot)?;
        let of_vm = self.store.snapshots_of(&snapshot.vm)?;
        if let Some(former) = of_vm.iter().rev().find(|other| other.order() < snapshot.order()) {
            self.watch().supersede(self.moment(), former.id, snapshot.id);
        }
        Ok(())
    }

    /// Delays the next sweep of a snapshot by `pause`, because its deletion failed.
    pub(crate) fn postpone(&self, id: SnapshotId, pause: Duration) {
        self.watch().postpone(self.moment(), id, pause);
    }

    /// The snapshots that may be swept now.
    pub(crate) fn due(&self) -> Result<Vec<(VmId, SnapshotId)>, Error> {
        self.uses.remove_old();
        let expiring = self.store.retentions().expiring()?;
        self.watch().retain(|id| expiring.contains(&id));
        if expiring.is_empty() {
            return Ok(Vec::new());
        }
        let mut due = Vec::new();
        for (vm, ids) in self.store.snapshot_ids()? {
            if ids.iter().any(|id| expiring.contains(id)) {
                match self.due_of(&vm) {
                    Ok(ids) => due.extend(ids.into_iter().map(|id| (vm.clone(), id))),
                    // Without all records, the newest one is not known.
                    Err(error) => tracing::error!(%vm, %error, "cannot sweep the snapshots of this VM"),
                }
            }
        }
        Ok(due)
    }

    /// The snapshots of one VM that may be swept now.
    pub(crate) fn due_of(&self, vm: &VmId) -> Result<Vec<SnapshotId>, Error> {
        let candidate = |snapshot: Snapshot| {
            let Snapshot { id, created_at, .. } = snapshot;
            Ok(Candidate { id, created_at, retention: self.store.retentions().of(id)?, in_use: self.uses.counts(id) })
        };
        let candidates: Result<Vec<_>, Error> = self.store.snapshots_of(vm)?.into_iter().map(candidate).collect();
        Ok(self.watch().sweepable(self.moment(), &candidates?))
    }

    /// Leases the snapshot `id` of the VM `vm_ref` to the user, for the duration in `request`. The new lease replaces
    /// the user's earlier one.
    ///
    /// A lease only prevents the retention sweep: clients may still delete the snapshot.
    ///
    /// # Errors
    /// [`Error::BadRequest`], [`Error::NotFound`], [`Error::OtherVm`], [`Error::Store`].
    pub async fn take_lease(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        id: SnapshotId,
        request: api::TakeLease,
    ) -> Result<api::Lease, Error> {
        let session = session.clone();
        self.blocking(move |retention| {
            let outcome = retention.lease_until(&session, &vm_ref, id, &request);
            retention.trail.read(&session, "lease", format_args!("{vm_ref}/{id}"), &outcome);
            outcome
        })
        .await
    }

    fn lease_until(
        &self,
        session: &Session,
        vm_ref: &VmId,
        id: SnapshotId,
        request: &api::TakeLease,
    ) -> Result<api::Lease, Error> {
        let snapshot = self.inventory.snapshot_of(session, vm_ref, id)?;
        let duration = parse_duration("ttl", &request.ttl, LONGEST_LEASE)?;
        // The creating host's clock may be ahead of ours; even then, the lease must not be shorter than requested.
        let until =
            jiff::Timestamp::now().max(snapshot.created_at).checked_add(duration).unwrap_or(jiff::Timestamp::MAX);
        if self.is_shared && !self.put_lease(&snapshot, session.subject(), until)? {
            return Err(Error::Unavailable("another exporter is about to delete the snapshot".to_owned()));
        }
        if !self.store.retentions().lease(id, session.subject(), until)? {
            return Err(Error::NotFound("the VM has no such snapshot"));
        }
        self.observe(&snapshot)?;
        Ok(api::Lease { expires_at: api::time(until) })
    }

    /// Writes a lease for all exporters. Returns false if one of them is deleting the snapshot.
    fn put_lease(&self, snapshot: &Snapshot, user: &str, until: jiff::Timestamp) -> Result<bool, Error> {
        let lease = Lease { snapshot: snapshot.id, user: user.to_owned(), until };
        let repository = self.inventory.first_repository(snapshot)?;
        let checked = repository.clone();
        let written = repository.run(JobKind::CHANGE, move |access, root| {
            checked.mounted_now(access)?;
            // A sweeper that holds the snapshot alone has read the leases, or will read this one.
            let Some(_held) = hold::try_hold(root, lease.snapshot, Sharing::Shared)? else { return Ok(false) };
            leases::put(root, &lease).map(|()| true)
        });
        written.map_err(|error| Error::of_step("writing the lease", error))
    }

    fn remove_lease(&self, snapshot: &Snapshot, user: &str) -> Result<(), Error> {
        let (id, user) = (snapshot.id, user.to_owned());
        let repository = self.inventory.first_repository(snapshot)?;
        let removed = repository.run(JobKind::CHANGE, move |_, root| leases::remove(root, id, &user));
        removed.map_err(|error| Error::of_step("removing the lease", error))
    }

    /// Ends the user's lease of the snapshot. Succeeds if there is none.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::Store`].
    pub async fn end_lease(self: &Arc<Self>, session: &Session, vm_ref: VmId, id: SnapshotId) -> Result<(), Error> {
        let session = session.clone();
        self.blocking(move |retention| {
            let snapshot = retention.inventory.snapshot_of(&session, &vm_ref, id);
            let outcome = snapshot.and_then(|snapshot| {
                if retention.is_shared {
                    retention.remove_lease(&snapshot, session.subject())?;
                }
                Ok(retention.store.retentions().release(id, session.subject())?)
            });
            retention.trail.read(&session, "lease-end", format_args!("{vm_ref}/{id}"), &outcome);
            outcome
        })
        .await
    }
}
