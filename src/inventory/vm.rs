//! A VM and its disks, independent of the platform that defines them.

use std::collections::HashSet;
use std::path::Path;

use crate::model::VmId;

/// A virtual machine as its definition describes it.
#[derive(Clone, Debug)]
pub struct Vm {
    /// `None` if neither the definition nor its folder names an id.
    pub id: Option<VmId>,
    /// The name in the definition or, without one, the name of its folder.
    pub name: String,
    /// As written. It may differ from `name`.
    pub uuid: Option<String>,
    /// The name that a user gave the VM.
    pub friendly_name: String,
    pub description: String,
    /// The guest's IP addresses, as far as the definition names them.
    pub addresses: Vec<String>,
    /// The disks in the order of the definition, or why they are unknown.
    pub disks: Result<Vec<Disk>, Problem>,
}

/// Why a VM's disks are unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The definition is unusable.
    #[error("{0}")]
    Invalid(String),
    /// The definition cannot be read now, which says nothing about its content.
    #[error("{0}")]
    Unavailable(String),
}

impl Vm {
    /// Whether it runs where the disks are open that `open` names. A disk that it shares or only reads says nothing.
    pub fn runs_with(&self, open: &HashSet<String>) -> bool {
        let own = self.disks.iter().flatten().filter(|disk| disk.writable && !disk.shared);
        own.filter_map(Disk::file).any(|file| open.contains(file))
    }

    /// Compares `id` with the uuid, which may differ from the name.
    pub fn has_uuid(&self, id: &VmId) -> bool {
        self.uuid.as_deref().and_then(|uuid| uuid.parse().ok()).as_ref() == Some(id)
    }
}

/// A disk of a VM. Nothing in it has been checked against the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub medium: Medium,
    /// The device in the guest, such as `xvda`.
    pub device: String,
    pub format: DiskFormat,
    pub role: DiskRole,
    pub writable: bool,
    /// Whether the definition says that other VMs use the disk too.
    pub shared: bool,
    /// The access mode as the API reports it: `r`, `w`, or `w!` for a shared disk.
    pub mode: &'static str,
}

/// Where the bytes of a disk are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// An absolute path that starts with exactly one slash. The rest is as written: it may contain `..` or commas, or
    /// name a device.
    File(String),
    /// The drive is empty.
    Absent,
    /// Anything else, such as a block device, a network disk or a relative path.
    Other {
        /// The part before the first colon; empty without a colon.
        scheme: String,
        /// The part after it.
        target: String,
    },
}

/// How the guest's bytes are laid out in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// Offsets in the file are the guest's. Another format needs a translation before its extents can be compared.
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskRole {
    Disk,
    Cdrom,
}

impl Disk {
    /// The path of a disk that is a file.
    pub fn file(&self) -> Option<&str> {
        match &self.medium {
            Medium::File(path) => Some(path),
            Medium::Absent | Medium::Other { .. } => None,
        }
    }

    /// The path or target as the API reports it; empty for an empty drive.
    pub fn path(&self) -> &str {
        match &self.medium {
            Medium::File(path) => path,
            Medium::Absent => "",
            Medium::Other { target, .. } => target,
        }
    }

    /// The last component of [`Disk::path`].
    pub fn file_name(&self) -> &str {
        Path::new(self.path()).file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }
}
