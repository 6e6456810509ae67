use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value as Json;

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ovs-agent-db")
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name).join("repository")).unwrap()
}

fn folder_with(name: &str, bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), bytes).unwrap();
    folder
}

fn from_json(json: &Json) -> RepositoryEntry {
    let text = |name: &str| json[name].as_str().map(str::to_owned);
    RepositoryEntry {
        id: text("id").unwrap(),
        mount_point: text("mount_point").map(PathBuf::from),
        alias: text("alias"),
        manager_uuid: text("manager_uuid"),
        version: text("version").or_else(|| json["version"].as_i64().map(|version| version.to_string())),
        filesystem: text("filesystem"),
        problem: None,
    }
}

#[test]
fn every_fixture_is_read_as_expected() {
    let (mut checked, mut servers) = (0, 0);
    for folder in fs::read_dir(fixtures()).unwrap() {
        let folder = folder.unwrap().path();
        let Ok(expected) = fs::read(folder.join("expected.json")) else { continue };
        let expected: Json = serde_json::from_slice(&expected).unwrap();
        let mut repos: Vec<_> = expected["repos"].as_array().unwrap().iter().map(from_json).collect();
        repos.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(repositories(&folder, true).unwrap(), repos, "{}", folder.display());
        checked += 1;
        if folder.join("server").exists() {
            let address = manager_address(&folder, true).unwrap();
            assert_eq!(address.as_deref(), expected["server"]["manager_ip"].as_str(), "{}", folder.display());
            servers += 1;
        }
    }
    assert!(checked >= 26 && servers >= 10, "{checked} fixtures, {servers} of them with a server");
}

#[test]
fn an_error_names_the_damaged_file_and_the_problem() {
    let many = fixture("many-200");
    let mut magic = many.clone();
    magic[12..16].fill(0);
    let mut version = many.clone();
    version[16] = 7;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (fixture("bad-zero"), "is empty"),
        (fixture("bad-text"), "is text"),
        (fixture("bad-btree"), "is a Berkeley DB btree file"),
        (fixture("bad-sub"), "contains several databases"),
        (fixture("bad-encrypted"), "is encrypted"),
        (fixture("bad-duplicates"), "has several values for one key"),
        (many[..51300].to_vec(), "is cut off: has 51300 bytes, but its pages need 102400"),
        (many[..100].to_vec(), "has only 100 bytes"),
        (vec![0; 8192], "starts with zeros"),
        (magic, "is not a Berkeley DB file"),
        (version, "is a hash file of version 7"),
    ];
    for (bytes, expected) in cases {
        let folder = folder_with("repository", &bytes);
        let message = repositories(folder.path(), true).unwrap_err().to_string();
        let path = folder.path().join("repository");
        assert!(message.contains(path.to_str().unwrap()) && message.contains(expected), "{message}");
    }
}

#[test]
fn only_regular_files_of_limited_size_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let message = || repositories(folder.path(), true).unwrap_err().to_string();
    assert!(message().contains("No such file"), "{}", message());
    let path = folder.path().join("repository");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(message().contains("not a regular file"), "{}", message());
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().set_len((64 << 20) + 1).unwrap();
    assert!(message().contains("the limit is"), "{}", message());
}

/// A file that was written under locks has a wrong number of pairs.
#[test]
fn the_count_of_an_unchanged_file_does_not_matter() {
    let mut bytes = fixture("py2str-p0");
    for counted in [0u32, 2, 4, u32::MAX] {
        bytes[88..92].copy_from_slice(&counted.to_le_bytes());
        let folder = folder_with("repository", &bytes);
        assert_eq!(repositories(folder.path(), true).unwrap().len(), 3);
    }
}

