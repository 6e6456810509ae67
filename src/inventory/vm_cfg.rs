//! `vm.cfg`: what Oracle VM says of one virtual machine, in a Python file of assignments.
//!
//! Only what a snapshot needs is kept. The manager rewrites the file in place, so it can be read
//! half-written: most cuts are a [`SyntaxError`], but one between two statements is only seen as
//! missing fields, and the caller then has to read again.

use std::collections::BTreeMap;

use super::python_literal::{self, SyntaxError, Value};

/// One virtual machine, as its file describes it. Nothing is checked against the file system.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// `name`: the id of the machine, usually 32 hexadecimal digits.
    pub name: Option<String>,
    /// `uuid`: as written, with or without dashes, and not always that of `name`.
    pub uuid: Option<String>,
    /// `OVM_simple_name`: the name that people gave.
    pub friendly_name: Option<String>,
    /// `OVM_description`
    pub description: Option<String>,
    /// The first `ip=` of `vif`, which the manager does not write, and people may.
    pub address: Option<String>,
    /// `disk`, in the order of the file; `None` where it is not assigned at all, which is no diskless
    /// machine but a file that is cut or is not a machine's.
    pub disks: Option<Vec<DiskLine>>,
}

/// One entry of `disk`: `<source>,<device>[:<type>],<mode>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLine {
    /// Where the bytes are.
    pub source: DiskSource,
    /// The device in the guest, such as `xvda`, without its type.
    pub device: String,
    /// Whether the type of the device is `cdrom`.
    pub cdrom: bool,
    /// As written: `r`, `w`, or `w!` for a disk that machines share.
    pub mode: String,
}

impl DiskLine {
    /// Whether the guest can write: the mode has a `w`, by which Xen's own scripts decide.
    pub fn is_writable(&self) -> bool {
        self.mode.contains('w')
    }

    /// Whether it says that other machines have the disk too.
    pub fn is_shared(&self) -> bool {
        self.mode.ends_with('!')
    }
}

/// Where the bytes of a disk are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// An absolute path that starts with exactly one slash, and is otherwise as written: it may hold
    /// `..`, commas, or name a device.
    File(String),
    /// No medium: `file:,xvdc:cdrom,r` or `,hdc:cdrom,r`.
    Empty,
    /// All else: `phy:`, `nbd:`, a path that is not absolute.
    Other {
        /// What stands before the first colon; empty where there is none.
        scheme: String,
        /// What stands behind it.
        target: String,
    },
}

