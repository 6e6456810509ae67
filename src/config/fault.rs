//! A problem with the config or with the files that it names. The start and check-config print the same text.

use std::io;
use std::net::SocketAddr;

use super::{Api, ConfigError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key of the config.
    pub key: String,
    /// What is wrong.
    pub found: String,
    pub remedy: String,
    /// Whether another start with the same config may succeed.
    pub is_transient: bool,
}

impl Fault {
    /// A permanent fault.
    pub fn new(key: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key: key.into(), found: found.into(), remedy: remedy.into(), is_transient: false }
    }

    #[must_use]
    pub fn transient(self) -> Self {
        Self { is_transient: true, ..self }
    }

    /// Splits a line at its first semicolon into problem and remedy. Without one, `remedy` is used.
    pub fn from_line(key: &str, line: &str, remedy: &str) -> Self {
        let (found, remedy) = line.split_once("; ").unwrap_or((line, remedy));
        Self::new(key, found, remedy)
    }

    /// The service cannot listen at the address of `[api]`.
    pub fn of_listening(api: &Api, error: &io::Error) -> Self {
        let address = SocketAddr::from((api.bind, api.port));
        let (found, remedy) = match error.kind() {
            io::ErrorKind::AddrInUse => (
                format!("{address} is in use by another process"),
                format!("stop it (ss -ltnp 'sport = :{}' shows which it is), or name another port", api.port),
            ),
            io::ErrorKind::AddrNotAvailable => (
                format!("{} is not an address of this host", api.bind),
                "name one that `ip address` lists, or 0.0.0.0 for all of IPv4".to_owned(),
            ),
            io::ErrorKind::PermissionDenied => (
                format!("this user may not listen at {address}"),
                "run the service as root, or name a port from 1024 up".to_owned(),
            ),
            _ => (format!("{address}: {error}"), "name another address or port".to_owned()),
        };
        // The other program may end; the address may be configured later.
        Self::new("api.bind, api.port", found, remedy).transient()
    }
}

impl From<Fault> for anyhow::Error {
    fn from(fault: Fault) -> Self {
        let Fault { key, found, remedy, is_transient } = fault;
        let line = format!("{key}: {found}; {remedy}");
        if is_transient { Self::msg(line) } else { ConfigError::new(line).into() }
    }
}
