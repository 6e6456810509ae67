//! The VMs of all repositories, read from their definitions.
//!
//! Concurrent requests share one pass over the repositories. If a repository does not respond, its VMs are listed from
//! the last pass. If it was never read, the list says that its VMs are unknown.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::repositories::RepositorySet;
use super::shared::Shared;
use crate::app::Error;
use crate::inventory::{self, Definitions, Platform, Vm};
use crate::model::{Definition, RepositoryId, VmId};
use crate::repository::Repository;
use crate::repository::executor::{JobKind, Unresponsive};

/// The VMs of all repositories.
#[derive(Debug, Default)]
pub(crate) struct VmList {
    /// Sorted by name.
    pub vms: Vec<Arc<Vm>>,
    /// Repositories that may have more VMs.
    pub missing: Vec<Missing>,
}

/// A repository whose definitions cannot be read now. Without an id: all repositories of ovs-agent that are unknown.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    pub repository: Option<RepositoryId>,
    pub reason: String,
    /// Whether its VMs are known from an earlier pass.
    pub is_cached: bool,
}

/// The reason why no VM is known.
#[derive(Clone, Debug)]
pub(crate) enum Unknown {
    /// ovs-agent's database cannot be read, so no repository is known.
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

/// Reads the definitions, and caches the last ones.
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

    /// The current VMs of all repositories that were `found`.
    pub(super) fn list(&self, found: &RepositorySet) -> Result<Arc<VmList>, Unknown> {
        if let Some(problem) = found.problem.as_ref().filter(|_| found.known.is_empty()) {
            return Err(Unknown::AgentDb(problem.clone()));
        }
        let list = self.passes.get(|| Arc::new(self.read(found, None)));
        let unreadable = list.missing.iter().filter(|missing| missing.repository.is_some()).count();
        if list.vms.is_empty() && !list.missing.is_empty() && unreadable == found.usable().count() {
            return Err(Unknown::Repositories(format!("no VM is known: {}", reasons(&list.missing))));
        }
        Ok(list)
    }

    /// What a snapshot keeps of the definition of `vm`, which is in a list that was just made.
    ///
    /// # Errors
    /// It cannot be read, or it was changed meanwhile. The error is written for operators.
    pub(super) fn describe(&self, found: &RepositorySet, vm: &Arc<Vm>) -> Result<Definition, String> {
        let id = vm.id.as_ref().ok_or("it has no id")?;
        let folder_in = |repository: &Repository| self.known(repository.id())?.folder_of(id).map(OsStr::to_owned);
        let place = found.usable().find_map(|repository| Some((repository, folder_in(repository)?)));
        let (repository, folder) = place.ok_or("its definition is gone")?;
        let (platform, vm) = (self.platform, Arc::clone(vm));
        let described =
            repository.run(JobKind::SHORT, move |_, root| Ok(platform.describe_definition(root, &folder, &vm)));
        described.map_err(|error| error.to_string())?.map_err(|problem| problem.to_string())
    }

    /// As [`Catalog::list`], but lists the VMs of a repository from the last pass if it has not responded after
    /// `patience`.
    pub(super) fn list_within(&self, found: &RepositorySet, patience: Duration) -> VmList {
        self.read(found, Some(Instant::now() + patience))
    }

