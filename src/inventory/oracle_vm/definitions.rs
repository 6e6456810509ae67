//! The VM definitions of one repository. Only those that have changed are read again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::definition;
use super::python_literal;
use super::vm_cfg::{self, VmConfig, VmConfigError};
use crate::inventory::{Problem, Vm};
use crate::model::layout::{VIRTUAL_MACHINES, VM_CFG};
use crate::model::{Definition, VmId};
use crate::sys::folder::{EntryProblem, Folder, UnexpectedEntry};

/// Definitions that look half-written are read again, all of them after one pause.
const ATTEMPTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);

/// A definition can be half-written only this long after (or before) its last change. The clock of another server of
/// the pool may differ.
const WRITE_WINDOW: Duration = Duration::from_secs(60);

/// Within this time of its last change, a file may change again without a new time stamp.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// The definitions of a repository by the name of their folder.
#[derive(Clone, Debug, Default)]
pub struct Definitions(HashMap<Arc<OsStr>, Entry>);

/// A definition. Without a stamp it is read again next time.
#[derive(Clone, Debug)]
struct Entry {
    stamp: Option<Stamp>,
    vm: Arc<Vm>,
}

/// Changes when a file is written or replaced: inode, size, modification time, change time.
type Stamp = (u64, u64, SystemTime, i64, i64);

impl Definitions {
    /// See [`Platform::read_definitions`](crate::inventory::Platform::read_definitions).
    pub fn read(&self, root: &Folder, progress: &dyn Fn()) -> io::Result<Self> {
        let machines = match root.folder(VIRTUAL_MACHINES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            machines => machines?,
        };
        let mut names = machines.entries()?;
        names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
        let mut found = HashMap::with_capacity(names.len());
        for attempt in 1..=ATTEMPTS {
            let mut half_written = Vec::new();
            for name in names {
                progress();
                let (entry, is_whole) = self.read_one(&machines, &name);
                let Some(entry) = entry else { continue };
                // Shares the name with the previous definitions.
                let known = self.0.get_key_value(&*name).map(|(known, _)| Arc::clone(known));
                found.insert(known.unwrap_or_else(|| Arc::from(&*name)), entry);
                if !is_whole {
                    half_written.push(name);
                }
            }
            if half_written.is_empty() {
                break;
            }
            if attempt < ATTEMPTS {
                sleep(PAUSE);
            }
            names = half_written;
        }
        Ok(Self(found))
    }

    pub fn vms(&self) -> impl Iterator<Item = &Arc<Vm>> {
        self.0.values().map(|entry| &entry.vm)
    }

    /// The VMs with their folders below `mount_point`.
    pub fn by_folder(&self, mount_point: &Path) -> impl Iterator<Item = (PathBuf, &Arc<Vm>)> {
        let machines = mount_point.join(VIRTUAL_MACHINES);
        self.0.iter().map(move |(name, entry)| (machines.join(&**name), &entry.vm))
    }

    /// The name of the folder that defines the VM `id`.
    pub fn folder_of(&self, id: &VmId) -> Option<&OsStr> {
        self.0.iter().find(|(_, entry)| entry.vm.id.as_ref() == Some(id)).map(|(name, _)| &**name)
    }

    /// The same definitions with unknown disks.
    #[must_use]
    pub fn without_disks(&self, reason: &str) -> Self {
        let unknown = |entry: &Entry| {
            let disks = Err(Problem::Unavailable(reason.to_owned()));
            Entry { stamp: None, vm: Arc::new(Vm { disks, ..Vm::clone(&entry.vm) }) }
        };
        Self(self.0.iter().map(|(name, entry)| (Arc::clone(name), unknown(entry))).collect())
    }

    pub fn retain(&mut self, wanted: impl Fn(&Vm) -> bool) {
        self.0.retain(|_, entry| wanted(&entry.vm));
    }

