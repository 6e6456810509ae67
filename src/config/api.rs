//! `[api]` and `[api.tls]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{Check, file, optional};

/// `[api]`: where the service listens.
#[derive(Debug)]
pub struct Api {
    /// `bind`.
    pub bind: IpAddr,
    /// `port`.
    pub port: u16,
    /// `tls.certificate`, a chain in PEM.
    pub certificate: PathBuf,
    /// `tls.key`, in PEM.
    pub key: PathBuf,
    /// `tls.ca_certificate`, where `tls.client_auth` asks for certificates of clients.
    pub client_ca: Option<PathBuf>,
}

/// The keys of `[api]` about connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// `max_connections_per_address`: those of one address that have not carried a good token.
    pub per_address: usize,
    /// `trusted_proxies`: addresses that may have more.
    pub trusted_proxies: Vec<IpNet>,
    /// `keepalive_timeout`: how long a connection that has carried a good token may be idle.
    pub keepalive: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Check::default().connections(&file::Api::default())
    }
}

/// The longest time that a connection may be idle.
const KEEPALIVE_MAX: Duration = Duration::from_secs(3600);

impl Check {
    pub(super) fn connections(&mut self, api: &file::Api) -> Connections {
        if api.max_connections_per_address == 0 {
            self.problem("api.max_connections_per_address", "0 would let nobody in; the usual number is 64");
        }
        let mut trusted_proxies = Vec::new();
        for text in &api.trusted_proxies {
            let address = text.parse::<IpAddr>().map(IpNet::from);
            match address.or_else(|_| text.parse()) {
                Ok(proxy) => trusted_proxies.push(proxy),
                Err(_) => {
                    let remedy = "is no address; write 10.0.0.5, or 10.0.0.0/24 for a network";
                    self.problem("api.trusted_proxies", format_args!("{text:?} {remedy}"));
                }
            }
        }
        let keepalive = self.duration("api.keepalive_timeout", &api.keepalive_timeout);
        if keepalive > KEEPALIVE_MAX {
            self.problem("api.keepalive_timeout", "is longer than an hour; write a little more than a proxy's, as 75s");
        }
        Connections { per_address: api.max_connections_per_address, trusted_proxies, keepalive }
    }

    pub(super) fn api(&mut self, api: &file::Api) -> Api {
        let bind = api.bind.parse().unwrap_or_else(|_| {
            self.problem("api.bind", format_args!("{:?} is no IP address; write 0.0.0.0 for all of IPv4", api.bind));
            IpAddr::from([127, 0, 0, 1])
        });
        if api.port == 0 {
            self.problem("api.port", "0 is no port to be found at; the usual one is 5544");
        }
        let client_ca = optional(&api.tls.ca_certificate).map(PathBuf::from);
        if api.tls.client_auth && client_ca.is_none() {
            self.problem(
                "api.tls.ca_certificate",
                "is needed with client_auth: clients' certificates must chain to it",
            );
        }
        Api {
            bind,
            port: api.port,
            certificate: self.path("api.tls.certificate", &api.tls.certificate),
            key: self.path("api.tls.key", &api.tls.key),
            client_ca: client_ca.filter(|_| api.tls.client_auth),
        }
    }
}
