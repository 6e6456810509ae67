//! Reads all pairs of a Berkeley DB hash file without libdb.
//!
//! The layout is described in libdb's `dbinc/db_page.h`. A hash file consists of pages of the same size. Page 0 has the
//! metadata; hash pages contain keys and values, and overflow pages contain long ones. Hash pages are found by their
//! type, so buckets and the hash function do not matter.
//!
//! The file is not trusted: every offset is checked, no length is allocated before its bytes exist, and an overflow
//! page belongs to only one item, so that the work is limited by the size of the file.

mod page;

use page::{Layout, Page, field};

const PAGE_FREE: u8 = 0;
const PAGE_HASH_UNSORTED: u8 = 2;
const PAGE_OVERFLOW: u8 = 7;
const PAGE_HASH: u8 = 13;

const ITEM_DATA: u8 = 1;
const ITEM_DUPLICATES: u8 = 2;
const ITEM_OFF_PAGE: u8 = 3;
const ITEM_OFF_PAGE_DUPLICATES: u8 = 4;

/// Why a file is not a readable hash file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDatabase {
    #[error("is empty, which even a database without pairs is not")]
    Empty,
    #[error("has only {len} bytes, less than the first page of any database")]
    NoMetaPage { len: usize },
    #[error("starts with zeros: it was never written, or lost in a crash")]
    Zeros,
    #[error("is text, not a Berkeley DB file")]
    Text,
    #[error("is not a Berkeley DB file (magic number {magic:#010x})")]
    NotBerkeleyDb {
        /// As little-endian.
        magic: u32,
    },
    #[error("is a Berkeley DB {method} file; expected a hash file")]
    OtherMethod { method: &'static str },
    #[error("contains several databases (sub-databases); expected one")]
    Subdatabases,
    #[error("is partitioned: its pairs are in other files")]
    Partitioned,
    #[error("is encrypted")]
    Encrypted,
    #[error("is a hash file of version {version}; expected 8, 9 or 10")]
    Version { version: u32 },
    #[error("has pages of {size} bytes; expected a power of two from 512 to 65536")]
    PageSize { size: u32 },
    #[error("is cut off: has {len} bytes, but its pages need {expected}")]
    Truncated {
        len: usize,
        /// By the metadata.
        expected: u64,
    },
    #[error("has several values for one key (page {page}); expected one")]
    Duplicates { page: u32 },
    #[error("has the same key twice: it is damaged, or was being written")]
    SameKey,
    #[error("is damaged, or was being written: page {page}: {reason}")]
    Page { page: u32, reason: &'static str },
}

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// All pairs of a database, sorted by key.
///
/// # Errors
/// A page cannot be read. An incomplete list would be worse than none.
pub fn pairs(file: &[u8]) -> Result<Vec<Pair>, BadDatabase> {
    let mut reader = Reader { layout: Layout::of(file)?, taken: Vec::new() };
    reader.taken.resize(reader.layout.page_count(), false);
    let mut pairs = Vec::new();
    for number in 1..=reader.layout.last_page {
        reader.page(number, &mut pairs)?;
    }
    pairs.sort();
    if pairs.windows(2).any(|two| two[0].0 == two[1].0) {
        return Err(BadDatabase::SameKey);
    }
    Ok(pairs)
}

/// The number of pairs in the metadata. With locks, as in Python 2's `bsddb.hashopen`, libdb does not update it: then
/// it is 0, or outdated.
pub fn element_count(file: &[u8]) -> Result<u32, BadDatabase> {
    Layout::of(file).map(|layout| layout.elements)
}

struct Reader<'a> {
    layout: Layout<'a>,
    /// Overflow pages that belong to an item already, by page number.
    taken: Vec<bool>,
}

impl Reader<'_> {
    fn page(&mut self, number: u32, pairs: &mut Vec<Pair>) -> Result<(), BadDatabase> {
        let page = self.layout.page(number)?;
        match page.page_type() {
            PAGE_HASH | PAGE_HASH_UNSORTED => {}
            // Overflow pages are read with their items.
            PAGE_FREE | PAGE_OVERFLOW => return Ok(()),
            // Trees of duplicates. The item that names them is refused.
            3..=6 | 12 => return Ok(()),
            _ => return Err(page.bad("has an unexpected type")),
        }
        page.check()?;
        for pair in page.items()?.chunks_exact(2) {
            pairs.push((self.item(&page, pair[0])?, self.item(&page, pair[1])?));
        }
        Ok(())
    }

    fn item(&mut self, page: &Page<'_>, item: &[u8]) -> Result<Vec<u8>, BadDatabase> {
        match item.split_first() {
            Some((&ITEM_DATA, data)) => Ok(data.to_vec()),
            Some((&ITEM_OFF_PAGE, _)) => self.overflow(page.u32_of(item, 4)?, page.u32_of(item, 8)?),
            Some((&(ITEM_DUPLICATES | ITEM_OFF_PAGE_DUPLICATES), _)) => {
                Err(BadDatabase::Duplicates { page: page.number })
            }
            _ => Err(page.bad("has an item of an unknown kind")),
        }
    }

    /// Reads `len` bytes from a chain of overflow pages.
    fn overflow(&mut self, first: u32, len: u32) -> Result<Vec<u8>, BadDatabase> {
        let mut data = Vec::new();
        let mut next = first;
        while next != 0 {
            let page = self.layout.page(next)?;
            if page.page_type() != PAGE_OVERFLOW {
                return Err(page.bad("is not an overflow page, but an item continues there"));
            }
            page.check()?;
            match self.taken.get_mut(next as usize) {
                Some(taken) if !*taken => *taken = true,
                _ => return Err(page.bad("belongs to two items, or twice to one")),
            }
            let end = page.header + usize::from(page.u16(field::DATA_LEN)?);
            data.extend_from_slice(
                page.bytes.get(page.header..end).ok_or_else(|| page.bad("has more data than space"))?,
            );
            if data.len() > len as usize {
                return Err(page.bad("continues past the length of its item"));
            }
            next = page.u32(field::NEXT)?;
        }
        if data.len() == len as usize {
            Ok(data)
        } else {
            Err(BadDatabase::Page { page: first, reason: "is the start of an item that ends too early" })
        }
    }
}

#[cfg(test)]
mod tests;
