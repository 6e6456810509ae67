//! Which files the service needs.

use std::path::{Path, PathBuf};

use crate::auth;
use crate::config::{Config, Trust};
use crate::inventory::oracle_vm::loop_devices;
use crate::inventory::ovs_agent;
use crate::store;
use crate::sys::file_access::{Right, Rule};
use crate::sys::mounts::mount_point_of;

/// Where Oracle VM mounts the repositories of a server.
const REPOSITORIES: &str = "/OVS/Repositories";

/// Files of the host that the service reads: to find the manager and the guests, to name users, to identify the host,
/// to verify servers, to know the local time, to count processors, and to see which disks guests have open.
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
    "/etc/timezone",
    "/usr/share/zoneinfo",
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/var/lib/ca-certificates",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/overcommit_memory",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    loop_devices::DEVICES,
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

/// Folders of the host that hold files of many programs.
const SHARED_FOLDERS: &[&str] = &[
    "/",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/usr",
    "/usr/local",
    "/usr/local/etc",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/tmp",
];

/// What the config names, with the keys. Repositories are used as a whole; other files may be replaced.
pub(super) fn named(config: &Config) -> Vec<(&'static str, PathBuf, Right)> {
    let api = &config.api;
    let ca = |trust: &Trust| match trust {
        Trust::CaFile(path) => Some(path.clone()),
        Trust::System | Trust::Fingerprint(_) | Trust::InsecureSkipVerify => None,
    };
    let guests = config.hooks.sync.as_ref().and_then(|sync| ca(&sync.trust));
    let socket = api.socket.as_ref().map(|socket| folder_of(&socket.path));
    let files = [
        ("db_file", Some(config.db_file.clone()), Right::Update),
        // Rotation renames the files and creates new ones.
        ("log_file", config.log.file.clone(), Right::Change),
        ("audit.file", config.audit.file.clone(), Right::Change),
        // SIGHUP reads these again.
        ("the config", Some(config.file.clone()), Right::Read),
        ("api.tls.certificate", Some(api.certificate.clone()), Right::Read),
        ("api.tls.key", Some(api.key.clone()), Right::Read),
        ("api.tls.ca_certificate", api.client_auth.as_ref().map(|auth| auth.authorities.clone()), Right::Read),
        ("manager.ca_certificate", ca(&config.manager.trust), Right::Read),
        ("hooks.sync.ca_certificate", guests, Right::Read),
        ("repositories.ovs_agent_db", config.repositories.agent_db.clone(), Right::Read),
        ("hooks.directory", config.hooks.directory.clone(), Right::Read),
        ("api.socket", socket, Right::Sockets),
    ];
    let files = files.into_iter().filter_map(|(key, path, right)| Some((key, path?, right)));
    let webhooks = config.notifications.webhooks.iter().filter_map(|webhook| ca(&webhook.trust));
    let files = files.chain(webhooks.map(|path| ("notifications.webhooks.ca_certificate", path, Right::Read)));
    let lists = api.client_auth.iter().flat_map(|auth| &auth.revocations);
    let files = files.chain(lists.map(|path| ("api.tls.client_crl", path.clone(), Right::Read)));
    let repositories = config.repositories.paths.iter();
    files.chain(repositories.map(|(_, path)| ("repositories.paths", path.clone(), Right::Change))).collect()
}

/// All rules. `repositories` are the folders of [`repository_folders`].
pub(super) fn all(config: &Config, repositories: &[PathBuf]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = repositories.iter().map(|folder| (folder.clone(), Right::Change)).collect();
    for (key, path, right) in named(config) {
        match key {
            // They are in `repositories`.
            "repositories.paths" => {}
            "db_file" => {
                // Its free space is looked up.
                rules.push((folder_of(&path), Right::List));
                // Another key may replace it.
                rules.push(with_folder(&auth::key::path(&path), Right::Read));
                rules.push((store::copies_folder(&path), Right::Change));
                rules.push((path, right));
            }
            _ if is_folder(key) => rules.push((path, right)),
            // Others replace them. They may be reached through links.
            _ => {
                rules.extend(path.canonicalize().map(|file| with_folder(&file, right)));
                rules.push(with_folder(&path, right));
            }
        }
    }
    rules.extend(HOST_FILES.iter().map(|path| (PathBuf::from(path), Right::Read)));
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os);
    rules.extend(named.map(|path| (PathBuf::from(path), Right::Read)));
    rules
}

