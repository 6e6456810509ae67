//! One file of a chain: an image, or a raw file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::{ImageError, Problem};
use super::header::{BackingFile, Format};
use super::table_cache::TableCache;
use super::tables::{Extent, Place, Tables};
use crate::sys::sparse;

#[derive(Debug)]
pub struct ChainFile {
    /// Below the folder of the images.
    pub path: PathBuf,
    /// Of its disk, bytes.
    pub size: u64,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Raw(File),
    Qcow2(Tables),
}

impl ChainFile {
    /// The file with this number in its chain.
    pub fn new(
        path: PathBuf,
        file: File,
        format: Format,
        number: usize,
        cache: &Arc<TableCache>,
    ) -> Result<Self, Problem> {
        let (size, storage) = match format {
            Format::Raw => (file.metadata()?.len(), Storage::Raw(file)),
            Format::Qcow2 => {
                let tables = Tables::open(file, number, Arc::clone(cache))?;
                (tables.header().size, Storage::Qcow2(tables))
            }
        };
        Ok(Self { path, size, storage })
    }

    pub fn backing(&self) -> Option<&BackingFile> {
        match &self.storage {
            Storage::Raw(_) => None,
            Storage::Qcow2(tables) => tables.header().backing.as_ref(),
        }
    }

    /// The extent from `at` on, which must be less than the size. The next extent may be at the same place.
    pub fn extent_at(&self, at: u64, finds_holes: bool) -> Result<Extent, ImageError> {
        let extent = match &self.storage {
            Storage::Raw(_) if !finds_holes => Ok(Extent { range: at..self.size, place: Place::Stored(at) }),
            Storage::Raw(file) => raw_extent_at(file, at, self.size),
            Storage::Qcow2(tables) => tables.extent_at(at),
        };
        extent.map_err(|problem| self.error(problem))
    }

    /// Reads bytes of the file, at an offset in the file.
    pub fn read_stored(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let file = match &self.storage {
            Storage::Raw(file) => file,
            Storage::Qcow2(tables) => tables.file(),
        };
        file.read_exact_at(buffer, offset).map_err(|error| self.error(error.into()))
    }

    pub fn error(&self, problem: Problem) -> ImageError {
        ImageError { file: self.path.clone(), problem }
    }
}

fn raw_extent_at(file: &File, at: u64, size: u64) -> Result<Extent, Problem> {
    let data = sparse::next_data(file, at)?.unwrap_or(size).min(size);
    if data > at {
        return Ok(Extent { range: at..data, place: Place::Zero });
    }
    // Without an answer the file was cut off at this moment. Reading the rest fails then.
    let hole = sparse::next_hole(file, at)?.unwrap_or(size).min(size);
    Ok(Extent { range: at..hole.max(at + 1), place: Place::Stored(at) })
}
