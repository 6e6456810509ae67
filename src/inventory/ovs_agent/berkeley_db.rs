//! Berkeley DB hash files, read without libdb: all their pairs, nothing of their order.
//!
//! The layout is that of libdb's `dbinc/db_page.h`. A hash file is pages of one size. Page 0 says how
//! the others are to be read; hash pages hold keys and values, overflow pages what does not fit.
//! A hash page is found by its type, so neither buckets nor the hash function matter.
//!
//! Nothing is believed: every offset is checked, no length is allocated before its bytes are there, and
//! an overflow page belongs to one item, so that no work is larger than the file.

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

/// Why bytes cannot be read as a hash file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDatabase {
    /// No byte is there.
    #[error("is empty: not even a database without pairs is")]
    Empty,
    /// There is less than the smallest page.
    #[error("has only {len} bytes, less than the first page of any database")]
    NoMetaPage {
        /// The file's length in bytes.
        len: usize,
    },
    /// The first page is zeros: written by nobody, or lost in a crash.
    #[error("starts with zeros: it was never written, or a crash took it")]
    Zeros,
    /// Letters, digits and spaces alone.
    #[error("is text, not a Berkeley DB file")]
    Text,
    /// No magic number of Berkeley DB.
    #[error("is not a Berkeley DB file (magic number {magic:#010x})")]
    NotBerkeleyDb {
        /// What stands in the magic number's place, as little-endian.
        magic: u32,
    },
    /// A database of another access method.
    #[error("is a Berkeley DB {method} file, but the agent's are hash files")]
    OtherMethod {
        /// The access method.
        method: &'static str,
    },
    /// A file of several databases.
    #[error("holds several databases (sub-databases), but the agent's files hold one each")]
    Subdatabases,
    /// A database whose pairs are in other files.
    #[error("is partitioned: its pairs are in other files, which cannot be read")]
    Partitioned,
    /// A database under a password.
    #[error("is encrypted, and cannot be read without its password")]
    Encrypted,
    /// A version of the format that is not known.
    #[error("is a hash file of version {version}, and only 8, 9 and 10 can be read")]
    Version {
        /// The version it says.
        version: u32,
    },
    /// No possible page size.
    #[error("has pages of {size} bytes, which is no power of two from 512 to 65536")]
    PageSize {
        /// The size it says.
        size: u32,
    },
    /// The file ends before its last page does.
    #[error("is cut off: {len} bytes, but its pages need {expected}")]
    Truncated {
        /// The file's length in bytes.
        len: usize,
        /// The length that the meta page calls for, in bytes.
        expected: u64,
    },
    /// A key with several values.
    #[error("has several values for one key (page {page}), which the agent's files have not")]
    Duplicates {
        /// The page of the key.
        page: u32,
    },
    /// A key that is there twice, as in a file that is read while it is written.
    #[error("has a key twice: it is damaged, or was being written")]
    SameKey,
    /// A page that contradicts itself or the others.
    #[error("is damaged, or was being written: page {page}: {reason}")]
    Page {
        /// The page's number.
        page: u32,
        /// What is wrong, in a few words.
        reason: &'static str,
    },
}

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// All pairs of a database, sorted by key.
///
/// # Errors
/// [`BadDatabase`] where any page cannot be read: a list that lacks something is worse than none.
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

/// How many pairs the database says that it has.
///
/// libdb keeps the number up only where it takes no locks. Written through an environment with locks,
/// as Python 2's `bsddb.hashopen` does, a file says 0, or what was true at some earlier time.
///
/// # Errors
/// [`BadDatabase`] where the first page is not that of a hash file.
pub fn element_count(file: &[u8]) -> Result<u32, BadDatabase> {
    Layout::of(file).map(|layout| layout.elements)
}

/// Reads pages, and knows which overflow pages an item has already.
struct Reader<'a> {
    layout: Layout<'a>,
    /// By page number.
    taken: Vec<bool>,
}

impl Reader<'_> {
    fn page(&mut self, number: u32, pairs: &mut Vec<Pair>) -> Result<(), BadDatabase> {
        let page = self.layout.page(number)?;
        match page.page_type() {
            PAGE_HASH | PAGE_HASH_UNSORTED => {}
            // Overflow pages are read through the items that they belong to.
            PAGE_FREE | PAGE_OVERFLOW => return Ok(()),
            // Trees of duplicates: the pages are libdb's right, and the item that names them is refused.
            3..=6 | 12 => return Ok(()),
            _ => return Err(page.bad("is of a type that hash files have not")),
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
            _ => Err(page.bad("has an item of a kind that is not known")),
        }
    }

    /// What is on a chain of overflow pages: `len` bytes.
    fn overflow(&mut self, first: u32, len: u32) -> Result<Vec<u8>, BadDatabase> {
        let mut data = Vec::new();
        let mut next = first;
        while next != 0 {
            let page = self.layout.page(next)?;
            if page.page_type() != PAGE_OVERFLOW {
                return Err(page.bad("is no overflow page, but an item goes on there"));
            }
            page.check()?;
            match self.taken.get_mut(next as usize) {
                Some(taken) if !*taken => *taken = true,
                _ => return Err(page.bad("is a part of two items, or twice of one")),
            }
            let end = page.header + usize::from(page.u16(field::DATA_LEN)?);
            data.extend_from_slice(
                page.bytes.get(page.header..end).ok_or_else(|| page.bad("has more data than room"))?,
            );
            if data.len() > len as usize {
                return Err(page.bad("goes on past the length of its item"));
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
