//! The tests that run in the guest.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::json;

use crate::harness::{
    Client, Fault, FaultTest, MB, Random, SNAPSHOTS, VM, Volume, World, chunks, define_vm, eventually, make_disk,
    make_repository, output, snapshot_folders, text, volume_space, write_at, xfs_io,
};
use crate::restore_invariant::{self, Scale};

/// The features that the tools of Oracle VM servers enable.
const FEATURES: &str = "refcount,sparse,unwritten,noinline-data";

/// Lists, snapshots, compares, downloads and deletes.
fn check_operations(world: &World, client: &Client) {
    let disk = &world.define_vm(&[("a.img", 4 * MB)])[0];
    write_at(disk, MB, &Random(1).bytes(2 * MB));
    let vm = client.get(&format!("/vms/{VM}")).ok();
    assert_eq!((&vm["snapshot_compatible"], &vm["disks"][0]["size"]), (&json!(true), &json!(4 * MB)), "{vm}");

    let full = client.take_snapshot();
    let (first, before) = (text(&full["id"]), fs::read(disk).unwrap());
    assert_eq!((&full["disks"][0]["mode"], &full["consistency"]), (&json!("full"), &json!("crash")));
    let mode = fs::metadata(text(&full["disks"][0]["path"])).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o440, "the mode is {mode:o}");
    assert!(client.disk(&first, "a.img") == before);
    assert!(client.patched(&full["disks"][0], &[]) == before);

    write_at(disk, 2 * MB + 4096, &[9; 4096]);
    // The range contains whole clusters of any size, so this makes a hole.
    xfs_io(disk, &[&format!("fpunch {MB} {MB}")]);
    let second = client.take_snapshot_id();
    let after = fs::read(disk).unwrap();
    let change = client.compare(&second, &first)["disks"][0].clone();
    assert_eq!(change["mode"], "incremental");
    assert!(client.patched(&change, &before) == after, "{change}");
    let listed: u64 = chunks(&change).iter().map(|chunk| chunk.length).sum();
    assert!(listed < 3 * MB, "{change}");
    assert!(chunks(&change).iter().any(|chunk| chunk.zero), "{change}");
    assert!(client.disk(&first, "a.img") == before, "the first snapshot has changed");

    // The cost is the hole and the clusters copied by the write: OCFS2 copies up to 1 MiB at once. The deletion frees
    // at least this space after OCFS2 has flushed its truncate log. Its local allocator may free more clusters, so
    // there is no upper bound.
    let cluster = fs::metadata(disk).unwrap().blksize();
    let costs = client.get("/status?cost=true").ok()["snapshots"].clone();
    let (cost, free) = (costs[0]["exclusive_bytes"].as_u64().unwrap(), || volume_space(&world.repository));
    assert!(costs[0]["id"] == first && (MB + cluster..=2 * MB).contains(&cost), "{costs}");
    let before = free();
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    eventually(&format!("{cost} bytes are freed in addition to {before} free bytes"), || free() >= before + cost);
    assert!(client.disk(&second, "a.img") == after, "the second snapshot has changed");
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
}

/// The number of kernel messages about a known OCFS2 bug (Linux 6.1) on a device: deleting a clone fails, and the
/// volume becomes read-only.
fn kernel_bug_count(device: &str) -> usize {
    let device = format!("({})", device.replace("/dev/", "device "));
    let log = output(&mut Command::new("dmesg"));
    log.lines().filter(|line| line.contains(&device) && line.contains("has empty extent block")).count()
}

/// Whether a panic reports a violated restore invariant, which names the seed. Other panics are failed steps, for
/// example on a volume that became read-only.
fn is_invariant_violation(panic: &Box<dyn std::any::Any + Send>) -> bool {
    panic.downcast_ref::<String>().is_some_and(|text| text.contains("RESTORE_SEED="))
}

