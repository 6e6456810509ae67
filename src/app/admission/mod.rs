//! Decides when work may start: queues, VM locks, and the policy.

mod client_rate;
mod export;
mod policy;
mod queue;
mod service;
mod vm_locks;
mod vm_mutexes;

pub use export::ExportClient;
pub(crate) use export::{Export, ExportDetails, ExportPermit};
pub(crate) use queue::{AdmissionQueue, Entry, Permit, Queued};
pub(crate) use service::{
    Admission, Admitted, CREATION_QUEUE, CREATION_QUEUE_OF_VM, CostRequest, Creation, EXPORT_QUEUE, LogIn,
};
pub(crate) use vm_locks::{LockMode, VmGuard, VmLocks};
