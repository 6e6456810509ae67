//! The bodies of requests that create snapshots and leases.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Body of `POST …/snapshots`. All members are optional.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateSnapshot {
    /// The disks to include, by file name or device name.
    pub disks: Option<Vec<String>>,
    /// The disks to exclude, by file name or device name.
    pub exclude_disks: Option<Vec<String>>,
    /// How long to keep the snapshot, such as `72h`, or `none` to keep it until it is deleted.
    pub ttl: Option<String>,
    // Later members are not serialized without a value: the digests of idempotency keys, which are stored, depend on
    // the serialized body.
    /// Labels of the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// What the snapshot is for, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether hooks quiesce the guest. Default: `try`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<Quiesce>,
}

/// Body of `POST /snapshots`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshots {
    /// The VMs, by name or uuid.
    pub vms: Vec<String>,
    /// These apply to each snapshot, as in [`CreateSnapshot`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<Quiesce>,
}

/// What to do about the consistency of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quiesce {
    /// Call the hooks. The snapshot is `crash` if they do not quiesce the guest.
    #[default]
    Try,
    /// Call no hooks. The snapshot is `crash`.
    Skip,
    /// Call the hooks, and create no snapshot if they do not quiesce the guest.
    Require,
}

/// Body of `POST …/lease`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeLease {
    /// How long the snapshot is needed, such as `2h`.
    pub ttl: String,
}

/// Response to `POST …/lease`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lease {
    /// When the lease ends: RFC 3339, UTC.
    pub expires_at: String,
}
