//! What is asked for with a new snapshot: which disks, for how long, and under which key.

use std::time::Duration;

use crate::api;
use crate::app::Error;
use crate::app::error::Refusal;
use crate::app::retention::parse_duration;
use crate::config::MAX_TTL;
use crate::inventory::{Disk, Medium};

/// A request for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateRequest {
    pub(crate) selection: DiskSelection,
    pub(crate) retention: RetentionRequest,
    /// The header `Idempotency-Key`, with the digest of all else.
    pub(crate) key: Option<(String, [u8; 32])>,
}

/// Which disks are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskSelection {
    /// All but those whose name says no.
    All,
    /// These, whatever their name says.
    Only(Vec<String>),
    /// All but these, and those whose name says no.
    AllBut(Vec<String>),
}

/// For how long a snapshot is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetentionRequest {
    /// For as long as the config says.
    Default,
    /// Until it is deleted.
    UntilDeleted,
    /// This long.
    For(Duration),
}

/// What a selection says of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskChoice {
    /// It is wanted by name.
    Named,
    /// It is wanted as any other.
    Usual,
    /// It is not wanted.
    LeftOut,
}

/// Characters of an `Idempotency-Key`.
const KEY_LENGTH: usize = 255;

impl CreateRequest {
    /// The request that `body` is, repeated under `key`.
    ///
    /// # Errors
    /// [`Error::BadRequest`].
    pub fn new(body: api::CreateSnapshot, key: Option<&str>) -> Result<Self, Error> {
        let bad = |problem: String| Err(Error::BadRequest(problem));
        // What is the same request has the same digest, however its body was spelled.
        let key = key.map(parse_key).transpose()?.map(|key| {
            let canonical = serde_json::to_vec(&body).unwrap_or_default();
            let mut digest = [0; 32];
            digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &canonical).as_ref());
            (key, digest)
        });
        let retention = match body.ttl.as_deref() {
            None => RetentionRequest::Default,
            Some("none") => RetentionRequest::UntilDeleted,
            Some(text) => RetentionRequest::For(parse_duration("ttl", text, MAX_TTL)?),
        };
        let selection = match (body.disks, body.exclude_disks) {
            (Some(_), Some(_)) => return bad("disks and exclude_disks are both given; keep one".to_owned()),
            (Some(disks), None) if disks.is_empty() => {
                return bad("disks is empty; name the disks to take, or leave it out to take all".to_owned());
            }
            (Some(disks), None) => DiskSelection::Only(disks),
            (None, Some(disks)) => DiskSelection::AllBut(disks),
            (None, None) => DiskSelection::All,
        };
        Ok(Self { selection, retention, key })
    }
}

/// The key, with or without the quotes that the draft of its header asks for.
fn parse_key(header: &str) -> Result<String, Error> {
    let header = header.trim();
    let key = header.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(header);
    let fits = (1..=KEY_LENGTH).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if fits && !key.contains(['"', '\\']) {
        Ok(key.to_owned())
    } else {
        let remedy = "write 1 to 255 letters, digits and signs, such as a uuid, without quotes inside";
        Err(Error::BadRequest(format!("Idempotency-Key: {remedy}")))
    }
}

impl DiskSelection {
    /// What it says of each of a VM's disks.
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
            let mut meant: Vec<usize> = (0..disks.len()).filter(|index| is_called(&disks[*index], name)).collect();
            // A file that the definition names twice is one disk.
            let different = meant.iter().any(|index| disks[*index].medium != disks[meant[0]].medium);
            match meant.as_slice() {
                [] => return Err(Refusal::UnknownDisk { name: name.clone(), there: list(disks) }),
                _ if different => return Err(Refusal::AmbiguousDisk { name: name.clone(), there: list(disks) }),
                [first, ..] => {
                    let medium = &disks[*first].medium;
                    meant.extend(
                        (0..disks.len()).filter(|index| *medium != Medium::Absent && disks[*index].medium == *medium),
                    );
                }
            }
            for index in meant {
                choices[index] = named;
            }
        }
        if !choices.is_empty() && choices.iter().all(|choice| *choice == DiskChoice::LeftOut) {
            return Err(Refusal::NoDiskLeft);
        }
        Ok(choices)
    }
}

fn is_called(disk: &Disk, name: &str) -> bool {
    !name.is_empty() && (disk.device == name || disk.file_name() == name)
}

fn list(disks: &[Disk]) -> String {
    let names: Vec<_> = disks.iter().map(|disk| format!("{} ({})", disk.device, disk.file_name())).collect();
    names.join(", ")
}

#[cfg(test)]
#[path = "create_request/tests.rs"]
mod tests;
