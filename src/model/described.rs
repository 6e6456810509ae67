//! A snapshot with what is kept beside it.

use super::definition::Definition;
use super::snapshot::Snapshot;

/// Identifies a request that a client repeats because it does not know whether the first one succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    pub user: String,
    /// The `Idempotency-Key` header.
    pub key: String,
    /// SHA-256 of the request.
    pub digest: [u8; 32],
}

/// A complete snapshot with all that its manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub snapshot: Snapshot,
    /// `None`: it does not expire.
    pub expires_at: Option<jiff::Timestamp>,
    /// The key of the request that made it, if the request had one.
    pub request: Option<RequestKey>,
    /// Whether it was made together with snapshots of other VMs: all of them exist, or none.
    pub is_of_group: bool,
    /// The VM's definition, if it is known.
    pub definition: Option<Definition>,
}

impl Described {
    /// A snapshot of which nothing else is known.
    pub fn alone(snapshot: Snapshot) -> Self {
        Self { snapshot, expires_at: None, request: None, is_of_group: false, definition: None }
    }
}
