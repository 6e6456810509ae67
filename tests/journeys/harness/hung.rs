//! A file system that never responds.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A FUSE mount without a server: every access blocks until this is dropped.
pub struct HungMount {
    mount_point: PathBuf,
    /// Closing it fails all blocked accesses.
    _device: File,
}

impl HungMount {
    pub fn at(mount_point: &Path) -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("hung"), mount_point, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { mount_point: mount_point.to_owned(), _device: device }
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        let _ = umount2(&self.mount_point, MntFlags::MNT_DETACH);
    }
}
