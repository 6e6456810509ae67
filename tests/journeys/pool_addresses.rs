//! A client with several addresses of one pool: the work goes on at another when one dies, whatever it was doing.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Backup, HookDir, MB, Proxy, Random, Volume, World, eventually, free_port, write_at};
use crate::needs_root;

/// A service with two addresses.
struct Pool {
    world: World,
    _target: Volume,
    disk: PathBuf,
    backup: Backup,
    proxies: [Proxy; 2],
}

impl Pool {
    fn new() -> Self {
        Self::of(World::new(1024))
    }

    fn of(world: World) -> Self {
        let target = Volume::xfs(512);
        let disk = world.define_vm(&[("a.img", 64 * MB)]).remove(0);
        write_at(&disk, 0, &Random(7).bytes(16 * MB));
        let proxies = [0, 1].map(|_| Proxy::start(world.exporter.port));
        let ports = proxies.each_ref().map(|proxy| proxy.port);
        let backup = Backup::new(&world, &target.mount_point).of_pool(&ports);
        Self { world, _target: target, disk, backup, proxies }
    }

    fn name(&self, host: usize) -> String {
        format!("https://127.0.0.1:{}", self.proxies[host].port)
    }

    /// Backs up, which has to succeed; returns the result of the VM and standard error.
    fn back_up(&self) -> (Value, String) {
        let (status, stdout, stderr) = self.backup.try_run(&self.backup.backup_arguments(&["--json"]));
        assert_eq!(status, Some(0), "{stdout}{stderr}");
        let mut result: Value = serde_json::from_str(&stdout).unwrap();
        (result["vms"][0].take(), stderr)
    }

    fn check(&self) {
        self.backup.assert_newest_equals(&self.disk);
        assert_eq!(self.world.client().snapshot_ids().len(), 1);
    }
}

#[test]
fn a_backup_goes_on_at_another_host_wherever_one_dies() {
    needs_root!();
    let pool = Pool::new();
    let mut random = Random(5);
    // Within the log-in, the lists, the creation, the comparison and the downloads.
    let mut is_full = true;
    for bytes in [100, 3000, 5000, 7000, 9000, 12_000, 16_000, 5 * MB] {
        write_at(&pool.disk, random.below(40) * MB, &random.bytes(8 * MB));
        let [first, second] = &pool.proxies;
        let before = (first.cuts(), second.passed());
        first.end_after(bytes);
        let (result, stderr) = pool.back_up();
        assert_eq!(result["is_full"], is_full, "{bytes}: {result}");
        assert!(first.cuts() > before.0 && second.passed() > before.1, "{bytes}: the first host did not die: {stderr}");
        let line = format!("; going on with {}", pool.name(1));
        let lines: Vec<&str> = stderr.lines().filter(|printed| printed.ends_with(&line)).collect();
        assert_eq!(lines.len(), 1, "{bytes}: {stderr}");
        assert!(lines[0].starts_with(&format!("{}: ", pool.name(0))), "{bytes}: {stderr}");
        first.accept();
        pool.check();
        is_full = false;
    }
    pool.backup.run(&["verify", pool.backup.directory.to_str().unwrap(), "--against", pool.backup.url(), "-q"]);
}

#[test]
fn a_creation_whose_answer_is_lost_is_not_made_twice_by_another_host() {
    needs_root!();
    let hooks = HookDir::new();
    let pool = Pool::of(World::with(1024, |settings| settings.sections = hooks.section("")));
    let client = pool.world.client();
    pool.back_up();
    let base = client.snapshot_ids();
    write_at(&pool.disk, 20 * MB, &Random(1).bytes(3 * MB));
    let [first, second] = &pool.proxies;
    hooks.put("wait", "touch $OUT/waiting; while [ ! -e $OUT/go-on ]; do sleep 0.1; done");
    let mut child = pool.backup.command(&pool.backup.backup_arguments(&["-q"])).spawn().unwrap();
    hooks.wait_for("waiting");
    first.hold();
    fs::write(hooks.at("go-on"), "").unwrap();
    eventually("the snapshot is there", || client.snapshot_ids().len() > 1);
    first.die();
    assert!(child.wait().unwrap().success());
    let ids = client.snapshot_ids();
    assert!(ids.len() == 1 && ids != base, "{ids:?} after {base:?}");
    assert!(second.passed() > 0, "the second host was not asked");
    pool.check();
}

