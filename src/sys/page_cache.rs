//! What the page cache holds of a file: mincore(2), preadv2(2), posix_fadvise(2) and sync_file_range(2).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;

/// A multiple of every page size.
const PAGE_ALIGNMENT: u64 = 64 << 10;

/// Whether the page cache holds the page of `file` at `offset`, rounded down to 64 KiB. The page is not read for it. If
/// the kernel does not tell, because the file belongs to another user, the answer is true.
pub fn is_resident(file: BorrowedFd<'_>, offset: u64) -> io::Result<bool> {
    const LENGTH: usize = 1;
    let start = i64::try_from(offset - offset % PAGE_ALIGNMENT).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: a new mapping at an address of the kernel's choice, of a descriptor that is open for the call. Nothing
    // reads or writes through it, so a file that is truncated meanwhile does no harm.
    let page =
        unsafe { libc::mmap(ptr::null_mut(), LENGTH, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), start) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut answer = 0;
    // SAFETY: the mapping is one page, so the answer is one byte.
    let asked = Errno::result(unsafe { libc::mincore(page, LENGTH, &raw mut answer) });
    // SAFETY: it was mapped above with this length, and nothing points into it.
    unsafe { libc::munmap(page, LENGTH) };
    asked?;
    Ok(answer & 1 == 1)
}

/// Fills `buffer` from `offset` on if the page cache holds all of it and no lock is in the way. Returns whether it did.
/// If it did not, newer kernels start a read from the device without waiting for it.
///
/// # Errors
/// `EOPNOTSUPP` if the file system does not support this, `ENOSYS` if the kernel does not; the errno of preadv2(2).
pub fn read(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
    // RWF_NOWAIT of linux/fs.h. The offset is passed in two halves; 64-bit kernels ignore the upper one.
    const NOWAIT: libc::c_long = 8;
    const UPPER: libc::c_long = 0;
    const COUNT: libc::c_long = 1;
    let start = libc::c_long::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the only element of the vector is our buffer, and the call writes no more than its length.
    let read =
        unsafe { libc::syscall(libc::SYS_preadv2, file.as_raw_fd(), &raw const vector, COUNT, start, UPPER, NOWAIT) };
    match Errno::result(read) {
        Ok(read) => Ok(usize::try_from(read).is_ok_and(|read| read == buffer.len())),
        Err(Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Switches readahead on or off for this open file.
pub fn read_ahead(file: impl AsFd, yes: bool) -> io::Result<()> {
    let advice = if yes { PosixFadviseAdvice::POSIX_FADV_NORMAL } else { PosixFadviseAdvice::POSIX_FADV_RANDOM };
    Ok(posix_fadvise(file, 0, 0, advice)?)
}

/// Drops the cached pages in `range`, except those that are dirty and those that lie in it only in part.
pub fn drop_cached(file: impl AsFd, range: &Range<u64>) -> io::Result<()> {
    let offset = i64::try_from(range.start).map_err(|_| Errno::EOVERFLOW)?;
    let length = i64::try_from(range.end - range.start).map_err(|_| Errno::EOVERFLOW)?;
    Ok(posix_fadvise(file, offset, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// Writes the first `size` bytes of `file` to the device step by step, then everything else with its size. `progress`
/// is called after each step, because all together may take long.
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

/// Starts to write the dirty pages of a range to the device, and does not wait for them. Failures are those of a later
/// `fsync`.
pub fn start_write_out(file: &File, range: &Range<u64>) -> io::Result<()> {
    let offset = |at: u64| i64::try_from(at).map_err(|_| Errno::EOVERFLOW);
    let (start, length) = (offset(range.start)?, offset(range.end - range.start)?);
    // SAFETY: the call takes no memory of ours.
    let started = unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
    Errno::result(started)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn dropped_pages_are_not_resident_until_they_are_read() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all_at(&vec![1; 4 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let held = || [0, MIB, 2 * MIB, 3 * MIB].map(|offset| is_resident(file.as_fd(), offset + 5).unwrap());
        assert_eq!(held(), [true; 4]);
        drop_cached(&file, &(0..4 * MIB)).unwrap();
        assert_eq!(held(), [false; 4]);
        let mut byte = [0];
        // A fast device may deliver the pages in time.
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
    fn written_pages_can_be_dropped() {
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
