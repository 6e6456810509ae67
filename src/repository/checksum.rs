//! Checksums of a snapshot's bytes. Holes are not read, but their zeros count.

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use aws_lc_rs::digest::{self, SHA256};

use super::changes::IsWanted;
pub use super::digest::{Algorithm, Digest};
use super::disk_file::{DiskFile, OpenError};
use super::executor::{Access, Interrupted};
use super::map::MapError;

/// Bytes that are read, or zeros that are hashed, at a time.
const READ_BYTES: usize = 256 << 10;

/// Bytes that are hashed in one job on the repository's threads, before other jobs get their turn.
const STEP_BYTES: u64 = 4 << 20;

static ZEROS: [u8; READ_BYTES] = [0; READ_BYTES];

#[derive(Debug, thiserror::Error)]
pub enum ChecksumError {
    #[error("the client has disconnected")]
    Cancelled,
    /// The file cannot be read, or is not the snapshot's.
    #[error(transparent)]
    File(#[from] MapError),
}

impl From<io::Error> for ChecksumError {
    fn from(error: io::Error) -> Self {
        Self::File(error.into())
    }
}

impl From<OpenError> for ChecksumError {
    fn from(error: OpenError) -> Self {
        Self::File(error.into())
    }
}

impl From<Interrupted> for ChecksumError {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Cancelled => Self::Cancelled,
            Interrupted::Unresponsive(unresponsive) => Self::from(OpenError::from(unresponsive)),
        }
    }
}

/// What a checksum is of, one part after the other.
#[derive(Clone, Debug)]
pub enum Content {
    Text(Vec<u8>),
    /// A range of the file, within its size.
    Range(Range<u64>),
}

/// The checksum of `range` of `file`: as [`of_content`].
///
/// # Errors
/// [`ChecksumError::File`] if the file was changed meanwhile.
pub fn of_range(
    file: Arc<DiskFile>,
    range: Range<u64>,
    algorithm: Algorithm,
    is_wanted: &IsWanted,
) -> Result<Digest, ChecksumError> {
    of_content(file, vec![Content::Range(range)], algorithm, is_wanted)
}

/// The checksum of `content`, with ranges of `file`. The work is done on the repository's threads.
///
/// # Errors
/// [`ChecksumError::File`] if the file was changed meanwhile.
pub fn of_content(
    file: Arc<DiskFile>,
    content: Vec<Content>,
    algorithm: Algorithm,
    is_wanted: &IsWanted,
) -> Result<Digest, ChecksumError> {
    let executor = file.executor().clone();
    let (reader, hasher) = (Reader::new(file, 0, 0), Hasher::new(algorithm));
    let mut work = ContentHasher { rest: content.into(), reader, hasher };
    loop {
        let (rest, done) = executor.step(work, &**is_wanted, |access, work| work.step(access))?;
        if done? {
            return Ok(rest.hasher.finish());
        }
        work = rest;
    }
}

struct ContentHasher {
    rest: VecDeque<Content>,
    reader: Reader,
    hasher: Hasher,
}

impl ContentHasher {
    /// Hashes the next bytes. Returns whether it was the rest.
    fn step(&mut self, access: &Access<'_>) -> Result<bool, ChecksumError> {
        let mut left = STEP_BYTES;
        while left > 0
            && let Some(next) = self.rest.front_mut()
        {
            let is_done = match next {
                Content::Text(text) => {
                    self.hasher.add(text);
                    true
                }
                Content::Range(range) => {
                    let end = range.end.min(range.start.saturating_add(left));
                    self.reader.seek(range);
                    self.reader.hash_to(access, &mut self.hasher, end)?;
                    left -= end - range.start;
                    range.start = end;
                    range.is_empty()
                }
            };
            if is_done {
                self.rest.pop_front();
            }
        }
        if !self.rest.is_empty() {
            return Ok(false);
        }
        self.reader.file.verify_content(access)?;
        Ok(true)
    }
}

/// The checksums of a range's blocks, in order, and a checksum of these checksums: H(H(block 1) ‖ H(block 2) ‖ …), as
/// oVirt imageio and blksum compute it.
///
/// The work is done on the repository's threads, some blocks at a time, when the next checksum is needed.
pub struct BlockChecksums {
    file: Arc<DiskFile>,
    is_wanted: IsWanted,
    /// `None` after an error.
    blocks: Option<Blocks>,
    ready: VecDeque<Digest>,
}

impl BlockChecksums {
    /// Blocks of `block` bytes, counted from the start of `range`. The last one may be shorter. The range must be
    /// within the file's size.
    pub fn new(
        file: Arc<DiskFile>,
        range: Range<u64>,
        algorithm: Algorithm,
        block: NonZero<u64>,
        is_wanted: IsWanted,
    ) -> Self {
        let blocks = Blocks {
            reader: Reader::new(Arc::clone(&file), range.start, range.end),
            end: range.end,
            algorithm,
            block: block.get(),
            zero_block: None,
            whole: Hasher::new(algorithm),
        };
        Self { file, is_wanted, blocks: Some(blocks), ready: VecDeque::new() }
    }

    /// The checksum of the next block. `None` after the last one.
    pub fn next_block(&mut self) -> Result<Option<Digest>, ChecksumError> {
        if self.ready.is_empty() {
            let blocks = self.blocks.take().ok_or(ChecksumError::Cancelled)?;
            let step = self.file.executor().step(blocks, &*self.is_wanted, |access, blocks| blocks.step(access));
            let (blocks, ready) = step?;
            self.blocks = Some(blocks);
            self.ready = ready?;
        }
        Ok(self.ready.pop_front())
    }

