//! The agent of a node: this test program runs again in the guest, and does what the host sends through a port.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde::{Deserialize, Serialize};

/// A shell script to run. One line of JSON.
#[derive(Serialize, Deserialize)]
pub struct Task {
    pub id: u64,
    pub script: String,
    /// In seconds.
    pub limit: u64,
}

/// How a script ended. One line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub id: u64,
    /// 124 if it took longer than the limit.
    pub status: i32,
    /// Its output and its errors.
    pub output: String,
}

#[test]
#[ignore = "runs in the guests of tests/pool"]
fn serves_the_host() {
    let path = std::env::var_os("POOL_AGENT").expect("a guest of tests/pool");
    let port = File::options().read(true).write(true).open(path).unwrap();
    let outcomes = Arc::new(Mutex::new(port.try_clone().unwrap()));
    let answer = |to: &Mutex<File>, outcome: &Outcome| {
        let line = serde_json::to_string(outcome).unwrap() + "\n";
        to.lock().unwrap().write_all(line.as_bytes()).unwrap();
    };
    // The host waits for it.
    answer(&outcomes, &Outcome { id: 0, status: 0, output: String::new() });
    for line in BufReader::new(port).lines() {
        let Task { id, script, limit } = serde_json::from_str(&line.unwrap()).unwrap();
        let outcomes = Arc::clone(&outcomes);
        thread::spawn(move || {
            let mut command = Command::new("timeout");
            command.args(["--kill-after", "1", &limit.to_string(), "bash", "-c", &format!("exec 2>&1\n{script}")]);
            let ended = command.stdin(Stdio::null()).output().unwrap();
            let output = String::from_utf8_lossy(&ended.stdout).into_owned();
            answer(&outcomes, &Outcome { id, status: ended.status.code().unwrap_or(-1), output });
        });
    }
}
