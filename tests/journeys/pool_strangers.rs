//! Addresses of a pool of which one does not belong to it: another certificate, other secrets, other snapshots.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::harness::{
    Backup, Certificates, Exporter, MB, Proxy, Random, Settings, VM, Volume, World, define_vm, free_port, make_disk,
    make_repository, run, text, write_at,
};
use crate::needs_root;

fn address(port: u16) -> String {
    format!("https://127.0.0.1:{port}")
}

/// The result of `vms --server`.
fn list_vms(backup: &Backup, servers: &[String], more: &[&str]) -> (Option<i32>, String) {
    let servers = servers.join(",");
    let arguments = [&["vms", "--json", "--patience", "1s", "--server", &servers][..], more].concat();
    let (status, stdout, stderr) = backup.try_run(&arguments);
    assert!(status != Some(0) || stdout.contains(VM), "{stdout}{stderr}");
    (status, stderr)
}

#[test]
fn a_host_with_another_certificate_is_left_out() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let others = Certificates::new();
    let second = world.second_service(|settings| {
        (settings.certificate, settings.key) = (others.path("server.pem"), others.path("server.key"));
    });
    let target = tempfile::tempdir().unwrap();
    let backup = Backup::new(&world, target.path());
    let (good, bad) = (address(world.exporter.port), address(second.port));
    let (status, stderr) = list_vms(&backup, &[bad.clone(), good.clone()], &[]);
    assert_eq!(status, Some(0), "{stderr}");
    let line = stderr.lines().next().unwrap();
    assert!(line.starts_with(&format!("{bad}: the server's certificate, whose fingerprint is sha256:")), "{stderr}");
    assert!(line.ends_with(&format!("; going on with {good}")) && stderr.lines().count() == 1, "{stderr}");
    // Alone it is an error, as ever; and so it is if no certificate is right.
    assert_eq!(list_vms(&backup, std::slice::from_ref(&bad), &[]).0, Some(1));
    let (backup, nonsense) = (backup.without_authority(), "00".repeat(32));
    let (status, stderr) = list_vms(&backup, &[bad.clone(), good.clone()], &["--fingerprint", &nonsense]);
    assert!(status == Some(1) && stderr.contains(&bad) && stderr.contains(&good), "{stderr}");
    // Several fingerprints, of which each host has one; and several authorities in one file.
    let fingerprint = |certificates: &Certificates| {
        let printed = Command::new("openssl")
            .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
            .arg(certificates.path("server.pem"))
            .output()
            .unwrap();
        String::from_utf8(printed.stdout).unwrap().trim().rsplit('=').next().unwrap().to_owned()
    };
    let both = format!("{}, sha256:{}", fingerprint(&world.certificates), fingerprint(&others));
    let authorities = target.path().join("authorities.pem");
    let pem = |certificates: &Certificates| fs::read_to_string(certificates.ca()).unwrap();
    fs::write(&authorities, pem(&world.certificates) + &pem(&others)).unwrap();
    for trust in [["--fingerprint", &both], ["--cacert", authorities.to_str().unwrap()]] {
        for host in [&good, &bad] {
            assert_eq!(list_vms(&backup, std::slice::from_ref(host), &trust), (Some(0), String::new()), "{trust:?}");
        }
    }
}

#[test]
fn a_token_is_used_at_all_hosts_and_replaced_where_it_is_refused() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let like = world.second_service(|_| {});
    let unlike =
        world.second_service(|settings| settings.secret = "the secret of another pool, long enough".to_owned());
    let target = tempfile::tempdir().unwrap();
    let backup = Backup::new(&world, target.path());
    let log_ins = |exporter: &Exporter| exporter.log().matches("logged in user=").count();
    let proxy = Proxy::start(world.exporter.port);
    let list = |other: &Exporter| list_vms(&backup, &[address(proxy.port), address(other.port)], &[]);
    assert_eq!(list(&like), (Some(0), String::new()));
    assert_eq!((log_ins(&world.exporter), log_ins(&like), log_ins(&unlike)), (1, 0, 0));
    proxy.die();
    for other in [&like, &unlike] {
        let (status, stderr) = list(other);
        assert!(status == Some(0) && stderr.contains("going on with"), "{stderr}");
    }
    // The kept token of the first is good at the second, and the third needed a log-in.
    assert_eq!((log_ins(&world.exporter), log_ins(&like), log_ins(&unlike)), (1, 0, 1));
    // A token without a password: who refuses it is left out.
    let token = world.client().token;
    let servers = [&unlike, &like].map(|exporter| address(exporter.port));
    let fresh = Backup::new(&world, target.path());
    let list = |servers: &[String]| {
        let mut command = fresh.command(&["vms", "--server", &servers.join(","), "--patience", "1s"]);
        command.env_remove("EXPORTER_USERNAME").env_remove("EXPORTER_PASSWORD").env("EXPORTER_TOKEN", &token);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, stderr) = list(&servers);
    assert!(status == Some(0) && stderr.contains(&format!("{}: ", servers[0])), "{stderr}");
    assert!(stderr.contains("unauthorized") && stderr.contains("going on with"), "{stderr}");
    let (status, stderr) = list(&servers[..1]);
    assert!(status == Some(1) && stderr.contains("unauthorized"), "{stderr}");
    // A wrong password goes to one host only.
    let mut command = fresh.command(&["vms", "--server", &servers.join(",")]);
    let output = command.env("EXPORTER_PASSWORD", "wrong").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.matches("unauthorized").count() == 1, "{stderr}");
    let failures = |exporter: &Exporter| exporter.log().matches("log-in refused").count();
    assert_eq!(failures(&like) + failures(&unlike), 1, "{}", like.log());
    // `login` keeps a token of each, and `logout` ends both.
    let (status, _, stderr) = fresh.try_run(&["login", &servers.join(",")]);
    assert!(status == Some(0) && stderr.matches("logged in at ").count() == 2, "{stderr}");
    assert_eq!((log_ins(&like), log_ins(&unlike)), (1, 2));
    let (_, _, stderr) = fresh.try_run(&["logout", &servers.join(",")]);
    assert_eq!(stderr, "logged out\n");
    for exporter in [&like, &unlike] {
        exporter.wait_for_log("action=\"log-out\"");
    }
}