/// Why a `vm.cfg` does not describe a machine. As [`SyntaxError`], it repeats nothing of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmConfigError {
    /// It is not a list of assignments of literals, or it is cut.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// A key whose value must be a string has another one.
    #[error("`{key}` is not a string")]
    NotAString {
        /// The key in the file.
        key: &'static str,
    },
    /// A key whose value must be a list has another one.
    #[error("`{key}` is not a list")]
    NotAList {
        /// The key in the file.
        key: &'static str,
    },
    /// An entry of `disk` cannot be read. Going on without it would lose that disk from the snapshots.
    #[error("disk[{index}] {reason}")]
    Disk {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Reads a `vm.cfg`; see [`python_literal::parse_assignments`] for its language.
///
/// A `uuid`, `OVM_simple_name` or `OVM_description` that is a number is its text, and of another type
/// is as if missing: no snapshot depends on them. Keys that are not in [`VmConfig`] can hold anything.
///
/// # Errors
///
/// [`VmConfigError`] for a file that cannot be read as a whole, and for a `name` or a `disk` of another
/// shape than [`VmConfig`] says.
pub fn parse(source: &str) -> Result<VmConfig, VmConfigError> {
    let assignments = python_literal::parse_assignments(source)?;
    Ok(VmConfig {
        name: name(&assignments)?,
        uuid: label(&assignments, "uuid"),
        friendly_name: label(&assignments, "OVM_simple_name"),
        description: label(&assignments, "OVM_description"),
        address: address(&assignments),
        disks: disks(&assignments)?,
    })
}

fn name(assignments: &BTreeMap<String, Value>) -> Result<Option<String>, VmConfigError> {
    let Some(value) = assignments.get("name") else {
        return Ok(None);
    };
    let name = value.as_str().ok_or(VmConfigError::NotAString { key: "name" })?;
    Ok(Some(name.to_owned()))
}

fn label(assignments: &BTreeMap<String, Value>, key: &str) -> Option<String> {
    match assignments.get(key)? {
        Value::Str(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        // The debug form keeps the point of `1.0`, as Python does.
        Value::Float(number) => Some(format!("{number:?}")),
        Value::Bool(_) | Value::None | Value::List(_) | Value::Tuple(_) | Value::Dict(_) => None,
    }
}

fn address(assignments: &BTreeMap<String, Value>) -> Option<String> {
    let interfaces = assignments.get("vif")?.as_sequence()?.iter().filter_map(Value::as_str);
    let mut options = interfaces.flat_map(|interface| interface.split(',')).map(str::trim);
    let addresses = options.find_map(|option| option.strip_prefix("ip="))?;
    // One interface may have several.
    let first = addresses.split_whitespace().next()?;
    first.parse::<std::net::IpAddr>().ok().map(|address| address.to_string())
}

fn disks(assignments: &BTreeMap<String, Value>) -> Result<Option<Vec<DiskLine>>, VmConfigError> {
    let Some(value) = assignments.get("disk") else {
        return Ok(None);
    };
    let entries = value.as_sequence().ok_or(VmConfigError::NotAList { key: "disk" })?;
    let numbered = entries.iter().enumerate();
    numbered.map(|(index, entry)| disk(index, entry)).collect::<Result<_, _>>().map(Some)
}

fn disk(index: usize, entry: &Value) -> Result<DiskLine, VmConfigError> {
    let line = entry.as_str().ok_or("is not a string").and_then(disk_line);
    line.map_err(|reason| VmConfigError::Disk { index, reason })
}

/// Reads one entry, or says what is wrong with it.
fn disk_line(entry: &str) -> Result<DiskLine, &'static str> {
    // From the right: a path may hold commas, the other two parts do not.
    let mut parts = entry.rsplitn(3, ',').map(str::trim);
    let (Some(mode), Some(device), Some(source)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("is not `source,device,mode`");
    };
    // A line of another shape (a fourth part behind the mode) must not pass for a disk that is only read.
    if !matches!(mode.strip_suffix('!').unwrap_or(mode), "r" | "ro" | "w" | "rw") {
        return Err("has no mode, such as `r`, `w` or `w!`");
    }
    // `ioemu:` once asked for an emulated device.
    let device = device.strip_prefix("ioemu:").unwrap_or(device);
    let (device, kind) = device.split_once(':').unwrap_or((device, "disk"));
    if device.is_empty() {
        return Err("has no device");
    }
    Ok(DiskLine {
        source: disk_source(source),
        device: device.to_owned(),
        cdrom: kind == "cdrom",
        mode: mode.to_owned(),
    })
}

fn disk_source(source: &str) -> DiskSource {
    let (scheme, target) = split_scheme(source).unwrap_or(("", source));
    let mut path = target;
    // `tap:aio:`, `tap2:tapdisk:vhd:`: drivers of what is one file all the same.
    while matches!(scheme, "tap" | "tap2")
        && let Some((_driver, rest)) = split_scheme(path)
    {
        path = rest;
    }
    if path.is_empty() {
        DiskSource::Empty
    } else if path.starts_with('/') && matches!(scheme, "" | "file" | "tap" | "tap2") {
        DiskSource::File(["/", path.trim_start_matches('/')].concat())
    } else {
        DiskSource::Other { scheme: scheme.to_owned(), target: target.to_owned() }
    }
}

/// Splits at the first colon, unless it belongs to a path.
fn split_scheme(source: &str) -> Option<(&str, &str)> {
    source.split_once(':').filter(|(scheme, _)| !scheme.contains('/'))
}

#[cfg(test)]
mod tests;
