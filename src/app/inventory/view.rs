//! The VMs and snapshots for which a user has a permission.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::catalog::{Missing, VmList};
use crate::app::Error;
use crate::app::error::Sight;
use crate::auth::Session;
use crate::model::{Annotations, Permission, Resource, Snapshot, VmId};

/// Also for one that the user may not see.
pub(crate) const NO_SUCH_SNAPSHOT: &str = "the VM has no such snapshot";

/// The friendly names of VMs by id.
pub(super) struct Names {
    pub by_id: HashMap<VmId, String>,
    /// Repositories that could not be read, which may define more VMs.
    pub missing: Vec<Missing>,
}

impl From<&VmList> for Names {
    fn from(list: &VmList) -> Self {
        let named = list.vms.iter().filter_map(|vm| Some((vm.id.clone()?, vm.friendly_name.clone())));
        Self { by_id: named.collect(), missing: list.missing.clone() }
    }
}

/// The names that were read last.
#[derive(Default)]
pub(super) struct NameCache(Mutex<CachedNames>);

#[derive(Default)]
struct CachedNames {
    /// With the time at which they had been read.
    last: Option<(Instant, Arc<Names>)>,
    is_being_read: bool,
}

impl NameCache {
    /// The last names, if they are younger than `max_age`, or than `max_age_meanwhile` while a caller reads new ones.
    /// Otherwise those that `read` returns; it gets whether there are older ones.
    pub(super) fn get(
        &self,
        max_age: Duration,
        max_age_meanwhile: Duration,
        read: impl FnOnce(bool) -> Result<Names, Error>,
    ) -> Result<Arc<Names>, Error> {
        let mut cached = self.lock();
        if let Some((read_at, names)) = &cached.last {
            let (age, may_wait) = (read_at.elapsed(), !cached.is_being_read);
            if age < max_age || (age < max_age_meanwhile && !may_wait) {
                return Ok(Arc::clone(names));
            }
        }
        let has_older = cached.last.is_some();
        cached.is_being_read = true;
        drop(cached);
        let names = read(has_older).map(Arc::new);
        let mut cached = self.lock();
        cached.is_being_read = false;
        if let Ok(names) = &names {
            cached.last = Some((Instant::now(), Arc::clone(names)));
        }
        names
    }

    fn lock(&self) -> MutexGuard<'_, CachedNames> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The VMs and snapshots for which a user has a permission.
#[derive(Clone)]
pub(crate) struct View {
    pub(super) session: Session,
    /// `None` if the rules name no VM by its friendly name.
    pub(super) names: Option<Arc<Names>>,
}

impl Sight for View {
    fn sees_everything(&self) -> bool {
        self.is_unlimited()
    }

    fn sees_vm(&self, vm: &VmId) -> bool {
        self.includes_vm(vm)
    }
}

impl View {
    /// Whether the user may see everything.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.session.grants().has_for_all(self.session.permission())
    }

    fn resource<'a>(&'a self, vm: &'a VmId, annotations: Option<&'a Annotations>) -> Resource<'a> {
        let vm_name = self.names.as_ref().and_then(|names| names.by_id.get(vm)).map(String::as_str);
        Resource { vm, vm_name, labels: annotations.map(Annotations::labels) }
    }

    pub(super) fn permits(&self, permission: Permission, vm: &VmId, annotations: Option<&Annotations>) -> bool {
        self.session.grants().permits(permission, &self.resource(vm, annotations))
    }

    /// What the user may do with the VM, or with a snapshot of it that has these annotations, as names of the API.
    pub(crate) fn permissions(&self, vm: &VmId, annotations: Option<&Annotations>) -> Vec<Cow<'static, str>> {
        let permitted = self.session.grants().permissions_on(&self.resource(vm, annotations));
        permitted.map(|permission| permission.as_str().into()).collect()
    }

    pub(crate) fn includes_vm(&self, vm: &VmId) -> bool {
        self.is_unlimited() || self.permits(self.session.permission(), vm, None)
    }

    pub(crate) fn includes(&self, snapshot: &Snapshot) -> bool {
        self.includes_of(&snapshot.vm, &snapshot.annotations)
    }

    /// Whether it includes a snapshot of the VM with these annotations.
    pub(crate) fn includes_of(&self, vm: &VmId, annotations: &Annotations) -> bool {
        self.is_unlimited() || self.permits(self.session.permission(), vm, Some(annotations))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn names(name: &str) -> Names {
        let vm = "0004fb00000600000000000000000001".parse().unwrap();
        Names { by_id: [(vm, name.to_owned())].into(), missing: Vec::new() }
    }

    fn name(found: Result<Arc<Names>, Error>) -> String {
        found.unwrap().by_id.values().next().unwrap().clone()
    }

    #[test]
    fn the_last_names_count_while_one_caller_reads_new_ones() {
        let cache = &NameCache::default();
        assert_eq!(
            name(cache.get(LONG, LONG, |has_older| Ok(names(if has_older { "older" } else { "first" })))),
            "first"
        );
        let unread = |_| -> Result<Names, Error> { panic!("they were read") };
        assert_eq!(name(cache.get(LONG, LONG, unread)), "first");
        let ((started, wait), (release, held)) = (channel(), channel::<()>());
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                cache.get(Duration::ZERO, LONG, |has_older| {
                    started.send(has_older).unwrap();
                    let _ = held.recv();
                    Ok(names("second"))
                })
            });
            assert!(wait.recv().unwrap());
            // As on a hung repository: others do not wait for it, unless the last names are too old.
            assert_eq!(name(cache.get(Duration::ZERO, LONG, unread)), "first");
            assert_eq!(name(cache.get(Duration::ZERO, Duration::ZERO, |_| Ok(names("own")))), "own");
            release.send(()).unwrap();
            assert_eq!(name(reader.join().unwrap()), "second");
        });
        // They are as old as the end of the reading, however long that took.
        assert_eq!(name(cache.get(LONG, LONG, unread)), "second");
        // An error leaves them.
        assert!(cache.get(Duration::ZERO, LONG, |_| Err(Error::NoVm)).is_err());
        assert_eq!(name(cache.get(LONG, LONG, unread)), "second");
    }
}
