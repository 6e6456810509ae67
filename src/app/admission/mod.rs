//! Who may work, and when: the queues for creations and downloads, the locks of VMs, and the policy.

mod client_rate;
mod export;
mod policy;
mod queue;
mod service;
mod vm_locks;
mod vm_mutexes;

pub use export::ExportClient;
pub(crate) use export::{Export, ExportDetails, ExportPermit};
pub(crate) use queue::{AdmissionQueue, Entry, Queued};
pub(crate) use service::{Admission, Admitted, Creation};
pub(crate) use vm_locks::{LockMode, VmGuard, VmLocks};
