//! Which VMs there are: the definitions of all repositories, as of now.
//!
//! One pass over the repositories serves all who ask at the same time. A repository that does not answer hides
//! nothing: its VMs stay known from the last pass, and where there was none, it is said that they are not known.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::app::inventory::repositories::RepositorySet;
use crate::app::inventory::shared::Shared;
use crate::app::{App, Error};
use crate::inventory::{self, Definitions, Vm};
use crate::model::{RepositoryId, VmId};
use crate::repository::Repository;
use crate::repository::executor::JobKind;

/// The VMs of all repositories.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// Sorted by name.
    pub vms: Vec<Arc<Vm>>,
    /// What may hold more VMs.
    pub missing: Vec<Missing>,
}

/// A repository whose definitions cannot be read now, or all of ovs-agent's that are not known.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    pub repository: Option<RepositoryId>,
    pub reason: String,
    /// Whether its VMs are known from an earlier time.
    pub is_remembered: bool,
}

/// Why nothing is known of any VM.
#[derive(Clone, Debug)]
pub(crate) enum Unknown {
    /// ovs-agent's database cannot be read, and no repository is known.
    AgentDb(String),
    /// No repository can be read.
    Repositories(String),
}

impl From<Unknown> for Error {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::AgentDb(problem) => Self::AgentDb(problem),
            Unknown::Repositories(reason) => Self::Unavailable(reason),
        }
    }
}

impl Inventory {
    /// The VM that has this name.
    fn named(&self, id: &VmId) -> Option<&Arc<Vm>> {
        self.vms.iter().find(|vm| vm.id.as_ref() == Some(id))
    }
}

/// Reads the definitions, and keeps what was read last.
#[derive(Default)]
pub(crate) struct Catalog {
    passes: Shared<Arc<Inventory>>,
    known: Mutex<HashMap<RepositoryId, Arc<Definitions>>>,
}

impl Catalog {
    fn all_known(&self) -> MutexGuard<'_, HashMap<RepositoryId, Arc<Definitions>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, id: &RepositoryId) -> Option<Arc<Definitions>> {
        self.all_known().get(id).cloned()
    }

    /// The VMs of the repositories that were `found`, as of now.
    fn read(&self, found: &RepositorySet) -> Inventory {
        // All are asked before any is waited for.
        let asked: Vec<_> = found.usable().map(|repository| (repository, self.ask(repository))).collect();
        let (mut sources, mut remembered, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (repository, asked) in asked {
            let (id, mount_point) = (repository.id(), repository.mount_point().to_owned());
            match asked() {
                Ok(definitions) => {
                    let definitions = Arc::new(definitions);
                    self.all_known().insert(id.clone(), Arc::clone(&definitions));
                    sources.push((mount_point, definitions));
                }
                Err(error) => {
                    let reason = format!("the repository {id} {error}");
                    let known = self.known(id);
                    missing.push(Missing {
                        repository: Some(id.clone()),
                        reason: reason.clone(),
                        is_remembered: known.is_some(),
                    });
                    remembered.extend(known.map(|known| (mount_point, known.without_disks(&reason))));
                }
            }
        }
        if let Some(problem) = &found.problem {
            // Those that it named last stay, but there may be others.
            let is_remembered = found.known.iter().any(|known| known.entry.is_some());
            missing.push(Missing { repository: None, reason: format!("ovs-agent: {problem}"), is_remembered });
        }
        let known: HashSet<RepositoryId> = found.usable().map(|repository| repository.id().clone()).collect();
        self.all_known().retain(|id, _| known.contains(id));
        if !remembered.is_empty() {
            // A VM that was moved elsewhere meanwhile is there.
            let ids = sources.iter().flat_map(|(_, definitions)| definitions.vms()).filter_map(|vm| vm.id.clone());
            let there: HashSet<VmId> = ids.collect();
            for (mount_point, mut definitions) in remembered {
                definitions.retain(|vm| vm.id.as_ref().is_none_or(|id| !there.contains(id)));
                sources.push((mount_point, Arc::new(definitions)));
            }
        }
        Inventory { vms: inventory::put_together(&sources), missing }
    }

    /// Begins to read the definitions of a repository; returns what waits for them.
    fn ask(&self, repository: &Repository) -> impl FnOnce() -> io::Result<Definitions> + use<> {
        let (before, asked) = (self.known(repository.id()).unwrap_or_default(), repository.clone());
        let reading = repository.submit(JobKind::SHORT, move |access, root| {
            asked.mounted_now(access)?;
            before.read(root, &|| access.progress())
        });
        move || reading.wait().map_err(crate::repository::Unavailable::from)?
    }
}