/// Checks all operations, then the restore invariant for some seeds. If the kernel bug breaks the volume, the next
/// seed gets a new volume; at least half of the seeds have to complete.
fn check_volume(cluster: u64) {
    const WANTED: usize = 5;
    let largest = (4 * cluster).max(3 * MB / 2);
    let reach = (cluster * 3 / 2).max(96 << 10);
    let scale = Scale { chain: 3, largest, reach, zero_range: false, past_end: false, all_options: false };
    let new = || {
        let world = World::on(Volume::ocfs2(512, cluster, FEATURES), |_| {});
        let client = world.client();
        let faults = kernel_bug_count(&world.volume.device());
        (world, client, faults)
    };
    let (mut world, mut client, mut faults) = new();
    check_operations(&world, &client);

    let (mut listed, mut compared, mut done) = (0, 0, 0);
    // Different seeds for each cluster size.
    let first = cluster / 4096;
    for seed in restore_invariant::seeds(first..=first + 2 * WANTED as u64) {
        let started = std::time::Instant::now();
        match catch_unwind(AssertUnwindSafe(|| restore_invariant::check_history(&world, &client, seed, &scale))) {
            Ok(of_seed) => {
                (listed, compared, done) = (listed + of_seed.0, compared + of_seed.1, done + 1);
                println!("seed {seed}: {:.1} s", started.elapsed().as_secs_f32());
            }
            Err(panic) if !is_invariant_violation(&panic) && kernel_bug_count(&world.volume.device()) > faults => {
                println!("seed {seed}: the known kernel bug broke the volume");
                (world, client, faults) = new();
            }
            Err(panic) => resume_unwind(panic),
        }
        if done == WANTED {
            break;
        }
    }
    assert!(done >= WANTED.div_ceil(2), "the kernel broke too many volumes");
    assert!(listed > 0 && listed < compared, "{listed} bytes listed of {compared}");
    println!("clusters of {cluster} bytes: {done} histories, {listed} bytes listed of {compared}");
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn restore_invariant_holds_with_4_kib_clusters() {
    check_volume(4 << 10);
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn restore_invariant_holds_with_64_kib_clusters() {
    check_volume(64 << 10);
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn restore_invariant_holds_with_1_mib_clusters() {
    check_volume(1 << 20);
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn hundred_small_writes_list_only_their_blocks() {
    const SIZE: u64 = 64 * MB;
    for cluster in [4 << 10, 1 << 20] {
        let world = World::on(Volume::ocfs2(512, cluster, FEATURES), |_| {});
        let disk = &world.define_vm(&[("a.img", SIZE)])[0];
        write_at(disk, 0, &vec![0xa5; usize::try_from(SIZE).unwrap()]);
        let client = world.client();
        let base = client.take_snapshot_id();
        let mut random = Random(cluster);
        let mut written: Vec<u64> = (0..100).map(|_| random.below(SIZE / 4096) * 4096).collect();
        written.iter().zip(1..).for_each(|(at, byte)| write_at(disk, *at, &[byte; 4096]));
        written.sort_unstable();
        written.dedup();
        let target = client.take_snapshot_id();
        let part = |query: &str| {
            let path = format!("{SNAPSHOTS}/{target}?compareTo={base}{query}");
            client.get(&path).ok()["disks"][0].clone()
        };
        let plain = part("&refine=0");
        // On OCFS2 comparisons are refined by default.
        for refined in [part("&refine=4096"), part("")] {
            let listed = chunks(&refined);
            assert!(listed.iter().all(|chunk| !chunk.zero), "{refined}");
            let blocks: Vec<u64> = listed
                .iter()
                .flat_map(|chunk| (0..chunk.length / 4096).map(|block| chunk.start + block * 4096))
                .collect();
            assert_eq!(blocks, written);
            assert_eq!(refined["data_bytes"], json!(4096 * written.len()), "at most 409,600");
            assert_eq!(refined["candidate_bytes"], plain["data_bytes"]);
        }
        println!(
            "clusters of {cluster} bytes: {} bytes by the map, {} refined",
            plain["data_bytes"],
            written.len() * 4096
        );
    }
}

/// The ioctl(2) request numbers that the service uses while `operation` runs.
fn ioctl_requests(world: &World, operation: impl FnOnce()) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-X", "raw", "-e", "trace=ioctl", "-p", &world.exporter.pid().to_string(), "-o"]).arg(&trace);
    let mut strace = strace.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    // Kept open until the end, since strace also prints when it detaches.
    let mut stderr = BufReader::new(strace.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("attached"), "{line}");
    operation();
    kill(Pid::from_raw(i32::try_from(strace.id()).unwrap()), Signal::SIGTERM).unwrap();
    strace.wait().unwrap();
    let trace = fs::read_to_string(trace).unwrap();
    let request = |line: &str| Some(line.split_once("ioctl(")?.1.split(", ").nth(1)?.to_owned());
    trace.lines().filter_map(request).collect()
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn snapshot_spans_two_volumes_without_ficlone() {
    const REFLINK: &str = "0x40186f04";
    const FICLONE: [&str; 2] = ["0x40049409", "0x4020940d"]; // and FICLONERANGE
    let other = Volume::ocfs2(512, 1 << 20, FEATURES);
    let second = make_repository(&other.mount_point, "0004fb00000300000000000000000002");
    let small = Volume::ocfs2(512, 4096, FEATURES);
    let world = World::on(small, |settings| settings.paths.push(second.clone()));
    let disks = [make_disk(&world.repository, "a.img", MB), make_disk(&second, "a.img", 4 * MB)];
    define_vm(&world.repository, VM, &disks);
    disks.iter().zip(1..).for_each(|(disk, byte)| write_at(disk, 8192, &[byte; 65536]));
    let client = world.client();

    // The first snapshot after a mount also makes a trial clone, with the same ioctl.
    let mut made = Vec::new();
    let requests = ioctl_requests(&world, || made.push(client.take_snapshot()));
    let count = |numbers: &[&str]| requests.iter().filter(|request| numbers.contains(&request.as_str())).count();
    assert!(count(&[REFLINK]) >= 2 && count(&FICLONE) == 0, "{requests:?}");

    let before = disks.each_ref().map(|disk| fs::read(disk).unwrap());
    disks.iter().for_each(|disk| write_at(disk, 40960, &[7; 100]));
    made.push(client.take_snapshot());
    let ids: Vec<String> = made.iter().map(|snapshot| text(&snapshot["id"])).collect();
    let changes = client.compare(&ids[1], &ids[0])["disks"].as_array().unwrap().clone();
    for ((disk, change), before) in disks.iter().zip(&changes).zip(&before) {
        assert_eq!(change["mode"], "incremental", "{change}");
        assert!(client.patched(change, before) == fs::read(disk).unwrap(), "{change}");
    }
    assert!(second.join("CoriolisSnapshots").join(&ids[0]).exists());
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    assert_eq!(snapshot_folders(&second), Vec::<PathBuf>::new());
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn disk_stored_in_its_inode_is_compared() {
    let world = World::on(Volume::ocfs2(512, 64 << 10, "refcount,sparse,unwritten,inline-data"), |_| {});
    let disk = &world.define_vm(&[("a.img", 0)])[0];
    write_at(disk, 0, &[1; 2048]);
    File::open(disk).unwrap().sync_all().unwrap();
    assert!(inline(disk), "the volume stores no data in inodes");
    let client = world.client();
    let first = client.take_snapshot_id();
    let mut before = fs::read(disk).unwrap();
    // Overwritten in place, then grown out of the inode.
    for (offset, bytes) in [(512, [2; 512]), (1 << 20, [3; 512])] {
        write_at(disk, offset, &bytes);
        let target = client.take_snapshot_id();
        let base = if offset == 512 { first.clone() } else { text(&client.get(SNAPSHOTS).ok()[1]["id"]) };
        let change = client.compare(&target, &base)["disks"][0].clone();
        assert!(chunks(&change).iter().any(|chunk| chunk.start <= offset && !chunk.zero), "{change}");
        assert!(client.patched(&change, &before) == fs::read(disk).unwrap(), "{change}");
        before = fs::read(disk).unwrap();
    }
    assert!(!inline(disk));
}

/// Whether FIEMAP reports that the data is in the inode.
fn inline(disk: &PathBuf) -> bool {
    output(Command::new("filefrag").arg("-v").arg(disk)).contains("inline")
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn volume_without_reflinks_is_refused() {
    let world = World::on(Volume::ocfs2(512, 4096, "norefcount,sparse,unwritten"), |_| {});
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let vm = client.get(&format!("/vms/{VM}")).ok();
    assert_eq!(vm["snapshot_compatible"], false);
    let refused = client.post(SNAPSHOTS);
    assert_eq!(refused.error(400), "not_snapshottable");
    for reason in [text(&vm["reason"]), text(&refused.json()["details"])] {
        assert!(reason.contains("ocfs2") && reason.contains("reflinks") && reason.contains("refcount"), "{reason}");
    }
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(world.repository.join("VirtualDisks")).unwrap().count(), 1, "the trial clone left a file");
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn localflocks_does_no_harm_on_a_volume_that_no_cluster_shares() {
    let volume = Volume::ocfs2(512, 4096, FEATURES);
    volume.unmount();
    volume.mount_with("heartbeat=none,localflocks");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(volume.mount_point.to_str().unwrap())).unwrap();
    assert!(mount.contains("localflocks") && mount.contains("heartbeat=none"), "{mount}");
    let world = World::on(volume, |_| {});
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn disk_with_space_past_its_end_is_refused() {
    const SIZE: u64 = 2 * MB - 100;
    let world = World::on(Volume::ocfs2(512, 64 << 10, FEATURES), |_| {});
    let disk = &world.define_vm(&[("a.img", SIZE)])[0];
    write_at(disk, 0, &[1; 65536]);
    let client = world.client();
    let faults = kernel_bug_count(&world.volume.device());
    let take_and_delete = || {
        let id = client.take_snapshot_id();
        assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
    };
    // Preallocation inside the last cluster is accepted.
    xfs_io(disk, &[&format!("falloc {} 100", SIZE - 100), "fsync"]);
    take_and_delete();
    xfs_io(disk, &["falloc -k 4m 64k"]);
    let vm = client.get(&format!("/vms/{VM}")).ok();
    assert_eq!(vm["snapshot_compatible"], false);
    let remedy = format!("truncate --size={SIZE} {}", disk.display());
    assert!(text(&vm["reason"]).contains(&remedy), "{vm}");
    assert_eq!(client.post(SNAPSHOTS).error(400), "not_snapshottable");

    output(Command::new("sh").args(["-c", &remedy]));
    assert_eq!(client.get(&format!("/vms/{VM}")).ok()["snapshot_compatible"], true);
    take_and_delete();
    assert_eq!(kernel_bug_count(&world.volume.device()), faults);
}

#[test]
#[ignore = "runs in the guest of tests/ocfs2"]
fn snapshots_survive_a_kill_during_a_creation() {
    let mut test = FaultTest::on(Volume::ocfs2(512, 4096, FEATURES), |_| {});
    let mut killed = 0;
    // Not at every step, since a start takes seconds in the guest.
    for n in (3..).step_by(6) {
        let what = format!("creation, step {n}");
        test.write(n as u8);
        let contents = test.disk_contents();
        if let Some(answer) = test.request_with_fault(n, Fault::KillBefore, Method::POST, SNAPSHOTS) {
            test.confirmed.insert(text(&answer.ok()["id"]), contents);
            assert_eq!(test.check(&what, None), None);
            break;
        }
        killed += 1;
        test.restart(Fault::KillBefore);
        if let Some(id) = test.check(&what, Some(&contents)) {
            test.delete(&id);
        }
    }
    assert!(killed > 2, "killed {killed} times");
}
