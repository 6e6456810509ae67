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

/// Extents asked for at a time, where nothing speaks for more: 56 KiB of room.
pub const PAGE: u32 = 1024;

/// Words before the extents, and words of an extent.
const HEAD: usize = size_of::<Request>() / size_of::<u64>();
const EXTENT: usize = size_of::<RawExtent>() / size_of::<u64>();

/// Room for one answer; made once, used for a whole map.
pub struct Reader {
    /// `struct fiemap` and its extents, side by side as the kernel wants them.
    words: Vec<u64>,
    room: u32,
}

impl Reader {
    /// Room for `room` extents at a time, 56 bytes each.
    pub fn new(room: u32) -> Self {
        Self { words: vec![0; HEAD + room as usize * EXTENT], room }
    }

    /// The first extents of `file` that reach past `start` bytes, as many as there is room for;
    /// none where there are none.
    ///
    /// # Errors
    /// The errno of ioctl(2); `EOPNOTSUPP` where the file system has no FIEMAP. A call that a
    /// signal interrupted is made again.
    pub fn read(&mut self, file: BorrowedFd<'_>, start: u64) -> io::Result<&[RawExtent]> {
        let mapped = self.ask(file, start, FLAG_SYNC)?.min(self.room) as usize;
        let extents = self.words[HEAD..][..mapped * EXTENT].as_ptr().cast::<RawExtent>();
        // SAFETY: the slice before holds the words of `mapped` extents, which any bits are good for,
        // at the alignment of their `u64`s; it is borrowed from `self`, as is what is returned.
        Ok(unsafe { std::slice::from_raw_parts(extents, mapped) })
    }

    /// How many extents `file` has.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn count(file: BorrowedFd<'_>) -> io::Result<u32> {
        // A request without room is answered with the number alone.
        Self::new(0).ask(file, 0, FLAG_SYNC)
    }

    /// Whether `file` has an extent that reaches past `start` bytes. Nothing is written out for it.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn reaches_past(file: BorrowedFd<'_>, start: u64) -> io::Result<bool> {
        Ok(Self::new(0).ask(file, start, 0)? > 0)
    }

    fn ask(&mut self, file: BorrowedFd<'_>, start: u64, flags: u32) -> io::Result<u32> {
        let request = self.words.as_mut_ptr().cast::<Request>();
        loop {
            let asked =
                Request { start, length: u64::MAX - start, flags, extent_count: self.room, ..Request::default() };
            // SAFETY: `words` has at least the words of a `Request`, at its alignment.
            unsafe { request.write(asked) };
            // SAFETY: the pointer is to a `struct fiemap` followed by room for `extent_count`
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
        assert_eq!((HEAD, EXTENT), (4, 7));
        assert_eq!(nix::request_code_readwrite!(b'f', 11, size_of::<Request>()), 0xc020_660b);
    }
}
