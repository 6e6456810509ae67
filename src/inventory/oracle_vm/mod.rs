//! Oracle VM: `vm.cfg` defines a VM, `.ovsmeta` describes the files of a repository,
//! loop devices show what runs.

pub mod definition;
mod definitions;
pub mod loop_devices;
pub mod ovsmeta;
pub mod python_literal;
mod secrets;
pub mod vm_cfg;

pub use definitions::{Definitions, describe};
