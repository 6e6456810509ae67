//! Which guests run on the host, as its loop devices tell, and a client that goes to the host of each.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{
    Backup, Client, MB, OTHER_VM, VM, World, define_vm, define_vm_with, eventually, make_disk, output, run, write_at,
};
use crate::needs_root;

/// A disk as Xen opens it for a guest.
struct Opened(String);

impl Opened {
    fn new(disk: &Path) -> Self {
        let device = output(Command::new("losetup").args(["--find", "--show"]).arg(disk));
        Self(device.trim().to_owned())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        run(Command::new("losetup").args(["--detach", &self.0]));
    }
}

/// What the list, and the document of each VM, say of both VMs.
fn runs_here(client: &Client) -> [Value; 2] {
    let listed = client.get("/vms").ok();
    [VM, OTHER_VM].map(|vm| {
        let entry = listed.as_array().unwrap().iter().find(|it| it["name"] == vm).unwrap();
        assert_eq!(client.get(&format!("/vms/{vm}")).ok()["runs_here"], entry["runs_here"]);
        entry["runs_here"].clone()
    })
}

fn define_both(world: &World) -> [PathBuf; 2] {
    let disk = world.define_vm(&[("a.img", MB)]).remove(0);
    write_at(&disk, 0, &[1; 8192]);
    let other = make_disk(&world.repository, "b.img", MB);
    define_vm(&world.repository, OTHER_VM, std::slice::from_ref(&other));
    [disk, other]
}

#[test]
fn a_vm_runs_here_if_a_loop_device_has_its_disk() {
    needs_root!();
    let world = World::new(512);
    let [disk, other] = define_both(&world);
    let client = world.client();
    let (here, unknown) = (json!(true), json!(null));
    assert_eq!(runs_here(&client), [unknown.clone(), unknown.clone()]);
    let first = Opened::new(&disk);
    assert_eq!(runs_here(&client), [here.clone(), unknown.clone()]);
    let second = Opened::new(&other);
    assert_eq!(runs_here(&client), [here.clone(), here.clone()]);
    drop(first);
    // Others may hold the device open for a moment.
    eventually("the guest has ended", || runs_here(&client) == [unknown.clone(), here.clone()]);
    // A disk that two VMs share, or that cannot be written, may be open for another VM.
    for mode in ["w!", "r"] {
        define_vm_with(&world.repository, OTHER_VM, &[format!("file:{},xvda,{mode}", other.display())]);
        assert_eq!(runs_here(&client), [unknown.clone(), unknown.clone()], "{mode}");
    }
    drop(second);
}

#[test]
fn a_client_of_a_pool_begins_at_the_host_of_each_guest() {
    needs_root!();
    let world = World::new(512);
    let [_, other] = define_both(&world);
    // This host is that of both services. So the first one is made not to see the loop devices.
    let hidden = world.second_service(|settings| {
        settings.launcher = ["unshare", "--mount", "sh", "-c", HIDE].map(str::to_owned).to_vec();
    });
    let guest = Opened::new(&other);
    let logged_in = Client::logged_in(&hidden, &world.certificates);
    assert_eq!((runs_here(&logged_in)[1].clone(), runs_here(&world.client())[1].clone()), (json!(null), json!(true)));
    let target = tempfile::tempdir().unwrap();
    let backup = Backup::new(&world, target.path()).of_pool(&[hidden.port, world.exporter.port]);
    let result = backup.back_up();
    assert_eq!((&result["failed"], result["vms"].as_array().unwrap().len()), (&json!([]), 2), "{result}");
    for (log, vm) in [(hidden.log(), VM), (world.exporter.log(), OTHER_VM)] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("action=\"create\"")).collect();
        assert!(lines.len() == 1 && lines[0].contains(vm), "{vm}: {log}");
    }
    drop(guest);
}

const HIDE: &str = "mount -t tmpfs none /sys/devices/virtual/block && exec \"$0\" \"$@\"";
