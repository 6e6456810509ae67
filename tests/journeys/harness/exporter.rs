//! The service as users run it: the binary with a config file.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::{File, Permissions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Certificates, Manager, eventually, eventually_some, eventually_within, perhaps_within};

/// The token signing key (`jwt.secret`) in all tests.
pub const SECRET: &str = "a secret of tests, never to be seen in a log";

/// The content of the config file, and how the service is started.
pub struct Settings {
    pub db_file: Option<PathBuf>,
    pub ovm_endpoint: String,
    /// `jwt.secret`.
    pub secret: String,
    pub bind: String,
    /// `None`: a free port.
    pub port: Option<u16>,
    /// `None`: in the folder of the config.
    pub socket: Option<String>,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub paths: Vec<PathBuf>,
    /// The folder with ovs-agent's databases.
    pub agent_db: Option<PathBuf>,
    /// Whether other exporters use the repositories too.
    pub shared: bool,
    /// Lines before the first section.
    pub top: String,
    /// Lines of `[manager]`.
    pub manager: String,
    /// Lines of `[jwt]` besides the secret.
    pub jwt: String,
    /// Lines of `[api]` besides address and port.
    pub api: String,
    /// Lines of `[api.tls]` besides certificate and key.
    pub tls: String,
    /// Lines of `[policy]`.
    pub policy: String,
    /// Sections after all others.
    pub sections: String,
    /// `confinement.mode`. Off for libraries that are preloaded into the service and read files of their own.
    pub confined: bool,
    pub binary: PathBuf,
    /// A program and arguments that execute the binary; may be empty.
    pub launcher: Vec<String>,
    pub environment: Vec<(String, String)>,
}

