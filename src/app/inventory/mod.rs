//! Repositories, the VMs they define, and the disks of those.

pub mod catalog;
pub mod claims;
pub mod disk_classifier;
pub mod disk_files;
pub mod disk_names;
pub mod list_repositories;
pub mod list_vms;
pub mod repositories;
pub mod shared;
