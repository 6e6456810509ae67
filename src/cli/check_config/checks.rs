//! Checks the config and everything that the service needs, in the same way as the service, without changing anything.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use nix::unistd::{AccessFlags, access};

use super::findings::{Finding, Findings};
use super::unit;
use crate::api;
use crate::app::confinement;
use crate::app::inventory::{Repositories, below_a_repository};
use crate::app::ops::{start_faults, warnings};
use crate::app::session::ManagerAddress;
use crate::auth::{self, Authenticator};
use crate::config::{self, Api, Config, ConfinementMode, Fault};
use crate::http::operator_socket::{self, State};
use crate::model::layout::VIRTUAL_MACHINES;
use crate::repository::{CloneSupport, LocalLocks, Repository, Unclonable};
use crate::store::{self, DatabaseState, StoreError};
use crate::tls;

/// Checks the config at `path` and everything that it names.
pub async fn check_config(path: &Path) -> Vec<Finding> {
    let mut findings = Findings::default();
    let remedy = format!("change that key in {}; config.example.toml explains each", path.display());
    let (config, faults) = match config::load_with_faults(path) {
        Ok(read) => read,
        Err(error) => {
            error.lines().iter().for_each(|line| findings.fault(Fault::from_line("config", line, &remedy)));
            return findings.into_vec();
        }
    };
    // The other keys are checked too, so that operators see all problems at once.
    faults.iter().for_each(|line| findings.fault(Fault::from_line("config", line, &remedy)));
    findings.secret_file("config", path, "secrets");
    findings.key(&config);
    if !nix::unistd::geteuid().is_root() {
        findings.doubtful(
            "user",
            "this does not run as root",
            "run it, and the service, as root: only root can read the disks",
        );
    }
    findings.access(&config);
    findings.tls(&config.api);
    let running = findings.database(&config.db_file);
    findings.address(&config.api, running);
    findings.socket(config.api.socket.as_ref(), running);
    for (what, file) in [("log_file", &config.log.file), ("audit.file", &config.audit.file)] {
        file.iter().for_each(|file| findings.written_file(what, file));
    }
    findings.manager(&config).await;
    findings.repositories(&config);
    findings.hooks(&config.hooks);
    findings.notifications(&config.notifications);
    findings.confinement(&config);
    findings.unit(&config);
    findings.into_vec()
}

impl Findings {
    /// Checks the key that signs tokens, if the config has none.
    fn key(&mut self, config: &Config) {
        let (what, path) = ("jwt.secret", auth::key::path(&config.db_file));
        let shown = path.display();
        match auth::key::find(config) {
            Ok(_) if config.jwt.secret.is_some() => {}
            Ok(Some(_)) => self.good(what, format!("is in {shown}, which the service created")),
            Ok(None) => self.good(what, format!("is not set; the service will create one in {shown}")),
            Err(error) => self.fault(start_faults::key(&error)),
        }
    }

    fn access(&mut self, config: &Config) {
        if let Some(Fault { key, found, remedy, .. }) = start_faults::forgotten_users(&config.access) {
            self.doubtful(&key, found, &remedy);
        }
    }

    /// Checks a file with a secret.
    fn secret_file(&mut self, what: &str, path: &Path, secret: &str) {
        let shown = path.display();
        match fs::metadata(path) {
            Err(error) => self.bad(what, format!("{shown}: {error}"), "name an existing file"),
            Ok(metadata) if metadata.mode() & 0o007 != 0 => self.doubtful(
                what,
                format!("{shown} is readable by all users of this host, and contains {secret}"),
                &format!("chmod o-rwx {shown}"),
            ),
            Ok(_) => self.good(what, shown),
        }
    }

    fn tls(&mut self, api: &Api) {
        let found = match tls::server_tls(api) {
            Ok(found) => found,
            Err(error) => {
                let remedy = "name a certificate in PEM format, and its key";
                return self.fault(Fault::from_line("api.tls", &error.to_string(), remedy));
            }
        };
        self.key_file(api);
        self.validity("api.tls.certificate", &api.certificate);
        if let Some(clients) = &api.client_auth {
            self.validity("api.tls.ca_certificate", &clients.authorities);
        }
        if let Some(end) = found.clients.and_then(|clients| clients.revocations_end()) {
            self.revocations(end);
        }
    }

