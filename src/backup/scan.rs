//! Reads a disk of a restore point, and compares every block with its checksum.

use std::ops::Range;
use std::path::Path;

use super::blocks::{self, BLOCK, Blocks};
use super::error::{BackupError, Result};
use super::image;
use super::point::{PointDisk, StoredPoint};
use crate::client::{Cancel, ClientError};
use crate::model::ByteRange;
use crate::qcow2::{Content, Image, ImageError};
use crate::sys::folder::Folder;

/// Bytes that are read at a time.
const STEP: u64 = 1 << 20;

/// Blocks of a disk: the bytes, unless they are zeros.
pub struct Block<'a> {
    pub range: Range<u64>,
    pub bytes: Option<&'a [u8]>,
    /// Whether the block has its checksum.
    pub is_right: bool,
}

/// A disk of a point, opened for reading.
pub struct DiskReader {
    image: Image,
    blocks: Blocks,
    size: u64,
}

impl DiskReader {
    /// `vm_directory` is the directory of the VM.
    ///
    /// # Errors
    /// A file is missing, or has another length than it should have.
    pub fn open(vm_directory: &Folder, stored: &StoredPoint, disk: &PointDisk) -> Result<Self> {
        let image = image::open(vm_directory, &Path::new(&stored.point.id).join(&disk.file), disk.format)?;
        // A qcow2 image counts sectors.
        let (found, size) = (image.size(), disk.size);
        if found != size && found != size.next_multiple_of(512) {
            let problem = format!("{}: has {found} bytes instead of {size}", stored.path(&disk.file).display());
            return Err(BackupError::Damaged(problem));
        }
        let path = stored.path(&disk.checksum.file);
        let blocks = Blocks::open(&path, size)?;
        if blocks::hex(&blocks.checksum()?) != disk.checksum.value {
            return Err(BackupError::Damaged(format!("{}: the checksums of the blocks have changed", path.display())));
        }
        Ok(Self { image, blocks, size })
    }

    /// The ranges of blocks that are not zeros, in order.
    pub fn data(&self) -> Result<Vec<ByteRange>> {
        let mut data: Vec<ByteRange> = Vec::new();
        self.blocks.read(0..self.blocks.count(), |block, entry| {
            let Range { start, end } = self.blocks.range(block);
            if entry != blocks::ZERO_ENTRY {
                match data.last_mut() {
                    Some(last) if last.end() == start => *last = ByteRange::new(last.start(), end).unwrap_or(*last),
                    _ => data.extend(ByteRange::new(start, end)),
                }
            }
            Ok(())
        })?;
        Ok(data)
    }

    /// Calls `each` with every block, in order.
    ///
    /// # Errors
    /// The disk cannot be read, or `each` fails. A block with another checksum is no error here.
    pub fn scan(&self, cancel: &Cancel, each: &mut dyn FnMut(Block<'_>) -> Result<()>) -> Result<()> {
        let mut stored = self.image.runs().peekable();
        let mut buffer = vec![0; STEP as usize];
        let mut start = 0;
        while start < self.size {
            if cancel.is_cancelled() {
                return Err(ClientError::Cancelled.into());
            }
            let end = self.size.min(start + STEP);
            let has_data = has_data(&mut stored, start, end)?;
            let bytes = &mut buffer[..(end - start) as usize];
            if has_data {
                self.image.read_at(start, bytes).map_err(damaged)?;
            }
            let numbers = start / BLOCK..end.div_ceil(BLOCK);
            self.blocks.read(numbers, |number, entry| {
                let range = self.blocks.range(number);
                let bytes = &bytes[(range.start - start) as usize..(range.end - start) as usize];
                let found = if has_data { blocks::entry(bytes) } else { blocks::ZERO_ENTRY };
                let bytes = (found != blocks::ZERO_ENTRY).then_some(bytes);
                each(Block { range, bytes, is_right: found == entry })
            })?;
            start = end;
        }
        Ok(())
    }
}

/// Whether a run of data lies within the range. Runs before it are dropped.
fn has_data(
    runs: &mut std::iter::Peekable<impl Iterator<Item = Result<(ByteRange, Content), ImageError>>>,
    start: u64,
    end: u64,
) -> Result<bool> {
    loop {
        match runs.peek() {
            Some(Ok((range, _))) if range.start() >= end => return Ok(false),
            Some(Ok((range, Content::Data))) if range.end() > start => return Ok(true),
            Some(_) => match runs.next() {
                // A run of zeros that reaches further is needed no more: what follows it begins at its end.
                Some(Ok(_)) | None => {}
                Some(Err(error)) => return Err(damaged(error)),
            },
            None => return Ok(false),
        }
    }
}

fn damaged(error: ImageError) -> BackupError {
    BackupError::Damaged(error.to_string())
}
