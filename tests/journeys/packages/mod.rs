//! The packages: installed, started, upgraded, removed and purged below a systemd of their own; contents, manual pages and
//! completions.

mod contents;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{
    Certificates, MB, Manager, PASSWORD, USER, VM, Volume, define_vm, eventually, eventually_some, free_port,
    make_disk, make_repository, output, snapshot_folders, text, write_at,
};
use crate::{needs, needs_root};

const NAME: &str = "coriolis-ovm-exporter";
const ETC: &str = "/etc/coriolis-ovm-exporter";
const STATE: &str = "/var/lib/coriolis-ovm-exporter";
const REPOSITORIES: &str = "/OVS/Repositories";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The package with this ending, of `make packages`.
fn package(ending: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(here("target/packages")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).find(|path| path.to_string_lossy().ends_with(ending))
}

/// A Debian with systemd as its first process.
struct Debian {
    boot: Child,
    init: String,
    cgroup: String,
}

impl Debian {
    /// With `repositories` as the folder of Oracle VM.
    fn boot(repositories: &Path) -> Self {
        let cgroup = format!("exporter-test-{}", std::process::id());
        // It ends with this test, even if that is killed.
        let mut boot = Command::new("setpriv");
        boot.args(["--pdeathsig", "KILL", "--"]).arg(here("tests/packages/boot"));
        boot.arg(here("target/debian/root")).arg(repositories).arg(REPOSITORIES).env("NAME", &cgroup);
        let boot = boot.stdout(Stdio::null()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", boot.id());
        let init = eventually_some("the first process", || {
            let child = fs::read_to_string(&children).ok()?.trim().to_owned();
            let command = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
            command.starts_with("/sbin/init").then_some(child)
        });
        let debian = Self { boot, init, cgroup };
        // `degraded`: a unit failed that a container cannot have.
        eventually("systemd has started", || {
            let state = debian.run("systemctl is-system-running || true");
            ["running", "degraded"].contains(&state.trim())
        });
        debian
    }

    fn try_run(&self, script: &str) -> Output {
        let enter = ["--target", &self.init, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wdns=/"];
        let mut command = Command::new("nsenter");
        command.args(enter).args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", "sh", "-ec", script]).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a script, and returns what it prints.
    fn run(&self, script: &str) -> String {
        let Output { status, stdout, stderr } = self.try_run(script);
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        if !status.success() {
            let journal = self.try_run("journalctl --no-pager -n 40 -u coriolis-ovm-exporter");
            let journal = String::from_utf8_lossy(&journal.stdout).into_owned();
            panic!("{script}: {status}\n{stdout}\n{stderr}\n{journal}");
        }
        format!("{stdout}{stderr}")
    }

    /// The path of a file there.
    fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.init).into()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.path(path)).unwrap().mode() & 0o7777
    }

    fn unit(&self, property: &str) -> String {
        self.run(&format!("systemctl show --value -p {property} {NAME}")).trim().to_owned()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // All other processes end with the first one.
        let _ = kill(Pid::from_raw(self.init.parse().unwrap()), Signal::SIGKILL);
        let _ = self.boot.wait();
        let script = format!(
            "folder=$(mktemp -d) && mount -t cgroup2 cgroup2 $folder && \
             find $folder/{} -depth -type d -exec rmdir {{}} + ; umount $folder && rmdir $folder",
            self.cgroup
        );
        let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
    }
}

