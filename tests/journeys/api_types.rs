//! The types of the API read what the server writes: an answer that is parsed and written again is the same answer.

use coriolis_ovm_exporter::testing::api;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::harness::{MB, SNAPSHOTS, VM, World, text, write_at};
use crate::needs_root;

/// Parses `answer` as a `T`.
fn parsed<T: DeserializeOwned + Serialize>(answer: &Value) -> T {
    let parsed: T = serde_json::from_value(answer.clone()).unwrap();
    assert_eq!(serde_json::to_value(&parsed).unwrap(), *answer);
    parsed
}

#[test]
fn answers_are_of_the_types_of_the_api() {
    needs_root!();
    let world = World::new(1024);
    let disk = &world.define_vm(&[("a.img", 8 * MB)])[0];
    let client = world.client();
    write_at(disk, 0, &[1; 4096]);
    let base: api::Snapshot = parsed(&client.take_snapshot());
    write_at(disk, MB, &[2; 4096]);
    let target = text(&client.take_snapshot()["id"]);

    let compared: api::Snapshot = parsed(&client.compare(&target, &base.id));
    let map = compared.disks[0].map.as_ref().unwrap();
    assert_eq!((map.mode, map.data_bytes), (api::Mode::Incremental, 4096));
    let chunks = map.chunks.as_ref().unwrap();
    assert_eq!((chunks[0].start, chunks[0].length, chunks[0].kind), (MB, 4096, api::ChunkType::Data));
    for query in ["", "?chunks=false", "?summary=true"] {
        parsed::<Vec<api::Snapshot>>(&client.get(&format!("{SNAPSHOTS}{query}")).ok());
    }

    let refined = format!("{SNAPSHOTS}/{target}?compareTo={}&refine=4096&zero=include", base.id);
    parsed::<api::Snapshot>(&client.get(&refined).ok());

    let of_disk = format!("{SNAPSHOTS}/{target}/disks/a.img");
    parsed::<api::ChunkPage>(&client.get(&format!("{of_disk}/chunks?maxResults=1")).ok());
    for query in ["", "?blockSize=1048576", "?blockSize=1048576&blocks=true"] {
        parsed::<api::Checksum>(&client.get(&format!("{of_disk}/checksum{query}")).ok());
    }
    parsed::<Vec<api::Vm>>(&client.get("/vms").ok());
    parsed::<api::Vm>(&client.get(&format!("/vms/{VM}")).ok());
    parsed::<Vec<api::Repository>>(&client.get("/repositories").ok());
    parsed::<api::Capabilities>(&client.get("/capabilities").ok());
    parsed::<api::ServiceStatus>(&client.get("/status?cost=true").ok());
    parsed::<api::Adoption>(&client.post("/adopt?dryRun=true").ok());
    let error: api::Error = parsed(&client.get("/vms/0004fb0000060000ffffffffffffffff").json());
    assert_eq!(error.code, api::ErrorCode::NotFound);
}
