//! What changed between two snapshots.

pub mod chunks;
pub mod comparison;
pub mod refined_cache;
