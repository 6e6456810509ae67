//! Paths that more than the route table has to know.

/// The bytes of a disk. They are sent on the connection's own thread.
pub(super) const DISK: &str = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}";

/// Metrics for Prometheus.
pub(super) const METRICS: &str = "/metrics";
