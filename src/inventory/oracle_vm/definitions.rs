//! The definitions of one repository, read where they have changed since they were read before.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::python_literal;
use super::vm_cfg::{self, VmConfig};
use crate::inventory::{Problem, Vm};
use crate::model::VmId;
use crate::model::layout::{VIRTUAL_MACHINES, VM_CFG};
use crate::sys::folder::{EntryProblem, Folder, UnexpectedEntry};

/// How often definitions are read that look half-written, and the pause between: one for all of them.
const ATTEMPTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);

/// How far from now the last change of a definition may be that is half-written. Another server of the pool may
/// have written it, with a clock of its own.
const UNSETTLED: Duration = Duration::from_secs(60);

/// A file that was changed this short a time ago may change again within one tick of its clock.
const CLOCK_TICK: Duration = Duration::from_secs(2);

/// The definitions of a repository, by folder.
#[derive(Clone, Debug, Default)]
pub struct Definitions(HashMap<Arc<OsStr>, Entry>);

/// A definition, and the file that it was read from.
#[derive(Clone, Debug)]
struct Entry {
    stamp: Option<Stamp>,
    vm: Arc<Vm>,
}

/// What changes when a file is written or replaced: inode, size, time of the last change of content and of the inode.
type Stamp = (u64, u64, SystemTime, i64, i64);

impl Definitions {
    /// The definitions in the repository `root`, as of now. What has not changed since `self` was read is not read
    /// again. Each one `moved` on.
    ///
    /// # Errors
    /// Where the folder of the definitions is there but cannot be listed. A repository without one defines no VM.
    pub fn read(&self, root: &Folder, moved: &dyn Fn()) -> io::Result<Self> {
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
                moved();
                let (entry, is_whole) = self.read_one(&machines, &name);
                let Some(entry) = entry else { continue };
                // The name that is known already is used again.
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

    /// The VMs.
    pub fn vms(&self) -> impl Iterator<Item = &Arc<Vm>> {
        self.0.values().map(|entry| &entry.vm)
    }

    /// The same, each with its folder; the repository is at `mount_point`.
    pub fn by_folder(&self, mount_point: &Path) -> impl Iterator<Item = (PathBuf, &Arc<Vm>)> {
        let machines = mount_point.join(VIRTUAL_MACHINES);
        self.0.iter().map(move |(name, entry)| (machines.join(&**name), &entry.vm))
    }

    /// The same definitions with disks that are not known, and why.
    #[must_use]
    pub fn without_disks(&self, reason: &str) -> Self {
        let unknown = |entry: &Entry| {
            let disks = Err(Problem::Unavailable(reason.to_owned()));
            Entry { stamp: None, vm: Arc::new(Vm { disks, ..Vm::clone(&entry.vm) }) }
        };
        Self(self.0.iter().map(|(name, entry)| (Arc::clone(name), unknown(entry))).collect())
    }

    /// Leaves out the VMs that are not `wanted`.
    pub fn retain(&mut self, wanted: impl Fn(&Vm) -> bool) {
        self.0.retain(|_, entry| wanted(&entry.vm));
    }

    /// The VM that the folder `name` defines, nothing where that is a file or is gone by now; and whether its
    /// definition is not one that is just being written.
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
        (Some(entry), is_whole || age.is_none_or(|age| age > UNSETTLED))
    }
}

fn stamp_of(found: &std::fs::Metadata) -> Option<Stamp> {
    Some((found.ino(), found.len(), found.modified().ok()?, found.ctime(), found.ctime_nsec()))
}

/// How far from now a time is.
fn distance(time: SystemTime) -> Option<Duration> {
    let now = SystemTime::now();
    now.duration_since(time).or_else(|_| time.duration_since(now)).ok()
}

/// What an error of the file system says of a definition: a missing or odd file is a broken one.
fn problem_of(step: &str, error: &io::Error) -> Problem {
    let text = format!("{step}: {error}");
    if error.kind() == io::ErrorKind::NotFound || UnexpectedEntry::of(error).is_some() {
        Problem::Invalid(text)
    } else {
        Problem::Unavailable(text)
    }
}

fn read_definition(folder: &Folder) -> Result<VmConfig, Problem> {
    let bytes = folder.read_small(VM_CFG, python_literal::MAX_SOURCE);
    let bytes = bytes.map_err(|error| problem_of("vm.cfg cannot be read", &error))?;
    // Names that people gave in an old encoding must not hide a VM.
    let text = String::from_utf8_lossy(&bytes);
    vm_cfg::parse(&text).map_err(|error| Problem::Invalid(format!("vm.cfg: {error}")))
}

fn vm_of(config: VmConfig, folder: &OsStr, problem: Option<Problem>) -> Vm {
    // A name that is no id is not repeated: the file may be one that the reader must not see.
    let bad_name = config.name.as_ref().is_some_and(|name| name.parse::<VmId>().is_err());
    let name = config.name.filter(|_| !bad_name).unwrap_or_else(|| folder.to_string_lossy().into_owned());
    let id: Option<VmId> = name.parse().ok();
    let unnamed = || Problem::Invalid("its name is not 32 hexadecimal digits".to_owned());
    let disks = match problem.or_else(|| (bad_name || id.is_none()).then(unnamed)) {
        Some(problem) => Err(problem),
        None => {
            // It stays in memory, and most have one disk: what it was gathered in has room for four.
            let mut disks = config.disks.unwrap_or_default();
            disks.shrink_to_fit();
            Ok(disks)
        }
    };
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
