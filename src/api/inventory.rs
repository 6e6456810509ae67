//! What `GET /vms` and `GET /repositories` list.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Status, formats};

/// A virtual machine, or an entry that stands for the VMs of a repository that was never read.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "friendly_name": "web-1",
    "name": "0004fb00000600000000000000000001",
    "uuid": "0004fb00-0006-0000-0000-000000000001",
    "disks": [{
        "name": "system.img",
        "path": "/OVS/Repositories/0004fb0000030000a1b2c3d4e5f60718/VirtualDisks/system.img",
        "device_name": "xvda",
        "snapshot_compatible": true,
        "mode": "w",
        "size": 10737418240_u64
    }],
    "snapshot_compatible": true,
    "runs_here": true,
    "snapshots": ["6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d"],
    "permissions": ["view", "read"],
    "status": "ok"
}))]
pub struct Vm {
    /// The name that users gave it.
    pub friendly_name: String,
    /// 32 hexadecimal digits; another text only for an entry without a usable definition.
    pub name: String,
    /// With dashes.
    pub uuid: String,
    /// In the order of the definition. Empty if the definition cannot be used.
    pub disks: Vec<VmDisk>,
    /// Whether a snapshot of it is possible.
    pub snapshot_compatible: bool,
    /// `true` if it runs on the host of this service, which then creates snapshots of it fastest: a loop device there has
    /// one of its disks. `null` if that is not known.
    #[serde(default)]
    #[schema(required)]
    pub runs_here: Option<bool>,
    /// The ids of its snapshots, oldest first.
    #[schema(value_type = Vec<formats::Id>)]
    pub snapshots: Vec<String>,
    /// `true` if it may have more snapshots, because the database is being rebuilt; otherwise missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub snapshots_incomplete: bool,
    /// What the user of the request may do with it: `view`, `read`, `create`, `delete_own`, `administer`. If the user has
    /// some of these only for snapshots with certain labels, the `permissions` of a snapshot tell whether for that one. Empty
    /// for an entry that no request can name.
    #[serde(default)]
    #[schema(required, value_type = Vec<String>)]
    pub permissions: Vec<Cow<'static, str>>,
    /// Whether its definition can be used. The original exporter lists only such VMs, without this field.
    #[serde(default)]
    #[schema(required)]
    pub status: Status,
    /// Why the definition is unusable, or why no snapshot is possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The id of a repository that was never read. This entry then stands for all VMs in that repository, and has its id
    /// as `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable_repository: Option<String>,
}

/// A disk of a VM: a regular file in a repository.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct VmDisk {
    /// The file name.
    pub name: String,
    /// The path in the definition.
    pub path: String,
    /// The device in the guest, such as `xvda`.
    pub device_name: String,
    /// Whether a snapshot includes it.
    pub snapshot_compatible: bool,
    /// `r`, `w`, or `w!` for a disk that several VMs share.
    pub mode: String,
    /// Size in bytes, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The name that users gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub friendly_name: Option<String>,
    /// Id of its repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Why it is not a disk, or why a snapshot leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incompatible_reason: Option<String>,
}

/// A repository.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Repository {
    /// The key in ovs-agent's database, or the folder's name.
    pub id: String,
    /// The name that users gave it, if ovs-agent knows it.
    #[schema(required)]
    pub alias: Option<String>,
    /// Where it is mounted; `null` if that is unknown.
    #[schema(required)]
    pub mount_point: Option<String>,
    /// The type of the mounted file system, such as `ocfs2`.
    #[schema(required)]
    pub filesystem: Option<String>,
    /// The manager that owns it, if ovs-agent knows it.
    #[schema(required)]
    pub manager_uuid: Option<String>,
    /// Version of its layout, if ovs-agent knows it.
    #[schema(required)]
    pub version: Option<String>,
    /// Whether its files can be cloned. The service tests this by cloning a file, and caches the result for a minute.
    pub reflink: bool,
    /// The size of the file system, bytes; `null` if none is mounted.
    #[schema(required)]
    pub total_bytes: Option<u64>,
    /// Bytes that are available; `null` if nothing is mounted.
    #[schema(required)]
    pub free_bytes: Option<u64>,
    /// `error` if nothing is mounted, or the mount differs from ovs-agent's database.
    pub status: Status,
    /// Why `status` is `error`, or `reflink` is `false`.
    #[schema(required)]
    pub reason: Option<String>,
}
