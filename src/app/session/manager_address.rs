//! Where the manager is.

use std::path::{Path, PathBuf};

use crate::app::file_cache::FileCache;
use crate::config;
use crate::inventory::ovs_agent;

/// Where the manager is.
pub(crate) enum ManagerAddress {
    /// Where the config says.
    Named(String),
    /// Where ovs-agent's database in this folder says, at the time.
    AgentDb(PathBuf, FileCache<Result<String, String>>),
}

/// The port of Oracle VM Manager's REST endpoint.
const PORT: u16 = 7002;

impl ManagerAddress {
    /// The manager's address as `config` has it.
    ///
    /// # Errors
    /// Where there is none, in words for an operator.
    pub(crate) fn new(config: &config::Config) -> anyhow::Result<Self> {
        let address = match (&config.manager.endpoint, &config.repositories.agent_db) {
            (Some(endpoint), _) => Self::Named(endpoint.clone()),
            (None, Some(folder)) => Self::AgentDb(folder.clone(), FileCache::new()),
            (None, None) => anyhow::bail!("ovm_endpoint: is empty; name the manager"),
        };
        let found = address.now().map_err(|problem| anyhow::anyhow!("ovm_endpoint: is empty, and {problem}"))?;
        tracing::info!(manager = found, "authenticating users against the manager");
        Ok(address)
    }

    /// Where it is now.
    ///
    /// # Errors
    /// Why nobody knows, in words for an operator.
    pub(crate) fn now(&self) -> Result<String, String> {
        match self {
            Self::Named(endpoint) => Ok(endpoint.clone()),
            Self::AgentDb(folder, remembered) => remembered.get(&folder.join(ovs_agent::SERVER), |last| {
                let address = address_from(folder, last.is_none());
                let is_good = address.is_ok();
                (address, is_good)
            }),
        }
    }
}

fn address_from(folder: &Path, may_come: bool) -> Result<String, String> {
    match ovs_agent::manager_address(folder, may_come) {
        Ok(Some(host)) if host.contains(':') => Ok(format!("https://[{host}]:{PORT}")),
        Ok(Some(host)) => Ok(format!("https://{host}:{PORT}")),
        Ok(None) => {
            let file = folder.join(ovs_agent::SERVER);
            Err(format!("{} names no manager; is this server owned by one?", file.display()))
        }
        Err(error) => Err(error.to_string()),
    }
}
