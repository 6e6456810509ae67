//! The inventory: repositories, their VMs, and the VMs' disks.

mod access;
mod catalog;
mod claims;
mod completeness;
mod disk_classifier;
mod disk_files;
mod disk_names;
mod list_repositories;
mod list_vms;
mod repositories;
mod service;
mod shared;
mod unsearched;
mod view;

pub(crate) use disk_classifier::{DiskDecision, choose, classify};
pub(crate) use repositories::{Repositories, RepositorySet, RepositoryState, below_a_repository};
pub use service::Inventory;
pub(crate) use unsearched::{Unsearched, UnsearchedPart};
pub(crate) use view::{NO_SUCH_SNAPSHOT, View};
