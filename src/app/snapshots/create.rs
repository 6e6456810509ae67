//! Creates snapshots: plan, record the intent, clone all disks together, seal, commit. The snapshot of one VM is the
//! special case of a group of VMs.
//!
//! A started creation continues when the client disconnects. A crash at any step leaves the intent in the database, and
//! the recovery undoes it; a failure is undone at once. `pre` and `post` hooks enclose only the clones, so that the
//! guests are frozen for as short as possible.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::admit::CreateAdmission;
use super::create_request::CreateRequest;
use super::make::{Made, Prepared, clone_error, ms};
use super::plan::Plan;
use super::service::Snapshots;
use crate::api::Quiesce;
use crate::app::Error;
use crate::app::admission::{Admitted, LockMode, VmGuard};
use crate::app::audit::Actor;
use crate::app::hooks::{GuardedOperation, GuardedStep, HookReport};
use crate::app::tasks::Service;
use crate::auth::Session;
use crate::model::{DiskName, PendingHooksKey, Permission, Snapshot, SnapshotFiles, VmId};
use crate::repository::clone::{Cloned, Clones};

/// A creation that takes longer releases its concurrency slot.
const SLOW_CREATION: Duration = Duration::from_secs(60);

impl Snapshots {
    /// Creates a snapshot of all disks in `request` of each VM of `vm_refs`, all at one moment, or none. Returns them in
    /// this order. If an identical request has created them, returns those.
    ///
    /// Disconnecting while queued cancels the request; once creation has started, it completes.
    ///
    /// # Errors
    /// [`Error::Forbidden`], [`Error::NotFound`], [`Error::Refused`], [`Error::NotSnapshottable`], [`Error::HookFailed`],
    /// [`Error::NotQuiesced`], [`Error::CloneTimeout`], [`Error::NoSpace`], [`Error::ReadOnly`], [`Error::Io`],
    /// [`Error::Store`]; with several VMs in an [`Error::OfVm`] that names the VM. No snapshot exists then.
    pub async fn create(
        self: &Arc<Self>,
        session: &Session,
        vm_refs: Vec<VmId>,
        request: CreateRequest,
    ) -> Result<Vec<Snapshot>, Error> {
        let actor = Actor::from(session);
        let names = vm_refs.clone();
        let (vms, admitted) = match self.admit(session, vm_refs, &request).await {
            Ok(CreateAdmission::Existing(snapshots)) => {
                let outcome = Ok(snapshots);
                names.iter().for_each(|name| self.trail.read(session, "create-again", name, &outcome));
                return outcome;
            }
            Ok(CreateAdmission::Admitted { vms, admitted }) => (vms, admitted),
            Err(error) => {
                let outcome = Err(error);
                names.iter().for_each(|name| self.trail.change(&actor, "create", name, &outcome));
                return outcome;
            }
        };
        let (snapshots, viewer) = (Arc::clone(self), session.needing(Permission::View));
        self.tasks
            .detached(async move {
                let Admitted { mut slot, vm_guards } = admitted;
                let outcome = {
                    let mut creation = pin!(snapshots.create_admitted(&vms, &actor, &request, vm_guards));
                    match tokio::time::timeout(SLOW_CREATION, &mut creation).await {
                        Ok(outcome) => outcome,
                        Err(_) => {
                            // A hung repository or a slow hook must not block creations for other VMs.
                            tracing::warn!(?vms, "snapshot creation is slow; releasing its concurrency slot");
                            slot.release();
                            creation.await
                        }
                    }
                };
                let outcome = match outcome {
                    Err(error) => Err(snapshots.seen_by(viewer, error).await),
                    created => created,
                };
                for (index, vm) in vms.iter().enumerate() {
                    let id = outcome.as_ref().map_or_else(|_| "-".to_owned(), |made| made[index].id.to_string());
                    snapshots.trail.change(&actor, "create", format_args!("{vm}/{id}"), &outcome);
                }
                outcome
            })
            .await
    }

    /// The error for the user of `viewer`.
    async fn seen_by(self: &Arc<Self>, viewer: Session, error: Error) -> Error {
        let view = self.blocking(move |snapshots| snapshots.inventory.view(&viewer)).await;
        // Without a view, it names no other VM.
        match view {
            Ok(view) => error.seen_by(&view),
            Err(_) => error,
        }
    }

