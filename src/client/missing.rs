//! What hosts of a pool lack: a VM or a snapshot that a request named.

use std::time::Instant;

/// What is missing at some hosts.
#[derive(Default)]
pub(super) struct Doubt(pub Option<Missing>);

pub(super) struct Missing {
    /// For people: a VM or a snapshot.
    pub what: String,
    pub since: Instant,
    /// The hosts that do not have it, and when each said so last.
    pub said_by: Vec<(usize, Instant)>,
}