    /// The VM that the folder `name` defines, or `None` if it is a file or no longer exists. The `bool` is false if the
    /// definition may be half-written.
    fn read_one(&self, machines: &Folder, name: &OsStr) -> (Option<Entry>, bool) {
        let folder = match machines.folder(name) {
            Ok(folder) => folder,
            Err(error)
                if UnexpectedEntry::of(&error) == Some(EntryProblem::NotAFolder)
                    || error.kind() == io::ErrorKind::NotFound =>
            {
                return (None, true);
            }
            Err(error) => {
                let problem = problem_of("its folder cannot be opened", &error);
                let vm = vm_of(VmConfig::default(), name, Some(problem));
                return (Some(Entry { stamp: None, vm: Arc::new(vm) }), true);
            }
        };
        let stamp = folder.stat(VM_CFG).ok().and_then(|found| stamp_of(&found));
        if let Some(known) = self.0.get(name)
            && known.stamp.is_some()
            && known.stamp == stamp
        {
            return (Some(known.clone()), true);
        }
        let read = read_definition(&folder);
        let is_whole = read.as_ref().is_ok_and(|config| config.name.is_some() && config.disks.is_some());
        let age = stamp.and_then(|(_, _, modified, ..)| distance(modified));
        let (config, problem) = match read {
            Ok(config) => (config, None),
            Err(problem) => (VmConfig::default(), Some(problem)),
        };
        let is_settled = is_whole && age.is_some_and(|age| age > CLOCK_TICK);
        let entry = Entry { stamp: stamp.filter(|_| is_settled), vm: Arc::new(vm_of(config, name, problem)) };
        (Some(entry), is_whole || age.is_none_or(|age| age > WRITE_WINDOW))
    }
}

fn stamp_of(found: &std::fs::Metadata) -> Option<Stamp> {
    Some((found.ino(), found.len(), found.modified().ok()?, found.ctime(), found.ctime_nsec()))
}

/// The difference from now, in either direction.
fn distance(time: SystemTime) -> Option<Duration> {
    let now = SystemTime::now();
    now.duration_since(time).or_else(|_| time.duration_since(now)).ok()
}

/// A missing or special file is an invalid definition; other errors say nothing about it.
fn problem_of(step: &str, error: &io::Error) -> Problem {
    let text = format!("{step}: {error}");
    if error.kind() == io::ErrorKind::NotFound || UnexpectedEntry::of(error).is_some() {
        Problem::Invalid(text)
    } else {
        Problem::Unavailable(text)
    }
}

fn read_text(folder: &Folder) -> Result<String, Problem> {
    let bytes = folder.read_small(VM_CFG, python_literal::MAX_SOURCE);
    let bytes = bytes.map_err(|error| problem_of("vm.cfg cannot be read", &error))?;
    // A name in another encoding must not hide a VM.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn invalid(error: VmConfigError) -> Problem {
    Problem::Invalid(format!("vm.cfg: {error}"))
}

fn read_definition(folder: &Folder) -> Result<VmConfig, Problem> {
    vm_cfg::parse(&read_text(folder)?).map_err(invalid)
}

/// See [`Platform::describe_definition`](crate::inventory::Platform::describe_definition).
pub fn describe(root: &Folder, name: &OsStr, vm: &Vm) -> Result<Definition, Problem> {
    let folder = root.folder(VIRTUAL_MACHINES).and_then(|machines| machines.folder(name));
    let folder = folder.map_err(|error| problem_of("its folder cannot be opened", &error))?;
    let text = read_text(&folder)?;
    let found = vm_of(vm_cfg::parse(&text).map_err(invalid)?, name, None);
    if found.id != vm.id || found.disks != vm.disks {
        return Err(Problem::Unavailable("vm.cfg was changed meanwhile".to_owned()));
    }
    definition::describe(&text).map_err(invalid)
}

fn vm_of(config: VmConfig, folder: &OsStr, problem: Option<Problem>) -> Vm {
    // A name that is not an id is not shown: the file may be a link to one that the caller must not read.
    let bad_name = config.name.as_ref().is_some_and(|name| name.parse::<VmId>().is_err());
    let name = config.name.filter(|_| !bad_name).unwrap_or_else(|| folder.to_string_lossy().into_owned());
    let id: Option<VmId> = name.parse().ok();
    let unnamed = || Problem::Invalid("its name is not 32 hexadecimal digits".to_owned());
    let problem = problem.or_else(|| (bad_name || id.is_none()).then(unnamed));
    let disks = problem.map_or(Ok(config.disks), Err).and_then(|disks| {
        // The manager writes `disk = []` for a VM without disks.
        let mut disks = disks.ok_or_else(|| Problem::Invalid("vm.cfg has no `disk`: it is empty or cut".to_owned()))?;
        // It is cached, and collecting one disk allocates room for four.
        disks.shrink_to_fit();
        Ok(disks)
    });
    Vm {
        id,
        uuid: config.uuid,
        friendly_name: config.friendly_name.unwrap_or_default(),
        description: config.description.unwrap_or_default(),
        addresses: config.addresses,
        disks,
        name,
    }
}
