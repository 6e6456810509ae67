//! `FS_IOC_FIEMAP`: where a file's data is stored (Linux `Documentation/filesystems/fiemap.rst`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// The last extent of the file (`FIEMAP_EXTENT_LAST`).
pub const LAST: u32 = 0x0001;
/// Allocated, never written: reads as zeros (`FIEMAP_EXTENT_UNWRITTEN`).
pub const UNWRITTEN: u32 = 0x0800;
/// Several runs of blocks reported as one (`FIEMAP_EXTENT_MERGED`).
pub const MERGED: u32 = 0x1000;
/// Perhaps shared with another file (`FIEMAP_EXTENT_SHARED`).
pub const SHARED: u32 = 0x2000;

/// Write dirty pages first, so that they have addresses (`FIEMAP_FLAG_SYNC`).
const FLAG_SYNC: u32 = 0x0001;

/// `struct fiemap_extent` of linux/fiemap.h. Positions and lengths are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawExtent {
    /// `fe_logical`: offset in the file.
    pub logical: u64,
    /// `fe_physical`: address on the device.
    pub physical: u64,
    /// `fe_length`
    pub length: u64,
    reserved64: [u64; 2],
    /// `fe_flags`: `FIEMAP_EXTENT_*`.
    pub flags: u32,
    reserved: [u32; 3],
}

impl RawExtent {
    /// An extent as the kernel returns it.
    pub fn new(logical: u64, physical: u64, length: u64, flags: u32) -> Self {
        Self { logical, physical, length, flags, ..Self::default() }
    }
}

/// `struct fiemap` of linux/fiemap.h, without the extents after it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

nix::ioctl_readwrite!(
    /// `FS_IOC_FIEMAP` of linux/fs.h: `_IOWR('f', 11, struct fiemap)`.
    fs_ioc_fiemap,
    b'f',
    11,
    Request
);

/// The usual capacity of a [`Reader`]: 56 KiB.
pub const EXTENTS_PER_CALL: u32 = 1024;

/// The sizes of the header and of one extent, in words.
const HEADER_WORDS: usize = size_of::<Request>() / size_of::<u64>();
const EXTENT_WORDS: usize = size_of::<RawExtent>() / size_of::<u64>();

/// A buffer for one answer of the kernel, reused for the whole map.
pub struct Reader {
    /// `struct fiemap` followed by its extents, as the kernel expects them.
    words: Vec<u64>,
    capacity: u32,
}

impl Reader {
    /// A buffer for `capacity` extents of 56 bytes.
    pub fn new(capacity: u32) -> Self {
        Self { words: vec![0; HEADER_WORDS + capacity as usize * EXTENT_WORDS], capacity }
    }

    /// The first extents of `file` that reach past the offset `start`, up to the capacity. A call that a signal
    /// interrupted is repeated.
    ///
    /// # Errors
    /// The errno of ioctl(2): `EOPNOTSUPP` if the file system has no FIEMAP.
    pub fn read(&mut self, file: BorrowedFd<'_>, start: u64) -> io::Result<&[RawExtent]> {
        let mapped = self.call(file, start, FLAG_SYNC)?.min(self.capacity) as usize;
        let extents = self.words[HEADER_WORDS..][..mapped * EXTENT_WORDS].as_ptr().cast::<RawExtent>();
        // SAFETY: the slice above holds the words of `mapped` extents. Any bits are a valid `RawExtent`, and `u64`s
        // have its alignment. The slice borrows from `self`, as does the result.
        Ok(unsafe { std::slice::from_raw_parts(extents, mapped) })
    }

    /// The number of extents of `file`.
    ///
    /// # Errors
    /// Those of [`Reader::read`].
    pub fn count(file: BorrowedFd<'_>) -> io::Result<u32> {
        // Without capacity the kernel returns only the number.
        Self::new(0).call(file, 0, FLAG_SYNC)
    }

    /// Whether `file` has an extent that reaches past the offset `start`. Dirty pages are not written for it.
    ///
    /// # Errors
    /// Those of [`Reader::read`].
    pub fn reaches_past(file: BorrowedFd<'_>, start: u64) -> io::Result<bool> {
        Ok(Self::new(0).call(file, start, 0)? > 0)
    }

    fn call(&mut self, file: BorrowedFd<'_>, start: u64, flags: u32) -> io::Result<u32> {
        let request = self.words.as_mut_ptr().cast::<Request>();
        loop {
            let asked =
                Request { start, length: u64::MAX - start, flags, extent_count: self.capacity, ..Request::default() };
            // SAFETY: `words` has at least the size of a `Request`, and its alignment.
            unsafe { request.write(asked) };
            // SAFETY: the pointer is to a `struct fiemap` with room for `extent_count` extents after it. The kernel
            // writes nothing else. The pointer stays valid and unaliased for the call.
            match unsafe { fs_ioc_fiemap(file.as_raw_fd(), request) } {
                // SAFETY: it was written above, and any bits are a valid `Request`.
                Ok(_) => return Ok(unsafe { request.read() }.mapped_extents),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_matches_the_kernel() {
        assert_eq!(size_of::<Request>(), 32);
        assert_eq!(size_of::<RawExtent>(), 56);
        assert_eq!(std::mem::offset_of!(RawExtent, flags), 40);
        assert_eq!((HEADER_WORDS, EXTENT_WORDS), (4, 7));
        assert_eq!(nix::request_code_readwrite!(b'f', 11, size_of::<Request>()), 0xc020_660b);
    }
}
