//! The blocks that files reference, to tell what a deletion would free.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::DiskFile;
use super::executor::Access;
use super::map::{self, TRUSTED_FLAGS};
use crate::model::DiskSource;
use crate::model::exclusive::Reference;
use crate::sys::folder::Folder;
use crate::sys::{fiemap, fsinfo};

#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error("reading an extent map failed: {0}")]
    Io(#[from] io::Error),
    /// More than [`MAX_EXTENTS`].
    #[error("the files have more than {0} extents")]
    TooMany(usize),
    #[error("the client has disconnected")]
    Cancelled,
}

/// The most extents of all files of one disk: 80 bytes each.
const MAX_EXTENTS: usize = 1 << 20;

/// Collects the blocks of a disk and its snapshots.
pub struct Usage<'a> {
    access: &'a Access<'a>,
    stop: &'a AtomicBool,
    references: Vec<Reference>,
}

impl<'a> Usage<'a> {
    /// `stop` cancels it.
    pub fn new(access: &'a Access<'a>, stop: &'a AtomicBool) -> Self {
        Self { access, stop, references: Vec::new() }
    }

    /// Adds a snapshot's file for `owner`. Returns the bytes of it whose address is not known.
    pub fn add_snapshot(&mut self, disk: &DiskFile, owner: usize) -> Result<u64, UsageError> {
        self.add(disk.file(), owner)
    }

    /// Adds the VM's own disk in the repository `root` for `owner`, if it exists.
    pub fn add_live(&mut self, root: &Folder, source: &DiskSource, owner: usize) -> Result<(), UsageError> {
        match root.open_file(&source.path) {
            Ok(file) => self.add(&file, owner).map(drop),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub fn into_references(self) -> Vec<Reference> {
        self.references
    }

    fn add(&mut self, file: &File, owner: usize) -> Result<u64, UsageError> {
        // XFS reports exactly which runs are shared. OCFS2 goes on reporting runs as shared when they no longer are.
        let sharing_is_exact = fsinfo::name_of(file)? == "xfs";
        let mut reader = fiemap::Reader::new(map::reader_capacity(file)?.0);
        let (mut at, mut unknown, mut last_seen) = (0, 0, false);
        while !last_seen {
            self.access.progress();
            if self.stop.load(Ordering::Relaxed) {
                return Err(UsageError::Cancelled);
            }
            let extents = reader.read(file.as_fd(), at)?;
            if extents.is_empty() {
                break;
            }
            if self.references.len() + extents.len() > MAX_EXTENTS {
                return Err(UsageError::TooMany(MAX_EXTENTS));
            }
            for extent in extents {
                at = extent.logical.saturating_add(extent.length).max(at + 1);
                last_seen = extent.flags & fiemap::LAST != 0;
                // Reserved space counts, even if it was not written.
                if extent.flags & !TRUSTED_FLAGS != 0 || extent.physical == 0 {
                    unknown += extent.length;
                    continue;
                }
                let (start, end) = (extent.physical, extent.physical.saturating_add(extent.length));
                let shared = sharing_is_exact && extent.flags & fiemap::SHARED != 0;
                self.references.push(Reference { start, end, owner, shared });
            }
        }
        Ok(unknown)
    }
}
