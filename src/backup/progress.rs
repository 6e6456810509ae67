//! What the engine tells its caller while it works.

use std::sync::Arc;

/// A VM and one of its disks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskLabel {
    pub vm: Arc<str>,
    pub disk: Arc<str>,
}

#[derive(Debug)]
pub enum Event<'a> {
    /// For people: what the work on a VM is about now.
    Step {
        vm: &'a str,
        text: String,
    },
    /// Something that the user should know, although the work goes on.
    Note {
        vm: &'a str,
        text: String,
    },
    /// Work on a disk begins: this many bytes are to come.
    DiskStarted {
        disk: &'a DiskLabel,
        bytes: u64,
    },
    /// More bytes are done.
    Advanced {
        disk: &'a DiskLabel,
        bytes: u64,
    },
    DiskDone {
        disk: &'a DiskLabel,
    },
    /// A request failed, and is made again.
    Retried {
        disk: &'a DiskLabel,
        error: &'a str,
    },
}

/// Called from several threads.
pub trait Progress: Send + Sync {
    fn event(&self, event: &Event<'_>);
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: &Event<'_>) {}
}
