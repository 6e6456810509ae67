//! The inventory service: repositories, VMs, and the snapshots of each VM.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::catalog::{Catalog, Unknown, VmList};
use super::disk_files::DiskFiles;
use super::list_repositories;
use super::list_vms::{self, Listing};
use super::repositories::{Repositories, RepositorySet};
use super::shared::Shared;
use super::unsearched::Search;
use super::view::{NO_SUCH_SNAPSHOT, NameCache, View};
use crate::api;
use crate::app::Error;
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::inventory::Vm;
use crate::model::{Definition, RepositoryId, Snapshot, SnapshotDisk, SnapshotId, VmId};
use crate::repository::{CloneSupport, OpenError, Repository, assign};
use crate::store::Store;

/// The repositories, their VMs, and the VMs' disks.
pub struct Inventory {
    repositories: Repositories,
    pub(super) catalog: Catalog,
    pub(super) names: NameCache,
    listings: Shared<Result<Arc<Listing>, Unknown>>,
    clone_support: CloneSupport,
    pub(super) search: Search,
    pub(super) store: Store,
    tasks: Tasks,
}

impl Service for Inventory {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Inventory {
    pub(crate) fn new(repositories: Repositories, store: Store, tasks: Tasks) -> Self {
        Self {
            repositories,
            catalog: Catalog::default(),
            names: NameCache::default(),
            listings: Shared::default(),
            clone_support: CloneSupport::default(),
            search: Search::default(),
            store,
            tasks,
        }
    }

    /// The current list of all repositories.
    pub(crate) fn repositories(&self) -> Arc<RepositorySet> {
        self.repositories.found()
    }

    /// The repository `id`, if it is listed and usable.
    pub(crate) fn repository(&self, id: &RepositoryId) -> Option<Repository> {
        self.repositories.get(id)
    }

    /// The repository of a snapshot's disk.
    ///
    /// # Errors
    /// [`OpenError::RepositoryUnavailable`] if it is no longer listed.
    pub(crate) fn repository_of(&self, disk: &SnapshotDisk) -> Result<Repository, OpenError> {
        let unlisted = || OpenError::RepositoryUnavailable("is no longer in the list of repositories".to_owned());
        self.repository(&disk.source.repository).ok_or_else(unlisted)
    }

    /// The first repository of a snapshot, by id. It has the leases on the snapshot and the lock of its readers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it is not listed.
    pub(crate) fn first_repository(&self, snapshot: &Snapshot) -> Result<Repository, Error> {
        let first = snapshot.repositories().into_iter().next();
        let found = first.and_then(|id| self.repository(id));
        found.ok_or_else(|| Error::Unavailable("a repository of the snapshot is not listed".to_owned()))
    }

    /// The repositories of the disks at `paths`. This only uses the paths, no files.
    pub(crate) fn repositories_at(&self, paths: &[PathBuf]) -> Vec<RepositoryId> {
        let found = self.repositories.found();
        let known: Vec<_> = found.usable().collect();
        let assigned = paths.iter().filter_map(|path| assign(known.iter().copied(), path).ok());
        assigned.map(|assigned| assigned.repository.id().clone()).collect()
    }

    /// Resolves `vm_ref` to the id of a VM. It may be the name of a VM in the inventory, the name of a VM that has left
    /// the inventory and still has snapshots, or else the uuid of a VM in the inventory. Checks that the user has the
    /// session's permission for it.
    ///
    /// # Errors
    /// [`Error::NoVm`]; [`Error::Unavailable`] if a repository that cannot be read now may define it;
    /// [`Error::Rebuilding`]; [`Error::Forbidden`].
    pub(crate) fn resolve_vm(&self, session: &Session, vm_ref: &VmId) -> Result<VmId, Error> {
        let vm = self.vm_of(session, vm_ref)?;
        self.check(session, &vm, None)?;
        Ok(vm)
    }

    fn vm_of(&self, session: &Session, vm_ref: &VmId) -> Result<VmId, Error> {
        // Read before the database, which may get the VM's snapshots just then.
        let all_known = self.check_all_known(vm_ref);
        // Names take precedence over uuids, so that a deletion cannot reach another VM than the named one. A VM with
        // snapshots is known, even if its repository is unavailable.
        if !self.store.records_of(vm_ref)?.is_empty() {
            return Ok(vm_ref.clone());
        }
        let list = self.vms()?;
        let vm = list.by_name_or_uuid(vm_ref, |vm| self.may_see(session, vm, None)).map_err(|error| match error {
            // It may have left the inventory and still have snapshots.
            Error::NoVm => all_known.err().unwrap_or(Error::NoVm),
            error => error,
        })?;
        Ok(vm.id.clone().unwrap_or_else(|| vm_ref.clone()))
    }

    /// The VM with this id in the inventory, and the whole list. For the service's own use: it checks no permission.
    ///
    /// # Errors
    /// [`Error::NoVm`], also if the VM has left the inventory; [`Error::Unavailable`].
    pub(crate) fn find_vm(&self, id: &VmId) -> Result<(Arc<VmList>, Arc<Vm>), Error> {
        let list = self.vms()?;
        let vm = Arc::clone(list.by_name(id)?);
        Ok((list, vm))
    }

    /// The current VMs of all repositories.
    ///
    /// # Errors
    /// [`Error::AgentDb`], [`Error::Unavailable`] if no VM is known.
    pub(crate) fn vms(&self) -> Result<Arc<VmList>, Error> {
        Ok(self.catalog.list(&self.repositories())?)
    }