#[test]
fn a_file_that_is_being_replaced_is_read_as_old_or_new() {
    let folder = folder_with("repository", &fixture("py2str-p0"));
    let (old, new) = (fixtures().join("py2str-p0"), fixtures().join("many-200"));
    let expected = [repositories(&old, true).unwrap(), repositories(&new, true).unwrap()];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for source in [&old, &new] {
                    fs::copy(source.join("repository"), folder.path().join("next")).unwrap();
                    fs::rename(folder.path().join("next"), folder.path().join("repository")).unwrap();
                    thread::sleep(Duration::from_millis(20));
                }
            }
        });
        for _ in 0..3 {
            match repositories(folder.path(), true) {
                Ok(found) => assert!(expected.contains(&found)),
                Err(error) => assert!(matches!(error, AgentDbError::Changing { .. }), "{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(expected.contains(&repositories(folder.path(), true).unwrap()));
}

/// libdb may write pages in any order: here the last one first.
#[test]
fn a_file_that_is_half_written_is_read_again() {
    let whole = fixture("many-200");
    let mut torn = whole.clone();
    torn[4096..40960].fill(0);
    let folder = folder_with("repository", &torn);
    let path = folder.path().join("repository");
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(60));
            fs::write(&path, &whole).unwrap();
        });
        assert_eq!(repositories(folder.path(), true).unwrap().len(), 200);
    });
}

#[test]
fn a_bad_entry_does_not_affect_others() {
    let found = entry(b"id", b"cos\nsystem\n(S'reboot'\ntR.");
    assert_eq!((found.id.as_str(), &found.mount_point), ("id", &None));
    assert!(found.problem.as_ref().unwrap().contains("GLOBAL"), "{found:?}");
    assert!(entry(b"id", b"I1\n.").problem.unwrap().contains("is not a dict"));
    assert!(entry(b"id", b"").problem.unwrap().contains("cut off"));

    let found = entry(b"\xff", b"(dS'mount_point'\nI1\nsS'alias'\nNsS'version'\nF3.0\nsS'filesystem'\nS'nf\\xe9'\ns.");
    let expected = RepositoryEntry {
        id: "\u{fffd}".into(),
        mount_point: None,
        alias: None,
        manager_uuid: None,
        version: Some("3.0".into()),
        filesystem: Some("nf\u{fffd}".into()),
        problem: None,
    };
    assert_eq!(found, expected);
    let found = entry(b"id", b"(dS'mount_point'\nS'/r\\xe9'\ns.");
    assert_eq!(found.mount_point.unwrap().as_os_str().as_bytes(), b"/r\xe9");
}

#[test]
fn the_manager_is_an_address_or_a_name() {
    let good = ["127.0.0.1", "::1", "fe80::1", "ovm", "ovm-1.example.org", "ovm_1", "a.b.", "1and1.example"];
    assert!(good.iter().all(|text| is_address(text)));
    let long = "a".repeat(64);
    let bad =
        ["", ".", "a b", "a/b", "a:1", "[::1]", "user@host", "1.2.3", "1.2.3.456", "-a", "a-", "a..b", "é", &long];
    assert_eq!(bad.iter().filter(|text| is_address(text)).collect::<Vec<_>>(), Vec::<&&str>::new());
}

/// Replaces the value of `manager_ip` in a fixture.
fn manager_of(replacement: &[u8]) -> Result<Option<String>, AgentDbError> {
    let mut bytes = fs::read(fixtures().join("py2str-p0/server")).unwrap();
    let old = b"S'127.0.0.1'\n";
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    bytes[at..at + replacement.len()].copy_from_slice(replacement);
    manager_address(folder_with("server", &bytes).path(), true)
}

#[test]
fn an_invalid_address_is_an_error_with_the_file() {
    assert_eq!(manager_of(b"S'10.0.0.1'\n.").unwrap().as_deref(), Some("10.0.0.1"));
    assert_eq!(manager_of(b"N.").unwrap(), None);
    assert_eq!(manager_of(b"S''\n.").unwrap(), None);
    for (pickle, expected) in [(&b"S'a/../b'\n."[..], "\"a/../b\""), (b"I1\n.", "not a string"), (b"cos\n", "GLOBAL")] {
        let message = manager_of(pickle).unwrap_err().to_string();
        assert!(message.contains("/server") && message.contains(expected), "{message}");
    }
    let folder = folder_with("server", &fixture("empty"));
    assert_eq!(manager_address(folder.path(), true).unwrap(), None);
}

#[test]
fn a_link_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    symlink(fixtures().join("py2str-p0/repository"), folder.path().join("repository")).unwrap();
    assert_eq!(repositories(folder.path(), true).unwrap().len(), 3);
}
