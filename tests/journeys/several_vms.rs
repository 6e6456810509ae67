//! Snapshots of several VMs at one moment: all or none, also after a crash.

use std::fs;
use std::path::PathBuf;
use std::thread;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Client, Fault, FaultTest, HookDir, MB, OTHER_VM, VM, World, define_vm, eventually, ids, make_disk,
    snapshot_folders, text, write_at,
};
use crate::needs_root;

fn create(client: &Client, body: &Value) -> Answer {
    client.send(client.request(Method::POST, "/api/v1/snapshots").body(body.to_string()))
}

fn listed(client: &Client, vm: &str) -> Vec<String> {
    ids(&client.get(&format!("/vms/{vm}/snapshots?chunks=false")).ok())
}

/// Both VMs, each with a disk that begins with 8 KiB of its number.
fn define_both(world: &World) -> [PathBuf; 2] {
    let first = world.define_vm(&[("a.img", MB)]).remove(0);
    let second = make_disk(&world.repository, "b.img", MB);
    define_vm(&world.repository, OTHER_VM, std::slice::from_ref(&second));
    write_at(&first, 0, &[1; 8192]);
    write_at(&second, 0, &[2; 8192]);
    [first, second]
}

fn with_hooks(lines: &str) -> (HookDir, World, Client) {
    let hooks = HookDir::new();
    let world = World::with(512, |settings| settings.sections = hooks.section(lines));
    define_both(&world);
    let client = world.client();
    (hooks, world, client)
}

/// Checks that no VM has a snapshot and no file is left.
fn nothing_is_left(world: &World, client: &Client) {
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    assert_eq!((listed(client, VM), listed(client, OTHER_VM)), (Vec::new(), Vec::new()));
}

#[test]
fn snapshots_of_several_vms_are_made_at_one_moment_and_once() {
    needs_root!();
    let mut world = World::new(512);
    let disks = define_both(&world);
    let client = world.client();
    // In the order of the request; a VM may be named by its uuid.
    let uuid = format!("{}-{}-{}-{}-{}", &VM[..8], &VM[8..12], &VM[12..16], &VM[16..20], &VM[20..]);
    let body = json!({"vms": [OTHER_VM, uuid], "ttl": "1h", "labels": {"job": "all"}, "description": "both"});
    let with_key = |client: &Client, body: &Value| {
        let request = client.request(Method::POST, "/api/v1/snapshots").header("Idempotency-Key", "one");
        client.send(request.body(body.to_string()))
    };
    let made = with_key(&client, &body).ok();
    let of = |index: usize, name: &str| made[index][name].clone();
    assert_eq!(
        (of(0, "vm_id"), of(1, "vm_id"), of(0, "created_at")),
        (json!(OTHER_VM), json!(VM), of(1, "created_at"))
    );
    for index in [0, 1] {
        assert_eq!((of(index, "labels"), of(index, "description")), (json!({"job": "all"}), json!("both")));
        assert!(of(index, "expires_at").is_string() && of(index, "definition")["text"].is_string());
    }
    for (index, vm, disk) in [(0, OTHER_VM, "b.img"), (1, VM, "a.img")] {
        let id = text(&made[index]["id"]);
        assert_eq!(listed(&client, vm), std::slice::from_ref(&id));
        let bytes = client.get(&format!("/vms/{vm}/snapshots/{id}/disks/{disk}")).body;
        assert!(bytes == fs::read(&disks[1 - index]).unwrap(), "{disk}");
    }
    // Repeated, also after a restart and in other spelling; with another body; after a deletion.
    let both = vec![listed(&client, OTHER_VM).remove(0), listed(&client, VM).remove(0)];
    world.exporter.restart();
    let client = world.client();
    assert_eq!(ids(&with_key(&client, &body).ok()), both);
    let other = json!({"vms": [VM, OTHER_VM], "ttl": "1h"});
    assert_eq!(with_key(&client, &other).error(422), "idempotency_key_reused");
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots")).status, 200);
    assert_eq!(with_key(&client, &body).error(410), "idempotency_key_spent");
    assert_eq!(listed(&client, OTHER_VM), both[..1]);
    // One VM is a group too.
    assert_eq!(create(&client, &json!({"vms": [VM]})).ok().as_array().unwrap().len(), 1);
}

