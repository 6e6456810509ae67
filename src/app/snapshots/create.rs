//! The journey to a new snapshot: plan, intent, clone all disks together, seal, commit.
//!
//! It goes on when the client hangs up. A crash at any step leaves the intent in the database, from
//! which `cleanup` undoes it; a failure undoes itself. Hooks stand around the clones and nothing else:
//! what can be done before or after them is.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::admit::{Outcome, request_key};
use super::create_request::{CreateRequest, DiskChoice, RetentionRequest};
use super::service::Snapshots;
use crate::app::Error;
use crate::app::admission::{Admitted, LockMode};
use crate::app::audit::Actor;
use crate::app::error::Refusal;
use crate::app::hooks::{GuardedStep, HookReport};
use crate::app::inventory::{DiskDecision, choose, classify};
use crate::app::tasks::Service;
use crate::auth::Session;
use crate::hooks::{Event, Operation, PendingPostHooks, milliseconds};
use crate::inventory::Problem;
use crate::model::{
    Consistency, DiskName, PendingHooksKey, PlannedDisk, Provenance, RepositoryId, Snapshot, SnapshotDraft,
    SnapshotFiles, SnapshotId, UnfinishedSnapshot, VmId,
};
use crate::repository::clone::{Cloned, Clones, Source, Target};
use crate::repository::executor::JobKind;
use crate::repository::{Repository, SnapshotDir};
use crate::store::{CommitOptions, RequestKey};

/// How long a creation holds its place among those of other VMs.
const SLOW_CREATION: Duration = Duration::from_secs(60);

/// A snapshot about to be made: its disks open, their names given, their identities not yet known.
struct Plan {
    draft: SnapshotDraft,
    sources: Vec<Source>,
    retention: CommitDetails,
    event: Event,
}

/// What goes into the commit besides the snapshot.
struct CommitDetails {
    ttl: Option<Duration>,
    key: Option<RequestKey>,
}

/// A snapshot whose intent is written down: nothing is left to do but to clone.
struct Ready {
    unfinished: UnfinishedSnapshot,
    clones: Clones,
    retention: CommitDetails,
    debt: Option<PendingPostHooks>,
}

impl Snapshots {
    /// Makes a snapshot of the VM that `vm_ref` names, of all disks that `request` wants or of none; or
    /// finds the one that the same request has made before.
    ///
    /// Who goes away while the request waits is not served: nothing was begun.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], [`Error::NotSnapshottable`], [`Error::HookFailed`],
    /// [`Error::CloneTimeout`], [`Error::NoSpace`], [`Error::ReadOnly`], [`Error::Io`], [`Error::Store`]; nothing is left then.
    pub async fn create(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        request: CreateRequest,
    ) -> Result<Snapshot, Error> {
        let actor = Actor::from(session);
        let name = vm_ref.clone();
        let (vm, admitted) = match self.admit(&actor, vm_ref, &request).await {
            Ok(Outcome::MadeBefore(snapshot)) => {
                let outcome = Ok(snapshot);
                actor.did("create-again", name, &outcome);
                return outcome;
            }
            Ok(Outcome::Now { vm, admitted }) => (vm, admitted),
            Err(error) => {
                let outcome = Err(error);
                actor.did("create", name, &outcome);
                return outcome;
            }
        };
        let snapshots = Arc::clone(self);
        self.tasks
            .detached(async move {
                let Admitted { mut slot, vm_guard } = admitted;
                let outcome = {
                    let mut creation = pin!(snapshots.create_admitted(&vm, &actor, &request, vm_guard));
                    match tokio::time::timeout(SLOW_CREATION, &mut creation).await {
                        Ok(outcome) => outcome,
                        Err(_) => {
                            // A repository that hangs, or a hook that waits, must not stop the VMs of the others.
                            tracing::warn!(%vm, "snapshot creation is slow: releasing its concurrency slot");
                            slot.release();
                            creation.await
                        }
                    }
                };
                let id = outcome.as_ref().map_or_else(|_| "-".to_owned(), |snapshot| snapshot.id.to_string());
                actor.did("create", format_args!("{vm}/{id}"), &outcome);
                outcome
            })
            .await
    }

