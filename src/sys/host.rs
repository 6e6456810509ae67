//! The identity of this host, and of a service on it.

use std::fs;
use std::path::Path;

/// The host name.
pub fn name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unnamed".to_owned() } else { name.to_owned() }
}

/// The id of a service with its database at `db_file`. It differs for each host and database file, and it stays the
/// same if the database is lost. It does not reveal the path.
pub fn service_id(db_file: &Path) -> String {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let machine = if machine.trim().is_empty() { name() } else { machine.trim().to_owned() };
    let path = std::path::absolute(db_file).unwrap_or_else(|_| db_file.to_owned());
    let mut hasher = blake3::Hasher::new();
    hasher.update(machine.as_bytes()).update(&[0]).update(path.as_os_str().as_encoded_bytes());
    format!("{}-{}", name(), &hasher.finalize().to_hex()[..16])
}

/// Whether two ids are of one service, even if the host was renamed in between.
pub fn is_same_service(one: &str, other: &str) -> bool {
    let number = |id: &str| id.rsplit('-').next().map(str::to_owned);
    number(one) == number(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_file_identifies_a_service() {
        let one = service_id(Path::new("/var/lib/one.db"));
        assert_eq!(one, service_id(Path::new("/var/lib/one.db")));
        assert_ne!(one, service_id(Path::new("/var/lib/two.db")));
        assert!(one.starts_with(&name()) && !one.contains('/'));
        let renamed = format!("renamed-host{}", &one[one.rfind('-').unwrap()..]);
        assert!(is_same_service(&one, &renamed));
        assert!(!is_same_service(&one, &service_id(Path::new("/var/lib/two.db"))));
    }
}
