//! Databases of ovs-agent, written with Berkeley DB's db_load, with values pickled as Python 2 does it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The folder with the databases.
pub struct AgentDb {
    dir: TempDir,
}

impl AgentDb {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes `repository`: ids with the fields of their entries.
    pub fn write_repositories(&self, entries: &[(&str, &[(&str, &str)])]) {
        let pairs = entries.iter().map(|(id, fields)| ((*id).to_owned(), pickle_dict(fields)));
        self.write("repository", &pairs.collect::<Vec<_>>());
    }

    /// Writes `server`, with the manager's address.
    pub fn write_manager(&self, address: &str) {
        let pairs = [("manager_ip", address), ("server_uuid", "38:33"), ("pool_virtual_ip", "")];
        let pairs = pairs.map(|(key, value)| (key.to_owned(), format!("S'{value}'\np1\n.")));
        self.write("server", &pairs);
    }

    /// Writes a new database and renames it over the old one, as the agent does.
    fn write(&self, name: &str, pairs: &[(String, String)]) {
        let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut dump = "VERSION=3\nformat=bytevalue\ntype=hash\nHEADER=END\n".to_owned();
        for (key, value) in pairs {
            writeln!(dump, " {}\n {}", hex(key), hex(value)).unwrap();
        }
        dump += "DATA=END\n";
        let (new, path) = (self.path().join("new"), self.path().join(name));
        let mut load = Command::new("db5.3_load").arg(&new).stdin(Stdio::piped()).spawn().unwrap();
        load.stdin.take().unwrap().write_all(dump.as_bytes()).unwrap();
        assert!(load.wait().unwrap().success());
        std::fs::rename(new, path).unwrap();
    }
}

/// A pickled dict of strings, protocol 0.
fn pickle_dict(fields: &[(&str, &str)]) -> String {
    let mut text = "(dp1\n".to_owned();
    for (key, value) in fields {
        write!(text, "S'{key}'\nS'{value}'\ns").unwrap();
    }
    text + "."
}
