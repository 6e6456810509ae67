//! Body of `GET /capabilities`: what the service can do, and its limits.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the service can do.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// The version of the program.
    pub version: String,
    /// The features of the API, by name.
    pub features: Vec<String>,
    /// The algorithms of checksums.
    pub checksum_algorithms: Vec<String>,
    /// The user of the request. Empty from services before 0.3.0.
    #[serde(default)]
    #[schema(required)]
    pub user: String,
    /// What the user may do, at least for some VMs: `view`, `read`, `create`, `delete_own`, `administer`, `metrics`.
    #[serde(default)]
    #[schema(required)]
    pub permissions: Vec<String>,
    /// The limits that matter to clients.
    pub limits: Limits,
}

/// The limits of the service, as its config sets them. `null` means no limit. Version 0.2.0 sends only the first three.
// In the answer of an older service, some are 0 or `null`, which then means unknown.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Limits {
    /// The most ranges in one `Range` header.
    pub ranges_per_request: usize,
    /// The largest body of a request, bytes.
    pub request_body_bytes: usize,
    /// The validity of a token, seconds.
    pub token_seconds: u64,
    /// Downloads at a time. A free slot goes to the user and VM with the fewest.
    pub export_concurrency: usize,
    /// Further downloads, for users and VMs without a running one while another user or VM has several.
    pub export_spare: usize,
    /// Downloads that may wait.
    pub export_queue: usize,
    /// How long a download may wait, seconds, rounded up.
    pub export_wait_seconds: u64,
    /// While downloads wait, slower clients are disconnected. Bytes per second; `null` if they are not.
    #[schema(required)]
    pub export_min_rate: Option<u64>,
    /// The largest content with a `Content-Digest`, bytes.
    pub content_digest_bytes: u64,
    /// The most chunks in a page.
    pub chunks_per_page: usize,
    /// The block sizes of `refine`, powers of two.
    pub refine_block_bytes: Bounds,
    /// The block sizes of checksums, powers of two.
    pub checksum_block_bytes: Bounds,
    /// Creations of snapshots at a time.
    pub snapshot_concurrency: usize,
    /// Creations that may wait.
    pub snapshot_queue: usize,
    /// A creation is refused if this many operations of its VM run or wait.
    pub snapshot_queue_per_vm: usize,
    /// Snapshots of one VM. `null`: no limit.
    #[schema(required)]
    pub max_snapshots_per_vm: Option<usize>,
    /// Extents of a disk that can be snapshotted. `null`: no limit.
    #[schema(required)]
    pub max_extents: Option<u32>,
    /// The `ttl` of a new snapshot.
    pub ttl_seconds: Bounds,
    /// The `ttl` of a request without one. `null`: the snapshot does not expire.
    #[schema(required)]
    pub default_ttl_seconds: Option<u64>,
    /// The `ttl` of a lease.
    pub lease_seconds: Bounds,
    /// The `ttl` of a ticket. `null`: there are no tickets.
    #[schema(required)]
    pub ticket_seconds: Option<Bounds>,
    /// How long an `Idempotency-Key` is remembered.
    pub idempotency_key_seconds: u64,
}

/// The smallest and the largest value.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Bounds {
    pub min: u64,
    pub max: u64,
}