    async fn create_admitted(
        self: &Arc<Self>,
        vms: &[VmId],
        actor: &Actor,
        request: &CreateRequest,
        own: Vec<OwnedMutexGuard<()>>,
    ) -> Result<Vec<Snapshot>, Error> {
        let (names, by, wanted) = (vms.to_vec(), actor.clone(), request.clone());
        if let Some(existing) = self.blocking(move |snapshots| snapshots.existing(&by, &names, &wanted)).await? {
            return Ok(existing);
        }
        let mut freezes = vec![None; vms.len()];
        let created = self.create_locked(vms.to_vec(), actor.clone(), request.clone(), own, &mut freezes).await;
        if created.is_err() {
            for (vm, freeze) in vms.iter().zip(freezes) {
                self.metrics.snapshot_failed(freeze);
                if let Some(freeze) = freeze {
                    tracing::warn!(%vm, freeze_ms = %ms(freeze), "snapshot creation failed after the guest was frozen");
                }
            }
        }
        created
    }

    /// Sets `freezes` to how long hooks have frozen each guest, even if the creation fails. `own` are the mutexes of
    /// the VMs.
    async fn create_locked(
        self: &Arc<Self>,
        vms: Vec<VmId>,
        actor: Actor,
        request: CreateRequest,
        own: Vec<OwnedMutexGuard<()>>,
        freezes: &mut Vec<Option<Duration>>,
    ) -> Result<Vec<Snapshot>, Error> {
        let (of, is_group, user) = (vms.clone(), vms.len() > 1, actor.user().to_owned());
        let (by, wanted) = (actor.clone(), request.clone());
        let plan = move |snapshots: &Self| {
            let plan_one = |vm: &VmId| {
                let plan = snapshots.plan(vm, &by, &wanted)?;
                let extents = snapshots.admission.policy.check(&plan.draft, &plan.sources)?;
                extents.into_iter().for_each(|extents| snapshots.metrics.disk_extents(extents));
                Ok(plan)
            };
            let plan_one = |vm| plan_one(vm).map_err(|error: Error| error.of_vm(vm, is_group));
            of.iter().map(plan_one).collect::<Result<Vec<_>, _>>()
        };
        // Check before locking, so that a refused request leaves no lock file behind.
        let first = self.blocking(plan.clone()).await?;
        let guards = Arc::new(self.lock_all(&vms, &first, own).await?);
        // Another exporter may have changed the VMs' snapshots before this one got the locks.
        let was_waited_for = guards.iter().any(VmGuard::was_waited_for);
        let plans = if was_waited_for { self.blocking(plan).await? } else { first };
        for (guard, plan) in guards.iter().zip(&plans) {
            guard.covers(&plan.draft).map_err(|error| error.of_vm(&plan.draft.vm, is_group))?;
        }
        if self.noticing.is_shared() {
            // The lock is held, so other exporters have finished what they made of these VMs. One may have had this request.
            let repositories: BTreeSet<_> = plans.iter().flat_map(|plan| plan.draft.repositories()).cloned().collect();
            for repository in repositories.iter().filter_map(|id| self.inventory.repository(id)) {
                self.noticing.look_closely(repository).await?;
            }
            let (by, wanted, names) = (actor.clone(), request.clone(), vms.clone());
            if let Some(existing) = self.blocking(move |snapshots| snapshots.existing(&by, &names, &wanted)).await? {
                return Ok(existing);
            }
        }
        let by = user.clone();
        let prepared = self.blocking(move |snapshots| snapshots.prepare_all(plans, &by)).await?;
        // The VMs stay locked until the end of this function.
        let (cloned, made) = self.clone_with_hooks(prepared, Arc::clone(&guards), user.clone()).await;
        cloned.iter().flat_map(|(cloned, _)| cloned).for_each(|cloned| self.metrics.cloned(cloned.duration));
        *freezes = made.iter().map(|made| made.report.frozen_for).collect();
        let cloned = match cloned {
            // The clones are removed when they end.
            Err(error) if matches!(error.cause(), Error::CloneTimeout { .. }) => {
                let files: Vec<_> = made.iter().map(|made| made.unfinished.files()).collect();
                let late = self.blocking(move |snapshots| {
                    snapshots.removals.begin_undo(&files, &user, &error);
                    Err(error)
                });
                return late.await;
            }
            cloned => cloned,
        };
        self.blocking(move |snapshots| {
            let created = snapshots.complete(made, cloned, &user)?;
            for snapshot in &created {
                let freeze = Duration::from_millis(snapshot.provenance.freeze_ms.unwrap_or_default());
                snapshots.metrics.snapshot_made(freeze);
                snapshots.noticing.made(snapshot);
                if let Err(error) = snapshots.retention.observe_new(snapshot) {
                    // The snapshot exists; the sweeper observes it in its next round.
                    tracing::warn!(snapshot = %snapshot.id, %error, "cannot observe the snapshot's expiry yet");
                }
            }
            Ok(created)
        })
        .await
    }

