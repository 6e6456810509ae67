//! A database is rebuilt while repositories cannot be searched: what is not known is not said not to exist.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::database_damage::{damage, start_rebuilding_service};
use crate::harness::{Client, Clock, MB, OTHER_VM, SNAPSHOTS, VM, Volume, World, eventually, run, text};
use crate::{needs, needs_root};

fn database(world: &World) -> Value {
    world.lasting_client().get("/status").ok()["database"].clone()
}

fn problems(client: &Client) -> Value {
    client.send(client.request(Method::GET, "/readyz")).json()["problems"].clone()
}

fn of_other_vm(client: &Client) -> String {
    text(&client.post(&format!("/vms/{OTHER_VM}/snapshots")).ok()["id"])
}

/// A file that cannot be read, until this is dropped: reading the memory of this process at 0 fails with EIO.
struct Unreadable(PathBuf);

impl Unreadable {
    fn new(file: PathBuf) -> Self {
        let memory = format!("/proc/{}/mem", std::process::id());
        run(Command::new("mount").args(["--bind", &memory]).arg(&file));
        Self(file)
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn folder_that_cannot_be_read_is_reported_and_searched_again() {
    needs_root!();
    let clock = Clock::new();
    let (_volume, second, mut world) = World::with_two_repositories(512);
    let client = start_rebuilding_service(&mut world, &second, &clock);
    let [found, hidden] = [(); 2].map(|()| client.take_snapshot_id());
    let other = of_other_vm(&client);
    world.exporter.kill();
    damage(&world.exporter.db_file());
    let unreadable = Unreadable::new(world.snapshot_folder(&hidden).join(".manifest.json"));
    world.exporter.restart();

    let client = world.lasting_client();
    let state = database(&world);
    assert_eq!(state["rebuilding"], true);
    let [part] = &state["unsearched"].as_array().unwrap()[..] else { panic!("{state}") };
    assert!(text(&part["path"]).ends_with(&hidden) && text(&part["reason"]).contains("cannot be read"), "{part}");
    assert!(problems(&client).as_array().unwrap().contains(&json!("the database is being rebuilt")));
    // The answers about this VM, and about any snapshot that was not found.
    // The manifest that cannot be read may be of any VM.
    let of_other = format!("/vms/{OTHER_VM}/snapshots");
    for path in [SNAPSHOTS, &format!("{SNAPSHOTS}/{hidden}"), &of_other, &format!("{of_other}/{hidden}")] {
        let answer = client.get(path);
        assert_eq!(answer.header("retry-after"), "60");
        assert_eq!(answer.error(503), "database_rebuilding", "{path}");
    }
    for path in [SNAPSHOTS, &of_other] {
        assert_eq!(client.delete(path).error(503), "database_rebuilding");
    }
    let comparison = client.get(&format!("{SNAPSHOTS}/{found}?compareTo={hidden}"));
    assert_eq!(comparison.error(503), "database_rebuilding");
    // What is known is served.
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{found}")).ok()["id"], json!(found));
    let vms = client.get("/vms").ok();
    for (vm, ids) in [(VM, &found), (OTHER_VM, &other)] {
        let listed = vms.as_array().unwrap().iter().find(|entry| entry["name"] == vm).unwrap();
        for document in [listed, &client.get(&format!("/vms/{vm}")).ok()] {
            assert_eq!(document["snapshots"], json!([ids]));
            assert_eq!(document["snapshots_incomplete"], true, "{document}");
        }
    }
    let (_, page) = world.exporter.command(&["status"]);
    assert!(page.contains("is being rebuilt") && page.contains(&hidden), "{page}");

    drop(unreadable);
    clock.rounds(&world, 1);
    eventually("the rebuilding is complete", || database(&world)["rebuilding"] == false);
    let client = world.lasting_client();
    assert_eq!(client.snapshot_ids(), [found, hidden]);
    assert_eq!(problems(&client), json!([]));
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{}", uuid::Uuid::nil())).error(404), "not_found");
}

#[test]
fn definitions_that_cannot_be_read_keep_no_snapshot_from_being_rebuilt() {
    needs_root!();
    let mut world = World::with(512, |settings| settings.top = "db_rebuild = true\n".to_owned());
    world.define_vm(&[("a.img", MB)]);
    let id = world.client().take_snapshot_id();
    world.exporter.kill();
    damage(&world.exporter.db_file());
    let definitions = world.repository.join("VirtualMachines");
    fs::rename(&definitions, world.repository.join("moved")).unwrap();
    fs::write(&definitions, "").unwrap();
    world.exporter.restart();
    let client = world.lasting_client();
    assert_eq!(client.get("/vms").error(503), "repository_unavailable");
    assert_eq!(database(&world)["rebuilding"], false);
    assert_eq!(client.snapshot_ids(), [id]);
}

#[test]
fn hung_repository_keeps_the_service_neither_from_starting_nor_from_stopping() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let clock = Clock::new();
    let volume = Volume::xfs(512);
    let device = volume.behind_a_device();
    let (volume, second, mut world) = World::with_a_second_on(volume, 512, |_| {});
    let client = start_rebuilding_service(&mut world, &second, &clock);
    let (here, there) = (client.take_snapshot_id(), of_other_vm(&client));
    world.exporter.kill();
    damage(&world.exporter.db_file());
    // So that nothing of it is cached.
    volume.unmount();
    volume.mount();
    let hanging = device.hang();
    world.exporter.restart();
    let client = world.lasting_client();
    eventually("the other repository is searched", || client.get(&format!("{SNAPSHOTS}/{here}")).status == 200);
    assert_eq!(database(&world)["rebuilding"], true);
    assert_eq!(client.get(SNAPSHOTS).error(503), "database_rebuilding");
    // Not even its VM is known.
    assert_eq!(client.get(&format!("/vms/{OTHER_VM}/snapshots/{there}")).error(503), "repository_unavailable");
    world.exporter.signal(Signal::SIGTERM);
    world.exporter.wait_for_log(" stopped\n");
    // The kernel keeps the process until the read of the repository ends.
    drop(hanging);
    let status = world.exporter.wait(Duration::from_secs(60));
    assert!(status.success(), "{status}: {}", world.exporter.log());
    world.exporter.restart();
    clock.rounds(&world, 1);
    eventually("the rebuilding is complete", || database(&world)["rebuilding"] == false);
    let listed = world.lasting_client().get(&format!("/vms/{OTHER_VM}/snapshots")).ok();
    assert_eq!(listed[0]["id"], json!(there));
}
