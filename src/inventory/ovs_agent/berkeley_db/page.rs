//! Pages: the metadata, and the fields and items of the others.

use super::BadDatabase;

/// Offsets of the fields of the metadata page.
mod meta {
    pub const MAGIC: usize = 12;
    pub const VERSION: usize = 16;
    pub const PAGE_SIZE: usize = 20;
    pub const ENCRYPTION: usize = 24;
    pub const FLAGS: usize = 26;
    pub const LAST_PAGE: usize = 32;
    pub const METHOD_FLAGS: usize = 48;
    pub const ELEMENTS: usize = 88;
    pub const CHECKSUM: usize = 492;
    /// The size of the smallest page, and of the metadata.
    pub const LEN: usize = 512;
}

/// Offsets of the fields of all other pages.
pub(super) mod field {
    pub const NUMBER: usize = 8;
    pub const NEXT: usize = 16;
    pub const ENTRIES: usize = 20;
    /// On overflow pages: the length of the data.
    pub const DATA_LEN: usize = 22;
    pub const TYPE: usize = 25;
    pub const HEADER: usize = 26;
    pub const CHECKSUM: usize = 28;
    pub const HEADER_CHECKSUM: usize = 32;
}

const MAGIC_HASH: u32 = 0x0006_1561;
const MAGIC_BTREE: u32 = 0x0005_3162;
const MAGIC_QUEUE: u32 = 0x0004_2253;
const MAGIC_HEAP: u32 = 0x0007_4582;

const FLAG_CHECKSUM: u8 = 1;
const FLAGS_PARTITIONED: u8 = 2 | 4;
const BTREE_FLAG_SUBDATABASES: u32 = 0x20;
const HASH_FLAG_SUBDATABASES: u32 = 0x02;

/// That of the machine that created the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let raw = bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Little { u16::from_le_bytes(*raw) } else { u16::from_be_bytes(*raw) })
    }

    fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let raw = bytes.get(at..)?.first_chunk()?;
        Some(if self == Self::Little { u32::from_le_bytes(*raw) } else { u32::from_be_bytes(*raw) })
    }
}

/// The checked metadata.
pub(super) struct Layout<'a> {
    file: &'a [u8],
    order: ByteOrder,
    page_size: usize,
    /// The length of the header of a page.
    header: usize,
    /// The file has all pages up to this one. libdb no longer uses those after it.
    pub(super) last_page: u32,
    pub(super) elements: u32,
}

impl<'a> Layout<'a> {
    pub(super) fn of(file: &'a [u8]) -> Result<Self, BadDatabase> {
        if file.is_empty() {
            return Err(BadDatabase::Empty);
        }
        let order = byte_order(file)?;
        let len = file.len();
        if len < meta::LEN {
            return Err(BadDatabase::NoMetaPage { len });
        }
        let field = |at| order.u32(file, at).ok_or(BadDatabase::NoMetaPage { len });
        let byte = |at| file.get(at).copied().ok_or(BadDatabase::NoMetaPage { len });
        if byte(meta::ENCRYPTION)? != 0 {
            return Err(BadDatabase::Encrypted);
        }
        let method_flags = field(meta::METHOD_FLAGS)?;
        match field(meta::MAGIC)? {
            MAGIC_HASH if method_flags & HASH_FLAG_SUBDATABASES != 0 => return Err(BadDatabase::Subdatabases),
            MAGIC_HASH => {}
            MAGIC_BTREE if method_flags & BTREE_FLAG_SUBDATABASES != 0 => return Err(BadDatabase::Subdatabases),
            MAGIC_BTREE => return Err(BadDatabase::OtherMethod { method: "btree" }),
            MAGIC_QUEUE => return Err(BadDatabase::OtherMethod { method: "queue" }),
            _ => return Err(BadDatabase::OtherMethod { method: "heap" }),
        }
        let version = field(meta::VERSION)?;
        if !(8..=10).contains(&version) {
            return Err(BadDatabase::Version { version });
        }
        let flags = byte(meta::FLAGS)?;
        if flags & FLAGS_PARTITIONED != 0 {
            return Err(BadDatabase::Partitioned);
        }
        let size = field(meta::PAGE_SIZE)?;
        if !size.is_power_of_two() || !(512..=65536).contains(&size) {
            return Err(BadDatabase::PageSize { size });
        }
        let last_page = field(meta::LAST_PAGE)?;
        let expected = (u64::from(last_page) + 1) * u64::from(size);
        if (len as u64) < expected {
            return Err(BadDatabase::Truncated { len, expected });
        }
        let has_checksums = flags & FLAG_CHECKSUM != 0;
        if has_checksums && field(meta::CHECKSUM)? != checksum(&file[..meta::LEN], meta::CHECKSUM) {
            return Err(BadDatabase::Page { page: 0, reason: "has a wrong checksum" });
        }
        Ok(Self {
            file,
            order,
            page_size: size as usize,
            header: if has_checksums { field::HEADER_CHECKSUM } else { field::HEADER },
            last_page,
            elements: field(meta::ELEMENTS)?,
        })
    }

