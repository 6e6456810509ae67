//! Comparisons by content: summaries, pages and lines.

use std::fs;
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Client, MB, Random, VM, World, chunks, data, write_at, xfs_io, zero};
use crate::needs_root;

fn document(id: &str, query: &str) -> String {
    format!("/vms/{VM}/snapshots/{id}?{query}")
}

fn route(id: &str, query: &str) -> String {
    format!("/vms/{VM}/snapshots/{id}/disks/a.img/chunks?{query}")
}

/// Two snapshots of 4 MiB of data; in between the same bytes, other bytes and zeros are written, and a hole is punched.
fn two_snapshots(world: &World) -> (Client, String, String) {
    let disk = &world.define_vm(&[("a.img", 8 * MB)])[0];
    write_at(disk, 0, &Random(1).bytes(4 * MB));
    let client = world.client();
    let base = client.take_snapshot_id();
    let again = fs::read(disk).unwrap();
    write_at(disk, MB, &again[MB as usize..][..(MB / 2) as usize]);
    write_at(disk, 2 * MB + 1000, &[1; 100]);
    write_at(disk, 3 * MB, &[0; 65536]);
    xfs_io(Path::new(disk), &["fpunch 3670016 65536"]);
    let target = client.take_snapshot_id();
    (client, base, target)
}

#[test]
fn equal_blocks_are_left_out() {
    needs_root!();
    let world = World::new(512);
    let (client, base, target) = two_snapshots(&world);
    let part = |query: &str| client.get(&document(&target, query)).ok()["disks"][0].clone();
    let compared = |more: &str| part(&format!("compareTo={base}&{more}"));

    let plain = compared("");
    let expected = [data(MB, MB / 2), data(2 * MB, 4096), data(3 * MB, 65536), zero(3_670_016, 65536)];
    assert_eq!(chunks(&plain), expected);
    assert!(plain.get("refine").is_none() && plain.get("candidate_bytes").is_none(), "{plain}");
    for (block, written) in [(512, data(2 * MB + 512, 1024)), (4096, data(2 * MB, 4096)), (MB, data(2 * MB, 4096))] {
        for _from_cache in [false, true] {
            let refined = compared(&format!("refine={block}"));
            assert_eq!(chunks(&refined), [written, zero(3 * MB, 65536), zero(3_670_016, 65536)], "{block}");
            assert_eq!((&refined["refine"], &refined["mode"]), (&json!(block), &json!("incremental")));
            assert_eq!(refined["candidate_bytes"], MB / 2 + 4096 + 65536);
            assert_eq!((&refined["data_bytes"], &refined["zero_bytes"]), (&json!(written.length), &json!(131_072)));
        }
    }
    assert_eq!(compared("refine=0"), plain);
    // Summaries.
    let sums = compared("refine=4096&summary=true");
    assert_eq!((&sums["data_bytes"], &sums["zero_bytes"]), (&json!(4096), &json!(131_072)));
    assert!(sums.get("chunks").is_none(), "{sums}");
    let sums = part("summary=true");
    assert_eq!((&sums["data_bytes"], &sums["mode"]), (&part("")["data_bytes"], &json!("full")));

    // The cache does not outlive the snapshot.
    assert_eq!(client.delete(&format!("/vms/{VM}/snapshots/{base}")).status, 200);
    assert_eq!(client.get(&document(&target, &format!("compareTo={base}&refine=4096"))).error(404), "not_found");
}

#[test]
fn pages_and_lines_match_the_document() {
    needs_root!();
    let world = World::new(512);
    let (client, base, target) = two_snapshots(&world);
    for query in [format!("compareTo={base}"), format!("compareTo={base}&refine=512"), String::new()] {
        let document = client.get(&document(&target, &query)).ok()["disks"][0].clone();
        let whole = document["chunks"].as_array().unwrap().clone();
        let (mut paged, mut from) = (Vec::new(), Some(0));
        while let Some(offset) = from {
            let page = client.get(&route(&target, &format!("{query}&startingOffset={offset}&maxResults=1"))).ok();
            assert_eq!((&page["size"], &page["mode"]), (&document["size"], &document["mode"]));
            paged.extend(page["chunks"].as_array().unwrap().clone());
            from = page["next_offset"].as_u64();
        }
        assert_eq!(paged, whole, "{query}");
        let request = client.request(Method::GET, &format!("/api/v1{}", route(&target, &query)));
        let lines = client.send(request.header("Accept", "application/x-ndjson"));
        assert_eq!(lines.header("content-type"), "application/x-ndjson");
        let lines: Vec<Value> =
            String::from_utf8(lines.body).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, whole, "{query}");
    }
    // From inside a chunk, and of one type.
    let page = |more: &str| client.get(&route(&target, &format!("compareTo={base}&{more}"))).ok();
    let cut = page(&format!("startingOffset={}", MB + 4096));
    assert_eq!(cut["chunks"][0]["start"], MB + 4096);
    assert_eq!(cut["chunks"][0]["length"], MB / 2 - 4096);
    assert_eq!(chunks(&page("type=zero")), [zero(3_670_016, 65536)]);
    assert_eq!(chunks(&page("type=data&zero=omit")).len(), 3);
    assert_eq!(page(&format!("startingOffset={}", 8 * MB))["chunks"], json!([]));
}

#[test]
fn invalid_chunk_queries_are_rejected() {
    needs_root!();
    let world = World::new(512);
    world.define_vm(&[("a.img", MB)]);
    let client = world.client();
    let id = client.take_snapshot_id();
    for wrong in [
        "refine=3000",
        "refine=256",
        "refine=2097152",
        "refine=-1",
        "type=hole",
        "startingOffset=1048577",
        "startingOffset=x",
        "maxResults=0",
        "maxResults=100001",
        "squashChunks=perhaps",
    ] {
        assert_eq!(client.get(&route(&id, wrong)).error(400), "bad_request", "{wrong}");
    }
    assert_eq!(client.get(&route(&id, &format!("compareTo={id}"))).error(400), "base_not_older");
    let elsewhere = format!("/vms/{VM}/snapshots/{id}/disks/b.img/chunks");
    assert_eq!(client.get(&elsewhere).error(404), "not_found");
    assert_eq!(client.post(&route(&id, "")).error(405), "method_not_allowed");
}

#[test]
fn config_sets_the_default_refinement() {
    needs_root!();
    let world = World::with(512, |settings| settings.top += "compare = { refine = 4096, refine_limit = 65536 }\n");
    let disk = &world.define_vm(&[("a.img", 8 * MB)])[0];
    write_at(disk, 0, &Random(1).bytes(4 * MB));
    let client = world.client();
    let base = client.take_snapshot_id();
    let bytes = fs::read(disk).unwrap();
    write_at(disk, MB, &bytes[MB as usize..][..65536]);
    let second = client.take_snapshot_id();
    write_at(disk, 2 * MB, &bytes[2 * MB as usize..][..4096]);
    let third = client.take_snapshot_id();
    let part = |id: &str| client.compare(id, &base)["disks"][0].clone();
    assert_eq!((&part(&second)["chunks"], &part(&second)["refine"]), (&json!([]), &json!(4096)));
    // Above the limit only an explicit parameter refines.
    assert_eq!((&part(&third)["data_bytes"], part(&third).get("refine")), (&json!(65536 + 4096), None));
    let refined = client.get(&document(&third, &format!("compareTo={base}&refine=4096"))).ok();
    assert_eq!(refined["disks"][0]["chunks"], json!([]));
}
