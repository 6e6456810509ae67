//! What SIGHUP loads again: the files of `[api.tls]`, and the config.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use secrecy::SecretString;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::app::changeable::Changeable;
use crate::app::confinement;
use crate::app::export::RateLimits;
use crate::app::ops::start_faults;
use crate::auth;
use crate::config::{self, Api, Config, Connections, Fault, Live};
use crate::tls::{self, ServerTls};

/// The parts of the running service that a reload changes.
pub(super) struct Reloader<'a> {
    /// Where the config is read again.
    pub path: &'a Path,
    /// The config of the start. Keys that cannot change while the service runs are those of this one.
    pub started: &'a Config,
    pub app: &'a Arc<App>,
    pub tls: watch::Sender<Arc<ServerTls>>,
    pub rates: RateLimits,
    pub connections: Changeable<Connections>,
    /// Ends the background tasks.
    pub stop: &'a CancellationToken,
}

impl Reloader<'_> {
    /// Loads the certificates and the config. Each of the two either changes as a whole, or stays as it was; then the log
    /// and the status say why.
    pub(super) fn run(&self) {
        self.reload_certificate();
        self.reload_config();
    }

    /// Loads a renewed certificate, and the authorities and revocation lists of clients' certificates. If one of the files
    /// is invalid, the current ones stay in use.
    fn reload_certificate(&self) {
        let api = &self.started.api;
        match tls::server_tls(api) {
            Ok(found) => {
                loaded(self.app, api, &found);
                self.tls.send_replace(Arc::new(found));
                tracing::info!("certificate reloaded");
            }
            Err(error) => {
                tracing::error!(%error, "cannot reload the certificate; keeping the current one");
                self.app.operator.ops.tls.set_problem(error.to_string());
            }
        }
    }

    /// Loads the keys of the config that can change while the service runs. If anything in it is wrong, all stay as they
    /// are: a rule or a limit that is left out could permit more.
    fn reload_config(&self) {
        let refused = |problem: String| {
            tracing::error!(problem, "cannot reload the config; keeping the current one and the signing key");
            self.app.operator.ops.config.set_problem(problem);
        };
        let mut config = match config::load(self.path) {
            Ok(config) => config,
            Err(error) => return refused(error.to_string()),
        };
        for problem in confinement::out_of_reach(&config) {
            tracing::error!(problem, "restart the service, so that it uses the changed config");
        }
        let needs_restart = config.needs_restart(self.started);
        if !needs_restart.is_empty() {
            tracing::warn!(keys = needs_restart.join(", "), "the config was changed, and these keys need a restart");
        }
        // The running service keeps its database, and the key beside it.
        self.started.db_file.clone_into(&mut config.db_file);
        let key = match auth::key::find(&config) {
            Ok(key) => key,
            Err(error) => return refused(format!("jwt.secret: {error}")),
        };
        let Live { access, policy, export, compare, login, connections, notifications, signing: _ } = config.live();
        if let Err(error) = self.app.set_notifications(&notifications, self.stop) {
            return refused(format!("notifications: {error}"));
        }
        self.reload_key(key, &config);
        if let Some(Fault { key, found, remedy, .. }) = start_faults::forgotten_users(&config.access) {
            tracing::warn!(key, remedy, "{found}");
        }
        self.rates.set(&export);
        self.connections.set(connections);
        self.app.set_limits(policy, export, compare, login);
        self.app.set_access(access);
        self.app.operator.warnings.reloaded(&config);
        self.app.operator.ops.config.set_loaded(needs_restart);
        tracing::info!("config reloaded");
    }

    /// Uses a changed signing key. The confined service cannot create one.
    fn reload_key(&self, key: Option<SecretString>, config: &Config) {
        let overlap = config.jwt.secret_overlap;
        match key {
            Some(key) => {
                if self.app.sessions.set_key(&key, overlap) {
                    tracing::warn!(overlap_seconds = overlap.as_secs(), "the signing key was replaced");
                }
            }
            None => {
                let path = auth::key::path(&config.db_file);
                tracing::error!(path = %path.display(), "the file with the signing key is gone; keeping the current key. \
                    Write another one with mode 0600 and reload the service, or restart it: then it creates one");
            }
        }
    }
}

/// Passes on which certificates of clients are accepted from now on.
pub(super) fn loaded(app: &App, api: &Api, tls: &ServerTls) {
    let end = tls.clients.as_ref().and_then(|clients| clients.revocations_end());
    if end.is_some_and(|end| end <= SystemTime::now()) {
        tracing::error!(
            "a revocation list (api.tls.client_crl) has expired: no certificate of its authority is accepted; renew \
             it, and reload the service"
        );
    }
    app.operator.ops.tls.set_loaded(end);
    app.operator.warnings.loaded(api);
    app.sessions.set_clients(tls.clients.clone());
}
