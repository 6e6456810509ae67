//! `[hooks]` and `[hooks.sync]`: what runs before and after an operation.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::manager::Trust;
use super::secret::{mask, mask_users};
use super::validator::{Validator, optional};
use crate::model::VmId;

#[derive(Clone, Debug)]
pub struct Hooks {
    /// The folder of the programs.
    pub directory: Option<PathBuf>,
    /// For all programs of one stage together.
    pub timeout: Duration,
    /// When a `pre` program fails.
    pub on_failure: OnFailure,
    /// Whether `post` programs run after an operation that failed.
    pub post_on_failure: bool,
    pub post_order: PostOrder,
    /// `[hooks.sync]`, if it has a secret.
    pub sync: Option<Sync>,
}

/// `[hooks.sync]`: requests to servers in the guests.
#[derive(Clone, Debug)]
pub struct Sync {
    /// Shared with the guests. Never printed.
    pub secret: SecretString,
    /// For guests whose URL names no port.
    pub port: u16,
    /// Time for one complete response.
    pub timeout: Duration,
    /// When the last attempt fails.
    pub on_failure: OnFailure,
    /// Whether `/post-sync` is called after a snapshot that failed.
    pub post_on_failure: bool,
    pub trust: Trust,
    /// Attempts after the first.
    pub retries: u32,
    pub retry_delay: Duration,
    /// Where a VM's tag may send the secret: host names, addresses, domains with a leading dot, or `*`.
    pub hosts: Vec<String>,
    /// URLs by VM. They override the VM's tag.
    pub urls: BTreeMap<VmId, String>,
}

impl Sync {
    /// Whether the secret may be sent to `host`, which a VM's tag names. Anyone who may edit a VM's description can
    /// name any host, so it has to be listed. Without a list, the config must name the CA of the guests.
    pub fn may_be_named(&self, host: &str) -> bool {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let is = |named: &String| {
            let named = named.to_ascii_lowercase();
            named == "*"
                || named == host
                || named.starts_with('.') && address.is_none() && host.ends_with(&named)
                || address.is_some() && named.parse().ok() == address
        };
        if self.hosts.is_empty() { matches!(self.trust, Trust::CaFile(_)) } else { self.hosts.iter().any(is) }
    }
}

/// What a failed `pre` hook does to the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    Abort,
    Continue,
}

