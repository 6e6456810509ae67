//! Snapshots' files, opened and proven to be the ones that were made.

pub mod open_disk;
pub mod touched;
