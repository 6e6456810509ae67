//! Which virtual machines there are, from the definitions in the repositories.
//!
//! [`Platform`] selects whose definitions are read; everything above this module sees only [`Vm`], [`Disk`] and
//! [`FileNotes`]. The parsers are pure functions over text, apart from the thin part that reads files. One bad file is
//! one entry with an error, never a failed listing.

mod file_notes;
pub mod oracle_vm;
pub mod ovs_agent;
mod vm;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{Definition, VmId};
use crate::sys::folder::Folder;
pub use file_notes::{FileNote, FileNotes};
pub use oracle_vm::Definitions;
pub use vm::{Disk, DiskFormat, DiskRole, Medium, Problem, Vm};

/// The virtualization platform of the host. A new one is a variant here and a module that produces the neutral types.
#[derive(Clone, Copy, Debug, Default)]
pub enum Platform {
    #[default]
    OracleVm,
}

impl Platform {
    /// Reads the definitions in the repository `root`. One that has not changed since `before` is not read again.
    /// Calls `progress` before each.
    ///
    /// # Errors
    /// The folder of the definitions exists but cannot be listed. A repository without that folder defines no VM.
    pub fn read_definitions(self, root: &Folder, before: &Definitions, progress: &dyn Fn()) -> io::Result<Definitions> {
        match self {
            Self::OracleVm => before.read(root, progress),
        }
    }

    /// Reads again the definition of `vm` from its `folder` in the repository `root`, for a snapshot to keep. Secrets in
    /// it are masked.
    ///
    /// # Errors
    /// It cannot be read, or it no longer has the id and the disks of `vm`.
    pub fn describe_definition(self, root: &Folder, folder: &OsStr, vm: &Vm) -> Result<Definition, Problem> {
        match self {
            Self::OracleVm => oracle_vm::describe(root, folder, vm),
        }
    }

    /// The disks that the guests of this host have open, as far as that is known.
    pub fn open_disks(self) -> HashSet<String> {
        match self {
            Self::OracleVm => oracle_vm::loop_devices::files(),
        }
    }

    /// Reads what the manager noted about the files of the repository `root`, if it did.
    pub fn read_file_notes(self, root: &Folder) -> Option<FileNotes> {
        match self {
            Self::OracleVm => oracle_vm::ovsmeta::read(root),
        }
    }
}

/// The VMs of all repositories, sorted by name. `sources` are the mount points of the repositories with their
/// definitions.
pub fn put_together(sources: &[(PathBuf, Arc<Definitions>)]) -> Vec<Arc<Vm>> {
    let mut vms: Vec<Arc<Vm>> = sources.iter().flat_map(|(_, definitions)| definitions.vms()).cloned().collect();
    refuse_duplicates(sources, &mut vms);
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    vms
}

