//! A webhook's receiver in Python, which checks the signatures with its own code.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{Certificates, eventually, free_port};

/// The secret of the webhook.
pub const WEBHOOK_SECRET: &str = "whsec_bmV2ZXIgdG8gYmUgc2VlbiBpbiBhIGxvZywgcGxlYXNl";

pub struct Receiver {
    pub port: u16,
    dir: TempDir,
    certificate: [std::path::PathBuf; 2],
    child: Option<Child>,
}

impl Receiver {
    /// Starts a receiver with the certificate `name`.
    pub fn start(certificates: &Certificates, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certificate = ["pem", "key"].map(|end| certificates.path(format!("{name}.{end}")));
        let mut receiver = Self { port: free_port(), dir, certificate, child: None };
        fs::write(receiver.path("secret"), WEBHOOK_SECRET).unwrap();
        fs::write(receiver.path("record"), "").unwrap();
        receiver.behave("good");
        receiver.run();
        receiver
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it again at the same port.
    pub fn run(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys/webhook_receiver.py");
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new("python3");
        command.arg(script).arg("--port").arg(self.port.to_string());
        command.arg("--certificate").arg(&self.certificate[0]).arg("--key").arg(&self.certificate[1]);
        for (option, file) in [("--secret-file", "secret"), ("--behavior", "behavior"), ("--record", "record")] {
            command.arg(option).arg(self.path(file));
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.child = Some(child.unwrap());
        eventually("the receiver listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it does from now on: see tests/journeys/webhook_receiver.py.
    pub fn behave(&self, behavior: &str) {
        // Replaced at once, because the receiver may read it at any time.
        let (new, path) = (self.path("behavior.new"), self.path("behavior"));
        fs::write(&new, behavior).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// A section of the config for it.
    pub fn section(&self, certificates: &Certificates, name: &str, lines: &str) -> String {
        format!(
            "[[notifications.webhooks]]\nname = {name:?}\nurl = \"https://127.0.0.1:{}/hush-{name}\"\n\
             secret = {WEBHOOK_SECRET:?}\nca_certificate = {:?}\n{lines}\n",
            self.port,
            certificates.ca()
        )
    }

    /// All requests so far. Each has the right signature.
    pub fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("record")).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let requests: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for request in &requests {
            assert_eq!(request["verified"], true, "{request}");
        }
        requests
    }

    /// The events that it has accepted, each once.
    pub fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for an event of this kind; returns the last one.
    pub fn wait_for(&self, kind: &str) -> Value {
        self.wait_for_where(kind, |_| true)
    }

    /// Waits for an event of this kind that `is_right`; returns the last one.
    pub fn wait_for_where(&self, kind: &str, is_right: impl Fn(&Value) -> bool) -> Value {
        super::eventually_some(&format!("the event {kind}"), || {
            self.events().into_iter().rfind(|event| event["event"] == kind && is_right(&event["data"]))
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("---- the receiver ----\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
    }
}
