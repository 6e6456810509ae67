//! The client is killed, and its calls fail, at every step of a backup: each point is whole, and the next run goes on.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::harness::{Backup, Fault, MB, Random, Shim, Volume, World, write_at};
use crate::needs_root;

/// The client with faults, and the disks as they were at each point.
struct FaultyBackup {
    world: World,
    target: Volume,
    backup: Backup,
    shim: Shim,
    disk: std::path::PathBuf,
    random: Random,
}

impl FaultyBackup {
    fn new() -> Self {
        let world = World::new(512);
        let target = Volume::xfs(512);
        let disk = world.define_vm(&[("a.img", 8 * MB)]).remove(0);
        write_at(&disk, 0, &Random(1).bytes(4 * MB));
        let backup = Backup::new(&world, &target.mount_point);
        backup.back_up();
        target.sync();
        Self { world, target, backup, shim: Shim::new(), disk, random: Random(2) }
    }

    fn change_the_disk(&mut self) {
        for _ in 0..4 {
            let at = self.random.below(7 * MB);
            write_at(&self.disk, at, &self.random.bytes(100_000));
        }
        write_at(&self.disk, 7 * MB, &vec![0; MB as usize]);
    }

    /// Runs a backup with a fault at the `n`-th step; returns its status.
    fn run_with_fault(&self, n: u32, fault: Fault) -> ExitStatus {
        self.shim.arm(n, fault);
        let mut command = self.backup.command(&self.backup.backup_arguments(&["-q"]));
        let output = command.envs(self.shim.environment()).output().unwrap();
        self.shim.disarm();
        output.status
    }

    /// Checks that every point has the checksums that it claims, and that the newest equals the disk.
    fn check(&self, what: &str) {
        let directory = self.backup.directory.to_str().unwrap();
        let (status, stdout, stderr) = self.backup.try_run(&["verify", directory, "-q"]);
        assert_eq!(status, Some(0), "{what}: {stdout}{stderr}");
        self.backup.assert_newest_equals(&self.disk);
        self.backup.run(&["prune", directory, "--keep-last", "2"]);
        assert!(self.world.client().snapshot_ids().len() <= 1, "{what}: a snapshot is left behind");
    }
}

/// Runs a backup with the fault at each of its steps, and `after_fault` with its status.
fn at_every_step(fault: Fault, after_fault: impl Fn(&FaultyBackup, &str, ExitStatus)) {
    let mut test = FaultyBackup::new();
    for n in 1.. {
        let what = format!("step {n}");
        test.change_the_disk();
        let status = test.run_with_fault(n, fault);
        if !test.shim.fault_occurred() {
            assert!(status.success(), "{what}: {status}");
            eprintln!("a backup has {} steps", n - 1);
            assert!(n > 20, "only {n} steps: the shim does not see the calls of the client");
            break;
        }
        after_fault(&test, &what, status);
        test.backup.back_up();
        test.check(&what);
    }
}

#[test]
fn a_point_is_whole_after_a_power_cut_at_every_step_of_its_backup() {
    needs_root!();
    at_every_step(Fault::KillAfter, |test, what, status| {
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{what}: {status}");
        test.target.cut_power();
    });
}

#[test]
fn a_call_that_fails_at_any_step_of_a_backup_costs_no_point() {
    needs_root!();
    at_every_step(Fault::Fail(Errno::EIO), |test, what, status| {
        // A failure that matters ends the run; after one that does not, the point is whole.
        if status.success() {
            test.check(&format!("{what}, at once"));
        } else {
            assert_eq!(status.code(), Some(1), "{what}: {status}");
        }
    });
}
