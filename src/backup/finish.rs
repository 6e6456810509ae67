//! Completes a disk after its transfer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::blocks::{self, BLOCK, Blocks};
use super::directory::VmDir;
use super::disk::Disk;
use super::error::{AtPath, BackupError, Result};
use super::image;
use super::plan;
use super::work::{BaseDisk, WorkDisk};
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
///
/// # Errors
/// [`BackupError::Damaged`]: the base does not have its bytes any more.
pub fn finish(disk: &Disk, work: &WorkDisk, vm: &VmDir, vm_directory: &Folder, threads: usize) -> Result<String> {
    let vm_path = vm.path();
    disk.image.finish(vm_directory, &disk.file)?;
    let mut partial = disk.plan.partial_blocks(disk.size);
    let old_size = work.base.as_ref().map_or(disk.size, |base| base.disk.size);
    if let Some(cut) = Blocks::cut_by(old_size, disk.size).filter(|cut| *cut < disk.blocks.count()) {
        partial.push(cut);
    }
    // The image is still in the partial directory, which is one level below the VM's, like the point. It is opened in any
    // case: an image that cannot be read makes no point.
    let mut file = PathBuf::from(disk.file.parent().and_then(|path| path.file_name()).unwrap_or_default());
    file.push(disk.file.file_name().unwrap_or_default());
    let reader = image::open(vm_directory, &file, work.disk.format)?;
    let base = work.base.as_ref().map(|base| Base::open(vm_directory, base, vm_path)).transpose()?;
    hash(&reader, base.as_ref(), disk, &partial, threads)?;
    disk.blocks.sync()?;
    Ok(blocks::hex(&disk.blocks.checksum()?))
}

/// The disk that the image began as.
struct Base {
    image: qcow2::Image,
    blocks: Blocks,
    what: String,
}

impl Base {
    fn open(vm_directory: &Folder, base: &BaseDisk, vm_path: &Path) -> Result<Self> {
        let point = Path::new(&base.point);
        let image = image::open(vm_directory, &point.join(&base.disk.file), base.disk.format)?;
        let blocks = Blocks::open(&vm_path.join(point).join(&base.disk.checksum.file), base.disk.size)?;
        Ok(Self { image, blocks, what: format!("{} of the restore point {}", base.disk.name, base.point) })
    }

    /// The rest of a block that changes in a part is the base's. If the base has decayed there, a new checksum would hide
    /// that.
    fn check(&self, number: u64, buffer: &mut [u8]) -> Result<()> {
        if number >= self.blocks.count() {
            return Ok(());
        }
        let range = self.blocks.range(number);
        let bytes = &mut buffer[..(range.end - range.start) as usize];
        self.image.read_at(range.start, bytes).map_err(|error| BackupError::Damaged(error.to_string()))?;
        let found = blocks::entry(bytes);
        self.blocks.read(number..number + 1, |_, entry| {
            let problem = || format!("{}: the block at {} does not have its checksum", self.what, range.start);
            if found == entry { Ok(()) } else { Err(BackupError::Damaged(problem())) }
        })
    }
}

/// Writes the entries of blocks of which the transfer saw only a part.
fn hash(image: &qcow2::Image, base: Option<&Base>, disk: &Disk, numbers: &[u64], threads: usize) -> Result<()> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || -> Result<(), BackupError> {
        let mut buffer = vec![0; BLOCK as usize];
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = numbers.get(from..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            for number in &batch[..batch.len().min(BATCH)] {
                if let Some(base) = base {
                    base.check(*number, &mut buffer)?;
                }
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
