//! Compares two snapshots.

mod bases;
mod comparison;
mod disk_chunks;
mod disk_map;
mod measured;
mod options;
mod refined_cache;
mod service;

pub(crate) use bases::check_bases;
pub use comparison::Mode;
pub use disk_chunks::ChunkPage;
pub use disk_map::DiskMap;
pub use options::{ChunkQuery, DiskRef, MapOptions};
pub use service::Comparisons;
pub(crate) use service::pair;
