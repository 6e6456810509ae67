//! The operator's commands: on this host over the Unix socket, and elsewhere over TLS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{
    Client, MB, OTHER_VM, PASSWORD, SNAPSHOTS, USER, VM, World, define_vm, define_vm_with, make_disk, text, write_at,
};
use crate::needs_root;

const BINARY: &str = env!("CARGO_BIN_EXE_coriolis-ovm-exporter");

/// Not known to the host.
const STRANGER: u32 = 61_235;

/// What a command printed.
#[derive(Debug)]
struct Output {
    status: Option<i32>,
    /// Standard output.
    out: String,
    /// Standard error.
    notices: String,
}

impl Output {
    fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { status: output.status.code(), out: text(output.stdout), notices: text(output.stderr) }
    }

    /// Checks that the command succeeded; returns its standard output.
    fn ok(self) -> String {
        assert_eq!(self.status, Some(0), "{self:?}");
        self.out
    }

    fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Checks the exit status, and that the error contains `expected`.
    fn fails(self, status: i32, expected: &str) {
        assert!(self.status == Some(status) && self.notices.contains(expected), "{self:?} lacks {expected:?}");
        assert_eq!(self.out, "", "an error is no result");
    }
}

fn config(world: &World) -> std::path::PathBuf {
    world.exporter.log_path().with_file_name("config.toml")
}

fn command(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).arg("--config").arg(config(world)).env("TZ", "UTC").env_remove("LC_ALL");
    command
}

fn run(world: &World, arguments: &[&str]) -> Output {
    Output::of(&mut command(world, arguments))
}

/// The only line of a table that contains `part`.
fn row<'a>(table: &'a str, part: &str) -> Vec<&'a str> {
    let rows: Vec<&str> = table.lines().filter(|line| line.contains(part)).collect();
    let [row] = rows[..] else { panic!("{part:?} in {table}") };
    row.split_whitespace().collect()
}

#[test]
fn vms_and_repositories_are_tables_and_json() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", 2 * MB), ("b.img", MB)]);
    define_vm_with(&world.repository, OTHER_VM, &["'phy:/dev/null,xvda,w'".to_owned()]);
    let client = Client::local(&world.exporter);
    client.take_snapshot();

    let table = run(&world, &["vms"]).ok();
    assert!(table.starts_with("NAME "), "{table}");
    assert_eq!(row(&table, VM), ["web-1", VM, "2", "3.00", "MiB", "1", "ok"]);
    assert!(row(&table, OTHER_VM).join(" ").contains("no snapshot is possible: "), "{table}");
    assert_eq!(run(&world, &["vms", "--json"]).json(), client.get("/vms").ok());

    let table = run(&world, &["repositories"]).ok();
    let found = row(&table, "xfs");
    assert_eq!(found[..4], ["0004fb0000030000a1b2c3d4e5f60718", world.repository.to_str().unwrap(), "xfs", "yes"]);
    assert_eq!(found.last(), Some(&"ok"));
    let document = run(&world, &["repositories", "--json"]).json();
    assert_eq!(document[0]["total_bytes"], client.get("/repositories").ok()[0]["total_bytes"]);

    world.volume.unmount();
    let table = run(&world, &["repositories"]).ok();
    assert!(table.contains("error: "), "{table}");
    world.volume.mount();
}

