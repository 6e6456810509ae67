//! What the client says when something is wrong, and its exit statuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Backup, Certificates, MB, Random, Tmpfs, World, free_port, run, write_at};
use crate::needs_root;

const USAGE: Option<i32> = Some(2);
const FAILED: Option<i32> = Some(1);
const SOME_FAILED: Option<i32> = Some(3);
const TRY_LATER: Option<i32> = Some(75);

#[test]
fn errors_say_what_to_do() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", 4 * MB)]);
    let target = Tmpfs::new("size=100m");
    let backup = Backup::new(&world, target.path());
    let (url, to) = (backup.url().to_owned(), backup.directory.to_str().unwrap().to_owned());
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("file"), "").unwrap();
    let other_directory = other.path().to_str().unwrap();
    let certificates = Certificates::new();
    let other_ca = certificates.ca();
    let other_ca = other_ca.to_str().unwrap();
    let down = format!("https://127.0.0.1:{}", free_port());
    let fast = ["--patience", "1s"];
    for (arguments, status, expected) in [
        (vec!["backup", &url, "--to", &to], USAGE, "name the VMs to back up, or give --all"),
        (vec!["backup", "web", "--to", &to], USAGE, "name a service, such as https://host:5544"),
        (vec!["backup", "http://host", "--all", "--to", &to], USAGE, "does not accept plain HTTP"),
        (vec!["backup", &url, "--all", "--to", &to, "--bandwidth", "fast"], USAGE, "expected bytes a second"),
        (vec!["backup", &url, "--all", "--to", &to, "--label", "x"], USAGE, "expected KEY=VALUE"),
        (vec!["backup", &url, "--all", "--to", &to, "--fingerprint", "00"], USAGE, ""),
        (
            vec!["backup", &url, "no-such-vm", "--to", &to],
            FAILED,
            "no service has a VM of this name; the command vms --server https://127.0.0.1:",
        ),
        (vec!["backup", &url, "--all", "--to", other_directory], FAILED, "name an empty one"),
        (
            vec!["backup", &url, "--all", "--to", &to, "--cacert", other_ca],
            FAILED,
            "failed: the server's certificate, whose fingerprint is sha256:",
        ),
        (vec!["backup", &url, "--all", "--to", &to, "--cacert", "/no/such/file"], FAILED, "/no/such/file"),
        (
            vec!["backup", &down, "--all", "--to", &to, fast[0], fast[1]],
            TRY_LATER,
            ": cannot connect: Connection refused (os error 111); trying again for up to 1s (--patience)\n",
        ),
        (
            vec!["backup", &down, "web-1", "--to", &to, fast[0], fast[1]],
            TRY_LATER,
            "\nweb-1: failed: it was not looked for at https://127.0.0.1:",
        ),
        (vec!["points", other_directory], FAILED, "is no backup directory"),
        (vec!["restore", &to, "web", "--out", "/tmp/x"], FAILED, "no restore point of a VM \"web\""),
        (vec!["prune", &to], USAGE, "without a rule all points would be removed"),
        (vec!["cat", &url, "a/b"], USAGE, "expected VM/SNAPSHOT/DISK"),
        (vec!["login", "prod"], USAGE, "neither the address of a service"),
    ] {
        let (found, stdout, stderr) = backup.try_run(&arguments);
        assert_eq!(found, status, "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("panicked") && stderr.lines().count() < 8, "{arguments:?}: {stderr}");
    }
    let refused = |command: &mut Command| {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // In a home without a token.
    let backup = Backup::new(&world, target.path());
    let arguments = backup.backup_arguments(&[]);
    let (status, printed) = refused(backup.command(&arguments).env("EXPORTER_PASSWORD", "wrong"));
    assert!(status == FAILED && printed.contains("unauthorized"), "{printed}");
    let (status, printed) = refused(backup.command(&arguments).env_remove("EXPORTER_PASSWORD"));
    assert!(status == USAGE && printed.contains("there are no credentials"), "{printed}");
    let (status, printed) = refused(backup.command(&arguments).env("EXPORTER_TOKEN", "nonsense"));
    assert!(status == FAILED && printed.contains("unauthorized"), "{printed}");
}

#[test]
fn one_service_that_is_down_does_not_stop_the_others() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", 4 * MB)]);
    let target = Tmpfs::new("size=100m");
    let backup = Backup::new(&world, target.path());
    let down = format!("https://127.0.0.1:{}", free_port());
    let arguments = [&["backup", &down], &backup.backup_arguments(&["--json", "--patience", "1s"])[1..]].concat();
    let (status, stdout, stderr) = backup.try_run(&arguments);
    assert_eq!(status, SOME_FAILED, "{stderr}");
    let result: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(result["vms"].as_array().unwrap().len(), 1, "{result}");
    assert_eq!((&result["failed"][0]["what"], &result["failed"][0]["status"]), (&down.into(), &75.into()), "{result}");
}

