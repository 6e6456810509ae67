//! `vm.cfg`: Oracle VM's definition of one virtual machine, a Python file of assignments.
//!
//! Only what a snapshot needs is kept. The manager rewrites the file in place, so it can be half-written when it is
//! read. Most cuts are a [`SyntaxError`], but after a cut between two statements only fields are missing. The caller
//! then has to read again.

use std::collections::BTreeMap;

use super::python_literal::{self, SyntaxError, Value};
use crate::inventory::{Disk, DiskFormat, DiskRole, Medium};

/// The content of a `vm.cfg`. Nothing has been checked against the file system.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// `name`: the id, usually 32 hexadecimal digits.
    pub name: Option<String>,
    /// `uuid` as written, with or without dashes. It may differ from `name`.
    pub uuid: Option<String>,
    /// `OVM_simple_name`
    pub friendly_name: Option<String>,
    /// `OVM_description`
    pub description: Option<String>,
    /// The values of `ip=` in `vif`, which the manager does not write but users may.
    pub addresses: Vec<String>,
    /// `disk`, in the order of the file. `None` if it is not assigned, which means that the file is cut or is not a
    /// definition.
    pub disks: Option<Vec<Disk>>,
}

/// Why a `vm.cfg` is invalid. Like [`SyntaxError`], it contains nothing of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmConfigError {
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error("`{key}` is not a string")]
    NotAString { key: &'static str },
    #[error("`{key}` is not a list")]
    NotAList { key: &'static str },
    /// An entry of `disk` is invalid. Without it, snapshots would lack that disk.
    #[error("disk[{index}] {reason}")]
    Disk {
        /// From 0.
        index: usize,
        reason: &'static str,
    },
}

/// Parses a `vm.cfg`; see [`python_literal::parse_assignments`] for its language.
///
/// A `uuid`, `OVM_simple_name` or `OVM_description` may be a number, and is ignored if it has another type: no snapshot
/// depends on it. Other keys are ignored.
///
/// # Errors
/// The file is malformed, or `name` or `disk` has another type.
pub fn parse(source: &str) -> Result<VmConfig, VmConfigError> {
    let assignments = python_literal::parse_assignments(source)?;
    Ok(VmConfig {
        name: name(&assignments)?,
        uuid: label(&assignments, "uuid"),
        friendly_name: label(&assignments, "OVM_simple_name"),
        description: label(&assignments, "OVM_description"),
        addresses: addresses(&assignments),
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

pub(super) fn label(assignments: &BTreeMap<String, Value>, key: &str) -> Option<String> {
    match assignments.get(key)? {
        Value::Str(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        // The debug format keeps the point of `1.0`, as Python does.
        Value::Float(number) => Some(format!("{number:?}")),
        Value::Bool(_) | Value::None | Value::List(_) | Value::Tuple(_) | Value::Dict(_) => None,
    }
}

fn addresses(assignments: &BTreeMap<String, Value>) -> Vec<String> {
    let interfaces = assignments.get("vif").and_then(Value::as_sequence).unwrap_or_default();
    let options = interfaces.iter().filter_map(Value::as_str).flat_map(|interface| interface.split(','));
    let addresses = options.filter_map(|option| option.trim().strip_prefix("ip="));
    // Hooks call the first address, and a later one must not replace it. So an option without an address ends the list,
    // and so does an invalid address. One interface may have several addresses.
    let addresses = addresses.take_while(|addresses| !addresses.trim().is_empty()).flat_map(str::split_whitespace);
    addresses.map_while(|address| address.parse::<std::net::IpAddr>().ok()).map(|address| address.to_string()).collect()
}

fn disks(assignments: &BTreeMap<String, Value>) -> Result<Option<Vec<Disk>>, VmConfigError> {
    let Some(value) = assignments.get("disk") else {
        return Ok(None);
    };
    let entries = value.as_sequence().ok_or(VmConfigError::NotAList { key: "disk" })?;
    let numbered = entries.iter().enumerate();
    numbered.map(|(index, entry)| disk(index, entry)).collect::<Result<_, _>>().map(Some)
}

fn disk(index: usize, entry: &Value) -> Result<Disk, VmConfigError> {
    let disk = entry.as_str().ok_or("is not a string").and_then(parse_disk);
    disk.map_err(|reason| VmConfigError::Disk { index, reason })
}

/// The access modes of xm and xl. `!` marks a disk that VMs share.
const MODES: [&str; 8] = ["r", "ro", "w", "rw", "r!", "ro!", "w!", "rw!"];

/// Parses an entry of `disk`: `<source>,<device>[:<type>],<mode>`. The error says what is wrong with it.
fn parse_disk(entry: &str) -> Result<Disk, &'static str> {
    // From the right: only the path may contain commas.
    let mut parts = entry.rsplitn(3, ',').map(str::trim);
    let (Some(mode), Some(device), Some(source)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("is not `source,device,mode`");
    };
    // An entry of another shape (a fourth part after the mode) must not pass for a read-only disk.
    let mode = MODES.into_iter().find(|known| *known == mode).ok_or("has no mode, such as `r`, `w` or `w!`")?;
    // `ioemu:` is an obsolete prefix for emulated devices.
    let device = device.strip_prefix("ioemu:").unwrap_or(device);
    let (device, kind) = device.split_once(':').unwrap_or((device, "disk"));
    if device.is_empty() {
        return Err("has no device");
    }
    Ok(Disk {
        medium: medium(source),
        device: device.to_owned(),
        format: DiskFormat::Raw,
        role: if kind == "cdrom" { DiskRole::Cdrom } else { DiskRole::Disk },
        // As Xen's own scripts decide.
        writable: mode.contains('w'),
        shared: mode.ends_with('!'),
        mode,
    })
}

fn medium(source: &str) -> Medium {
    let (scheme, target) = split_scheme(source).unwrap_or(("", source));
    let mut path = target;
    // `tap:aio:`, `tap2:tapdisk:vhd:`: the drivers of what is still one file.
    while matches!(scheme, "tap" | "tap2")
        && let Some((_driver, rest)) = split_scheme(path)
    {
        path = rest;
    }
    if path.is_empty() {
        Medium::Absent
    } else if path.starts_with('/') && matches!(scheme, "" | "file" | "tap" | "tap2") {
        Medium::File(["/", path.trim_start_matches('/')].concat())
    } else {
        Medium::Other { scheme: scheme.to_owned(), target: target.to_owned() }
    }
}

/// Splits at the first colon, unless that is in a path.
fn split_scheme(source: &str) -> Option<(&str, &str)> {
    source.split_once(':').filter(|(scheme, _)| !scheme.contains('/'))
}

#[cfg(test)]
mod tests;
