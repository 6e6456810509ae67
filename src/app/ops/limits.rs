//! The limits of the operations, for clients.

use std::num::NonZero;
use std::time::Duration;

use super::service::Ops;
use crate::api;
use crate::app::admission::{CREATION_QUEUE, CREATION_QUEUE_OF_VM, EXPORT_QUEUE};
use crate::app::retention::{LONGEST_LEASE, SHORTEST};
use crate::config::{MAX_TTL, REFINE_BLOCKS};
use crate::store::KEY_LIFETIME;

impl Ops {
    /// The limits of the config, and those that are constants. The limits of HTTP are missing.
    pub fn limits(&self) -> api::Limits {
        let (exports, policy) = (&self.admission.exports, self.admission.policy.limits.get());
        api::Limits {
            export_concurrency: exports.limit(),
            export_spare: exports.spare(),
            export_queue: EXPORT_QUEUE,
            export_wait_seconds: rounded_up(policy.export_wait),
            export_min_rate: self.admission.min_rate().map(NonZero::get),
            refine_block_bytes: api::Bounds { min: *REFINE_BLOCKS.start(), max: *REFINE_BLOCKS.end() },
            snapshot_concurrency: self.admission.creations.limit(),
            snapshot_queue: CREATION_QUEUE,
            snapshot_queue_per_vm: CREATION_QUEUE_OF_VM,
            max_snapshots_per_vm: policy.max_snapshots_per_vm,
            max_extents: policy.max_extents,
            ttl_seconds: api::Bounds { min: SHORTEST.as_secs(), max: MAX_TTL.as_secs() },
            default_ttl_seconds: policy.default_ttl.map(rounded_up),
            lease_seconds: api::Bounds { min: SHORTEST.as_secs(), max: LONGEST_LEASE.as_secs() },
            ticket_seconds: policy
                .max_ticket_ttl
                .map(|longest| api::Bounds { min: SHORTEST.as_secs(), max: longest.as_secs() }),
            idempotency_key_seconds: KEY_LIFETIME.as_secs(),
            ..api::Limits::default()
        }
    }
}

fn rounded_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
