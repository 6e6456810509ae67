//! Opens snapshots' files and proves that they are unchanged.

mod content_proof;
mod errors;
mod open_disk;
mod service;

pub use errors::lost;
pub(crate) use errors::temporary;
pub use open_disk::OpenDisk;
pub use service::FileOpener;