    /// Checks the revocation lists, of which the first ends at `end`.
    fn revocations(&mut self, end: SystemTime) {
        let what = "api.tls.client_crl";
        let shown = jiff::Timestamp::try_from(end).map_or_else(|_| "an unknown time".to_owned(), |end| end.to_string());
        if end <= SystemTime::now() {
            let remedy = "renew it; until SIGHUP loads the new one, no certificate of its authority is accepted";
            self.bad(what, format!("a list expired at {shown}"), remedy);
        } else {
            self.good(what, format!("valid until {shown}"));
        }
    }

    /// Checks the owner and the mode of the private key. The service refuses an insecure one, unless the config allows it.
    fn key_file(&mut self, api: &Api) {
        let (what, shown) = ("api.tls.key", api.key.display());
        match fs::metadata(&api.key).map(|found| tls::insecurity(found.uid(), found.mode(), &api.key)) {
            Ok(Some(problem)) => {
                let (problem, remedy) = problem.split_once("; ").unwrap_or((&problem, ""));
                self.doubtful(what, format!("{shown} {problem}"), remedy);
            }
            Ok(None) => self.good(what, shown),
            Err(error) => self.bad(what, format!("{shown}: {error}"), "name an existing file"),
        }
    }

    /// Checks what the service would give up when it starts.
    fn confinement(&mut self, config: &Config) {
        let what = "confinement";
        if config.confinement == ConfinementMode::Off {
            let remedy = "set it to auto, unless a host's hook or file system needs it off";
            return self.doubtful("confinement.mode", "off: an attacker in the service can do what root can", remedy);
        }
        let api::Confinement { capabilities, files, system_calls, problems } = confinement::preview(config);
        let parts = [(capabilities, "capabilities"), (files, "files"), (system_calls, "system calls")];
        let named: Vec<&str> =
            parts.iter().filter(|(is_restricted, _)| *is_restricted).map(|(_, name)| *name).collect();
        self.good(what, format!("the service restricts its {}", named.join(", ")));
        for problem in problems {
            self.doubtful(what, problem, "docs/access.md#confinement says what to do");
        }
    }

    /// Checks that systemd shows the service what the config names.
    fn unit(&mut self, config: &Config) {
        let Some(text) = unit::installed() else { return };
        // The config itself may be one that is tried before it is installed.
        let named = confinement::named_paths(config).into_iter().filter(|(_, path)| *path != config.file);
        for (key, path) in named {
            if let Some(folder) = unit::hidden(&text, &path) {
                let found = format!("{}: the systemd unit hides {folder} from the service", path.display());
                self.doubtful(key, found, "the service will not start; move it to /etc/coriolis-ovm-exporter");
            }
        }
    }

    /// Checks the validity period of a certificate.
    fn validity(&mut self, what: &str, path: &Path) {
        let (shown, renew) = (path.display(), "renew it; SIGHUP makes the service load the new one");
        let end = match validity_of_certificate(path) {
            Ok((start, _)) if start > jiff::Timestamp::now() => {
                return self.bad(what, format!("{shown} is not valid before {start}"), "check the clock of this host");
            }
            Ok((_, end)) => end,
            Err(error) => return self.bad(what, format!("{shown}: {error}"), "name a certificate in PEM format"),
        };
        match warnings::remaining_days(end) {
            None => self.bad(what, format!("{shown} expired at {end}"), renew),
            Some(days) if days < warnings::RENEWAL_DAYS => {
                self.doubtful(what, format!("{shown} expires in {days} days, at {end}"), renew);
            }
            Some(_) => self.good(what, format!("{shown}, valid until {end}")),
        }
    }

