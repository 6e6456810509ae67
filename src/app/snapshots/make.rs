//! Makes the files of planned snapshots: records the intent, prepares, seals, commits, or undoes. All snapshots of a
//! group are made, or none.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::time::Duration;

use super::plan::{CommitDetails, Plan};
use super::service::Snapshots;
use crate::api::Quiesce;
use crate::app::Error;
use crate::app::hooks::HookReport;
use crate::app::notifications::Event;
use crate::hooks::{PendingPostHooks, milliseconds};
use crate::model::{
    Consistency, Described, DiskName, PendingHooksKey, Provenance, RepositoryId, Snapshot, SnapshotFiles,
    UnfinishedSnapshot,
};
use crate::repository::clone::{Cloned, Clones, Source, Target};
use crate::repository::executor::JobKind;
use crate::repository::{Repository, SnapshotDir};

/// A snapshot whose intent is recorded and whose files are prepared: the next step clones.
pub(super) struct Prepared {
    pub unfinished: UnfinishedSnapshot,
    pub clones: Clones,
    pub commit: CommitDetails,
    pub post_hooks: Option<PendingPostHooks>,
    pub quiesce: Quiesce,
}

/// A snapshot whose disks are cloned.
pub(super) struct Made {
    pub unfinished: UnfinishedSnapshot,
    pub commit: CommitDetails,
    pub report: HookReport,
}

