//! What a service can do, so that older ones and the original exporter are used as far as they go.

use crate::api;

/// Ranges of one request to a service that does not tell its limit. The original exporter answers with several parts.
const RANGES: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// It has no `/capabilities`.
    pub is_original: bool,
    pub idempotency: bool,
    pub leases: bool,
    pub labels: bool,
    pub quiesce: bool,
    pub choose_disks: bool,
    pub block_checksums: bool,
    pub content_digest: bool,
    pub ranges: usize,
}

impl Features {
    pub fn of(capabilities: Option<&api::Capabilities>) -> Self {
        let has = |name: &str| {
            capabilities.is_some_and(|capabilities| capabilities.features.iter().any(|feature| feature == name))
        };
        Self {
            is_original: capabilities.is_none(),
            idempotency: has("idempotency-key"),
            leases: has("leases"),
            labels: has("labels"),
            quiesce: has("quiesce"),
            choose_disks: has("choose-disks"),
            block_checksums: capabilities
                .is_some_and(|it| has("checksum") && it.checksum_algorithms.iter().any(|name| name == "blake3")),
            content_digest: has("content-digest-multipart"),
            ranges: capabilities.map_or(RANGES, |capabilities| capabilities.limits.ranges_per_request).clamp(1, 64),
        }
    }
}
