//! Why the service cannot start, in words for an operator: the same at the start and in check-config.

use std::io;
use std::path::{Path, PathBuf};

use crate::app::inventory::RepositorySet;
use crate::auth::{self, KeyError, LoginError};
use crate::config::{Config, Fault};
use crate::store::StoreError;

/// Why the database cannot be used.
pub(crate) fn database(path: &Path, error: &StoreError) -> Fault {
    let (key, shown) = ("db_file", path.display());
    match error {
        StoreError::Io(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Fault::new(key, format!("the folder of {shown} is not there"), "make it, or name another file")
        }
        StoreError::Io(error) => {
            let found = format!("{shown} cannot be used: {error}");
            Fault::new(key, found, "look at the folder, its file system and its permissions").transient()
        }
        StoreError::InUse => {
            let found = format!("{shown} is in use by another process");
            Fault::new(key, found, "is the service running already? Stop that first").transient()
        }
        // These say what to do themselves.
        StoreError::Bolt(_) | StoreError::NotADatabase(_) | StoreError::NewerSchema { .. } | StoreError::Damaged(_) => {
            Fault::from_line(key, &error.to_string(), "")
        }
        error => {
            let remedy = "restore the file from a copy, or move it away";
            Fault::new(key, format!("{shown}: {error}"), remedy).transient()
        }
    }
}

/// Why there is no key to sign tokens with.
pub(crate) fn key(error: &KeyError) -> Fault {
    match error {
        KeyError::Unfit(line) => {
            Fault::from_line("jwt.secret", line, "remove the file, and the service makes a new key")
        }
        KeyError::Io { .. } => {
            let remedy = "look at the file and its folder, or give a secret in the config";
            Fault::new("jwt.secret", error.to_string(), remedy).transient()
        }
    }
}

/// Why the manager cannot be asked, or must not be believed.
pub(crate) fn manager(error: &LoginError) -> Fault {
    let key = "ovm_endpoint";
    match error {
        LoginError::LetsAnybodyIn(_) => {
            let remedy =
                "name the manager's REST endpoint, which asks for a password, in ovm_endpoint and manager.path";
            Fault::new(key, format!("{error}: with it, anybody could log in here"), remedy)
        }
        error => {
            let remedy = "look at the address, at the way there, and at the keys of [manager]";
            Fault::from_line(key, &error.to_string(), remedy).transient()
        }
    }
}

/// Files of the service that lie in a repository: where that is frozen or does not answer, the service does not either.
pub(crate) fn files_in_repositories(config: &Config, found: &RepositorySet) -> Vec<Fault> {
    let api = &config.api;
    let files = [
        ("db_file", Some(&config.db_file)),
        ("log_file", config.log.file.as_ref()),
        ("audit.file", config.audit.file.as_ref()),
        ("hooks.directory", config.hooks.directory.as_ref()),
        ("api.tls.certificate", Some(&api.certificate)),
        ("api.tls.key", Some(&api.key)),
        ("api.tls.ca_certificate", api.client_ca.as_ref()),
    ];
    let mut faults = Vec::new();
    for (key, path) in files {
        let Some(path) = path else { continue };
        let resolved = resolved(path);
        if let Some(mount_point) = above(path, found).or_else(|| above(&resolved, found)) {
            let (shown, mount_point) = (path.display(), mount_point.display());
            faults.push(Fault::new(
                key,
                format!(
                    "{shown} lies in the repository {mount_point}: where that is frozen or hangs, the service does"
                ),
                "name a place on a local file system, and move the file there while the service is stopped",
            ));
        }
    }
    faults
}

/// The mount point of the repository that `path` lies below.
fn above<'a>(path: &Path, found: &'a RepositorySet) -> Option<&'a Path> {
    let mut mount_points = found.usable().map(|repository| repository.mount_point());
    mount_points.find(|mount_point| path != *mount_point && path.starts_with(mount_point))
}

/// Why the service makes no key where its database lies in a repository: other servers read that.
pub(crate) fn key_in_repository(config: &Config, faults: &[Fault]) -> Option<Fault> {
    let is_there = config.jwt.secret.is_none() && faults.iter().any(|fault| fault.key == "db_file");
    is_there.then(|| {
        let path = auth::key::path(&config.db_file);
        Fault::new(
            "jwt.secret",
            format!("is not given, and {} would lie in a repository, which other servers can read", path.display()),
            "name a db_file on a local file system, or give a secret: openssl rand -hex 32",
        )
    })
}

/// The path without links, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}
