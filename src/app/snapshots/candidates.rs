//! Finds the snapshots in the repositories that can be adopted.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::adopt::{AdoptOptions, Adopter, Manifests};
use super::found::{Candidate, Found};
use super::placement::{Owners, Parts, place};
use crate::api;
use crate::app::Error;
use crate::inventory::Disk;
use crate::model::{SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::{LocatedDisk, PathError, Repository, assign, locate, scan};
use crate::store::StoreError;
use crate::sys::host;

/// VMs with disks in unmounted repositories, with the reason.
type Partial = HashMap<VmId, String>;

impl Adopter {
    /// Finds the snapshots that can be adopted.
    pub(super) fn find(&self, options: AdoptOptions, user: &str) -> Result<Found, Error> {
        let report = api::Adoption { dry_run: options.dry_run, ..api::Adoption::default() };
        let mut found = Found { report, ..Found::default() };
        let by_id = self.scan(&mut found);
        // The manifests of this service name their VMs, and a definition that cannot be read must not keep a snapshot
        // from being rebuilt.
        let (owners, partial) = match options.manifests {
            Manifests::Own => <(Owners, Partial)>::default(),
            Manifests::None | Manifests::All => self.owners_of_disks()?,
        };
        for (id, parts) in by_id {
            match self.store.record(SnapshotId::from_u128(id)) {
                Ok(None) => {}
                // The database knows it, perhaps as one that is being created or removed.
                Ok(Some(known)) => {
                    let known = known.repositories();
                    for (_, folder) in parts.iter().filter(|(repository, _)| !known.contains(&repository.id())) {
                        found.skip(&folder.path, "does not belong to the snapshot of this id".to_owned());
                    }
                    continue;
                }
                Err(error @ StoreError::Record { .. }) => {
                    parts.iter().for_each(|(_, folder)| found.skip(&folder.path, error.to_string()));
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            let with_manifests = options.manifests != Manifests::None;
            let assigned = match options.manifests {
                Manifests::Own if !self.is_own(&parts) => Err("was not made by this service".to_owned()),
                _ => place(&parts, &owners, with_manifests, user),
            };
            let assigned = assigned.and_then(|snapshot| match partial.get(&snapshot.vm) {
                // Without all repositories, a part of the snapshot would be adopted as the whole.
                Some(reason) => Err(reason.clone()),
                None => Ok(snapshot),
            });
            match assigned {
                Ok(placed) => found.candidates.entry(placed.vm.clone()).or_default().push(Candidate { placed, parts }),
                Err(reason) => parts.iter().for_each(|(_, folder)| found.skip(&folder.path, reason.clone())),
            }
        }
        for candidates in found.candidates.values_mut() {
            candidates.sort_by_key(|candidate| (candidate.placed.created_at, candidate.placed.sequence()));
        }
        Ok(found)
    }

    /// The snapshot folders of all repositories, by id.
    fn scan(&self, found: &mut Found) -> BTreeMap<u128, Parts> {
        let repositories = self.inventory.repositories();
        if let Some(problem) = &repositories.problem {
            // There may be others.
            found.leave_unsearched("ovs-agent's list of repositories".to_owned(), problem.clone());
        }
        let mut by_id: BTreeMap<u128, Parts> = BTreeMap::new();
        for (known, mounted) in repositories.with_mounts() {
            let name = known.name.as_str();
            let repository = match &known.repository {
                Ok(repository) => repository,
                Err(reason) => {
                    found.leave_unsearched(format!("the repository {name}"), reason.clone());
                    continue;
                }
            };
            let path = repository.mount_point();
            let scanned = mounted.map_err(|cause| format!("{cause}: its folders were not scanned")).and_then(|_| {
                let checked = repository.clone();
                let scanned = repository.run(JobKind::SHORT, move |access, root| {
                    checked.mounted_now(access)?;
                    scan::scan(root, &|| access.progress())
                });
                scanned.map_err(|error| format!("cannot be scanned: {error}"))
            });
            let (folders, unrecognized) = match scanned {
                Ok(scanned) => scanned,
                Err(reason) => {
                    found.skip(path, reason.clone());
                    found.leave_unsearched(path.display().to_string(), reason);
                    continue;
                }
            };
            for folder in folders {
                by_id.entry(folder.id.as_u128()).or_default().push((repository.clone(), folder));
            }
            for entry in unrecognized {
                if entry.is_unread {
                    found.leave_unsearched(entry.path.display().to_string(), entry.reason.clone());
                }
                found.skip(&entry.path, entry.reason);
            }
        }
        by_id
    }

    /// Whether the manifest of the snapshot names this service.
    fn is_own(&self, parts: &Parts) -> bool {
        let mut makers = parts.iter().filter_map(|(_, folder)| folder.maker.as_deref());
        makers.any(|maker| host::is_same_service(maker, &self.exporter))
    }

    fn owners_of_disks(&self) -> Result<(Owners, Partial), Error> {
        let (mut owners, mut partial) = (Owners::new(), Partial::new());
        let found = self.inventory.repositories();
        let unmounted: Vec<_> = found.unmounted().map(|(repository, _)| repository.mount_point()).collect();
        let repositories: Vec<_> = found.usable().cloned().collect();
        for vm in &self.inventory.vms()?.vms {
            let (Some(id), Ok(disks)) = (&vm.id, &vm.disks) else { continue };
            for path in disks.iter().filter_map(Disk::file).map(Path::new) {
                if let Some(missing) = unmounted.iter().find(|mount_point| path.starts_with(mount_point)) {
                    let reason = format!("its VM has a disk in {}, where nothing is mounted", missing.display());
                    partial.insert(id.clone(), reason);
                }
                // Disks that cannot be snapshotted today count too.
                let Ok(disk) = located(&repositories, path) else { continue };
                let name = disk.source.path.rsplit('/').next().unwrap_or_default().to_owned();
                let owner = (id.clone(), disk.source.clone());
                owners.entry((disk.source.repository, name)).or_default().insert(owner);
            }
        }
        Ok((owners, partial))
    }
}

fn located(repositories: &[Repository], path: &Path) -> Result<LocatedDisk, PathError> {
    let assigned = assign(repositories, path)?;
    let repository = assigned.repository.clone();
    repository.run(JobKind::SHORT, move |_, root| Ok(locate::open(root, &assigned)))?
}
