//! Opens an image with its chain of backing files, and reads the disk that they hold together.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::chain_file::ChainFile;
use super::error::{ImageError, Problem};
use super::header::Format;
use super::run::Content;
use super::table_cache::TableCache;
use super::walk::{Part, Parts, Source, Walk, content};
use crate::model::ByteRange;
use crate::sys::folder::Folder;

/// The files of a chain. Each stays open.
const MAX_FILES: usize = 1000;

/// An open image. It can be read by several threads at once. Its tables are read when they are needed, through a cache
/// of 4 MiB.
#[derive(Debug)]
pub struct Image {
    /// The newest first. Never empty.
    files: Vec<ChainFile>,
}

impl Image {
    /// Opens the image `file` below `root`, and its chain of backing files. They must be below `root` too, and no
    /// symbolic link is followed. The format is never guessed: the guest decides about the content of a raw file, and
    /// could make it look like an image that names any file as its backing file.
    pub fn open(root: &Folder, file: &Path, format: Format) -> Result<Self, ImageError> {
        let cache = Arc::new(TableCache::new());
        let (mut files, mut seen) = (Vec::<ChainFile>::new(), HashSet::new());
        let start = resolve(Path::new(""), file).map_err(|problem| ImageError { file: file.to_owned(), problem })?;
        let mut next = Some((start, format));
        while let Some((path, format)) = next {
            let number = files.len();
            let mut open = || {
                if number == MAX_FILES {
                    return Err(Problem::TooManyFiles(MAX_FILES));
                }
                let file = root.open_file(&path)?;
                let metadata = file.metadata()?;
                if !seen.insert((metadata.dev(), metadata.ino())) {
                    return Err(Problem::Cycle);
                }
                let file = ChainFile::new(path.clone(), file, format, number, &cache)?;
                let backing = match file.backing() {
                    Some(backing) => Some((resolve_backing(&path, &backing.name)?, backing.format)),
                    None => None,
                };
                Ok((file, backing))
            };
            let (file, backing) = open().map_err(|problem| ImageError { file: path.clone(), problem })?;
            files.push(file);
            next = backing;
        }
        Ok(Self { files })
    }

    /// Of the disk, bytes.
    pub fn size(&self) -> u64 {
        self.files[0].size
    }

    /// The files of the chain below the root folder, the newest first.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Reads bytes of the disk. They must be within its size.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.size() {
            let problem = Problem::PastTheEnd { start: offset, end, size: self.size() };
            return Err(self.files[0].error(problem));
        }
        let mut walk = Walk::to_read(&self.files);
        let (mut at, mut rest) = (offset, buffer);
        while at < end {
            let found = walk.find(at, end)?;
            let (piece, after) = rest.split_at_mut((found.end - at) as usize);
            match found.source {
                Source::Stored { file, offset } => self.files[file].read_stored(piece, offset)?,
                Source::Zero | Source::Below => piece.fill(0),
            }
            (at, rest) = (found.end, after);
        }
        Ok(())
    }

    /// The run from `from` on, joined with its neighbours after it. `None` at the end of the disk. For a whole disk,
    /// [`Image::runs`] is faster.
    pub fn next_run(&self, from: u64) -> Result<Option<(ByteRange, Content)>, ImageError> {
        Ok(self.parts(self.files.len(), from).next().transpose()?.map(content))
    }

    /// What the image itself has from `from` on, without its backing file.
    pub fn next_own_run(&self, from: u64) -> Result<Option<(ByteRange, Part)>, ImageError> {
        self.parts(1, from).next().transpose()
    }

    /// What the disk has, from its start to its end without gaps. Neighbours differ. Ends after an error.
    pub fn runs(&self) -> impl Iterator<Item = Result<(ByteRange, Content), ImageError>> {
        self.parts(self.files.len(), 0).map(|part| part.map(content))
    }

    /// What the newest `count` files of the chain have together.
    pub fn runs_of(&self, count: usize) -> impl Iterator<Item = Result<(ByteRange, Part), ImageError>> {
        self.parts(count, 0)
    }

    fn parts(&self, count: usize, from: u64) -> Parts<'_> {
        Parts::new(Walk::new(&self.files, count), from)
    }
}

/// The path of a backing file below the root folder. QEMU takes a name with a colon before its first slash for a
/// protocol, such as `nbd:` or `json:`.
fn resolve_backing(image: &Path, name: &str) -> Result<PathBuf, Problem> {
    let first = name.split('/').next().unwrap_or_default();
    if first.is_empty() || first.contains(':') {
        return Err(Problem::BackingName(name.to_owned()));
    }
    resolve(image.parent().unwrap_or(Path::new("")), Path::new(name))
}

/// `name` in the folder `from`, without `..`. No links are followed, so names alone decide where a path leads.
fn resolve(from: &Path, name: &Path) -> Result<PathBuf, Problem> {
    let mut path = from.to_owned();
    for component in name.components() {
        let inside = match component {
            Component::Normal(name) => {
                path.push(name);
                true
            }
            Component::CurDir => true,
            Component::ParentDir => path.pop(),
            Component::RootDir | Component::Prefix(_) => false,
        };
        if !inside {
            return Err(Problem::LeavesRoot(name.to_string_lossy().into_owned()));
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
