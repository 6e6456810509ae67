//! The cost of each snapshot: the bytes that its deletion would free, calculated from the extent maps of its files, of
//! the other snapshots' files and of the live disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::api;
use crate::app::Error;
use crate::app::admission::{Admission, CostRequest};
use crate::app::common::Common;
use crate::app::files::FileOpener;
use crate::app::inventory::{Inventory, View};
use crate::app::retention::Retention;
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::model::exclusive::exclusive;
use crate::model::{DiskSource, Snapshot, SnapshotDisk, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::usage::Usage;
use crate::store::Store;

/// Stops the work when the client disconnects.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The sums of one snapshot so far.
#[derive(Default)]
struct UsageTotals {
    exclusive: u64,
    unknown: u64,
    reason: Option<String>,
}

/// Calculates the cost of snapshots.
pub(super) struct ExclusiveUsage {
    inventory: Arc<Inventory>,
    retention: Arc<Retention>,
    files: Arc<FileOpener>,
    store: Store,
    admission: Arc<Admission>,
    tasks: Tasks,
}

impl Service for ExclusiveUsage {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl ExclusiveUsage {
    pub(super) fn new(common: &Common, files: Arc<FileOpener>) -> Self {
        let Common { inventory, retention, admission, store, tasks, .. } = common.clone();
        Self { inventory, retention, files, store, admission, tasks }
    }

    /// The cost of all snapshots that the user may read, or of those of the VM `vm_ref`, oldest first within a VM. This reads all maps, so
    /// only one request runs at a time, and it stops when its client disconnects.
    ///
    /// # Errors
    /// [`Error::Refused`] if another request runs; [`Error::Forbidden`], [`Error::NotFound`], [`Error::Store`].
    pub(super) async fn costs(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: Option<VmId>,
    ) -> Result<Vec<api::SnapshotCost>, Error> {
        let permit = self.admission.admit_cost_request(CostRequest { user: session.subject().to_owned() }).await?;
        let session = session.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let _stop = StopOnDrop(Arc::clone(&stop));
        self.blocking(move |usage| {
            let _permit = permit;
            let view = usage.inventory.view(&session)?;
            let vms = match vm_ref {
                Some(vm_ref) => vec![usage.inventory.resolve_vm(&session, &vm_ref)?],
                None => {
                    let mut vms: Vec<VmId> =
                        usage.store.snapshot_ids()?.into_keys().filter(|vm| view.includes_vm(vm)).collect();
                    vms.sort();
                    vms
                }
            };
            let mut costs = Vec::new();
            for vm in vms {
                let snapshots = usage.store.snapshots_of(&vm)?;
                let _held: Vec<_> = snapshots.iter().filter_map(|one| usage.retention.hold_briefly(one.id)).collect();
                // Those that the user may not read share blocks with the others, so they count too.
                let all = snapshots.iter().zip(usage.costs_of(&snapshots, &view, &stop));
                costs.extend(all.filter(|(snapshot, _)| view.includes(snapshot)).map(|(_, cost)| cost));
            }
            Ok(costs)
        })
        .await
    }

    fn costs_of(&self, snapshots: &[Snapshot], view: &View, stop: &Arc<AtomicBool>) -> Vec<api::SnapshotCost> {
        let mut sums: HashMap<SnapshotId, UsageTotals> = HashMap::new();
        let mut by_source: BTreeMap<(&str, &str), Vec<(&Snapshot, &SnapshotDisk)>> = BTreeMap::new();
        for snapshot in snapshots {
            for disk in &snapshot.disks {
                let source = (disk.source.repository.as_str(), disk.source.path.as_str());
                by_source.entry(source).or_default().push((snapshot, disk));
            }
        }
        for states in by_source.values() {
            match self.costs_of_disk(&states[0].1.source, states, view, stop) {
                Ok(costs) => {
                    for ((snapshot, _), (exclusive, unknown)) in states.iter().zip(costs) {
                        let sum = sums.entry(snapshot.id).or_default();
                        sum.exclusive += exclusive;
                        sum.unknown += unknown;
                    }
                }
                // One unknown state makes the figures of the others wrong too.
                Err(reason) => {
                    for (snapshot, _) in states {
                        sums.entry(snapshot.id).or_default().reason.get_or_insert_with(|| reason.clone());
                    }
                }
            }
        }
        let cost = |snapshot: &Snapshot| {
            let sum = sums.remove(&snapshot.id).unwrap_or_default();
            api::SnapshotCost {
                id: snapshot.id.to_string(),
                vm_id: snapshot.vm.to_string(),
                created_at: api::time(snapshot.created_at),
                exclusive_bytes: sum.reason.is_none().then_some(sum.exclusive),
                unknown_bytes: sum.unknown,
                reason: sum.reason,
            }
        };
        snapshots.iter().map(cost).collect()
    }

    /// For each state of a disk: the bytes that only it references, and the bytes whose references are unknown.
    fn costs_of_disk(
        &self,
        source: &DiskSource,
        states: &[(&Snapshot, &SnapshotDisk)],
        view: &View,
        stop: &Arc<AtomicBool>,
    ) -> Result<Vec<(u64, u64)>, String> {
        let repository = self.inventory.repository(&source.repository);
        let repository = repository.ok_or_else(|| format!("no repository {}", source.repository))?;
        // Each file is checked when it is opened. All are then read on a thread of the repository.
        let mut files = Vec::with_capacity(states.len());
        for (snapshot, disk) in states {
            let named = || format!("snapshot {}", snapshot.id);
            let of = if view.includes(snapshot) { named() } else { "another snapshot".to_owned() };
            let file = self.files.open(snapshot, disk);
            files.push(file.map_err(|error| format!("{of}, disk {}: {error}", disk.name))?);
        }
        let (names, source) = (states.iter().map(|(_, disk)| disk.name.clone()).collect::<Vec<_>>(), source.clone());
        let stop = Arc::clone(stop);
        let (references, unknown) = repository
            .run(JobKind::BULK, move |access, root| {
                let mut usage = Usage::new(access, &stop);
                let mut unknown = Vec::with_capacity(files.len());
                for (owner, (file, name)) in files.iter().zip(names).enumerate() {
                    match usage.add_snapshot(file, owner) {
                        Ok(bytes) => unknown.push(bytes),
                        Err(error) => return Ok(Err(format!("disk {name}: {error}"))),
                    }
                }
                match usage.add_live(root, &source, files.len()) {
                    Ok(()) => Ok(Ok((usage.into_references(), unknown))),
                    Err(error) => Ok(Err(format!("{}: {error}", source.path))),
                }
            })
            .map_err(|error| error.to_string())??;
        let bytes = exclusive(&references, states.len() + 1);
        Ok(bytes.into_iter().zip(unknown).collect())
    }
}
