//! `[api]` and `[api.tls]`: where the service listens, and for whom.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::validator::{Validator, optional};

#[derive(Debug)]
pub struct Api {
    pub bind: IpAddr,
    pub port: u16,
    /// A chain in PEM.
    pub certificate: PathBuf,
    /// In PEM.
    pub key: PathBuf,
    /// Whether others may be able to read the key.
    pub allow_insecure_key: bool,
    /// The CA of clients' certificates, if `client_auth` requires these.
    pub client_ca: Option<PathBuf>,
    pub connections: Connections,
    /// `None`: the service has no Unix socket.
    pub socket: Option<Socket>,
}

/// `socket` and `socket_group`: the Unix socket for operators of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    pub path: PathBuf,
    /// A group whose members may use it, besides root.
    pub group: Option<String>,
}

impl Socket {
    /// The default path, which the service does without if it cannot use its folder.
    pub const DEFAULT_PATH: &str = "/run/coriolis-ovm-exporter/api.sock";

    pub fn is_default(&self) -> bool {
        self.path == Path::new(Self::DEFAULT_PATH)
    }
}

/// The keys of `[api]` about connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// `max_connections_per_address`: limits connections of one address that have not sent a valid token.
    pub per_address: usize,
    /// `trusted_proxies`: addresses without that limit, whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
    /// `keepalive_timeout`: how long a connection that has sent a valid token may be idle.
    pub keepalive: Duration,
}

impl Connections {
    /// Whether this is the address of a trusted proxy.
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|proxy| proxy.contains(&address.to_canonical()))
    }
}

impl Default for Connections {
    fn default() -> Self {
        Validator::default().connections(&Keys::default())
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    bind: String,
    port: u16,
    max_connections_per_address: usize,
    trusted_proxies: Vec<String>,
    keepalive_timeout: String,
    socket: String,
    socket_group: String,
    tls: TlsKeys,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            bind: "0.0.0.0".to_owned(),
            port: 5544,
            max_connections_per_address: 64,
            trusted_proxies: Vec::new(),
            keepalive_timeout: "75s".to_owned(),
            socket: Socket::DEFAULT_PATH.to_owned(),
            socket_group: String::new(),
            tls: TlsKeys::default(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct TlsKeys {
    certificate: String,
    key: String,
    allow_insecure_permissions: bool,
    ca_certificate: String,
    client_auth: bool,
}

impl Default for TlsKeys {
    fn default() -> Self {
        Self {
            certificate: "/etc/coriolis-ovm-exporter/srv-pub.pem".to_owned(),
            key: "/etc/coriolis-ovm-exporter/srv-key.pem".to_owned(),
            allow_insecure_permissions: false,
            ca_certificate: String::new(),
            client_auth: false,
        }
    }
}

const MAX_KEEPALIVE: Duration = Duration::from_secs(3600);

/// Bytes of the path of a Unix socket (unix(7)), without the zero at its end.
const MAX_SOCKET_PATH: usize = 107;

impl Validator {
    fn connections(&mut self, keys: &Keys) -> Connections {
        if keys.max_connections_per_address == 0 {
            let problem = "is 0, which refuses every connection; the default is 64";
            self.problem("api.max_connections_per_address", problem);
        }
        let mut trusted_proxies = Vec::new();
        for text in &keys.trusted_proxies {
            let address = text.parse::<IpAddr>().map(IpNet::from);
            match address.or_else(|_| text.parse()) {
                Ok(proxy) => trusted_proxies.push(proxy),
                Err(_) => {
                    let expected = "expected 10.0.0.5, or 10.0.0.0/24 for a network";
                    self.problem("api.trusted_proxies", format_args!("invalid address {text:?}; {expected}"));
                }
            }
        }
        let keepalive = self.duration("api.keepalive_timeout", &keys.keepalive_timeout);
        if keepalive > MAX_KEEPALIVE {
            let expected = "expected a little more than the proxy's timeout, such as 75s";
            self.problem("api.keepalive_timeout", format_args!("is longer than an hour; {expected}"));
        }
        Connections { per_address: keys.max_connections_per_address, trusted_proxies, keepalive }
    }

    fn socket(&mut self, keys: &Keys) -> Option<Socket> {
        let group = optional(&keys.socket_group).map(str::to_owned);
        let Some(path) = optional(&keys.socket) else {
            if group.is_some() {
                let problem = "is set, but api.socket is \"\"; set both or neither";
                self.problem("api.socket_group", problem);
            }
            return None;
        };
        if !path.starts_with('/') || path.ends_with('/') {
            let expected = "expected an absolute path of a file, such as";
            self.problem("api.socket", format_args!("invalid path {path:?}; {expected} {}", Socket::DEFAULT_PATH));
        }
        if path.len() > MAX_SOCKET_PATH {
            let problem = format_args!("has {} bytes; the path of a socket has at most {MAX_SOCKET_PATH}", path.len());
            self.problem("api.socket", problem);
        }
        Some(Socket { path: PathBuf::from(path), group })
    }

    pub(super) fn api(&mut self, keys: &Keys) -> Api {
        let bind = keys.bind.parse().unwrap_or_else(|_| {
            let expected = "expected 0.0.0.0 for all of IPv4";
            self.problem("api.bind", format_args!("invalid IP address {:?}; {expected}", keys.bind));
            IpAddr::from([127, 0, 0, 1])
        });
        if keys.port == 0 {
            self.problem("api.port", "invalid port 0; the default is 5544");
        }
        let client_ca = optional(&keys.tls.ca_certificate).map(PathBuf::from);
        if keys.tls.client_auth && client_ca.is_none() {
            let problem = "is required with client_auth; name the CA of the clients' certificates";
            self.problem("api.tls.ca_certificate", problem);
        }
        Api {
            bind,
            port: keys.port,
            certificate: self.path("api.tls.certificate", &keys.tls.certificate),
            key: self.path("api.tls.key", &keys.tls.key),
            allow_insecure_key: keys.tls.allow_insecure_permissions,
            client_ca: client_ca.filter(|_| keys.tls.client_auth),
            connections: self.connections(keys),
            socket: self.socket(keys),
        }
    }
}