/// A service with the same VM, but on another file system.
struct Stranger {
    exporter: Exporter,
    disk: PathBuf,
    _volume: Volume,
}

impl Stranger {
    fn of(world: &World) -> Self {
        let volume = Volume::xfs(512);
        let repository = make_repository(&volume.mount_point, "0004fb00000300000000000000000009");
        let disk = make_disk(&repository, "a.img", 16 * MB);
        define_vm(&repository, VM, std::slice::from_ref(&disk));
        let exporter = Exporter::start(Settings::new(&world.certificates, &world.manager, &[&repository]));
        Self { exporter, disk, _volume: volume }
    }

    fn snapshots(&self, world: &World) -> Vec<String> {
        crate::harness::Client::logged_in(&self.exporter, &world.certificates).snapshot_ids()
    }
}

#[test]
fn a_service_of_another_pool_ends_no_chain_and_gets_no_snapshot() {
    needs_root!();
    let world = World::new(512);
    let disk = world.define_vm(&[("a.img", 16 * MB)]).remove(0);
    write_at(&disk, 0, &Random(7).bytes(12 * MB));
    let target = Volume::xfs(512);
    let stranger = Stranger::of(&world);
    write_at(&stranger.disk, 0, &[9; 4096]);
    let proxy = Proxy::start(world.exporter.port);
    let backup = Backup::new(&world, &target.mount_point).of_pool(&[proxy.port, stranger.exporter.port]);
    let attempt = |backup: &Backup, more: &[&str]| {
        let arguments = [&["--json", "--patience", "2s"], more].concat();
        let (status, stdout, stderr) = backup.try_run(&backup.backup_arguments(&arguments));
        let result: Value = serde_json::from_str(&stdout).unwrap();
        (status, result, stderr)
    };
    // The first dies during the first download.
    proxy.end_after(6 * MB);
    let (status, result, stderr) = attempt(&backup, &[]);
    assert_eq!((status, &result["failed"][0]["status"]), (Some(75), &75.into()), "{result} {stderr}");
    let (own, others) = (address(proxy.port), address(stranger.exporter.port));
    let said = text(&result["failed"][0]["error"]);
    let id = world.client().snapshot_ids().remove(0);
    let expected =
        format!("{others} does not have the snapshot {id}, and {own} does not answer: try again when it does");
    assert!(said.contains(&expected) && said.contains("not of the same pool must be left out"), "{said}");
    // When it answers again, the same snapshot is completed.
    proxy.accept();
    let result = backup.back_up();
    assert_eq!((&result["vms"][0]["snapshot_id"], &result["vms"][0]["resumed"]), (&Value::from(id), &true.into()));
    // The base is asked for before anything is made.
    proxy.die();
    write_at(&disk, 0, &Random(8).bytes(2 * MB));
    for more in [&[][..], &["--dry-run"]] {
        let (status, result, stderr) = attempt(&backup, more);
        assert_eq!(status, Some(75), "{result} {stderr}");
        assert!(text(&result["failed"][0]["error"]).contains("does not have the snapshot"), "{result}");
    }
    proxy.accept();
    // The one that lacks it comes first: it is named, and the other is used.
    let reversed = backup.of_pool(&[stranger.exporter.port, proxy.port]);
    let (status, result, stderr) = attempt(&reversed, &[]);
    assert_eq!((status, &result["vms"][0]["is_full"]), (Some(0), &false.into()), "{result} {stderr}");
    assert!(stderr.contains(&format!("{others} does not have the snapshot")), "{stderr}");
    assert!(stderr.contains("so it is not of the same pool and is not asked again; leave it out"), "{stderr}");
    reversed.assert_newest_equals(&disk);
    assert_eq!((reversed.points().len(), world.client().snapshot_ids().len()), (2, 1));
    assert_eq!(stranger.snapshots(&world), [""; 0]);
    // A base that no host has any more: as with one address.
    let only = world.client().snapshot_ids().remove(0);
    assert_eq!(world.client().delete(&format!("/vms/{VM}/snapshots/{only}")).status, 200);
    let proxies = [0, 1].map(|_| Proxy::start(world.exporter.port));
    let pool = reversed.of_pool(&proxies.each_ref().map(|proxy| proxy.port));
    let (status, result, stderr) = attempt(&pool, &[]);
    assert_eq!((status, &result["vms"][0]["is_full"]), (Some(0), &false.into()), "{result} {stderr}");
    assert!(stderr.contains("the service does not have the base; only blocks with other checksums"), "{stderr}");
    pool.assert_newest_equals(&disk);
}

