//! `[api]` and `[api.tls]`.

use std::net::IpAddr;
use std::path::PathBuf;

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

impl Check {
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
