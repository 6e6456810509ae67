//! Creates a snapshot: plan, record the intent, clone all disks together, seal, commit.
//!
//! A started creation continues when the client disconnects. A crash at any step leaves the intent in the database, and
//! the recovery undoes it; a failure is undone at once. `pre` and `post` hooks enclose only the clones, so that the
//! guest is frozen for as short as possible.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::admit::{CreateAdmission, request_key};
use super::create_request::{CreateRequest, DiskChoice, RetentionRequest};
use super::service::Snapshots;
use crate::api::Quiesce;
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
    Consistency, Definition, DiskName, PendingHooksKey, PlannedDisk, Provenance, RepositoryId, Snapshot, SnapshotDraft,
    SnapshotFiles, SnapshotId, UnfinishedSnapshot, VmId,
};
use crate::repository::clone::{Cloned, Clones, Source, Target};
use crate::repository::executor::JobKind;
use crate::repository::{Repository, SnapshotDir};
use crate::store::{CommitOptions, RequestKey};

/// A creation that takes longer releases its concurrency slot.
const SLOW_CREATION: Duration = Duration::from_secs(60);

/// A planned snapshot: its disks are open and named, but not cloned.
struct Plan {
    draft: SnapshotDraft,
    sources: Vec<Source>,
    commit: CommitDetails,
    event: Event,
    quiesce: Quiesce,
}

/// What the commit records besides the snapshot.
struct CommitDetails {
    ttl: Option<Duration>,
    key: Option<RequestKey>,
    definition: Option<Definition>,
}

/// A snapshot whose intent is recorded and whose files are prepared: the next step clones.
struct Prepared {
    unfinished: UnfinishedSnapshot,
    clones: Clones,
    commit: CommitDetails,
    post_hooks: Option<PendingPostHooks>,
    quiesce: Quiesce,
}

