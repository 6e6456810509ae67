//! The journey to a list of VMs.

use std::path::Path;
use std::sync::Arc;

use super::catalog::Missing;
use super::vm_disks::{Examiner, Verdict};
use super::{App, Error};
use crate::auth::Session;
use crate::inventory;
use crate::inventory::vm_cfg::{DiskLine, DiskSource};
use crate::model::{SnapshotId, VmId};
use crate::wire;

impl App {
    /// All VMs.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Store`].
    pub async fn list_vms(self: &Arc<Self>, _session: &Session) -> Result<Vec<wire::Vm>, Error> {
        self.blocking(|app| {
            let mut snapshots = app.store.snapshot_ids()?;
            let mut examiner = Examiner::new(app);
            let vms = app.inventory()?;
            let listed = vms.vms.iter().map(|vm| {
                let ids = vm.id.as_ref().and_then(|id| snapshots.remove(id)).unwrap_or_default();
                to_wire(vm, &ids, &mut examiner)
            });
            let unknown = vms.missing.iter().filter(|missing| !missing.is_remembered).map(placeholder);
            Ok(listed.chain(unknown).collect())
        })
        .await
    }

    /// One VM of the inventory.
    ///
    /// # Errors
    /// [`Error::NotFound`], also where it has left the inventory; [`Error::Unavailable`],
    /// [`Error::Store`].
    pub async fn vm(self: &Arc<Self>, _session: &Session, called: VmId) -> Result<wire::Vm, Error> {
        self.blocking(move |app| {
            let vm = app.find_vm(&called)?;
            let snapshots = match &vm.id {
                Some(id) => app.store.snapshots_of(id)?,
                None => Vec::new(),
            };
            let ids: Vec<_> = snapshots.iter().map(|snapshot| snapshot.id).collect();
            Ok(to_wire(&vm, &ids, &mut Examiner::new(app)))
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

fn to_wire(vm: &inventory::Vm, snapshots: &[SnapshotId], examiner: &mut Examiner<'_>) -> wire::Vm {
    let uuid = vm.uuid.clone().unwrap_or_else(|| vm.id.as_ref().map(VmId::dashed).unwrap_or_default());
    let lines = vm.disks.as_deref().unwrap_or_default();
    let examined: Vec<_> = lines.iter().map(|line| (line, examiner.examine(line).heeding_its_name())).collect();
    let prevented = examined.iter().find_map(|(line, disk)| match &disk.verdict {
        Verdict::Prevents(reason) => Some(format!("{}: {reason}", line.device)),
        Verdict::Taken(_) | Verdict::LeftOut(_) => None,
    });
    let takes_any = examined.iter().any(|(_, disk)| matches!(disk.verdict, Verdict::Taken(_)));
    let reason = match &vm.disks {
        Err(problem) => Some(problem.to_string()),
        Ok(_) => prevented.or_else(|| (!takes_any).then(|| "no disk to snapshot".to_owned())),
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
                    Verdict::LeftOut(reason) | Verdict::Prevents(reason) => Some(reason),
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
