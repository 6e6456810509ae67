//! A real Prometheus, which `make deps-test` unpacks, with the config of `examples/monitoring`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{Certificates, Exporter, eventually, free_port};

pub struct Prometheus {
    port: u16,
    child: Child,
    dir: TempDir,
}

/// The folder with the examples.
pub fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/monitoring")
}

/// The path of `prometheus` or `promtool`.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/prometheus/usr/bin").join(name)
}

impl Prometheus {
    /// Starts it, to scrape `exporter` each second with this token.
    pub fn start(exporter: &Exporter, certificates: &Certificates, token: &str) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let at = |name: &str| dir.path().join(name);
        for name in ["recording.rules.yml", "alerts.rules.yml"] {
            fs::copy(monitoring().join(name), at(name)).unwrap();
        }
        fs::write(at("token"), token).unwrap();
        let mut config = fs::read_to_string(monitoring().join("prometheus.yml")).unwrap();
        for (example, here) in [
            ("_interval: 30s", "_interval: 1s".to_owned()),
            ("exporter.example:5544", format!("127.0.0.1:{}", exporter.port)),
            ("/etc/prometheus/ovm-exporter.pem", certificates.ca().display().to_string()),
            ("# authorization:", "authorization:".to_owned()),
            ("#   credentials_file: /etc/prometheus/ovm-exporter.token", "  credentials_file: token".to_owned()),
        ] {
            assert!(config.contains(example), "{example} is not in\n{config}");
            config = config.replace(example, &here);
        }
        fs::write(at("prometheus.yml"), config).unwrap();
        let log = File::create(at("log")).unwrap();
        let child = Command::new(program("prometheus"))
            .arg(format!("--config.file={}", at("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", at("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut prometheus = Self { port, child, dir };
        eventually("Prometheus is ready", || {
            assert!(prometheus.child.try_wait().unwrap().is_none(), "Prometheus ended:\n{}", prometheus.log());
            prometheus.curl("/-/ready", &["--fail"]).is_some()
        });
        prometheus
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn curl(&self, path: &str, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--max-time", "30", "--noproxy", "*", "--get"]).args(arguments);
        let output = command.arg(format!("http://127.0.0.1:{}{path}", self.port)).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn ask(&self, path: &str, arguments: &[&str]) -> Value {
        let answer = self.curl(path, arguments).unwrap_or_else(|| panic!("no answer to {path}:\n{}", self.log()));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "success", "{path} {arguments:?}: {answer}");
        answer["data"].clone()
    }

    /// The labels and values that a query returns now.
    pub fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let found = self.ask("/api/v1/query", &["--data-urlencode", &format!("query={query}")]);
        let sample = |sample: &Value| (sample["metric"].clone(), sample["value"][1].as_str().unwrap().parse().unwrap());
        found["result"].as_array().unwrap().iter().map(sample).collect()
    }

    /// The alerts that fire, as the API describes them.
    pub fn firing(&self) -> Vec<Value> {
        let alerts = self.ask("/api/v1/alerts", &[])["alerts"].take();
        alerts.as_array().unwrap().iter().filter(|alert| alert["state"] == "firing").cloned().collect()
    }

    /// All rules, as the API describes them.
    pub fn rules(&self) -> Vec<Value> {
        let groups = self.ask("/api/v1/rules", &[])["groups"].take();
        groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- log of Prometheus ----\n{}", self.log());
        }
    }
}
