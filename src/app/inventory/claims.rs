//! Maps disk files to the VMs that use them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::app::error::{Named, Reason};
use crate::inventory::Vm;
use crate::model::DiskSource;
use crate::repository::{AssignedPath, Repository, assign};

/// A VM that lists a file as its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The index of the VM.
    vm: usize,
    /// Whether the VM marks the disk as shared.
    is_shared: bool,
}

/// The disks of the inventory whose paths are in a repository. This only uses paths, no files.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    vms: Vec<Arc<Vm>>,
    /// The files that are listed more than once, by their paths in their repositories.
    duplicates: HashMap<DiskSource, Vec<Claim>>,
}

impl Claims {
    /// The claims of all `vms`. Unusable definitions are ignored.
    pub(crate) fn of(vms: &[Arc<Vm>], repositories: &[Repository]) -> Self {
        // First with hashes only, to save memory: few files are listed twice.
        let hasher = RandomState::new();
        let mut seen: HashMap<u64, bool> = HashMap::new();
        for (_, source) in sources(vms, repositories) {
            let is_duplicate = seen.contains_key(&hasher.hash_one(&source));
            seen.insert(hasher.hash_one(&source), is_duplicate);
        }
        let mut claims = Self { vms: vms.to_vec(), duplicates: HashMap::new() };
        if seen.values().any(|is_duplicate| *is_duplicate) {
            for (claim, source) in sources(vms, repositories) {
                if seen.get(&hasher.hash_one(&source)) == Some(&true) {
                    claims.duplicates.entry(source).or_default().push(claim);
                }
            }
        }
        claims
    }

    /// All claims on the files of a repository, with their paths in it.
    pub(crate) fn in_repository(&self, repository: &Repository, all: &[Repository]) -> Vec<(Claim, PathBuf)> {
        let of_it = sources(&self.vms, all).filter(|(_, source)| source.repository == *repository.id());
        of_it.map(|(claim, source)| (claim, source.path.into())).collect()
    }

    /// The claims on one file, if it is listed more than once.
    pub(crate) fn on(&self, source: &DiskSource) -> &[Claim] {
        self.duplicates.get(source).map_or(&[], Vec::as_slice)
    }

    /// The reason why a file with these claims cannot be snapshotted for the VM `name`: another VM lists it too, and
    /// not all of them mark it as shared.
    pub(crate) fn conflict(&self, name: &str, claims: &[Claim]) -> Option<Reason> {
        let mut others: Vec<&Vm> = claims.iter().map(|claim| &*self.vms[claim.vm]).collect();
        others.sort_unstable_by_key(|vm| &vm.name);
        others.dedup_by_key(|vm| &vm.name);
        others.retain(|other| other.name != name);
        if others.is_empty() || claims.iter().all(|claim| claim.is_shared) {
            return None;
        }
        let others = others.into_iter().map(|vm| (vm.name.clone(), vm.id.clone())).collect();
        let after = ", and not all of them mark it as shared (w!)";
        Some(Reason::naming("is also a disk of ", Named::Vms(others), after))
    }
}

/// All files that the VMs list, with the claims.
fn sources<'a>(
    vms: &'a [Arc<Vm>],
    repositories: &'a [Repository],
) -> impl Iterator<Item = (Claim, DiskSource)> + use<'a> {
    vms.iter().enumerate().flat_map(move |(number, vm)| {
        vm.disks.as_deref().unwrap_or_default().iter().filter_map(move |disk| {
            let AssignedPath { repository, below, .. } = assign(repositories, Path::new(disk.file()?)).ok()?;
            let path = below.into_os_string().into_string().ok()?;
            let source = DiskSource { repository: repository.id().clone(), path };
            Some((Claim { vm: number, is_shared: disk.shared }, source))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::oracle_vm::vm_cfg;

    #[test]
    fn file_of_two_vms_is_snapshotted_if_both_mark_it_as_shared() {
        let repository = Repository::new("r".parse().unwrap(), "/none/r".into());
        let vm = |name: &str, disks: &str| Vm {
            id: None,
            name: name.to_owned(),
            uuid: None,
            friendly_name: String::new(),
            description: String::new(),
            addresses: Vec::new(),
            disks: Ok(vm_cfg::parse(&format!("disk = [{disks}]")).unwrap().disks.unwrap()),
        };
        let conflict = |disks: [&str; 3]| {
            let vms: Vec<Arc<Vm>> =
                ["a", "b", "c"].iter().zip(disks).map(|(name, disks)| Arc::new(vm(name, disks))).collect();
            let claims = Claims::of(&vms, std::slice::from_ref(&repository));
            let source = DiskSource { repository: repository.id().clone(), path: "VirtualDisks/x.img".to_owned() };
            let on = claims.on(&source);
            ["a", "b", "c"].map(|name| claims.conflict(name, on).is_some())
        };
        let [writes, shares, reads] =
            ["w", "w!", "r"].map(|mode| format!("'file:/none/r/VirtualDisks/x.img,xvda,{mode}'"));
        let shares_too = "'file:/none//r/VirtualDisks/y/../x.img,xvdb,w!'".to_owned();
        // Only one VM lists the file.
        assert_eq!(conflict([&writes, "", ""]), [false, false, false]);
        assert!(!conflict([&format!("{writes}, {reads}"), "", ""])[0]);
        assert_eq!(conflict([&writes, &writes, ""])[..2], [true, true]);
        assert_eq!(conflict([&shares, &shares_too, ""])[..2], [false, false]);
        assert_eq!(conflict([&shares, &shares_too, &reads]), [true, true, true]);
        assert_eq!(conflict([&shares, &writes, ""])[..2], [true, true]);
        assert!(!conflict(["'file:/none/r/VirtualDisks/y.img,xvda,w'", &writes, ""])[1]);
    }

    #[test]
    fn conflict_has_all_other_vms_once() {
        let claim = |vm: usize| Claim { vm, is_shared: false };
        let named = |name: &str| {
            let none = String::new;
            let (name, disks) = (name.to_owned(), Ok(Vec::new()));
            Arc::new(Vm {
                id: None,
                name,
                uuid: None,
                friendly_name: none(),
                description: none(),
                addresses: Vec::new(),
                disks,
            })
        };
        let claims = Claims { vms: ["a", "b", "c"].map(named).to_vec(), duplicates: HashMap::new() };
        let reason = claims.conflict("b", &[claim(2), claim(1), claim(0), claim(2)]).unwrap();
        let others = Named::Vms(vec![("a".to_owned(), None), ("c".to_owned(), None)]);
        let after = ", and not all of them mark it as shared (w!)";
        assert_eq!(reason, Reason::naming("is also a disk of ", others, after));
    }
}
