//! `.manifest.json` in each snapshot folder: enough to rebuild the snapshot's database record.
//!
//! Version 1. Each repository with files of the snapshot gets the whole manifest. Times are RFC 3339 texts with
//! nanoseconds, because not every JSON reader keeps numbers of that size. Fields can be added later: older programs
//! ignore them, and a missing field has a default.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::model::{
    Annotations, Definition, Described, DiskSource, FileIdentity, HookRun, Provenance, RequestKey, Seal, Snapshot,
    SnapshotDisk, VolumeId,
};

/// A disk's name never starts with a dot, so this name is free.
pub const FILE_NAME: &str = ".manifest.json";

const VERSION: u32 = 1;

/// The longest user and the longest key of a request, in bytes.
const MAX_REQUEST_TEXT: usize = 1024;

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The error repeats nothing of the file: anyone may have put it there.
    #[error("not a manifest: line {line}, column {column}: {expected}")]
    Json {
        /// Counted from 1.
        line: usize,
        /// The byte in that line, counted from 1.
        column: usize,
        expected: &'static str,
    },
    #[error("version {0}, made by a newer program")]
    Newer(u32),
    #[error("{0} is invalid")]
    Field(&'static str),
}

impl From<serde_json::Error> for ManifestError {
    fn from(error: serde_json::Error) -> Self {
        let expected = match error.classify() {
            serde_json::error::Category::Data => "expected another type of value, or a field that is missing",
            serde_json::error::Category::Eof => "expected more, found the end of the file",
            _ => "expected JSON",
        };
        Self::Json { line: error.line(), column: error.column(), expected }
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    snapshot_id: String,
    vm_id: String,
    sequence: u64,
    created_at: jiff::Timestamp,
    created_by: String,
    /// The service that wrote it: see [`maker`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exporter: Option<String>,
    disks: Vec<ManifestDisk>,
    #[serde(default = "crash")]
    consistency: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freeze_ms: Option<u64>,
    #[serde(default)]
    hooks: Vec<ManifestHook>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<jiff::Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<ManifestRequest>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    of_group: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
}

fn crash() -> String {
    Provenance::crash_consistent().consistency.as_str().to_owned()
}

#[derive(Serialize, Deserialize)]
struct ManifestDisk {
    name: String,
    repository: String,
    source: String,
    size: u64,
    inode: u64,
    changed_at: jiff::Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    modified_at: Option<jiff::Timestamp>,
    /// The id of the file system, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volume: Option<String>,
    /// BLAKE3 of the extent map, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    map_digest: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct ManifestRequest {
    user: String,
    key: String,
    /// SHA-256, hexadecimal.
    digest: String,
}

#[derive(Serialize, Deserialize)]
struct ManifestHook {
    name: String,
    kind: String,
    stage: String,
    outcome: String,
    duration_ms: u64,
    detail: String,
}

fn time(nanoseconds: i128) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(nanoseconds).unwrap_or_default()
}

fn volume(text: &str) -> Result<VolumeId, ManifestError> {
    let number = u128::from_str_radix(text, 16).map_err(|_| ManifestError::Field("volume"))?;
    Ok(VolumeId(number.to_be_bytes()))
}

/// The manifest of a snapshot, written by the service with the id `exporter`.
///
/// # Errors
/// None: all map keys are texts.
pub fn encode(described: &Described, exporter: &str) -> io::Result<Vec<u8>> {
    let Described { snapshot, expires_at, request, is_of_group, definition } = described;
    let manifest = Manifest {
        version: VERSION,
        snapshot_id: snapshot.id.to_string(),
        vm_id: snapshot.vm.to_string(),
        sequence: snapshot.sequence,
        created_at: snapshot.created_at,
        created_by: snapshot.created_by.clone(),
        exporter: Some(exporter.to_owned()),
        disks: snapshot
            .disks
            .iter()
            .map(|disk| ManifestDisk {
                name: disk.name.to_string(),
                repository: disk.source.repository.to_string(),
                source: disk.source.path.clone(),
                size: disk.identity.size,
                inode: disk.identity.inode,
                changed_at: time(disk.identity.changed_ns),
                modified_at: disk.seal.map(|seal| time(seal.modified_ns)),
                volume: disk.volume.map(|VolumeId(bytes)| format!("{:032x}", u128::from_be_bytes(bytes))),
                map_digest: disk.seal.and_then(|seal| seal.map).map(|map| Digest(map).to_string()),
            })
            .collect(),
        consistency: snapshot.provenance.consistency.as_str().to_owned(),
        freeze_ms: snapshot.provenance.freeze_ms,
        hooks: snapshot
            .provenance
            .hooks
            .iter()
            .map(|run| ManifestHook {
                name: run.name.clone(),
                kind: run.kind.as_str().to_owned(),
                stage: run.stage.as_str().to_owned(),
                outcome: run.outcome.as_str().to_owned(),
                duration_ms: run.duration_ms,
                detail: run.detail.clone(),
            })
            .collect(),
        labels: snapshot.annotations.labels().clone(),
        description: snapshot.annotations.description().map(str::to_owned),
        expires_at: *expires_at,
        request: request.as_ref().map(|RequestKey { user, key, digest }| ManifestRequest {
            user: user.clone(),
            key: key.clone(),
            digest: Digest(*digest).to_string(),
        }),
        of_group: *is_of_group,
        definition: definition.clone(),
    };
    let mut text = serde_json::to_vec_pretty(&manifest)?;
    text.push(b'\n');
    Ok(text)
}

