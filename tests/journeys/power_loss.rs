//! The power fails at any write of the device under the repository and the database, and the device has kept any part of
//! what was not flushed. The next start finds every snapshot that was confirmed, whole, and nothing else.

use coriolis_ovm_exporter::testing::Folder;

use crate::harness::{Bytes, Client, Clock, FaultTest, Random, SNAPSHOTS, Volume, WriteLog};
use crate::needs_root;

/// Replays of `make test`. `POWER_CUTS` sets another number.
const POWER_CUTS: u64 = 24;

/// An operation, and the number of logged writes when it was requested and when it was confirmed.
struct Step {
    what: &'static str,
    requested: usize,
    confirmed: usize,
    change: Change,
}

enum Change {
    Made(String, Bytes),
    Removed(String),
    Adopted(String, Bytes),
    /// The service was stopped and started.
    None,
}

/// Records what happens to snapshots, and when.
struct Recorder {
    test: FaultTest,
    log: WriteLog,
    steps: Vec<Step>,
}

impl Recorder {
    fn step(&mut self, what: &'static str, run: impl FnOnce(&mut FaultTest) -> Change) {
        let requested = self.log.flushed();
        let change = run(&mut self.test);
        self.steps.push(Step { what, requested, confirmed: self.log.flushed(), change });
    }

    fn create(&mut self, byte: u8, ttl: Option<&str>) -> String {
        let mut made = String::new();
        self.step("a creation", |test| {
            test.write(byte);
            let contents = test.disk_contents();
            made = match ttl {
                Some(ttl) => test.client.take_snapshot_with_ttl(ttl),
                None => test.client.take_snapshot_id(),
            };
            Change::Made(made.clone(), contents)
        });
        made
    }

