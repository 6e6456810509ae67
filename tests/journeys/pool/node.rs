//! A guest that is a node of a cluster (`tests/pool`), from power on to power off.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::agent::{Outcome, Task};
use crate::harness::eventually_some;

/// A node counts as dead after 8 s without a heartbeat, and a connection as broken after 6 s. The defaults are 60 s and
/// 30 s.
const DEAD_THRESHOLD: u32 = 5;
const IDLE_MILLISECONDS: u32 = 6000;

/// How long the commands of a test may take in a node, in seconds.
const LIMIT: u64 = 120;

/// What a node is given.
pub struct Hardware {
    pub number: u8,
    /// The disk that the nodes share.
    pub image: PathBuf,
    /// UDP ports of the cluster's network: the node's and the other's.
    pub network: (u16, u16),
    /// The port of 127.0.0.1 that leads to the node's port 5544.
    pub https: u16,
}

pub struct Node {
    pub hardware: Hardware,
    folder: TempDir,
    running: Option<Running>,
}

struct Running {
    qemu: Child,
    listener: UnixListener,
    agent: Option<Agent>,
}

impl Node {
    /// A node that is switched off.
    pub fn new(hardware: Hardware) -> Self {
        let folder = tempfile::Builder::new().prefix("pool-node.").tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        Self { hardware, folder, running: None }
    }

    pub fn number(&self) -> u8 {
        self.hardware.number
    }

    /// A folder with the same path and content on the host and in the node. It outlives the node.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Switches the node on. It runs until it is switched off, or until the thread of the caller ends.
    pub fn switch_on(&mut self) {
        let (folder, here) = (self.folder.path(), Path::new(env!("CARGO_MANIFEST_DIR")));
        let program = std::env::current_exe().unwrap();
        let number = self.hardware.number;
        let job = format!(
            "ulimit -n 4096\nexport TMPDIR=/dev/shm HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
             exec {here:?}/tests/pool/node {folder:?} {number} {DEAD_THRESHOLD} {IDLE_MILLISECONDS} {program:?} --ignored --nocapture \
             --exact pool::agent::serves_the_host\n"
        );
        fs::write(folder.join("job"), job).unwrap();
        for left in ["agent", "qmp"] {
            let _ = fs::remove_file(folder.join(left));
        }
        let listener = UnixListener::bind(folder.join("agent")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut boot = Command::new(here.join("tests/pool/boot"));
        boot.arg(folder).arg(number.to_string()).arg(&self.hardware.image);
        let (own, peer) = self.hardware.network;
        boot.args([own, peer, self.hardware.https].map(|port| port.to_string()));
        self.running = Some(Running { qemu: boot.spawn().unwrap(), listener, agent: None });
    }

    /// Waits until a node that was switched on runs commands.
    pub fn wait_until_up(&mut self) {
        let number = self.number();
        let console = self.console_path();
        let running = self.running.as_mut().expect("the node is off");
        let port = eventually_some("the node opens its port", || {
            let ended = running.qemu.try_wait().unwrap();
            assert!(ended.is_none(), "node {number} ended: {}", fs::read_to_string(&console).unwrap_or_default());
            running.listener.accept().ok()
        });
        running.agent = Some(Agent::on(port.0));
    }

    /// Runs a shell script; returns its output. Panics if it fails.
    pub fn run(&self, script: &str) -> String {
        let outcome = self.try_run(script, LIMIT).unwrap_or_else(|error| {
            panic!("node {}: {script}: {error}", self.number());
        });
        assert_eq!(outcome.status, 0, "node {}: {script}: {}", self.number(), outcome.output);
        outcome.output.trim().to_owned()
    }

    /// Runs a shell script for at most `limit` seconds.
    ///
    /// # Errors
    /// If the node is switched off, or does not answer.
    pub fn try_run(&self, script: &str, limit: u64) -> io::Result<Outcome> {
        let agent = self.running.as_ref().and_then(|running| running.agent.as_ref());
        agent.ok_or(io::ErrorKind::NotConnected)?.run(script, limit)
    }

    /// Whether the node runs. It does not after it was switched off, or has reset itself.
    pub fn is_on(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| running.qemu.try_wait().unwrap().is_none())
    }

    /// Switches the node off, without any warning to its kernel.
    pub fn switch_off(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.qemu.kill();
            let _ = running.qemu.wait();
        }
    }

    /// Plugs the cable of the cluster's network in, or out.
    pub fn connect(&self, is_connected: bool) {
        self.command(&json!({"execute": "set_link", "arguments": {"name": "cluster", "up": is_connected}}));
    }

    /// Sends a command of the QEMU machine protocol.
    fn command(&self, command: &Value) {
        let mut stream = UnixStream::connect(self.folder.path().join("qmp")).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut answers = || lines.next().unwrap().map(|line| serde_json::from_str::<Value>(&line).unwrap()).unwrap();
        let greeting = answers();
        assert!(greeting["QMP"].is_object(), "{greeting}");
        for command in [&json!({"execute": "qmp_capabilities"}), command] {
            writeln!(stream, "{command}").unwrap();
            let answer = eventually_some("QEMU answers", || Some(answers()).filter(|answer| answer["event"].is_null()));
            assert!(answer["return"].is_object(), "{command}: {answer}");
        }
    }

    fn console_path(&self) -> PathBuf {
        self.folder.path().join("console")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.switch_off();
        if thread::panicking() {
            for file in ["qemu", "console", "output", "state/log"] {
                let text = fs::read(self.folder.path().join(file)).unwrap_or_default();
                let text = String::from_utf8_lossy(&text[text.len().saturating_sub(8000)..]).into_owned();
                eprintln!("---- node {}: {file} ----\n{text}", self.number());
            }
        }
    }
}

/// The host's end of the port to a node.
struct Agent {
    port: Mutex<UnixStream>,
    next: AtomicU64,
    waiting: Arc<Mutex<HashMap<u64, Sender<Outcome>>>>,
}

impl Agent {
    /// Waits for the agent of the node.
    fn on(port: UnixStream) -> Self {
        port.set_nonblocking(false).unwrap();
        let (up, is_up) = channel();
        let waiting = Arc::new(Mutex::new(HashMap::from([(0, up)])));
        let (lines, answered) = (BufReader::new(port.try_clone().unwrap()).lines(), Arc::clone(&waiting));
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let outcome: Outcome = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if let Some(waits) = answered.lock().unwrap().remove(&outcome.id) {
                    let _ = waits.send(outcome);
                }
            }
            // The node is off: who waits learns it.
            answered.lock().unwrap().clear();
        });
        let up = is_up.recv_timeout(Duration::from_secs(300)).expect("the agent of the node");
        assert_eq!(up.status, 0);
        Self { port: Mutex::new(port), next: AtomicU64::new(1), waiting }
    }

    fn run(&self, script: &str, limit: u64) -> io::Result<Outcome> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (outcome, ended) = channel();
        self.waiting.lock().unwrap().insert(id, outcome);
        let task = serde_json::to_string(&Task { id, script: script.to_owned(), limit })?;
        writeln!(self.port.lock().unwrap(), "{task}")?;
        // A process that waits for its file system cannot be killed, and then the agent waits too.
        ended
            .recv_timeout(Duration::from_secs(limit + 20))
            .map_err(|error| io::Error::new(io::ErrorKind::TimedOut, error))
    }
}
