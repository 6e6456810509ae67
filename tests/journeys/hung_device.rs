//! A repository whose device hangs in the middle: what becomes of whoever reads there, and of all others.

use std::fs;
use std::process::Command;
use std::time::Duration;

use reqwest::Method;

use crate::harness::{
    MB, OTHER_VM, ProcessStats, Random, VM, Volume, World, define_vm, eventually, make_disk, text, write_at,
};
use crate::{needs, needs_root};

/// The I/O class of each of the service's threads that has one.
fn classes(world: &World) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", world.exporter.pid())).unwrap();
    // A thread may be gone when it is asked about.
    let class = |thread: fs::DirEntry| {
        let asked = Command::new("ionice").arg("-p").arg(thread.file_name()).output().unwrap();
        String::from_utf8(asked.stdout).unwrap().trim().to_owned()
    };
    threads.map(|thread| class(thread.unwrap())).collect()
}

fn idle(world: &World) -> usize {
    classes(world).iter().filter(|class| *class == "idle").count()
}

#[test]
fn hung_repository_blocks_few_threads_and_frees_slots() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let volume = Volume::xfs(512);
    let device = volume.behind_a_device();
    let (volume, second, world) = World::with_a_second_on(volume, 512);
    let good = world.define_vm(&[("a.img", MB)]).remove(0);
    write_at(&good, 0, &Random(1).bytes(MB));
    let disk = make_disk(&second, "b.img", 64 * MB);
    write_at(&disk, 0, &Random(2).bytes(64 * MB));
    define_vm(&second, OTHER_VM, &[disk]);
    let client = world.client();
    let (fine, id) = (client.take_snapshot_id(), {
        let made = client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok();
        text(&made["id"])
    });
    // Where digests are made, others are not let go first, and nothing stays behind.
    let path = format!("/vms/{OTHER_VM}/snapshots/{id}/disks/b.img");
    let digest = client
        .request(Method::GET, &format!("/api/v1{path}"))
        .header("Range", "bytes=0-99")
        .header("Want-Content-Digest", "sha-256=1");
    assert_eq!(client.send(digest).status, 206);
    assert_eq!(idle(&world), 0, "{:?}", classes(&world));
    volume.unmount();
    volume.mount();
    // Names and places are known by then, bytes are not.
    let range = |from: u64| {
        client.request(Method::GET, &format!("/api/v1{path}")).header("Range", format!("bytes={from}-{}", from + 4095))
    };
    assert_eq!(client.send(range(0)).status, 206);

    let threads = || ProcessStats::of(&world.exporter).threads();
    let hanging = device.hang();
    let send_range_from = |from: u64| {
        world.send_get_with(
            &client,
            &path,
            &format!(
                "Range: bytes={from}-
"
            ),
        )
    };
    // They take all the places, and read when nobody else wants to.
    let readers: Vec<_> = (1..13).map(|n| send_range_from(n * 4 * MB)).collect();
    eventually("twelve read", || idle(&world) == 12);
    drop(readers);
    // Others get them, in time.
    eventually("others are served", || {
        let asked = client.request(Method::GET, &format!("/api/v1/vms/{VM}/snapshots/{fine}/disks/a.img"));
        client
            .try_send(asked.timeout(Duration::from_secs(60)))
            .is_ok_and(|answer| answer.body == fs::read(&good).unwrap())
    });
    world.exporter.wait_for_log("another export takes the place");
    // Who asks for more of it is told, and costs no thread.
    assert_eq!(client.send(range(9 * MB).timeout(Duration::from_secs(30))).error(503), "repository_unavailable");
    let before = threads();
    for n in 0..100 {
        drop(send_range_from(n % 60 * MB));
    }
    eventually("the threads of clients that left are gone", || threads() <= before + 10);
    assert_eq!(client.send(client.request(Method::GET, "/healthz")).status, 200);
    drop(hanging);
    eventually("the repository is back", || client.send(range(9 * MB)).status == 206);
    eventually("nobody reads", || idle(&world) == 0);
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
    let reading = std::thread::scope(|scope| {
        scope.spawn(|| client.disk_range(&id, "a.img", 8 * MB, 4096));
        let pid = world.exporter.pid();
        let waits = || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads
                .filter(|thread| {
                    let stat = fs::read_to_string(thread.as_ref().unwrap().path().join("stat")).unwrap_or_default();
                    stat.contains("(connection) D ")
                })
                .count()
        };
        eventually("one reads", || waits() == 1);
        let found = classes(&world);
        drop(hanging);
        found
    });
    // Of a thread that is gone by then nothing is told.
    assert!(reading.iter().all(|class| class != "idle"), "{reading:?}");
}
