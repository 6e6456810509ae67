//! `[api]`: where the service listens, and for whom.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::tls::{self, ClientAuth};
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
    /// `None`: clients have no certificates.
    pub client_auth: Option<ClientAuth>,
    pub connections: Connections,
    /// `None`: the service has no Unix socket.
    pub socket: Option<Socket>,
    pub pages: Pages,
}

/// What browsers get.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pages {
    /// The page for people at `/ui`.
    pub ui: bool,
    /// The OpenAPI document, and a page that shows it.
    pub docs: bool,
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
    /// `trusted_proxies`: addresses without that limit.
    pub trusted_proxies: Vec<IpNet>,
    /// `forwarded_for_from`: addresses whose `X-Forwarded-For` counts.
    pub forwarded_for_from: Vec<IpNet>,
    /// `keepalive_timeout`: how long a connection that has sent a valid token may be idle.
    pub keepalive: Duration,
}

impl Connections {
    /// Whether many clients may share this address.
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        contain(&self.trusted_proxies, address)
    }

    /// Whether requests from this address name their clients truthfully.
    pub fn names_clients(&self, address: IpAddr) -> bool {
        contain(&self.forwarded_for_from, address)
    }
}

fn contain(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address.to_canonical()))
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
    forwarded_for_from: Vec<String>,
    keepalive_timeout: String,
    socket: String,
    socket_group: String,
    ui: bool,
    docs: bool,
    tls: tls::Keys,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            bind: "0.0.0.0".to_owned(),
            port: 5544,
            max_connections_per_address: 64,
            trusted_proxies: Vec::new(),
            forwarded_for_from: Vec::new(),
            keepalive_timeout: "75s".to_owned(),
            socket: Socket::DEFAULT_PATH.to_owned(),
            socket_group: String::new(),
            ui: true,
            docs: true,
            tls: tls::Keys::default(),
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
        let keepalive = self.duration("api.keepalive_timeout", &keys.keepalive_timeout);
        if keepalive > MAX_KEEPALIVE {
            let expected = "expected a little more than the proxy's timeout, such as 75s";
            self.problem("api.keepalive_timeout", format_args!("is longer than an hour; {expected}"));
        }
        Connections {
            per_address: keys.max_connections_per_address,
            trusted_proxies: self.networks("api.trusted_proxies", &keys.trusted_proxies),
            forwarded_for_from: self.networks("api.forwarded_for_from", &keys.forwarded_for_from),
            keepalive,
        }
    }

    fn networks(&mut self, key: &str, texts: &[String]) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in texts {
            match text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse()) {
                Ok(network) => networks.push(network),
                Err(_) => {
                    let expected = "expected 10.0.0.5, or 10.0.0.0/24 for a network";
                    self.problem(key, format_args!("invalid address {text:?}; {expected}"));
                }
            }
        }
        networks
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
        Api {
            bind,
            port: keys.port,
            certificate: self.path("api.tls.certificate", &keys.tls.certificate),
            key: self.path("api.tls.key", &keys.tls.key),
            allow_insecure_key: keys.tls.allow_insecure_permissions,
            client_auth: self.client_auth(&keys.tls),
            connections: self.connections(keys),
            socket: self.socket(keys),
            pages: Pages { ui: keys.ui, docs: keys.docs },
        }
    }
}
