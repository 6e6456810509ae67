//! The VMs and snapshots for which a user has a permission.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::app::Error;
use crate::auth::Session;
use crate::model::{Annotations, Permission, Resource, Snapshot, VmId};

/// Also for one that the user may not see.
pub(crate) const NO_SUCH_SNAPSHOT: Error = Error::NotFound("the VM has no such snapshot");

/// The friendly names of VMs by id.
#[derive(Default)]
pub(super) struct Names {
    pub by_id: HashMap<VmId, String>,
    /// Whether a repository could not be read, which may define more VMs.
    pub is_incomplete: bool,
}

/// The names that were read last.
#[derive(Default)]
pub(super) struct NameCache(pub Mutex<Option<(Instant, Arc<Names>)>>);

/// The VMs and snapshots for which a user has a permission.
#[derive(Clone)]
pub(crate) struct View {
    pub(super) session: Session,
    /// Empty if the rules name no VM by its friendly name.
    pub(super) names: Arc<Names>,
}

impl View {
    /// Whether the user may see everything.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.session.grants().has_for_all(self.session.permission())
    }

    pub(super) fn permits(&self, permission: Permission, vm: &VmId, annotations: Option<&Annotations>) -> bool {
        let vm_name = self.names.by_id.get(vm).map(String::as_str);
        self.session
            .grants()
            .permits(permission, &Resource { vm, vm_name, labels: annotations.map(Annotations::labels) })
    }

    pub(crate) fn includes_vm(&self, vm: &VmId) -> bool {
        self.is_unlimited() || self.permits(self.session.permission(), vm, None)
    }

    pub(crate) fn includes(&self, snapshot: &Snapshot) -> bool {
        self.is_unlimited() || self.permits(self.session.permission(), &snapshot.vm, Some(&snapshot.annotations))
    }
}
