//! Notices what other exporters have done in the repositories: takes their snapshots into the database, and forgets those
//! whose files are gone. The folders are the truth, and the database is what this service knows of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::adopt::Adopter;
use super::holds::Holds;
use super::reconcile::Reconciler;
use super::seen::{Differences, Folder, Seen, Waiting};
use super::shared_leases::{SeenLeases, SharedLeases};
use super::shared_snapshot::{self, Part};
use crate::app::Error;
use crate::app::common::Common;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::model::{RepositoryId, Snapshot, SnapshotId};
use crate::repository::Repository;
use crate::repository::executor::JobKind;
use crate::repository::hold::{Hold, Sharing};
use crate::repository::listing::{self, Listing, Version};
use crate::store::{LAST_SEQUENCE, Store};

/// The time between two looks without a request.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long a request waits for the look before it. A repository may hang.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long the start waits for the first look.
const START_WAIT: Duration = Duration::from_secs(30);

/// Snapshots that are taken into the database in one transaction.
const BATCH: usize = 256;

/// Notices what other exporters have done.
pub(crate) struct Noticing {
    inventory: Arc<Inventory>,
    adopter: Arc<Adopter>,
    reconciler: Arc<Reconciler>,
    holds: Arc<Holds>,
    leases: SharedLeases,
    store: Store,
    /// Each is locked during a look. Not with a thread that waits: the repository may hang.
    seen: Mutex<HashMap<RepositoryId, Arc<AsyncMutex<Seen>>>>,
    /// Whether other exporters use the repositories. Otherwise nothing is looked at.
    is_shared: bool,
    /// What this service has made since the last look at the repository.
    made: Mutex<Vec<(RepositoryId, SnapshotId)>>,
    tasks: Tasks,
}

/// How to look at a repository.
struct Look {
    /// The version that need not be listed again.
    known: Option<Option<Version>>,
    /// Whether nothing may be missed.
    is_close: bool,
}

/// A sweeper's hold of a snapshot.
pub(super) enum HeldAlone {
    /// No other exporter uses the repositories.
    Unshared,
    /// Another exporter holds it, or has deleted it.
    InUse,
    Held(Option<Hold>),
}

impl Drop for HeldAlone {
    fn drop(&mut self) {
        if let Self::Held(hold) = self {
            hold.take().into_iter().for_each(Holds::release);
        }
    }
}

impl Service for Noticing {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Noticing {
    pub(crate) fn new(common: &Common, adopter: Arc<Adopter>, reconciler: Arc<Reconciler>, is_shared: bool) -> Self {
        let Common { inventory, store, tasks, .. } = common.clone();
        let (holds, leases) = (Arc::new(Holds::new(common)), SharedLeases::new(common));
        let (seen, made) = (Mutex::default(), Mutex::default());
        Self { inventory, adopter, reconciler, holds, leases, store, seen, is_shared, made, tasks }
    }

    /// Whether other exporters use the repositories.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Records that this service has made the snapshot: if its folder is missing at the next look, it is gone.
    pub(super) fn made(&self, snapshot: &Snapshot) {
        if !self.is_shared {
            return;
        }
        let folders = snapshot.repositories().into_iter().map(|repository| (repository.clone(), snapshot.id));
        self.made.lock().unwrap_or_else(PoisonError::into_inner).extend(folders);
    }

    /// The first look, within a bounded time. Until it has ended, no snapshot is said not to exist.
    pub(crate) async fn look_at_start(self: &Arc<Self>) {
        if !self.is_shared {
            let ended = self.blocking(|noticing| Ok(noticing.store.retentions().end_sharing()?)).await;
            if let Err(error) = ended {
                tracing::error!(%error, "cannot record that leases are not shared any more");
            }
            return self.inventory.end_first_look();
        }
        let noticing = Arc::clone(self);
        let first = self.tasks.spawn(async move {
            for look in noticing.look_at_all() {
                drop(look.await);
            }
            noticing.inventory.end_first_look();
        });
        if tokio::time::timeout(START_WAIT, first).await.is_err() {
            tracing::warn!("still looking for snapshots; until that has ended, no snapshot is said not to exist");
        }
    }

