//! `FICLONE`: make one file share all blocks of another (ioctl_ficlone(2)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

nix::ioctl_write_int!(
    /// `FICLONE` of linux/fs.h: `_IOW(0x94, 9, int)`.
    ficlone,
    0x94,
    9
);

/// Makes `target`, a new and empty file, share every block of `source`.
///
/// # Errors
/// The errno of ioctl(2): `EOPNOTSUPP` where the file system cannot share blocks, `EXDEV` where the
/// files lie on two, `EINVAL` where the file cannot be cloned, `ENOSPC`, `EROFS`, `EIO`.
pub fn clone_whole(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // The argument is passed as unsigned long; a descriptor is never negative.
    let source = source.as_raw_fd() as nix::sys::ioctl::ioctl_param_type;
    // SAFETY: FICLONE takes two descriptors by value and touches no memory of ours; both are
    // borrowed, so they are open for the whole call.
    unsafe { ficlone(target.as_raw_fd(), source) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_number_is_the_kernels() {
        assert_eq!(nix::request_code_write!(0x94, 9, size_of::<nix::libc::c_int>()), 0x4004_9409);
    }
}