impl App {
    /// The VMs of all repositories, as of now.
    ///
    /// # Errors
    /// [`Unknown`].
    pub(crate) fn inventory(&self) -> Result<Arc<Inventory>, Unknown> {
        let found = self.repositories.found();
        if let Some(problem) = found.problem.as_ref().filter(|_| found.known.is_empty()) {
            return Err(Unknown::AgentDb(problem.clone()));
        }
        let inventory = self.catalog.passes.get(|| Arc::new(self.catalog.read(&found)));
        let nothing_is_known = inventory.vms.is_empty()
            && inventory.missing.iter().filter(|missing| missing.repository.is_some()).count()
                == found.usable().count()
            && !inventory.missing.is_empty();
        if nothing_is_known {
            return Err(Unknown::Repositories(format!("no VM is known: {}", reasons(&inventory))));
        }
        Ok(inventory)
    }

    /// The VM that `vm_ref` names: by its name one of the inventory, or one that has left it and
    /// still has snapshots; else by its uuid one of the inventory.
    ///
    /// # Errors
    /// [`Error::NoVm`]; [`Error::Unavailable`] where a repository that cannot be read now may define it.
    pub(crate) fn resolve_vm(&self, vm_ref: &VmId) -> Result<VmId, Error> {
        // Before any uuid: what is deleted must never be another VM's than the one that was named. What has
        // snapshots is known by that, whatever the repositories say.
        if !self.store.records_of(vm_ref)?.is_empty() {
            return Ok(vm_ref.clone());
        }
        let inventory = self.inventory()?;
        Ok(resolve_among(&inventory, vm_ref)?.id.clone().unwrap_or_else(|| vm_ref.clone()))
    }

    /// The VM of the inventory that `vm_ref` names, and the inventory.
    ///
    /// # Errors
    /// As [`App::resolve_vm`], also where it has left the inventory.
    pub(crate) fn find_vm(&self, vm_ref: &VmId) -> Result<(Arc<Inventory>, Arc<Vm>), Error> {
        let inventory = self.inventory()?;
        let vm = if self.store.records_of(vm_ref)?.is_empty() {
            resolve_among(&inventory, vm_ref).cloned()?
        } else {
            inventory.named(vm_ref).cloned().ok_or_else(|| no_such_vm(&inventory))?
        };
        Ok((inventory, vm))
    }
}

fn resolve_among<'a>(inventory: &'a Inventory, vm_ref: &VmId) -> Result<&'a Arc<Vm>, Error> {
    if let Some(vm) = inventory.named(vm_ref) {
        return Ok(vm);
    }
    let mut named = inventory.vms.iter().filter(|vm| vm.id.is_some() && vm.has_uuid(vm_ref));
    match (named.next(), named.next()) {
        (None, _) => Err(no_such_vm(inventory)),
        (Some(vm), None) => Ok(vm),
        (Some(one), Some(other)) => Err(Error::BadRequest(format!(
            "the VMs {} and {} both have this uuid; name the one that is meant",
            one.name, other.name
        ))),
    }
}

/// Not knowing a VM is no proof that there is none, as long as a repository is missing.
fn no_such_vm(inventory: &Inventory) -> Error {
    if inventory.missing.is_empty() {
        return Error::NoVm;
    }
    Error::Unavailable(format!("whether there is such a VM is not known: {}", reasons(inventory)))
}

fn reasons(inventory: &Inventory) -> String {
    let reasons: Vec<&str> = inventory.missing.iter().map(|missing| missing.reason.as_str()).collect();
    reasons.join("; ")
}
