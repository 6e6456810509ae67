//! VM locks: the right to change the snapshots of a VM, in this service and among all exporters of a pool.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::vm_mutexes::VmMutexes;
use crate::app::Error;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Service, Tasks};
use crate::model::{RepositoryId, SnapshotDraft, VmId};
use crate::repository::executor::JobKind;
use crate::repository::vm_lock::{self, Attempt, VmLock};
use crate::repository::{Unavailable, UnexpectedEntry};
use crate::sys::host;

/// How a VM is locked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockMode {
    /// How long to wait while another exporter holds the lock.
    wait: Duration,
    /// The kind of job, which bounds the time that a repository may take.
    kind: JobKind,
    /// Whether the lock file names the holder.
    is_named: bool,
    /// Whether the caller has its own thread and may block it. Hung repositories can use up the service's pool of
    /// blocking threads, and a thaw must not wait for that pool.
    is_isolated: bool,
}

impl LockMode {
    /// For a request.
    pub(crate) const REQUEST: Self =
        Self { wait: Duration::from_secs(30), kind: JobKind::CHANGE, is_named: true, is_isolated: false };
    /// Without waiting, for operations that are retried later.
    pub(crate) const NOW: Self = Self { wait: Duration::ZERO, ..Self::REQUEST };
    /// To thaw a guest, or even the repository's file system. Only in [`crate::hooks::run_isolated`].
    pub(crate) const THAW: Self =
        Self { wait: Duration::from_secs(20), kind: JobKind::SHORT, is_named: false, is_isolated: true };
    /// As [`LockMode::THAW`], without waiting.
    pub(crate) const THAW_NOW: Self = Self { wait: Duration::ZERO, ..Self::THAW };
}

/// How long to wait until the lock files are closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a held lock is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Holds the lock of a VM until it is dropped. Meanwhile no other operation changes the snapshots of the VM, neither in
/// this service nor in another exporter that uses the same repositories.
pub(crate) struct VmGuard {
    held: Option<(Vec<VmLock>, OwnedMutexGuard<()>)>,
    locked: Vec<RepositoryId>,
    /// The repositories in which locking failed.
    failed: Vec<(RepositoryId, io::Error)>,
    /// The repositories in which another exporter holds the lock, and its name.
    busy: Vec<(RepositoryId, String)>,
    was_held: bool,
}

impl VmGuard {
    /// Whether another exporter held the lock at first.
    pub(crate) fn was_waited_for(&self) -> bool {
        self.was_held
    }

    /// Checks that the VM is locked in all repositories of `snapshot`.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::NoSpace`], [`Error::ReadOnly`].
    pub(crate) fn covers(&self, snapshot: &SnapshotDraft) -> Result<(), Error> {
        let Some(id) = snapshot.repositories().into_iter().find(|id| !self.locked.contains(id)) else { return Ok(()) };
        match self.failed.iter().find(|(failed, _)| failed == id) {
            Some((_, error)) => Err(lock_error(id, error)),
            None => Err(Error::Unavailable(format!("the VM is not locked in the repository {id}"))),
        }
    }

    /// Checks that no other exporter can be changing a snapshot whose files in `repositories` are to be removed. Some
    /// failures to lock are harmless: an unavailable or unlisted repository keeps its files; in a full or read-only
    /// one, no other exporter can create the lock file either; and nothing is removed if the snapshots folder is a
    /// link.
    ///
    /// # Errors
    /// [`Error::VmBusy`], [`Error::Unavailable`].
    pub(crate) fn allows_removal(&self, repositories: &[&RepositoryId]) -> Result<(), Error> {
        let is_harmless = |error: &io::Error| {
            Unavailable::of(error).is_some() || UnexpectedEntry::of(error).is_some() || cannot_write(error)
        };
        for &of in repositories {
            if let Some((_, holder)) = self.busy.iter().find(|(id, _)| id == of) {
                return Err(Error::VmBusy { holder: holder.clone() });
            }
            if let Some((id, error)) = self.failed.iter().find(|(id, error)| id == of && !is_harmless(error)) {
                return Err(lock_error(id, error));
            }
        }
        Ok(())
    }
}

impl Drop for VmGuard {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        if held.0.is_empty() {
            return;
        }
        // Closing a file may hang with its file system, so the wait is bounded. The lock files are released before the
        // mutex, so that the next operation of this service finds them free.
        let (unlocked, is_unlocked) = sync_channel(1);
        let unlock = move || {
            let (locks, mutex) = held;
            drop(locks);
            drop(mutex);
            let _ = unlocked.send(());
        };
        // If no thread can be started, the failed call drops them on this one.
        if std::thread::Builder::new().name("unlock".to_owned()).spawn(unlock).is_ok() {
            let _ = is_unlocked.recv_timeout(CLOSE_TIMEOUT);
        }
    }
}

/// The locks of VMs.
pub(crate) struct VmLocks {
    mutexes: VmMutexes,
    inventory: Arc<Inventory>,
    tasks: Tasks,
}

impl Service for VmLocks {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl VmLocks {
    pub(super) fn new(inventory: Arc<Inventory>, tasks: Tasks) -> Self {
        Self { mutexes: VmMutexes::default(), inventory, tasks }
    }

    /// Locks `vm` in this service; first come, first served.
    pub(crate) async fn take(&self, vm: &VmId) -> OwnedMutexGuard<()> {
        self.mutexes.take(vm).await
    }