/// The order of `post` programs, compared with that of the `pre` programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostOrder {
    Reverse,
    Same,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    directory: String,
    timeout: String,
    on_failure: String,
    post_on_failure: bool,
    post_order: String,
    pub(super) sync: SyncKeys,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            directory: String::new(),
            timeout: "1m".to_owned(),
            on_failure: "abort".to_owned(),
            post_on_failure: false,
            post_order: "reverse".to_owned(),
            sync: SyncKeys::default(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SyncKeys {
    #[serde(serialize_with = "mask")]
    pub(super) secret: SecretString,
    port: u16,
    timeout: String,
    on_failure: String,
    post_on_failure: bool,
    ca_certificate: String,
    insecure_skip_verify: bool,
    retries: u32,
    retry_delay: String,
    hosts: Vec<String>,
    #[serde(serialize_with = "mask_users")]
    urls: BTreeMap<String, String>,
}

impl Default for SyncKeys {
    fn default() -> Self {
        Self {
            secret: SecretString::default(),
            port: 1727,
            timeout: "1m".to_owned(),
            on_failure: "continue".to_owned(),
            post_on_failure: true,
            ca_certificate: String::new(),
            insecure_skip_verify: false,
            retries: 0,
            retry_delay: "1m".to_owned(),
            hosts: Vec::new(),
            urls: BTreeMap::new(),
        }
    }
}

const MAX_RETRIES: u32 = 10;

impl Validator {
    pub(super) fn hooks(&mut self, keys: &Keys) -> Hooks {
        let directory = optional(&keys.directory).map(PathBuf::from);
        if directory.as_deref().is_some_and(|path| !path.is_absolute()) {
            let expected = "expected an absolute path";
            self.problem("hooks.directory", format_args!("invalid path {:?}; {expected}", keys.directory));
        }
        Hooks {
            directory,
            timeout: self.duration("hooks.timeout", &keys.timeout),
            on_failure: self.on_failure("hooks.on_failure", &keys.on_failure),
            post_on_failure: keys.post_on_failure,
            post_order: self.post_order(&keys.post_order),
            sync: self.sync(&keys.sync),
        }
    }

    fn post_order(&mut self, text: &str) -> PostOrder {
        match text {
            "reverse" => PostOrder::Reverse,
            "same" => PostOrder::Same,
            _ => {
                self.problem("hooks.post_order", format_args!("invalid order {text:?}; expected reverse or same"));
                PostOrder::Reverse
            }
        }
    }

    fn on_failure(&mut self, key: &str, text: &str) -> OnFailure {
        match text {
            "continue" => OnFailure::Continue,
            "abort" => OnFailure::Abort,
            _ => {
                self.problem(key, format_args!("invalid value {text:?}; expected abort or continue"));
                OnFailure::Abort
            }
        }
    }

    fn sync(&mut self, keys: &SyncKeys) -> Option<Sync> {
        if keys.port == 0 {
            self.problem("hooks.sync.port", "invalid port 0; the default is 1727");
        }
        if keys.retries > MAX_RETRIES {
            let expected = format_args!("invalid number {}; expected 0 to {MAX_RETRIES}", keys.retries);
            self.problem("hooks.sync.retries", expected);
        }
        if keys.insecure_skip_verify && !keys.ca_certificate.is_empty() {
            self.problem("hooks.sync", "has both ca_certificate and insecure_skip_verify; keep one");
        }
        let trust = match optional(&keys.ca_certificate) {
            _ if keys.insecure_skip_verify => Trust::InsecureSkipVerify,
            Some(path) => Trust::CaFile(path.into()),
            None => Trust::System,
        };
        for host in &keys.hosts {
            if host.is_empty() || host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | '[')) {
                let expected = "expected guest.example, .example for all names below it, 10.0.0.5, fd00::5, or *";
                self.problem("hooks.sync.hosts", format_args!("invalid host {host:?}; {expected}"));
            }
        }
        let mut urls = BTreeMap::new();
        for (vm, url) in &keys.urls {
            let key = format!("hooks.sync.urls.{vm}");
            match (vm.parse::<VmId>(), sync_url(url, &trust)) {
                (Ok(vm), Ok(url)) => {
                    urls.insert(vm, url);
                }
                (Err(problem), _) => self.problem(&key, problem),
                (_, Err(problem)) => self.problem(&key, format_args!("{problem}; expected https://10.0.0.5:1727")),
            }
        }
        let sync = Sync {
            secret: keys.secret.clone(),
            port: keys.port,
            timeout: self.duration("hooks.sync.timeout", &keys.timeout),
            on_failure: self.on_failure("hooks.sync.on_failure", &keys.on_failure),
            post_on_failure: keys.post_on_failure,
            trust,
            retries: keys.retries,
            retry_delay: self.duration("hooks.sync.retry_delay", &keys.retry_delay),
            hosts: keys.hosts.clone(),
            urls,
        };
        (!keys.secret.expose_secret().is_empty()).then_some(sync)
    }
}

/// Checks the URL of a sync server, and removes trailing slashes. The secret is sent there, so it has to be HTTPS,
/// unless certificates are not verified anyway.
///
/// # Errors
/// What is wrong with the URL.
pub fn sync_url(text: &str, trust: &Trust) -> Result<String, &'static str> {
    let uri: http::Uri = text.parse().map_err(|_| "is not a URL")?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if *trust == Trust::InsecureSkipVerify => {}
        Some("http") => return Err("would send the secret in the clear"),
        _ => return Err("is not a URL"),
    }
    let authority = uri.authority().ok_or("has no host")?;
    if authority.host().is_empty() {
        return Err("has no host");
    }
    // The URL is shown in API documents and in the log.
    if authority.as_str().contains('@') {
        return Err("contains a user name");
    }
    if uri.query().is_some() || text.contains('#') {
        return Err("has a query or a fragment, so no path can be appended");
    }
    Ok(text.trim_end_matches('/').to_owned())
}
