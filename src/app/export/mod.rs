//! Reading the disks of snapshots for clients.

pub mod audit_trail;
pub mod checksum;
pub mod client_rate;
pub mod slot;
