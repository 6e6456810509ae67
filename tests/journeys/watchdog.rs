//! What the service manager hears of the running service: a line about its state, and keep-alives while it serves.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{MB, ServiceManager, VM, World, eventually, run};
use crate::hung_device::TwoRepositories;
use crate::{needs, needs_root};

/// The service has to be alive three times in it.
const WATCHDOG: Duration = Duration::from_millis(600);

#[test]
fn status_line_says_what_the_service_has() {
    needs_root!();
    let manager = ServiceManager::default();
    let world = World::with(512, |settings| manager.set(settings, None));
    world.define_vm(&[("a.img", MB)]);
    eventually("the service is ready", || !manager.heard().is_empty());
    assert_eq!(manager.heard()[0], "READY=1\nSTATUS=serving 0 snapshots of 0 VMs");
    let client = world.client();
    client.take_snapshot();
    client.take_snapshot();
    manager.wait_for_status("serving 2 snapshots of 1 VM");
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots")).status, 200);
    world.volume.unmount();
    manager.wait_for_status("serving 0 snapshots of 0 VMs; 1 repository unavailable");
    world.volume.mount();
    eventually("the repository is back", || manager.status() == "serving 0 snapshots of 0 VMs");
    assert_eq!(manager.keep_alives(), 0, "no watchdog was asked for");
    world.exporter.signal(Signal::SIGTERM);
    manager.wait_for_status("stopping");
}

#[test]
fn a_service_that_can_serve_nothing_sends_no_keep_alive() {
    needs_root!();
    let manager = ServiceManager::default();
    let world = World::with(512, |settings| manager.set(settings, Some(WATCHDOG)));
    eventually("keep-alives", || manager.keep_alives() > 2);
    // Without descriptors it can serve no connection.
    let pid = world.exporter.pid().to_string();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard = line.split_whitespace().nth(4).unwrap().to_owned();
    let set = |soft: &str| run(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:{hard}")]));
    set("3");
    world.exporter.wait_for_log("no keep-alive for the service manager");
    manager.forget();
    let refused = || world.exporter.log().matches("no keep-alive for the service manager").count();
    let before = refused();
    eventually("three times the time between keep-alives has passed", || refused() >= before + 3);
    assert_eq!(manager.keep_alives(), 0);
    assert!(world.exporter.log().contains("no connection can be served"), "{}", world.exporter.log());
    // As soon as it works again, it says so.
    set(&hard);
    eventually("keep-alives", || manager.keep_alives() > 0);
    world.client().get("/vms").ok();
}

#[test]
fn a_hung_repository_does_not_stop_the_keep_alives() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let manager = ServiceManager::default();
    let TwoRepositories { device, volume, world, client, id, .. } =
        TwoRepositories::with(|settings| manager.set(settings, Some(WATCHDOG)));
    volume.unmount();
    volume.mount();
    let hanging = device.hang();
    let path = format!("/vms/{}/snapshots/{id}", crate::harness::OTHER_VM);
    for route in ["", "/disks/b.img", "/disks/b.img/chunks", "/disks/b.img/checksum"] {
        drop(world.send_get_with(&client, &format!("{path}{route}"), ""));
    }
    world.exporter.wait_for_log("does not respond");
    manager.forget();
    eventually("keep-alives", || manager.keep_alives() > 3);
    assert!(!world.exporter.log().contains("no keep-alive"), "{}", world.exporter.log());
    drop(hanging);
}
