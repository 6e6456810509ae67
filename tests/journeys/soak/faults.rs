//! The faults, one after the other, each with its repair.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::Method;

use super::site::{Place, Site, faulty};
use crate::harness::{Random, eventually, for_a_while, run};

/// Repeats faults until `end`.
pub fn repeat(site: &Site, random: &mut Random, end: Instant) {
    let faults = [hang, die, fill, renew_certificates, fail_hooks, leap];
    let mut number = random.below(faults.len() as u64) as usize;
    while Instant::now() < end && !site.tally.has_failed() {
        let time = Duration::from_millis(500 + random.below(4000));
        faults[number % faults.len()](site, time);
        number += 1;
    }
}

/// The device of a repository does not respond.
fn hang(site: &Site, time: Duration) {
    site.tally.count("fault: a repository hangs");
    let place = &site.places[faulty::HANGING];
    place.trouble.begin();
    let hanging = place.device.as_ref().unwrap().hang();
    for_a_while(time);
    drop(hanging);
    wait_until_served(site, place);
}

/// All reads and writes of a repository fail; then it is mounted again.
fn die(site: &Site, time: Duration) {
    site.tally.count("fault: a repository dies");
    let place = &site.places[faulty::DYING];
    place.trouble.begin();
    place.volume.shut_down();
    for_a_while(time);
    let unmount = || run(Command::new("umount").arg("--lazy").arg(&place.volume.mount_point));
    unmount();
    // Until the last open file of it is closed, the kernel mounts the dead file system again.
    eventually("the repository is mounted", || {
        let is_mounted = place.volume.try_mount();
        let is_alive = is_mounted && fs::read_dir(&place.repository).is_ok();
        if is_mounted && !is_alive {
            unmount();
        }
        is_alive
    });
    wait_until_served(site, place);
}

fn fill(site: &Site, time: Duration) {
    site.tally.count("fault: a repository is full");
    let place = &site.places[faulty::FULL];
    place.trouble.begin();
    place.fill();
    for_a_while(time);
    place.remove_filler();
    wait_until_served(site, place);
}

fn renew_certificates(site: &Site, _: Duration) {
    site.tally.count("fault: the certificate is renewed");
    site.certificates.issue("server");
    for service in &site.services {
        service.signal(Signal::SIGHUP);
    }
}

fn fail_hooks(site: &Site, time: Duration) {
    site.tally.count("fault: hooks fail");
    site.failing_hooks.begin();
    fs::write(site.hooks.at("fail"), "").unwrap();
    for_a_while(time);
    fs::remove_file(site.hooks.at("fail")).unwrap();
    site.failing_hooks.end();
}

/// The wall clock of the first service leaps ahead, and back.
fn leap(site: &Site, time: Duration) {
    site.tally.count("fault: the clock leaps");
    site.leap.begin();
    site.clock.leap(1);
    for_a_while(time);
    site.clock.leap(-1);
    site.leap.end();
}

/// Waits until both services can use the repository again.
fn wait_until_served(site: &Site, place: &Place) {
    let id = place.repository.file_name().unwrap().to_str().unwrap();
    for service in [0, 1] {
        let client = site.client(service);
        eventually("the repository is served again", || {
            let answer = client.send(client.request(Method::GET, "/api/v1/repositories"));
            answer.status == 200
                && answer.json().as_array().unwrap().iter().any(|found| found["id"] == *id && found["status"] == "ok")
        });
    }
    place.trouble.end();
}
