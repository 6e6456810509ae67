//! `~/.config/coriolis-ovm-exporter/client.toml`: services by name.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::client::Address;

const DIRECTORY: &str = "coriolis-ovm-exporter";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Of a pool, the addresses of its hosts with commas between them.
    pub url: String,
    pub ca_certificate: Option<PathBuf>,
    /// Of a pool, perhaps several with commas between them.
    pub fingerprint: Option<String>,
    pub user: Option<String>,
    /// Readable only by its owner.
    pub password_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    servers: BTreeMap<String, Profile>,
}

/// The profiles of the user.
#[derive(Debug, Default)]
pub struct Profiles(BTreeMap<String, Profile>);

impl Profiles {
    /// # Errors
    /// The file cannot be read.
    pub fn load() -> anyhow::Result<Self> {
        let Some(path) = directory("XDG_CONFIG_HOME", ".config").map(|directory| directory.join("client.toml")) else {
            return Ok(Self::default());
        };
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            result => result.with_context(|| path.display().to_string())?,
        };
        let file: File = toml::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Self(file.servers))
    }

    /// The profile called `name`.
    pub fn named(&self, name: &str) -> Option<&Profile> {
        self.0.get(name)
    }

    /// The profile of the service that has all of these hosts.
    pub fn of_hosts(&self, hosts: &[Address]) -> Option<&Profile> {
        let has_all = |profile: &&Profile| {
            let own = Address::parse_pool(&profile.url).unwrap_or_default();
            hosts.iter().all(|host| own.contains(host))
        };
        self.0.values().find(has_all)
    }
}

/// Where tokens are cached.
pub fn token_directory() -> Option<PathBuf> {
    directory("XDG_CACHE_HOME", ".cache")
}

/// A directory of this program by the XDG Base Directory Specification. `None` without a home.
fn directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |variable: &str| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(variable).or_else(|| Some(absolute("HOME")?.join(Path::new(below_home))))?;
    Some(base.join(DIRECTORY))
}
