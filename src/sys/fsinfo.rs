//! statfs(2) and statvfs(3): which file system, and how full.

use std::io;
use std::os::fd::AsFd;

use nix::sys::statfs::{self, FsType};
use nix::sys::statvfs;

/// The name of the file system of an open file, as mount(8) spells it. Unknown ones have their magic number of
/// linux/magic.h.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub total: u64,
    /// Bytes that can still be written.
    pub free: u64,
    pub is_read_only: bool,
}

/// The space of the file system of an open file.
pub fn space(file: impl AsFd) -> io::Result<Space> {
    let found = statvfs::fstatvfs(file)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    Ok(Space {
        total: bytes(found.blocks()),
        free: bytes(found.blocks_available()),
        is_read_only: found.flags().contains(statvfs::FsFlags::ST_RDONLY),
    })
}
