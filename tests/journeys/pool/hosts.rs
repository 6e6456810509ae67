//! Two hosts of a pool: nodes that share a repository on OCFS2, each with its exporter, and a manager for both.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::node::{Hardware, Node};
use crate::harness::{
    Certificates, Client, Manager, PASSWORD, Settings, USER, VM, define_vm, free_port, make_repository, output, run,
    text,
};

const REPOSITORY: &str = "0004fb0000030000a1b2c3d4e5f60718";

/// The disk of [`VM`].
pub const DISK: &str = "a.img";

/// Its size in MiB: more than the buffers of a download hold.
const DISK_SIZE: u64 = 16;

/// A host of the pool.
pub struct Host {
    pub node: Node,
    /// With a token that both exporters accept.
    pub client: Client,
}

pub struct Hosts {
    /// Dropped first: they use the rest.
    pub a: Host,
    pub b: Host,
    _manager: Manager,
    image: TempDir,
    certificates: Certificates,
}

impl Hosts {
    /// Starts both, with the same repository mounted, [`VM`] in it, and their exporters.
    pub fn start() -> Self {
        let image = make_volume();
        let certificates = Certificates::new();
        certificates.issue_for("manager", &["10.0.2.2"]);
        let manager = Manager::start_with(&certificates, "manager");
        let ports = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let [a, b] = [1_u8, 2].map(|number| {
            let own = usize::from(number) - 1;
            let hardware = Hardware {
                number,
                image: image.path().join("image"),
                network: (ports[own], ports[1 - own]),
                https: free_port(),
            };
            let mut node = Node::new(hardware);
            node.switch_on();
            write_settings(&node, &certificates, &manager);
            let client = Client::at(node.hardware.https, &certificates);
            Host { node, client }
        });
        let mut hosts = Self { a, b, _manager: manager, image, certificates };
        for host in [&mut hosts.a, &mut hosts.b] {
            host.node.wait_until_up();
        }
        hosts.on_both(|host| host.mount(""));
        hosts.a.fill_repository();
        hosts.on_both(Host::start_exporter);
        // The exporters share the key of the tokens.
        let token = text(&hosts.a.client.try_log_in(USER, PASSWORD).ok()["token"]);
        hosts.a.client.token = token.clone();
        hosts.b.client.token = token;
        hosts
    }

    /// A client of a host's exporter, for another thread.
    pub fn client_of(&self, host: &Host) -> Client {
        let mut client = Client::at(host.node.hardware.https, &self.certificates);
        client.token = host.client.token.clone();
        client
    }

    /// Runs something on both hosts at once.
    pub fn on_both(&self, work: impl Fn(&Host) + Sync) {
        std::thread::scope(|scope| {
            for host in [&self.a, &self.b] {
                scope.spawn(|| work(host));
            }
        });
    }

    /// Unmounts the repository, switches both hosts off, and checks the file system.
    pub fn check_file_system(mut self) {
        self.on_both(|host| {
            host.stop_exporter("TERM");
            host.unmount();
        });
        for host in [&mut self.a, &mut self.b] {
            host.node.switch_off();
        }
        let device = LoopDevice::of(&self.image.path().join("image"));
        let check = Command::new("fsck.ocfs2").args(["-f", "-n", &device.0]).output().unwrap();
        let printed = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success() && printed.contains("All passes succeeded"), "{printed}");
    }
}

impl Host {
    /// The mount point of the repository, in the node.
    pub fn repository(&self) -> PathBuf {
        repository()
    }

    pub fn snapshot_folder(&self, id: &str) -> PathBuf {
        repository().join("CoriolisSnapshots").join(id)
    }

    /// Mounts the repository with `options` besides the usual ones.
    pub fn mount(&self, options: &str) {
        let at = repository();
        let options = if options.is_empty() { String::new() } else { format!("-o {options}") };
        self.node.run(&format!("mkdir -p {at:?}; mount -t ocfs2 {options} /dev/vda {at:?}"));
    }

    fn unmount(&self) {
        self.node.run(&format!("umount {:?}", repository()));
    }

    fn fill_repository(&self) {
        let at = repository();
        let template = make_repository(&self.node.state(), REPOSITORY);
        define_vm(&template, VM, &[at.join("VirtualDisks").join(DISK)]);
        self.node.run(&format!(
            "set -e; cp -r {template:?}/. {at:?}; rm -r {template:?}\n\
             dd if=/dev/urandom of={at:?}/VirtualDisks/{DISK} bs=1M count={DISK_SIZE} conv=fsync status=none"
        ));
    }

    /// Writes into the disk of [`VM`], as its guest on this host does.
    pub fn write_disk(&self, offset: u64, bytes: &[u8]) {
        let from = self.node.state().join("bytes");
        fs::write(&from, bytes).unwrap();
        let disk = repository().join("VirtualDisks").join(DISK);
        self.node.run(&format!(
            "dd if={from:?} of={disk:?} bs=64k seek={offset} oflag=seek_bytes conv=notrunc,fsync status=none"
        ));
    }

