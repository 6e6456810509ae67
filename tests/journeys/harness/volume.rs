//! Loop-mounted file systems, one for each test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Once;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::wait::eventually;

pub struct Volume {
    pub mount_point: PathBuf,
    /// Options of mount(8) besides `-o loop`.
    options: &'static [&'static str],
    dir: TempDir,
}

/// A FUSE file over the image of a volume, which can be made to hang.
pub struct Device {
    daemon: Child,
    image: PathBuf,
}

/// A device that does not respond until this is dropped.
pub struct Hanging(Pid);

/// A frozen file system; dropping this thaws it.
pub struct Frozen<'a>(&'a Path);

impl Volume {
    /// Makes and mounts an XFS with reflinks. The image is sparse.
    pub fn xfs(megabytes: u64) -> Self {
        Self::xfs_with(megabytes, &["-m", "reflink=1"])
    }

    /// As [`Self::xfs`], with other options of mkfs.xfs(8), which wants at least 300 MB.
    pub fn xfs_with(megabytes: u64, options: &[&str]) -> Self {
        Self::new(megabytes, &[], |image| run(Command::new("mkfs.xfs").arg("-q").args(options).arg(image)))
    }

    /// Makes and mounts an ext4, which cannot clone files.
    pub fn ext4(megabytes: u64) -> Self {
        Self::new(megabytes, &[], |image| run(Command::new("mkfs.ext4").arg("-qF").arg(image)))
    }

    /// Makes and mounts a local OCFS2. The kernel has to support OCFS2.
    pub fn ocfs2(megabytes: u64, cluster: u64, features: &str) -> Self {
        let options = ["-q", "-F", "-M", "local", "-N", "1", "-b", "4096", "-J", "size=16M"];
        // `-i`: mount.ocfs2, which mount(8) would call, wants a cluster.
        Self::new(megabytes, &["-i", "-t", "ocfs2"], |image| {
            // On a loop device: mkfs.ocfs2 uses O_DIRECT, which a file on tmpfs refuses.
            let device = output(Command::new("losetup").args(["--find", "--show"]).arg(image));
            let mut mkfs = Command::new("mkfs.ocfs2");
            mkfs.args(options).arg("-C").arg(cluster.to_string()).arg(format!("--fs-features=local,{features}"));
            run(mkfs.arg(device.trim()));
            run(Command::new("losetup").args(["--detach", device.trim()]));
        })
    }

    fn new(megabytes: u64, options: &'static [&'static str], mkfs: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("exporter-volume.").tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        mkfs(&image);
        let mount_point = dir.path().canonicalize().unwrap().join("mnt");
        std::fs::create_dir(&mount_point).unwrap();
        let volume = Self { mount_point, options, dir };
        volume.mount();
        volume
    }

    pub fn mount(&self) {
        share_unmounts();
        run(&mut self.mount_command());
    }

    /// Mounts it with these options of mount(8) too.
    pub fn mount_with(&self, options: &str) {
        run(self.mount_command().args(["-o", options]));
    }

    /// As [`Self::mount`]; returns whether it succeeded.
    pub fn try_mount(&self) -> bool {
        self.mount_command().output().unwrap().status.success()
    }

    fn mount_command(&self) -> Command {
        let mut mount = Command::new("mount");
        mount.args(self.options).args(["-o", "loop"]).arg(self.image()).arg(&self.mount_point);
        mount
    }

    /// The image file.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// The loop device that is mounted.
    pub fn device(&self) -> String {
        let device =
            output(Command::new("findmnt").args(["--noheadings", "--output", "SOURCE"]).arg(&self.mount_point));
        device.trim().to_owned()
    }

    pub fn unmount(&self) {
        run(Command::new("umount").arg(&self.mount_point));
    }

    /// Remounts with `ro` or `rw`.
    pub fn remount(&self, options: &str) {
        run(Command::new("mount").arg("-o").arg(format!("remount,{options}")).arg(&self.mount_point));
    }

    pub fn sync(&self) {
        run(Command::new("sync").arg("--file-system").arg(&self.mount_point));
    }

    /// Shuts an XFS down: all later I/O fails.
    pub fn shut_down(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mount_point));
    }

    /// Simulates a power cut on an XFS: data that was not written back is lost. No file may be open.
    pub fn cut_power(&self) {
        self.shut_down();
        self.unmount();
        self.mount();
    }

    /// Puts a FUSE file between the mounted volume and its image.
    pub fn behind_a_device(&self) -> Device {
        self.unmount();
        let image = self.image();
        let blocks = format!("driver=file,node-name=image,locking=off,filename={}", image.display());
        let daemon = export(&image, &[blocks]);
        self.mount();
        Device { daemon, image }
    }

    pub fn freeze(&self) -> Frozen<'_> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.mount_point));
        self.thaw_on_drop()
    }

    /// Thaws the file system at the end of a test, in case a hook has left it frozen.
    pub fn thaw_on_drop(&self) -> Frozen<'_> {
        Frozen(&self.mount_point)
    }

    /// Thaws the file system; returns whether it was frozen.
    pub fn thaw(&self) -> bool {
        let mut thaw = Command::new("fsfreeze");
        thaw.arg("--unfreeze").arg(&self.mount_point).output().unwrap().status.success()
    }
}

impl Device {
    pub fn hang(&self) -> Hanging {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        Hanging(pid)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.image).status();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        // The volume could not remove the image while it was mounted.
        let _ = std::fs::remove_dir_all(self.image.parent().unwrap());
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).status();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily, since a process that a failed test left running may have files open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount_point).status();
    }
}

/// A tmpfs in a folder of its own.
pub struct Tmpfs(TempDir);

impl Tmpfs {
    /// `options` of mount(8), for example `size=6m`.
    pub fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()));
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Makes unmounts propagate to the mount namespaces of other tests, which are copies of this one. Otherwise the file
/// system stays mounted there, and the next mount finds its old state. Only in a private namespace.
fn share_unmounts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        if namespace("self") != namespace("1") {
            run(Command::new("mount").args(["--make-rshared", "/"]));
        }
    });
}

/// Mounts a FUSE file over the `image`, with the block devices of qemu(1); `image` is the name of the exported one.
pub(super) fn export(image: &Path, devices: &[String]) -> Child {
    let path = image.to_str().unwrap();
    let mut daemon = Command::new("qemu-storage-daemon");
    for device in devices {
        daemon.args(["--blockdev", device]);
    }
    daemon.args(["--export", &format!("type=fuse,id=device,node-name=image,writable=on,mountpoint={path}")]);
    let daemon = daemon.spawn().unwrap();
    let targets = || output(Command::new("findmnt").args(["--noheadings", "--output", "TARGET"]));
    eventually("the device is mounted", || targets().lines().any(|target| target.ends_with(path)));
    daemon
}

/// Runs a command; panics if it fails.
pub fn run(command: &mut Command) {
    output(command);
}

/// Runs a command; returns its standard output, and panics if it fails.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
