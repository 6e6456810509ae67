//! Policy limits, the selection of disks, and queues.

use std::fs;
use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Client, MB, OTHER_VM, SNAPSHOTS, VM, Volume, World, chunks, data, define_vm, define_vm_with, eventually,
    make_disk, make_repository, text, write_at, zero,
};
use crate::needs_root;

fn create(client: &Client, body: &str) -> Answer {
    let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
    client.send(request.header("Content-Type", "application/x-www-form-urlencoded").body(body.to_owned()))
}

fn names(snapshot: &Value) -> Vec<String> {
    snapshot["disks"].as_array().unwrap().iter().map(|disk| text(&disk["name"])).collect()
}

/// The numbers of running and waiting `creates` or `exports`.
fn queue(client: &Client, what: &str) -> (usize, usize) {
    let status = client.get("/status").ok();
    let count = |state: &str| status[what][state].as_array().unwrap().len();
    (count("running"), count("waiting"))
}

#[test]
fn disks_are_selected_by_name_tag_and_request() {
    needs_root!();
    let world = World::new(512);
    let path = world.repository.display().to_string();
    let disks = ["a.img", "b.img", "swap.img"].map(|name| make_disk(&world.repository, name, MB));
    disks.iter().for_each(|disk| write_at(disk, 8192, &[1; 8192]));
    let notes = json!({"swap.img": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "[NOBAK] swap"},
        "b.img": {"SIMPLE_NAME": "not [NOBAK]"}});
    fs::write(world.repository.join(".ovsmeta"), notes.to_string()).unwrap();
    fs::write(world.repository.join("ISOs/a.iso"), "an ISO").unwrap();
    let entries = ["a.img,xvda,w", "b.img,xvdb,w", "swap.img,xvdc,w"];
    let mut entries: Vec<String> = entries.iter().map(|entry| format!("'file:{path}/VirtualDisks/{entry}'")).collect();
    entries.push(format!("'file:{path}/ISOs/a.iso,xvdd:cdrom,r'"));
    define_vm_with(&world.repository, VM, &entries);
    let client = world.client();

    let vm = client.get(&format!("/vms/{VM}")).ok();
    assert_eq!(vm["snapshot_compatible"], true, "{vm}");
    let swap = &vm["disks"][2];
    assert_eq!((&swap["friendly_name"], &swap["snapshot_compatible"]), (&json!("[NOBAK] swap"), &json!(false)));
    assert_eq!(swap["incompatible_reason"], "its name starts with [NOBAK]");
    assert_eq!(vm["disks"][1]["snapshot_compatible"], true);

    for (body, taken) in [
        ("", vec!["a.img", "b.img"]),
        ("{}", vec!["a.img", "b.img"]),
        (r#"{"exclude_disks": ["b.img"]}"#, vec!["a.img"]),
        (r#"{"exclude_disks": ["xvda", "xvdd"]}"#, vec!["b.img"]),
        (r#"{"disks": ["xvdb", "a.img"]}"#, vec!["a.img", "b.img"]),
        (r#"{"disks": ["swap.img"]}"#, vec!["swap.img"]), // requested by name
    ] {
        assert_eq!(names(&create(&client, body).ok()), taken, "{body}");
    }
    // A disk that is missing in the base is full.
    let target = text(&create(&client, r#"{"disks": ["a.img", "b.img"]}"#).ok()["id"]);
    let base = text(&client.get(SNAPSHOTS).ok()[2]["id"]);
    let compared = client.compare(&target, &base);
    assert_eq!((&compared["disks"][0]["mode"], &compared["disks"][1]["mode"]), (&json!("incremental"), &json!("full")));
    assert_eq!(chunks(&compared["disks"][1]), [zero(0, 8192), data(8192, 8192), zero(16384, MB - 16384)]);

    let files = world.snapshot_files();
    for (body, code, expected) in [
        (r#"{"disks": ["c.img"]}"#, "unknown_disk", "xvda (a.img), xvdb (b.img)"),
        (r#"{"exclude_disks": ["xvdz"]}"#, "unknown_disk", "\"xvdz\""),
        (r#"{"disks": ["xvdd"]}"#, "unfit_disk", "xvdd cannot be snapshotted: a CD-ROM"),
        (r#"{"exclude_disks": ["xvda", "xvdb", "xvdc", "xvdd"]}"#, "no_disk_left", "keep at least one"),
        (r#"{"exclude_disks": ["xvda", "xvdb"]}"#, "not_snapshottable", "no disk to snapshot"),
        (r#"{"disks": ["xvda"], "exclude_disks": ["xvdb"]}"#, "bad_request", "use one of them"),
        (r#"{"disks": []}"#, "bad_request", "disks is empty"),
        (r#"{"disk": ["xvda"]}"#, "bad_request", "unknown field `disk`"),
        (r#"{"ttl": "3 parsecs"}"#, "bad_request", "72h"),
    ] {
        let answer = create(&client, body);
        assert_eq!(answer.error(400), code, "{body}");
        assert!(text(&answer.json()["details"]).contains(expected), "{body}: {}", answer.json());
    }
    assert_eq!(world.snapshot_files(), files, "something was written");

    // A disk that prevents a snapshot can be excluded explicitly.
    entries.push("'phy:/dev/mapper/3600,xvde,w'".to_owned());
    define_vm_with(&world.repository, VM, &entries);
    assert_eq!(create(&client, "").error(400), "not_snapshottable");
    assert_eq!(names(&create(&client, r#"{"exclude_disks": ["xvde"]}"#).ok()), ["a.img", "b.img"]);
}

#[test]
fn policy_limits_are_enforced_and_explained() {
    needs_root!();
    let policy = "max_snapshots_per_vm = 2\nmax_extents = 3";
    let mut world = World::with(512, |settings| settings.policy = policy.to_owned());
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[1; 4096]);
    let torn = make_disk(&world.repository, "torn.img", MB);
    define_vm(&world.repository, OTHER_VM, std::slice::from_ref(&torn));
    let client = world.client();
    let refused = |client: &Client, path: &str, status: u16, expected: &str| {
        let files = world.snapshot_files();
        let answer = client.post(path);
        let code = answer.error(status);
        assert!(text(&answer.json()["details"]).contains(expected), "{}", answer.json());
        assert_eq!(world.snapshot_files(), files, "something was written");
        code
    };
    let [first, _second] = [(); 2].map(|()| client.take_snapshot_id());
    assert_eq!(refused(&client, SNAPSHOTS, 409, "max_snapshots_per_vm"), "too_many_snapshots");
    let of_other = format!("/vms/{OTHER_VM}/snapshots");
    (0..3).for_each(|n| write_at(&torn, n * 16384, &[1; 4096]));
    client.post(&of_other).ok(); // three extents are allowed, and the other VM's snapshots do not count
    write_at(&torn, 3 * 16384, &[1; 4096]);
    assert_eq!(refused(&client, &of_other, 409, "torn.img has 4 extents"), "too_many_extents");
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    client.take_snapshot();

    for (floor, expected) in [("99%", "min_free_space"), ("600GiB", "600 GiB must stay free")] {
        world.exporter.settings().policy = format!("min_free_space = {floor:?}");
        world.exporter.restart();
        let client = world.client();
        let files = world.snapshot_files();
        let answer = client.post(SNAPSHOTS);
        assert_eq!(answer.error(507), "insufficient_space");
        assert!(text(&answer.json()["details"]).contains(expected), "{}", answer.json());
        assert_eq!(world.snapshot_files(), files, "something was written");
        let status = client.get("/status").ok();
        let repository = &status["repositories"][0];
        assert!(repository["free_bytes"].as_u64() < repository["min_free_bytes"].as_u64(), "{repository}");
    }
    world.exporter.settings().policy = "min_free_space = \"50%\"".to_owned();
    world.exporter.restart();
    world.client().take_snapshot();
}

#[test]
fn very_fragmented_disk_is_logged() {
    use nix::fcntl::{FallocateFlags, fallocate};
    needs_root!();
    let world = World::new(2048);
    let disk = &world.define_vm(&[("a.img", 0)])[0];
    let file = fs::File::options().write(true).open(disk).unwrap();
    // Allocates the file, and punches out every second block.
    let pieces = 100_001;
    fallocate(&file, FallocateFlags::empty(), 0, pieces * 8192).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    (0..pieces).for_each(|piece| fallocate(&file, punch, piece * 8192, 4096).unwrap());
    let client = world.client();
    client.take_snapshot();
    let log = world.exporter.log();
    let warning = log.lines().find(|line| line.contains("very many extents")).expect("no warning in the log");
    assert!(
        warning.contains("extents=100001") && warning.contains("disk=a.img") && warning.contains("WARN"),
        "{warning}"
    );
}

/// Two VMs on separate file systems.
fn two_vms(policy: &str) -> (Volume, PathBuf, World) {
    let volume = Volume::xfs(512);
    let second = make_repository(&volume.mount_point, "0004fb00000300000000000000000002");
    let world = World::with(512, |settings| {
        settings.paths.push(second.clone());
        settings.policy = policy.to_owned();
    });
    write_at(&world.define_vm(&[("a.img", MB)])[0], 0, &[1; 4096]);
    let disk = make_disk(&second, "b.img", MB);
    write_at(&disk, 0, &[2; 4096]);
    define_vm(&second, OTHER_VM, &[disk]);
    (volume, second, world)
}

#[test]
fn stuck_creation_does_not_block_other_vms() {
    needs_root!();
    let (_volume, _second, world) = two_vms("snapshot_concurrency = 2");
    let clients: Vec<Client> = (0..5).map(|_| world.client()).collect();
    let client = &clients[0];
    client.take_snapshot();
    let others = format!("/vms/{OTHER_VM}/snapshots");
    let id = text(&client.post(&others).ok()["id"]);
    let frozen = world.volume.freeze();
    std::thread::scope(|scope| {
        let stuck: Vec<_> = clients[1..].iter().map(|client| scope.spawn(|| client.post(SNAPSHOTS).status)).collect();
        eventually("one creation runs and three wait", || queue(client, "creates") == (1, 3));
        let answer = client.post(SNAPSHOTS);
        assert_eq!((answer.error(429), answer.header("retry-after")), ("throttled".to_owned(), "10"));
        // The other VM is not affected.
        assert_eq!(
            client.get(&format!("{others}/{id}/disks/b.img")).body,
            [[2; 4096].to_vec(), vec![0; 1_044_480]].concat()
        );
        let another = text(&client.post(&others).ok()["id"]);
        assert_eq!(client.delete(&format!("{others}/{id}")).status, 200);
        assert_eq!(client.get(&others).ok()[0]["id"], another);
        assert_eq!(queue(client, "creates"), (1, 3));
        drop(frozen);
        assert!(stuck.into_iter().all(|one| one.join().unwrap() == 200));
    });
    assert_eq!(queue(client, "creates"), (0, 0));
    assert_eq!(client.get(SNAPSHOTS).ok().as_array().unwrap().len(), 5);
}

#[test]
fn snapshot_concurrency_is_limited() {
    needs_root!();
    let (_volume, _second, world) = two_vms("snapshot_concurrency = 1");
    let clients: Vec<Client> = (0..3).map(|_| world.client()).collect();
    let others = format!("/vms/{OTHER_VM}/snapshots");
    clients.iter().for_each(|client| drop(client.post(&others).ok()));
    clients[0].take_snapshot();
    let frozen = world.volume.freeze();
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| clients[1].post(SNAPSHOTS).status);
        eventually("one creation runs", || queue(&clients[0], "creates") == (1, 0));
        let waits = scope.spawn(|| clients[2].post(&others).status);
        eventually("one request waits", || queue(&clients[0], "creates") == (1, 1));
        assert_eq!(clients[0].get(&others).ok().as_array().unwrap().len(), 3);
        drop(frozen);
        assert_eq!((stuck.join().unwrap(), waits.join().unwrap()), (200, 200));
    });
}

#[test]
fn export_queue_is_limited() {
    needs_root!();
    use std::io::Read;
    let world = World::with(512, |settings| settings.policy = "export_concurrency = 1".to_owned());
    let disk = &world.define_vm(&[("a.img", 64 * MB)])[0];
    write_at(disk, 0, &vec![7; 64 << 20]);
    let client = world.client();
    let id = client.take_snapshot_id();
    let disk_path = format!("{SNAPSHOTS}/{id}/disks/a.img");
    let path = format!("/api/v1{disk_path}");
    // Requests the disk; if `answered`, reads the beginning of the response.
    let ask = |answered: bool| {
        let mut stream = world.send_get(&client, &disk_path);
        if answered {
            stream.read_exact(&mut [0; 4096]).unwrap();
        }
        stream
    };
    let first = ask(true);
    eventually("the export is in the status", || queue(&client, "exports") == (1, 0));
    let export = client.get("/status").ok()["exports"]["running"][0].clone();
    assert_eq!((&export["snapshot_id"], &export["disk"], &export["vm_id"]), (&json!(id), &json!("a.img"), &json!(VM)));
    assert_eq!((&export["address"], &export["bytes_total"]), (&json!("127.0.0.1"), &json!(64 * MB)));
    let done = export["bytes_done"].as_u64().unwrap();
    assert!(0 < done && done < 64 * MB, "{export}");
    assert!(export["bytes_per_second"].as_u64() > Some(0) && export["seconds_left"].as_u64().is_some(), "{export}");

    // Requests without a disk body do not wait.
    assert_eq!(client.send(client.request(Method::HEAD, &path)).status, 200);
    assert_eq!(client.send(client.request(Method::GET, &path).header("Range", "bytes=x")).status, 416);
    let waiting: Vec<_> = (0..128).map(|_| ask(false)).collect();
    eventually("the queue is full", || queue(&client, "exports") == (1, 128));
    let refused = client.send(client.request(Method::GET, &path));
    assert_eq!((refused.error(429), refused.header("retry-after")), ("throttled".to_owned(), "10"));
    drop(waiting);
    eventually("disconnected clients leave the queue", || queue(&client, "exports") == (1, 0));
    std::thread::scope(|scope| {
        let last = scope.spawn(|| client.disk_range(&id, "a.img", 4096, 8192));
        eventually("one request waits", || queue(&client, "exports") == (1, 1));
        drop(first);
        assert_eq!(last.join().unwrap(), [7; 8192]);
    });
    eventually("all exports end", || queue(&client, "exports") == (0, 0));
}