/// The same package with a lower version.
fn older(package: &Path, folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    let path = folder.join("older.deb");
    output(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let lines = text.lines().map(|line| if line.starts_with("Version: ") { "Version: 0.0.1-1" } else { line });
    fs::write(&control, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    output(Command::new("dpkg-deb").args(["-Znone", "--build"]).arg(&tree).arg(&path));
    path
}

/// The API, as an operator who trusts the certificate that the installation has made.
struct Api<'a> {
    debian: &'a Debian,
    base: String,
    token: String,
}

impl Api<'_> {
    fn ask(&self, arguments: &[&str], path: &str) -> Value {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail-with-body", "--max-time", "60", "--cacert"]);
        curl.arg(self.debian.path(&format!("{ETC}/srv-pub.pem"))).args(arguments);
        if !self.token.is_empty() {
            curl.args(["-H", &format!("Authorization: Bearer {}", self.token)]);
        }
        serde_json::from_str(&output(curl.arg(format!("{}{path}", self.base)))).unwrap()
    }

    fn log_in(&mut self) {
        let body = serde_json::json!({"username": USER, "password": PASSWORD}).to_string();
        self.token.clear();
        self.token = text(&self.ask(&["-d", &body], "/auth/login")["token"]);
    }

    fn snapshots(&self) -> Vec<String> {
        let listed = self.ask(&[], &format!("/vms/{VM}/snapshots?chunks=false"));
        listed.as_array().unwrap().iter().map(|snapshot| text(&snapshot["id"])).collect()
    }
}

