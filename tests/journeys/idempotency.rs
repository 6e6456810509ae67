//! Requests repeated with one idempotency key make one snapshot, even if the answer was lost.

use reqwest::Method;
use serde_json::json;

use crate::harness::{
    Answer, Client, Fault, FaultTest, MB, SNAPSHOTS, Settings, World, eventually, snapshot_folders, text,
};
use crate::needs_root;

fn create(client: &Client, key: &str, body: &str) -> Answer {
    let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
    client.send(request.header("Idempotency-Key", key).body(body.to_owned()))
}

fn create_id(client: &Client, key: &str) -> String {
    text(&create(client, key, "").ok()["id"])
}

fn count(client: &Client) -> usize {
    client.get(SNAPSHOTS).ok().as_array().unwrap().len()
}

#[test]
fn idempotency_key_makes_one_snapshot() {
    needs_root!();
    let mut world = World::new(512);
    world.define_vm(&[("a.img", MB), ("b.img", MB)]);
    let client = world.client();
    let first = create_id(&client, "one");
    assert_eq!(create(&client, "\"one\"", "{}").ok(), client.get(&format!("{SNAPSHOTS}/{first}?squashChunks=0")).ok());
    assert_eq!(create(&client, "one", r#"{"disks": ["a.img"]}"#).error(422), "idempotency_key_reused");
    assert_ne!(create_id(&client, "two"), first);
    assert_eq!(count(&client), 2);
    for key in ["", "\"\"", "a\"b", &"x".repeat(256)] {
        assert_eq!(create(&client, key, "").error(400), "bad_request", "{key:?}");
    }
    let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
    let twice = client.send(request.header("Idempotency-Key", "a").header("Idempotency-Key", "b"));
    assert_eq!(twice.error(400), "bad_request");

    // The same key of another user is independent.
    let secret = secrecy::SecretString::from(crate::harness::SECRET);
    let tokens = coriolis_ovm_exporter::testing::Tokens::new(&secret, std::time::Duration::from_secs(600));
    let mut other = world.anonymous_client();
    other.token = tokens.issue("somebody else", std::time::SystemTime::now()).unwrap();
    assert_ne!(create_id(&other, "one"), first);
    assert_eq!(count(&client), 3);

    world.exporter.restart();
    let client = world.client();
    assert_eq!((create_id(&client, "one"), count(&client)), (first.clone(), 3));
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    for _ in 0..2 {
        let gone = create(&client, "one", "");
        assert_eq!(gone.error(410), "idempotency_key_spent");
        assert!(text(&gone.json()["details"]).contains(&first));
        world.exporter.restart();
    }
    assert_eq!(count(&world.client()), 2);
}

#[test]
fn repeated_request_waits_for_the_first_and_retries_after_a_failure() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let clients: Vec<Client> = (0..3).map(|_| world.client()).collect();
    let ids: Vec<String> = {
        let frozen = world.volume.freeze();
        std::thread::scope(|scope| {
            let running: Vec<_> = clients.iter().map(|client| scope.spawn(|| create_id(client, "same"))).collect();
            let all_admitted = || {
                let creates = clients[0].get("/status").ok()["creates"].clone();
                creates["running"].as_array().unwrap().len() + creates["waiting"].as_array().unwrap().len() == 3
            };
            eventually("all three requests run or wait", all_admitted);
            drop(frozen);
            running.into_iter().map(|one| one.join().unwrap()).collect()
        })
    };
    assert_eq!((&ids[1], &ids[2], count(&clients[0])), (&ids[0], &ids[0], 1));

    world.volume.remount("ro");
    assert_eq!(create(&clients[0], "failing", "").error(503), "read_only");
    world.volume.remount("rw");
    let id = create_id(&clients[0], "failing");
    assert_eq!((create_id(&clients[0], "failing"), count(&clients[0])), (id, 2));
}

#[test]
fn idempotency_key_survives_a_kill_at_every_step() {
    needs_root!();
    let mut test = FaultTest::new(|_: &mut Settings| {});
    for fault in [Fault::KillBefore, Fault::KillAfter] {
        for n in 1.. {
            let (what, key) = (format!("step {n}, {fault:?}"), format!("{n}{fault:?}"));
            let before = count(&test.client);
            test.shim.arm(n, fault);
            let request = test.client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
            let answered = test.client.try_send(request.header("Idempotency-Key", &key)).ok();
            if answered.is_none() {
                test.world.exporter.wait(std::time::Duration::from_secs(20));
            }
            test.shim.disarm();
            test.restart(fault);
            let id = create_id(&test.client, &key);
            assert_eq!(count(&test.client), before + 1, "{what}");
            assert_eq!(create_id(&test.client, &key), id, "{what}");
            assert_eq!(snapshot_folders(&test.world.repository).len(), before + 1, "{what}: folders");
            let first_id = answered.map(|answer| answer.ok()["id"].clone());
            test.client.delete(&format!("{SNAPSHOTS}/{id}"));
            if let Some(answered) = first_id {
                assert_eq!(answered, json!(id), "{what}");
                assert!(n > 10, "only {n} steps: the shim does not see the calls of the service");
                break;
            }
        }
    }
}
