//! Oracle VM: `vm.cfg` defines a VM, `.ovsmeta` describes the files of a repository.

mod definition;
mod definitions;
pub mod ovsmeta;
mod python_literal;
mod secrets;
pub mod vm_cfg;

pub use definitions::{Definitions, describe};
