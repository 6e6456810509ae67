//! Reflinks: a new file that shares all blocks of another.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

nix::ioctl_write_int!(
    /// `FICLONE` of linux/fs.h: `_IOW(0x94, 9, int)`.
    ioctl_ficlone,
    0x94,
    9
);

/// `struct reflink_arguments` of fs/ocfs2/ocfs2_ioctl.h.
#[repr(C)]
struct ReflinkArguments {
    /// Address of the path of the source.
    old_path: u64,
    /// Address of the path of the file to create.
    new_path: u64,
    /// Not 0: keep owner, mode and times of the source.
    preserve: u64,
}

nix::ioctl_write_ptr!(
    /// `OCFS2_IOC_REFLINK` of fs/ocfs2/ocfs2_ioctl.h: `_IOW('o', 4, struct reflink_arguments)`.
    ioctl_ocfs2_reflink,
    b'o',
    4,
    ReflinkArguments
);

/// Makes `target`, a new and empty file, share every block of `source` (ioctl_ficlone(2)).
///
/// # Errors
/// The errno of ioctl(2): `EOPNOTSUPP` if the file system cannot share blocks, `EXDEV` if the files are on two file
/// systems, `EINVAL` if the file cannot be cloned, `ENOSPC`, `EROFS`, `EIO`.
pub fn ficlone(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // The argument is passed as unsigned long. A descriptor is never negative.
    let source = source.as_raw_fd() as nix::sys::ioctl::ioctl_param_type;
    // SAFETY: FICLONE takes two descriptors by value and accesses no memory of ours. Both are borrowed, so they stay
    // open for the call.
    unsafe { ioctl_ficlone(target.as_raw_fd(), source) }?;
    Ok(())
}

/// Creates `target_path` on OCFS2 as a file that shares every block of `source`, the file at `source_path`. A link at
/// the end of either path is not followed.
///
/// OCFS2 of kernel 4.1 has no other call. The kernel opens the source by its path; the descriptor only names the
/// volume. The new file has the mode of the source, and belongs to the caller.
///
/// # Errors
/// The errno of ioctl(2): `EEXIST` if the new file exists, `EOPNOTSUPP` if the volume was made without the refcount
/// feature, `EPERM` if the source is not a regular file or must not be changed, `EXDEV`, `ENOSPC`, `EROFS`, `EIO`;
/// `ENOTTY` on other file systems.
pub fn ocfs2(source: BorrowedFd<'_>, source_path: &CStr, target_path: &CStr) -> io::Result<()> {
    let arguments =
        ReflinkArguments { old_path: source_path.as_ptr() as u64, new_path: target_path.as_ptr() as u64, preserve: 0 };
    // SAFETY: the argument is a `ReflinkArguments` of the kernel's layout. It holds the addresses of two strings that
    // end in NUL. All three are borrowed for the call, and the kernel only reads them.
    unsafe { ioctl_ocfs2_reflink(source.as_raw_fd(), &arguments) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_numbers_match_the_kernel() {
        assert_eq!(nix::request_code_write!(0x94, 9, size_of::<nix::libc::c_int>()), 0x4004_9409);
        assert_eq!(nix::request_code_write!(b'o', 4, size_of::<ReflinkArguments>()), 0x4018_6f04);
    }
}
