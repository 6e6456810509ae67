//! The image of a disk while it is filled.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{AtPath, BackupError, Result};
use super::files;
use super::plan::Plan;
use super::point::Format;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::model::ByteRange;
use crate::qcow2::{self, Content, Layout};
use crate::sys::folder::Folder;
use crate::sys::page_cache;

/// What a new image stands on: a disk of an older point.
#[derive(Clone, Debug)]
pub struct BaseImage {
    /// Relative to the VM's directory.
    pub file: std::path::PathBuf,
    pub format: Format,
    pub size: u64,
}

/// An image that receives the bytes of a plan.
pub enum Image {
    Raw {
        file: File,
        /// Nothing was there before: what is not written reads as zeros.
        is_new: bool,
    },
    Qcow2 {
        file: File,
        layout: Box<Layout>,
        backing: Option<BaseImage>,
    },
}

impl Image {
    /// A raw image of `size` bytes at `path`. It begins as a clone of `base`, or as a hole. If the file exists, the work
    /// on it goes on.
    ///
    /// # Errors
    /// The file system cannot clone the base.
    pub fn raw(path: &Path, size: u64, base: Option<&Path>) -> Result<Self> {
        if !path.exists() {
            let new = files::temporary(path);
            files::remove_if_there(&new).at(&new)?;
            match base {
                None => drop(files::create_new(&new).at(&new)?),
                Some(base) if files::clone(base, &new).at(&new)? => {}
                Some(base) => {
                    let problem = format!("{} cannot be cloned on this file system", base.display());
                    return Err(BackupError::Unusable(problem));
                }
            }
            files::open_rw(&new).and_then(|file| file.set_len(size)).at(&new)?;
            std::fs::rename(&new, path).at(path)?;
        }
        Ok(Self::Raw { file: files::open_rw(path).at(path)?, is_new: base.is_none() })
    }

    /// A qcow2 image at `path` with the bytes of `plan`, on top of `base`.
    pub fn qcow2(path: &Path, size: u64, plan: &Plan, base: Option<BaseImage>) -> Result<Self> {
        let backing = base.as_ref().map(|base| qcow2::Backing {
            file: format!("../{}", base.file.display()),
            format: base.format.into(),
            size: base.size,
        });
        let runs = plan.ranges().filter_map(|(range, is_zero)| {
            let content = if is_zero { Content::Zero } else { Content::Data };
            Some((ByteRange::new(range.start, range.end)?, content))
        });
        let layout = Layout::new(size, runs, backing).map_err(io::Error::other).at(path)?;
        let file = files::open_or_create(path).at(path)?;
        layout.write_metadata(&file).at(path)?;
        Ok(Self::Qcow2 { file, layout: Box::new(layout), backing: base })
    }

    /// Writes bytes of a data range of the plan.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Raw { file, .. } => file.write_all_at(bytes, offset),
            Self::Qcow2 { file, layout, .. } => layout.write_at(file, offset, bytes),
        }
    }

    /// Starts to bring a range that was written to the device, so that the sync at the end has little left to do.
    pub fn start_write_out(&self, range: &Range<u64>) {
        let (file, place) = match self {
            Self::Raw { file, .. } => (file, Some(range.start)),
            Self::Qcow2 { file, layout, .. } => {
                (file, ByteRange::new(range.start, range.end).and_then(|range| layout.place(range)))
            }
        };
        let Some(start) = place else { return };
        // The sync at the end tells what fails.
        if let Err(error) = page_cache::start_write_out(file, &(start..start + (range.end - range.start))) {
            tracing::debug!(%error, "cannot start to write out");
        }
    }

    /// Makes a range of the plan zeros.
    pub fn zero(&self, range: &Range<u64>) -> io::Result<()> {
        match self {
            Self::Raw { file, is_new: false } => files::punch(file, range.start, range.end),
            // Nothing was written there.
            Self::Raw { is_new: true, .. } | Self::Qcow2 { .. } => Ok(()),
        }
    }

    /// Reads back bytes of a data range.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Raw { file, .. } => file.read_exact_at(buffer, offset),
            Self::Qcow2 { file, layout, .. } => {
                let place = ByteRange::new(offset, offset + buffer.len() as u64).and_then(|range| layout.place(range));
                let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
                file.read_exact_at(buffer, place)
            }
        }
    }

    /// Makes later reads go to the disk: after a failed sync, the page cache has bytes that the disk lacks.
    pub fn drop_cache(&self) {
        let (Self::Raw { file, .. } | Self::Qcow2 { file, .. }) = self;
        if let Err(errno) = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
            tracing::debug!(%errno, "cannot drop cached pages");
        }
    }

    /// Makes the image complete, and puts it on stable storage.
    pub fn finish(&self, vm_directory: &Folder, path: &Path) -> Result<()> {
        match self {
            Self::Raw { file, .. } => file.sync_all().at(path),
            Self::Qcow2 { file, layout, backing } => {
                let open = |base: &BaseImage| qcow2::Image::open(vm_directory, &base.file, base.format.into());
                let backing = backing.as_ref().map(open).transpose().map_err(damaged)?;
                layout.fill_gaps(file, backing.as_ref()).at(path)?;
                layout.finish(file).at(path)
            }
        }
    }
}

/// Opens the disk in the file `file` of a directory for reading, with all images that it stands on. Nothing outside of
/// the VM's directory is opened.
pub fn open(vm_directory: &Folder, file: &Path, format: Format) -> Result<qcow2::Image> {
    qcow2::Image::open(vm_directory, file, format.into()).map_err(damaged)
}

fn damaged(error: qcow2::ImageError) -> BackupError {
    BackupError::Damaged(error.to_string())
}

impl From<Format> for qcow2::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
        }
    }
}