    /// Checks the database. Returns whether the service is running with it.
    fn database(&mut self, path: &Path) -> bool {
        let (what, shown) = ("db_file", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Err(errno) = access(folder, AccessFlags::W_OK | AccessFlags::X_OK) {
            self.fault(start_faults::database(path, &StoreError::Io(errno.into())));
            return false;
        }
        match store::inspect(path) {
            Ok(DatabaseState::Missing) => {
                self.good(what, format!("{shown} does not exist yet; the service will create it"))
            }
            Ok(DatabaseState::Present { was_closed, unreadable }) => {
                if let Some(problem) = unreadable.problem() {
                    let remedy = "start the version of the service that wrote it, or restore a copy of the database";
                    self.doubtful(what, format!("{shown}: {problem}"), remedy);
                } else if was_closed {
                    self.good(what, shown);
                } else {
                    let found = format!("{shown} was not closed cleanly; the service will repair it when it starts");
                    self.good(what, found);
                }
            }
            Err(StoreError::InUse) => {
                self.good(what, format!("{shown} is in use: the service is running"));
                return true;
            }
            Err(error) => self.fault(start_faults::database(path, &error)),
        }
        false
    }

    fn address(&mut self, api: &Api, running: bool) {
        let (what, address) = ("api.bind, api.port", std::net::SocketAddr::from((api.bind, api.port)));
        match TcpListener::bind(address) {
            Ok(_) => self.good(what, format!("{address} is free")),
            Err(error) if running && error.kind() == io::ErrorKind::AddrInUse => {
                self.good(what, format!("{address} is in use: the service is running"));
            }
            Err(error) => self.fault(start_faults::listening(api, &error)),
        }
    }

    /// Checks the Unix socket for operators.
    fn socket(&mut self, socket: Option<&config::Socket>, running: bool) {
        let what = "api.socket";
        let Some(socket) = socket else {
            return self.good(what, "is not set: the commands that speak with the running service do not work");
        };
        let shown = socket.path.display();
        match operator_socket::inspect(socket) {
            Ok(Some(State::Free)) => self.good(what, format!("{shown} is free")),
            Ok(Some(State::Stale)) => self.good(what, format!("{shown} is left from an earlier run")),
            Ok(Some(State::InUse)) if running => self.good(what, format!("{shown} is in use: the service is running")),
            Ok(Some(State::InUse)) => self.fault(operator_socket::in_use(socket)),
            Ok(None) => self.doubtful(
                what,
                format!(
                    "the folder of {shown} cannot be used, so the service has no socket for the operators' commands"
                ),
                "create the folder with mode 0711 as root, or set api.socket",
            ),
            Err(fault) => self.fault(fault),
        }
    }

    /// Checks a file that the service writes.
    fn written_file(&mut self, what: &str, path: &Path) {
        let shown = path.display();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The service does not follow a symbolic link there.
        let usable = match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.is_file() => Err("is not a regular file".to_owned()),
            Ok(_) => OpenOptions::new().append(true).open(path).map(drop).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                access(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| errno.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match usable {
            Ok(()) => self.good(what, shown),
            Err(error) => self.bad(what, format!("{shown}: {error}"), "name a file in a writable folder"),
        }
    }

    async fn manager(&mut self, config: &Config) {
        let what = "ovm_endpoint";
        let address =
            match ManagerAddress::new(config).and_then(|address| address.current().map_err(anyhow::Error::msg)) {
                Ok(address) => address,
                Err(error) => return self.bad(what, format!("{error:#}"), "name the manager in ovm_endpoint"),
            };
        let manager = match Authenticator::new(&config.manager) {
            Ok(manager) => manager,
            Err(error) => {
                let remedy = "name a readable certificate in PEM format";
                return self.fault(Fault::from_line("manager", &error.to_string(), remedy));
            }
        };
        match manager.reach(&address).await {
            Ok(()) => self.good(what, format!("{address} responds")),
            Err(error) => self.fault(start_faults::manager(&error)),
        }
        if config.manager.trust == config::Trust::InsecureSkipVerify {
            self.doubtful(
                "manager.insecure_skip_verify",
                "the manager's certificate is not checked, so users' passwords can go to an attacker",
                "name the manager's certificate in manager.ca_certificate or manager.fingerprint",
            );
        }
    }

    fn repositories(&mut self, config: &Config) {
        let repositories = match Repositories::new(&config.repositories).and_then(Repositories::without_folders) {
            Ok(repositories) => repositories,
            Err(error) => {
                let line = format!("{error:#}");
                let line = line.strip_prefix("repositories.paths: ").unwrap_or(&line);
                return self.fault(Fault::from_line("repositories", line, "name them in repositories.paths"));
            }
        };
        let (found, support) = (repositories.found(), CloneSupport::default());
        let misplaced = start_faults::files_in_repositories(config, &found);
        if let Some(fault) = start_faults::key_in_repository(config, &misplaced) {
            self.fault(fault);
        }
        for Fault { key, found, remedy, .. } in misplaced {
            self.doubtful(&key, found, &remedy);
        }
        if let Some(problem) = &found.problem {
            self.bad("repositories.ovs_agent_db", problem, "check ovs-agent, or set ovs_agent_db to \"\"");
        }
        if found.known.is_empty() {
            self.doubtful("repositories", "no repository was found", "present one to this server in the manager");
        }
        for known in &found.known {
            let what = format!("repository {}", known.name);
            match &known.repository {
                Ok(repository) => self.repository(&what, repository, &support),
                Err(problem) => self.doubtful(&what, problem, "check its entry in the manager"),
            }
        }
        if found.usable().count() > 0 && found.usable().all(|repository| support.of(repository.mount_point()).is_err())
        {
            self.bad("repositories", "no repository supports snapshots", "see the lines above");
        }
    }

    fn repository(&mut self, what: &str, repository: &Repository, support: &CloneSupport) {
        let shown = repository.mount_point().display();
        if let Ok(Some(real)) = repository.enclosing_repository() {
            let Fault { found, remedy, .. } = below_a_repository(repository, &real);
            return self.bad(what, found, &remedy);
        }
        let mounted = match repository.mounted() {
            Ok(mounted) => mounted,
            Err(cause) => {
                let remedy = "mount it; until then its VMs and snapshots are unavailable";
                return self.doubtful(what, format!("{shown} {cause}"), remedy);
            }
        };
        if !repository.mount_point().join(VIRTUAL_MACHINES).is_dir() {
            let found = format!("{shown} has no folder {VIRTUAL_MACHINES}, so no VM will be found in it");
            self.doubtful(what, found, "name the repository itself, not the folder above the repositories");
        }
        match support.of(repository.mount_point()) {
            Err(reason @ Unclonable::NotNow(_)) => {
                self.bad(what, format!("{shown}: {reason}"), "free space, or check the host's log and remount it");
            }
            Err(Unclonable::LocalLocks(_)) => {
                self.bad(what, format!("{shown} {}", LocalLocks::PROBLEM), LocalLocks::REMEDY);
            }
            Err(reason) => {
                let remedy = "move disks that need backups to a repository that supports snapshots";
                self.doubtful(what, format!("{shown}: {reason}"), remedy);
            }
            Ok(()) => {
                let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
                let (free, total) = (mounted.space.free, mounted.space.total);
                let found = format!("{shown}: {}, {:.1} of {:.1} GiB free", mounted.file_system, gib(free), gib(total));
                if free < total / 20 {
                    self.doubtful(what, found, "free space: a snapshot keeps the blocks that its VM overwrites");
                } else {
                    self.good(what, found);
                }
            }
        }
    }
}

/// The validity period of the first certificate in a PEM file.
fn validity_of_certificate(path: &Path) -> Result<(jiff::Timestamp, jiff::Timestamp), String> {
    let (start, end) = tls::validity(path)?;
    let time = |seconds| jiff::Timestamp::from_second(seconds).map_err(|error| error.to_string());
    Ok((time(start)?, time(end)?))
}
