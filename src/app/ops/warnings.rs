//! What an operator should change before it does harm: certificates that end soon, and a config with secrets that other
//! users may read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::config::{Api, Config};
use crate::metrics::Metrics;
use crate::tls;

/// Certificates that end in fewer days get a warning.
pub(crate) const RENEWAL_DAYS: i64 = 30;

/// How often the log repeats the warnings.
const INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// The whole days until `end`. `None` if it has passed.
pub(crate) fn remaining_days(end: Timestamp) -> Option<i64> {
    let now = Timestamp::now();
    (end > now).then(|| end.duration_since(now).as_hours() / 24)
}

/// A certificate that the service uses.
struct Certificate {
    /// The key of the config.
    key: &'static str,
    path: PathBuf,
    end: Timestamp,
}

/// The warnings to operators.
pub struct Warnings {
    /// About the config.
    config: Mutex<Option<String>>,
    certificates: Mutex<Vec<Certificate>>,
    metrics: Arc<Metrics>,
}

impl Warnings {
    pub(crate) fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        Self { config: Mutex::new(readable_secrets(config)), certificates: Mutex::default(), metrics }
    }

    /// Reads when the certificates end. To be called whenever they are loaded.
    pub fn loaded(&self, api: &Api) {
        let authorities = api.client_auth.as_ref().map(|auth| &auth.authorities);
        let named = [("api.tls.certificate", Some(&api.certificate)), ("api.tls.ca_certificate", authorities)];
        let mut found = Vec::new();
        for (key, path) in named {
            let Some(path) = path else { continue };
            match tls::validity(path).map(|(_, end)| Timestamp::from_second(end)) {
                Ok(Ok(end)) => {
                    self.metrics.certificate_ends(key, end.as_second());
                    found.push(Certificate { key, path: path.clone(), end });
                }
                Ok(Err(error)) => tracing::warn!(key, %error, "cannot tell when the certificate ends"),
                Err(error) => tracing::warn!(key, error, "cannot tell when the certificate ends"),
            }
        }
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = found;
        self.log();
    }

    /// Looks at the config again, which was reloaded.
    pub fn reloaded(&self, config: &Config) {
        let found = readable_secrets(config);
        if let Some(warning) = &found {
            tracing::warn!("{warning}");
        }
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// The certificates that the service uses: the key of the config, the file, and the end.
    pub(crate) fn certificates(&self) -> Vec<(&'static str, PathBuf, Timestamp)> {
        let certificates = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        certificates.iter().map(|Certificate { key, path, end }| (*key, path.clone(), *end)).collect()
    }

    /// The warnings at this time.
    pub(crate) fn list(&self) -> Vec<String> {
        let certificates = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        let ending = certificates.iter().filter_map(|Certificate { key, path, end }| {
            let shown = path.display();
            let renew = "renew it, and send the service SIGHUP";
            match remaining_days(*end) {
                None => Some(format!("{key}: {shown} ended at {end}; {renew}")),
                Some(1) => Some(format!("{key}: {shown} ends in 1 day, at {end}; {renew}")),
                Some(days) if days < RENEWAL_DAYS => {
                    Some(format!("{key}: {shown} ends in {days} days, at {end}; {renew}"))
                }
                Some(_) => None,
            }
        });
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        config.into_iter().chain(ending).collect()
    }

    fn log(&self) {
        for warning in self.list() {
            tracing::warn!("{warning}");
        }
    }

    /// Logs the warnings every day.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            self.log();
        }
    }
}

/// The warning that other users can read the secrets of the config.
fn readable_secrets(config: &Config) -> Option<String> {
    let has_webhooks = !config.notifications.webhooks.is_empty();
    let has_secrets = config.jwt.secret.is_some() || config.hooks.sync.is_some() || has_webhooks;
    let mode = fs::metadata(&config.file).ok()?.mode();
    (has_secrets && mode & 0o004 != 0).then(|| {
        let shown = config.file.display();
        format!(
            "all users of this host may read {shown}, which contains secrets; chmod o-rwx {shown}, and replace them"
        )
    })
}
