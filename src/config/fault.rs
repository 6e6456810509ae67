//! What is wrong with a config, or with what it names: the same words on the terminal at the start and in check-config.

use std::io;
use std::net::SocketAddr;

use super::{Api, ConfigError};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key of the config.
    pub key: String,
    /// What is wrong.
    pub found: String,
    /// What to do.
    pub remedy: String,
    /// Whether another start with the same config may go well.
    pub may_pass: bool,
}

impl Fault {
    /// A fault that stays until somebody mends it.
    pub fn new(key: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key: key.into(), found: found.into(), remedy: remedy.into(), may_pass: false }
    }

    /// The same, where another start may go well.
    pub fn that_may_pass(self) -> Self {
        Self { may_pass: true, ..self }
    }

    /// From a line that says what is wrong and, after a semicolon, what to do; `remedy` where it does not.
    pub fn from_line(key: &str, line: &str, remedy: &str) -> Self {
        let (found, remedy) = line.split_once("; ").unwrap_or((line, remedy));
        Self::new(key, found, remedy)
    }

    /// Why the service cannot listen where `[api]` says.
    pub fn of_listening(api: &Api, error: &io::Error) -> Self {
        let address = SocketAddr::from((api.bind, api.port));
        let (found, remedy) = match error.kind() {
            io::ErrorKind::AddrInUse => (
                format!("{address} is in use by another program"),
                format!("stop it (ss -ltnp 'sport = :{}' shows which it is), or name another port", api.port),
            ),
            io::ErrorKind::AddrNotAvailable => (
                format!("{} is no address of this host", api.bind),
                "name one that `ip address` lists, or 0.0.0.0 for all of IPv4".to_owned(),
            ),
            io::ErrorKind::PermissionDenied => (
                format!("this user may not listen at {address}"),
                "run the service as root, or name a port from 1024 up".to_owned(),
            ),
            _ => (format!("{address}: {error}"), "name another address or port".to_owned()),
        };
        // The other program may end, the address may come later.
        Self::new("api.bind, api.port", found, remedy).that_may_pass()
    }
}

impl From<Fault> for anyhow::Error {
    fn from(fault: Fault) -> Self {
        let Fault { key, found, remedy, may_pass } = fault;
        let line = format!("{key}: {found}; {remedy}");
        if may_pass { Self::msg(line) } else { ConfigError::new(line).into() }
    }
}
