//! What clients may say when they make a snapshot, or need one for longer.

use serde::{Deserialize, Serialize};

/// Body of `POST …/snapshots`, all of it optional.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateSnapshot {
    /// The disks to take, by file name or device name; all others are left out.
    pub disks: Option<Vec<String>>,
    /// The disks to leave out, by file name or device name.
    pub exclude_disks: Option<Vec<String>>,
    /// How long to keep it, such as `72h`; `none`: until it is deleted.
    pub ttl: Option<String>,
}

/// Body of `POST …/lease`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeLease {
    /// How long the snapshot is needed from now on, such as `2h`.
    pub ttl: String,
}

/// Answer to `POST …/lease`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lease {
    /// Until when the snapshot is not swept: RFC 3339, UTC.
    pub expires_at: String,
}
