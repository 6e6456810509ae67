//! A device that hangs during downloads: few threads block, and other clients are served.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use reqwest::Method;

use crate::harness::{
    Client, Device, MB, OTHER_VM, ProcessStats, Random, Settings, VM, Volume, World, define_vm, eventually, make_disk,
    text, write_at,
};
use crate::{needs, needs_root};

/// The I/O priority class of each thread of the service.
fn classes(world: &World) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", world.exporter.pid())).unwrap();
    // A listed thread may have ended.
    let class = |thread: fs::DirEntry| {
        let ionice = Command::new("ionice").arg("-p").arg(thread.file_name()).output().unwrap();
        String::from_utf8(ionice.stdout).unwrap().trim().to_owned()
    };
    threads.map(|thread| class(thread.unwrap())).collect()
}

fn idle_threads(world: &World) -> usize {
    classes(world).iter().filter(|class| *class == "idle").count()
}

/// A healthy repository with [`VM`], and one with [`OTHER_VM`] on a device that can hang. Each VM has a snapshot.
///
/// Bind the fields in the order device, volume, world: the service has to be dropped first, the device last.
pub struct TwoRepositories {
    pub client: Client,
    pub world: World,
    /// The volume of the second repository.
    pub volume: Volume,
    pub device: Device,
    /// The snapshot of [`VM`].
    pub healthy_id: String,
    pub healthy_disk: PathBuf,
    /// The snapshot of [`OTHER_VM`], whose disk `b.img` has 64 MiB.
    pub id: String,
}

impl TwoRepositories {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let volume = Volume::xfs(512);
        let device = volume.behind_a_device();
        let (volume, second, world) = World::with_a_second_on(volume, 512, change);
        let healthy_disk = world.define_vm(&[("a.img", MB)]).remove(0);
        write_at(&healthy_disk, 0, &Random(1).bytes(MB));
        let disk = make_disk(&second, "b.img", 64 * MB);
        write_at(&disk, 0, &Random(2).bytes(64 * MB));
        define_vm(&second, OTHER_VM, &[disk]);
        let client = world.client();
        let healthy_id = client.take_snapshot_id();
        let id = text(&client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok()["id"]);
        Self { client, world, volume, device, healthy_id, healthy_disk, id }
    }
}

#[test]
fn hung_repository_blocks_few_threads_and_frees_slots() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let TwoRepositories { device, volume, world, client, healthy_id, healthy_disk, id } = TwoRepositories::new();
    // A request that computes a digest does not leave a thread with idle priority.
    let path = format!("/vms/{OTHER_VM}/snapshots/{id}/disks/b.img");
    let digest = client
        .request(Method::GET, &format!("/api/v1{path}"))
        .header("Range", "bytes=0-99")
        .header("Want-Content-Digest", "sha-256=1");
    assert_eq!(client.send(digest).status, 206);
    assert_eq!(idle_threads(&world), 0, "{:?}", classes(&world));
    volume.unmount();
    volume.mount();
    // Now the metadata is cached, but not the data.
    let range = |from: u64| {
        client.request(Method::GET, &format!("/api/v1{path}")).header("Range", format!("bytes={from}-{}", from + 4095))
    };
    assert_eq!(client.send(range(0)).status, 206);

    let threads = || ProcessStats::of(&world.exporter).threads();
    let hanging = device.hang();
    let send_range_from = |from: u64| world.send_get_with(&client, &path, &format!("Range: bytes={from}-\r\n"));
    // Twelve downloads take all slots, and read with idle priority.
    let readers: Vec<_> = (1..13).map(|n| send_range_from(n * 4 * MB)).collect();
    eventually("twelve threads read", || idle_threads(&world) == 12);
    drop(readers);
    // The slots are freed for others.
    eventually("another download is served", || {
        let request = client.request(Method::GET, &format!("/api/v1/vms/{VM}/snapshots/{healthy_id}/disks/a.img"));
        client
            .try_send(request.timeout(Duration::from_secs(60)))
            .is_ok_and(|answer| answer.body == fs::read(&healthy_disk).unwrap())
    });
    world.exporter.wait_for_log("releasing the download's slot");
    // Further requests get an error, and block no thread.
    assert_eq!(client.send(range(9 * MB).timeout(Duration::from_secs(30))).error(503), "repository_unavailable");
    let before = threads();
    for n in 0..100 {
        drop(send_range_from(n % 60 * MB));
    }
    eventually("the threads of disconnected clients end", || threads() <= before + 10);
    assert_eq!(client.send(client.request(Method::GET, "/healthz")).status, 200);
    drop(hanging);
    eventually("the repository responds again", || client.send(range(9 * MB)).status == 206);
    eventually("no thread reads", || idle_threads(&world) == 0);
    assert!(
        client.send(client.request(Method::GET, &format!("/api/v1{path}"))).body == Random(2).bytes(64 * MB),
        "the disk differs"
    );
}

#[test]
fn normal_io_class_does_not_read_with_idle_priority() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let volume = Volume::xfs(512);
    let device = volume.behind_a_device();
    let world = World::on(volume, |settings| settings.sections = "[export]\nio_class = \"normal\"\n".to_owned());
    write_at(&world.define_vm(&[("a.img", 16 * MB)])[0], 0, &Random(3).bytes(16 * MB));
    let client = world.client();
    let id = client.take_snapshot_id();
    world.volume.unmount();
    world.volume.mount();
    assert_eq!(client.disk_range(&id, "a.img", 0, 4096).len(), 4096);
    let hanging = device.hang();
    let observed = std::thread::scope(|scope| {
        scope.spawn(|| client.disk_range(&id, "a.img", 8 * MB, 4096));
        let pid = world.exporter.pid();
        let blocked_threads = || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads
                .filter(|thread| {
                    let stat = fs::read_to_string(thread.as_ref().unwrap().path().join("stat")).unwrap_or_default();
                    stat.contains("(connection) D ")
                })
                .count()
        };
        eventually("one thread reads", || blocked_threads() == 1);
        let found = classes(&world);
        drop(hanging);
        found
    });
    // ionice prints nothing for a thread that has ended.
    assert!(observed.iter().all(|class| class != "idle"), "{observed:?}");
}
