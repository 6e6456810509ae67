//! Which files the service needs.

use std::path::{Path, PathBuf};

use crate::auth;
use crate::config::{Config, Trust};
use crate::inventory::ovs_agent;
use crate::sys::file_access::{Right, Rule};
use crate::sys::mounts::mount_point_of;

/// Where Oracle VM mounts the repositories of a server.
const REPOSITORIES: &str = "/OVS/Repositories";

/// Files of the host that the service reads: to find the manager and the guests, to name users, to identify the host,
/// to verify servers, and to count processors.
const HOST_FILES: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/passwd",
    "/etc/group",
    "/etc/machine-id",
    "/etc/localtime",
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/var/lib/ca-certificates",
    "/proc",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
];

/// The folders with the repositories: above their mount points, so that a file system that is mounted later, or again,
/// is covered.
///
/// # Errors
/// A rule would have to cover the whole host.
pub(super) fn repository_folders(config: &Config) -> Result<Vec<PathBuf>, String> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for (_, path) in &config.repositories.paths {
        folders.push(folder_above(path)?);
    }
    if let Some(agent) = &config.repositories.agent_db {
        // What cannot be read now is reported later.
        for entry in ovs_agent::repositories(agent, false).unwrap_or_default() {
            let mount_point = entry.mount_point.filter(|path| path.is_absolute() && path.parent().is_some());
            folders.extend(mount_point.map(|path| folder_above(&path)).transpose()?);
        }
        folders.push(PathBuf::from(REPOSITORIES));
    }
    folders.sort();
    folders.dedup();
    Ok(folders)
}

/// The folder to allow for the repository at `path`. A rule for the mount point itself would be lost with the mount.
fn folder_above(path: &Path) -> Result<PathBuf, String> {
    let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
    // Resolving reads links only, so a file system that hangs does not block it. If the path is missing, the file system
    // that contains it may be mounted later, at the first folder that exists.
    let existing = absolute.ancestors().find_map(|folder| folder.canonicalize().ok());
    let at = existing.unwrap_or_else(|| PathBuf::from("/"));
    let mount_point = mount_point_of(&at).map_err(|error| error.to_string())?;
    let outermost = if mount_point == Path::new("/") { &at } else { &mount_point };
    match outermost.parent() {
        Some(folder) if folder != Path::new("/") => Ok(folder.to_owned()),
        _ => Err(format!(
            "the repository {} is on {}, directly below /, so that a rule for its mounts would cover the whole host; \
             mount it one folder deeper",
            path.display(),
            outermost.display()
        )),
    }
}

/// All rules. `repositories` are the folders of [`repository_folders`].
pub(super) fn all(config: &Config, repositories: Vec<PathBuf>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = repositories.into_iter().map(|folder| (folder, Right::Change)).collect();
    let db_file = &config.db_file;
    rules.push((db_file.clone(), Right::Update));
    rules.push((folder_of(db_file), Right::List));
    rules.push((auth::key::path(db_file), Right::Read));
    // Rotation renames the files and creates new ones.
    for file in config.log.file.iter().chain(&config.audit.file) {
        rules.extend(with_folder(file, Right::Change));
    }
    // Renewed files replace these, and may be reached through links.
    for file in certificates(config) {
        rules.extend(with_folder(file, Right::Read));
        rules.extend(file.canonicalize().into_iter().flat_map(|file| with_folder(&file, Right::Read)));
    }
    rules.extend(config.repositories.agent_db.iter().map(|folder| (folder.clone(), Right::Read)));
    rules.extend(config.hooks.directory.iter().map(|folder| (folder.clone(), Right::Read)));
    rules.extend(config.api.socket.iter().map(|socket| (folder_of(&socket.path), Right::Sockets)));
    rules.extend(HOST_FILES.iter().map(|path| (PathBuf::from(path), Right::Read)));
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os);
    rules.extend(named.map(|path| (PathBuf::from(path), Right::Read)));
    rules
}

/// The certificates and the key that the config names.
fn certificates(config: &Config) -> Vec<&PathBuf> {
    let guests = config.hooks.sync.as_ref().map(|sync| &sync.trust);
    let authorities = [Some(&config.manager.trust), guests].into_iter().flatten().filter_map(|trust| match trust {
        Trust::CaFile(path) => Some(path),
        Trust::System | Trust::Fingerprint(_) | Trust::InsecureSkipVerify => None,
    });
    [&config.api.certificate, &config.api.key].into_iter().chain(&config.api.client_ca).chain(authorities).collect()
}

/// The file, and its folder unless that is the root of the host.
fn with_folder(file: &Path, right: Right) -> Vec<Rule> {
    let folder = folder_of(file);
    if folder.canonicalize().is_ok_and(|folder| folder == Path::new("/")) {
        return vec![(file.to_owned(), right)];
    }
    vec![(folder, right)]
}

fn folder_of(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}

/// The path without links in its folder, if that exists.
pub(super) fn resolved_in_folder(file: &Path) -> PathBuf {
    match (folder_of(file).canonicalize(), file.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => file.to_owned(),
    }
}

/// Files that the service must not change, but could.
pub(super) fn weaknesses(config: &Config, rules: &[Rule]) -> Vec<String> {
    let fixed = [
        ("hooks.directory", config.hooks.directory.as_ref()),
        ("the config", Some(&config.file)),
        ("api.tls.key", Some(&config.api.key)),
    ];
    let changeable: Vec<PathBuf> = rules
        .iter()
        .filter(|(_, right)| *right == Right::Change)
        .filter_map(|(folder, _)| folder.canonicalize().ok())
        .collect();
    let mut found = Vec::new();
    for (what, path) in fixed {
        let Some(path) = path.and_then(|path| path.canonicalize().ok()) else { continue };
        if let Some(folder) = changeable.iter().find(|folder| path.starts_with(folder)) {
            found.push(format!(
                "{what} ({}) is below {}, which the service may write; move log_file, audit.file or the repositories \
                 to folders of their own",
                path.display(),
                folder.display()
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_allowed_by_the_folder_above_its_mount_point() {
        // On the file system of the folder, which is a mount point or below one.
        let dir = tempfile::tempdir().unwrap();
        let dir_path = dir.path().canonicalize().unwrap();
        let repository = dir_path.join("a/repository");
        std::fs::create_dir_all(&repository).unwrap();
        if mount_point_of(&dir_path).unwrap() == Path::new("/") {
            assert_eq!(folder_above(&repository).unwrap(), dir_path.join("a"));
            // It may be mounted at `missing`.
            assert_eq!(folder_above(&dir_path.join("a/missing/repository")).unwrap(), dir_path);
            let link = dir_path.join("link");
            std::os::unix::fs::symlink(&repository, &link).unwrap();
            assert_eq!(folder_above(&link).unwrap(), dir_path.join("a"));
        }
        for outer in ["/", "/missing", "/missing/repository", "/proc/1"] {
            assert!(folder_above(Path::new(outer)).is_err(), "{outer}");
        }
    }
}
