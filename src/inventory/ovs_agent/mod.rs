//! The databases of ovs-agent: the repositories of the host, and its manager.
//!
//! They are Berkeley DB hash files with pickles as values. The agent may rewrite them while we read. Both formats are
//! parsed by pure functions; only this thin layer reads files.

pub mod berkeley_db;
pub mod pickle;
mod stable_read;

use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use berkeley_db::BadDatabase;
use pickle::{BadPickle, Value};

/// The file of the repositories in the agent's folder.
pub const REPOSITORIES: &str = "repository";
/// The file of the host itself, with its manager's address.
pub const SERVER: &str = "server";

/// A repository in the agent's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryEntry {
    /// The key in the database, unchecked.
    pub id: String,
    /// `None` if it is missing, empty, or not a string.
    pub mount_point: Option<PathBuf>,
    /// The name that a user gave it.
    pub alias: Option<String>,
    /// The id of the manager that owns it.
    pub manager_uuid: Option<String>,
    /// The version of its format, as text.
    pub version: Option<String>,
    /// `ocfs2`, `nfs`, …
    pub filesystem: Option<String>,
    /// Why only the id is known.
    pub problem: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum AgentDbError {
    #[error("cannot read the agent's database {}: {source}", path.display())]
    Read {
        path: PathBuf,
        /// Also if it is not a regular file, or too large.
        source: io::Error,
    },
    /// The file is not what the agent writes.
    #[error("the agent's database {} {source}", path.display())]
    Database { path: PathBuf, source: BadDatabase },
    /// It changed between all attempts to read it.
    #[error("the agent's database {} is being written: try again", path.display())]
    Changing { path: PathBuf },
    #[error("cannot read `manager_ip` in the agent's database {}: {source}", path.display())]
    ManagerPickle { path: PathBuf, source: BadPickle },
    /// `manager_ip` is not an address.
    #[error(
        "`manager_ip` in the agent's database {} is {found}, which is neither an IP address nor a host name: \
         set `ovm_endpoint` in the configuration",
        path.display()
    )]
    ManagerAddress {
        path: PathBuf,
        /// The value, shortened.
        found: String,
    },
}

/// The repositories of the agent's database in `folder`, sorted by id. A problem with one entry is reported in that
/// entry. With `wait`, a missing file is waited for, for a moment.
///
/// # Errors
/// The file as a whole cannot be read.
pub fn repositories(folder: &Path, wait: bool) -> Result<Vec<RepositoryEntry>, AgentDbError> {
    let pairs = stable_read::pairs(&folder.join(REPOSITORIES), wait)?;
    Ok(pairs.iter().map(|(id, value)| entry(id, value)).collect())
}

/// The address of the manager of this host, if it has one: an IP address (IPv6 without brackets) or a host name.
///
/// # Errors
/// The file cannot be read, or the address is invalid.
pub fn manager_address(folder: &Path, wait: bool) -> Result<Option<String>, AgentDbError> {
    let path = folder.join(SERVER);
    let pairs = stable_read::pairs(&path, wait)?;
    let Some((_, value)) = pairs.iter().find(|(key, _)| key == b"manager_ip") else { return Ok(None) };
    let value = match pickle::parse(value) {
        Ok(value) => value,
        Err(source) => return Err(AgentDbError::ManagerPickle { path, source }),
    };
    let found = match value.to_text() {
        Some(address) if address.is_empty() => return Ok(None),
        Some(address) if is_address(&address) => return Ok(Some(address.into_owned())),
        Some(text) => format!("{:?}", text.chars().take(100).collect::<String>()),
        None if value == Value::None => return Ok(None),
        None => "not a string".to_owned(),
    };
    Err(AgentDbError::ManagerAddress { path, found })
}

fn entry(id: &[u8], value: &[u8]) -> RepositoryEntry {
    let id = String::from_utf8_lossy(id).into_owned();
    let (fields, problem) = match pickle::parse(value) {
        Ok(fields @ Value::Dict(_)) => (fields, None),
        Ok(_) => (Value::None, Some("its entry in the agent's database is not a dict".to_owned())),
        Err(error) => (Value::None, Some(format!("cannot read its entry in the agent's database: {error}"))),
    };
    let text = |name| Some(fields.get(name)?.to_text()?.into_owned());
    RepositoryEntry {
        id,
        mount_point: fields.get("mount_point").and_then(path),
        alias: text("alias"),
        manager_uuid: text("manager_uuid"),
        version: fields.get("version").and_then(version),
        filesystem: text("filesystem"),
        problem,
    }
}

/// A path may contain any bytes.
fn path(value: &Value) -> Option<PathBuf> {
    let bytes = match value {
        Value::Bytes(bytes) => bytes,
        Value::Text(text) => text.as_bytes(),
        _ => return None,
    };
    (!bytes.is_empty()).then(|| OsStr::from_bytes(bytes).into())
}

fn version(value: &Value) -> Option<String> {
    match value {
        Value::Int(number) => Some(number.to_string()),
        Value::Float(number) => Some(format!("{number:?}")),
        _ => value.to_text().map(Into::into),
    }
}

/// Whether it is an IP address or a host name. It becomes part of a URL.
fn is_address(text: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    // Only digits and dots: an address, or a mistake.
    let is_host = |name: &str| {
        name.len() <= 253
            && name.split('.').all(is_label)
            && name.rsplit('.').next().is_some_and(|label| !label.bytes().all(|byte| byte.is_ascii_digit()))
    };
    text.parse::<IpAddr>().is_ok() || is_host(text.strip_suffix('.').unwrap_or(text))
}

#[cfg(test)]
mod tests;
