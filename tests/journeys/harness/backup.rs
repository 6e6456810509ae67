//! The backup client as users run it: the binary with its environment.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{Certificates, Exporter, PASSWORD, USER, VM, World};

/// A user's home, and the backup directory.
pub struct Backup {
    home: TempDir,
    pub directory: PathBuf,
    url: String,
    /// `None`: the client trusts what its arguments say.
    ca: Option<PathBuf>,
}

impl Backup {
    /// A client of the service of `world` whose backup directory is in `target`.
    pub fn new(world: &World, target: &Path) -> Self {
        Self::of(&world.exporter, &world.certificates, target)
    }

    pub fn of(exporter: &Exporter, certificates: &Certificates, target: &Path) -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            directory: target.join("backups"),
            url: format!("https://127.0.0.1:{}", exporter.port),
            ca: Some(certificates.ca()),
        }
    }

    /// The same client, through a proxy at `port`.
    pub fn through(self, port: u16) -> Self {
        Self { url: format!("https://127.0.0.1:{port}"), ..self }
    }

    /// The same client, of the pool that has hosts at these ports.
    pub fn of_pool(self, ports: &[u16]) -> Self {
        let urls: Vec<String> = ports.iter().map(|port| format!("https://127.0.0.1:{port}")).collect();
        Self { url: urls.join(","), ..self }
    }

    /// The same client, without an authority in its environment.
    pub fn without_authority(self) -> Self {
        Self { ca: None, ..self }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A command of the client, with credentials.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coriolis-ovm-exporter"));
        command
            .args(arguments)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", self.home.path())
            .env("EXPORTER_USERNAME", USER)
            .env("EXPORTER_PASSWORD", PASSWORD)
            .env_remove("EXPORTER_CACERT")
            .envs(self.ca.iter().map(|ca| ("EXPORTER_CACERT", ca)))
            .stdin(Stdio::null());
        command
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs a command, which has to succeed; returns its standard output.
    pub fn run(&self, arguments: &[&str]) -> String {
        let (status, stdout, stderr) = self.try_run(arguments);
        assert_eq!(status, Some(0), "{arguments:?}: {stdout}{stderr}");
        stdout
    }

    /// Runs a command; returns its exit status, standard output and standard error.
    pub fn try_run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (status.code(), text(stdout), text(stderr))
    }

    /// The arguments of a backup of all VMs.
    pub fn backup_arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let directory = self.directory.to_str().unwrap();
        [&["backup", self.url.as_str(), "--all", "--to", directory], more].concat()
    }

    /// Backs up all VMs; returns the result.
    pub fn back_up(&self) -> Value {
        let printed = self.run(&self.backup_arguments(&["--json"]));
        serde_json::from_str(&printed).unwrap()
    }

    /// Starts a backup of all VMs.
    pub fn spawn(&self, more: &[&str]) -> Child {
        let mut command = self.command(&self.backup_arguments(more));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The restore points, oldest first.
    pub fn points(&self) -> Vec<Value> {
        let printed = self.run(&["points", self.directory.to_str().unwrap(), "--json"]);
        serde_json::from_str::<Value>(&printed).unwrap()["points"].as_array().unwrap().clone()
    }

    /// Checks that the newest point of the VM has the disk `a.img` as it is in the file `disk`.
    pub fn assert_newest_equals(&self, disk: &Path) {
        let (point, out) = (self.points().pop().unwrap(), tempfile::tempdir().unwrap());
        self.restore(VM, point["id"].as_str().unwrap(), &out.path().join("out"), &[]);
        assert!(std::fs::read(out.path().join("out/a.img")).unwrap() == std::fs::read(disk).unwrap(), "{point}");
    }

    /// Restores a point of `vm` into `out`.
    pub fn restore(&self, vm: &str, point: &str, out: &Path, more: &[&str]) {
        let directory = self.directory.to_str().unwrap();
        let arguments = ["restore", directory, vm, "--at", point, "--out", out.to_str().unwrap(), "-q"];
        self.run(&[&arguments[..], more].concat());
    }
}