    /// Looks regularly, and holds the snapshots in use, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        if !self.is_shared {
            return;
        }
        self.tasks.spawn(Arc::clone(&self.holds).run(stop.clone()));
        let mut rounds = rounds(INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            // A repository that hangs must not delay the others for longer.
            let _ = stop.run_until_cancelled(self.look_soon()).await;
        }
    }

    /// Looks before a request, within a bounded time, so that it finds what other exporters did before.
    pub(crate) async fn look_soon(self: &Arc<Self>) {
        if !self.is_shared {
            return;
        }
        let looks = self.look_at_all();
        let all = async {
            for look in looks {
                drop(look.await);
            }
        };
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }

    /// Looks at all repositories that respond.
    fn look_at_all(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let found = self.inventory.repositories();
        let responsive = found.usable().filter(|repository| repository.executor().is_responsive());
        responsive.map(|repository| self.tasks.spawn(Arc::clone(self).look(repository.clone()))).collect()
    }

    /// Looks at one repository. A look that begins while this one waits for another counts as this one.
    async fn look(self: Arc<Self>, repository: Repository) {
        let id = repository.id().clone();
        let asked = Instant::now();
        let seen = self.seen(&id).lock_owned().await;
        if seen.looked.is_some_and(|looked| looked > asked) {
            return;
        }
        let known = seen.folder.settled();
        let looked =
            self.blocking(move |noticing| noticing.look_into(&repository, seen, Look { known, is_close: false }));
        match looked.await {
            // The lock is held meanwhile, because others count on this look.
            Ok((gone, _seen)) => {
                for snapshot in gone {
                    self.reconciler.remove_record_if_gone(snapshot).await;
                }
            }
            Err(error) => tracing::debug!(repository = %id, %error, "cannot look for changes of other exporters"),
        }
    }

    /// Makes certain that the database has all snapshots in the repository that were complete before this call, and their
    /// leases. Returns snapshots of the database whose folders are gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Io`], [`Error::Store`].
    pub(super) async fn look_closely(self: &Arc<Self>, repository: Repository) -> Result<Vec<Snapshot>, Error> {
        let seen = self.seen(repository.id()).lock_owned().await;
        let look = move |noticing: &Self| noticing.look_into(&repository, seen, Look { known: None, is_close: true });
        self.blocking(look).await.map(|(gone, _)| gone)
    }

    fn seen(&self, repository: &RepositoryId) -> Arc<AsyncMutex<Seen>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(seen.entry(repository.clone()).or_default())
    }

    /// Returns snapshots of the database whose folders are gone, with the lock.
    fn look_into(
        &self,
        repository: &Repository,
        mut seen: OwnedMutexGuard<Seen>,
        Look { known, is_close }: Look,
    ) -> Result<(Vec<Snapshot>, OwnedMutexGuard<Seen>), Error> {
        let now = Instant::now();
        seen.looked = Some(now);
        {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            seen.ids.extend(made.extract_if(.., |(of, _)| of == repository.id()).map(|(_, id)| id));
        }
        let checked = repository.clone();
        let listing = repository.run(JobKind::SHORT, move |access, root| {
            checked.mounted_now(access)?;
            listing::read(root, known)
        });
        let listing = listing.map_err(|error| Error::of_step("listing the snapshots of a repository", error))?;
        // The database after the folders: it has each snapshot before and after its folder exists.
        match listing {
            Some(listing) if seen.folder.is_new() => {
                let differences = self.differences(repository.id(), &listing)?;
                seen.begin(listing, differences, now);
            }
            Some(listing) => seen.update(listing, now),
            None => {}
        }
        self.take_complete(repository, &mut seen, now, is_close)?;
        // Creations need no leases, and the sweeper asks whether they were read.
        let leases = self.leases.take(repository, &mut seen.leases, (now, is_close));
        let problem = leases.err().map(|error| error.to_string());
        if let Some(error) = problem.as_ref().filter(|_| seen.lease_problem != problem) {
            tracing::warn!(repository = %repository.id(), error, "cannot read the leases, so nothing is swept there");
        }
        seen.lease_problem = problem;
        let mut gone = Vec::new();
        for (id, mut waiting) in std::mem::take(&mut seen.gone) {
            if let Some(snapshot) = self.store.snapshot(id)? {
                if is_close || waiting.next <= now {
                    gone.push(snapshot);
                    waiting.postpone(now);
                }
                // Until its record is removed.
                seen.gone.insert(id, waiting);
            }
        }
        Ok((gone, seen))
    }

    /// Holds the snapshot alone, and then makes certain that the database has all leases on it. Nothing if that is not
    /// possible now.
    pub(super) async fn hold_alone(self: &Arc<Self>, snapshot: &Snapshot) -> Result<HeldAlone, Error> {
        if !self.is_shared {
            return Ok(HeldAlone::Unshared);
        }
        let of = snapshot.clone();
        let held = self.blocking(move |noticing| noticing.holds.try_hold(&of, Sharing::Alone)).await?;
        let Some(hold) = held else { return Ok(HeldAlone::InUse) };
        let held = HeldAlone::Held(Some(hold));
        let repository = self.inventory.first_repository(snapshot)?;
        let seen = self.seen(repository.id());
        let gone = self.look_closely(repository).await?;
        // A newer snapshot that is gone must not make this one look like an old one.
        let is_certain = seen.lock().await.lease_problem.is_none() && gone.iter().all(|gone| gone.vm != snapshot.vm);
        Ok(if is_certain { held } else { HeldAlone::InUse })
    }

    /// How the first listing of a repository differs from the database.
    fn differences(&self, repository: &RepositoryId, listing: &Listing) -> Result<Differences, Error> {
        let known = self.store.ids()?;
        let unknown = listing.ids.iter().filter(|id| !known.contains(id)).copied().collect();
        let of_repository = |snapshot: &Snapshot| snapshot.repositories().contains(&repository);
        let recorded = self.store.snapshots()?.into_iter().filter(of_repository).map(|snapshot| snapshot.id);
        let missing = recorded.filter(|id| !listing.ids.contains(id)).collect();
        Ok(Differences { unknown, missing })
    }

    /// Takes the snapshots that are complete now into the database.
    fn take_complete(
        &self,
        repository: &Repository,
        seen: &mut Seen,
        now: Instant,
        is_close: bool,
    ) -> Result<(), Error> {
        let due = |waiting: &Waiting| waiting.next <= now || (is_close && waiting.may_be_complete(now));
        let due: Vec<_> = seen.waiting.iter().filter(|(_, waiting)| due(waiting)).map(|(id, _)| *id).collect();
        for ids in due.chunks(BATCH) {
            let mut complete = Vec::new();
            for id in ids {
                if self.store.record(*id)?.is_some() {
                    seen.waiting.remove(id);
                    continue;
                }
                let (part, reason) = match self.examine(repository, *id) {
                    Part::Complete(described) => {
                        complete.push(*described);
                        continue;
                    }
                    Part::Gone | Part::OfOther => {
                        seen.waiting.remove(id);
                        continue;
                    }
                    Part::Unfinished => {
                        (Folder::Unfinished, "another exporter is making it, or has died while it did".to_owned())
                    }
                    Part::Unfit(reason) => (Folder::Unfit, reason),
                    Part::Unknown(reason) => (Folder::Unknown, reason),
                };
                if let Some(waiting) = seen.waiting.get_mut(id) {
                    waiting.folder = part;
                    waiting.postpone(now);
                    if waiting.reason != reason {
                        tracing::debug!(snapshot = %id, repository = %repository.id(), reason, "not a snapshot of this pool");
                        waiting.reason = reason;
                    }
                }
            }
            if !complete.is_empty() {
                // Some may be leased.
                seen.leases = SeenLeases::default();
            }
            for snapshot in self.adopter.record_all(complete)? {
                seen.waiting.remove(&snapshot);
            }
        }
        Ok(())
    }

    /// What the folder of the snapshot `id` in the repository is. Its files are checked too.
    fn examine(&self, repository: &Repository, id: SnapshotId) -> Part {
        let part = shared_snapshot::find(&self.inventory, repository, id);
        let Part::Complete(described) = part else { return part };
        if described.snapshot.sequence > LAST_SEQUENCE {
            return Part::Unfit("the sequence in its manifest is too high".to_owned());
        }
        match self.adopter.check_files(&described.snapshot) {
            Ok(()) => Part::Complete(described),
            Err(error) => Part::Unfit(error.reason),
        }
    }
}