#[test]
fn a_full_or_read_only_target_is_named_and_the_next_run_goes_on() {
    needs_root!();
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", 64 * MB)]).remove(0);
    write_at(&disk, 0, &Random(1).bytes(40 * MB));
    let target = Tmpfs::new("size=30m");
    let backup = Backup::new(&world, target.path());
    let arguments = backup.backup_arguments(&[]);
    let (status, _, stderr) = backup.try_run(&arguments);
    assert!(status == FAILED && stderr.contains("No space left on device") && stderr.contains("prune"), "{stderr}");
    assert!(backup.points().is_empty());
    let remount =
        |options: &str| run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(target.path()));
    remount("ro,size=100m");
    let (status, _, stderr) = backup.try_run(&arguments);
    assert!(status == FAILED && stderr.contains("Read-only file system"), "{stderr}");
    remount("rw,size=100m");
    let result = backup.back_up();
    assert_eq!(result["vms"][0]["resumed"], true, "{result}");
    assert!(result["vms"][0]["transferred_bytes"].as_u64().unwrap() < 20 * MB, "{result}");
    assert_eq!(world.client().snapshot_ids().len(), 1);
    let (status, _, stderr) =
        backup.try_run(&["verify", backup.directory.to_str().unwrap(), "--against", backup.url()]);
    assert!(status == Some(0) && stderr.contains(" to read\n") && !stderr.contains("transfer"), "{stderr}");
}

#[test]
fn a_token_is_cached_for_its_owner_and_a_profile_has_the_rest() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", 4 * MB)]);
    let target = Tmpfs::new("size=100m");
    let backup = Backup::new(&world, target.path());
    let config = backup.home().join(".config/coriolis-ovm-exporter");
    fs::create_dir_all(&config).unwrap();
    let password = backup.home().join("password");
    fs::write(&password, format!("{}\n", crate::harness::PASSWORD)).unwrap();
    let profile = format!(
        "[servers.prod]\nurl = {:?}\nca_certificate = {:?}\nuser = {:?}\npassword_file = {password:?}\n",
        backup.url(),
        world.certificates.ca(),
        crate::harness::USER,
    );
    fs::write(config.join("client.toml"), profile).unwrap();
    let to = backup.directory.to_str().unwrap();
    let bare = |arguments: &[&str]| {
        let mut command = backup.command(arguments);
        for name in ["EXPORTER_USERNAME", "EXPORTER_PASSWORD", "EXPORTER_CACERT"] {
            command.env_remove(name);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, printed) = bare(&["login", "prod"]);
    assert!(status == Some(1) && printed.contains("chmod 600"), "{printed}");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(bare(&["login", "prod"]).0, Some(0));
    // The token is enough.
    let profile_without_password = fs::read_to_string(config.join("client.toml")).unwrap();
    let lines = profile_without_password.lines().filter(|line| !line.starts_with("password_file"));
    fs::write(config.join("client.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    let (status, printed) = bare(&["backup", "prod", "--all", "--to", to]);
    assert_eq!(status, Some(0), "{printed}");
    let cache = backup.home().join(".cache/coriolis-ovm-exporter");
    for entry in fs::read_dir(&cache).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(bare(&["logout", "prod"]).0, Some(0));
    let (status, printed) = bare(&["backup", "prod", "--all", "--to", to]);
    assert!(status == USAGE && printed.contains("there are no credentials"), "{printed}");
}

#[test]
fn the_help_has_all_exit_statuses_of_the_guide() {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/client.md")).unwrap();
    let (_, table) = guide.split_once("## Exit statuses").unwrap();
    let statuses = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse::<u8>().ok());
    let statuses: Vec<u8> = statuses.filter(|status| *status != 0).collect();
    assert!(statuses.len() > 4, "{statuses:?}");
    let help = Command::new(env!("CARGO_BIN_EXE_coriolis-ovm-exporter")).arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let (_, listed) = help.split_once("Exit status:").unwrap();
    for status in statuses {
        assert!(listed.lines().any(|line| line.starts_with(&format!("  {status} "))), "{status} is missing: {listed}");
    }
}
