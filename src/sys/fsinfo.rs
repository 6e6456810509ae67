//! statfs(2): what a file system is.

use std::io;
use std::os::fd::AsFd;

use nix::sys::statfs::{self, FsType};

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
