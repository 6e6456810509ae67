//! The request for a new snapshot: disks, retention, annotations, hooks and idempotency key.

use std::time::Duration;

use crate::api::{self, Quiesce};
use crate::app::Error;
use crate::app::error::Refusal;
use crate::app::retention::parse_duration;
use crate::config::MAX_TTL;
use crate::inventory::{Disk, Medium};
use crate::model::{Annotations, VmId};

/// A request for a new snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateRequest {
    pub(crate) selection: DiskSelection,
    pub(crate) retention: RetentionRequest,
    pub(crate) annotations: Annotations,
    pub(crate) quiesce: Quiesce,
    /// The header `Idempotency-Key`, and a digest of the rest of the request.
    pub(crate) key: Option<(String, [u8; 32])>,
}

/// Selects disks of the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskSelection {
    /// All disks without a `nobackup` tag in their name.
    All,
    /// These disks, even with a `nobackup` tag.
    Only(Vec<String>),
    /// All disks but these and those with a `nobackup` tag.
    AllBut(Vec<String>),
}

/// How long to keep the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetentionRequest {
    /// As the config says.
    Default,
    /// Until a client deletes it.
    UntilDeleted,
    For(Duration),
}

/// The decision of a selection about a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskChoice {
    /// The request names it.
    Named,
    /// It is selected by default.
    Usual,
    /// It is not selected.
    LeftOut,
}

/// The longest `Idempotency-Key`, characters.
const MAX_KEY_LENGTH: usize = 255;

/// The most VMs of one request. Each stays frozen until the hooks of all have been called.
const MAX_VMS: usize = 32;

impl CreateRequest {
    /// Parses the request from its `body` and the header `Idempotency-Key`.
    ///
    /// # Errors
    /// [`Error::BadRequest`].
    pub fn new(body: api::CreateSnapshot, key: Option<&str>) -> Result<Self, Error> {
        let key = key.map(|key| digested(key, &body)).transpose()?;
        Self::with_key(body, key)
    }

    /// As [`CreateRequest::new`], for snapshots of several VMs, which are also returned.
    ///
    /// # Errors
    /// [`Error::BadRequest`].
    pub fn of_group(body: api::CreateSnapshots, key: Option<&str>) -> Result<(Vec<VmId>, Self), Error> {
        let key = key.map(|key| digested(key, &body)).transpose()?;
        let api::CreateSnapshots { vms, ttl, labels, description, quiesce } = body;
        if !(1..=MAX_VMS).contains(&vms.len()) {
            return Err(Error::BadRequest(format!("vms has {} entries; expected 1 to {MAX_VMS}", vms.len())));
        }
        let parse = |text: &String| {
            let remedy = "expected 32 hexadecimal digits, or a dashed uuid";
            text.parse().map_err(|_| Error::BadRequest(format!("vms: {text:?} is not a VM; {remedy}")))
        };
        let vms = vms.iter().map(parse).collect::<Result<_, _>>()?;
        let body = api::CreateSnapshot { ttl, labels, description, quiesce, ..api::CreateSnapshot::default() };
        Ok((vms, Self::with_key(body, key)?))
    }

    fn with_key(body: api::CreateSnapshot, key: Option<(String, [u8; 32])>) -> Result<Self, Error> {
        let bad = |problem: String| Err(Error::BadRequest(problem));
        let retention = match body.ttl.as_deref() {
            None => RetentionRequest::Default,
            Some("none") => RetentionRequest::UntilDeleted,
            Some(text) => RetentionRequest::For(parse_duration("ttl", text, MAX_TTL)?),
        };
        let annotations = Annotations::new(body.labels.unwrap_or_default(), body.description)
            .map_err(|error| Error::BadRequest(error.to_string()))?;
        let selection = match (body.disks, body.exclude_disks) {
            (Some(_), Some(_)) => return bad("disks and exclude_disks are both set; use one of them".to_owned()),
            (Some(disks), None) if disks.is_empty() => {
                return bad("disks is empty; list the disks to snapshot, or omit it to snapshot all".to_owned());
            }
            (Some(disks), None) => DiskSelection::Only(disks),
            (None, Some(disks)) => DiskSelection::AllBut(disks),
            (None, None) => DiskSelection::All,
        };
        Ok(Self { selection, retention, annotations, quiesce: body.quiesce.unwrap_or_default(), key })
    }
}

/// Parses the key, and adds the digest of `body`. It is of the canonical form, so that spelling does not matter.
fn digested(key: &str, body: &impl serde::Serialize) -> Result<(String, [u8; 32]), Error> {
    let canonical = serde_json::to_vec(body).unwrap_or_default();
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &canonical).as_ref());
    Ok((parse_key(key)?, digest))
}

/// Parses the key. The quotes that the draft of this header requires are optional.
fn parse_key(header: &str) -> Result<String, Error> {
    let header = header.trim();
    let key = header.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(header);
    let fits =
        (1..=MAX_KEY_LENGTH).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if fits && !key.contains(['"', '\\']) {
        Ok(key.to_owned())
    } else {
        let remedy = "expected 1 to 255 printable ASCII characters without quotes and backslashes, such as a UUID";
        Err(Error::BadRequest(format!("Idempotency-Key: {remedy}")))
    }
}

impl DiskSelection {
    /// The decision about each of a VM's disks.
    ///
    /// # Errors
    /// [`Refusal::UnknownDisk`], [`Refusal::AmbiguousDisk`], [`Refusal::NoDiskLeft`].
    pub(crate) fn choices(&self, disks: &[Disk]) -> Result<Vec<DiskChoice>, Refusal> {
        let (names, named, others) = match self {
            Self::All => return Ok(vec![DiskChoice::Usual; disks.len()]),
            Self::Only(names) => (names, DiskChoice::Named, DiskChoice::LeftOut),
            Self::AllBut(names) => (names, DiskChoice::LeftOut, DiskChoice::Usual),
        };
        let mut choices = vec![others; disks.len()];
        for name in names {
            let mut matches: Vec<usize> = (0..disks.len()).filter(|index| has_name(&disks[*index], name)).collect();
            // A file that is listed twice in the definition is one disk.
            let different = matches.iter().any(|index| disks[*index].medium != disks[matches[0]].medium);
            match matches.as_slice() {
                [] => return Err(Refusal::UnknownDisk { name: name.clone(), existing: list(disks) }),
                _ if different => return Err(Refusal::AmbiguousDisk { name: name.clone(), existing: list(disks) }),
                [first, ..] => {
                    let medium = &disks[*first].medium;
                    matches.extend(
                        (0..disks.len()).filter(|index| *medium != Medium::Absent && disks[*index].medium == *medium),
                    );
                }
            }
            for index in matches {
                choices[index] = named;
            }
        }
        if !choices.is_empty() && choices.iter().all(|choice| *choice == DiskChoice::LeftOut) {
            return Err(Refusal::NoDiskLeft);
        }
        Ok(choices)
    }
}

fn has_name(disk: &Disk, name: &str) -> bool {
    !name.is_empty() && (disk.device == name || disk.file_name() == name)
}

fn list(disks: &[Disk]) -> String {
    let names: Vec<_> = disks.iter().map(|disk| format!("{} ({})", disk.device, disk.file_name())).collect();
    names.join(", ")
}

#[cfg(test)]
#[path = "create_request/tests.rs"]
mod tests;