/// Of two definitions with the same id, it is unknown which disks are meant, so neither VM can be snapshotted.
fn refuse_duplicates(sources: &[(PathBuf, Arc<Definitions>)], vms: &mut [Arc<Vm>]) {
    let mut once: HashSet<&VmId> = HashSet::with_capacity(vms.len());
    let ids = vms.iter().filter_map(|vm| vm.id.as_ref());
    let duplicates: HashSet<VmId> = ids.filter(|id| !once.insert(id)).cloned().collect();
    if duplicates.is_empty() {
        return;
    }
    let mut folders: HashMap<&VmId, Vec<PathBuf>> = HashMap::new();
    for (mount_point, definitions) in sources {
        for (folder, vm) in definitions.by_folder(mount_point) {
            if let Some(id) = vm.id.as_ref().and_then(|id| duplicates.get(id)) {
                folders.entry(id).or_default().push(folder);
            }
        }
    }
    for vm in vms {
        let Some(folders) = vm.id.as_ref().and_then(|id| folders.get(id)) else { continue };
        let problem = Problem::Invalid(format!("defined more than once: {folders:?}; remove all but one"));
        Arc::make_mut(vm).disks = Err(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definitions(texts: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (folder, text) in texts {
            let folder = dir.path().join("VirtualMachines").join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("vm.cfg"), text).unwrap();
        }
        dir
    }

    fn load_all(folders: &[&tempfile::TempDir]) -> Vec<Arc<Vm>> {
        let read = |dir: &&tempfile::TempDir| {
            let root = Folder::open(dir.path()).unwrap();
            (dir.path().to_owned(), Arc::new(Definitions::default().read(&root, &|| ()).unwrap()))
        };
        put_together(&folders.iter().map(read).collect::<Vec<_>>())
    }

    const A: &str = "0004fb0000060000000000000000000a";
    const B: &str = "0004fb0000060000000000000000000b";

    #[test]
    fn one_bad_file_is_one_entry_with_an_error() {
        let good = format!("name = '{A}'\nOVM_simple_name = 'web'\ndisk = ['file:/r/a.img,xvda,w']\n");
        let folder = definitions(&[(A, &good), (B, "disk = ['file:/r/b.img"), (".hidden", "x")]);
        std::fs::create_dir_all(folder.path().join("VirtualMachines").join("empty")).unwrap();
        std::fs::write(folder.path().join("VirtualMachines").join("a file"), "x").unwrap();
        let vms = load_all(&[&folder]);
        let seen: Vec<_> = vms.iter().map(|vm| (vm.name.as_str(), vm.disks.is_ok())).collect();
        assert_eq!(seen, [(A, true), (B, false), ("empty", false)]);
        assert_eq!(vms[0].friendly_name, "web");
        assert!(vms[1].id.is_some() && vms[2].id.is_none());
    }

    #[test]
    fn a_name_that_is_not_an_id_is_not_shown() {
        let vms = load_all(&[&definitions(&[(A, "name = 'a secret'\ndisk = []\n"), ("b", "disk = []")])]);
        assert_eq!((vms[0].name.as_str(), vms[1].name.as_str()), (A, "b"));
        assert!(vms.iter().all(|vm| vm.disks.is_err()) && !format!("{vms:?}").contains("secret"), "{vms:?}");
    }

    #[test]
    fn a_folder_that_is_a_link_is_an_entry_with_an_error() {
        let folder = definitions(&[(A, "")]);
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("vm.cfg"), format!("name = '{B}'\ndisk = []\n")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("VirtualMachines").join(B)).unwrap();
        let vms = load_all(&[&folder]);
        assert_eq!((vms.len(), vms[1].name.as_str()), (2, B));
        let expected = format!("its folder cannot be opened: {B:?} is a symbolic link, which is not followed");
        assert_eq!(vms[1].disks, Err(Problem::Invalid(expected)));
    }

    #[test]
    fn two_definitions_of_one_id_are_both_errors() {
        let text = format!("name = '{A}'\ndisk = []\n");
        let vms = load_all(&[&definitions(&[(A, &text)]), &definitions(&[(B, &text)])]);
        assert!(
            vms.iter().all(|vm| vm.disks.as_ref().is_err_and(|problem| problem.to_string().contains("more than once")))
        );
    }

    #[test]
    fn a_definition_without_a_disk_list_is_an_error() {
        for text in [String::new(), format!("name = '{A}'\n")] {
            let vms = load_all(&[&definitions(&[(A, &text)])]);
            assert!(vms[0].disks.as_ref().is_err_and(|problem| problem.to_string().contains("has no `disk`")));
        }
    }

    #[test]
    fn the_uuid_may_differ_from_the_name() {
        let other = "0004fb00-0006-0000-ffff-00000000000a";
        let text = format!("name = '{A}'\nuuid = '{other}'\ndisk = []\n");
        let vms = load_all(&[&definitions(&[(A, &text)])]);
        assert!(vms[0].has_uuid(&other.parse().unwrap()) && !vms[0].has_uuid(&A.parse().unwrap()));
    }

    #[test]
    fn an_empty_repository_has_no_vms() {
        assert!(load_all(&[&tempfile::tempdir().unwrap()]).is_empty());
    }

    #[test]
    fn only_changed_definitions_are_read_again() {
        let folder = definitions(&[(A, &format!("name = '{A}'\ndisk = []\n")), (B, "disk = ['file:/r/b.img")]);
        let file = |name: &str| folder.path().join("VirtualMachines").join(name).join("vm.cfg");
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        for name in [A, B] {
            std::fs::File::options().write(true).open(file(name)).unwrap().set_modified(old).unwrap();
        }
        let root = Folder::open(folder.path()).unwrap();
        let moved = std::cell::Cell::new(0);
        let read = |before: &Definitions| before.read(&root, &|| moved.set(moved.get() + 1)).unwrap();
        let vm = |of: &Definitions, name: &str| {
            let found = of.by_folder(folder.path()).find(|(path, _)| path.ends_with(name));
            Arc::clone(found.unwrap().1)
        };
        let first = read(&Definitions::default());
        assert_eq!(moved.get(), 2);
        let second = read(&first);
        assert!(Arc::ptr_eq(&vm(&first, A), &vm(&second, A)), "it was read again");
        // An invalid one may be repaired within the same tick of the clock.
        assert!(!Arc::ptr_eq(&vm(&first, B), &vm(&second, B)) && vm(&second, B).disks.is_err());
        std::fs::write(file(A), format!("name = '{A}'\nOVM_simple_name = 'new'\ndisk = []\n")).unwrap();
        let third = read(&second);
        assert_eq!(vm(&third, A).friendly_name, "new");
        std::fs::remove_dir_all(file(A).parent().unwrap()).unwrap();
        assert_eq!(read(&third).vms().count(), 1);
    }

    #[test]
    fn many_half_written_definitions_cost_one_wait() {
        let texts: Vec<(String, String)> =
            (0..200).map(|number| (format!("{number:032x}"), format!("name = '{number:032x}'\ndisk = ["))).collect();
        let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let folder = definitions(&texts);
        let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(30);
        for (name, _) in &texts {
            let file = folder.path().join("VirtualMachines").join(name).join("vm.cfg");
            std::fs::File::options().write(true).open(file).unwrap().set_modified(soon).unwrap();
        }
        let started = std::time::Instant::now();
        assert_eq!(load_all(&[&folder]).len(), 200);
        // One after the other would take 30 seconds.
        assert!(started.elapsed() < std::time::Duration::from_secs(15));
    }
}
