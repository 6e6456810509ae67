//! A disk that one client reads.

use std::sync::Arc;

use super::slot::ExportSlot;
use crate::repository::{DiskFile, OpenError, PageCachePolicy, Run};

/// Bytes of a disk to read, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The offset in the buffer.
    pub to: usize,
    /// The offset on the disk.
    pub at: u64,
    pub length: usize,
    /// The offset at which the sequential read ends that this is a part of.
    pub end: u64,
}

/// A disk of a snapshot that one client reads. All methods block.
///
/// An error means that the bytes are not known to be those of the snapshot: whoever sends them has to break off, and
/// never pads.
pub trait BlockExport: Send {
    /// What the disk has at the offset `at`: data or a hole, and up to where, but not past `limit`.
    ///
    /// # Errors
    /// [`OpenError`].
    fn allocation(&mut self, at: u64, limit: u64) -> Result<Run, OpenError>;

    /// Fills parts of `buffer`.
    ///
    /// # Errors
    /// [`OpenError`].
    fn read(&mut self, buffer: &mut [u8], reads: &[Read]) -> Result<(), OpenError>;

    /// Checks that the file still has the content that was snapshotted. A hole is not known to be one before that: the
    /// end of a file that was cut looks the same.
    ///
    /// # Errors
    /// [`OpenError`].
    fn verify(&mut self) -> Result<(), OpenError>;

    /// The reader asks for more.
    fn is_asked(&mut self);

    /// `bytes` were handed to the connection.
    fn sent(&mut self, bytes: u64);
}

/// A snapshot's file, read within a download's slot. The page cache keeps what it had before.
pub(super) struct DiskExport {
    pub file: Arc<DiskFile>,
    pub slot: ExportSlot,
    pub policy: PageCachePolicy,
}

impl BlockExport for DiskExport {
    fn allocation(&mut self, at: u64, limit: u64) -> Result<Run, OpenError> {
        self.slot.read(|access| Ok(self.file.run_at(access, at, limit)?))
    }

    fn read(&mut self, buffer: &mut [u8], reads: &[Read]) -> Result<(), OpenError> {
        let Self { file, slot, policy } = self;
        slot.read(|access| {
            for Read { to, at, length, end } in reads {
                policy.read(access, file, &mut buffer[*to..to + length], *at, *end)?;
            }
            Ok(())
        })
    }

    fn verify(&mut self) -> Result<(), OpenError> {
        self.slot.read(|access| self.file.verify_content(access))
    }

    fn is_asked(&mut self) {
        self.slot.permit.what().is_asked();
    }

    fn sent(&mut self, bytes: u64) {
        self.slot.permit.what().sent(bytes);
    }
}

impl Drop for DiskExport {
    fn drop(&mut self) {
        let Self { file, policy, .. } = self;
        file.executor().run_here_started(|access| policy.release(access, file, u64::MAX));
    }
}
