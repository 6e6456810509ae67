//! The id of a file system: its UUID, on whatever host and device it is mounted.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::statfs::{self, FsType};

/// `struct xfs_fsop_geom_v1` of linux `fs/xfs/libxfs/xfs_fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct XfsGeometry {
    sizes: [u32; 8],
    blocks: [u64; 4],
    uuid: [u8; 16],
    rest: [u32; 7],
}

nix::ioctl_read!(
    /// `XFS_IOC_FSGEOMETRY_V1`: `_IOR('X', 100, struct xfs_fsop_geom_v1)`.
    xfs_ioc_fsgeometry,
    b'X',
    100,
    XfsGeometry
);

/// The id of the file system of an open file. `None` if it has no id that survives a remount.
pub fn id_of(file: impl AsFd) -> io::Result<Option<[u8; 16]>> {
    const XFS: FsType = FsType(0x5846_5342);
    // These file systems derive their f_fsid from their UUID. XFS reports a device number there, others nothing.
    const OCFS2: FsType = FsType(0x7461_636f);
    let found = statfs::fstatfs(&file)?;
    match found.filesystem_type() {
        XFS => xfs_uuid(file.as_fd()).map(Some),
        OCFS2 | statfs::BTRFS_SUPER_MAGIC | statfs::EXT4_SUPER_MAGIC => Ok(fsid(&found)),
        _ => Ok(None),
    }
}

fn xfs_uuid(file: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut geometry = XfsGeometry::default();
    // SAFETY: the pointer is to a `struct xfs_fsop_geom_v1`, and the kernel writes no more than that.
    unsafe { xfs_ioc_fsgeometry(file.as_raw_fd(), &raw mut geometry) }?;
    Ok(geometry.uuid)
}

fn fsid(found: &statfs::Statfs) -> Option<[u8; 16]> {
    let fsid = found.filesystem_id();
    // SAFETY: `fsid_t` is two `int`s, and any bits are valid bytes.
    let bytes: [u8; 8] = unsafe { std::mem::transmute(fsid) };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&bytes);
    (id != [0; 16]).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_geometry_has_the_size_of_its_request() {
        assert_eq!(size_of::<XfsGeometry>(), 112);
    }

    #[test]
    fn a_file_system_without_a_uuid_has_no_id() {
        assert_eq!(id_of(std::fs::File::open("/proc").unwrap()).unwrap(), None);
    }
}
