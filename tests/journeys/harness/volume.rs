//! A loop-mounted file system of its own for each test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Once;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::wait::eventually;

pub struct Volume {
    pub mount_point: PathBuf,
    /// Options of mount(8), besides `-o loop`.
    options: &'static [&'static str],
    dir: TempDir,
}

/// What stands between a volume and its image, and can be made to hang.
pub struct Device {
    daemon: Child,
    image: PathBuf,
}

/// A device that answers nothing, until this is dropped.
pub struct Hanging(Pid);

/// A file system on which every write waits, until this is dropped.
pub struct Frozen<'a>(&'a Path);

impl Volume {
    /// A new XFS with reflinks, `megabytes` large; the image is sparse.
    pub fn xfs(megabytes: u64) -> Self {
        Self::xfs_with(megabytes, &["-m", "reflink=1"])
    }

    /// The same with other options of mkfs.xfs(8). It has to have at least 300 MB.
    pub fn xfs_with(megabytes: u64, options: &[&str]) -> Self {
        Self::new(megabytes, &[], |image| run(Command::new("mkfs.xfs").arg("-q").args(options).arg(image)))
    }

    /// A new OCFS2 of one server's own. The kernel has to know OCFS2.
    pub fn ocfs2(megabytes: u64, cluster: u64, features: &str) -> Self {
        let options = ["-q", "-F", "-M", "local", "-N", "1", "-b", "4096", "-J", "size=16M"];
        // `-i`: the program that mount(8) would call wants a cluster.
        Self::new(megabytes, &["-i", "-t", "ocfs2"], |image| {
            // By a device: mkfs.ocfs2 opens with O_DIRECT, which an image on tmpfs refuses.
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
        run(Command::new("mount").args(self.options).args(["-o", "loop"]).arg(self.image()).arg(&self.mount_point));
    }

    /// The file that it lies in.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// The device that it is mounted from.
    pub fn device(&self) -> String {
        let device =
            output(Command::new("findmnt").args(["--noheadings", "--output", "SOURCE"]).arg(&self.mount_point));
        device.trim().to_owned()
    }

    pub fn unmount(&self) {
        run(Command::new("umount").arg(&self.mount_point));
    }

    /// Changes options of the mount: `ro` or `rw`.
    pub fn remount(&self, options: &str) {
        run(Command::new("mount").arg("-o").arg(format!("remount,{options}")).arg(&self.mount_point));
    }

    /// What a power cut does to an XFS: all that was not written out is lost. Nobody may
    /// have a file open on it.
    pub fn cut_power(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mount_point));
        self.unmount();
        self.mount();
    }

    /// Puts a device between the mounted volume and its image.
    pub fn behind_a_device(&self) -> Device {
        self.unmount();
        let image = self.image();
        let is_mounted = || {
            output(Command::new("findmnt").args(["--noheadings", "--output", "TARGET"]))
                .contains(image.to_str().unwrap())
        };
        let (blocks, path) =
            (format!("driver=file,node-name=image,locking=off,filename={}", image.display()), image.display());
        let mut daemon = Command::new("qemu-storage-daemon");
        daemon.args(["--blockdev", &blocks, "--export"]);
        daemon.arg(format!("type=fuse,id=device,node-name=image,writable=on,mountpoint={path}"));
        let daemon = daemon.spawn().unwrap();
        eventually("the device is mounted", is_mounted);
        self.mount();
        Device { daemon, image }
    }

    pub fn freeze(&self) -> Frozen<'_> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.mount_point));
        Frozen(&self.mount_point)
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
        // While it was mounted, the volume could not remove it.
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
        // Lazily: a client that a failed test left running must not keep the image.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount_point).status();
    }
}

/// Has the mount namespaces of other tests, which are copies of this one, give up what is unmounted here: else the
/// file system lives on in them, and the next mount finds it as it was left. Only in a namespace of the tests' own.
fn share_unmounts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        if namespace("self") != namespace("1") {
            run(Command::new("mount").args(["--make-rshared", "/"]));
        }
    });
}

/// Runs a command that has to succeed.
pub fn run(command: &mut Command) {
    output(command);
}

/// The same; returns what it prints.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
