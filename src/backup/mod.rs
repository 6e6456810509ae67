//! Backups: restore points in a directory, made from a service's snapshots.
//!
//! [`VmBackup`] makes a point, [`restore`] gives the disks of one, [`verify`] reads points back, [`prune`] removes them.
//! The module knows no terminal; [`Progress`] tells its caller what happens.

mod blocks;
mod directory;
mod disk;
mod disk_work;
mod error;
mod estimate;
mod features;
pub mod files;
mod finish;
mod image;
mod journal;
mod leases;
mod plan;
mod planning;
pub mod point;
mod progress;
pub mod prune;
mod rate;
pub mod restore;
mod scan;
mod server_blocks;
pub mod threads;
mod transfer;
mod unit;
pub mod verify;
mod vm_backup;
mod work;

pub use directory::{BackupDir, VmDir};
pub use disk_work::api_path;
pub use error::BackupError;
pub use estimate::DiskEstimate;
pub use features::Features;
pub use progress::{DiskLabel, Event, Progress, Silent};
pub use rate::Rate;
pub use vm_backup::{Options, Outcome, VmBackup};