    /// Locks the VMs in the repositories of their planned snapshots. Every operation locks in the order of VMs, then of
    /// repositories, so that no two wait for each other.
    async fn lock_all(
        self: &Arc<Self>,
        vms: &[VmId],
        plans: &[Plan],
        own: Vec<OwnedMutexGuard<()>>,
    ) -> Result<Vec<VmGuard>, Error> {
        let mut wanted: Vec<_> = vms.iter().zip(plans).zip(own).enumerate().collect();
        wanted.sort_by_key(|(_, ((vm, _), _))| *vm);
        let mut guards = Vec::with_capacity(wanted.len());
        for (index, ((vm, plan), own)) in wanted {
            let repositories = plan.draft.repositories().into_iter().cloned().collect();
            let guard = self.admission.vm_locks.lock(own, vm, repositories, LockMode::REQUEST).await;
            guards.push((index, guard.map_err(|error| error.of_vm(vm, vms.len() > 1))?));
        }
        guards.sort_by_key(|(index, _)| *index);
        Ok(guards.into_iter().map(|(_, guard)| guard).collect())
    }

    /// Clones all disks at one moment, between the hooks of all VMs.
    async fn clone_with_hooks(
        self: &Arc<Self>,
        prepared: Vec<Prepared>,
        guards: Arc<Vec<VmGuard>>,
        user: String,
    ) -> (Result<(Vec<Cloned>, jiff::Timestamp), Error>, Vec<Made>) {
        let is_group = prepared.len() > 1;
        let (mut operations, mut all_clones, mut disks, mut rest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for Prepared { unfinished, clones, commit, post_hooks, quiesce } in prepared {
            let names: Vec<DiskName> = unfinished.draft.disks.iter().map(|disk| disk.name.clone()).collect();
            disks.push((unfinished.draft.vm.clone(), names));
            operations.push(GuardedOperation {
                hooks: post_hooks.map(|hooks| (PendingHooksKey::of_creation(unfinished.draft.id), hooks)),
                refresh: Arc::new(clones.refresh()),
                requires_quiesced: quiesce == Quiesce::Require,
            });
            all_clones.push(clones);
            rest.push((unfinished, commit));
        }
        let on_late_completion = {
            let files: Vec<SnapshotFiles> = rest.iter().map(|(unfinished, _)| unfinished.files()).collect();
            let (removals, seconds) = (Arc::clone(&self.removals), self.hooks.hooks.step_timeout().as_secs_f64());
            move || {
                // Keeps the VMs locked until the clones are removed.
                let _guards = guards;
                for files in &files {
                    tracing::warn!(snapshot = %files.id, vm = %files.vm, "removing clones that finished after the timeout");
                }
                removals.undo(&files, &user, &Error::CloneTimeout { seconds });
            }
        };
        let clone = move || {
            let cloned = Clones::make_all(all_clones).map_err(|(snapshot, (disk, error))| {
                let (vm, names) = &disks[snapshot];
                clone_error(&names[disk], error).of_vm(vm, is_group)
            })?;
            Ok((cloned, jiff::Timestamp::now()))
        };
        let step = GuardedStep { work: Box::new(clone), on_late_completion: Some(Box::new(on_late_completion)) };
        let (cloned, reports) = self.hooks.with_hooks(operations, step).await;
        let cloned = cloned.map_err(|error| HookReport::with_skipped_hooks(&reports, error));
        let made = rest.into_iter().zip(reports);
        (cloned, made.map(|((unfinished, commit), report)| Made { unfinished, commit, report }).collect())
    }
}