/// The folder of the file, so that another file can replace it. Only the file if it is read in a folder of the host.
fn with_folder(file: &Path, right: Right) -> Rule {
    let folder = folder_of(file);
    let is_narrow = right == Right::Read || folder == Path::new("/");
    if is_narrow && is_shared(&folder) { (file.to_owned(), right) } else { (folder, right) }
}

fn is_shared(folder: &Path) -> bool {
    folder.canonicalize().is_ok_and(|folder| SHARED_FOLDERS.iter().any(|shared| folder == Path::new(shared)))
}

fn folder_of(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}

/// Files that the service must not change, but could with these rules. `repositories` are the folders of
/// [`repository_folders`].
pub(super) fn weaknesses(config: &Config, repositories: &[PathBuf], rules: &[Rule]) -> Vec<String> {
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
    let mut found: Vec<String> =
        named(config).into_iter().filter_map(|(key, path, right)| shared_problem(key, &path, right)).collect();
    found.extend(repositories.iter().filter(|folder| is_shared(folder)).map(|folder| {
        format!(
            "a repository is in {}, whose files the service may therefore change; mount it one folder deeper",
            folder.display()
        )
    }));
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

/// Whether the key names a folder, which has a rule of its own.
fn is_folder(key: &str) -> bool {
    matches!(key, "repositories.paths" | "repositories.ovs_agent_db" | "hooks.directory" | "api.socket")
}

/// A problem with a file, or with the folder of the Unix socket, because the folder is one of the host.
fn shared_problem(key: &str, path: &Path, right: Right) -> Option<String> {
    let folder = match right {
        Right::Sockets => path.to_owned(),
        _ if is_folder(key) => return None,
        _ => folder_of(path),
    };
    if !is_shared(&folder) {
        return None;
    }
    let (shown, folder) = (path.display(), folder.display());
    match right {
        Right::Change => {
            let remedy = "move it to a folder of its own";
            Some(format!("{key} ({shown}) is in {folder}, whose files the service may therefore change; {remedy}"))
        }
        Right::Read => Some(format!(
            "{key} ({shown}) is in {folder}, whose other files the service may not read: a file that replaces it is \
             used only after a restart; move it to a folder of its own"
        )),
        Right::Sockets => Some(format!(
            "{key} is in {folder}, where the service may therefore remove files and create sockets; move it to a folder \
             of its own"
        )),
        Right::List | Right::Update => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_folder_of_the_host_that_the_service_may_change_is_a_weakness() {
        let weaknesses = |socket: &str, log: &str, repositories: &[&str]| {
            let config = config::parse(&format!(
                "db_file = \"/nonexistent/db\"\novm_endpoint = \"https://manager\"\nlog_file = {log:?}\n\
                 [api]\nsocket = {socket:?}\n[api.tls]\ncertificate = \"/nonexistent/pem\"\n\
                 key = \"/nonexistent/key\"\n[repositories]\npaths = [\"/OVS/Repositories/x\"]\n\
                 [manager]\ninsecure_skip_verify = true\n"
            ));
            let config = config.unwrap();
            let repositories: Vec<PathBuf> = repositories.iter().map(PathBuf::from).collect();
            super::weaknesses(&config, &repositories, &all(&config, &repositories))
        };
        assert_eq!(weaknesses("/run/own/x.sock", "/var/log/own/x.log", &["/OVS/Repositories"]), [""; 0]);
        for (found, expected) in [
            (weaknesses("/tmp/x.sock", "", &[]), "api.socket is in /tmp, where the service may therefore remove files"),
            (weaknesses("", "/var/log/x.log", &[]), "is in /var/log, whose files the service may therefore change"),
            (weaknesses("", "", &["/var"]), "a repository is in /var, whose files the service may therefore change"),
        ] {
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
    }

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