#[test]
fn deb_is_installed_started_upgraded_removed_and_purged() {
    needs_root!();
    needs!(here("target/debian/made-by").exists(), "a Debian (tests/packages/prepare)");
    let package = package(".deb");
    needs!(package.is_some(), "the packages (make packages)");
    let package = package.unwrap();
    let volume = Volume::xfs(512);
    let repository = make_repository(&volume.mount_point, "0004fb0000030000a1b2c3d4e5f60718");
    let inside = Path::new(REPOSITORIES).join("0004fb0000030000a1b2c3d4e5f60718");
    write_at(&make_disk(&repository, "system.img", 8 * MB), MB, &[7; 65536]);
    define_vm(&repository, VM, &[inside.join("VirtualDisks/system.img")]);
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let dir = tempfile::tempdir().unwrap();
    let debian = Debian::boot(&volume.mount_point);

    // A first installation says what to do, and starts nothing. Nothing secret is in the package.
    fs::copy(older(&package, dir.path()), debian.path("/root/older.deb")).unwrap();
    fs::copy(&package, debian.path("/root/newer.deb")).unwrap();
    let said = debian.run("dpkg --install /root/older.deb");
    assert!(said.contains("systemctl enable --now coriolis-ovm-exporter"), "{said}");
    assert_eq!(debian.unit("ActiveState"), "inactive");
    assert_eq!(debian.run(&format!("systemctl is-enabled {NAME} || true")).trim(), "disabled");
    for (path, mode) in [("", 0o700), ("/config.toml", 0o600), ("/srv-key.pem", 0o600), ("/srv-pub.pem", 0o600)] {
        assert_eq!(debian.mode(&format!("{ETC}{path}")), mode, "{path}");
    }
    // Without a manager and repositories it does not run.
    let failed = debian.try_run(&format!("systemctl start {NAME}"));
    assert!(!failed.status.success());
    let log = debian.run(&format!("systemctl stop {NAME}; journalctl --no-pager -u {NAME}"));
    assert!(log.contains("repositories.ovs_agent_db") && !log.contains("serving address"), "{log}");

    // The steps that it said.
    fs::copy(certificates.ca(), debian.path(&format!("{ETC}/manager.pem"))).unwrap();
    let port = free_port();
    debian.run(&format!(
        "cd {ETC}\n\
         sed -i 's|^ovm_endpoint = .*|ovm_endpoint = \"https://127.0.0.1:{}\"|' config.toml\n\
         sed -i '/^\\[manager\\]/,/^\\[/ s|^ca_certificate = .*|ca_certificate = \"{ETC}/manager.pem\"|' config.toml\n\
         sed -i 's|^paths = .*|paths = [\"{}\"]|; s|^port = 5544|port = {port}|; s|\"0.0.0.0\"|\"127.0.0.1\"|' config.toml\n\
         {NAME} check-config\ntouch /dev/of-the-host\nsystemctl enable --now {NAME}",
        manager.port,
        inside.display(),
    ));
    let base = format!("https://localhost:{port}/api/v1");
    let mut api = Api { debian: &debian, base, token: String::new() };
    api.log_in();
    let made = api.ask(&["-X", "POST"], &format!("/vms/{VM}/snapshots?chunks=false"));
    let id = text(&made["id"]);
    assert_eq!(api.snapshots(), std::slice::from_ref(&id));
    assert_eq!((debian.unit("ActiveState"), debian.unit("NRestarts")), ("active".to_owned(), "0".to_owned()));
    debian.run(&format!("{NAME} health"));
    assert_eq!((debian.mode(STATE), debian.mode(&format!("{STATE}/exporter.db.jwt-secret"))), (0o700, 0o600));
    is_sandboxed(&debian);

    // An upgrade keeps the changed config and the snapshot, and restarts the service.
    let config = fs::read(debian.path(&format!("{ETC}/config.toml"))).unwrap();
    let certificate = fs::read(debian.path(&format!("{ETC}/srv-pub.pem"))).unwrap();
    let before = debian.unit("MainPID");
    let said = debian.run("dpkg --install /root/newer.deb");
    assert!(said.contains("over (0.0.1-1)") && !said.contains("not started yet"), "{said}");
    assert_eq!(debian.unit("ActiveState"), "active");
    assert_ne!(debian.unit("MainPID"), before);
    assert!(fs::read(debian.path(&format!("{ETC}/config.toml"))).unwrap() == config);
    assert!(fs::read(debian.path(&format!("{ETC}/srv-pub.pem"))).unwrap() == certificate);
    assert_eq!(api.snapshots(), std::slice::from_ref(&id), "the token or the snapshot is lost");
    debian.run(&format!("systemctl reload {NAME}"));
    assert_eq!(api.snapshots(), std::slice::from_ref(&id));

    // A removal stops the service, and keeps what it would need again.
    debian.run(&format!("dpkg --remove {NAME}"));
    assert!(!debian.path(&format!("/usr/bin/{NAME}")).exists());
    assert_ne!(debian.unit("ActiveState"), "active");
    assert!(debian.path(&format!("{STATE}/exporter.db")).exists());
    assert!(fs::read(debian.path(&format!("{ETC}/config.toml"))).unwrap() == config);

    // A purge removes that too, but no snapshot, and says so.
    let said = debian.run(&format!("dpkg --purge {NAME}"));
    assert!(said.contains("CoriolisSnapshots"), "{said}");
    for path in [ETC, STATE, "/var/log/coriolis-ovm-exporter", "/usr/share/doc/coriolis-ovm-exporter"] {
        assert!(!debian.path(path).exists(), "{path} is left");
    }
    assert_eq!(debian.run(&format!("find /etc/systemd /var/lib/systemd -name '*{NAME}*'")), "");
    assert_eq!(snapshot_folders(&repository), [repository.join("CoriolisSnapshots").join(id)]);
}

/// The unit's options are active, not only written.
fn is_sandboxed(debian: &Debian) {
    let pid = debian.unit("MainPID");
    let status = debian.run(&format!("cat /proc/{pid}/status"));
    // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER.
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t000000000000000e"] {
        assert!(status.lines().any(|it| it == line), "{line}: {status}");
    }
    let inside = |script: &str| debian.try_run(&format!("nsenter -t {pid} -m sh -c '{script}'")).status.success();
    for file in ["/usr/new", "/var/cache/new", &format!("{ETC}/config.toml")] {
        assert!(!inside(&format!("echo x >>{file}")), "{file} can be written");
    }
    assert!(inside(&format!("echo x >{STATE}/new && rm {STATE}/new && test -e /dev/null")));
    assert!(!inside("test -e /dev/of-the-host"), "the service sees devices of the host");
}
