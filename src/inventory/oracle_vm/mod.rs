//! Oracle VM: `vm.cfg` defines a VM, `.ovsmeta` describes the files of a repository.

pub mod definition;
mod definitions;
pub mod ovsmeta;
pub mod python_literal;
mod secrets;
pub mod vm_cfg;

pub use definitions::{Definitions, describe};