    pub(super) fn page_count(&self) -> usize {
        self.last_page as usize + 1
    }

    pub(super) fn page(&self, number: u32) -> Result<Page<'a>, BadDatabase> {
        let pages = self.file.chunks_exact(self.page_size);
        match pages.take(self.page_count()).nth(number as usize) {
            Some(bytes) => Ok(Page { number, bytes, order: self.order, header: self.header }),
            None => Err(BadDatabase::Page { page: number, reason: "is referred to, but the database ends before it" }),
        }
    }
}

/// The byte order in which the magic number is known.
fn byte_order(file: &[u8]) -> Result<ByteOrder, BadDatabase> {
    let known = [MAGIC_HASH, MAGIC_BTREE, MAGIC_QUEUE, MAGIC_HEAP];
    for order in [ByteOrder::Little, ByteOrder::Big] {
        if order.u32(file, meta::MAGIC).is_some_and(|magic| known.contains(&magic)) {
            return Ok(order);
        }
    }
    if file.iter().take(meta::LEN).all(|byte| *byte == 0) {
        return Err(BadDatabase::Zeros);
    }
    if file.iter().take(meta::LEN).all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n')) {
        return Err(BadDatabase::Text);
    }
    match ByteOrder::Little.u32(file, meta::MAGIC) {
        Some(magic) => Err(BadDatabase::NotBerkeleyDb { magic }),
        None => Err(BadDatabase::NoMetaPage { len: file.len() }),
    }
}

/// libdb's checksum (`__ham_func4`) of `bytes`, with zeros for the checksum itself at `at`.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    bytes.iter().enumerate().fold(0_u32, |sum, (index, byte)| {
        let byte = if (at..at + 4).contains(&index) { 0 } else { *byte };
        sum.wrapping_mul(33).wrapping_add(byte.into())
    })
}

/// A page. The smallest has 512 bytes, so it has all fields.
pub(super) struct Page<'a> {
    pub(super) number: u32,
    pub(super) bytes: &'a [u8],
    order: ByteOrder,
    pub(super) header: usize,
}

impl<'a> Page<'a> {
    pub(super) fn bad(&self, reason: &'static str) -> BadDatabase {
        BadDatabase::Page { page: self.number, reason }
    }

    pub(super) fn u16(&self, at: usize) -> Result<u16, BadDatabase> {
        self.order.u16(self.bytes, at).ok_or_else(|| self.bad("ends inside a number"))
    }

    pub(super) fn u32(&self, at: usize) -> Result<u32, BadDatabase> {
        self.order.u32(self.bytes, at).ok_or_else(|| self.bad("ends inside a number"))
    }

    pub(super) fn u32_of(&self, item: &[u8], at: usize) -> Result<u32, BadDatabase> {
        self.order.u32(item, at).ok_or_else(|| self.bad("has an item that is cut off"))
    }

    pub(super) fn page_type(&self) -> u8 {
        self.bytes.get(field::TYPE).copied().unwrap_or(super::PAGE_FREE)
    }

    /// Checks the page number and the checksum.
    pub(super) fn check(&self) -> Result<(), BadDatabase> {
        if self.u32(field::NUMBER)? != self.number {
            return Err(self.bad("has the number of another page"));
        }
        let has_checksum = self.header == field::HEADER_CHECKSUM;
        if has_checksum && self.u32(field::CHECKSUM)? != checksum(self.bytes, field::CHECKSUM) {
            return Err(self.bad("has a wrong checksum"));
        }
        Ok(())
    }

    /// The items of a hash page: key, value, key, value, …
    ///
    /// They are stored backwards from the end of the page, without gaps.
    pub(super) fn items(&self) -> Result<Vec<&'a [u8]>, BadDatabase> {
        let count = usize::from(self.u16(field::ENTRIES)?);
        if !count.is_multiple_of(2) {
            return Err(self.bad("has a key without a value"));
        }
        let lowest = self.header + 2 * count;
        let mut end = self.bytes.len();
        let mut items = Vec::new();
        for index in 0..count {
            let start = usize::from(self.u16(self.header + 2 * index)?);
            match self.bytes.get(start..end) {
                Some(item) if start >= lowest && !item.is_empty() => items.push(item),
                _ => return Err(self.bad("has an item at an impossible offset")),
            }
            end = start;
        }
        Ok(items)
    }
}
