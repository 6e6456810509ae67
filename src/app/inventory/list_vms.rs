//! The list of VMs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::catalog::{Missing, VmList};
use super::disk_classifier::{ClassifiedDisk, DiskDecision, Obstacle, choose, classify};
use super::disk_files::DiskFiles;
use super::view::View;
use crate::api;
use crate::app::error::Reason;
use crate::inventory::{Disk, Vm};
use crate::model::{RepositoryId, SnapshotId, VmId};

/// VMs whose disks are examined together. This bounds memory: the facts about a file are larger than its list entry.
const PAGE: usize = 1024;

/// The data of the list of VMs. Concurrent requests share it.
pub(crate) struct Listing {
    inventory: Arc<VmList>,
    /// One per VM, in their order.
    summaries: Vec<VmSummary>,
    /// The disks that the guests of this host have open.
    open: HashSet<String>,
}

/// The decision about a snapshot of a VM.
struct VmSummary {
    /// The reason why no snapshot is possible.
    reason: Option<Reason>,
    disks: Box<[DiskSummary]>,
}

/// The decision about a disk.
struct DiskSummary {
    found: Option<(u64, RepositoryId)>,
    friendly_name: Option<String>,
    incompatible_reason: Option<Reason>,
}

impl Listing {
    /// The list of the VMs in `inventory`. `files` examines their disks.
    pub(super) fn of(inventory: Arc<VmList>, mut files: DiskFiles<'_>, open: HashSet<String>) -> Self {
        let mut summaries = Vec::with_capacity(inventory.vms.len());
        for page in inventory.vms.chunks(PAGE) {
            files.inspect(page);
            summaries.extend(page.iter().map(|vm| VmSummary::about(vm, &files)));
        }
        Self { inventory, summaries, open }
    }

    /// The entry at `index`, or nothing after the last. `Some(None)` if `view` does not include its VM.
    pub(super) fn entry(
        &self,
        index: usize,
        view: &View,
        snapshots: &HashMap<VmId, Vec<SnapshotId>>,
        may_have_more: &impl Fn(&Vm) -> bool,
    ) -> Option<Option<api::Vm>> {
        if let (Some(vm), Some(summary)) = (self.inventory.vms.get(index), self.summaries.get(index)) {
            // A VM without an id cannot be named in a rule.
            if !vm.id.as_ref().map_or(view.is_unlimited(), |id| view.includes_vm(id)) {
                return Some(None);
            }
            let ids = vm.id.as_ref().and_then(|id| snapshots.get(id)).map(Vec::as_slice).unwrap_or_default();
            let document = to_wire(vm, ids, summary, view, &self.open);
            return Some(Some(api::Vm { snapshots_incomplete: may_have_more(vm), ..document }));
        }
        let mut unknown = self.inventory.missing.iter().filter(|missing| !missing.is_cached);
        unknown.nth(index - self.inventory.vms.len()).map(placeholder).map(Some)
    }
}

impl VmSummary {
    fn about(vm: &Vm, files: &DiskFiles<'_>) -> Self {
        let disks = vm.disks.as_deref().unwrap_or_default();
        let mut classified: Vec<_> =
            disks.iter().map(|disk| classify(files, &vm.name, disk).apply_nobackup_tag()).collect();
        let reason = match (&vm.disks, choose(classified.iter().map(|disk| &disk.decision))) {
            (Err(problem), _) => Some(problem.to_string().into()),
            (Ok(_), Ok(_)) => None,
            (Ok(_), Err(Obstacle { disk: None, reason, .. })) => Some(reason),
            (Ok(disks), Err(Obstacle { disk: Some(index), reason, .. })) => {
                let device_reason = reason.clone().after(&format!("{}: ", disks[index].device));
                classified[index].decision = DiskDecision::Prevents(reason);
                Some(device_reason)
            }
        };
        let decided = |disk: ClassifiedDisk| DiskSummary {
            found: disk.found,
            friendly_name: disk.friendly_name,
            incompatible_reason: match disk.decision {
                DiskDecision::Taken(_) => None,
                DiskDecision::LeftOut(reason) | DiskDecision::Prevents(reason) | DiskDecision::NotKnown(reason) => {
                    Some(reason)
                }
            },
        };
        Self { reason, disks: classified.into_iter().map(decided).collect() }
    }
}

/// The document of one VM, whose disks `files` has examined.
pub(super) fn describe(
    vm: &Vm,
    snapshots: &[SnapshotId],
    files: &DiskFiles<'_>,
    view: &View,
    open: &HashSet<String>,
) -> api::Vm {
    to_wire(vm, snapshots, &VmSummary::about(vm, files), view, open)
}

/// An entry for unknown VMs: their repository, or ovs-agent's list of repositories, has never been read. Without it,
/// the list would look complete.
fn placeholder(missing: &Missing) -> api::Vm {
    api::Vm {
        friendly_name: String::new(),
        name: missing.repository.as_ref().map_or("ovs-agent", RepositoryId::as_str).to_owned(),
        uuid: String::new(),
        snapshot_compatible: false,
        runs_here: None,
        snapshots: Vec::new(),
        snapshots_incomplete: false,
        status: api::Status::Error,
        permissions: Vec::new(),
        reason: Some(format!("{}; its VMs are unknown", missing.reason)),
        unavailable_repository: missing.repository.as_ref().map(ToString::to_string),
        disks: Vec::new(),
    }
}

fn to_wire(vm: &Vm, snapshots: &[SnapshotId], summary: &VmSummary, view: &View, open: &HashSet<String>) -> api::Vm {
    let disks = vm.disks.as_deref().unwrap_or_default();
    api::Vm {
        friendly_name: vm.friendly_name.clone(),
        name: vm.name.clone(),
        uuid: vm.uuid.clone().unwrap_or_else(|| vm.id.as_ref().map(VmId::dashed).unwrap_or_default()),
        snapshot_compatible: summary.reason.is_none(),
        runs_here: vm.runs_with(open).then_some(true),
        snapshots: snapshots.iter().map(SnapshotId::to_string).collect(),
        snapshots_incomplete: false,
        permissions: vm.id.as_ref().map(|id| view.permissions(id, None)).unwrap_or_default(),
        status: if vm.disks.is_ok() { api::Status::Ok } else { api::Status::Error },
        reason: summary.reason.as_ref().map(|reason| reason.seen_by(view)),
        unavailable_repository: None,
        disks: disks.iter().zip(&summary.disks).map(|(disk, summary)| disk_to_wire(disk, summary, view)).collect(),
    }
}

fn disk_to_wire(disk: &Disk, summary: &DiskSummary, view: &View) -> api::VmDisk {
    api::VmDisk {
        name: disk.file_name().to_owned(),
        path: disk.path().to_owned(),
        device_name: disk.device.clone(),
        snapshot_compatible: summary.incompatible_reason.is_none(),
        mode: disk.mode.to_owned(),
        size: summary.found.as_ref().map(|(size, _)| *size),
        friendly_name: summary.friendly_name.clone(),
        repository: summary.found.as_ref().map(|(_, id)| id.to_string()),
        incompatible_reason: summary.incompatible_reason.as_ref().map(|reason| reason.seen_by(view)),
    }
}
