//! Compares two snapshots.

mod comparison;
mod disk_map;
mod options;
mod refined_cache;
mod service;

pub use comparison::Mode;
pub use disk_map::DiskMap;
pub use options::{ChunkQuery, DiskRef, MapOptions};
pub(crate) use service::pair;
pub use service::{ChunkPage, Comparisons};
