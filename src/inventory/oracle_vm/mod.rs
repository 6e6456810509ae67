//! Oracle VM: `vm.cfg` defines a VM, `.ovsmeta` describes the files of a repository.

mod definitions;
pub mod ovsmeta;
mod python_literal;
pub mod vm_cfg;

pub use definitions::Definitions;
