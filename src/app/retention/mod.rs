//! How long snapshots are kept: leases, and who uses them.

pub mod lease;
pub mod uses;
