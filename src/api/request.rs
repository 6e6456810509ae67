//! The bodies of requests that create snapshots and leases.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::formats;

/// A request for a snapshot. All keys are optional.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(example = json!({"disks": ["xvda"], "ttl": "72h", "labels": {"job": "nightly"}, "quiesce": "try"}))]
pub struct CreateSnapshot {
    /// Include only these disks, by file name (`name` in the VM) or device name. Default: all, except disks whose friendly
    /// name starts with `[NOBAK]`.
    #[schema(value_type = Option<Vec<formats::DiskName>>)]
    pub disks: Option<Vec<String>>,
    /// Include all disks except these. Not together with `disks`.
    #[schema(value_type = Option<Vec<formats::DiskName>>)]
    pub exclude_disks: Option<Vec<String>>,
    /// How long to keep the snapshot, such as `72h`, up to ten years, or `none` to keep it until it is deleted. Default:
    /// `policy.default_ttl`.
    #[schema(value_type = Option<formats::Ttl>)]
    pub ttl: Option<String>,
    // Later members are not serialized without a value: the digests of idempotency keys, which are stored, depend on
    // the serialized body.
    /// Labels of the snapshot, for programs. They cannot be changed later.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Labels>)]
    pub labels: Option<BTreeMap<String, String>>,
    /// What the snapshot is for, for people: at most 1024 bytes of printable text. It cannot be changed later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether hooks quiesce the guest. Default: `try`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<Quiesce>,
}

/// A request for snapshots of several VMs at one moment.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "vms": ["0004fb00000600000000000000000001", "0004fb00000600000000000000000002"],
    "quiesce": "require"
}))]
pub struct CreateSnapshots {
    /// 1 to 32 VMs, each once, by name or uuid.
    #[schema(value_type = Vec<formats::VmReference>, min_items = 1, max_items = 32)]
    pub vms: Vec<String>,
    /// As for one VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Ttl>)]
    pub ttl: Option<String>,
    /// As for one VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<formats::Labels>)]
    pub labels: Option<BTreeMap<String, String>>,
    /// As for one VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// As for one VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<Quiesce>,
}

/// What to do about the consistency of a snapshot: `try` calls the hooks, and the snapshot is `crash` if they do not
/// quiesce the guest; `require` creates no snapshot then; `skip` calls no hooks, and the snapshot is `crash`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// A request for a lease.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ttl": "2h"}))]
pub struct TakeLease {
    /// How long the snapshot is needed from now, such as `2h`: from one second to one week.
    #[schema(value_type = formats::Duration)]
    pub ttl: String,
}

/// A lease.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"expires_at": "2026-11-27T11:14:03.127Z"}))]
pub struct Lease {
    /// When the lease ends.
    #[schema(value_type = formats::Time)]
    pub expires_at: String,
}