    fn read(&self, found: &RepositorySet, until: Option<Instant>) -> VmList {
        // All reads start before the first result is awaited.
        let reads: Vec<_> =
            found.usable().map(|repository| (repository, self.start_reading(repository, until))).collect();
        let (mut sources, mut cached, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (repository, read) in reads {
            let (id, mount_point) = (repository.id(), repository.mount_point().to_owned());
            match read() {
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
                        is_cached: known.is_some(),
                    });
                    cached.extend(known.map(|known| (mount_point, known.without_disks(&reason))));
                }
            }
        }
        if let Some(problem) = &found.problem {
            // The last known repositories stay, but there may be others.
            let is_cached = found.known.iter().any(|known| known.entry.is_some());
            missing.push(Missing { repository: None, reason: format!("ovs-agent: {problem}"), is_cached });
        }
        let known: HashSet<RepositoryId> = found.usable().map(|repository| repository.id().clone()).collect();
        self.all_known().retain(|id, _| known.contains(id));
        if !cached.is_empty() {
            // A VM may have moved to another repository meanwhile.
            let ids = sources.iter().flat_map(|(_, definitions)| definitions.vms()).filter_map(|vm| vm.id.clone());
            let current: HashSet<VmId> = ids.collect();
            for (mount_point, mut definitions) in cached {
                definitions.retain(|vm| vm.id.as_ref().is_none_or(|id| !current.contains(id)));
                sources.push((mount_point, Arc::new(definitions)));
            }
        }
        VmList { vms: inventory::put_together(&sources), missing }
    }

    /// Starts to read the definitions of a repository. Returns a function that waits for them; if earlier ones are known,
    /// at most `until` this time.
    fn start_reading(
        &self,
        repository: &Repository,
        until: Option<Instant>,
    ) -> impl FnOnce() -> io::Result<Definitions> + use<> {
        let (known, checked) = (self.known(repository.id()), repository.clone());
        let (until, before) = (until.filter(|_| known.is_some()), known.unwrap_or_default());
        let platform = self.platform;
        let reading = repository.submit(JobKind::SHORT, move |access, root| {
            checked.mounted_now(access)?;
            platform.read_definitions(root, &before, &|| access.progress())
        });
        move || {
            let read = reading.wait_while(|| until.is_none_or(|until| Instant::now() < until));
            read.map_err(|_| crate::repository::Unavailable::from(Unresponsive))?
        }
    }
}

impl VmList {
    /// The VM with this name, if the list has it.
    fn named(&self, id: &VmId) -> Option<&Arc<Vm>> {
        self.vms.iter().find(|vm| vm.id.as_ref() == Some(id))
    }

    /// The VM with this name.
    ///
    /// # Errors
    /// [`Error::NoVm`]; [`Error::Unavailable`] if a repository that cannot be read now may define it.
    pub(super) fn by_name(&self, vm_ref: &VmId) -> Result<&Arc<Vm>, Error> {
        self.named(vm_ref).ok_or_else(|| self.no_such_vm())
    }

    /// The VM with this name, or else the only one with this uuid for which `is_visible` is true.
    ///
    /// # Errors
    /// As [`VmList::by_name`]; [`Error::BadRequest`] if two VMs have the uuid.
    pub(super) fn by_name_or_uuid(&self, vm_ref: &VmId, is_visible: impl Fn(&VmId) -> bool) -> Result<&Arc<Vm>, Error> {
        if let Some(vm) = self.named(vm_ref) {
            return Ok(vm);
        }
        let mut found: Vec<_> = self.vms.iter().filter(|vm| vm.id.is_some() && vm.has_uuid(vm_ref)).collect();
        if found.len() > 1 {
            found.retain(|vm| vm.id.as_ref().is_some_and(&is_visible));
        }
        match found[..] {
            [] => Err(self.no_such_vm()),
            [vm] => Ok(vm),
            [one, other, ..] => Err(Error::BadRequest(format!(
                "the VMs {} and {} both have this uuid; use the name of the VM instead",
                one.name, other.name
            ))),
        }
    }

    /// The error for an unknown VM.
    pub(super) fn no_such_vm(&self) -> Error {
        no_such_vm(&self.missing)
    }
}

/// The error for an unknown VM. It may exist nevertheless while repositories are `missing`.
pub(super) fn no_such_vm(missing: &[Missing]) -> Error {
    if missing.is_empty() {
        return Error::NoVm;
    }
    Error::Unavailable(format!("the VM is unknown, but its definition may be unreadable: {}", reasons(missing)))
}

fn reasons(missing: &[Missing]) -> String {
    let reasons: Vec<&str> = missing.iter().map(|missing| missing.reason.as_str()).collect();
    reasons.join("; ")
}
