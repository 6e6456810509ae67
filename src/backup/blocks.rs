//! The checksums of a disk's blocks (docs/formats.md).
//!
//! A disk is verified block by block, against the file of checksums here and against those of the service. A block of
//! zeros has 32 zero bytes as its entry, so the file of a sparse disk is sparse too.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::error::{AtPath, Result};
use super::files;

/// Bytes of one block.
pub const BLOCK: u64 = 64 << 10;

/// Bytes of one entry.
const ENTRY: u64 = 32;

pub type Digest = [u8; 32];

/// The entry of a block that is all zeros.
pub const ZERO_ENTRY: Digest = [0; 32];

/// Entries that are read or written at a time.
const BATCH: u64 = 4096;

/// The entry of a block with these bytes.
pub fn entry(bytes: &[u8]) -> Digest {
    if files::is_zero(bytes) { ZERO_ENTRY } else { *blake3::hash(bytes).as_bytes() }
}

/// The file of the entries of one disk.
pub struct Blocks {
    path: PathBuf,
    file: File,
    /// Of the disk.
    size: u64,
}

impl Blocks {
    /// Creates the entries of a disk of zeros.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let file = files::create_new(path).at(path)?;
        file.set_len(size.div_ceil(BLOCK) * ENTRY).at(path)?;
        Ok(Self { path: path.to_owned(), file, size })
    }

    /// Makes a new file from the one of an older disk, which had `old_size` bytes. The entry of a block that is cut by
    /// one of the sizes must be written again; see [`Blocks::cut_by`].
    pub fn derive(base: &Path, path: &Path, size: u64) -> Result<Self> {
        if !files::clone(base, path).at(path)? {
            std::fs::copy(base, path).at(path)?;
        }
        let file = files::open_rw(path).at(path)?;
        file.set_len(size.div_ceil(BLOCK) * ENTRY).at(path)?;
        Ok(Self { path: path.to_owned(), file, size })
    }

    /// The block whose length differs between a disk of `old` bytes and one of `new` bytes.
    pub fn cut_by(old: u64, new: u64) -> Option<u64> {
        let cut = old.min(new);
        (old != new && !cut.is_multiple_of(BLOCK)).then_some(cut / BLOCK)
    }

    pub fn open(path: &Path, size: u64) -> Result<Self> {
        let file = File::open(path).at(path)?;
        let length = file.metadata().at(path)?.len();
        if length != size.div_ceil(BLOCK) * ENTRY {
            let problem = format!("has {length} bytes, not the checksums of a disk of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem)).at(path);
        }
        Ok(Self { path: path.to_owned(), file, size })
    }

    pub fn count(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// The bytes of a block. The last one may be shorter.
    pub fn range(&self, block: u64) -> Range<u64> {
        let start = block * BLOCK;
        start..self.size.min(start + BLOCK)
    }

    pub fn write(&self, first: u64, entries: &[Digest]) -> Result<()> {
        self.file.write_all_at(entries.as_flattened(), first * ENTRY).at(&self.path)
    }

    /// Sets the entries of blocks that became zeros.
    pub fn clear(&self, blocks: Range<u64>) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        files::punch(&self.file, blocks.start * ENTRY, blocks.end * ENTRY).at(&self.path)
    }

    /// Calls `each` with the entries of `blocks`, in order.
    pub fn read(&self, blocks: Range<u64>, mut each: impl FnMut(u64, Digest) -> Result<()>) -> Result<()> {
        let mut buffer = vec![ZERO_ENTRY; BATCH as usize];
        let mut at = blocks.start;
        while at < blocks.end {
            let entries = &mut buffer[..(blocks.end - at).min(BATCH) as usize];
            self.file.read_exact_at(entries.as_flattened_mut(), at * ENTRY).at(&self.path)?;
            for entry in entries.iter() {
                each(at, *entry)?;
                at += 1;
            }
        }
        Ok(())
    }

    /// The checksums of `blocks`, as the service computes them.
    pub fn digests(&self, blocks: Range<u64>) -> Result<Vec<Digest>> {
        let mut digests = Vec::with_capacity((blocks.end - blocks.start) as usize);
        self.read(blocks, |block, entry| {
            digests.push(self.digest_of(block, entry));
            Ok(())
        })?;
        Ok(digests)
    }

    /// The checksum of a block that has `entry`, as the service computes it.
    pub fn digest_of(&self, block: u64, entry: Digest) -> Digest {
        if entry != ZERO_ENTRY {
            return entry;
        }
        let range = self.range(block);
        digest_of_zeros(range.end - range.start)
    }

    /// The checksum of the disk: the BLAKE3 of its blocks' checksums, as the service computes it.
    pub fn checksum(&self) -> Result<Digest> {
        let mut hasher = blake3::Hasher::new();
        let mut batch = Vec::with_capacity(BATCH as usize);
        self.read(0..self.count(), |block, entry| {
            batch.push(self.digest_of(block, entry));
            if batch.len() == batch.capacity() {
                hasher.update(batch.as_flattened());
                batch.clear();
            }
            Ok(())
        })?;
        hasher.update(batch.as_flattened());
        Ok(*hasher.finalize().as_bytes())
    }

    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().at(&self.path)
    }
}

/// The checksum of a block of `length` zeros.
pub fn digest_of_zeros(length: u64) -> Digest {
    static WHOLE: LazyLock<Digest> = LazyLock::new(|| zeros(BLOCK));
    if length == BLOCK { *WHOLE } else { zeros(length) }
}

fn zeros(length: u64) -> Digest {
    *blake3::hash(&vec![0; length as usize]).as_bytes()
}

/// Hexadecimal, for documents and messages.
pub fn hex(digest: &Digest) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_blocks_checksums() {
        let folder = tempfile::tempdir().unwrap();
        let size = 3 * BLOCK + 1000;
        let mut disk = vec![0_u8; size as usize];
        disk[BLOCK as usize..][..5].copy_from_slice(b"hello");
        let blocks = Blocks::create(&folder.path().join("a"), size).unwrap();
        let expected: Vec<Digest> = disk.chunks(BLOCK as usize).map(|block| *blake3::hash(block).as_bytes()).collect();
        for (number, block) in disk.chunks(BLOCK as usize).enumerate() {
            blocks.write(number as u64, &[entry(block)]).unwrap();
        }
        assert_eq!(blocks.checksum().unwrap(), *blake3::hash(expected.as_flattened()).as_bytes());
        blocks.clear(1..2).unwrap();
        let mut entries = Vec::new();
        blocks
            .read(0..4, |_, entry| {
                entries.push(entry);
                Ok(())
            })
            .unwrap();
        assert_eq!(entries, [ZERO_ENTRY; 4]);
    }

    #[test]
    fn a_block_that_is_cut_has_another_checksum() {
        assert_eq!(Blocks::cut_by(BLOCK + 1, 5 * BLOCK), Some(1));
        assert_eq!(Blocks::cut_by(5 * BLOCK, BLOCK + 1), Some(1));
        assert_eq!(Blocks::cut_by(BLOCK, 5 * BLOCK), None);
        assert_eq!(Blocks::cut_by(7, 7), None);
    }
}