#[test]
fn all_disks_are_cloned_after_every_pre_and_before_every_post() {
    needs_root!();
    let (hooks, world, client) = with_hooks("");
    let folders = world.repository.join("CoriolisSnapshots");
    // Blocks of all files of snapshots: none before the clones.
    let look = format!("blocks=$(cat {}/*/*.img | tr -d '\\0' | wc -c)", folders.display());
    hooks.put("freeze", &format!("{look}; [ $2 = post ] || echo quiesced; echo $EXPORTER_VM $2 $blocks >> $OUT/calls"));
    let made = create(&client, &json!({"vms": [VM, OTHER_VM], "quiesce": "require"})).ok();
    let calls = hooks.read("calls");
    let mut calls: Vec<_> = calls.lines().collect();
    calls[..2].sort_unstable();
    calls[2..].sort_unstable();
    let expected = [VM, OTHER_VM].map(|vm| format!("{vm} pre 0"));
    assert_eq!(calls[..2], expected);
    assert_eq!(calls[2..], [VM, OTHER_VM].map(|vm| format!("{vm} post 16384")));
    for index in [0, 1] {
        assert_eq!(
            (&made[index]["consistency"], &made[index]["hooks"][1]["outcome"]),
            (&json!("quiesced"), &json!("ok"))
        );
    }
    assert_eq!(client.pending_hooks(), json!([]));
}

#[test]
fn failure_of_one_vm_undoes_all() {
    needs_root!();
    let (hooks, world, client) = with_hooks("");
    let both = json!({"vms": [VM, OTHER_VM]});
    let note = "echo $EXPORTER_VM $2 >> $OUT/calls";
    // The hook of one VM refuses; the other guest is released.
    hooks.put("freeze", &format!("{note}; echo quiesced; [ $2 = post ] || [ $EXPORTER_VM = {VM} ]"));
    let answer = create(&client, &both);
    assert_eq!(answer.error(502), "hook_failed");
    assert!(text(&answer.json()["details"]).contains(&format!("VM {OTHER_VM}: hook freeze refused")), "{answer:?}");
    nothing_is_left(&world, &client);
    let mut calls: Vec<_> = hooks.take("calls").lines().map(str::to_owned).collect();
    calls.sort_unstable();
    assert_eq!(
        calls,
        [format!("{VM} post"), format!("{VM} pre"), format!("{OTHER_VM} post"), format!("{OTHER_VM} pre")]
    );
    // One guest is not quiesced.
    hooks.put("freeze", &format!("{note}; [ $EXPORTER_VM != {VM} ] || echo quiesced"));
    let answer = create(&client, &json!({"vms": [VM, OTHER_VM], "quiesce": "require"}));
    assert_eq!(answer.error(409), "not_quiesced");
    assert!(text(&answer.json()["details"]).contains(&format!("VM {OTHER_VM}: the guest was not quiesced")));
    nothing_is_left(&world, &client);
    // A clone of one VM fails: its new file is immutable.
    let folders = world.repository.join("CoriolisSnapshots");
    let flag = format!("[ $2 = pre ] && flag=+i || flag=-i\nchattr $flag {}/*/b.img; echo quiesced", folders.display());
    hooks.put("freeze", &flag);
    let answer = create(&client, &both);
    assert_eq!(answer.error(500), "io_error");
    assert!(text(&answer.json()["details"]).contains(&format!("VM {OTHER_VM}: cloning b.img")), "{answer:?}");
    nothing_is_left(&world, &client);
    hooks.remove("freeze");
    assert_eq!(create(&client, &both).ok().as_array().unwrap().len(), 2);
}

