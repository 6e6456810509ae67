//! mincore(2), preadv2(2), posix_fadvise(2) and sync_file_range(2): what the page cache holds of a file.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

/// What every size of a page divides.
const PAGE_ALIGNMENT: u64 = 64 << 10;

/// Whether the page cache has the page of `file` at `offset`, rounded down to 64 KiB. It is not read for
/// that. Where others may not be told (`file` is not the caller's), it always has.
///
/// # Errors
/// The errno of mmap(2) or mincore(2).
pub fn is_resident(file: BorrowedFd<'_>, offset: u64) -> io::Result<bool> {
    const LENGTH: usize = 1;
    let start = i64::try_from(offset - offset % PAGE_ALIGNMENT).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: a new mapping, wherever the kernel likes, of a descriptor that is open for the call.
    // Nobody reads or writes through it, so that a file that is cut meanwhile does no harm.
    let page =
        unsafe { libc::mmap(ptr::null_mut(), LENGTH, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), start) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut answer = 0;
    // SAFETY: the mapping is one page, and so the answer is one byte.
    let asked = Errno::result(unsafe { libc::mincore(page, LENGTH, &raw mut answer) });
    // SAFETY: it was mapped above with this length, and nobody has a pointer into it.
    unsafe { libc::munmap(page, LENGTH) };
    asked?;
    Ok(answer & 1 == 1)
}

/// Fills `buffer` from `offset` on, where the page cache has all of that and nobody is in the way; says whether
/// it did. Where not, newer kernels begin to read from the device, and nothing is waited for.
///
/// # Errors
/// The errno of preadv2(2): `EOPNOTSUPP` where the file system, `ENOSYS` where the kernel cannot tell.
pub fn read(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
    // RWF_NOWAIT of linux/fs.h. The offset is handed over in two halves, the upper of which 64-bit kernels
    // do not use.
    const NOWAIT: libc::c_long = 8;
    const UPPER: libc::c_long = 0;
    const COUNT: libc::c_long = 1;
    let start = libc::c_long::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the one element of the vector is a buffer that is ours for the call, which writes no more.
    let read =
        unsafe { libc::syscall(libc::SYS_preadv2, file.as_raw_fd(), &raw const vector, COUNT, start, UPPER, NOWAIT) };
    match Errno::result(read) {
        Ok(read) => Ok(usize::try_from(read).is_ok_and(|read| read == buffer.len())),
        Err(Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether reading `file` reads what comes next as well.
///
/// # Errors
/// The errno of posix_fadvise(2).
pub fn read_ahead(file: impl AsFd, yes: bool) -> io::Result<()> {
    let advice = if yes { PosixFadviseAdvice::POSIX_FADV_NORMAL } else { PosixFadviseAdvice::POSIX_FADV_RANDOM };
    Ok(posix_fadvise(file, 0, 0, advice)?)
}

/// Lets go of what the page cache has of `range`, but for what is not written out yet, and for pages
/// that lie in it in part.
///
/// # Errors
/// The errno of posix_fadvise(2).
pub fn drop_cached(file: impl AsFd, range: &Range<u64>) -> io::Result<()> {
    let offset = i64::try_from(range.start).map_err(|_| Errno::EOVERFLOW)?;
    let length = i64::try_from(range.end - range.start).map_err(|_| Errno::EOVERFLOW)?;
    Ok(posix_fadvise(file, offset, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// Writes out what the page cache has of the first `size` bytes of `file`, piece by piece, and then all of it, its
/// size included. `progress` is called after each piece: all together may take long.
///
/// # Errors
/// The errno of sync_file_range(2) or fdatasync(2).
pub fn write_out(file: &File, size: u64, progress: &dyn Fn()) -> io::Result<()> {
    const STEP_BYTES: u64 = 32 << 20;
    const ALL: libc::c_uint =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let mut offset = 0;
    while offset < size {
        let start = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the call takes no memory of ours.
        Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), start, STEP_BYTES as i64, ALL) })?;
        progress();
        offset = offset.saturating_add(STEP_BYTES);
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_forgotten_is_not_held_and_comes_back() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all_at(&vec![1; 4 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let held = || [0, MIB, 2 * MIB, 3 * MIB].map(|offset| is_resident(file.as_fd(), offset + 5).unwrap());
        assert_eq!(held(), [true; 4]);
        drop_cached(&file, &(0..4 * MIB)).unwrap();
        assert_eq!(held(), [false; 4]);
        let mut byte = [0];
        // The device may be as fast.
        let was_there = (0..20).all(|_| {
            drop_cached(&file, &(0..4 * MIB)).unwrap();
            read(file.as_fd(), &mut byte, MIB).unwrap()
        });
        assert!(!was_there);
        file.read_exact_at(&mut byte, MIB).unwrap();
        assert!(held()[1]);
        assert!(read(file.as_fd(), &mut byte, MIB).unwrap() && byte == [1]);
        assert!(!read(file.as_fd(), &mut [0; 8], 4 * MIB - 4).unwrap(), "more than there is");
        assert!(!is_resident(file.as_fd(), 64 * MIB).unwrap(), "past its end");
    }

    #[test]
    fn what_is_written_out_can_be_forgotten() {
        const SIZE: u64 = 65 << 20;
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all_at(&vec![1; 1 << 20], SIZE - (1 << 20)).unwrap();
        let pieces = std::cell::Cell::new(0);
        write_out(&file, SIZE, &|| pieces.set(pieces.get() + 1)).unwrap();
        assert_eq!(pieces.get(), 3);
        drop_cached(&file, &(0..SIZE)).unwrap();
        assert!(!is_resident(file.as_fd(), SIZE - 5).unwrap(), "it was not written out");
    }
}