impl Snapshots {
    /// Creates a snapshot of all disks in `request` of the VM `vm_ref`. Returns the existing snapshot if an identical
    /// request has created one.
    ///
    /// Disconnecting while queued cancels the request; once creation has started, it completes.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], [`Error::NotSnapshottable`], [`Error::HookFailed`],
    /// [`Error::NotQuiesced`], [`Error::CloneTimeout`], [`Error::NoSpace`], [`Error::ReadOnly`], [`Error::Io`],
    /// [`Error::Store`]. No snapshot exists then.
    pub async fn create(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        request: CreateRequest,
    ) -> Result<Snapshot, Error> {
        let actor = Actor::from(session);
        let name = vm_ref.clone();
        let (vm, admitted) = match self.admit(&actor, vm_ref, &request).await {
            Ok(CreateAdmission::Existing(snapshot)) => {
                let outcome = Ok(snapshot);
                actor.did("create-again", name, &outcome);
                return outcome;
            }
            Ok(CreateAdmission::Admitted { vm, admitted }) => (vm, admitted),
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
                            // A hung repository or a slow hook must not block creations for other VMs.
                            tracing::warn!(%vm, "snapshot creation is slow; releasing its concurrency slot");
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
        if let Some(existing) = self.blocking(move |snapshots| snapshots.existing(&by, &name, &wanted)).await? {
            return Ok(existing);
        }
        let mut freeze = None;
        let created = self.create_locked(vm.clone(), actor.clone(), request.clone(), own, &mut freeze).await;
        match &created {
            Ok(snapshot) => {
                self.metrics.snapshot_made(Duration::from_millis(snapshot.provenance.freeze_ms.unwrap_or_default()));
            }
            Err(_) => {
                self.metrics.snapshot_failed(freeze);
                if let Some(freeze) = freeze {
                    tracing::warn!(%vm, freeze_ms = %ms(freeze), "snapshot creation failed after the guest was frozen");
                }
            }
        }
        created
    }

    /// Sets `freeze` to how long hooks have frozen the guest, even if the creation fails.
    async fn create_locked(
        self: &Arc<Self>,
        vm: VmId,
        actor: Actor,
        request: CreateRequest,
        own: OwnedMutexGuard<()>,
        freeze: &mut Option<Duration>,
    ) -> Result<Snapshot, Error> {
        let of = vm.clone();
        let plan = move |snapshots: &Self| {
            let plan = snapshots.plan(&of, &actor, &request)?;
            snapshots.admission.policy.check(&plan.draft, &plan.sources)?;
            Ok(plan)
        };
        // Check before locking, so that a refused request leaves no lock file behind.
        let first = self.blocking(plan.clone()).await?;
        let repositories = first.draft.repositories().into_iter().cloned().collect();
        let guard = Arc::new(self.admission.vm_locks.lock(own, &vm, repositories, LockMode::REQUEST).await?);
        // Another exporter may have changed the VM's snapshots before this one got the lock.
        let plan = if guard.was_waited_for() { self.blocking(plan).await? } else { first };
        guard.covers(&plan.draft)?;
        let Prepared { unfinished, clones, commit, post_hooks, quiesce } =
            self.blocking(move |snapshots| snapshots.prepare_all(plan)).await?;
        let names: Vec<DiskName> = unfinished.draft.disks.iter().map(|disk| disk.name.clone()).collect();
        let refresh = clones.refresh();
        let on_late_completion = {
            let (files, guard, removals) = (unfinished.files(), Arc::clone(&guard), Arc::clone(&self.removals));
            move || {
                // Keeps the VM locked until the clones are removed.
                let _guard = guard;
                tracing::warn!(snapshot = %files.id, vm = %files.vm, "removing clones that finished after the timeout");
                removals.undo(&files);
            }
        };
        let clone = move || {
            let cloned = clones.make().map_err(|(index, error)| clone_error(&names[index], error))?;
            Ok((cloned, jiff::Timestamp::now()))
        };
        let step = GuardedStep {
            work: Box::new(clone),
            refresh: Arc::new(refresh),
            on_late_completion: Some(Box::new(on_late_completion)),
            requires_quiesced: quiesce == Quiesce::Require,
        };
        let pending = post_hooks.map(|hooks| (PendingHooksKey::of_creation(unfinished.draft.id), hooks));
        let (cloned, report) = self.hooks.with_hooks(pending, step).await;
        *freeze = report.frozen_for;
        if let Err(error @ Error::CloneTimeout { .. }) = cloned {
            return Err(report.with_skipped_hooks(error));
        }
        self.blocking(move |snapshots| {
            let snapshot = snapshots.complete(unfinished, commit, cloned, report)?;
            if let Err(error) = snapshots.retention.observe_new(&snapshot) {
                // The snapshot exists; the sweeper observes it in its next round.
                tracing::warn!(snapshot = %snapshot.id, %error, "cannot observe the snapshot's expiry yet");
            }
            Ok(snapshot)
        })
        .await
    }

    /// Finds the disks, and refuses disks that cannot be snapshotted, before anything is written.
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
            let reason = format!("{device}{}", obstacle.reason);
            if obstacle.is_temporary { Error::Unavailable(reason) } else { Error::NotSnapshottable(reason) }
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
            annotations: request.annotations.clone(),
        };
        let ttl = match request.retention {
            RetentionRequest::Default => self.admission.policy.limits.default_ttl,
            RetentionRequest::UntilDeleted => None,
            RetentionRequest::For(ttl) => Some(ttl),
        };
        let kept = self.inventory.describe(&definition);
        let commit = CommitDetails { ttl, key: request_key(actor, request), definition: kept };
        let event_disks = draft.disks.iter().map(|disk| (&disk.name, &disk.source, disk.size));
        let event = self.hooks.event(Operation::SnapshotCreate, (draft.id, vm), event_disks, Some(&definition));
        Ok(Plan { draft, sources, commit, event, quiesce: request.quiesce })
    }

    /// Records the intent, and prepares everything that can be prepared before the clones.
    fn prepare_all(&self, plan: Plan) -> Result<Prepared, Error> {
        let Plan { draft, sources, commit, event, quiesce } = plan;
        let post_hooks = match quiesce {
            Quiesce::Skip => None,
            Quiesce::Try => self.hooks.hooks.pending_post_hooks(event),
            Quiesce::Require => {
                let post_hooks = self.hooks.hooks.pending_post_hooks(event);
                Some(post_hooks.ok_or_else(|| Error::NotQuiesced("no hook is configured for this VM".to_owned()))?)
            }
        };
        let record = post_hooks.as_ref().map(PendingPostHooks::to_bytes).transpose();
        let record = record.map_err(|error| Error::Internal(format!("pending post hooks: {error}")))?;
        let mut unfinished = self.store.begin(draft, record.as_deref())?;
        match self.prepare(&mut unfinished, sources) {
            Ok(clones) => Ok(Prepared { unfinished, clones, commit, post_hooks, quiesce }),
            Err(error) => {
                self.removals.undo(&unfinished.files());
                if post_hooks.is_some() {
                    self.hooks.pending.set(PendingHooksKey::of_creation(unfinished.draft.id), None);
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
            let created =
                repository.run(JobKind::CHANGE.exclusive(key), move |_, root| SnapshotDir::new(root, id).create());
            let created = created.map_err(|error| Error::of_step("creating the snapshot's folder", error))?;
            folders.insert(repository.id().clone(), (repository, created));
        }
        let mut disks = Vec::new();
        for (disk, source) in draft.disks.iter().zip(sources) {
            let found = folders.get(&disk.source.repository);
            let (repository, folder) = found.ok_or_else(|| no_repository(&disk.source.repository))?;
            disks.push((repository.clone(), source, Target { folder: folder.clone(), name: disk.name.to_string() }));
        }
        let failed = |(index, error): (usize, io::Error)| clone_error(&draft.disks[index].name, error);
        let clones = Clones::prepare(disks, key).map_err(failed)?;
        // With the inode numbers, undoing the snapshot removes no other files.
        unfinished.inodes = clones.inodes().collect();
        Ok(clones)
    }

    /// Seals the clones as a snapshot and commits it, or undoes it.
    fn complete(
        &self,
        mut unfinished: UnfinishedSnapshot,
        commit: CommitDetails,
        cloned: Result<(Cloned, jiff::Timestamp), Error>,
        report: HookReport,
    ) -> Result<Snapshot, Error> {
        let sealed = cloned.map_err(|error| report.with_skipped_hooks(error)).and_then(|(cloned, at)| {
            // The snapshot's time is that of the clones, not that of the end of the hooks.
            self.seal(&mut unfinished, commit.definition.as_ref(), at, cloned, report)
        });
        let snapshot = sealed.inspect_err(|_| self.removals.undo(&unfinished.files()))?;
        let CommitDetails { ttl, key, definition } = commit;
        let options = CommitOptions { expires_at: ttl.map(|ttl| snapshot.created_at + ttl), key, definition };
        if let Err(error) = self.store.commit(&snapshot, &options) {
            // A failed commit may still have reached the disk, which only the database knows. If it cannot be read,
            // nothing is changed; the recovery after the next start decides.
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
        definition: Option<&Definition>,
        created_at: jiff::Timestamp,
        cloned: Cloned,
        report: HookReport,
    ) -> Result<Snapshot, Error> {
        let clone_time = cloned.duration;
        let freeze = report.frozen_for.unwrap_or(clone_time);
        let consistency = if report.quiesced { Consistency::Quiesced } else { Consistency::Crash };
        let provenance = Provenance { consistency, freeze_ms: Some(milliseconds(freeze)), hooks: report.runs };
        let files = cloned.seal().map_err(|(index, error)| clone_error(&unfinished.draft.disks[index].name, error))?;
        unfinished.inodes = files.iter().map(|file| NonZero::new(file.identity.inode)).collect();
        let files = files.into_iter().map(|file| (file.identity, file.seal)).collect();
        let snapshot = unfinished.clone().finish(created_at, provenance, files);
        let (repositories, kind) =
            (self.repositories_with(&snapshot.repositories())?, JobKind::CHANGE.exclusive(snapshot.id.as_u128()));
        let failed = |error| Error::of_step("writing the snapshot's manifest", error);
        for repository in &repositories {
            let (of, definition, exporter) = (snapshot.clone(), definition.cloned(), self.exporter.clone());
            let sealed = repository
                .run(kind, move |_, root| SnapshotDir::new(root, of.id).seal(&of, definition.as_ref(), &exporter));
            sealed.map_err(failed)?;
        }
        // Finish only after all repositories have the manifest: a part must not look like a finished snapshot.
        for repository in &repositories {
            let id = snapshot.id;
            repository.run(kind, move |_, root| SnapshotDir::new(root, id).finish()).map_err(failed)?;
        }
        tracing::info!(
            snapshot = %snapshot.id, vm = %snapshot.vm, user = %snapshot.created_by, disks = snapshot.disks.len(),
            clone_ms = %ms(clone_time), freeze_ms = %ms(freeze), consistency = consistency.as_str(), "snapshot created"
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

fn clone_error(disk: &DiskName, error: io::Error) -> Error {
    Error::of_step(format!("cloning {disk}"), error)
}