#[test]
fn a_host_without_its_storage_is_passed_over() {
    needs_root!();
    let world = World::new(512);
    let volume = Volume::xfs(512);
    let repository = make_repository(&volume.mount_point, "0004fb00000300000000000000000009");
    // Both define the VM on their own file systems, of which one goes away.
    let disk = make_disk(&repository, "a.img", MB);
    define_vm(&repository, VM, std::slice::from_ref(&disk));
    let exporter = Exporter::start(Settings::new(&world.certificates, &world.manager, &[&repository]));
    world.define_vm(&[("a.img", MB)]);
    run(Command::new("umount").arg("--lazy").arg(&volume.mount_point));
    let target = tempfile::tempdir().unwrap();
    let backup = Backup::new(&world, target.path()).of_pool(&[exporter.port, world.exporter.port]);
    let (status, stdout, stderr) = backup.try_run(&["snapshots", "create", VM, "--server", backup.url()]);
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    assert!(stderr.contains("(repository_unavailable"), "{stderr}");
    assert!(stderr.contains(&format!("going on with {}", address(world.exporter.port))), "{stderr}");
    assert_eq!(world.client().snapshot_ids().len(), 1);
    // In a backup too.
    let result = backup.back_up();
    assert_eq!(result["vms"].as_array().unwrap().len(), 1, "{result}");
}

#[test]
fn lists_of_addresses_that_cannot_be_are_refused() {
    needs_root!();
    let world = World::new(512);
    let (a, b) = (address(free_port()), address(free_port()));
    let home = tempfile::tempdir().unwrap();
    let backup = Backup::new(&world, home.path()).without_authority();
    let to = backup.directory.to_str().unwrap().to_owned();
    let list = |entries: &[&str]| entries.join(",");
    let (own, with_slash, insecure) = (list(&[&a, &a]), list(&[&a, &format!("{a}/api/v1/")]), list(&[&a, "http://b"]));
    let (bare, user, query) = (list(&[&a, "b"]), list(&[&a, "https://me@b"]), list(&[&a, "https://b/?x=1"]));
    let overlapping = [list(&[&a, &b]), b.clone()];
    for (servers, expected) in [
        (&[String::new()][..], "neither the address of a service (https://host:5544) nor a profile"),
        (&[list(&[&a, ""])], "has an empty entry"),
        (&[list(&["", &a])], "has an empty entry"),
        (&[",".to_owned()], "has an empty entry"),
        (&[own], "twice"),
        (&[with_slash], "twice"),
        (&[insecure], "\"http://b\" is not the address of a service: the service does not accept plain HTTP"),
        (&[bare], "\"b\" is not the address of a service: https:// is missing"),
        (&[user], "a user name does not belong here"),
        (&[query], "it has a query"),
        (&["prod,test".to_owned()], ""),
    ] {
        let server = servers[0].as_str();
        let (status, _, stderr) = backup.try_run(&["vms", "--server", server]);
        assert!(status == Some(2) && stderr.contains(expected) && stderr.lines().count() == 1, "{server}: {stderr}");
    }
    let (status, _, stderr) = backup.try_run(&["backup", &overlapping[0], &overlapping[1], "--all", "--to", &to]);
    assert!(status == Some(2) && stderr.contains(&format!("{b} is named twice")), "{stderr}");
    let (status, _, stderr) =
        backup.try_run(&["vms", "--server", &a, "--fingerprint", &format!("{},", "00".repeat(32))]);
    assert!(status == Some(2) && stderr.contains("\"\" is no SHA-256 of a certificate"), "{stderr}");
}
