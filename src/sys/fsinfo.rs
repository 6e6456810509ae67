//! statfs(2), statvfs(3), `XFS_IOC_FSGEOMETRY`: what a file system is, which one, and how full.
#![allow(unsafe_code)]

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::statfs::{self, FsType};
use nix::sys::statvfs;

/// Name of the file system that an open file lies on, as mount(8) spells it, or its magic number
/// (linux/magic.h) where it has no name here.
///
/// # Errors
/// The errno of fstatfs(2).
pub fn name_of(file: impl AsFd) -> io::Result<String> {
    const XFS: FsType = FsType(0x5846_5342);
    const OCFS2: FsType = FsType(0x7461_636f);
    let name = match statfs::fstatfs(file)?.filesystem_type() {
        XFS => "xfs",
        OCFS2 => "ocfs2",
        statfs::BTRFS_SUPER_MAGIC => "btrfs",
        statfs::EXT4_SUPER_MAGIC => "ext4", // ext2 and ext3 have the same number
        statfs::NFS_SUPER_MAGIC => "nfs",
        statfs::OVERLAYFS_SUPER_MAGIC => "overlay",
        statfs::TMPFS_MAGIC => "tmpfs",
        FsType(other) => return Ok(format!("{other:#x}")),
    };
    Ok(name.to_owned())
}

/// `struct xfs_fsop_geom_v1` of xfs/xfs_fs.h, of which one field is of use here.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct XfsGeometry {
    sizes: [u32; 8],
    counts: [u64; 4],
    uuid: [u8; 16],
    rest: [u32; 7],
}

nix::ioctl_read!(
    /// `XFS_IOC_FSGEOMETRY_V1` of xfs/xfs_fs.h: `_IOR('X', 100, struct xfs_fsop_geom_v1)`.
    xfs_ioc_fsgeometry_v1,
    b'X',
    100,
    XfsGeometry
);

/// A text that tells the file system of an open file from any other, and is the same after it was mounted anew.
///
/// On XFS it is its UUID: statfs(2) has the number of the device there, which another file system may get.
///
/// # Errors
/// The errno of fstatfs(2), fstatvfs(3) or ioctl(2).
pub fn identity(file: impl AsFd) -> io::Result<String> {
    let mut text = name_of(&file)?;
    if text == "xfs" {
        let mut geometry = XfsGeometry::default();
        // SAFETY: the pointer is to a `struct xfs_fsop_geom_v1`, which is all that the kernel writes to.
        unsafe { xfs_ioc_fsgeometry_v1(file.as_fd().as_raw_fd(), &mut geometry) }?;
        let _ = write!(text, ":{:032x}", u128::from_be_bytes(geometry.uuid));
    } else {
        let id = statvfs::fstatvfs(file)?.filesystem_id();
        let _ = write!(text, ":{id:x}");
    }
    Ok(text)
}

/// How large a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that can still be written.
    pub free: u64,
}

/// The space of the file system that an open file lies on.
///
/// # Errors
/// The errno of fstatvfs(3).
pub fn space(file: impl AsFd) -> io::Result<Space> {
    let found = statvfs::fstatvfs(file)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    Ok(Space { total: bytes(found.blocks()), free: bytes(found.blocks_available()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<XfsGeometry>(), 112);
        assert_eq!(std::mem::offset_of!(XfsGeometry, uuid), 64);
        assert_eq!(nix::request_code_read!(b'X', 100, size_of::<XfsGeometry>()), 0x8070_5864);
    }
}
