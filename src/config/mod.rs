//! The config file: read once at start, and refused whole where a key is not right.

mod api;
mod audit;
mod compare;
mod export;
mod fault;
mod file;
mod hooks;
mod jwt;
mod log;
mod manager;
mod policy;
mod reading;
mod repositories;
mod secret;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use api::{Api, Connections};
pub use audit::Audit;
pub use compare::{Compare, Refine, block_size};
pub use export::Export;
pub use fault::Fault;
pub use file::File;
pub use hooks::{Hooks, OnFailure, PostOrder, Sync, sync_url};
pub use jwt::Jwt;
pub use log::Log;
pub use manager::{Manager, Trust};
pub use policy::{LONGEST, LowSpace, Policy};
pub use repositories::Repositories;
pub use secret::{is_given_away, weakness};

/// Where the config is looked for when no other place is named.
pub const DEFAULT_PATH: &str = "/etc/coriolis-ovm-exporter/config.toml";

/// A config that can be run with.
#[derive(Debug)]
pub struct Config {
    /// `db_file`.
    pub db_file: PathBuf,
    /// `log_file` and `[log]`.
    pub log: Log,
    /// `[audit]`.
    pub audit: Audit,
    /// `[jwt]`.
    pub jwt: Jwt,
    /// `[api]`.
    pub api: Api,
    /// Its keys about connections.
    pub connections: Connections,
    /// `ovm_endpoint` and `[manager]`.
    pub manager: Manager,
    /// `[repositories]`.
    pub repositories: Repositories,
    /// `[compare]`.
    pub compare: Compare,
    /// `[policy]`.
    pub policy: Policy,
    /// `[export]`.
    pub export: Export,
    /// `[hooks]`.
    pub hooks: Hooks,
    /// `metrics.enabled`: whether `GET /metrics` answers, to anybody.
    pub metrics: bool,
}

/// All that is wrong with a config file, or with what it names, one line each: another start with the same config
/// would fail as well. A line names the key, says what is wrong and, after a semicolon, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// One line.
    pub fn new(line: impl Into<String>) -> Self {
        Self(vec![line.into()])
    }

    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

/// Reads the config at `path`.
///
/// # Errors
/// [`ConfigError`], each line of which names a key and says what to do.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    match load_with_faults(path)? {
        (config, faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(ConfigError(faults)),
    }
}

/// Reads the config at `path`; where lines come with it, it is one to look at and not to run with.
///
/// # Errors
/// Where the file cannot be read at all.
pub fn load_with_faults(path: &Path) -> Result<(Config, Vec<String>), ConfigError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::new(format!("{shown}: {error}; name the file with --config")))?;
    let (config, faults) = parse_with_faults(&text);
    Ok((config, faults.into_iter().map(|line| format!("{shown}: {line}")).collect()))
}

/// Reads a config from its text.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    match parse_with_faults(text) {
        (config, faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(ConfigError(faults)),
    }
}

fn parse_with_faults(text: &str) -> (Config, Vec<String>) {
    let (file, problems) = reading::read(text);
    let mut check = Check { problems };
    let config = Config {
        db_file: check.path("db_file", &file.db_file),
        log: check.log(&file),
        audit: check.audit(&file),
        jwt: check.jwt(&file.jwt, &file.hooks.sync.secret),
        api: check.api(&file.api),
        connections: check.connections(&file.api),
        manager: check.manager(&file),
        repositories: check.repositories(&file.repositories),
        compare: check.compare(&file.compare),
        policy: check.policy(&file.policy),
        export: check.export(&file.export),
        hooks: check.hooks(&file.hooks),
        metrics: file.metrics.enabled,
    };
    (config, check.problems)
}

fn optional(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Collects what is wrong, so that an operator mends it all at once.
#[derive(Default)]
struct Check {
    problems: Vec<String>,
}

impl Check {
    fn problem(&mut self, key: &str, remedy: impl std::fmt::Display) {
        let line = format!("{key}: {remedy}");
        let has_remedy = line.contains("; ");
        self.problems.push(if has_remedy { line } else { line + "; config.example.toml explains this key" });
    }

    fn path(&mut self, key: &str, path: &str) -> PathBuf {
        if path.is_empty() {
            self.problem(key, "is empty; name a file");
        }
        PathBuf::from(path)
    }

    fn duration(&mut self, key: &str, text: &str) -> Duration {
        let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
        match parsed {
            Some(duration) if !duration.is_zero() => duration,
            _ => {
                self.problem(key, format_args!("{text:?} is no duration over zero; write it as 168h, 1h30m or 500ms"));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests;
