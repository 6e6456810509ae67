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

/// One request and the room for its answer, side by side as the kernel wants them.
#[repr(C)]
struct Page<const N: usize> {
    request: Request,
    extents: [RawExtent; N],
}

/// Extents asked for at a time: 56 KiB of room.
const PAGE: usize = 1024;

/// Room for one answer; made once, used for a whole map.
pub struct Reader {
    page: Box<Page<PAGE>>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { page: Box::new(Page { request: Request::default(), extents: [RawExtent::default(); PAGE] }) }
    }
}

impl Reader {
    /// The first extents of `file` that reach past `start` bytes; none where there are none.
    ///
    /// # Errors
    /// The errno of ioctl(2); `EOPNOTSUPP` where the file system has no FIEMAP. A call that a
    /// signal interrupted is made again.
    pub fn read(&mut self, file: BorrowedFd<'_>, start: u64) -> io::Result<&[RawExtent]> {
        loop {
            self.page.request = Request {
                start,
                length: u64::MAX - start,
                flags: FLAG_SYNC,
                extent_count: PAGE as u32,
                ..Request::default()
            };
            let page: *mut Page<PAGE> = &mut *self.page;
            // SAFETY: the pointer is to a whole `Page`, whose layout is that of `struct fiemap`
            // followed by `extent_count` extents, which is all that the kernel writes to. It stays
            // valid and unaliased for the call, and any bytes are valid in each field.
            let outcome = unsafe { fs_ioc_fiemap(file.as_raw_fd(), page.cast::<Request>()) };
            match outcome {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mapped = (self.page.request.mapped_extents as usize).min(PAGE);
        Ok(&self.page.extents[..mapped])
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
        assert_eq!(std::mem::offset_of!(Page<4>, extents), 32);
        assert_eq!(nix::request_code_readwrite!(b'f', 11, size_of::<Request>()), 0xc020_660b);
    }
}