impl Settings {
    pub fn new(certificates: &Certificates, manager: &Manager, repositories: &[&Path]) -> Self {
        Self {
            db_file: None,
            ovm_endpoint: format!("https://127.0.0.1:{}", manager.port),
            secret: SECRET.to_owned(),
            bind: "127.0.0.1".to_owned(),
            port: None,
            socket: None,
            certificate: certificates.path("server.pem"),
            key: certificates.path("server.key"),
            paths: repositories.iter().map(|path| path.to_path_buf()).collect(),
            agent_db: None,
            shared: false,
            manager: format!("ca_certificate = {:?}\ntimeout = \"5s\"\n", certificates.ca()),
            jwt: String::new(),
            api: String::new(),
            tls: String::new(),
            sections: String::new(),
            confined: true,
            top: String::new(),
            policy: String::new(),
            binary: env!("CARGO_BIN_EXE_coriolis-ovm-exporter").into(),
            launcher: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Writes them to `config.toml` in `dir`, which may be read by its owner only: it has secrets.
    pub fn write(&self, dir: &Path, port: u16) {
        let config = dir.join("config.toml");
        std::fs::write(&config, self.text(dir, port)).unwrap();
        std::fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
    }

    fn text(&self, dir: &Path, port: u16) -> String {
        let db_file = self.db_file.clone().unwrap_or_else(|| dir.join("exporter.db"));
        let socket = self.socket.clone().unwrap_or_else(|| dir.join("api.sock").display().to_string());
        let mut text = format!("db_file = {db_file:?}\novm_endpoint = {:?}\n", self.ovm_endpoint);
        text += &self.top;
        write!(text, "[jwt]\nsecret = {:?}\n{}\n", self.secret, self.jwt).unwrap();
        write!(text, "[api]\nbind = {:?}\nport = {port}\nsocket = {socket:?}\n{}\n", self.bind, self.api).unwrap();
        write!(text, "[api.tls]\ncertificate = {:?}\nkey = {:?}\n{}\n", self.certificate, self.key, self.tls).unwrap();
        write!(text, "[manager]\n{}\n[repositories]\npaths = {:?}\n", self.manager, self.paths).unwrap();
        writeln!(text, "ovs_agent_db = {:?}", self.agent_db.clone().unwrap_or_default()).unwrap();
        writeln!(text, "shared = {}", self.shared).unwrap();
        writeln!(text, "[policy]\n{}", self.policy).unwrap();
        if !self.confined {
            text += "[confinement]\nmode = \"off\"\n";
        }
        text += &self.sections;
        text
    }
}

pub struct Exporter {
    pub port: u16,
    settings: Settings,
    child: Child,
    dir: TempDir,
}

impl Exporter {
    /// Starts the service and waits until it listens.
    pub fn start(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = settings.port.unwrap_or_else(free_port);
        let child = spawn(&settings, dir.path(), port);
        let mut exporter = Self { port, settings, child, dir };
        if let Err(status) = exporter.listens() {
            panic!("the service ended with {status}; its log:\n{}", exporter.log());
        }
        exporter
    }

    /// Starts the service with settings that it refuses; returns its exit status and its output.
    pub fn refusal(settings: &Settings) -> (Option<i32>, String) {
        let dir = tempfile::tempdir().unwrap();
        let port = settings.port.unwrap_or_else(free_port);
        let status = spawn(settings, dir.path(), port).wait().unwrap();
        (status.code(), std::fs::read_to_string(dir.path().join("log")).unwrap())
    }

    /// Runs a subcommand with the config of the running service; returns its exit status and its output.
    pub fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        run_command(&self.settings, &self.dir.path().join("config.toml"), arguments)
    }

    /// Runs a subcommand while no service is running.
    pub fn command_alone(settings: &Settings, arguments: &[&str]) -> (Option<i32>, String) {
        let dir = tempfile::tempdir().unwrap();
        settings.write(dir.path(), settings.port.unwrap_or_else(free_port));
        run_command(settings, &dir.path().join("config.toml"), arguments)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The settings for the next start.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Writes the current settings into the config of the running service, without a signal.
    pub fn write_config(&self) {
        std::fs::write(self.dir.path().join("config.toml"), self.settings.text(self.dir.path(), self.port)).unwrap();
    }

    pub fn db_file(&self) -> PathBuf {
        self.settings.db_file.clone().unwrap_or_else(|| self.dir.path().join("exporter.db"))
    }

    /// The path of the Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.settings.socket.as_ref().map_or_else(|| self.dir.path().join("api.sock"), PathBuf::from)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.wait_for_log_thread();
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    pub fn wait_for_log(&self, line: &str) {
        eventually(&format!("the log contains {line:?}"), || self.log().contains(line));
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Waits until the log thread has nothing to write; at most 5 seconds, since it may be blocked.
    fn wait_for_log_thread(&self) {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let is_busy = || {
            let threads = std::fs::read_dir(&tasks).into_iter().flatten().flatten().map(|thread| thread.path());
            let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.join("stat")).ok());
            stats.into_iter().any(|stat| stat.contains(" (log) ") && !stat.contains(" (log) S "))
        };
        perhaps_within(Duration::from_secs(5), || !is_busy());
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits until the process ends; panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut ended = None;
        eventually_within(limit, "the service ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The signal that ended the process.
    pub fn killed_by(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().and_then(|status| status.signal())
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Restarts the service with the same database.
    pub fn restart(&mut self) {
        if let Err(status) = self.try_restart() {
            panic!("the service ended with {status}; its log:\n{}", self.log());
        }
    }

    /// Restarts the service; returns the exit status if it ends instead of listening.
    pub fn try_restart(&mut self) -> Result<(), ExitStatus> {
        self.kill();
        self.child = spawn(&self.settings, self.dir.path(), self.port);
        self.listens()
    }

    /// Waits until the service listens, or ends.
    fn listens(&mut self) -> Result<(), ExitStatus> {
        eventually_some("the service listens", || match self.child.try_wait().unwrap() {
            Some(status) => Some(Err(status)),
            None => TcpStream::connect(("127.0.0.1", self.port)).is_ok().then_some(Ok(())),
        })
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- log of the service ----\n{}", self.log());
        }
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run_command(settings: &Settings, config: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(&settings.binary);
    let command = command.args(arguments).arg("--config").arg(config).envs(settings.environment.iter().cloned());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(printed).unwrap())
}

fn spawn(settings: &Settings, dir: &Path, port: u16) -> Child {
    let config = dir.join("config.toml");
    let is_new = !config.exists();
    std::fs::write(&config, settings.text(dir, port)).unwrap();
    if is_new {
        // It has secrets. A test may change the mode afterwards.
        std::fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
    }
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut words = settings.launcher.iter().map(OsStr::new).chain([settings.binary.as_os_str()]);
    Command::new(words.next().unwrap())
        .args(words)
        .arg("-config")
        .arg(&config)
        .env("RUST_LOG", "debug,hyper=error,h2=error,rustls=error,reqwest=info,hyper_util=info")
        .envs(settings.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The binary of `make build`, or the one that `EXPORTER_RELEASE` names. Without it the test is skipped with a
/// message; with `CI=true` it fails.
pub fn release_binary() -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/coriolis-ovm-exporter");
    let path = std::env::var_os("EXPORTER_RELEASE").map_or(usual, PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    let message = format!("SKIPPED: {} does not exist: run make build\n", path.display());
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
    // Not with `eprintln!`: the test runner hides that output if the test passes.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
    None
}
