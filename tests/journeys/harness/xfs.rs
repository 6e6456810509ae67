//! A loop-mounted XFS of its own for each test.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

pub struct Xfs {
    pub mount_point: PathBuf,
    _dir: TempDir,
}

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
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount_point));
        Self { mount_point, _dir: dir }
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