    /// What a snapshot keeps of the definition of `vm`. A snapshot without it can be restored too, so that a definition
    /// that cannot be read is only logged.
    pub(crate) fn describe(&self, vm: &Arc<Vm>) -> Option<Definition> {
        let described = self.catalog.describe(&self.repositories(), vm);
        described
            .inspect_err(|reason| tracing::warn!(vm = vm.name, reason, "snapshot without the VM's definition"))
            .ok()
    }

    /// An examiner of disk files. `all` are all VMs of the inventory: a disk may belong to another VM too.
    pub(crate) fn disk_files(&self, all: &[Arc<Vm>], keep_open: bool) -> DiskFiles<'_> {
        let repositories = self.repositories().usable().cloned().collect();
        DiskFiles::new(self.catalog.platform, (repositories, &self.clone_support, &self.store), all, keep_open)
    }

    /// The documents of all VMs, created lazily.
    ///
    /// # Errors
    /// As [`Inventory::vms`]; [`Error::Store`].
    pub async fn list_vms(
        self: &Arc<Self>,
        session: &Session,
    ) -> Result<impl Iterator<Item = api::Vm> + Send + use<>, Error> {
        let session = session.clone();
        let listed = self.blocking(move |inventory| {
            // Before the database is read, which may get more snapshots just then.
            let (unsearched, view) = (inventory.unsearched(), inventory.view(&session)?);
            let listing = inventory.listings.get(|| {
                let list = inventory.catalog.list(&inventory.repositories())?;
                let files = inventory.disk_files(&list.vms, false);
                let open = inventory.catalog.platform.open_disks();
                Ok(Arc::new(Listing::of(Arc::clone(&list), files, open)))
            });
            let snapshots = inventory.visible_snapshots(&view)?;
            Ok((listing?, snapshots, unsearched, view))
        });
        let ((listing, snapshots, unsearched, view), mut indices) = (listed.await?, 0..);
        let inventory = Arc::clone(self);
        let may_have_more = move |vm: &Vm| inventory.may_have_more(&unsearched, vm.id.as_ref());
        let entries = std::iter::from_fn(move || listing.entry(indices.next()?, &view, &snapshots, &may_have_more));
        // Those that the user may not see.
        Ok(entries.flatten())
    }

    /// The ids of the snapshots that the user may see, oldest first.
    fn visible_snapshots(&self, view: &View) -> Result<HashMap<VmId, Vec<SnapshotId>>, Error> {
        if view.is_unlimited() {
            return Ok(self.store.snapshot_ids()?);
        }
        let mut visible: HashMap<_, Vec<_>> = HashMap::new();
        for vm in self.store.snapshot_ids()?.into_keys().filter(|vm| view.includes_vm(vm)) {
            let ids = self.store.snapshots_of(&vm)?.into_iter().filter(|one| view.includes(one)).map(|one| one.id);
            visible.insert(vm, ids.collect());
        }
        Ok(visible)
    }

    /// The document of one VM of the inventory.
    ///
    /// # Errors
    /// [`Error::NoVm`], also if it has left the inventory; [`Error::Unavailable`], [`Error::Store`].
    pub async fn vm(self: &Arc<Self>, session: &Session, vm_ref: VmId) -> Result<api::Vm, Error> {
        let session = session.clone();
        self.blocking(move |inventory| {
            let id = inventory.resolve_vm(&session, &vm_ref)?;
            let view = inventory.view(&session)?;
            let (list, vm) = inventory.find_vm(&id)?;
            let unsearched = inventory.unsearched();
            let open = inventory.catalog.platform.open_disks();
            let mut files = inventory.disk_files(&list.vms, false);
            files.inspect(std::slice::from_ref(&vm));
            let snapshots = match &vm.id {
                Some(id) => inventory.store.snapshots_of(id)?,
                None => Vec::new(),
            };
            let visible = snapshots.iter().filter(|snapshot| view.includes(snapshot));
            let ids: Vec<_> = visible.map(|snapshot| snapshot.id).collect();
            let document = list_vms::describe(&vm, &ids, &files, &view, &open);
            Ok(api::Vm { snapshots_incomplete: inventory.may_have_more(&unsearched, vm.id.as_ref()), ..document })
        })
        .await
    }

    /// The documents of all repositories. Unusable ones have the reason.
    ///
    /// # Errors
    /// [`Error::AgentDb`] if ovs-agent's database cannot be read, so that no repository is known.
    pub async fn list_repositories(self: &Arc<Self>, _session: &Session) -> Result<Vec<api::Repository>, Error> {
        self.blocking(|inventory| {
            let found = inventory.repositories();
            if let Some(problem) = found.problem.as_ref().filter(|_| found.known.is_empty()) {
                return Err(Error::AgentDb(problem.clone()));
            }
            let describe = |(known, mounted)| list_repositories::describe(&inventory.clone_support, known, mounted);
            Ok(found.with_mounts().map(describe).collect())
        })
        .await
    }

    /// The complete snapshot `id` of the VM `vm_ref`. Checks that the user has the session's permission for it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoVm`], [`Error::OtherVm`], [`Error::Unavailable`], [`Error::Forbidden`].
    pub(crate) fn snapshot_of(&self, session: &Session, vm_ref: &VmId, id: SnapshotId) -> Result<Snapshot, Error> {
        let Some(snapshot) = self.store.snapshot(id)? else {
            self.resolve_vm(session, vm_ref)?;
            return Err(self.not_in_database(id, NO_SUCH_SNAPSHOT));
        };
        // The definitions are read only if `vm_ref` is not the VM's id, because clients send thousands of range
        // requests a second.
        if snapshot.vm != *vm_ref && self.resolve_vm(session, vm_ref)? != snapshot.vm {
            return Err(self.of_other_vm(session, (&snapshot.vm, id), Some(&snapshot.annotations)));
        }
        self.check_snapshot(session, &snapshot)?;
        Ok(snapshot)
    }
}
