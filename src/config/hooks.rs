//! `[hooks]` and `[hooks.sync]`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::{Check, Trust, file, optional};
use crate::model::VmId;

/// `[hooks]`: what runs around an operation.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// `directory`: the folder of the programs.
    pub directory: Option<PathBuf>,
    /// `timeout`, for all programs of one stage together.
    pub timeout: Duration,
    /// `on_failure`: what becomes of the operation when a `pre` program fails.
    pub on_failure: OnFailure,
    /// `post_on_failure`: whether `post` programs run after an operation that failed.
    pub post_on_failure: bool,
    /// `post_order`: in which order `post` programs run.
    pub post_order: PostOrder,
    /// `[hooks.sync]`, where it has a secret.
    pub sync: Option<Sync>,
}

/// `[hooks.sync]`: requests to servers in the guests.
#[derive(Clone, Debug)]
pub struct Sync {
    /// `secret`, which the guests know too. Never printed.
    pub secret: SecretString,
    /// `port`, where no URL names one.
    pub port: u16,
    /// `timeout`, for one whole answer.
    pub timeout: Duration,
    /// `on_failure`: what becomes of the snapshot when the last attempt fails.
    pub on_failure: OnFailure,
    /// `post_on_failure`: whether a guest is told the end of a snapshot that failed.
    pub post_on_failure: bool,
    /// How a guest's server proves who it is.
    pub trust: Trust,
    /// `retries`: attempts after the first.
    pub retries: u32,
    /// `retry_delay`: the pause before each of them.
    pub retry_delay: Duration,
    /// `hosts`: to which a VM's tag may lead: names, addresses, ends of names with their dot, or `*`.
    pub hosts: Vec<String>,
    /// `urls`, checked, by VM.
    pub urls: BTreeMap<VmId, String>,
}

impl Sync {
    /// Whether the secret may go to `host` because a VM's tag says so: whoever may edit a VM's description can
    /// name any. Where no hosts are named, only a guests' authority of one's own vouches for them.
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

/// What becomes of an operation when a hook before it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// It is not done.
    Abort,
    /// It is done all the same.
    Continue,
}

/// In which order `post` programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostOrder {
    /// As brackets close: what was called last before the operation is called first after it.
    Reverse,
    /// As before the operation.
    Same,
}

/// Attempts in vain that a snapshot may wait for.
const RETRIES_MAX: u32 = 10;

impl Check {
    pub(super) fn hooks(&mut self, hooks: &file::Hooks) -> Hooks {
        let directory = optional(&hooks.directory).map(PathBuf::from);
        if directory.as_deref().is_some_and(|path| !path.is_absolute()) {
            self.problem("hooks.directory", format_args!("{:?} is no absolute path", hooks.directory));
        }
        Hooks {
            directory,
            timeout: self.duration("hooks.timeout", &hooks.timeout),
            on_failure: self.on_failure("hooks.on_failure", &hooks.on_failure),
            post_on_failure: hooks.post_on_failure,
            post_order: self.post_order(&hooks.post_order),
            sync: self.sync(&hooks.sync),
        }
    }

    fn post_order(&mut self, text: &str) -> PostOrder {
        match text {
            "reverse" => PostOrder::Reverse,
            "same" => PostOrder::Same,
            _ => {
                self.problem("hooks.post_order", format_args!("{text:?} is neither \"reverse\" nor \"same\""));
                PostOrder::Reverse
            }
        }
    }

    fn on_failure(&mut self, key: &str, text: &str) -> OnFailure {
        match text {
            "continue" => OnFailure::Continue,
            "abort" => OnFailure::Abort,
            _ => {
                self.problem(key, format_args!("{text:?} is neither \"abort\" nor \"continue\""));
                OnFailure::Abort
            }
        }
    }

    fn sync(&mut self, sync: &file::HooksSync) -> Option<Sync> {
        if sync.port == 0 {
            self.problem("hooks.sync.port", "0 is no port; the usual one is 1727");
        }
        if sync.retries > RETRIES_MAX {
            self.problem("hooks.sync.retries", format_args!("is over {RETRIES_MAX}: the client waits meanwhile"));
        }
        if sync.insecure_skip_verify && !sync.ca_certificate.is_empty() {
            self.problem("hooks.sync", "has both ca_certificate and insecure_skip_verify; keep one");
        }
        let trust = match optional(&sync.ca_certificate) {
            _ if sync.insecure_skip_verify => Trust::InsecureSkipVerify,
            Some(path) => Trust::CaFile(path.into()),
            None => Trust::System,
        };
        for host in &sync.hosts {
            if host.is_empty() || host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | '[')) {
                let remedy = "write guest.example, .example for all below it, 10.0.0.5, fd00::5, or *";
                self.problem("hooks.sync.hosts", format_args!("{host:?} is no host; {remedy}"));
            }
        }
        let mut urls = BTreeMap::new();
        for (vm, url) in &sync.urls {
            let key = format!("hooks.sync.urls.{vm}");
            match (vm.parse::<VmId>(), sync_url(url, &trust)) {
                (Ok(vm), Ok(url)) => {
                    urls.insert(vm, url);
                }
                (Err(problem), _) => self.problem(&key, problem),
                (_, Err(problem)) => self.problem(&key, format_args!("{problem}; write https://10.0.0.5:1727")),
            }
        }
        let checked = Sync {
            secret: sync.secret.clone(),
            port: sync.port,
            timeout: self.duration("hooks.sync.timeout", &sync.timeout),
            on_failure: self.on_failure("hooks.sync.on_failure", &sync.on_failure),
            post_on_failure: sync.post_on_failure,
            trust,
            retries: sync.retries,
            retry_delay: self.duration("hooks.sync.retry_delay", &sync.retry_delay),
            hosts: sync.hosts.clone(),
            urls,
        };
        (!sync.secret.expose_secret().is_empty()).then_some(checked)
    }
}

/// The URL of a sync server, without a slash at its end.
///
/// # Errors
/// What is wrong with it. The secret goes there: it has to be HTTPS, unless nothing is verified anyway.
pub fn sync_url(text: &str, trust: &Trust) -> Result<String, &'static str> {
    let uri: http::Uri = text.parse().map_err(|_| "is no URL")?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if *trust == Trust::InsecureSkipVerify => {}
        Some("http") => return Err("would send the secret in the clear"),
        _ => return Err("is no URL"),
    }
    let authority = uri.authority().ok_or("names no host")?;
    if authority.host().is_empty() {
        return Err("names no host");
    }
    // It stands in documents and in the log.
    if authority.as_str().contains('@') {
        return Err("holds a user's name");
    }
    if uri.query().is_some() || text.contains('#') {
        return Err("holds a query, to which no path can be added");
    }
    Ok(text.trim_end_matches('/').to_owned())
}