#[test]
fn snapshots_are_created_listed_shown_and_deleted() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img", "b.img"]);
    hooks.put("10-note", "exit 0");
    let client = Client::local(&world.exporter);

    let created = ["--label", "job=nightly", "--description", "before it", "--ttl", "72h", "--disks", "xvda"];
    let output = run(&world, &[&["snapshots", "create", "web-1"][..], &created].concat()).ok();
    let first = client.snapshot_ids().remove(0);
    assert!(output.starts_with(&format!("created {first} of web-1 ({VM})\ncrash, 1.00 MiB: a.img\n")), "{output}");
    let second = run(&world, &["snapshots", "create", VM, "--quiesce", "try", "--json"]).json();
    let second_id = text(&second["id"]);
    assert_eq!(client.snapshot_ids(), [first.clone(), second_id.clone()]);
    assert_eq!(second["disks"].as_array().unwrap().len(), 2);
    let wrong = run(&world, &["snapshots", "create", VM, "--disks", "xvdz"]);
    wrong.fails(1, "(unknown_disk, request ");
    run(&world, &["snapshots", "create", VM, "--label", "nightly"]).fails(2, "expected KEY=VALUE");

    let list = run(&world, &["snapshots", "list"]).ok();
    assert_eq!(list.lines().count(), 3, "{list}");
    let found = row(&list, &first).join(" ");
    assert!(found.contains("web-1") && found.contains("job=nightly"), "{list}");
    // The times are of the local zone.
    let created_at: String = text(&client.get(&format!("{SNAPSHOTS}/{second_id}")).ok()["created_at"]);
    assert!(row(&list, &second_id).join(" ").contains(&created_at[..19].replace('T', " ")), "{list} {created_at}");
    let list = Output::of(command(&world, &["snapshots", "list", "web-1"]).env("TZ", "Asia/Tokyo")).ok();
    let hour = |text: &str| text[11..13].parse::<u32>().unwrap();
    let shown = row(&list, &second_id)[2].split(':').next().unwrap().parse::<u32>().unwrap();
    assert_eq!(shown, (hour(&created_at) + 9) % 24, "{list} {created_at}");

    let all = client.get(&format!("{SNAPSHOTS}?chunks=false")).ok();
    assert_eq!(run(&world, &["snapshots", "list", "--json"]).json(), all);
    for (label, expected) in [("job", 1), ("job=nightly", 1), ("job=hourly", 0)] {
        let found = run(&world, &["snapshots", "list", VM, "--label", label, "--json"]).json();
        assert_eq!(found.as_array().unwrap().len(), expected, "{label}");
    }

    let page = run(&world, &["snapshots", "show", "web-1", &first[..8]]).ok();
    for expected in [&first, "by unix:root", "job=nightly", "before it", "10-note", "vm.cfg", "2048 MiB", "a.img"] {
        assert!(page.contains(expected), "{page} lacks {expected}");
    }
    let document = run(&world, &["snapshots", "show", "web-1", &first[..8], "--json"]).json();
    assert_eq!(document, client.get(&format!("{SNAPSHOTS}/{first}?summary=true")).ok());
    // A snapshot with a fault is shown too.
    fs::remove_file(world.snapshot_folder(&second_id).join("b.img")).unwrap();
    let output = run(&world, &["snapshots", "show", VM, &second_id]);
    assert!(output.notices.contains("the disks cannot be read"), "{output:?}");
    assert!(output.out.contains("error: ") && output.status == Some(0), "{output:?}");

    // Without a terminal, destructive commands want --yes.
    let refused = run(&world, &["snapshots", "delete", VM, &first[..8]]);
    assert!(refused.notices.contains(&format!("{first}  20")), "{refused:?}");
    refused.fails(2, "give --yes");
    run(&world, &["snapshots", "purge", VM]).fails(2, "give --yes to delete these 2 snapshots");
    assert_eq!(client.snapshot_ids().len(), 2);
    let output = run(&world, &["snapshots", "delete", VM, &first[..8], &first, "--yes"]).ok();
    assert_eq!(output, format!("deleted {first}\n"));
    let third = client.take_snapshot_id();
    let output = run(&world, &["snapshots", "purge", "web-1", "--yes", "--json"]);
    assert!(output.notices.contains("the newest is among them"), "{output:?}");
    assert_eq!(output.json(), json!({"vm_id": VM, "deleted": [second_id, third]}));
    assert_eq!(client.snapshot_ids(), [""; 0]);
    let output = run(&world, &["snapshots", "purge", VM, "--yes"]);
    assert!(output.status == Some(0) && output.notices.contains("has no snapshots"), "{output:?}");
}

#[test]
fn names_that_are_wrong_or_ambiguous_are_explained() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let other = make_disk(&world.repository, "other.img", MB);
    define_vm(&world.repository, OTHER_VM, &[other]);
    let client = Client::local(&world.exporter);
    let id = client.take_snapshot_id();
    let show = |vm: &str, snapshot: &str| run(&world, &["snapshots", "show", vm, snapshot]);
    // Both VMs have the same friendly name.
    show("web-1", &id).fails(1, &format!("2 VMs are called \"web-1\"; name one by its id: {VM}, {OTHER_VM}"));
    show("wbe-1", &id).fails(1, "there is no VM \"wbe-1\"; did you mean \"web-1\"?");
    show(&"f".repeat(32), &id).fails(1, "(not_found, request ");
    show("0004fb00-0006-0000-0000-000000000001", &id).ok();
    show(VM, &id[..5]).fails(2, "is too short");
    show(VM, "000000").fails(1, "has no snapshot \"000000\"");
    show(OTHER_VM, &id).fails(1, "(other_vm, request ");
    run(&world, &["snapshots", "diff", VM, &id, &id[..8]]).fails(1, "both names mean");
    run(&world, &["snapshots", "delete", VM]).fails(2, "required");
    run(&world, &["status", "--watch"]).fails(2, "--watch needs a terminal");
}

