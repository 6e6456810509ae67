//! Which units of a disk are on disk.
//!
//! A record is written after the bytes, and neither is synced: after a crash the bytes that a record names are read
//! back and compared with its digest. So a record that is torn, or that came to disk before its bytes, costs only the
//! transfer of one unit.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::blocks::Digest;
use super::error::{AtPath, Result};
use super::files::FILE_MODE;
use super::plan::UNIT;

const RECORD: usize = 48;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub range: Range<u64>,
    pub digest: Digest,
}

pub struct Journal {
    file: File,
}

impl Journal {
    /// Opens or creates the journal at `path`, and calls `each` with its records. Those that cannot be ranges of a disk
    /// of `size` bytes are left out.
    pub fn open(path: &Path, size: u64, mut each: impl FnMut(Record) -> Result<()>) -> Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path).at(path)?;
        let length = file.metadata().at(path)?.len();
        let mut reader = BufReader::new(&file);
        for _ in 0..length / RECORD as u64 {
            let mut record = [0; RECORD];
            reader.read_exact(&mut record).at(path)?;
            if let Some(record) = decode(&record, size) {
                each(record)?;
            }
        }
        // New records must begin at a multiple of their length.
        file.set_len(length - length % RECORD as u64).at(path)?;
        Ok(Self { file })
    }

    pub fn append(&self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(records.len() * RECORD);
        for Record { range, digest } in records {
            bytes.extend(range.start.to_le_bytes());
            bytes.extend((range.end - range.start).to_le_bytes());
            bytes.extend(digest);
        }
        (&self.file).write_all(&bytes)
    }
}

fn decode(record: &[u8; RECORD], size: u64) -> Option<Record> {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let (start, length) = (number(&record[..8]), number(&record[8..16]));
    let end = start.checked_add(length).filter(|end| *end <= size && length > 0 && length <= UNIT)?;
    let digest = record[16..].try_into().ok()?;
    Some(Record { range: start..end, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_and_impossible_records_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let record = |start: u64| Record { range: start..start + 4096, digest: [7; 32] };
        let open = || {
            let mut records = Vec::new();
            let journal = Journal::open(&path, 1 << 30, |record| {
                records.push(record);
                Ok(())
            });
            (journal.unwrap(), records)
        };
        let (journal, records) = open();
        assert_eq!(records, []);
        journal.append(&[record(0), record(1 << 30), record(8192)]).unwrap();
        (&journal.file).write_all(b"torn").unwrap();
        let (journal, records) = open();
        assert_eq!(records, [record(0), record(8192)]);
        journal.append(&[record(4096)]).unwrap();
        assert_eq!(open().1, [record(0), record(8192), record(4096)]);
    }
}
