//! Snapshots' files, opened and proven to be the ones that were made.

mod content_proof;
mod errors;
mod open_disk;
mod service;

pub use errors::lost;
pub(crate) use errors::temporary;
pub use open_disk::OpenDisk;
pub use service::FileOpener;
