//! The journey to a list of VMs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::catalog::{Inventory, Missing, Unknown};
use super::disk_files::DiskFiles;
use super::vm_disks::{Obstacle, Verdict, choose, examine};
use super::{App, Error};
use crate::auth::Session;
use crate::inventory;
use crate::inventory::vm_cfg::{DiskLine, DiskSource};
use crate::model::{SnapshotId, VmId};
use crate::wire::{self, Array};

/// What the list of VMs says, but for the words: put together once for all who ask at the same time.
pub(super) struct Listing {
    inventory: Arc<Inventory>,
    files: DiskFiles,
}

impl Listing {
    /// The entry at a place; none after the last.
    fn entry(&self, index: usize, snapshots: &HashMap<VmId, Vec<SnapshotId>>) -> Option<wire::Vm> {
        if let Some(vm) = self.inventory.vms.get(index) {
            let ids = vm.id.as_ref().and_then(|id| snapshots.get(id)).map(Vec::as_slice).unwrap_or_default();
            return Some(to_wire(vm, ids, &self.files));
        }
        let mut unknown = self.inventory.missing.iter().filter(|missing| !missing.is_remembered);
        unknown.nth(index - self.inventory.vms.len()).map(placeholder)
    }
}

impl App {
    /// All VMs, each put into words when it is taken.
    ///
    /// # Errors
    /// [`Error::AgentDb`], [`Error::Unavailable`] where nothing is known of any VM; [`Error::Store`].
    pub async fn list_vms(self: &Arc<Self>, _session: &Session) -> Result<Array<wire::Vm>, Error> {
        let listed = self.blocking(|app| {
            let listing = app.listings.get(|| {
                let inventory = app.inventory()?;
                let vms = || inventory.vms.iter().map(Arc::as_ref);
                let files = DiskFiles::look_at(app, vms(), vms(), false);
                Ok(Arc::new(Listing { files, inventory }))
            });
            Ok((listing.map_err(|unknown: Unknown| Error::from(unknown))?, app.store.snapshot_ids()?))
        });
        let ((listing, snapshots), mut places) = (listed.await?, 0..);
        Ok(Array::new(std::iter::from_fn(move || listing.entry(places.next()?, &snapshots))))
    }

    /// One VM of the inventory.
    ///
    /// # Errors
    /// [`Error::NoVm`], also where it has left the inventory; [`Error::Unavailable`], [`Error::Store`].
    pub async fn vm(self: &Arc<Self>, _session: &Session, called: VmId) -> Result<wire::Vm, Error> {
        self.blocking(move |app| {
            let (inventory, vm) = app.find_vm(&called)?;
            let files = DiskFiles::look_at(app, inventory.vms.iter().map(Arc::as_ref), [&*vm], false);
            let snapshots = match &vm.id {
                Some(id) => app.store.snapshots_of(id)?,
                None => Vec::new(),
            };
            let ids: Vec<_> = snapshots.iter().map(|snapshot| snapshot.id).collect();
            Ok(to_wire(&vm, &ids, &files))
        })
        .await
    }
}

/// An entry for the VMs of a repository that cannot be read, and never was: a list without them would look whole.
fn placeholder(missing: &Missing) -> wire::Vm {
    wire::Vm {
        friendly_name: String::new(),
        name: missing.repository.to_string(),
        uuid: String::new(),
        snapshot_compatible: false,
        snapshots: Vec::new(),
        status: wire::Status::Error,
        reason: Some(format!("{}; its VMs are not known", missing.reason)),
        unavailable_repository: Some(missing.repository.to_string()),
        disks: Vec::new(),
    }
}

fn to_wire(vm: &inventory::Vm, snapshots: &[SnapshotId], files: &DiskFiles) -> wire::Vm {
    let uuid = vm.uuid.clone().unwrap_or_else(|| vm.id.as_ref().map(VmId::dashed).unwrap_or_default());
    let lines = vm.disks.as_deref().unwrap_or_default();
    let mut examined: Vec<_> =
        lines.iter().map(|line| (line, examine(files, &vm.name, line).heeding_its_name())).collect();
    let reason = match (&vm.disks, choose(examined.iter().map(|(_, disk)| &disk.verdict))) {
        (Err(problem), _) => Some(problem.to_string()),
        (Ok(_), Ok(_)) => None,
        (Ok(_), Err(Obstacle { disk: None, reason, .. })) => Some(reason),
        (Ok(_), Err(Obstacle { disk: Some(index), reason, .. })) => {
            let (line, disk) = &mut examined[index];
            let told = format!("{}: {reason}", line.device);
            disk.verdict = Verdict::Prevents(reason);
            Some(told)
        }
    };
    wire::Vm {
        friendly_name: vm.friendly_name.clone(),
        name: vm.name.clone(),
        uuid,
        snapshot_compatible: reason.is_none(),
        snapshots: snapshots.iter().map(SnapshotId::to_string).collect(),
        status: if vm.disks.is_ok() { wire::Status::Ok } else { wire::Status::Error },
        reason,
        unavailable_repository: None,
        disks: examined
            .into_iter()
            .map(|(line, disk)| {
                let path = path_text(line);
                let (size, repository) = disk.found.unzip();
                let incompatible_reason = match disk.verdict {
                    Verdict::Taken(_) => None,
                    Verdict::LeftOut(reason) | Verdict::Prevents(reason) | Verdict::NotKnown(reason) => Some(reason),
                };
                wire::VmDisk {
                    name: Path::new(&path)
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned())
                        .unwrap_or_default(),
                    path,
                    device_name: line.device.clone(),
                    snapshot_compatible: incompatible_reason.is_none(),
                    mode: line.mode.clone(),
                    size,
                    friendly_name: disk.friendly_name,
                    repository: repository.map(|id| id.to_string()),
                    incompatible_reason,
                }
            })
            .collect(),
    }
}

fn path_text(line: &DiskLine) -> String {
    match &line.source {
        DiskSource::File(path) => path.clone(),
        DiskSource::Empty => String::new(),
        DiskSource::Other { target, .. } => target.clone(),
    }
}
