//! Who may work, and when: the queues, the locks of VMs, and the policy.

pub mod policy;
pub mod queue;
pub mod vm_guard;
pub mod vm_locks;
