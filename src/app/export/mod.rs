//! The transfer engine: reading the disks of snapshots for clients.
//!
//! A [`block_export::BlockExport`] is a disk that one client reads. Whatever sends or digests its bytes stands on that trait.

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
pub use rate_limit::{ConnectionLimits, Limits, Reservation};
pub use service::Exports;
