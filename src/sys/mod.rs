//! Kernel calls, one a file: errno kept, nothing of ours imported, and the only `unsafe`.

pub mod fiemap;
pub mod folder;
pub mod fsinfo;
pub mod heap;
pub mod host;
pub mod io_priority;
pub mod mounts;
pub mod page_cache;
pub mod reflink;
pub mod socket;
pub mod sparse;
pub mod volume;
