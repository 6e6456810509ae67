//! A database file whose changes are kept in memory. redb repairs a database when it opens one; on this backend the
//! file stays as it is.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::sys::file_lock::LockFile;

const BLOCK: u64 = 4096;

#[derive(Debug)]
pub(super) struct Overlay {
    file: LockFile,
    changes: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    length: u64,
    /// Beyond this the file's bytes do not count: the database was shorter in between.
    of_file: u64,
    /// Changed blocks by number.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    pub(super) fn new(file: LockFile) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, changes: Mutex::new(Changes { length, of_file: length, blocks: BTreeMap::new() }) })
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the file. Zeros where it has none.
    fn read_file(&self, offset: u64, of_file: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(of_file.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (bytes, zeros) = out.split_at_mut(there);
        zeros.fill(0);
        self.file.read_exact_at(bytes, offset)
    }
}

/// The parts of a range by block: the number of the block, the first byte in it, and the part of the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % BLOCK) as usize;
        let count = (BLOCK as usize - within).min(length - done);
        let part = done..done + count;
        done += count;
        (count > 0).then_some((at / BLOCK, within, part))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changes().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changes = self.changes();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > changes.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, within, part) in parts(offset, out.len()) {
            let out = &mut out[part];
            match changes.blocks.get(&number) {
                Some(block) => out.copy_from_slice(&block[within..within + out.len()]),
                None => self.read_file(number * BLOCK + within as u64, changes.of_file, out)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut changes = self.changes();
        if length < changes.length {
            changes.of_file = changes.of_file.min(length);
            drop(changes.blocks.split_off(&length.div_ceil(BLOCK)));
            if let Some(last) = changes.blocks.get_mut(&(length / BLOCK)) {
                last[(length % BLOCK) as usize..].fill(0);
            }
        }
        changes.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.changes();
        for (number, within, part) in parts(offset, data.len()) {
            if !changes.blocks.contains_key(&number) {
                let mut block = vec![0; BLOCK as usize];
                self.read_file(number * BLOCK, changes.of_file, &mut block)?;
                changes.blocks.insert(number, block);
            }
            if let Some(block) = changes.blocks.get_mut(&number) {
                let data = &data[part];
                block[within..within + data.len()].copy_from_slice(data);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn reads_are_those_of_a_file_that_stays_as_it_is() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        file.write_all(&content).unwrap();
        let overlay = Overlay::new(LockFile::new(file.try_clone().unwrap())).unwrap();
        // What a file would contain.
        let mut expected = content.clone();
        let check = |expected: &[u8]| {
            let mut found = vec![1; expected.len()];
            overlay.read(0, &mut found).unwrap();
            assert!(found == expected && overlay.len().unwrap() == expected.len() as u64);
            assert!(overlay.read(1, &mut found).is_err(), "a read beyond the end");
        };
        check(&expected);
        overlay.write(4000, &[7; 200]).unwrap();
        expected[4000..4200].fill(7);
        check(&expected);
        for length in [4100, 9000, 20_000] {
            overlay.set_len(length).unwrap();
            expected.resize(length as usize, 0);
            check(&expected);
        }
        overlay.write(19_990, &[9; 10]).unwrap();
        expected[19_990..].fill(9);
        check(&expected);
        let mut kept = vec![0; content.len()];
        file.read_exact_at(&mut kept, 0).unwrap();
        assert!(kept == content && file.metadata().unwrap().len() == 10_000, "the file was changed");
    }
}
