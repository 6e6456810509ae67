//! `FS_IOC_FIEMAP`: where a file's data is stored (Linux `Documentation/filesystems/fiemap.rst`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// The last extent of the file (`FIEMAP_EXTENT_LAST`).
pub const LAST: u32 = 0x0001;
/// Allocated, never written: reads as zeros (`FIEMAP_EXTENT_UNWRITTEN`).
pub const UNWRITTEN: u32 = 0x0800;
/// Several runs of blocks told as one (`FIEMAP_EXTENT_MERGED`).
pub const MERGED: u32 = 0x1000;
/// Shared with another file, perhaps (`FIEMAP_EXTENT_SHARED`).
pub const SHARED: u32 = 0x2000;

/// Place dirty pages before answering (`FIEMAP_FLAG_SYNC`).
const FLAG_SYNC: u32 = 0x0001;

/// `struct fiemap_extent` of linux/fiemap.h. All positions and lengths in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawExtent {
    /// Offset in the file (`fe_logical`).
    pub logical: u64,
    /// Address on the device (`fe_physical`).
    pub physical: u64,
    /// Length (`fe_length`).
    pub length: u64,
    reserved64: [u64; 2],
    /// `FIEMAP_EXTENT_*` (`fe_flags`).
    pub flags: u32,
    reserved: [u32; 3],
}

impl RawExtent {
    /// An extent as the kernel would give it.
    pub fn new(logical: u64, physical: u64, length: u64, flags: u32) -> Self {
        Self { logical, physical, length, flags, ..Self::default() }
    }
}

/// `struct fiemap` of linux/fiemap.h, without its tail of extents.
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

/// Extents asked for at a time, where nothing speaks for more: 56 KiB of capacity.
pub const EXTENTS_PER_CALL: u32 = 1024;

/// Words before the extents, and words of an extent.
const HEADER_WORDS: usize = size_of::<Request>() / size_of::<u64>();
const EXTENT_WORDS: usize = size_of::<RawExtent>() / size_of::<u64>();

/// Room for one answer; made once, used for a whole map.
pub struct Reader {
    /// `struct fiemap` and its extents, side by side as the kernel wants them.
    words: Vec<u64>,
    capacity: u32,
}

impl Reader {
    /// Room for `capacity` extents at a time, 56 bytes each.
    pub fn new(capacity: u32) -> Self {
        Self { words: vec![0; HEADER_WORDS + capacity as usize * EXTENT_WORDS], capacity }
    }

    /// The first extents of `file` that reach past `start` bytes, as many as there is capacity for;
    /// none where there are none.
    ///
    /// # Errors
    /// The errno of ioctl(2); `EOPNOTSUPP` where the file system has no FIEMAP. A call that a
    /// signal interrupted is made again.
    pub fn read(&mut self, file: BorrowedFd<'_>, start: u64) -> io::Result<&[RawExtent]> {
        let mapped = self.call(file, start, FLAG_SYNC)?.min(self.capacity) as usize;
        let extents = self.words[HEADER_WORDS..][..mapped * EXTENT_WORDS].as_ptr().cast::<RawExtent>();
        // SAFETY: the slice before holds the words of `mapped` extents, which any bits are good for,
        // at the alignment of their `u64`s; it is borrowed from `self`, as is what is returned.
        Ok(unsafe { std::slice::from_raw_parts(extents, mapped) })
    }

    /// How many extents `file` has.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn count(file: BorrowedFd<'_>) -> io::Result<u32> {
        // A request without capacity is answered with the number alone.
        Self::new(0).call(file, 0, FLAG_SYNC)
    }

    /// Whether `file` has an extent that reaches past `start` bytes. Nothing is written out for it.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn reaches_past(file: BorrowedFd<'_>, start: u64) -> io::Result<bool> {
        Ok(Self::new(0).call(file, start, 0)? > 0)
    }

    fn call(&mut self, file: BorrowedFd<'_>, start: u64, flags: u32) -> io::Result<u32> {
        let request = self.words.as_mut_ptr().cast::<Request>();
        loop {
            let asked =
                Request { start, length: u64::MAX - start, flags, extent_count: self.capacity, ..Request::default() };
            // SAFETY: `words` has at least the words of a `Request`, at its alignment.
            unsafe { request.write(asked) };
            // SAFETY: the pointer is to a `struct fiemap` followed by capacity for `extent_count`
            // extents, which is all that the kernel writes to. It stays valid and unaliased for the
            // call.
            match unsafe { fs_ioc_fiemap(file.as_raw_fd(), request) } {
                // SAFETY: it was written above, and any bits are a good `Request`.
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
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<Request>(), 32);
        assert_eq!(size_of::<RawExtent>(), 56);
        assert_eq!(std::mem::offset_of!(RawExtent, flags), 40);
        assert_eq!((HEADER_WORDS, EXTENT_WORDS), (4, 7));
        assert_eq!(nix::request_code_readwrite!(b'f', 11, size_of::<Request>()), 0xc020_660b);
    }
}
