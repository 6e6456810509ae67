//! The config file: read once at start, and refused whole where a key is not right.

mod api;
mod compare;
mod export;
mod file;
mod hooks;
mod jwt;
mod log;
mod manager;
mod policy;
mod repositories;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use api::Api;
pub use compare::{Compare, Refine, block_size};
pub use export::Export;
pub use file::File;
pub use hooks::{Hooks, OnFailure, PostOrder, Sync, sync_url};
pub use jwt::Jwt;
pub use log::Log;
pub use manager::{Manager, Trust};
pub use policy::{LONGEST, Policy, SpaceFloor};
pub use repositories::Repositories;

/// Where the config is looked for when no other place is named.
pub const DEFAULT_PATH: &str = "/etc/coriolis-ovm-exporter/config.toml";

/// A config that can be run with.
#[derive(Debug)]
pub struct Config {
    /// `db_file`.
    pub db_file: PathBuf,
    /// `log_file` and `[log]`.
    pub log: Log,
    /// `[jwt]`.
    pub jwt: Jwt,
    /// `[api]`.
    pub api: Api,
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

/// All that is wrong with a config file, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

/// Reads the config at `path`.
///
/// # Errors
/// [`ConfigError`], each line of which names a key and says what to do.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(vec![format!("{}: {error}; name the file with --config", path.display())]))?;
    parse(&text).map_err(|ConfigError(lines)| {
        ConfigError(lines.into_iter().map(|line| format!("{}: {line}", path.display())).collect())
    })
}

/// Reads a config from its text.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let file: File = toml::from_str(text).map_err(|error| {
        // The whole error would quote the line, which may be the one with the secret: its key will do.
        let start = error.span().map_or(0, |span| span.start);
        let number = text[..start].matches('\n').count() + 1;
        let line = text.lines().nth(number - 1).unwrap_or_default();
        let key = line.split_once('=').map(|(key, _)| format!("{}: ", key.trim())).unwrap_or_default();
        ConfigError(vec![format!("line {number}: {key}{}", error.message())])
    })?;
    let mut check = Check::default();
    let config = Config {
        db_file: check.path("db_file", &file.db_file),
        log: check.log(&file),
        jwt: check.jwt(&file.jwt),
        api: check.api(&file.api),
        manager: check.manager(&file),
        repositories: check.repositories(&file.repositories),
        compare: check.compare(&file.compare),
        policy: check.policy(&file.policy),
        export: check.export(&file.export),
        hooks: check.hooks(&file.hooks),
        metrics: file.metrics.enabled,
    };
    if check.problems.is_empty() { Ok(config) } else { Err(ConfigError(check.problems)) }
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
        self.problems.push(format!("{key}: {remedy}"));
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
