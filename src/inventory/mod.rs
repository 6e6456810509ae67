//! Which virtual machines there are: the `vm.cfg` files of the repositories.
//!
//! The parsers are pure functions over text; this is the thin part that reads files. One bad file
//! is one entry with an error, never a failed listing.

pub mod ovs_agent;
pub mod ovsmeta;
pub mod python_literal;
pub mod vm_cfg;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use crate::model::VmId;
use crate::sys::folder::{Folder, Odd, What};
use vm_cfg::{DiskLine, VmConfig};

/// A virtual machine as its definition says.
#[derive(Debug)]
pub struct Vm {
    /// Its id; nothing where its folder and its definition name none.
    pub id: Option<VmId>,
    /// What its definition or, failing that, its folder calls it.
    pub name: String,
    /// Its uuid, which is not always the name's.
    pub uuid: Option<String>,
    /// The name that people gave it.
    pub friendly_name: String,
    /// What people noted about it.
    pub description: String,
    /// Its first address, where the definition names one.
    pub address: Option<String>,
    /// Its disks in the order of the definition, or why the definition cannot be used.
    pub disks: Result<Vec<DiskLine>, String>,
}

impl Vm {
    /// Whether `id` is its uuid, which need not be its name's.
    pub fn has_uuid(&self, id: &VmId) -> bool {
        self.uuid.as_deref().and_then(|uuid| uuid.parse().ok()).as_ref() == Some(id)
    }
}

/// How often a definition is read that looks half-written, and the pause between.
const ATTEMPTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);
/// For how long after its last change a definition may be half-written. Long, as another server of
/// the pool may have written it, with a clock of its own.
const UNSETTLED: Duration = Duration::from_secs(60);

/// The folder of the VM definitions in a repository, one folder a VM.
const VIRTUAL_MACHINES: &str = "VirtualMachines";

/// The file that defines a VM.
const DEFINITION: &str = "vm.cfg";

/// The manager's notes on the files of a repository.
const OVSMETA: &str = ".ovsmeta";

/// Bytes that are read of it.
const MAX_OVSMETA: usize = 16 << 20;

/// The VMs that are defined in the repository `root`, each with its own folder.
///
/// # Errors
/// Where the folder of the definitions is there but cannot be listed. A repository without one, as where
/// nothing is mounted, defines none.
pub fn read(root: &Folder) -> io::Result<Vec<(PathBuf, Vm)>> {
    let machines = match root.folder(VIRTUAL_MACHINES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        machines => machines?,
    };
    let names = machines.entries()?;
    let visible = names.iter().filter(|name| !name.as_encoded_bytes().starts_with(b"."));
    Ok(visible.filter_map(|name| Some((machines.path().join(name), load_one(&machines, name)?))).collect())
}

/// The VMs of all repositories in one list, sorted by name.
pub fn put_together(mut found: Vec<(PathBuf, Vm)>) -> Vec<Vm> {
    refuse_doubles(&mut found);
    let mut vms: Vec<Vm> = found.into_iter().map(|(_, vm)| vm).collect();
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    vms
}

/// The VM that the folder `name` defines; nothing where that is a file, or is gone by now.
fn load_one(machines: &Folder, name: &OsStr) -> Option<Vm> {
    let folder_name = name.to_string_lossy().into_owned();
    let config = match machines.folder(name) {
        Ok(folder) => read_definition(&folder),
        Err(error) if Odd::of(&error) == Some(What::NotAFolder) || error.kind() == io::ErrorKind::NotFound => {
            return None;
        }
        Err(error) => Err(format!("its folder cannot be opened: {error}")),
    };
    let (config, problem) = match config {
        Ok(config) => (config, None),
        Err(problem) => (VmConfig::default(), Some(problem)),
    };
    // A name that is no id is not repeated: the file may be one that the reader must not see.
    let bad_name = config.name.as_ref().is_some_and(|name| name.parse::<VmId>().is_err());
    let name = config.name.filter(|_| !bad_name).unwrap_or(folder_name);
    let id: Option<VmId> = name.parse().ok();
    let unnamed = (bad_name || id.is_none()).then(|| "its name is not 32 hexadecimal digits".to_owned());
    let disks = match problem.or(unnamed) {
        Some(problem) => Err(problem),
        None => Ok(config.disks.unwrap_or_default()),
    };
    Some(Vm {
        id,
        uuid: config.uuid,
        friendly_name: config.friendly_name.unwrap_or_default(),
        description: config.description.unwrap_or_default(),
        address: config.address,
        disks,
        name,
    })
}

/// Reads a definition. The manager writes it anew on every edit: one that cannot be parsed, or
/// lacks what every definition has, is read again after a pause.
fn read_definition(folder: &Folder) -> Result<VmConfig, String> {
    let mut attempt = 1;
    loop {
        let read = folder.read_small(DEFINITION, python_literal::MAX_SOURCE);
        let parsed = match read {
            // Names that people gave in an old encoding must not hide a VM.
            Ok(bytes) => vm_cfg::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| format!("vm.cfg: {error}")),
            Err(error) => Err(format!("vm.cfg cannot be read: {error}")),
        };
        let whole = parsed.as_ref().is_ok_and(|config| config.name.is_some() && config.disks.is_some());
        if whole || attempt == ATTEMPTS || !was_just_written(folder) {
            return parsed;
        }
        attempt += 1;
        sleep(PAUSE);
    }
}

