//! Completes a disk after its transfer.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::blocks::{self, BLOCK, Blocks};
use super::error::{AtPath, BackupError, Result};
use super::image;
use super::plan;
use super::transfer::Disk;
use super::work::WorkDisk;
use crate::qcow2;
use crate::sys::folder::Folder;

/// Blocks that one thread takes at a time.
const BATCH: usize = 64;

/// Makes the zeros of the plan. Doing it twice is harmless.
pub fn apply_zeros(disk: &Disk) -> Result<()> {
    for range in disk.plan.zeros() {
        disk.image.zero(&range).at(&disk.file)?;
        disk.blocks.clear(plan::whole_blocks(&range, disk.size))?;
    }
    Ok(())
}

/// Puts the image and the checksums on stable storage. Returns the checksum of the disk.
pub fn finish(disk: &Disk, work: &WorkDisk, vm_directory: &Folder, threads: usize) -> Result<String> {
    disk.image.finish(vm_directory, &disk.file)?;
    let mut partial = disk.plan.partial_blocks(disk.size);
    let old_size = work.base.as_ref().map_or(disk.size, |base| base.disk.size);
    if let Some(cut) = Blocks::cut_by(old_size, disk.size).filter(|cut| *cut < disk.blocks.count()) {
        partial.push(cut);
    }
    if !partial.is_empty() {
        // The image is still in the partial directory, which is one level below the VM's, like the point.
        let mut file =
            std::path::PathBuf::from(disk.file.parent().and_then(|path| path.file_name()).unwrap_or_default());
        file.push(disk.file.file_name().unwrap_or_default());
        let reader = image::open(vm_directory, &file, work.disk.format)?;
        hash(&reader, disk, &partial, threads)?;
    }
    disk.blocks.sync()?;
    Ok(blocks::hex(&disk.blocks.checksum()?))
}

/// Writes the entries of blocks of which the transfer saw only a part.
fn hash(image: &qcow2::Image, disk: &Disk, numbers: &[u64], threads: usize) -> Result<()> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || -> Result<(), BackupError> {
        let mut buffer = vec![0; BLOCK as usize];
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = numbers.get(from..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            for number in &batch[..batch.len().min(BATCH)] {
                let range = disk.blocks.range(*number);
                let bytes = &mut buffer[..(range.end - range.start) as usize];
                image.read_at(range.start, bytes).map_err(io::Error::from).at(&disk.file)?;
                disk.blocks.write(*number, &[blocks::entry(bytes)])?;
            }
        }
    };
    let threads = if numbers.len() <= BATCH { 1 } else { threads.max(1) };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = work() {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
