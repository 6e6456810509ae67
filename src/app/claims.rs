//! Which VMs name which files as their disks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::inventory::Vm;
use crate::inventory::vm_cfg::DiskSource;
use crate::model::RepositoryId;
use crate::repository::{Assigned, Repository, assign};

/// A VM that names a file, by its place in the list, and whether it says that others do too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    vm: usize,
    is_shared: bool,
}

/// The disks of the inventory, as far as their paths lie in a repository. No file is looked at.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// The names of the VMs.
    vms: Vec<String>,
    by_path: HashMap<RepositoryId, HashMap<PathBuf, Vec<Claim>>>,
}

impl Claims {
    /// Those of all `vms`. A definition that cannot be used claims nothing.
    pub(super) fn of<'a>(vms: impl IntoIterator<Item = &'a Vm>, repositories: &[Repository]) -> Self {
        let mut claims = Self::default();
        for vm in vms {
            let (number, lines) = (claims.vms.len(), vm.disks.as_deref().unwrap_or_default());
            claims.vms.push(vm.name.clone());
            for line in lines {
                let DiskSource::File(path) = &line.source else { continue };
                let Ok(Assigned { repository, below, .. }) = assign(repositories, Path::new(path)) else { continue };
                let files = claims.by_path.entry(repository.id().clone()).or_default();
                files.entry(below).or_default().push(Claim { vm: number, is_shared: line.is_shared() });
            }
        }
        claims
    }

    /// The files of a repository that are named, by their paths below it.
    pub(super) fn in_repository(&self, id: &RepositoryId) -> impl Iterator<Item = (&PathBuf, &Vec<Claim>)> {
        self.by_path.get(id).into_iter().flatten()
    }

    /// The claims on one file.
    pub(super) fn on(&self, id: &RepositoryId, below: &str) -> &[Claim] {
        self.by_path.get(id).and_then(|files| files.get(Path::new(below))).map_or(&[], Vec::as_slice)
    }

    /// Why the VM `name` may not have a file with these claims snapshotted: another VM names it too, and not all
    /// of them say that it is shared.
    pub(super) fn conflict(&self, name: &str, claims: &[Claim]) -> Option<String> {
        let mut others: Vec<&str> = claims.iter().map(|claim| self.vms[claim.vm].as_str()).collect();
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != name);
        if others.is_empty() || claims.iter().all(|claim| claim.is_shared) {
            return None;
        }
        let (first, more) = (others[0], others.len() - 1);
        let more = if more > 0 { format!(" and of {more} more") } else { String::new() };
        Some(format!("is a disk of the VM {first}{more} as well, and not each of them marks it as shared (w!)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::vm_cfg;

    #[test]
    fn a_file_of_two_vms_is_taken_where_both_mark_it_as_shared() {
        let repository = Repository::new("r".parse().unwrap(), "/none/r".into());
        let vm = |name: &str, disks: &str| Vm {
            id: None,
            name: name.to_owned(),
            uuid: None,
            friendly_name: String::new(),
            description: String::new(),
            address: None,
            disks: Ok(vm_cfg::parse(&format!("disk = [{disks}]")).unwrap().disks.unwrap()),
        };
        let conflict = |disks: [&str; 3]| {
            let vms: Vec<Vm> = ["a", "b", "c"].iter().zip(disks).map(|(name, disks)| vm(name, disks)).collect();
            let claims = Claims::of(&vms, std::slice::from_ref(&repository));
            let on = claims.on(repository.id(), "VirtualDisks/x.img");
            ["a", "b", "c"].map(|name| claims.conflict(name, on).is_some())
        };
        let [writes, shares, reads] =
            ["w", "w!", "r"].map(|mode| format!("'file:/none/r/VirtualDisks/x.img,xvda,{mode}'"));
        let shares_too = "'file:/none//r/VirtualDisks/y/../x.img,xvdb,w!'".to_owned();
        assert_eq!(conflict([&writes, "", ""]), [false, true, true]);
        assert!(!conflict([&format!("{writes}, {reads}"), "", ""])[0]);
        assert_eq!(conflict([&writes, &writes, ""])[..2], [true, true]);
        assert_eq!(conflict([&shares, &shares_too, ""])[..2], [false, false]);
        assert_eq!(conflict([&shares, &shares_too, &reads]), [true, true, true]);
        assert_eq!(conflict([&shares, &writes, ""])[..2], [true, true]);
        assert!(!conflict(["'file:/none/r/VirtualDisks/y.img,xvda,w'", &writes, ""])[1]);
    }

    #[test]
    fn three_vms_are_named_by_one() {
        let claim = |vm: usize| Claim { vm, is_shared: false };
        let claims = Claims { vms: ["a", "b", "c"].map(str::to_owned).to_vec(), by_path: HashMap::new() };
        let told = claims.conflict("b", &[claim(2), claim(1), claim(0), claim(2)]).unwrap();
        assert!(told.starts_with("is a disk of the VM a and of 1 more as well"), "{told}");
    }
}