    /// As [`VmLocks::take`]; nothing if `most` operations hold the VM or wait for it already.
    pub(crate) async fn take_behind(&self, vm: &VmId, most: usize) -> Option<OwnedMutexGuard<()>> {
        self.mutexes.take_behind(vm, most).await
    }

    /// Locks `vm` in this service if that is possible at once.
    pub(crate) fn try_take(&self, vm: &VmId) -> Option<OwnedMutexGuard<()>> {
        self.mutexes.try_take(vm)
    }

    /// Locks the VM in `repositories`; the caller already holds its mutex in this service, `own`. Waits for other
    /// exporters as `mode` says. Repositories that do not respond or cannot lock are left out: check with
    /// [`VmGuard::covers`].
    ///
    /// # Errors
    /// [`Error::VmBusy`].
    pub(crate) async fn lock(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        repositories: Vec<RepositoryId>,
        mode: LockMode,
    ) -> Result<VmGuard, Error> {
        let mut guard = self.lock_where_possible(own, vm, repositories, mode).await?;
        match guard.busy.pop() {
            Some((_, holder)) => Err(Error::VmBusy { holder }),
            None => Ok(guard),
        }
    }

    /// As [`VmLocks::lock`], but also leaves out repositories in which another exporter holds the lock: check with
    /// [`VmGuard::allows_removal`].
    async fn lock_where_possible(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        mut repositories: Vec<RepositoryId>,
        mode: LockMode,
    ) -> Result<VmGuard, Error> {
        // A fixed order prevents deadlocks.
        repositories.sort();
        repositories.dedup();
        let end = Instant::now() + mode.wait;
        let (mut locks, mut locked, mut failed, mut busy) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut was_held = false;
        for id in repositories {
            loop {
                let attempt = if mode.is_isolated {
                    self.try_lock(vm, &id, mode)
                } else {
                    let (of, at) = (vm.clone(), id.clone());
                    self.blocking(move |locks| Ok(locks.try_lock(&of, &at, mode))).await?
                };
                match attempt {
                    Ok(Attempt::Locked(lock)) => {
                        locks.push(lock);
                        locked.push(id);
                        break;
                    }
                    Ok(Attempt::Held(holder)) if Instant::now() >= end => {
                        busy.push((id, holder));
                        break;
                    }
                    Ok(Attempt::Held(_)) => {
                        was_held = true;
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                    Err(error) => {
                        // Files that wait for an unlisted repository would repeat this warning every minute.
                        if !matches!(Unavailable::of(&error), Some(Unavailable::NotListed)) {
                            tracing::warn!(%vm, repository = %id, %error, "cannot lock the VM in this repository");
                        }
                        failed.push((id, error));
                        break;
                    }
                }
            }
        }
        Ok(VmGuard { held: Some((locks, own)), locked, failed, busy, was_held })
    }

    /// Locks the VM to remove snapshots. `snapshots` has the repositories of each.
    ///
    /// # Errors
    /// [`Error::VmBusy`], [`Error::Unavailable`].
    pub(crate) async fn lock_for_removal<'a>(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        snapshots: impl Iterator<Item = Vec<&'a RepositoryId>> + Clone,
    ) -> Result<VmGuard, Error> {
        let guard = self.lock_for_removals(own, vm, snapshots.clone()).await?;
        for snapshot in snapshots {
            guard.allows_removal(&snapshot)?;
        }
        Ok(guard)
    }

    /// As [`VmLocks::lock_for_removal`], but without checking: check each snapshot with [`VmGuard::allows_removal`].
    pub(crate) async fn lock_for_removals<'a>(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        snapshots: impl Iterator<Item = Vec<&'a RepositoryId>>,
    ) -> Result<VmGuard, Error> {
        let repositories = snapshots.flatten().cloned().collect();
        self.lock_where_possible(own, vm, repositories, LockMode::REQUEST).await
    }

    /// Locks the VM to remove one snapshot, without waiting for other exporters.
    pub(crate) async fn try_lock_for_removal(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        repositories: &[&RepositoryId],
    ) -> Result<VmGuard, Error> {
        let all = repositories.iter().copied().cloned().collect();
        let guard = self.lock(own, vm, all, LockMode::NOW).await?;
        guard.allows_removal(repositories)?;
        Ok(guard)
    }

    fn try_lock(&self, vm: &VmId, id: &RepositoryId, mode: LockMode) -> io::Result<Attempt> {
        let repository = self.inventory.repository(id).ok_or(Unavailable::NotListed)?;
        let (vm, holder) = (vm.clone(), format!("{}, pid {}", host::name(), std::process::id()));
        // The lock file must not be created in an empty mount point. This check also fails sooner than a change does if
        // the repository hangs.
        repository.mounted()?;
        repository.run(mode.kind, move |_, root| {
            vm_lock::try_lock(root, &vm, Some(holder.as_str()).filter(|_| mode.is_named))
        })
    }
}

fn cannot_write(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS))
}

fn lock_error(id: &RepositoryId, error: &io::Error) -> Error {
    let step = format!("locking the VM in the repository {id}");
    match error.raw_os_error() {
        Some(errno) if cannot_write(error) || errno == Errno::EIO as i32 => {
            Error::of_step(step, io::Error::from_raw_os_error(errno))
        }
        // The cluster's lock manager failed, not the request.
        _ => Error::Unavailable(format!("{step}: {error}")),
    }
}
