//! The right to change the snapshots of a VM: in this service, and among all that share its repositories.

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
use crate::repository::{Unavailable, UnexpectedEntry, host};

/// How a VM is locked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockMode {
    /// How long another service that has locked it is waited for.
    wait: Duration,
    /// How long a repository may take for it.
    kind: JobKind,
    /// Whether the lock says who holds it.
    is_named: bool,
    /// Whether the caller has a thread of its own, and waits on that. The service's pool of blocking threads can be
    /// used up by repositories that hang, and a thaw must not wait for one of those.
    is_isolated: bool,
}

impl LockMode {
    /// For a request.
    pub(crate) const REQUEST: Self =
        Self { wait: Duration::from_secs(30), kind: JobKind::CHANGE, is_named: true, is_isolated: false };
    /// For what is tried again later.
    pub(crate) const NOW: Self = Self { wait: Duration::ZERO, ..Self::REQUEST };
    /// To let go of what may be frozen, and be it the repository; only in [`crate::hooks::run_isolated`].
    pub(crate) const THAW: Self =
        Self { wait: Duration::from_secs(20), kind: JobKind::SHORT, is_named: false, is_isolated: true };
    /// The same, where it is tried again later.
    pub(crate) const THAW_NOW: Self = Self { wait: Duration::ZERO, ..Self::THAW };
}

/// How long the closing of lock files is waited for.
const CLOSE: Duration = Duration::from_secs(1);

/// How often it looks whether the lock is free.
const LOOK: Duration = Duration::from_millis(200);

/// The turn of a VM, held until this is dropped. While it is held nobody else changes the snapshots of the VM,
/// neither in this service nor in another one that uses the same repositories.
pub(crate) struct VmGuard {
    held: Option<(Vec<VmLock>, OwnedMutexGuard<()>)>,
    locked: Vec<RepositoryId>,
    /// Where it cannot be locked, and why.
    failed: Vec<(RepositoryId, io::Error)>,
    /// Where another service has locked it, and which.
    busy: Vec<(RepositoryId, String)>,
    was_held: bool,
}

impl VmGuard {
    /// Whether somebody else had locked the VM before.
    pub(crate) fn was_waited_for(&self) -> bool {
        self.was_held
    }

    /// Checks that the VM is locked wherever `snapshot` is to have files.
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

    /// Checks that no other service can be changing a snapshot whose files in `repositories` are removed. A repository
    /// that is unavailable or not in the config keeps its files; in one that is full or read-only no other service could
    /// have made the lock file; if the folder of snapshots is a link, nothing is removed.
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
        // Closing a file may hang where its file system does: then it is not waited for. First the locks, then the
        // turn: the next one in this service finds them free.
        let (unlocked, is_unlocked) = sync_channel(1);
        let unlock = move || {
            let (locks, turn) = held;
            drop(locks);
            drop(turn);
            let _ = unlocked.send(());
        };
        // Where no thread can be started, they are closed here.
        if std::thread::Builder::new().name("unlock".to_owned()).spawn(unlock).is_ok() {
            let _ = is_unlocked.recv_timeout(CLOSE);
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

    /// Locks the VM, whose turn in this service is `own`, in `repositories`, and waits until others have unlocked
    /// it, as `how` has it. Where a repository does not answer or takes no lock, the VM is not locked there:
    /// [`VmGuard::covers`] tells.
    ///
    /// # Errors
    /// [`Error::VmBusy`].
    pub(crate) async fn lock(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        repositories: Vec<RepositoryId>,
        how: LockMode,
    ) -> Result<VmGuard, Error> {
        let mut turn = self.lock_where_possible(own, vm, repositories, how).await?;
        match turn.busy.pop() {
            Some((_, holder)) => Err(Error::VmBusy { holder }),
            None => Ok(turn),
        }
    }

    /// The same. Where another service keeps it locked, [`VmGuard::allows_removal`] tells that too.
    async fn lock_where_possible(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        mut repositories: Vec<RepositoryId>,
        how: LockMode,
    ) -> Result<VmGuard, Error> {
        // All in one order, so that no two wait for each other.
        repositories.sort();
        repositories.dedup();
        let end = Instant::now() + how.wait;
        let (mut locks, mut locked, mut failed, mut busy) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut was_held = false;
        for id in repositories {
            loop {
                let attempt = if how.is_isolated {
                    self.try_lock(vm, &id, how)
                } else {
                    let (of, at) = (vm.clone(), id.clone());
                    self.blocking(move |locks| Ok(locks.try_lock(&of, &at, how))).await?
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
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(error) => {
                        // What is not in the config stays so, and is asked for each minute where files wait for it.
                        if !matches!(Unavailable::of(&error), Some(Unavailable::NotListed)) {
                            tracing::warn!(%vm, repository = %id, %error, "the VM cannot be locked there");
                        }
                        failed.push((id, error));
                        break;
                    }
                }
            }
        }
        Ok(VmGuard { held: Some((locks, own)), locked, failed, busy, was_held })
    }

    /// Locks the VM for the removal of snapshots, each with the repositories that it has files in.
    ///
    /// # Errors
    /// [`Error::VmBusy`], [`Error::Unavailable`].
    pub(crate) async fn lock_for_removal<'a>(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        snapshots: impl Iterator<Item = Vec<&'a RepositoryId>> + Clone,
    ) -> Result<VmGuard, Error> {
        let turn = self.lock_for_removals(own, vm, snapshots.clone()).await?;
        for snapshot in snapshots {
            turn.allows_removal(&snapshot)?;
        }
        Ok(turn)
    }

    /// The same where one that cannot be removed does not keep the others: [`VmGuard::allows_removal`] tells of each.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub(crate) async fn lock_for_removals<'a>(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        snapshots: impl Iterator<Item = Vec<&'a RepositoryId>>,
    ) -> Result<VmGuard, Error> {
        let repositories = snapshots.flatten().cloned().collect();
        self.lock_where_possible(own, vm, repositories, LockMode::REQUEST).await
    }

    /// Locks the VM for the removal of one snapshot, where nobody else has locked it now.
    pub(crate) async fn try_lock_for_removal(
        self: &Arc<Self>,
        own: OwnedMutexGuard<()>,
        vm: &VmId,
        repositories: &[&RepositoryId],
    ) -> Result<VmGuard, Error> {
        let all = repositories.iter().copied().cloned().collect();
        let turn = self.lock(own, vm, all, LockMode::NOW).await?;
        turn.allows_removal(repositories)?;
        Ok(turn)
    }

    fn try_lock(&self, vm: &VmId, id: &RepositoryId, how: LockMode) -> io::Result<Attempt> {
        let repository = self.inventory.repository(id).ok_or(Unavailable::NotListed)?;
        let (vm, holder) = (vm.clone(), format!("{}, pid {}", host::name(), std::process::id()));
        // Nothing is made in an empty mount point. And this is asked first, as a change has more patience than a
        // question.
        repository.mounted()?;
        repository
            .run(how.kind, move |_, root| vm_lock::try_lock(root, &vm, Some(holder.as_str()).filter(|_| how.is_named)))
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
        // The lock manager's trouble is nobody's request's.
        _ => Error::Unavailable(format!("{step}: {error}")),
    }
}
