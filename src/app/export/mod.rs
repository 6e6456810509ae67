//! The transfer engine: reads the disks of snapshots for clients.
//!
//! A [`block_export::BlockExport`] is a disk that one client reads. All code that sends its bytes uses that trait.

mod audit;
mod block_export;
mod checksum;
mod download;
mod pieces;
mod rate_limit;
mod service;
mod slot;

pub use checksum::{ChecksumRequest, Checksums, Digests, DiskChecksum};
pub use download::Download;
pub use pieces::Part;
pub use rate_limit::{ConnectionLimits, RateLimits, Reservation};
pub use service::Exports;
