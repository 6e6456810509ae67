//! Which VMs there are: the definitions of all repositories, as of now.
//!
//! One pass over the repositories serves all who ask at the same time. A repository that does not answer hides
//! nothing: its VMs stay known from the last pass, and where there was none, it is said that they are not known.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::repositories::RepositorySet;
use super::shared::Shared;
use crate::app::Error;
use crate::inventory::{self, Definitions, Platform, Vm};
use crate::model::{RepositoryId, VmId};
use crate::repository::Repository;
use crate::repository::executor::JobKind;

/// The VMs of all repositories.
#[derive(Debug, Default)]
pub(crate) struct VmList {
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

/// Reads the definitions, and keeps what was read last.
#[derive(Default)]
pub(crate) struct Catalog {
    pub(super) platform: Platform,
    passes: Shared<Arc<VmList>>,
    known: Mutex<HashMap<RepositoryId, Arc<Definitions>>>,
}

impl Catalog {
    fn all_known(&self) -> MutexGuard<'_, HashMap<RepositoryId, Arc<Definitions>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, id: &RepositoryId) -> Option<Arc<Definitions>> {
        self.all_known().get(id).cloned()
    }

    /// The VMs of all repositories that were `found`, as of now.
    ///
    /// # Errors
    /// [`Unknown`].
    pub(super) fn list(&self, found: &RepositorySet) -> Result<Arc<VmList>, Unknown> {
        if let Some(problem) = found.problem.as_ref().filter(|_| found.known.is_empty()) {
            return Err(Unknown::AgentDb(problem.clone()));
        }
        let list = self.passes.get(|| Arc::new(self.read(found)));
        let unreadable = list.missing.iter().filter(|missing| missing.repository.is_some()).count();
        if list.vms.is_empty() && !list.missing.is_empty() && unreadable == found.usable().count() {
            return Err(Unknown::Repositories(format!("no VM is known: {}", list.reasons())));
        }
        Ok(list)
    }

    fn read(&self, found: &RepositorySet) -> VmList {
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
        VmList { vms: inventory::put_together(&sources), missing }
    }

    /// Begins to read the definitions of a repository; returns what waits for them.
    fn ask(&self, repository: &Repository) -> impl FnOnce() -> io::Result<Definitions> + use<> {
        let (before, asked) = (self.known(repository.id()).unwrap_or_default(), repository.clone());
        let platform = self.platform;
        let reading = repository.submit(JobKind::SHORT, move |access, root| {
            asked.mounted_now(access)?;
            platform.read_definitions(root, &before, &|| access.progress())
        });
        move || reading.wait().map_err(crate::repository::Unavailable::from)?
    }
}

impl VmList {
    /// The VM of this name; nothing else is tried.
    fn named(&self, id: &VmId) -> Option<&Arc<Vm>> {
        self.vms.iter().find(|vm| vm.id.as_ref() == Some(id))
    }

    /// The VM of this name.
    ///
    /// # Errors
    /// [`Error::NoVm`]; [`Error::Unavailable`] if a repository that cannot be read now may define it.
    pub(super) fn by_name(&self, vm_ref: &VmId) -> Result<&Arc<Vm>, Error> {
        self.named(vm_ref).ok_or_else(|| self.no_such_vm())
    }

    /// The VM of this name, or else of this uuid.
    ///
    /// # Errors
    /// As [`VmList::by_name`]; [`Error::BadRequest`] if two VMs have the uuid.
    pub(super) fn by_name_or_uuid(&self, vm_ref: &VmId) -> Result<&Arc<Vm>, Error> {
        if let Some(vm) = self.named(vm_ref) {
            return Ok(vm);
        }
        let mut named = self.vms.iter().filter(|vm| vm.id.is_some() && vm.has_uuid(vm_ref));
        match (named.next(), named.next()) {
            (None, _) => Err(self.no_such_vm()),
            (Some(vm), None) => Ok(vm),
            (Some(one), Some(other)) => Err(Error::BadRequest(format!(
                "the VMs {} and {} both have this uuid; use the name of one of them instead",
                one.name, other.name
            ))),
        }
    }

    /// While a repository cannot be read, an unknown VM may exist all the same.
    fn no_such_vm(&self) -> Error {
        if self.missing.is_empty() {
            return Error::NoVm;
        }
        Error::Unavailable(format!("the VM is not known, but its definition may be unreadable: {}", self.reasons()))
    }

    fn reasons(&self) -> String {
        let reasons: Vec<&str> = self.missing.iter().map(|missing| missing.reason.as_str()).collect();
        reasons.join("; ")
    }
}
