//! Snapshots in a repository that was removed from the config.

use crate::harness::{MB, VM, World, define_vm, make_disk};
use crate::needs_root;

#[test]
fn snapshot_is_deleted_if_a_repository_left_the_config() {
    needs_root!();
    let (_volume, second, mut world) = World::with_two_repositories(512);
    define_vm(&world.repository, VM, &[make_disk(&world.repository, "a.img", MB), make_disk(&second, "b.img", MB)]);
    let client = world.client();
    let snapshots = format!("/vms/{VM}/snapshots");
    let [first, second_one] = std::array::from_fn(|_| client.take_snapshot_id());
    let folder = |id: &str| world.snapshot_folder(id);
    let [first_folder, second_folder] = [folder(&first), folder(&second_one)];
    world.exporter.settings().paths.pop();
    world.exporter.restart();
    let client = world.client();
    assert_eq!(client.delete(&format!("{snapshots}/{first}")).status, 200);
    assert!(!first_folder.exists() && second_folder.exists());
    assert_eq!(client.delete(&snapshots).status, 200);
    assert!(!second_folder.exists());
    // The files in the removed repository are left for later.
    let left = client.get("/status").ok()["leftovers"].clone();
    assert_eq!(left.as_array().unwrap().len(), 2, "{left}");
    assert!(second.join("CoriolisSnapshots").join(&first).exists());
}