/// The id of the service that wrote a manifest. `None` if the manifest does not name it.
pub fn maker(text: &[u8]) -> Result<Option<String>, ManifestError> {
    #[derive(Deserialize)]
    struct Maker {
        exporter: Option<String>,
    }
    let Maker { exporter } = serde_json::from_slice(text)?;
    Ok(exporter)
}

/// Whether a path stays below its repository. It is shown to clients and passed to hooks.
fn is_below(path: &str) -> bool {
    let mut components = Path::new(path).components();
    !path.is_empty() && components.all(|component| matches!(component, Component::Normal(_)))
}

/// The snapshot that a manifest describes, with the definition of its VM.
pub fn decode(text: &[u8]) -> Result<Described, ManifestError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(text)?;
    if version != VERSION {
        return Err(ManifestError::Newer(version));
    }
    let manifest: Manifest = serde_json::from_slice(text)?;
    let disk = |disk: ManifestDisk| {
        let map = disk.map_digest.map(|text| text.parse::<Digest>()).transpose();
        let map = map.map_err(|_| ManifestError::Field("map_digest"))?.map(|digest| digest.0);
        Ok(SnapshotDisk {
            name: disk.name.parse().map_err(|_| ManifestError::Field("a disk's name"))?,
            source: DiskSource {
                repository: disk.repository.parse().map_err(|_| ManifestError::Field("repository"))?,
                path: Some(disk.source).filter(|path| is_below(path)).ok_or(ManifestError::Field("a disk's source"))?,
            },
            identity: FileIdentity { inode: disk.inode, size: disk.size, changed_ns: disk.changed_at.as_nanosecond() },
            volume: disk.volume.as_deref().map(volume).transpose()?,
            seal: disk.modified_at.map(|at| Seal { modified_ns: at.as_nanosecond(), map }),
        })
    };
    let hook = |run: ManifestHook| {
        Ok(HookRun {
            name: run.name,
            kind: run.kind.parse().map_err(|_| ManifestError::Field("a hook's kind"))?,
            stage: run.stage.parse().map_err(|_| ManifestError::Field("a hook's stage"))?,
            outcome: run.outcome.parse().map_err(|_| ManifestError::Field("a hook's outcome"))?,
            duration_ms: run.duration_ms,
            detail: run.detail,
        })
    };
    // Anyone may have written the file.
    let request = |ManifestRequest { user, key, digest }| {
        let digest = digest.parse::<Digest>().ok().filter(|_| user.len().max(key.len()) <= MAX_REQUEST_TEXT);
        digest.map(|digest| RequestKey { user, key, digest: digest.0 }).ok_or(ManifestError::Field("request"))
    };
    let request = manifest.request.map(request).transpose()?;
    let definition = manifest.definition.map(Definition::within_limits);
    let snapshot = Snapshot {
        id: manifest.snapshot_id.parse().map_err(|_| ManifestError::Field("snapshot_id"))?,
        vm: manifest.vm_id.parse().map_err(|_| ManifestError::Field("vm_id"))?,
        sequence: manifest.sequence,
        created_at: manifest.created_at,
        created_by: manifest.created_by,
        disks: manifest.disks.into_iter().map(disk).collect::<Result<_, ManifestError>>()?,
        provenance: Provenance {
            consistency: manifest.consistency.parse().map_err(|_| ManifestError::Field("consistency"))?,
            freeze_ms: manifest.freeze_ms,
            hooks: manifest.hooks.into_iter().map(hook).collect::<Result<_, ManifestError>>()?,
        },
        annotations: Annotations::new(manifest.labels, manifest.description)
            .map_err(|_| ManifestError::Field("labels or description"))?,
    };
    let Manifest { expires_at, of_group: is_of_group, .. } = manifest;
    Ok(Described { snapshot, expires_at, request, is_of_group, definition })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Consistency, HookKind, HookOutcome, HookStage, SnapshotId};

    #[test]
    fn a_manifest_survives_encoding() {
        let snapshot = Snapshot {
            id: SnapshotId::from_u128(0x1234),
            vm: "0004fb00000600000000000000000001".parse().unwrap(),
            sequence: 7,
            created_at: "2024-05-01T10:20:30.123456789Z".parse().unwrap(),
            created_by: "admin".to_owned(),
            disks: vec![SnapshotDisk {
                name: "a.img".parse().unwrap(),
                source: DiskSource {
                    repository: "0004fb0000030000a1b2c3d4e5f60718".parse().unwrap(),
                    path: "VirtualDisks/a.img".to_owned(),
                },
                identity: FileIdentity { inode: 131, size: 1 << 40, changed_ns: 1_714_558_830_123_456_789 },
                volume: Some(VolumeId([0xa5; 16])),
                seal: Some(Seal { modified_ns: 1_714_558_829_987_654_321, map: Some([0x5a; 32]) }),
            }],
            provenance: Provenance {
                consistency: Consistency::Quiesced,
                freeze_ms: Some(17),
                hooks: vec![HookRun {
                    name: "https://10.0.0.5:1727".to_owned(),
                    kind: HookKind::Sync,
                    stage: HookStage::Pre,
                    outcome: HookOutcome::Ok,
                    duration_ms: 12,
                    detail: "200 OK".to_owned(),
                }],
            },
            annotations: Annotations::new(
                [("job".to_owned(), "nightly".to_owned())].into(),
                Some("before the upgrade".to_owned()),
            )
            .unwrap(),
        };
        let definition = Definition { format: "vm.cfg".to_owned(), memory_mb: Some(2048), ..Definition::default() };
        let request = RequestKey { user: "admin".to_owned(), key: "a key".to_owned(), digest: [0xc3; 32] };
        let described = Described {
            snapshot,
            expires_at: Some("2024-05-02T10:20:30.123456789Z".parse().unwrap()),
            request: Some(request),
            is_of_group: true,
            definition: Some(definition),
        };
        let text = encode(&described, "this one").unwrap();
        assert_eq!(decode(&text).unwrap(), described);
        assert_eq!(maker(&text).unwrap().as_deref(), Some("this one"));

        for bad in ["/etc/shadow", "../a.img", "VirtualDisks/../../a.img", ""] {
            let text = String::from_utf8(text.clone()).unwrap().replace("VirtualDisks/a.img", bad);
            assert!(matches!(decode(text.as_bytes()), Err(ManifestError::Field("a disk's source"))), "{bad}");
        }
        for (from, to) in [("c3c3", "c3c"), ("a key", &"k".repeat(1025))] {
            let text = String::from_utf8(text.clone()).unwrap().replacen(from, to, 1);
            assert!(matches!(decode(text.as_bytes()), Err(ManifestError::Field("request"))), "{from}");
        }
        let control = String::from_utf8(text.clone()).unwrap().replace("nightly", "a\\u001bb");
        assert!(matches!(decode(control.as_bytes()), Err(ManifestError::Field("labels or description"))));
        let newer = String::from_utf8(text).unwrap().replacen("\"version\": 1", "\"version\": 2", 1);
        assert!(matches!(decode(newer.as_bytes()), Err(ManifestError::Newer(2))));
        assert!(matches!(decode(&newer.as_bytes()[..40]), Err(ManifestError::Json { .. })));
    }

    #[test]
    fn an_error_repeats_nothing_of_the_file() {
        for text in
            [r#"{"version": "secret"}"#, r#"{"version": 1, "secret": 7, "vm_id": ["secret"]}"#, "secret", "\"secret"]
        {
            let message = decode(text.as_bytes()).unwrap_err().to_string();
            assert!(message.starts_with("not a manifest: line 1, column ") && !message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn a_manifest_without_optional_fields_is_read() {
        let text = br#"{"version": 1, "snapshot_id": "00000000-0000-0000-0000-000000001234",
            "vm_id": "0004fb00000600000000000000000001", "sequence": 7, "created_by": "admin", "disks": [],
            "created_at": "2024-05-01T10:20:30.123456789Z"}"#;
        let Described { snapshot, expires_at, request, is_of_group, definition } = decode(text).unwrap();
        assert_eq!((expires_at, request, is_of_group, definition), (None, None, false, None));
        assert_eq!(snapshot.provenance, Provenance::crash_consistent());
        assert_eq!(snapshot.annotations, Annotations::default());
        assert_eq!(maker(text).unwrap(), None);
    }
}
