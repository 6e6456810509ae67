//! Completes a disk after its transfer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::blocks::{self, BLOCK, Blocks};
use super::directory::VmDir;
use super::disk::Disk;
use super::error::{AtPath, BackupError, Result};
use super::image;
use super::plan;
use super::threads;
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
    let image = image::open(vm_directory, &file, work.disk.format)?;
    let base = work.base.as_ref().map(|base| Base::open(vm_directory, base, vm_path)).transpose()?;
    hash(&Hashing { disk, image, base }, &partial, threads)?;
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

    /// Reads the bytes of a block, and compares them with its entry: if the base has decayed there, the entry of a block
    /// that changes in a part would hide that.
    fn read(&self, number: u64, buffer: &mut [u8]) -> Result<()> {
        let start = self.blocks.range(number).start;
        self.image.read_at(start, buffer).map_err(|error| BackupError::Damaged(error.to_string()))?;
        let found = blocks::entry(buffer);
        self.blocks.read(number..number + 1, |_, entry| {
            let problem = || format!("{}: the block at {start} does not have its checksum", self.what);
            if found == entry { Ok(()) } else { Err(BackupError::Damaged(problem())) }
        })
    }
}

/// A disk of which some entries are missing.
struct Hashing<'a> {
    disk: &'a Disk,
    image: qcow2::Image,
    base: Option<Base>,
}

impl Hashing<'_> {
    /// The bytes of a block, in `buffer`.
    fn read<'b>(&self, number: u64, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
        let disk = self.disk;
        let range = disk.blocks.range(number);
        let bytes = &mut buffer[..(range.end - range.start) as usize];
        match &self.base {
            Some(base) if number < base.blocks.count() && base.blocks.range(number) == range => {
                base.read(number, bytes)?;
                // The image shares the rest with its base. A second reading of that would not find the first one's pages.
                for (part, is_zero) in disk.plan.within(range.clone()) {
                    let part_bytes = &mut bytes[(part.start - range.start) as usize..(part.end - range.start) as usize];
                    if is_zero {
                        part_bytes.fill(0);
                    } else {
                        disk.image.read(part.start, part_bytes).at(&disk.file)?;
                    }
                }
            }
            base => {
                if let Some(base) = base.as_ref().filter(|base| number < base.blocks.count()) {
                    let range = base.blocks.range(number);
                    base.read(number, &mut vec![0; (range.end - range.start) as usize])?;
                }
                self.image.read_at(range.start, bytes).map_err(io::Error::from).at(&disk.file)?;
            }
        }
        Ok(bytes)
    }
}

/// Writes the entries of blocks of which the transfer saw only a part.
fn hash(hashing: &Hashing<'_>, numbers: &[u64], threads: usize) -> Result<()> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || -> Result<(), BackupError> {
        let mut buffer = vec![0; BLOCK as usize];
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = numbers.get(from..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            for number in &batch[..batch.len().min(BATCH)] {
                let entry = blocks::entry(hashing.read(*number, &mut buffer)?);
                hashing.disk.blocks.write(*number, &[entry])?;
            }
        }
    };
    threads::share("hash", threads.min(numbers.len().div_ceil(BATCH)), || {
        if let Err(error) = work() {
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