#[test]
fn a_diff_shows_where_the_disks_have_changed() {
    needs_root!();
    let world = World::new(512);
    let disks = world.define_vm(&[("a.img", 80 * MB), ("b.img", MB)]);
    for megabyte in 0..80 {
        write_at(&disks[0], megabyte * MB, &vec![1; 1 << 20]);
    }
    let client = Client::local(&world.exporter);
    let first = client.take_snapshot_id();
    write_at(&disks[0], 0, &vec![2; 1 << 20]);
    write_at(&disks[0], 10 * MB, &[2; 4096]);
    write_at(&disks[0], 40 * MB, &vec![2; 1 << 19]);
    write_at(&disks[0], 78 * MB, &vec![2; (1 << 20) - 65536]);
    Command::new("fallocate").args(["-p", "-o", "62914560", "-l", "2097152"]).arg(&disks[0]).status().unwrap();
    let second = client.take_snapshot_id();
    let strip = format!("#{}-{}+{}##{}*.", ".".repeat(9), ".".repeat(29), ".".repeat(19), ".".repeat(16));
    assert_eq!(strip.len(), 80);
    // The older one is the base, whichever comes first.
    for (a, b) in [(&first, &second), (&second, &first)] {
        let page = run(&world, &["snapshots", "diff", "web-1", &a[..8], &b[..8], "--ascii"]).ok();
        let expected = format!("a.img, 1.00 MiB a character\n{strip}\n");
        assert!(page.contains(&expected), "{page} lacks {expected}");
        assert!(page.contains(&format!("from {first} of ")) && page.contains(&format!("to   {second} of ")), "{page}");
        // 1 MiB + 4 KiB + 512 KiB + 960 KiB, and 2 MiB of zeros
        let numbers = ["a.img", "80.00", "MiB", "2.44", "MiB", "2.00", "MiB", "5.6", "%"];
        assert_eq!(page.lines().nth(5).unwrap().split_whitespace().collect::<Vec<_>>(), numbers);
        assert!(page.contains(&format!("b.img, 12.80 KiB a character\n{}\n", ".".repeat(80))), "{page}");
    }
    let page = Output::of(command(&world, &["snapshots", "diff", VM, &first, &second]).env("LC_ALL", "C.UTF-8")).ok();
    let strip = strip.replace('.', "·").replace('-', "░").replace('+', "▒").replace('*', "▓").replace('#', "█");
    assert!(page.contains(&strip), "{page} lacks {strip}");

    let document = run(&world, &["snapshots", "diff", VM, &first, &second, "--json"]).json();
    let sums = (&document["disks"][0]["data_bytes"], &document["disks"][0]["zero_bytes"]);
    assert_eq!(sums, (&json!((1 << 20) + 4096 + (1 << 19) + 983_040), &json!(2 * MB)), "{document}");
    // A lost base is an error.
    fs::remove_file(world.snapshot_folder(&first).join("a.img")).unwrap();
    run(&world, &["snapshots", "diff", VM, &first, &second]).fails(1, "(base_lost, request ");
}

#[test]
fn foreign_text_cannot_control_the_terminal() {
    needs_root!();
    let world = World::new(512);
    let disk = make_disk(&world.repository, "a.img", MB);
    define_vm(&world.repository, VM, &[disk]);
    let path = world.repository.join("VirtualMachines").join(VM).join("vm.cfg");
    let definition = fs::read_to_string(&path).unwrap();
    let name = "x\\nFORGED\\x1b[2J\u{9b}2J\u{202e}";
    fs::write(&path, definition.replace("'web-1'", &format!("'{name}'"))).unwrap();
    let id = Client::local(&world.exporter).take_snapshot_id();
    for arguments in [
        &["vms"][..],
        &["vms", "--json"],
        &["status"],
        &["snapshots", "list"],
        &["snapshots", "list", "--json"],
        &["snapshots", "show", VM, &id],
        &["snapshots", "show", VM, &id, "--json"],
        &["snapshots", "delete", VM, &id, "--yes"],
    ] {
        let output = run(&world, arguments);
        let printed = format!("{}{}", output.out, output.notices);
        assert_eq!(output.status, Some(0), "{printed}");
        assert!(!printed.contains(|c: char| c != '\n' && (c.is_control() || c == '\u{202e}')), "{printed:?}");
        assert!(!printed.lines().any(|line| line.starts_with("FORGED")), "{printed}");
    }
}