#[test]
fn invalid_requests_for_several_vms_are_refused() {
    needs_root!();
    let world = World::with(512, |settings| settings.policy = "max_snapshots_per_vm = 1".to_owned());
    define_both(&world);
    let client = world.client();
    let unknown = "0004fb0000060000ffffffffffffffff";
    let many: Vec<String> = (0..33).map(|number| format!("{number:032x}")).collect();
    for (body, status, code, what) in [
        (json!({"vms": []}), 400, "bad_request", "1 to 32"),
        (json!({"vms": many}), 400, "bad_request", "33 entries"),
        (json!({"vms": [VM, VM]}), 400, "bad_request", "given twice"),
        (
            json!({"vms": [VM, format!("{}-{}-{}-{}-{}", &VM[..8], &VM[8..12], &VM[12..16], &VM[16..20], &VM[20..])]}),
            400,
            "bad_request",
            "given twice",
        ),
        (json!({"vms": ["web-1"]}), 400, "bad_request", "\"web-1\""),
        (json!({"vms": VM}), 400, "bad_request", "invalid type"),
        (json!({"vms": [VM], "disks": ["a.img"]}), 400, "bad_request", "unknown field"),
        (json!({"vms": [VM], "ttl": "soon"}), 400, "bad_request", "ttl"),
        (json!({"vms": [VM], "labels": {"a b": ""}}), 400, "bad_request", "a b"),
        (json!({}), 400, "bad_request", "vms"),
        (json!([VM]), 400, "bad_request", "array"),
        (json!(null), 400, "bad_request", "vms"),
        (json!({"vms": [VM, unknown]}), 404, "not_found", unknown),
    ] {
        let answer = create(&client, &body);
        assert!(text(&answer.json()["details"]).contains(what), "{body}: {}", answer.json());
        assert_eq!(answer.error(status), code, "{body}");
    }
    assert_eq!(client.post("/snapshots").error(400), "bad_request");
    assert_eq!(client.get("/snapshots").error(405), "method_not_allowed");
    assert_eq!(world.anonymous_client().post("/snapshots").error(401), "unauthorized");
    nothing_is_left(&world, &client);
    // The policy applies to each VM.
    let only = client.take_snapshot_id();
    let answer = create(&client, &json!({"vms": [OTHER_VM, VM]}));
    assert_eq!(answer.error(409), "too_many_snapshots");
    assert!(text(&answer.json()["details"]).contains(&format!("VM {VM}: ")), "{answer:?}");
    assert_eq!((listed(&client, VM), listed(&client, OTHER_VM)), (vec![only], Vec::new()));
    assert_eq!(snapshot_folders(&world.repository).len(), 1);
}

#[test]
fn groups_in_any_order_do_not_block_each_other() {
    needs_root!();
    let world = World::new(512);
    define_both(&world);
    let start = std::sync::Barrier::new(3);
    thread::scope(|scope| {
        for body in [json!({"vms": [VM, OTHER_VM]}), json!({"vms": [OTHER_VM, VM]}), json!({"vms": [VM]})] {
            let (client, start) = (world.client(), &start);
            scope.spawn(move || {
                for _ in 0..5 {
                    start.wait();
                    create(&client, &body).ok();
                }
            });
        }
    });
    let client = world.client();
    assert_eq!((listed(&client, VM).len(), listed(&client, OTHER_VM).len()), (15, 10));
}

#[test]
fn kill_at_every_step_leaves_all_snapshots_of_a_group_or_none() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    let other = make_disk(&test.world.repository, "c.img", MB);
    define_vm(&test.world.repository, OTHER_VM, &[other]);
    let body = json!({"vms": [OTHER_VM, VM]}).to_string();
    for n in 1.. {
        let before = listed(&test.client, VM).len();
        test.shim.arm(n, Fault::KillBefore);
        let request = test.client.request(Method::POST, "/api/v1/snapshots").body(body.clone());
        let answer = test.client.try_send(request).ok();
        if answer.is_none() {
            test.world.exporter.wait(std::time::Duration::from_secs(20));
        }
        test.shim.disarm();
        if let Some(answer) = answer {
            assert_eq!(answer.ok().as_array().unwrap().len(), 2);
            assert!(n > 15, "only {n} steps: the shim does not see the calls of the service");
            break;
        }
        test.restart(Fault::KillBefore);
        // FaultTest itself has made one snapshot.
        let (of_vm, of_other) = (listed(&test.client, VM), listed(&test.client, OTHER_VM));
        assert_eq!(of_vm.len(), of_other.len() + 1, "step {n}");
        assert!(of_vm.len() == before || of_vm.len() == before + 1, "step {n}");
        let count = of_vm.len() + of_other.len();
        eventually("unfinished snapshots are removed", || snapshot_folders(&test.world.repository).len() == count);
    }
}