#[test]
fn pages_of_a_comparison_come_from_several_hosts() {
    needs_root!();
    let pool = Pool::new();
    let disk = pool.world.define_vm(&[("a.img", 256 * MB)]).remove(0);
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    let chunks = 25_000;
    for number in 0..chunks {
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], number * 8192).unwrap();
    }
    file.sync_all().unwrap();
    let estimate = || {
        let printed = pool.backup.run(&pool.backup.backup_arguments(&["--json", "--dry-run"]));
        serde_json::from_str::<Value>(&printed).unwrap()["vms"][0]["disks"][0]["data_bytes"].clone()
    };
    let before = pool.proxies[0].passed();
    assert_eq!(estimate(), chunks * 4096);
    let all = pool.proxies[0].passed() - before;
    // Within the first of two pages, and within the second.
    for bytes in [all / 2, all - 100_000] {
        let before = pool.proxies[1].passed();
        pool.proxies[0].end_after(bytes);
        assert_eq!(estimate(), chunks * 4096);
        assert!(pool.proxies[1].passed() > before, "{bytes} of {all}");
        pool.proxies[0].accept();
    }
}

#[test]
fn hosts_are_asked_in_order_and_all_of_them_may_be_down_for_a_while() {
    needs_root!();
    let pool = Pool::new();
    let [first, second] = &pool.proxies;
    // As long as the first answers, the second gets only the question for its VMs.
    pool.back_up();
    assert!(second.passed() < 20_000, "{} bytes", second.passed());
    // Every command takes several addresses, and the first may be dead.
    let dead = format!("https://127.0.0.1:{},{}", free_port(), pool.backup.url());
    let (status, stdout, stderr) = pool.backup.try_run(&["vms", "--server", &dead, "--json"]);
    assert!(status == Some(0) && stderr.contains("cannot connect: Connection refused"), "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap().as_array().unwrap().len(), 1);
    let id = pool.world.client().snapshot_ids().remove(0);
    let disk = format!("{}/{id}/a.img", crate::harness::VM);
    let cat = pool.backup.command(&["cat", &dead, &disk]).output().unwrap();
    assert!(cat.stdout == fs::read(&pool.disk).unwrap(), "{}", String::from_utf8_lossy(&cat.stderr));
    // None answers: as with one address, it is tried again.
    first.die();
    second.die();
    write_at(&pool.disk, 20 * MB, &Random(1).bytes(MB));
    let (status, _, stderr) = pool.backup.try_run(&pool.backup.backup_arguments(&["--patience", "1s"]));
    assert_eq!(status, Some(75), "{stderr}");
    let both = format!("{},{}: ", pool.name(0), pool.name(1));
    assert!(stderr.contains("trying again for up to 1s") && stderr.contains(&format!("{both}failed: ")), "{stderr}");
    let mut child = pool.backup.command(&pool.backup.backup_arguments(&["-q"])).spawn().unwrap();
    let before = second.refused();
    eventually("both were asked several times", || second.refused() > before + 1);
    second.accept();
    assert!(child.wait().unwrap().success());
    pool.check();
}

#[test]
fn a_download_goes_back_and_forth_between_hosts_that_fail_in_turn() {
    needs_root!();
    let pool = Pool::new();
    for proxy in &pool.proxies {
        proxy.break_each_after(2 * MB + 99);
    }
    let (result, _) = pool.back_up();
    assert_eq!(result["transferred_bytes"], 16 * MB, "{result}");
    for proxy in &pool.proxies {
        assert!(proxy.connections() > 3, "{} connections", proxy.connections());
    }
    pool.check();
    assert_eq!(json!(pool.backup.points().len()), 1);
}
