//! Clients of all kinds and faults of all kinds at once: each byte that is served equals the file, each error is one
//! that its cause explains, and nothing is left at the end. And: the service is killed at random moments.
//!
//! `make soak` runs these tests for minutes and prints their figures; `make test` runs them for a minute.

mod clients;
mod faults;
mod kills;
mod site;
mod tally;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{ProcessStats, Random, eventually, for_a_while, memory_kib, perhaps_within};
use crate::{needs, needs_root};
use site::Site;

/// The value of an environment variable that is a number.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// What one of the services uses while it is idle.
#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: usize,
    threads: usize,
    /// Of its own: pages of the program and its libraries do not count.
    memory_kib: u64,
}

impl Site {
    /// What the service uses when the threads have ended that it keeps for the next request.
    fn settled_usage(&self, service: usize) -> Usage {
        let mut last = self.usage(service);
        eventually("the service uses the same for three seconds", || {
            for_a_while(Duration::from_secs(3));
            let found = self.usage(service);
            let is_settled = (found.descriptors, found.threads) == (last.descriptors, last.threads);
            last = found;
            is_settled
        });
        last
    }

    fn usage(&self, service: usize) -> Usage {
        let stats = ProcessStats::of(&self.services[service]);
        let memory_kib = memory_kib(self.services[service].pid(), "RssAnon");
        Usage { descriptors: stats.descriptors(), threads: stats.threads(), memory_kib }
    }

    /// Runs all clients for this time, with or without faults.
    fn run(&self, time: Duration, with_faults: bool) {
        let stop = AtomicBool::new(false);
        let started = Instant::now();
        let end = started + time;
        thread::scope(|scope| {
            let clients = clients::start(self, scope, &stop);
            let faults =
                with_faults.then(|| scope.spawn(|| faults::repeat(self, &mut Random(setting("SOAK_SEED", 1)), end)));
            perhaps_within(time, || clients.iter().any(|client| client.is_finished()));
            // The faults end with the repairs.
            if let Some(faults) = faults {
                faults.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        eprintln!("ran for {:?}", started.elapsed());
    }
}

#[test]
fn clients_and_faults_of_all_kinds_leave_no_wrong_byte_and_nothing_behind() {
    needs_root!();
    needs!(std::fs::exists("/dev/fuse").unwrap(), "FUSE");
    let seconds = setting("SOAK_SECONDS", 60);
    let site = Site::new();
    // The first requests start threads and fill pools, so what is used is compared after them.
    site.run(Duration::from_secs(5), false);
    let before = [0, 1].map(|service| site.settled_usage(service));
    site.run(Duration::from_secs(seconds), true);

    site.delete_all();
    for (service, before) in before.iter().enumerate() {
        let mut after = site.usage(service);
        // Connections and threads that are kept for the next request end after some time without one. Two threads more
        // may belong to work in the background.
        eventually("descriptors and threads are released", || {
            after = site.usage(service);
            after.descriptors <= before.descriptors + 2 && after.threads <= before.threads + 2
        });
        eprintln!("service {service}: before {before:?}, after {after:?}");
        let limit = before.memory_kib + (64 << 10);
        assert!(after.memory_kib <= limit, "service {service} has grown from {before:?} to {after:?}");
    }
    site.assert_nothing_is_left();
    site.tally.finish();
}
