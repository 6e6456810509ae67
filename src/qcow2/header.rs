//! The header of an image: the fields in its first cluster.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::error::Problem;

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// The length of the header of version 2, and the start of the fields that version 3 adds.
const V2_LEN: usize = 72;
/// The length of the header that is written: version 3 without optional fields.
pub const V3_LEN: usize = 104;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// The longest name of a backing file that the format allows.
pub const MAX_NAME: usize = 1023;
/// Bytes of an L1 table or refcount table that QEMU accepts, at least: 32 MiB for L1, 8 MiB for refcounts.
pub const MAX_TABLE: u64 = 32 << 20;
pub const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// QEMU's unit of sizes.
pub const SECTOR: u64 = 512;

/// The incompatible features, by bit: a reader that does not know one must not read the image.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// The backing file, as the image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingFile {
    pub name: String,
    pub format: Format,
}

/// The fields that a reader needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Of the disk, bytes.
    pub size: u64,
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub backing: Option<BackingFile>,
}

/// The fields that only a writer needs.
#[derive(Clone, Copy, Debug)]
pub struct RefcountTable {
    pub offset: u64,
    pub clusters: u32,
}

impl Header {
    /// # Errors
    /// The file is not an image, uses an unsupported feature, or has a field that cannot be right. The tables are not
    /// looked at.
    pub fn read(file: &File) -> Result<Self, Problem> {
        let len = file.metadata()?.len();
        let mut fixed = vec![0; V3_LEN.min(usize::try_from(len).unwrap_or(V3_LEN))];
        file.read_exact_at(&mut fixed, 0)?;
        if !fixed.starts_with(MAGIC) {
            return Err(Problem::NotQcow2);
        }
        let fields = Fields(&fixed);
        let version = fields.u32(4)?;
        if !(2..=3).contains(&version) {
            return Err(Problem::Version(version));
        }
        let cluster_bits = fields.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Problem::Damaged("the size of its clusters is not between 512 bytes and 2 MiB"));
        }
        let header_len = if version == 2 { V2_LEN } else { fields.u32(100)? as usize };
        if version == 3 {
            check_features(fields.u64(72)?)?;
        }
        if fields.u32(32)? != 0 {
            return Err(Problem::Unsupported("encryption"));
        }
        let header = Self {
            version,
            cluster_bits,
            size: fields.u64(24)?,
            l1_entries: fields.u32(36)?,
            l1_offset: fields.u64(40)?,
            backing: None,
        };
        let (name_offset, name_len) = (fields.u64(8)?, fields.u32(16)? as usize);

        let mut first = vec![0; (1_usize << cluster_bits).min(usize::try_from(len).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut first, 0)?;
        let backing =
            if name_offset == 0 { None } else { Some(backing_file(&first, header_len, name_offset, name_len)?) };
        Ok(Self { backing, ..header })
    }

    /// The bytes of a header of version 3.
    pub fn encode(&self, refcounts: RefcountTable) -> Vec<u8> {
        let mut extensions = Vec::new();
        let mut name = "";
        if let Some(backing) = &self.backing {
            let format = backing.format.name().as_bytes();
            extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
            extensions.extend((format.len() as u32).to_be_bytes());
            extensions.extend(format);
            extensions.resize(extensions.len().next_multiple_of(8), 0);
            name = &backing.name;
        }
        extensions.extend([0; 8]); // EXTENSION_END and its length
        let name_offset = if name.is_empty() { 0 } else { (V3_LEN + extensions.len()) as u64 };

        let mut bytes = Vec::with_capacity(V3_LEN + extensions.len() + name.len());
        bytes.extend(MAGIC);
        bytes.extend(3_u32.to_be_bytes());
        bytes.extend(name_offset.to_be_bytes());
        bytes.extend((name.len() as u32).to_be_bytes());
        bytes.extend(self.cluster_bits.to_be_bytes());
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(0_u32.to_be_bytes()); // not encrypted
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes.extend(refcounts.offset.to_be_bytes());
        bytes.extend(refcounts.clusters.to_be_bytes());
        bytes.extend([0; 12]); // no internal snapshots
        bytes.extend([0; 24]); // no features: incompatible, compatible, autoclear
        bytes.extend(4_u32.to_be_bytes()); // refcounts of 2^4 bits
        bytes.extend((V3_LEN as u32).to_be_bytes());
        debug_assert_eq!(bytes.len(), V3_LEN);
        bytes.extend(extensions);
        bytes.extend(name.as_bytes());
        bytes
    }
}

fn check_features(incompatible: u64) -> Result<(), Problem> {
    let has = |feature| incompatible & feature != 0;
    if has(DIRTY) {
        return Err(Problem::Marked("dirty: a program did not close it"));
    }
    if has(CORRUPT) {
        return Err(Problem::Marked("corrupt"));
    }
    let unsupported = match incompatible {
        0 => return Ok(()),
        _ if has(EXTERNAL_DATA) => "an external data file",
        _ if has(COMPRESSION_TYPE) => "compression",
        _ if has(EXTENDED_L2) => "subclusters (extended L2 entries)",
        _ => "a feature that this program does not know",
    };
    Err(Problem::Unsupported(unsupported))
}

fn backing_file(first: &[u8], header_len: usize, offset: u64, len: usize) -> Result<BackingFile, Problem> {
    let outside = || Problem::Damaged("the name of its backing file is outside of the first cluster");
    if len == 0 || len > MAX_NAME {
        return Err(Problem::Damaged("the name of its backing file is empty or longer than 1,023 bytes"));
    }
    let start = usize::try_from(offset).map_err(|_| outside())?;
    let name = start.checked_add(len).and_then(|end| first.get(start..end)).ok_or_else(outside)?;
    let name = String::from_utf8(name.to_vec())
        .map_err(|_| Problem::Damaged("the name of its backing file is not UTF-8 text"))?;
    let format = match backing_format(first.get(header_len..start).ok_or_else(outside)?)? {
        Some(b"raw") => Format::Raw,
        Some(b"qcow2") => Format::Qcow2,
        Some(_) => return Err(Problem::Unsupported("a backing file that is neither raw nor qcow2")),
        None => return Err(Problem::NoBackingFormat),
    };
    Ok(BackingFile { name, format })
}

/// The format in the header extensions, which are between the header and the name of the backing file.
fn backing_format(extensions: &[u8]) -> Result<Option<&[u8]>, Problem> {
    let mut at = 0;
    while at < extensions.len() {
        let fields = Fields(extensions);
        let (kind, len) = (fields.u32(at)?, fields.u32(at + 4)? as usize);
        if kind == EXTENSION_END {
            break;
        }
        let content = extensions.get(at + 8..).and_then(|rest| rest.get(..len));
        let content = content.ok_or(Problem::Damaged("a header extension is longer than its space"))?;
        if kind == EXTENSION_BACKING_FORMAT {
            return Ok(Some(content));
        }
        at += 8 + len.next_multiple_of(8);
    }
    Ok(None)
}

/// Big-endian numbers at byte offsets.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> Result<u32, Problem> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Problem> {
        self.array(at).map(u64::from_be_bytes)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Problem> {
        let field = self.0.get(at..).and_then(|rest| rest.first_chunk());
        field.copied().ok_or(Problem::Damaged("its header is cut off"))
    }
}