    fn delete(&mut self, id: &str) {
        self.step("a deletion", |test| {
            assert_eq!(test.client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
            Change::Removed(id.to_owned())
        });
    }
}

/// A test with a database on the volume of the repository, and with a snapshot of another service.
fn prepared(clock: &Clock) -> (FaultTest, Bytes) {
    let mut test = FaultTest::on(Volume::xfs(320), |settings| {
        clock.load_into(settings);
        settings.db_file = Some(settings.paths[0].with_file_name("exporter.db"));
        settings.policy = "superseded_grace = \"0\"\n".to_owned();
    });
    // The stranger's snapshot is the oldest, so that it can be adopted.
    let own = test.confirmed.keys().next().unwrap().clone();
    test.delete(&own);
    test.write(0x33);
    let contents = test.disk_contents();
    let other = test.world.second_service(|_| {});
    test.strangers = vec![Client::logged_in(&other, &test.world.certificates).take_snapshot_id()];
    drop(other);
    (test, contents)
}

#[test]
fn confirmed_snapshots_survive_a_power_cut_at_any_write() {
    needs_root!();
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("POWER_SEED").unwrap_or_else(|| jiff::Timestamp::now().as_microsecond() as u64);
    eprintln!("POWER_SEED={seed}");
    let clock = Clock::new();
    let (mut test, of_stranger) = prepared(&clock);
    let stranger = test.strangers[0].clone();
    test.world.exporter.kill();
    let log = WriteLog::start(&test.world.volume);
    test.world.exporter.restart();
    test.client = test.world.client();

    let mut recorder = Recorder { test, log, steps: Vec::new() };
    recorder.step("an adoption", |test| {
        let (status, report) = test.world.exporter.command(&["adopt", "--manifests"]);
        assert!(status == Some(0) && report.contains("1 adopted"), "{report}");
        Change::Adopted(stranger.clone(), of_stranger.clone())
    });
    let short = recorder.create(1, Some("1h"));
    let second = recorder.create(2, None);
    recorder.delete(&second);
    recorder.create(3, None);
    recorder.step("a restart", |test| {
        test.world.exporter.restart();
        test.client = test.world.client();
        Change::None
    });
    recorder.step("a sweep", |test| {
        clock.pass(2);
        let swept = |test: &FaultTest| !test.world.lasting_client().snapshot_ids().contains(&short);
        for _ in 0..5 {
            clock.rounds(&test.world, 1);
            if swept(test) {
                break;
            }
        }
        assert!(swept(test), "the expired snapshot was not swept");
        test.client = test.world.lasting_client();
        Change::Removed(short.clone())
    });
    let last = recorder.create(4, None);
    recorder.delete(&last);

    let Recorder { mut test, log, steps } = recorder;
    test.world.exporter.kill();
    let mut log = log.stop(&test.world.volume);
    let (count, flushes) = (log.entries.len(), (0..log.entries.len()).filter(|n| log.is_flush(*n)).count());
    eprintln!("{count} writes and flushes, {flushes} flushes");
    assert!(flushes > 4 * steps.len(), "only {flushes} flushes: do those of the service reach the device?");

    let (mut random, cuts) = (Random(seed), number("POWER_CUTS").unwrap_or(POWER_CUTS));
    let length = count as u64 + 1;
    for n in 0..cuts {
        // One in each part of the log, so that every operation is met.
        let (from, to) = (n * length / cuts, (n + 1) * length / cuts);
        let end = (from + random.below((to - from).max(1))) as usize;
        let what = format!("POWER_SEED={seed}: a power cut after {end} of {count} writes");
        log.cut(end, &mut random, &test.world.volume.image());
        test.world.volume.mount();
        test.confirmed.clear();
        test.strangers = vec![stranger.clone()];
        let optional = expect(&mut test, &steps, end);
        test.world.exporter.restart();
        test.client = test.world.lasting_client();
        accept_adoption(&mut test, &steps, end);
        let running = steps.iter().find(|step| (step.requested..step.confirmed).contains(&end));
        let during = running.map_or("between two operations", |step| step.what);
        test.check(&format!("{what}, during {during}"), optional.as_ref());
        test.world.exporter.kill();
        test.world.volume.unmount();
    }
    test.world.volume.mount();
}

/// Sets which snapshots must exist after the first `end` writes. Returns the contents of one that may exist.
fn expect(test: &mut FaultTest, steps: &[Step], end: usize) -> Option<Bytes> {
    let mut optional = None;
    for step in steps.iter().filter(|step| step.requested < end || step.confirmed <= end) {
        let is_confirmed = step.confirmed <= end;
        match &step.change {
            Change::None => {}
            Change::Made(id, contents) if is_confirmed => drop(test.confirmed.insert(id.clone(), contents.clone())),
            Change::Made(_, contents) => optional = Some(contents.clone()),
            Change::Removed(id) => {
                let contents = test.confirmed.remove(id);
                optional = contents.filter(|_| !is_confirmed);
            }
            Change::Adopted(id, contents) if is_confirmed => {
                test.strangers.clear();
                test.confirmed.insert(id.clone(), contents.clone());
            }
            // See below.
            Change::Adopted(..) => {}
        }
    }
    optional
}

/// A snapshot whose adoption was not confirmed may have been adopted. Its files stay in any case.
fn accept_adoption(test: &mut FaultTest, steps: &[Step], end: usize) {
    for step in steps.iter().filter(|step| step.requested < end && end < step.confirmed) {
        if let Change::Adopted(id, contents) = &step.change
            && test.listed().contains(id)
        {
            test.strangers.clear();
            test.confirmed.insert(id.clone(), contents.clone());
        }
    }
}

#[test]
fn entries_that_a_failed_file_system_has_lost_are_not_confirmed() {
    needs_root!();
    let volume = Volume::xfs(320);
    let folder = Folder::open(&volume.mount_point).unwrap();
    folder.create_folder("snapshot", 0o750).unwrap();
    // Nothing of it has reached the disk.
    volume.shut_down();
    assert!(folder.sync().is_err());
}
