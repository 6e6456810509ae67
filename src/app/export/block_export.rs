//! A disk that one client reads.

use std::sync::Arc;

use super::slot::ExportSlot;
use crate::repository::{DiskFile, OpenError, PageCachePolicy, Read, Run};

/// A disk of a snapshot that one client reads. All methods block.
///
/// After an error, the bytes may differ from the snapshot: the caller must stop sending, and must not pad the body.
pub trait BlockExport: Send {
    /// Whether the disk has data or a hole at the offset `at`, and where that ends, at most at `limit`.
    fn allocation(&mut self, at: u64, limit: u64) -> Result<Run, OpenError>;

    /// Fills parts of `buffer`. With `and_verify`, then does what [`BlockExport::verify`] does.
    fn read(&mut self, buffer: &mut [u8], reads: &[Read], and_verify: bool) -> Result<(), OpenError>;

    /// Checks that the file still has the content of the snapshot. Call it before sending a hole: the end of a
    /// truncated file looks like a hole too.
    fn verify(&mut self) -> Result<(), OpenError>;

    /// The connection asks for more.
    fn client_ready(&mut self);

    /// `bytes` were handed to the connection.
    fn sent(&mut self, bytes: u64);
}

/// A snapshot's file, read within a download's slot. Reading leaves the page cache as it was.
pub(super) struct DiskExport {
    pub file: Arc<DiskFile>,
    pub slot: ExportSlot,
    pub policy: PageCachePolicy,
}

impl BlockExport for DiskExport {
    fn allocation(&mut self, at: u64, limit: u64) -> Result<Run, OpenError> {
        self.slot.read(|access| Ok(self.file.run_at(access, at, limit)?))
    }

    fn read(&mut self, buffer: &mut [u8], reads: &[Read], and_verify: bool) -> Result<(), OpenError> {
        let Self { file, slot, policy } = self;
        slot.read(|access| {
            policy.read(access, file, buffer, reads)?;
            if and_verify { file.verify_content(access) } else { Ok(()) }
        })
    }

    fn verify(&mut self) -> Result<(), OpenError> {
        self.slot.read(|access| self.file.verify_content(access))
    }

    fn client_ready(&mut self) {
        self.slot.permit.work().client_ready();
    }

    fn sent(&mut self, bytes: u64) {
        self.slot.permit.work().sent(bytes);
    }
}

impl Drop for DiskExport {
    fn drop(&mut self) {
        let Self { file, policy, .. } = self;
        file.executor().run_here_started(|access| policy.release(access, file, u64::MAX));
    }
}
