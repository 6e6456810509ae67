//! `SEEK_DATA` and `SEEK_HOLE` (lseek(2)): which parts of a file hold data.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// The offset of the first data at or after `from`. `None` if only a hole follows.
pub fn next_data(file: impl AsFd, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, Whence::SeekData)
}

/// The offset of the first hole at or after `from`. The end of the file counts as a hole. `None` if `from` is at or
/// past the end.
pub fn next_hole(file: impl AsFd, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, Whence::SeekHole)
}

fn seek(file: impl AsFd, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
    match lseek(file, from, whence) {
        Ok(offset) => Ok(u64::try_from(offset).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