    async fn create_admitted(
        self: &Arc<Self>,
        vm: &VmId,
        actor: &Actor,
        request: &CreateRequest,
        own: OwnedMutexGuard<()>,
    ) -> Result<Snapshot, Error> {
        let (name, by, wanted) = (vm.clone(), actor.clone(), request.clone());
        if let Some(made) = self.blocking(move |snapshots| snapshots.made_before(&by, &name, &wanted)).await? {
            return Ok(made);
        }
        let mut freeze = None;
        let made = self.make(vm.clone(), actor.clone(), request.clone(), own, &mut freeze).await;
        match &made {
            Ok(snapshot) => {
                self.metrics.snapshot_made(Duration::from_millis(snapshot.provenance.freeze_ms.unwrap_or_default()));
            }
            Err(_) => {
                self.metrics.snapshot_failed(freeze);
                if let Some(freeze) = freeze {
                    tracing::warn!(%vm, freeze_ms = %ms(freeze), "no snapshot was made, and the guest was held up for it");
                }
            }
        }
        made
    }

    /// Says in `freeze` how long hooks have held up the guest, also where that was in vain.
    async fn make(
        self: &Arc<Self>,
        vm: VmId,
        actor: Actor,
        request: CreateRequest,
        own: OwnedMutexGuard<()>,
        freeze: &mut Option<Duration>,
    ) -> Result<Snapshot, Error> {
        let (of, asked) = (vm.clone(), (actor, request));
        let plan = move |snapshots: &Self| {
            let plan = snapshots.plan(&of, &asked.0, &asked.1)?;
            snapshots.admission.policy.check(&plan.draft, &plan.sources)?;
            Ok(plan)
        };
        // What is refused leaves no lock file behind.
        let first = self.blocking(plan.clone()).await?;
        let repositories = first.draft.repositories().into_iter().cloned().collect();
        let turn = Arc::new(self.admission.vm_locks.lock(own, &vm, repositories, LockMode::REQUEST).await?);
        // Somebody else may have changed the VM's snapshots before it was locked.
        let plan = if turn.was_waited_for() { self.blocking(plan).await? } else { first };
        turn.covers(&plan.draft)?;
        let Ready { unfinished, clones, retention, debt } =
            self.blocking(move |snapshots| snapshots.make_ready(plan)).await?;
        let names: Vec<DiskName> = unfinished.draft.disks.iter().map(|disk| disk.name.clone()).collect();
        let refresh = clones.refresh();
        let on_late_completion = {
            let (files, turn, removals) = (unfinished.files(), Arc::clone(&turn), Arc::clone(&self.removals));
            move || {
                // Until now nobody else could change the VM's snapshots.
                let _turn = turn;
                tracing::warn!(snapshot = %files.id, vm = %files.vm, "its clones have ended late: they are removed");
                removals.undo(&files);
            }
        };
        let clone = move || {
            let cloned = clones.make().map_err(|(index, error)| of_clone(&names[index], error))?;
            Ok((cloned, jiff::Timestamp::now()))
        };
        let between = GuardedStep {
            work: Box::new(clone),
            refresh: Arc::new(refresh),
            on_late_completion: Some(Box::new(on_late_completion)),
        };
        let pending = debt.map(|debt| (PendingHooksKey::of_creation(unfinished.draft.id), debt));
        let (cloned, around) = self.hooks.with_hooks(pending, between).await;
        *freeze = around.held;
        if let Err(error @ Error::CloneTimeout { .. }) = cloned {
            return Err(around.beside(error));
        }
        self.blocking(move |snapshots| {
            let snapshot = snapshots.complete(unfinished, retention, cloned, around)?;
            if let Err(error) = snapshots.retention.observe_new(&snapshot) {
                // It is made; the sweeper looks at it soon enough.
                tracing::warn!(snapshot = %snapshot.id, %error, "its expiry is not watched yet");
            }
            Ok(snapshot)
        })
        .await
    }

