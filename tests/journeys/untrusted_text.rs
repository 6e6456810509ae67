//! Text in a repository is not disclosed if it may be secret, and cannot forge log or terminal lines.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::harness::{Client, HookDir, OTHER_VM, VM, World, text};
use crate::needs_root;

const SECRETS: [&str; 5] = [
    "root:$6$SECRETSALT$SECRETHASH:19000:0:99999:7:::\n",
    "password = SECRETWORD\n",
    "name = 'SECRETNAME'\n",
    "disk = ['SECRETDISK']\n",
    "key = 'SECRETKEY\n",
];

/// Checks that the VM is listed with an error, and that no answer and no log line contains the file's content.
fn check_no_disclosure(world: &World, client: &Client, vm: &str) -> String {
    let listed = client.get(&format!("/vms/{vm}")).ok();
    assert_eq!((&listed["status"], &listed["name"]), (&"error".into(), &vm.into()), "{listed}");
    let created = client.post(&format!("/vms/{vm}/snapshots"));
    assert_eq!(created.error(400), "not_snapshottable");
    let all = client.get("/vms").ok();
    for output in [listed.to_string(), String::from_utf8(created.body).unwrap(), all.to_string(), world.exporter.log()]
    {
        assert!(!output.contains("SECRET"), "{output}");
    }
    text(&listed["reason"])
}

#[test]
fn definition_errors_reveal_no_content_of_other_files() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.client();
    let folder = world.repository.join("VirtualMachines").join(OTHER_VM);
    let outside = tempfile::tempdir().unwrap();
    // On the same file system, outside of the repository, for a hard link.
    let beside = world.volume.mount_point.join("secret");
    for secret in SECRETS {
        fs::write(outside.path().join("vm.cfg"), secret).unwrap();
        fs::write(&beside, secret).unwrap();
        fs::create_dir(&folder).unwrap();
        symlink(outside.path().join("vm.cfg"), folder.join("vm.cfg")).unwrap();
        assert!(check_no_disclosure(&world, &client, OTHER_VM).contains("\"vm.cfg\" is a symbolic link"));
        fs::remove_file(folder.join("vm.cfg")).unwrap();
        fs::hard_link(&beside, folder.join("vm.cfg")).unwrap();
        check_no_disclosure(&world, &client, OTHER_VM);
        fs::remove_dir_all(&folder).unwrap();
        symlink(outside.path(), &folder).unwrap();
        assert!(check_no_disclosure(&world, &client, OTHER_VM).contains(&format!("\"{OTHER_VM}\" is a symbolic link")));
        fs::remove_file(&folder).unwrap();
    }
    // The reason has the place of the error and what was expected.
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("vm.cfg"), "memory = '2048'\ndisk = ['SECRET', SECRET]\n").unwrap();
    assert!(check_no_disclosure(&world, &client, OTHER_VM).contains("line 2, column 19: expected a literal value"));
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshot_compatible"], true);
}

/// Whether the text contains no forged line and no control characters for a terminal.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || !c.is_control() && !('\u{202a}'..='\u{202e}').contains(&c))
        && text.lines().all(|line| !line.starts_with("FORGED"))
}

#[test]
fn names_cannot_forge_terminal_lines() {
    needs_root!();
    const NAME: &str = "x\nFORGED\u{1b}[2J\u{202e}\r\u{9b}m";
    let hooks = HookDir::new();
    fs::write(hooks.directory().join(NAME), "no program").unwrap();
    let world = World::with(512, |settings| settings.sections = hooks.section(""));
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.client();
    fs::create_dir_all(world.repository.join("CoriolisSnapshots").join(NAME)).unwrap();
    fs::create_dir_all(world.repository.join("VirtualMachines").join(NAME)).unwrap();
    client.get("/vms").ok();

    // The hook is skipped with a log message.
    client.take_snapshot();
    let (status, report) = world.exporter.command(&["adopt"]);
    assert!(status == Some(0) && report.contains("x\\nFORGED\\u{1b}[2J") && is_plain(&report), "{report:?}");
    let (_, table) = world.exporter.command(&["check-config"]);
    assert!(table.contains("x\\nFORGED\\u{1b}[2J") && is_plain(&table), "{table:?}");
    let page = client.request(reqwest::Method::GET, "/api/v1/status?cost=true").header("Accept", "text/plain");
    let page = String::from_utf8(client.send(page).body).unwrap();
    assert!(is_plain(&page), "{page:?}");
    let log = world.exporter.log();
    assert!(log.contains("FORGED") && is_plain(&log), "{log:?}");
    // The name of a missing config is escaped, too.
    let (status, output) =
        world.exporter.command(&["adopt", "--config", Path::new("/nowhere").join(NAME).to_str().unwrap()]);
    assert!(status != Some(0) && is_plain(&output), "{output:?}");
}
