//! The names that Oracle VM gives folders and files of a repository.

/// The folder of the disks.
pub const VIRTUAL_DISKS: &str = "VirtualDisks";

/// The folder of the VM definitions, with one folder per VM.
pub const VIRTUAL_MACHINES: &str = "VirtualMachines";

/// A folder with one of these is a repository.
pub const CONTENT: [&str; 2] = [VIRTUAL_DISKS, VIRTUAL_MACHINES];

/// The file in a VM's folder that defines it.
pub const VM_CFG: &str = "vm.cfg";

/// The manager's notes on the files of the repository.
pub const OVSMETA: &str = ".ovsmeta";