    /// Finds the disks, and refuses what cannot be snapshotted before anything is written.
    fn plan(&self, vm: &VmId, actor: &Actor, request: &CreateRequest) -> Result<Plan, Error> {
        let (vms, definition) = self.inventory.find_vm(vm)?;
        let lines = definition.disks.as_ref().map_err(|problem| match problem {
            Problem::Invalid(text) => Error::NotSnapshottable(text.clone()),
            Problem::Unavailable(text) => Error::Unavailable(text.clone()),
        })?;
        let mut files = self.inventory.disk_files(&vms.vms, true);
        files.inspect(std::slice::from_ref(&definition));
        let mut classified = Vec::new();
        for (line, choice) in lines.iter().zip(request.selection.choices(lines)?) {
            let decision = match choice {
                DiskChoice::LeftOut => continue,
                DiskChoice::Usual => classify(&files, &definition.name, line).apply_nobackup_tag().decision,
                DiskChoice::Named => classify(&files, &definition.name, line).decision,
            };
            if let (DiskDecision::LeftOut(reason), DiskChoice::Named) = (&decision, choice) {
                return Err(Refusal::UnfitDisk { device: line.device.clone(), reason: reason.clone() }.into());
            }
            classified.push((line, decision));
        }
        let chosen = choose(classified.iter().map(|(_, decision)| decision)).map_err(|obstacle| {
            let device = obstacle.disk.map(|index| format!("{}: ", classified[index].0.device)).unwrap_or_default();
            let told = format!("{device}{}", obstacle.reason);
            if obstacle.is_passing { Error::Unavailable(told) } else { Error::NotSnapshottable(told) }
        })?;
        let mut names: HashMap<usize, DiskName> = chosen.into_iter().collect();
        let (mut disks, mut sources) = (Vec::new(), Vec::new());
        for (index, (_, decision)) in classified.into_iter().enumerate() {
            let (Some(name), DiskDecision::Taken(disk)) = (names.remove(&index), decision) else { continue };
            let opened = files.take(&disk.source).ok_or_else(|| Error::Internal(format!("{name} is not open")))?;
            disks.push(PlannedDisk { name, source: disk.source, size: disk.size, volume: disk.volume });
            let (folder, name) = opened.location;
            sources.push(Source { file: opened.file, folder, name });
        }
        let draft = SnapshotDraft {
            id: SnapshotId::from_u128(uuid::Uuid::new_v4().as_u128()),
            vm: vm.clone(),
            created_at: jiff::Timestamp::now(),
            created_by: actor.user().to_owned(),
            disks,
        };
        let ttl = match request.retention {
            RetentionRequest::Default => self.admission.policy.policy.default_ttl,
            RetentionRequest::UntilDeleted => None,
            RetentionRequest::For(ttl) => Some(ttl),
        };
        let retention = CommitDetails { ttl, key: request_key(actor, request) };
        let event_disks = draft.disks.iter().map(|disk| (&disk.name, &disk.source, disk.size));
        let event = self.hooks.event(Operation::SnapshotCreate, (draft.id, vm), event_disks, Some(&definition));
        Ok(Plan { draft, sources, retention, event })
    }

    /// Writes down the intent, and makes all that can be made before the disks are cloned.
    fn make_ready(&self, plan: Plan) -> Result<Ready, Error> {
        let Plan { draft, sources, retention, event } = plan;
        let debt = self.hooks.hooks.pending_post_hooks(event);
        let owed = debt.as_ref().map(PendingPostHooks::to_bytes).transpose();
        let owed = owed.map_err(|error| Error::Internal(format!("what hooks owe: {error}")))?;
        let mut unfinished = self.store.begin(draft, owed.as_deref())?;
        match self.prepare(&mut unfinished, sources) {
            Ok(clones) => Ok(Ready { unfinished, clones, retention, debt }),
            Err(error) => {
                self.removals.undo(&unfinished.files());
                if debt.is_some() {
                    self.hooks.pending.note(PendingHooksKey::of_creation(unfinished.draft.id), None);
                }
                Err(error)
            }
        }
    }

    fn prepare(&self, unfinished: &mut UnfinishedSnapshot, sources: Vec<Source>) -> Result<Clones, Error> {
        let draft = &unfinished.draft;
        let (id, key) = (draft.id, draft.id.as_u128());
        let mut folders = HashMap::new();
        for repository in self.repositories_with(&draft.repositories())? {
            let made =
                repository.run(JobKind::CHANGE.exclusive(key), move |_, root| SnapshotDir::new(root, id).create());
            let made = made.map_err(|error| Error::of_step("making the snapshot's folder", error))?;
            folders.insert(repository.id().clone(), (repository, made));
        }
        let mut disks = Vec::new();
        for (disk, source) in draft.disks.iter().zip(sources) {
            let made = folders.get(&disk.source.repository);
            let (repository, folder) = made.ok_or_else(|| no_repository(&disk.source.repository))?;
            disks.push((repository.clone(), source, Target { folder: folder.clone(), name: disk.name.to_string() }));
        }
        let failed = |(index, error): (usize, io::Error)| of_clone(&draft.disks[index].name, error);
        let clones = Clones::prepare(disks, key).map_err(failed)?;
        // From now on no other file is taken for one of the snapshot, should it be undone.
        unfinished.inodes = clones.inodes().collect();
        Ok(clones)
    }