/// Whether a definition is there and was changed a short time ago, or in the future.
fn was_just_written(folder: &Folder) -> bool {
    let modified = folder.stat(DEFINITION).and_then(|found| found.modified());
    modified.is_ok_and(|modified| modified.elapsed().map_or(true, |age| age < UNSETTLED))
}

/// Two definitions of one name: nobody can say which disks are meant, so neither is snapshotted.
fn refuse_doubles(found: &mut [(PathBuf, Vm)]) {
    let mut folders: HashMap<VmId, Vec<PathBuf>> = HashMap::new();
    for (folder, vm) in &*found {
        if let Some(id) = &vm.id {
            folders.entry(id.clone()).or_default().push(folder.clone());
        }
    }
    for (_, vm) in found {
        let Some(folders) = vm.id.as_ref().and_then(|id| folders.get(id)) else { continue };
        if folders.len() > 1 {
            vm.disks = Err(format!("defined more than once: {folders:?}; remove all but one"));
        }
    }
}

/// What the manager noted about the files of the repository `root`, where there is such a file and it can
/// be read. It is a hint: without it, disks have no friendly names.
pub fn load_ovsmeta(root: &Folder) -> Option<ovsmeta::OvsMeta> {
    match root.read_small(OVSMETA, MAX_OVSMETA) {
        Ok(bytes) => ovsmeta::parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(repository = ?root.path(), %error, "friendly names of disks are not known");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definitions(texts: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (folder, text) in texts {
            let folder = dir.path().join(VIRTUAL_MACHINES).join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("vm.cfg"), text).unwrap();
        }
        dir
    }

    fn load_all(folders: &[&tempfile::TempDir]) -> Vec<Vm> {
        put_together(folders.iter().flat_map(|dir| read(&Folder::open(dir.path()).unwrap()).unwrap()).collect())
    }

    const A: &str = "0004fb0000060000000000000000000a";
    const B: &str = "0004fb0000060000000000000000000b";

    #[test]
    fn one_bad_file_is_one_entry_with_an_error() {
        let good = format!("name = '{A}'\nOVM_simple_name = 'web'\ndisk = ['file:/r/a.img,xvda,w']\n");
        let folder = definitions(&[(A, &good), (B, "disk = ['file:/r/b.img"), (".hidden", "x")]);
        std::fs::create_dir_all(folder.path().join(VIRTUAL_MACHINES).join("empty")).unwrap();
        std::fs::write(folder.path().join(VIRTUAL_MACHINES).join("a file"), "x").unwrap();
        let vms = load_all(&[&folder]);
        let seen: Vec<_> = vms.iter().map(|vm| (vm.name.as_str(), vm.disks.is_ok())).collect();
        assert_eq!(seen, [(A, true), (B, false), ("empty", false)]);
        assert_eq!(vms[0].friendly_name, "web");
        assert!(vms[1].id.is_some() && vms[2].id.is_none());
    }

    #[test]
    fn a_name_that_is_no_id_is_not_repeated() {
        let vms = load_all(&[&definitions(&[(A, "name = 'a secret'\ndisk = []\n"), ("b", "disk = []")])]);
        assert_eq!((vms[0].name.as_str(), vms[1].name.as_str()), (A, "b"));
        assert!(vms.iter().all(|vm| vm.disks.is_err()) && !format!("{vms:?}").contains("secret"), "{vms:?}");
    }

    #[test]
    fn a_folder_that_is_a_link_is_an_entry_with_an_error() {
        let folder = definitions(&[(A, "")]);
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("vm.cfg"), format!("name = '{B}'\ndisk = []\n")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join(VIRTUAL_MACHINES).join(B)).unwrap();
        let vms = load_all(&[&folder]);
        assert_eq!((vms.len(), vms[1].name.as_str()), (2, B));
        let expected = format!("its folder cannot be opened: {B:?} is a symbolic link, which is not followed");
        assert_eq!(vms[1].disks, Err(expected));
    }

    #[test]
    fn a_name_defined_twice_is_an_error_on_both() {
        let text = format!("name = '{A}'\ndisk = []\n");
        let vms = load_all(&[&definitions(&[(A, &text)]), &definitions(&[(B, &text)])]);
        assert!(vms.iter().all(|vm| vm.disks.as_ref().is_err_and(|problem| problem.contains("more than once"))));
    }

    #[test]
    fn a_uuid_need_not_be_the_names() {
        let other = "0004fb00-0006-0000-ffff-00000000000a";
        let text = format!("name = '{A}'\nuuid = '{other}'\ndisk = []\n");
        let vms = load_all(&[&definitions(&[(A, &text)])]);
        assert!(vms[0].has_uuid(&other.parse().unwrap()) && !vms[0].has_uuid(&A.parse().unwrap()));
    }

    #[test]
    fn an_unmounted_repository_has_no_machines() {
        assert!(load_all(&[&tempfile::tempdir().unwrap()]).is_empty());
    }
}