    /// The checksum of all block checksums. To be called after the last block.
    ///
    /// # Errors
    /// [`ChecksumError::File`] if the file was changed meanwhile.
    pub fn finish(self) -> Result<Digest, ChecksumError> {
        let blocks = self.blocks.ok_or(ChecksumError::Cancelled)?;
        let verify = |access: &Access<'_>, blocks: &mut Blocks| blocks.reader.file.verify_content(access);
        let (blocks, verified) = self.file.executor().step(blocks, &*self.is_wanted, verify)?;
        verified?;
        Ok(blocks.whole.finish())
    }
}

struct Blocks {
    reader: Reader,
    end: u64,
    algorithm: Algorithm,
    block: u64,
    /// The checksum of a block of zeros, once it is known.
    zero_block: Option<Digest>,
    whole: Hasher,
}

impl Blocks {
    /// The checksums of the next blocks. Empty after the last one.
    fn step(&mut self, access: &Access<'_>) -> Result<VecDeque<Digest>, ChecksumError> {
        let limit = self.reader.at.saturating_add(STEP_BYTES);
        let mut ready = VecDeque::new();
        while self.reader.at < limit.min(self.end) {
            ready.push_back(self.next(access)?);
        }
        Ok(ready)
    }

    fn next(&mut self, access: &Access<'_>) -> Result<Digest, ChecksumError> {
        let start = self.reader.at;
        let end = start.saturating_add(self.block).min(self.end);
        let is_whole = end - start == self.block;
        let digest = match self.zero_block {
            Some(zeros) if is_whole && self.reader.skip_hole(access, end)? => zeros,
            _ => {
                let mut hasher = Hasher::new(self.algorithm);
                let is_zero = self.reader.hash_to(access, &mut hasher, end)?;
                let digest = hasher.finish();
                if is_whole && is_zero {
                    self.zero_block = Some(digest);
                }
                digest
            }
        };
        self.whole.add(&digest.0);
        Ok(digest)
    }
}

enum Hasher {
    Blake3(Box<blake3::Hasher>),
    Sha256(digest::Context),
    Blake2b256(blake2b_simd::State),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Blake3 => Self::Blake3(Box::default()),
            Algorithm::Sha256 => Self::Sha256(digest::Context::new(&SHA256)),
            Algorithm::Blake2b256 => Self::Blake2b256(blake2b_simd::Params::new().hash_length(32).to_state()),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hasher) => drop(hasher.update(bytes)),
            Self::Sha256(context) => context.update(bytes),
            Self::Blake2b256(state) => drop(state.update(bytes)),
        }
    }

    fn finish(self) -> Digest {
        let mut digest = [0; 32];
        match self {
            Self::Blake3(hasher) => digest = hasher.finalize().into(),
            Self::Sha256(context) => digest.copy_from_slice(context.finish().as_ref()),
            Self::Blake2b256(state) => digest.copy_from_slice(state.finalize().as_bytes()),
        }
        Digest(digest)
    }
}

/// Reads a file from front to back.
struct Reader {
    file: Arc<DiskFile>,
    /// The next offset to read.
    at: u64,
    /// The end of the range.
    limit: u64,
    /// The end of the current run, and whether it holds data.
    run: (u64, bool),
    buffer: Vec<u8>,
}

impl Reader {
    fn new(file: Arc<DiskFile>, start: u64, limit: u64) -> Self {
        Self { file, at: start, limit, run: (start, false), buffer: Vec::new() }
    }

    /// Continues with this range.
    fn seek(&mut self, range: &Range<u64>) {
        if (self.at, self.limit) != (range.start, range.end) {
            (self.at, self.limit, self.run) = (range.start, range.end, (range.start, false));
        }
    }

    /// The end of the run at the current offset, and whether it holds data.
    fn run(&mut self, access: &Access<'_>) -> io::Result<(u64, bool)> {
        if self.run.0 <= self.at {
            let run = self.file.run_at(access, self.at, self.limit)?;
            self.run = (run.end, run.is_data);
        }
        Ok(self.run)
    }

    /// Skips to `end`, if there is a hole up to there.
    fn skip_hole(&mut self, access: &Access<'_>, end: u64) -> Result<bool, ChecksumError> {
        self.check(access)?;
        let (run_end, is_data) = self.run(access)?;
        let is_hole = !is_data && run_end >= end;
        if is_hole {
            self.at = end;
        }
        Ok(is_hole)
    }

    /// Hashes everything up to `end`. Returns whether there were only holes.
    fn hash_to(&mut self, access: &Access<'_>, hasher: &mut Hasher, end: u64) -> Result<bool, ChecksumError> {
        let mut only_holes = true;
        while self.at < end {
            self.check(access)?;
            let (run_end, is_data) = self.run(access)?;
            let length = usize::try_from(run_end.min(end) - self.at).unwrap_or(READ_BYTES).min(READ_BYTES);
            if is_data {
                self.buffer.resize(READ_BYTES, 0);
                self.file.read_exact_at(access, &mut self.buffer[..length], self.at)?;
                hasher.add(&self.buffer[..length]);
                only_holes = false;
            } else {
                hasher.add(&ZEROS[..length]);
            }
            self.at += length as u64;
        }
        Ok(only_holes)
    }

    fn check(&self, access: &Access<'_>) -> Result<(), ChecksumError> {
        access.progress();
        if !access.is_wanted() {
            return Err(ChecksumError::Cancelled);
        }
        // Checked at each read: the end may be hours away.
        Ok(self.file.verify_content(access)?)
    }
}