#[test]
fn only_operators_reach_the_service() {
    needs_root!();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Other users may not reach the folder of the build.
    let binary = dir.path().join("exporter");
    fs::copy(BINARY, &binary).unwrap();
    let run_as_stranger = |arguments: &[&str], groups: &str| {
        let (uid, gid) = (format!("--reuid={STRANGER}"), format!("--regid={STRANGER}"));
        Output::of(Command::new("setpriv").args([&*uid, &gid, groups]).arg(&binary).args(arguments))
    };
    let groups = fs::read_to_string("/etc/group").unwrap();
    let fields = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let (group, gid) = fields.map(|fields| (fields[0], fields[2])).find(|(_, gid)| *gid != "0").unwrap();
    let socket = dir.path().join("api.sock").display().to_string();
    let world = World::with(512, |settings| {
        settings.socket = Some(socket.clone());
        settings.api = format!("socket_group = {group:?}\n");
    });
    world.define_vm(&[("a.img", MB)]);
    let stranger = run_as_stranger(&["vms", "--socket", &socket], "--clear-groups");
    stranger.fails(1, &format!("only root and the members of the group {group} may"));
    let member = run_as_stranger(&["vms", "--socket", &socket], &format!("--groups={gid}")).ok();
    assert_eq!(row(&member, VM)[0], "web-1");
    // Of a config that the user cannot read, the socket is not known.
    let path = config(&world).display().to_string();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let output = run_as_stranger(&["vms", "--config", &path], &format!("--groups={gid}"));
    assert!(output.notices.contains(&format!("because {path} cannot be read (Permission denied")), "{output:?}");
    assert!(output.notices.contains("/run/coriolis-ovm-exporter/api.sock"), "{output:?}");

    // The mode of the socket does not let others in.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    run_as_stranger(&["vms", "--socket", &socket], "--clear-groups").fails(1, "(forbidden, request ");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    let stranger = run_as_stranger(&["vms", "--socket", &socket], "--clear-groups");
    stranger.fails(1, "set api.socket_group");
}

#[test]
fn a_service_that_cannot_be_asked_is_explained() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    world.exporter.kill();
    run(&world, &["vms"]).fails(75, "the service is not running");
    run(&world, &["vms"]).fails(75, "; the service of another host is asked with --server https://host:5544");
    fs::remove_file(world.exporter.socket()).unwrap();
    run(&world, &["snapshots", "list"]).fails(75, "is the service running?");
    world.exporter.restart();
    assert_eq!(run(&world, &["snapshots", "list"]).notices, "there are no snapshots\n");
    assert_eq!(run(&world, &["snapshots", "list", VM]).notices, format!("web-1 ({VM}) has no snapshots\n"));
    // Another key of the config does not matter to these commands, but the key of the socket does.
    let text = fs::read_to_string(config(&world)).unwrap();
    fs::write(config(&world), text.replace("[policy]", "[policy]\nnonsense = 1")).unwrap();
    run(&world, &["vms"]).ok();
    fs::write(config(&world), text.replace("api.sock\"", "api.sock\"\nsocket_grop = \"x\"")).unwrap();
    run(&world, &["vms"]).ok();
    Output::of(Command::new(BINARY).args(["vms", "--config", "/nowhere.toml"])).fails(78, "/nowhere.toml");
    world.exporter.settings().socket = Some(String::new());
    world.exporter.restart();
    run(&world, &["vms"]).fails(1, "api.socket is \"\"");
    run(&world, &["vms", "--server", "https://x", "--socket", "/x"]).fails(2, "cannot be used with");
}

#[test]
fn other_services_are_reached_over_tls() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let id = Client::local(&world.exporter).take_snapshot_id();
    let home = tempfile::tempdir().unwrap();
    let url = format!("https://127.0.0.1:{}", world.exporter.port);
    let ca = world.certificates.ca();
    let remote = |arguments: &[&str], server: &str| {
        let mut command = Command::new(BINARY);
        command.args(arguments).args(["--server", server]).env_clear().env("HOME", home.path());
        command.env("EXPORTER_USERNAME", USER).env("EXPORTER_PASSWORD", PASSWORD);
        command
    };
    let with_ca = |arguments: &[&str]| Output::of(remote(arguments, &url).arg("--cacert").arg(&ca));
    assert_eq!(row(&with_ca(&["vms"]).ok(), VM)[0], "web-1");
    assert_eq!(with_ca(&["status", "--json"]).json()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(with_ca(&["adopt", "--dry-run", "--json"]).json()["adopted"], json!([]));
    let created = with_ca(&["snapshots", "create", "web-1", "--json"]).json();
    assert_eq!(created["created_by"], USER);
    assert_eq!(with_ca(&["snapshots", "delete", VM, &id[..6], "--yes"]).ok(), format!("deleted {id}\n"));
    Output::of(&mut remote(&["vms"], &url)).fails(1, "certificate");
    // A profile has the address and the authority.
    write_profile(home.path(), &url, &ca);
    assert_eq!(row(&Output::of(&mut remote(&["vms"], "site")).ok(), VM)[0], "web-1");
    Output::of(&mut remote(&["vms"], "elsewhere")).fails(2, "nor a profile");
    world.exporter.kill();
    Output::of(remote(&["vms", "--patience", "1s"], "site").arg("--cacert").arg(&ca)).fails(75, "gave up after");
}

fn write_profile(home: &Path, url: &str, ca: &Path) {
    let folder = home.join(".config/coriolis-ovm-exporter");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("client.toml"), format!("[servers.site]\nurl = {url:?}\nca_certificate = {ca:?}\n")).unwrap();
}
