//! The address of the manager.

use std::path::{Path, PathBuf};

use crate::app::file_cache::FileCache;
use crate::config;
use crate::inventory::ovs_agent;

/// The address of the manager.
pub(crate) enum ManagerAddress {
    /// From the config.
    Configured(String),
    /// From ovs-agent's database in this folder. It can change while the service runs.
    AgentDb(PathBuf, FileCache<Result<String, String>>),
}

/// The port of Oracle VM Manager's REST endpoint.
const PORT: u16 = 7002;

impl ManagerAddress {
    /// Finds the manager's address.
    ///
    /// # Errors
    /// If there is none. The error is written for operators.
    pub(crate) fn new(config: &config::Config) -> anyhow::Result<Self> {
        let address = match (&config.manager.endpoint, &config.repositories.agent_db) {
            (Some(endpoint), _) => Self::Configured(endpoint.clone()),
            (None, Some(folder)) => Self::AgentDb(folder.clone(), FileCache::new()),
            (None, None) => anyhow::bail!("ovm_endpoint: is empty; set it to the address of the manager"),
        };
        let found = address.current().map_err(|problem| anyhow::anyhow!("ovm_endpoint: is empty, and {problem}"))?;
        tracing::info!(manager = found, "authenticating users against the manager");
        Ok(address)
    }

    /// The current address.
    ///
    /// # Errors
    /// If it is unknown. The error is written for operators.
    pub(crate) fn current(&self) -> Result<String, String> {
        match self {
            Self::Configured(endpoint) => Ok(endpoint.clone()),
            Self::AgentDb(folder, cache) => cache.get(&folder.join(ovs_agent::SERVER), |last| {
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
            Err(format!("{} has no manager address; is this server owned by a manager?", file.display()))
        }
        Err(error) => Err(error.to_string()),
    }
}
