//! Two real exporters of one pool: the client goes on at the other when the one that serves it is killed.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Backup, Client, MB, Random, VM, Volume, World, eventually, text, write_at};
use crate::needs_root;

#[test]
fn a_chain_goes_on_at_the_other_exporter_when_one_is_killed() {
    needs_root!();
    let mut world = World::with(1024, |settings| settings.shared = true);
    let disk = world.define_vm(&[("a.img", 64 * MB)]).remove(0);
    let mut second = world.second_service(|settings| settings.shared = true);
    let target = Volume::xfs(512);
    let mut backup = Backup::new(&world, &target.mount_point);
    let (mut random, mut modes) = (Random(3), Vec::new());
    // In turn, one makes the snapshot and is killed while the client downloads its bytes.
    for number in 0..3 {
        write_at(&disk, random.below(40) * MB, &random.bytes(12 * MB));
        let mut ports = [world.exporter.port, second.port];
        ports.rotate_left(number % 2);
        backup = backup.of_pool(&ports);
        let mut command = backup.command(&backup.backup_arguments(&["--json", "--bandwidth", "8MiB"]));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let journal = backup.directory.join(VM).join(".partial/.journals/a.img");
        eventually("some bytes have arrived", || fs::metadata(&journal).is_ok_and(|file| file.len() > 0));
        let dying = if number % 2 == 0 { &mut world.exporter } else { &mut second };
        dying.kill();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains(&format!("; going on with https://127.0.0.1:{}\n", ports[1])), "{stderr}");
        dying.restart();
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        modes.push(result["vms"][0]["is_full"].as_bool().unwrap());
        backup.assert_newest_equals(&disk);
        for exporter in [&world.exporter, &second] {
            let ids = Client::logged_in(exporter, &world.certificates).snapshot_ids();
            assert_eq!(ids, [text(&result["vms"][0]["snapshot_id"])]);
        }
    }
    assert_eq!(modes, [true, false, false]);
}
