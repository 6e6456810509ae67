//! The databases of ovs-agent: which repositories the host has, and who manages it.
//!
//! They are Berkeley DB hash files whose values are pickles. The agent owns them and rewrites them
//! while we read. Both formats are read by pure functions; this is the thin part that knows files.

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

/// The database of the repositories, in the agent's folder.
pub const REPOSITORIES: &str = "repository";
/// The database of the host itself, which has its manager's address.
pub const SERVER: &str = "server";

/// A repository as the agent's database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryEntry {
    /// Its id: the key in the database, of which nothing is checked.
    pub id: String,
    /// Where it is mounted; nothing where that is missing, empty, or no string.
    pub mount_point: Option<PathBuf>,
    /// The name that people gave it.
    pub alias: Option<String>,
    /// The id of the manager that owns it.
    pub manager_uuid: Option<String>,
    /// The version of its format; a number is written out.
    pub version: Option<String>,
    /// The kind of its file system: `ocfs2`, `nfs`, …
    pub filesystem: Option<String>,
    /// Why nothing is known but the id.
    pub problem: Option<String>,
}

/// Why a database of the agent gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentDbError {
    /// The file cannot be opened or read.
    #[error("the agent's database {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says, or that it is no regular file, or too large.
        source: io::Error,
    },
    /// The file is not what the agent writes.
    #[error("the agent's database {} {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadDatabase,
    },
    /// Each look at the file shows something else.
    #[error("the agent's database {} was being written each time it was read: try again", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// The value of `manager_ip` cannot be read.
    #[error("`manager_ip` in the agent's database {} cannot be read: {source}", path.display())]
    ManagerPickle {
        /// The file.
        path: PathBuf,
        /// What is wrong with the value.
        source: BadPickle,
    },
    /// The value of `manager_ip` is no address.
    #[error(
        "`manager_ip` in the agent's database {} is {found}, which is neither an IP address nor a host name: \
         set `ovm_endpoint` in the configuration",
        path.display()
    )]
    ManagerAddress {
        /// The file.
        path: PathBuf,
        /// What stands there, shortened.
        found: String,
    },
}

/// The repositories of the agent's database in `folder`, sorted by id.
///
/// What is wrong with one entry is said in it, and costs no other. A file that is not there is waited for, for a
/// moment, only where `may_come`.
///
/// # Errors
/// [`AgentDbError`] where `folder/`[`REPOSITORIES`] cannot be read as a whole.
pub fn repositories(folder: &Path, may_come: bool) -> Result<Vec<RepositoryEntry>, AgentDbError> {
    let pairs = stable_read::pairs(&folder.join(REPOSITORIES), may_come)?;
    Ok(pairs.iter().map(|(id, value)| entry(id, value)).collect())
}

/// The address of the manager of this host, an IP address (of IPv6: without brackets) or a host name;
/// nothing where the host has none.
///
/// # Errors
/// [`AgentDbError`] where `folder/`[`SERVER`] cannot be read, or has an address that cannot be one.
pub fn manager_address(folder: &Path, may_come: bool) -> Result<Option<String>, AgentDbError> {
    let path = folder.join(SERVER);
    let pairs = stable_read::pairs(&path, may_come)?;
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
        None => "no string".to_owned(),
    };
    Err(AgentDbError::ManagerAddress { path, found })
}

fn entry(id: &[u8], value: &[u8]) -> RepositoryEntry {
    let id = String::from_utf8_lossy(id).into_owned();
    let (fields, problem) = match pickle::parse(value) {
        Ok(fields @ Value::Dict(_)) => (fields, None),
        Ok(_) => (Value::None, Some("its entry in the agent's database is no dict".to_owned())),
        Err(error) => (Value::None, Some(format!("its entry in the agent's database cannot be read: {error}"))),
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

/// A path byte for byte: one that is no UTF-8 is a path like any other.
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

/// Whether this can be an IP address or a host name; it becomes a part of an URL.
fn is_address(text: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    // Digits and dots alone are an address or a mistake.
    let is_host = |name: &str| {
        name.len() <= 253
            && name.split('.').all(is_label)
            && name.rsplit('.').next().is_some_and(|label| !label.bytes().all(|byte| byte.is_ascii_digit()))
    };
    text.parse::<IpAddr>().is_ok() || is_host(text.strip_suffix('.').unwrap_or(text))
}

#[cfg(test)]
mod tests;