impl Snapshots {
    /// Records the intent of `user`, and prepares everything that can be prepared before the clones.
    pub(super) fn prepare_all(&self, plans: Vec<Plan>, user: &str) -> Result<Vec<Prepared>, Error> {
        let (mut drafts, mut others) = (Vec::new(), Vec::new());
        let is_group = plans.len() > 1;
        for Plan { draft, sources, commit, event, quiesce } in plans {
            let post_hooks = match quiesce {
                Quiesce::Skip => None,
                Quiesce::Try | Quiesce::Require => self.hooks.hooks.pending_post_hooks(event),
            };
            if quiesce == Quiesce::Require && post_hooks.is_none() {
                let error = Error::NotQuiesced("no hook is configured for this VM".to_owned());
                return Err(error.of_vm(&draft.vm, is_group));
            }
            let record = post_hooks.as_ref().map(PendingPostHooks::to_bytes).transpose();
            let record = record.map_err(|error| Error::Internal(format!("pending post hooks: {error}")))?;
            drafts.push((draft, record));
            others.push((sources, commit, post_hooks, quiesce));
        }
        let begun = self.store.begin(drafts)?;
        // All records exist now, so that an error must undo all of them.
        let (mut prepared, mut begun_files, mut hooks, mut failed) = (Vec::new(), Vec::new(), Vec::new(), None);
        for (mut unfinished, (sources, commit, post_hooks, quiesce)) in begun.into_iter().zip(others) {
            let clones = match failed {
                None => self.prepare(&mut unfinished, sources),
                Some(error) => Err(error),
            };
            begun_files.push(unfinished.files());
            hooks.extend(post_hooks.is_some().then(|| PendingHooksKey::of_creation(unfinished.draft.id)));
            failed = match clones {
                Ok(clones) => {
                    prepared.push(Prepared { unfinished, clones, commit, post_hooks, quiesce });
                    None
                }
                Err(error @ Error::OfVm { .. }) => Some(error),
                Err(error) => Some(error.of_vm(&unfinished.draft.vm, is_group)),
            };
        }
        let Some(error) = failed else { return Ok(prepared) };
        drop(prepared);
        self.removals.undo(&begun_files, user, &error);
        hooks.into_iter().for_each(|key| self.hooks.pending.set(key, None));
        Err(error)
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

    /// Seals the clones as snapshots of `user` and commits them, or undoes all.
    pub(super) fn complete(
        &self,
        mut made: Vec<Made>,
        cloned: Result<(Vec<Cloned>, jiff::Timestamp), Error>,
        user: &str,
    ) -> Result<Vec<Snapshot>, Error> {
        // The snapshots' time is that of the clones, not that of the end of the hooks.
        let sealed = cloned.and_then(|(cloned, at)| self.seal_all(&mut made, at, cloned));
        let undo = |error: &Error| {
            let files: Vec<_> = made.iter().map(|made| made.unfinished.files()).collect();
            self.removals.undo(&files, user, error);
        };
        let described = sealed.inspect_err(undo)?;
        // In the same transaction, so that a crash loses neither.
        let with_event = |described: Described| {
            let event = Event::snapshot_created(&described.snapshot, described.expires_at);
            let event = self.notifications.prepare(&event);
            (described, event)
        };
        let described: Vec<_> = described.into_iter().map(with_event).collect();
        let committed = self.store.commit(&described);
        self.notifications.wake();
        let snapshots: Vec<_> = described.into_iter().map(|(described, _)| described.snapshot).collect();
        if let (Err(error), Some(first)) = (committed, snapshots.first()) {
            // A failed commit may still have reached the disk, which only the database knows. If it cannot be read,
            // nothing is changed; the recovery after the next start decides. One transaction commits all.
            match self.store.record(first.id) {
                Ok(Some(record)) if record.is_ready() => {}
                Ok(_) => {
                    let (files, error): (Vec<_>, _) =
                        (snapshots.iter().map(SnapshotFiles::from).collect(), error.into());
                    self.removals.undo(&files, user, &error);
                    return Err(error);
                }
                Err(_) => return Err(error.into()),
            }
        }
        Ok(snapshots)
    }

    fn seal_all(
        &self,
        made: &mut [Made],
        created_at: jiff::Timestamp,
        cloned: Vec<Cloned>,
    ) -> Result<Vec<Described>, Error> {
        let is_group = made.len() > 1;
        let mut snapshots = Vec::with_capacity(made.len());
        let mut clone_times = Vec::with_capacity(made.len());
        for (made, cloned) in made.iter_mut().zip(cloned) {
            clone_times.push(cloned.duration);
            let sealed = self.seal(made, created_at, is_group, cloned);
            snapshots.push(sealed.map_err(|error| error.of_vm(&made.unfinished.draft.vm, is_group))?);
        }
        // Finish only after all repositories have all manifests: a part must not look like a finished snapshot.
        for (Described { snapshot, .. }, clone_time) in snapshots.iter().zip(clone_times) {
            let (id, kind) = (snapshot.id, JobKind::CHANGE.exclusive(snapshot.id.as_u128()));
            // The first repository last: a snapshot is complete when it is complete there.
            for repository in self.repositories_with(&snapshot.repositories())?.into_iter().rev() {
                let finished = repository.run(kind, move |_, root| SnapshotDir::new(root, id).finish());
                finished.map_err(manifest_error)?;
            }
            let Provenance { consistency, freeze_ms, .. } = &snapshot.provenance;
            tracing::info!(
                snapshot = %snapshot.id, vm = %snapshot.vm, user = %snapshot.created_by, disks = snapshot.disks.len(),
                clone_ms = %ms(clone_time), freeze_ms = freeze_ms.unwrap_or_default(),
                consistency = consistency.as_str(), "snapshot created"
            );
        }
        Ok(snapshots)
    }

    /// Writes the clones of one snapshot, and its manifests, to stable storage.
    fn seal(
        &self,
        made: &mut Made,
        created_at: jiff::Timestamp,
        is_of_group: bool,
        cloned: Cloned,
    ) -> Result<Described, Error> {
        let Made { unfinished, commit, report } = made;
        let freeze = report.frozen_for.unwrap_or(cloned.duration);
        let consistency = if report.quiesced { Consistency::Quiesced } else { Consistency::Crash };
        let hooks = std::mem::take(&mut report.runs);
        let provenance = Provenance { consistency, freeze_ms: Some(milliseconds(freeze)), hooks };
        let files = cloned.seal().map_err(|(index, error)| clone_error(&unfinished.draft.disks[index].name, error))?;
        unfinished.inodes = files.iter().map(|file| NonZero::new(file.identity.inode)).collect();
        let files = files.into_iter().map(|file| (file.identity, file.seal)).collect();
        let snapshot = unfinished.clone().finish(created_at, provenance, files);
        let CommitDetails { ttl, key, definition } = commit;
        let expires_at = ttl.map(|ttl| snapshot.created_at + ttl);
        let (request, definition) = (key.clone(), definition.clone());
        let described = Described { snapshot, expires_at, request, is_of_group, definition };
        let (id, kind) = (described.snapshot.id, JobKind::CHANGE.exclusive(described.snapshot.id.as_u128()));
        for repository in self.repositories_with(&described.snapshot.repositories())? {
            let (of, exporter) = (described.clone(), self.exporter.clone());
            let sealed = repository.run(kind, move |_, root| SnapshotDir::new(root, id).seal(&of, &exporter));
            sealed.map_err(manifest_error)?;
        }
        Ok(described)
    }

    fn repositories_with(&self, ids: &[&RepositoryId]) -> Result<Vec<Repository>, Error> {
        ids.iter().map(|id| self.inventory.repository(id).ok_or_else(|| no_repository(id))).collect()
    }
}

fn no_repository(id: &RepositoryId) -> Error {
    Error::Internal(format!("no repository {id}"))
}

pub(super) fn ms(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1e3)
}

pub(super) fn clone_error(disk: &DiskName, error: io::Error) -> Error {
    Error::of_step(format!("cloning {disk}"), error)
}

fn manifest_error(error: io::Error) -> Error {
    Error::of_step("writing the snapshot's manifest", error)
}
