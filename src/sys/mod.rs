//! System calls, one subject a file. Errors keep their errno. Nothing here imports other modules of the program, and
//! all `unsafe` code is here.

pub mod call_filter;
pub mod capabilities;
pub mod fiemap;
pub mod file_access;
pub mod file_lock;
pub mod folder;
pub mod fsinfo;
pub mod heap;
pub mod host;
pub mod io_priority;
pub mod mounts;
pub mod page_cache;
pub mod passing;
pub mod reflink;
pub mod signals;
pub mod socket;
pub mod sparse;
pub mod sync;
pub mod trusted_path;
pub mod volume;