    /// Makes a snapshot of the clones and commits it, or undoes it.
    fn complete(
        &self,
        mut unfinished: UnfinishedSnapshot,
        retention: CommitDetails,
        cloned: Result<(Cloned, jiff::Timestamp), Error>,
        around: HookReport,
    ) -> Result<Snapshot, Error> {
        let sealed = cloned.map_err(|error| around.beside(error)).and_then(|(cloned, at)| {
            // What the hooks took is not in it: it is as old as its bytes.
            self.seal(&mut unfinished, at, cloned, around)
        });
        let snapshot = sealed.inspect_err(|_| self.removals.undo(&unfinished.files()))?;
        let order =
            CommitOptions { expires_at: retention.ttl.map(|ttl| snapshot.created_at + ttl), key: retention.key };
        if let Err(error) = self.store.commit(&snapshot, &order) {
            // A commit that failed may be on the disk all the same: only the database knows. Where
            // it does not answer, nothing is touched, and the next start decides.
            match self.store.record(snapshot.id) {
                Ok(Some(record)) if record.is_ready() => {}
                Ok(_) => {
                    self.removals.undo(&SnapshotFiles::from(&snapshot));
                    return Err(error.into());
                }
                Err(_) => return Err(error.into()),
            }
        }
        Ok(snapshot)
    }

    fn seal(
        &self,
        unfinished: &mut UnfinishedSnapshot,
        created_at: jiff::Timestamp,
        cloned: Cloned,
        around: HookReport,
    ) -> Result<Snapshot, Error> {
        let window = cloned.window;
        let freeze = around.held.unwrap_or(window);
        let consistency = if around.quiesced { Consistency::Quiesced } else { Consistency::Crash };
        let provenance = Provenance { consistency, freeze_ms: Some(milliseconds(freeze)), hooks: around.runs };
        let files = cloned.seal().map_err(|(index, error)| of_clone(&unfinished.draft.disks[index].name, error))?;
        unfinished.inodes = files.iter().map(|file| NonZero::new(file.identity.inode)).collect();
        let files = files.into_iter().map(|file| (file.identity, file.seal)).collect();
        let snapshot = unfinished.clone().finish(created_at, provenance, files);
        let (repositories, kind) =
            (self.repositories_with(&snapshot.repositories())?, JobKind::CHANGE.exclusive(snapshot.id.as_u128()));
        let failed = |error| Error::of_step("writing the snapshot's manifest", error);
        for repository in &repositories {
            let (of, exporter) = (snapshot.clone(), self.exporter.clone());
            let sealed = repository.run(kind, move |_, root| SnapshotDir::new(root, of.id).seal(&of, &exporter));
            sealed.map_err(failed)?;
        }
        // Only where all have it: a part of a snapshot must not be taken for a finished one.
        for repository in &repositories {
            let id = snapshot.id;
            repository.run(kind, move |_, root| SnapshotDir::new(root, id).finish()).map_err(failed)?;
        }
        tracing::info!(
            snapshot = %snapshot.id, vm = %snapshot.vm, user = %snapshot.created_by, disks = snapshot.disks.len(),
            clone_ms = %ms(window), freeze_ms = %ms(freeze), consistency = consistency.as_str(), "snapshot made"
        );
        Ok(snapshot)
    }

    fn repositories_with(&self, ids: &[&RepositoryId]) -> Result<Vec<Repository>, Error> {
        ids.iter().map(|id| self.inventory.repository(id).ok_or_else(|| no_repository(id))).collect()
    }
}

fn no_repository(id: &RepositoryId) -> Error {
    Error::Internal(format!("no repository {id}"))
}

fn ms(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1e3)
}

fn of_clone(disk: &DiskName, error: io::Error) -> Error {
    Error::of_step(format!("cloning {disk}"), error)
}
