//! Why an image cannot be read.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
#[error("{file:?}: {problem}")]
pub struct ImageError {
    pub file: PathBuf,
    pub problem: Problem,
}

#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("this is not a qcow2 image, or one that was never finished")]
    NotQcow2,
    #[error("the image has version {0}; only versions 2 and 3 can be read")]
    Version(u32),
    #[error("the image uses {0}, which is not supported; convert it with qemu-img convert")]
    Unsupported(&'static str),
    #[error("the image is marked as {0}; check it with qemu-img check")]
    Marked(&'static str),
    #[error("the image is damaged: {0}")]
    Damaged(&'static str),
    #[error("the image is damaged: its L1 table of {entries} entries is larger than {limit} bytes")]
    TableTooLarge { entries: u32, limit: u64 },
    #[error("the file is cut off: {what} ends at byte {end}, but the file has only {len} bytes")]
    CutOff { what: &'static str, end: u64, len: u64 },
    #[error("the image does not say which format its backing file has; set it with qemu-img rebase -u -F")]
    NoBackingFormat,
    #[error("the backing file {0:?} is not a relative path to a file; set it with qemu-img rebase -u")]
    BackingName(String),
    #[error("the path {0:?} leads out of the folder of the images")]
    LeavesRoot(String),
    #[error("the file occurs twice in its chain of backing files")]
    Cycle,
    #[error("the chain of backing files has more than {0} files")]
    TooManyFiles(usize),
    #[error("the bytes from {start} to {end} were requested, but the disk has only {size}")]
    PastTheEnd { start: u64, end: u64, size: u64 },
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        let kind = match &error.problem {
            Problem::Io(error) => error.kind(),
            Problem::PastTheEnd { .. } => io::ErrorKind::InvalidInput,
            Problem::CutOff { .. } => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
