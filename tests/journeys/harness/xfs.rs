//! A loop-mounted XFS of its own for each test.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

pub struct Xfs {
    pub mount_point: PathBuf,
    dir: TempDir,
}

/// A file system on which every write waits, until this is dropped.
pub struct Frozen<'a>(&'a Path);

impl Xfs {
    /// A new XFS with reflinks, `megabytes` large; the image is sparse.
    pub fn new(megabytes: u64) -> Self {
        Self::made_with(megabytes, &["-m", "reflink=1"])
    }

    /// The same with other options of mkfs.xfs(8). It has to have at least 300 MB.
    pub fn made_with(megabytes: u64, options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("exporter-xfs.").tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        run(Command::new("mkfs.xfs").arg("-q").args(options).arg(&image));
        let mount_point = dir.path().canonicalize().unwrap().join("mnt");
        std::fs::create_dir(&mount_point).unwrap();
        let xfs = Self { mount_point, dir };
        xfs.mount();
        xfs
    }

    pub fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.dir.path().join("image")).arg(&self.mount_point));
    }

    pub fn unmount(&self) {
        run(Command::new("umount").arg(&self.mount_point));
    }

    /// Changes options of the mount: `ro` or `rw`.
    pub fn remount(&self, options: &str) {
        run(Command::new("mount").arg("-o").arg(format!("remount,{options}")).arg(&self.mount_point));
    }

    /// What a power cut does to the file system: all that was not written out is lost. Nobody may
    /// have a file open on it.
    pub fn cut_power(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mount_point));
        self.unmount();
        self.mount();
    }

    pub fn freeze(&self) -> Frozen<'_> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.mount_point));
        Frozen(&self.mount_point)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).status();
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        // Lazily: a client that a failed test left running must not keep the image.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount_point).status();
    }
}

/// Runs a command that has to succeed.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