    /// Starts the exporter, and waits until it answers.
    pub fn start_exporter(&self) {
        let (state, program) = (self.node.state(), env!("CARGO_BIN_EXE_coriolis-ovm-exporter"));
        self.node.run(&format!(
            "mkdir -p -m 700 /run/exporter; cd {state:?}\n\
             setsid {program:?} --config config.toml </dev/null >>log 2>&1 & echo $! >pid\n\
             while ! (exec 3<>/dev/tcp/127.0.0.1/5544) 2>/dev/null; do\n\
                 [ -d /proc/$! ] || {{ tail -n 5 log; exit 1; }}; sleep 0.1\n\
             done"
        ));
    }

    /// Ends the exporter with `signal`; returns when it has ended.
    pub fn stop_exporter(&self, signal: &str) {
        let pid = self.node.state().join("pid");
        self.node.run(&format!("kill -{signal} $(cat {pid:?}); while [ -d /proc/$(cat {pid:?}) ]; do sleep 0.1; done"));
    }

    /// Kills the exporter, and the hooks that it runs, as a service manager does.
    pub fn kill_exporter(&self) {
        self.stop_exporter("KILL");
        let hooks = self.node.state().join("hooks.d");
        let running = format!("grep -slz '^{}/' /proc/[0-9]*/cmdline | cut -d/ -f3", hooks.display());
        self.node.run(&format!("{running} | xargs -r kill -KILL; while [ \"$({running})\" ]; do sleep 0.1; done"));
    }

    /// Runs a command of the exporter with its config; returns its exit status and its output.
    pub fn command(&self, arguments: &str) -> (i32, String) {
        let (state, program) = (self.node.state(), env!("CARGO_BIN_EXE_coriolis-ovm-exporter"));
        let outcome =
            self.node.try_run(&format!("{program:?} {arguments} --config {state:?}/config.toml"), 60).unwrap();
        (outcome.status, outcome.output)
    }

    /// Installs a program as a hook, in which `$STATE` is [`Node::state`] and `$REPOSITORY` the repository.
    pub fn put_hook(&self, name: &str, script: &str) {
        let (path, state) = (self.node.state().join("hooks.d").join(name), self.node.state());
        let head = format!("#!/bin/bash\nSTATE={state:?}\nREPOSITORY={:?}\n", repository());
        fs::write(&path, head + script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The checksum of a file in the node.
    pub fn checksum(&self, path: &Path) -> String {
        self.node.run(&format!("b3sum --no-names {path:?}"))
    }

    /// The extent map of a file in the node, without the file's name.
    pub fn extent_map(&self, path: &Path) -> String {
        let printed = self.node.run(&format!("filefrag -v {path:?}"));
        printed
            .lines()
            .filter(|line| line.trim().starts_with(|c: char| c.is_ascii_digit()))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The names in the folder of all snapshots, with those of the pool's own files.
    pub fn snapshot_folders(&self) -> Vec<String> {
        let listed = self.node.run(&format!("ls {:?}/CoriolisSnapshots", repository()));
        listed.lines().map(str::to_owned).collect()
    }
}

fn repository() -> PathBuf {
    Path::new("/OVS/Repositories").join(REPOSITORY)
}

fn write_settings(node: &Node, certificates: &Certificates, manager: &Manager) {
    let state = node.state();
    let hooks = state.join("hooks.d");
    fs::create_dir(&hooks).unwrap();
    let mut settings = Settings::new(certificates, manager, &[&repository()]);
    settings.ovm_endpoint = format!("https://10.0.2.2:{}", manager.port);
    settings.bind = "0.0.0.0".to_owned();
    settings.shared = true;
    settings.socket = Some("/run/exporter/api.sock".to_owned());
    // A hook writes into the repository, and so waits while a dead host is not yet known to be dead.
    settings.sections = format!("[hooks]\ndirectory = {hooks:?}\ntimeout = \"100s\"\n");
    settings.write(&state, 5544);
}

/// A loop device, which is detached when this is dropped. The tools for OCFS2 use O_DIRECT, which a file on tmpfs
/// refuses.
struct LoopDevice(String);

impl LoopDevice {
    fn of(image: &Path) -> Self {
        Self(output(Command::new("losetup").args(["--find", "--show"]).arg(image)).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Makes an OCFS2 for the cluster `pool` in the file `image` of the folder.
fn make_volume() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pool-volume.").tempdir().unwrap();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
    let device = LoopDevice::of(&image);
    let mut mkfs = Command::new("mkfs.ocfs2");
    mkfs.args(["-q", "-F", "-N", "4", "-b", "4096", "-C", "4096", "-J", "size=16M"]);
    mkfs.args(["--cluster-stack=o2cb", "--cluster-name=pool", "--fs-features=refcount,sparse,unwritten"]);
    run(mkfs.arg(&device.0));
    dir
}
