//! Paths that more than the route table has to know.

/// The bytes of a disk. They are sent on the connection's own thread.
pub(super) const DISK: &str = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}";

/// The bytes of a disk, for a ticket. They are sent like those of [`DISK`].
pub(super) const TICKET_DISK: &str = "/t/{secret}/{disk}";

/// Metrics for Prometheus.
pub(super) const METRICS: &str = "/metrics";
