//! Paths that more than the route table has to know.

/// The bytes of a disk. They are sent on the connection's own thread.
pub(super) const DISK: &str = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}";

/// The bytes of a disk, for a ticket. They are sent like those of [`DISK`].
pub(super) const TICKET_DISK: &str = "/t/{secret}/{disk}";

/// The chunks of a disk.
pub(super) const CHUNKS: &str = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}/chunks";

/// The chunks of a disk, for a ticket.
pub(super) const TICKET_CHUNKS: &str = "/t/{secret}/{disk}/chunks";

/// The OpenAPI document.
pub(super) const OPENAPI: &str = "/api/v1/openapi.json";

/// The page that shows it.
pub(super) const DOCS: &str = "/api/v1/docs";

/// A file of that page.
pub(super) const DOCS_FILE: &str = "/api/v1/docs/{file}";

/// Metrics for Prometheus.
pub(super) const METRICS: &str = "/metrics";
