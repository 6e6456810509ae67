//! The config file. It is read once at start, and refused as a whole if any key is wrong.
//!
//! Each section has a file with its keys and the type that they become. `file.rs` has the list of sections.

mod access;
mod api;
mod audit;
mod compare;
mod confinement;
mod export;
mod fault;
mod file;
mod hooks;
mod jwt;
mod live;
mod log;
mod login;
mod manager;
mod notifications;
mod policy;
mod reading;
mod repositories;
mod secret;
mod tls;
mod units;
mod validator;

use std::path::{Path, PathBuf};

pub use api::{Api, Connections, Pages, Socket};
pub use audit::Audit;
pub use compare::{Compare, REFINE_BLOCKS, Refine, block_size};
pub use confinement::ConfinementMode;
pub use export::Export;
pub use fault::Fault;
pub use hooks::{Hooks, OnFailure, PostOrder, Sync, sync_url};
pub use jwt::Jwt;
pub use live::Live;
pub use log::Log;
pub use login::Login;
pub use manager::{Manager, Trust, parse_fingerprint};
pub use notifications::{Notifications, Webhook};
pub use policy::{MAX_TTL, MinFreeSpace, Policy};
pub use repositories::Repositories;
pub use secret::{is_given_away, weakness};
pub use tls::ClientAuth;
pub use units::{parse_duration, parse_size};
use validator::Validator;

use crate::model::AccessRules;

/// Used without `--config`.
pub const DEFAULT_PATH: &str = "/etc/coriolis-ovm-exporter/config.toml";

/// A valid config.
#[derive(Debug)]
pub struct Config {
    /// Where it was read.
    pub file: PathBuf,
    pub db_file: PathBuf,
    /// Whether a damaged database is set aside and rebuilt from the manifests.
    pub db_rebuild: bool,
    pub log: Log,
    pub audit: Audit,
    pub jwt: Jwt,
    pub login: Login,
    pub api: Api,
    pub manager: Manager,
    pub repositories: Repositories,
    pub compare: Compare,
    pub policy: Policy,
    pub export: Export,
    pub hooks: Hooks,
    pub notifications: Notifications,
    pub access: AccessRules,
    pub metrics: MetricsRoute,
    pub confinement: ConfinementMode,
    /// Every key with its value, and with secrets masked.
    pub keys: toml::Table,
}

/// Whether there is a route `GET /metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsRoute {
    Off,
    /// It needs no token.
    Open,
    /// It needs a token of a user with the role metrics or admin.
    NeedsToken,
}

/// Everything that is wrong with a config file or the files that it names, one line each. Another start with the same
/// config would fail as well. A line names the key, the problem and, after a semicolon, the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    pub fn new(line: impl Into<String>) -> Self {
        Self(vec![line.into()])
    }

    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

/// Reads the config at `path`.
///
/// # Errors
/// The file cannot be read, or a key is wrong.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    match load_with_faults(path)? {
        (config, faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(ConfigError(faults)),
    }
}

/// Reads the config at `path`, and lists the wrong keys. With any of these, the config can be examined but not used.
///
/// # Errors
/// The file cannot be read.
pub fn load_with_faults(path: &Path) -> Result<(Config, Vec<String>), ConfigError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "run this as root",
            _ => "name the file with --config",
        };
        ConfigError::new(format!("{shown}: {error}; {remedy}"))
    })?;
    let (mut config, faults) = parse_with_faults(&text);
    config.file = path.to_owned();
    Ok((config, faults.into_iter().map(|line| format!("{shown}: {line}")).collect()))
}

/// Parses the text of a config file.
#[cfg(test)]
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    match parse_with_faults(text) {
        (config, faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(ConfigError(faults)),
    }
}

/// Parses the text of a config file, and lists the wrong keys.
pub fn parse_with_faults(text: &str) -> (Config, Vec<String>) {
    let (file, problems) = reading::read(text);
    let mut validator = Validator { problems };
    let written_files = [("db_file", &*file.db_file), ("log_file", &*file.log_file)];
    let has_agent = !file.repositories.ovs_agent_db.is_empty();
    let config = Config {
        file: PathBuf::new(),
        db_file: validator.path("db_file", &file.db_file),
        db_rebuild: file.db_rebuild,
        log: validator.log(&file.log, &file.log_file, &file.db_file),
        audit: validator.audit(&file.audit, &written_files),
        jwt: validator.jwt(&file.jwt, &file.hooks.sync.secret),
        login: (&file.login).into(),
        api: validator.api(&file.api),
        manager: validator.manager(&file.manager, &file.ovm_endpoint, has_agent),
        repositories: validator.repositories(&file.repositories),
        compare: validator.compare(&file.compare),
        policy: validator.policy(&file.policy),
        export: validator.export(&file.export),
        hooks: validator.hooks(&file.hooks),
        notifications: validator.notifications(&file.notifications),
        access: validator.access(&file.access),
        metrics: match &file.metrics {
            file::Metrics { enabled: false, .. } => MetricsRoute::Off,
            file::Metrics { require_token: false, .. } => MetricsRoute::Open,
            file::Metrics { require_token: true, .. } => MetricsRoute::NeedsToken,
        },
        confinement: validator.confinement(&file.confinement),
        keys: toml::Table::try_from(&file).unwrap_or_default(),
    };
    (config, validator.problems)
}

#[cfg(test)]
mod tests;
