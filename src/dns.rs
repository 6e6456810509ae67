//! Looks up the names of the manager, of guests and, for the client, of services, as the host's `/etc/resolv.conf` and
//! `/etc/hosts` say.
//!
//! The confined service cannot read a file that replaced one of these after the start. It then continues with the last
//! content that it could read. The resolver of the crate reqwest would ask public name servers instead.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// What the host's files said when they were last read.
#[derive(Clone, Default)]
struct Files {
    servers: Option<(ResolverConfig, ResolverOpts)>,
    hosts: Arc<Hosts>,
}

/// The host's files. Clones share them.
#[derive(Clone)]
pub struct HostNames(Arc<Mutex<Files>>);

impl HostNames {
    /// Reads the host's files for the first time.
    pub fn read() -> Self {
        let names = Self(Arc::default());
        // Without name servers, the first look-up fails and says why.
        let _ = names.current();
        names
    }

    fn current(&self) -> Result<TokioResolver, NetError> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(hosts) = Hosts::from_system() {
            files.hosts = Arc::new(hosts);
        }
        match read_system_conf() {
            Ok(servers) => files.servers = Some(servers),
            Err(error) if files.servers.is_none() => return Err(error),
            Err(error) => tracing::debug!(%error, "cannot read the host's name servers again; using the known ones"),
        }
        let (servers, mut options) = files.servers.clone().unwrap_or_default();
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let mut resolver = builder.build()?;
        resolver.set_hosts(Arc::clone(&files.hosts));
        Ok(resolver)
    }
}

/// The resolver would show its query as a value of Rust.
fn described(error: NetError, name: &str) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(_)) => {
            io::Error::new(io::ErrorKind::NotFound, format!("the name {name} has no address")).into()
        }
        error => error.into(),
    }
}

impl Resolve for HostNames {
    /// With a resolver of its own, so that changed files count at once.
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let found = names.current()?.lookup_ip(name.as_str()).await;
            let found = found.map_err(|error| described(error, name.as_str()))?;
            let addresses: Vec<_> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::net::NoRecords;
    use hickory_resolver::proto::op::{Query, ResponseCode};

    use super::*;

    #[test]
    fn an_unknown_name_is_named() {
        let missing = NetError::Dns(DnsError::NoRecordsFound(NoRecords::new(Query::default(), ResponseCode::NXDomain)));
        assert_eq!(described(missing, "host.invalid").to_string(), "the name host.invalid has no address");
        assert_eq!(described(NetError::Timeout, "host").to_string(), NetError::Timeout.to_string());
    }
}
