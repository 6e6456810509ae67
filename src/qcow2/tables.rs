//! The L1 and L2 tables of one image: where its clusters are in the file.
//!
//! The file is not trusted: every offset is checked before it is used. An image whose L1 table names more L2 tables
//! than the file has room for is refused, so that the work is limited by the size of the file.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::error::Problem;
use super::header::{Header, MAX_TABLE, SECTOR};
use super::table_cache::{BLOCK, Block, TableCache};

/// The cluster or table belongs to this table only. Without internal snapshots, always set by the writer.
pub const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Of an L2 entry: the cluster reads as zeros.
pub const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub const ENTRY_LEN: u64 = 8;

/// Where an image has the bytes from a position on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, from this offset on.
    Stored(u64),
    Zero,
    /// In the backing file. Without one, they are zeros.
    Below,
}

/// A part of the disk that an image has at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest bytes.
    pub range: Range<u64>,
    pub place: Place,
}

#[derive(Debug)]
pub struct Tables {
    file: File,
    len: u64,
    header: Header,
    /// The number of the file in its chain.
    number: usize,
    cache: Arc<TableCache>,
}

impl Tables {
    /// # Errors
    /// The header cannot be read, or the L1 table cannot be right.
    pub fn open(file: File, number: usize, cache: Arc<TableCache>) -> Result<Self, Problem> {
        let header = Header::read(&file)?;
        let tables = Self { len: file.metadata()?.len(), file, header, number, cache };
        tables.check_l1()?;
        Ok(tables)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The extent from `at` on, which must be less than the size of the disk. The next extent may be at the same place.
    pub fn extent_at(&self, at: u64) -> Result<Extent, Problem> {
        let table = at >> self.table_bits();
        let entries = self.entries(self.header.l1_offset, table, u64::from(self.header.l1_entries))?;
        let mut l1 = entries.iter();
        let (end, place) = match self.l2_offset(l1.next().unwrap_or(0))? {
            None => {
                let empty = 1 + l1.take_while(|entry| *entry == 0).count() as u64;
                ((table + empty) << self.table_bits(), Place::Below)
            }
            Some(l2) => self.clusters_at(l2, at)?,
        };
        Ok(Extent { range: at..end.min(self.header.size), place })
    }

    /// The end and the place of the extent at `at`, which the L2 table at `l2` has.
    fn clusters_at(&self, l2: u64, at: u64) -> Result<(u64, Place), Problem> {
        let (bits, per_table) = (self.header.cluster_bits, 1 << (self.header.cluster_bits - 3));
        let mut cluster = at >> bits;
        let entries = self.entries(l2, cluster % per_table, per_table)?;
        let mut entries = entries.iter();
        let place = self.place(entries.next().unwrap_or(0), cluster)?;
        let mut expected = place;
        loop {
            cluster += 1;
            if let Place::Stored(offset) = &mut expected {
                *offset += 1 << bits;
            }
            let next = match entries.next() {
                Some(entry) if cluster << bits < self.header.size => self.place(entry, cluster),
                _ => break,
            };
            // If the next entry is damaged, that is an error when it is read.
            if next.ok() != Some(expected) {
                break;
            }
        }
        let place = match place {
            Place::Stored(offset) => Place::Stored(offset + at % (1 << bits)),
            other => other,
        };
        Ok((cluster << bits, place))
    }

    /// Where a cluster is, by its entry of an L2 table.
    fn place(&self, entry: u64, cluster: u64) -> Result<Place, Problem> {
        if entry & COMPRESSED != 0 {
            return Err(Problem::Unsupported("compressed clusters"));
        }
        if entry & !(OFFSET | COPIED | ZERO) != 0 {
            return Err(Problem::Damaged("an L2 entry has bits that the format does not define"));
        }
        let offset = entry & OFFSET;
        if !offset.is_multiple_of(self.cluster()) {
            return Err(Problem::Damaged("an L2 entry leads into the middle of a cluster"));
        }
        if entry & ZERO != 0 {
            return match self.header.version {
                2 => Err(Problem::Damaged("an L2 entry has a bit that version 2 does not define")),
                _ => Ok(Place::Zero),
            };
        }
        if entry == 0 {
            return Ok(Place::Below);
        }
        // The first cluster has the header.
        if offset == 0 {
            return Err(Problem::Damaged("an L2 entry leads to the header"));
        }
        let used = (self.header.size - (cluster << self.header.cluster_bits)).min(self.cluster());
        self.check_end("a data cluster", offset, used)?;
        Ok(Place::Stored(offset))
    }

    /// Where an L2 table is, by its entry of the L1 table.
    fn l2_offset(&self, entry: u64) -> Result<Option<u64>, Problem> {
        if entry & !(OFFSET | COPIED) != 0 {
            return Err(Problem::Damaged("an L1 entry has bits that the format does not define"));
        }
        let offset = entry & OFFSET;
        if !offset.is_multiple_of(self.cluster()) {
            return Err(Problem::Damaged("an L1 entry leads into the middle of a cluster"));
        }
        if entry == 0 {
            return Ok(None);
        }
        if offset == 0 {
            return Err(Problem::Damaged("an L1 entry leads to the header"));
        }
        self.check_end("an L2 table", offset, self.cluster())?;
        Ok(Some(offset))
    }

    fn check_l1(&self) -> Result<(), Problem> {
        let header = &self.header;
        if header.size > i64::MAX as u64 || !header.size.is_multiple_of(SECTOR) {
            return Err(Problem::Damaged("the size of its disk is too large, or not a multiple of 512"));
        }
        let entries = u64::from(header.l1_entries);
        if entries * ENTRY_LEN > MAX_TABLE {
            return Err(Problem::TableTooLarge { entries: header.l1_entries, limit: MAX_TABLE });
        }
        if u128::from(entries) << self.table_bits() < u128::from(header.size) {
            return Err(Problem::Damaged("its L1 table is too short for the size of its disk"));
        }
        if entries == 0 {
            return Ok(());
        }
        if header.l1_offset == 0 || !header.l1_offset.is_multiple_of(self.cluster()) {
            return Err(Problem::Damaged("its L1 table is not at the start of a cluster"));
        }
        self.check_end("the L1 table", header.l1_offset, entries * ENTRY_LEN)?;
        let mut used = 0;
        let mut index = 0;
        while index < entries {
            // Not through the cache, of which a long table would fill all slots.
            let bytes =
                self.read_table(header.l1_offset + index * ENTRY_LEN, entries * ENTRY_LEN - index * ENTRY_LEN)?;
            for entry in bytes.chunks_exact(ENTRY_LEN as usize).map(number) {
                used += u64::from(self.l2_offset(entry)?.is_some());
            }
            index += bytes.len() as u64 / ENTRY_LEN;
        }
        if used > self.len / self.cluster() {
            return Err(Problem::Damaged("its L1 table names one L2 table several times"));
        }
        Ok(())
    }

    /// At most 64 KiB of a table.
    fn read_table(&self, offset: u64, len: u64) -> Result<Vec<u8>, Problem> {
        let mut bytes = vec![0; len.min(64 << 10) as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// The entries of a table from `index` on, as far as they are in one block.
    fn entries(&self, table: u64, index: u64, table_len: u64) -> Result<Entries, Problem> {
        let offset = table + index * ENTRY_LEN;
        let number = offset / BLOCK;
        let block = self.cache.get((self.number, number), || {
            let start = number * BLOCK;
            let mut bytes = vec![0; self.len.saturating_sub(start).min(BLOCK) as usize];
            self.file.read_exact_at(&mut bytes, start)?;
            Ok(bytes.into())
        })?;
        let end = offset + (table_len - index) * ENTRY_LEN;
        let within = |offset: u64| (offset - number * BLOCK).min(block.len() as u64) as usize;
        let range = within(offset)..within(end);
        if range.is_empty() {
            return Err(Problem::CutOff { what: "a table", end, len: self.len });
        }
        Ok(Entries { block, range })
    }

    fn check_end(&self, what: &'static str, offset: u64, used: u64) -> Result<(), Problem> {
        match offset.checked_add(used) {
            Some(end) if end <= self.len => Ok(()),
            end => Err(Problem::CutOff { what, end: end.unwrap_or(u64::MAX), len: self.len }),
        }
    }

    fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// An L2 table has the clusters of 2 to the power of this guest bytes.
    fn table_bits(&self) -> u32 {
        2 * self.header.cluster_bits - 3
    }
}

/// A part of a table.
struct Entries {
    block: Block,
    range: Range<usize>,
}

impl Entries {
    fn iter(&self) -> impl Iterator<Item = u64> {
        self.block[self.range.clone()].chunks_exact(ENTRY_LEN as usize).map(number)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
