//! What the installed systemd unit hides from the service, although it is there for other processes.

use std::fs;
use std::path::Path;

/// Where systemd looks for a unit, in this order (systemd.unit(5)).
const FOLDERS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];

const UNIT: &str = "coriolis-ovm-exporter.service";

/// Settings of systemd.exec(5), and the folders of which the service then sees others, or nothing.
const HIDING: [(&str, &[&str]); 2] =
    [("ProtectHome", &["/root", "/home", "/run/user"]), ("PrivateTmp", &["/tmp", "/var/tmp"])];

/// The text of the unit and of its drop-ins, if it is installed.
pub(super) fn installed() -> Option<String> {
    let mut text = FOLDERS.iter().find_map(|folder| fs::read_to_string(Path::new(folder).join(UNIT)).ok())?;
    let entries = FOLDERS.iter().filter_map(|folder| fs::read_dir(Path::new(folder).join(format!("{UNIT}.d"))).ok());
    let mut drop_ins: Vec<_> = entries.flatten().flatten().map(|entry| entry.path()).collect();
    drop_ins.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    drop_ins.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    for path in drop_ins {
        text.push('\n');
        text.push_str(&fs::read_to_string(path).unwrap_or_default());
    }
    Some(text)
}

/// The folder that the unit `text` hides, and that contains `path`.
pub(super) fn hidden(text: &str, path: &Path) -> Option<&'static str> {
    // The last setting counts. Other values, such as read-only, hide nothing.
    let is_set = |setting: &str| {
        let value = text.lines().rev().find_map(|line| line.trim().strip_prefix(setting)?.trim().strip_prefix('='));
        value.is_some_and(|value| ["yes", "true", "on", "1", "tmpfs", "disconnected"].contains(&value.trim()))
    };
    let folders = HIDING.iter().filter(|(setting, _)| is_set(setting)).flat_map(|(_, folders)| *folders);
    folders.copied().find(|folder| path.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_of_the_package_hides_homes_and_temporary_files() {
        let text = include_str!("../../../examples/systemd/coriolis-ovm-exporter.service");
        for (path, expected) in [
            ("/root/manager-ca.pem", Some("/root")),
            ("/home/joe/ca.pem", Some("/home")),
            ("/tmp/ca.pem", Some("/tmp")),
            ("/etc/coriolis-ovm-exporter/manager.pem", None),
            ("/homes/ca.pem", None),
        ] {
            assert_eq!(hidden(text, Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn last_setting_counts() {
        let path = Path::new("/home/joe/ca.pem");
        assert_eq!(hidden("ProtectHome=yes\nProtectHome = read-only\n", path), None);
        assert_eq!(hidden(" ProtectHome = tmpfs\nPrivateTmp=no\n", path), Some("/home"));
        assert_eq!(hidden("", path), None);
    }
}
