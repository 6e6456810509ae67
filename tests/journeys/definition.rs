//! The VM's definition is kept with a snapshot as it was, without secrets, and survives the loss of the database.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{MB, SNAPSHOTS, VM, World, text};
use crate::needs_root;

/// The `vm.cfg` of [`VM`].
fn file(world: &World) -> PathBuf {
    world.repository.join("VirtualMachines").join(VM).join("vm.cfg")
}

/// Replaces the definition of [`VM`], which keeps its disk, and returns its text.
fn define(world: &World, lines: &str) -> String {
    let disk = world.repository.join("VirtualDisks/a.img");
    let text = format!("{lines}disk = ['file:{},xvda,w']\nname = '{VM}'\n", disk.display());
    fs::write(file(world), &text).unwrap();
    text
}

fn manifest(world: &World, snapshot: &Value) -> Value {
    let path = world.snapshot_folder(&text(&snapshot["id"])).join(".manifest.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

const LINES: &str = "vif = ['mac=00:21:f6:aa:bb:cc,bridge=10238073c2', 'mac=00:21:f6:aa:bb:cd,bridge=b2']\n\
    OVM_simple_name = 'web-1'\nmemory = 2048\nmaxmem = 4096\nvcpus = 2\nmaxvcpus = 4\nboot = 'cd'\n\
    OVM_domain_type = 'xen_hvm'\nOVM_os_type = 'Oracle Linux 7'\n";

#[test]
fn definition_is_kept_as_it_was_at_the_snapshot() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let definition = define(&world, LINES);
    let client = world.client();
    let made = client.take_snapshot();
    let expected = json!({
        "format": "vm.cfg", "text": definition, "memory_mb": 2048, "maximum_memory_mb": 4096, "vcpus": 2,
        "maximum_vcpus": 4, "boot": ["disk", "cdrom"], "vm_type": "xen_hvm", "os_type": "Oracle Linux 7",
        "networks": [{"mac": "00:21:f6:aa:bb:cc", "bridge": "10238073c2"}, {"mac": "00:21:f6:aa:bb:cd", "bridge": "b2"}],
    });
    assert_eq!(made["definition"], expected);
    assert_eq!(manifest(&world, &made)["definition"], expected);

    // The VM changes; the snapshot does not.
    define(&world, "memory = 8192\n");
    let second = client.take_snapshot();
    let (first, second) = (text(&made["id"]), text(&second["id"]));
    let of = |query: &str| client.get(&format!("{SNAPSHOTS}/{query}")).ok();
    assert_eq!(of(&first)["definition"], expected);
    let changed = of(&second)["definition"].clone();
    assert_eq!((&changed["memory_mb"], &changed["networks"]), (&json!(8192), &json!([])));
    assert!(changed.get("vcpus").is_none() && changed.get("boot").is_none(), "{changed}");
    assert_eq!(of(&format!("{second}?compareTo={first}"))["definition"], changed);
    assert!(of(&format!("{first}?definition=false")).get("definition").is_none());
    // Lists have it on request.
    let listed = |query: &str| client.get(&format!("{SNAPSHOTS}?chunks=false{query}")).ok();
    assert!(listed("")[0].get("definition").is_none());
    assert_eq!(listed("&definition=true")[0]["definition"], expected);
    assert_eq!(client.get(&format!("{SNAPSHOTS}?definition=yes")).error(400), "bad_request");
    let without = client.post(&format!("{SNAPSHOTS}?definition=false")).ok();
    assert!(without.get("definition").is_none());
    assert_eq!(of(&text(&without["id"]))["definition"], changed);

    // The database is lost. A manifest of an earlier version has no definition.
    world.exporter.kill();
    fs::remove_file(world.exporter.db_file()).unwrap();
    let path = world.snapshot_folder(&second).join(".manifest.json");
    let mut old: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    old.as_object_mut().unwrap().remove("definition");
    fs::remove_file(&path).unwrap();
    fs::write(&path, old.to_string()).unwrap();
    world.exporter.restart();
    let (status, output) = world.exporter.command(&["adopt", "--manifests"]);
    assert!(status == Some(0) && output.contains("3 adopted"), "{output}");
    let client = world.client();
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{first}")).ok()["definition"], expected);
    assert!(client.get(&format!("{SNAPSHOTS}/{second}")).ok().get("definition").is_none());
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
}

#[test]
fn secrets_of_a_definition_are_masked_everywhere() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    define(
        &world,
        "# the old vncpasswd was S3CRET\nvncpasswd = 'S3CRET'\nvfb = ['type=vnc,vncpasswd=S3CRET,keymap=en-us']\n\
         OVM_description = 'root password: S3CRET'\nvif = ['mac=00:21:f6:aa:bb:cc,secret=S3CRET']\n",
    );
    let client = world.client();
    let made = client.take_snapshot();
    let kept = text(&made["definition"]["text"]);
    assert!(kept.contains("vncpasswd = '***'\nvfb = ['type=vnc,vncpasswd=***,keymap=en-us']\n"), "{kept}");
    assert_eq!(made["definition"]["networks"][0], json!({"mac": "00:21:f6:aa:bb:cc", "secret": "***"}));
    let listed = client.get(&format!("{SNAPSHOTS}?definition=true")).ok();
    let folder = world.snapshot_folder(&text(&made["id"]));
    let database = fs::read(world.exporter.db_file()).unwrap();
    for output in [
        made.to_string().into_bytes(),
        listed.to_string().into_bytes(),
        fs::read(folder.join(".manifest.json")).unwrap(),
        world.exporter.log().into_bytes(),
        database,
    ] {
        assert!(!output.windows(6).any(|bytes| bytes == b"S3CRET"), "{}", String::from_utf8_lossy(&output));
    }
}

#[test]
fn long_text_of_a_definition_is_left_out() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    define(&world, &format!("OVM_description = '{}'\nmemory = 2048\n", "x".repeat(65_536)));
    let made = world.client().take_snapshot();
    let definition = &made["definition"];
    assert!(definition.get("text").is_none() && text(&definition["text_omitted"]).contains("65536"), "{definition}");
    assert_eq!(definition["memory_mb"], 2048);
}
