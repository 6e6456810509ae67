//! Faults that keep the service from starting, written for operators. The start and check-config share them.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::app::inventory::RepositorySet;
use crate::auth::{self, KeyError, LoginError};
use crate::config::{Api, Config, Fault};
use crate::model::AccessRules;
use crate::store::StoreError;

/// The fault if there are access rules, but users whom they forget are admins. The service starts nevertheless: the
/// config may mean it.
pub(crate) fn forgotten_users(rules: &AccessRules) -> Option<Fault> {
    let found = "is admin, so each user to whom no rule applies may do everything";
    let remedy = "set it to \"none\", unless you mean that";
    rules.forgotten_users_are_admins().then(|| Fault::new("access.default_role", found, remedy))
}

/// The fault if the database cannot be used.
pub(crate) fn database(path: &Path, error: &StoreError) -> Fault {
    let (key, shown) = ("db_file", path.display());
    match error {
        StoreError::Io(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Fault::new(key, format!("the folder of {shown} does not exist"), "create it, or name another file")
        }
        StoreError::Io(error) => {
            let found = format!("{shown} cannot be used: {error}");
            Fault::new(key, found, "check the folder, its file system and its permissions").transient()
        }
        StoreError::InUse => {
            let found = format!("{shown} is in use by another process");
            Fault::new(key, found, "check whether the service is already running, and stop it first").transient()
        }
        // These texts already say what to do.
        StoreError::Bolt(_) | StoreError::NotADatabase(_) | StoreError::NewerSchema { .. } | StoreError::Damaged(_) => {
            Fault::from_line(key, &error.to_string(), "")
        }
        error => {
            let remedy = "restore the file from a backup, or move it away";
            Fault::new(key, format!("{shown}: {error}"), remedy).transient()
        }
    }
}

/// The fault if the service cannot listen at the address of `[api]`.
pub(crate) fn listening(api: &Api, error: &io::Error) -> Fault {
    let address = SocketAddr::from((api.bind, api.port));
    let (found, remedy) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            format!("{address} is in use by another process"),
            format!("stop it (ss -ltnp 'sport = :{}' shows which it is), or name another port", api.port),
        ),
        io::ErrorKind::AddrNotAvailable => (
            format!("{} is not an address of this host", api.bind),
            "name one that `ip address` lists, or 0.0.0.0 for all of IPv4".to_owned(),
        ),
        io::ErrorKind::PermissionDenied => (
            format!("this user may not listen at {address}"),
            "run the service as root, or name a port from 1024 up".to_owned(),
        ),
        _ => (format!("{address}: {error}"), "name another address or port".to_owned()),
    };
    // The other program may end; the address may be configured later.
    Fault::new("api.bind, api.port", found, remedy).transient()
}

/// The fault if there is no key to sign tokens.
pub(crate) fn key(error: &KeyError) -> Fault {
    match error {
        KeyError::Unfit(line) => {
            Fault::from_line("jwt.secret", line, "remove the file; the service will create a new key")
        }
        KeyError::Io { .. } => {
            let remedy = "check the file and its folder, or set a secret in the config";
            Fault::new("jwt.secret", error.to_string(), remedy).transient()
        }
    }
}

/// The fault if the manager cannot be reached or must not be trusted.
pub(crate) fn manager(error: &LoginError) -> Fault {
    let key = "ovm_endpoint";
    match error {
        LoginError::NoPasswordRequired(_) => {
            let remedy = "set ovm_endpoint and manager.path to the manager's REST endpoint, which requires a password";
            Fault::new(key, format!("{error}: with it, anyone could log in to this service"), remedy)
        }
        error => {
            let remedy = "check the address, the network, and section [manager] of the config";
            Fault::from_line(key, &error.to_string(), remedy).transient()
        }
    }
}

/// Faults for files of the service in a repository: if that is frozen or hangs, so does the service.
pub(crate) fn files_in_repositories(config: &Config, found: &RepositorySet) -> Vec<Fault> {
    let api = &config.api;
    let clients = api.client_auth.as_ref();
    let lists = clients.into_iter().flat_map(|auth| &auth.revocations).map(|path| ("api.tls.client_crl", Some(path)));
    let files = [
        ("db_file", Some(&config.db_file)),
        ("log_file", config.log.file.as_ref()),
        ("audit.file", config.audit.file.as_ref()),
        ("hooks.directory", config.hooks.directory.as_ref()),
        ("api.tls.certificate", Some(&api.certificate)),
        ("api.tls.key", Some(&api.key)),
        ("api.tls.ca_certificate", clients.map(|auth| &auth.authorities)),
        ("api.socket", api.socket.as_ref().map(|socket| &socket.path)),
    ];
    let mut faults = Vec::new();
    for (key, path) in files.into_iter().chain(lists) {
        let Some(path) = path else { continue };
        let resolved = resolved(path);
        if let Some(mount_point) = above(path, found).or_else(|| above(&resolved, found)) {
            let (shown, mount_point) = (path.display(), mount_point.display());
            faults.push(Fault::new(
                key,
                format!("{shown} is in the repository {mount_point}: if that is frozen or hangs, so does the service"),
                "name a path on a local file system, and move the file there while the service is stopped",
            ));
        }
    }
    faults
}

/// The mount point of the repository that contains `path`.
fn above<'a>(path: &Path, found: &'a RepositorySet) -> Option<&'a Path> {
    let mut mount_points = found.usable().map(|repository| repository.mount_point());
    mount_points.find(|mount_point| path != *mount_point && path.starts_with(mount_point))
}

/// The fault if the service would create its key in a repository, where other servers can read it.
pub(crate) fn key_in_repository(config: &Config, faults: &[Fault]) -> Option<Fault> {
    let would_create = config.jwt.secret.is_none() && faults.iter().any(|fault| fault.key == "db_file");
    would_create.then(|| {
        let path = auth::key::path(&config.db_file);
        Fault::new(
            "jwt.secret",
            format!("is not set, and {} would be in a repository, which other servers can read", path.display()),
            "set db_file to a path on a local file system, or set a secret: openssl rand -hex 32",
        )
    })
}

/// The path without symbolic links in its folder, if that exists.
fn resolved(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}
