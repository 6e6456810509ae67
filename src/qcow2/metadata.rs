//! Writes the header and the tables of an image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{BackingFile, Header, RefcountTable};
use super::layout::Layout;
use super::run::SpanKind;
use super::tables::{COPIED, ENTRY_LEN, ZERO};

/// Bytes of a table that are written at once.
const BUFFER: usize = 1 << 20;
/// Longer stretches of a table without entries stay holes.
const LARGEST_GAP: u64 = 1024;
/// The first bytes of the header, without which a file is no image.
const MAGIC_LEN: usize = 8;

impl Layout {
    /// Sets the length of the file and writes all tables, but not the header. The file must be empty, or have been begun
    /// with the same layout; then its data stays.
    pub fn write_metadata(&self, file: &File) -> io::Result<()> {
        file.set_len(self.file_len())?;
        self.write_refcounts(file)?;
        let regions = &self.regions;
        let per_table = regions.cluster() / ENTRY_LEN;
        let (mut l1, mut l2) = (Table::new(file, regions.l1), Table::new(file, regions.l2));
        let (mut tables, mut open_table) = (0, None);
        for span in self.spans() {
            for (cluster, number) in span.clusters.zip(0..) {
                let table = cluster / per_table;
                if open_table != Some(table) {
                    l1.put(table, (regions.l2 + tables * regions.cluster()) | COPIED)?;
                    tables += 1;
                    open_table = Some(table);
                }
                let entry = match span.kind {
                    SpanKind::Allocated(first) => (regions.data + (first + number) * regions.cluster()) | COPIED,
                    SpanKind::Zero => ZERO,
                };
                l2.put((tables - 1) * per_table + cluster % per_table, entry)?;
            }
        }
        l1.flush()?;
        l2.flush()
    }

    /// Writes the header, after all other bytes are on stable storage. Until this has ended, readers refuse the file.
    pub fn finish(&self, file: &File) -> io::Result<()> {
        let regions = &self.regions;
        let backing =
            self.backing.as_ref().map(|backing| BackingFile { name: backing.file.clone(), format: backing.format });
        let header = Header {
            version: 3,
            cluster_bits: regions.cluster_bits,
            size: self.size,
            l1_offset: regions.l1,
            l1_entries: regions.l1_entries as u32,
            backing,
        };
        let clusters = regions.refcount_table_len() / regions.cluster();
        let bytes = header.encode(RefcountTable { offset: regions.refcount_table, clusters: clusters as u32 });
        file.write_all_at(&bytes[MAGIC_LEN..], MAGIC_LEN as u64)?;
        file.sync_all()?;
        file.write_all_at(&bytes[..MAGIC_LEN], 0)?;
        file.sync_all()
    }

    /// Each cluster of the file is used once.
    fn write_refcounts(&self, file: &File) -> io::Result<()> {
        let regions = &self.regions;
        let ones = [0, 1].repeat(BUFFER / 2);
        let (mut at, end) = (regions.refcounts, regions.refcounts + regions.end / regions.cluster() * 2);
        while at < end {
            let len = (end - at).min(BUFFER as u64);
            file.write_all_at(&ones[..len as usize], at)?;
            at += len;
        }
        let mut table = Table::new(file, regions.refcount_table);
        for block in 0..regions.refcount_blocks {
            table.put(block, regions.refcounts + block * regions.cluster())?;
        }
        table.flush()
    }
}

/// Writes the entries of a table in ascending order.
struct Table<'a> {
    file: &'a File,
    /// Offset in the file.
    offset: u64,
    /// Index of the first entry in the buffer.
    start: u64,
    buffer: Vec<u8>,
}

impl<'a> Table<'a> {
    fn new(file: &'a File, offset: u64) -> Self {
        Self { file, offset, start: 0, buffer: Vec::new() }
    }

    fn put(&mut self, index: u64, entry: u64) -> io::Result<()> {
        let end = self.start + self.buffer.len() as u64 / ENTRY_LEN;
        if index - end > LARGEST_GAP || self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        if self.buffer.is_empty() {
            self.start = index;
        }
        self.buffer.resize(((index - self.start) * ENTRY_LEN) as usize, 0);
        self.buffer.extend(entry.to_be_bytes());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.offset + self.start * ENTRY_LEN)?;
        self.buffer.clear();
        Ok(())
    }
}
