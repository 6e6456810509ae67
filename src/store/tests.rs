use std::collections::BTreeMap;

use super::*;
use crate::model::retention::Retention;
use crate::model::{
    Annotations, Consistency, Definition, DiskSource, FileIdentity, FoldedName, HookKind, HookOutcome, HookRun,
    HookStage, PlannedDisk, Provenance, RequestKey, Seal, SnapshotDisk, SnapshotFile, VolumeId,
};

mod golden;

pub(super) use golden::golden_path;

pub(super) const VM: &str = "0004fb00000600000000000000000001";

pub(super) fn snapshot(number: u128) -> Snapshot {
    Snapshot {
        id: SnapshotId::from_u128(number),
        vm: VM.parse().unwrap(),
        sequence: 0,
        created_at: "2024-05-01T10:20:30.123456789Z".parse().unwrap(),
        created_by: "admin".to_owned(),
        disks: vec![SnapshotDisk {
            name: "a.img".parse().unwrap(),
            source: DiskSource {
                repository: "0004fb0000030000a1b2c3d4e5f60718".parse().unwrap(),
                path: "VirtualDisks/a.img".to_owned(),
            },
            identity: FileIdentity { inode: 131, size: 1 << 30, changed_ns: 1_714_558_830_123_456_789 },
            volume: None,
            seal: None,
        }],
        provenance: Provenance::crash_consistent(),
        annotations: Annotations::default(),
    }
}

/// Begins `snapshot`, and returns it with the sequence that it was given.
pub(super) fn begin(store: &Store, snapshot: Snapshot, pending_hooks: Option<&[u8]>) -> Snapshot {
    let planned = |disk: &SnapshotDisk| PlannedDisk {
        name: disk.name.clone(),
        source: disk.source.clone(),
        size: disk.identity.size,
        volume: disk.volume,
    };
    let draft = SnapshotDraft {
        id: snapshot.id,
        vm: snapshot.vm.clone(),
        created_at: snapshot.created_at,
        created_by: snapshot.created_by.clone(),
        disks: snapshot.disks.iter().map(planned).collect(),
        annotations: snapshot.annotations.clone(),
    };
    let begun = store.begin(vec![(draft, pending_hooks.map(<[u8]>::to_vec))]).unwrap();
    Snapshot { sequence: begun[0].sequence, ..snapshot }
}

/// The files of a snapshot that is being made.
fn unfinished_files(snapshot: &Snapshot) -> SnapshotFiles {
    let mut files = SnapshotFiles::from(snapshot);
    files.files.iter_mut().for_each(|file: &mut SnapshotFile| file.inode = None);
    files
}

/// A snapshot with hooks.
fn hooked(number: u128) -> Snapshot {
    let run = |stage, outcome, detail: &str| HookRun {
        name: "10-freeze".to_owned(),
        kind: HookKind::Directory,
        stage,
        outcome,
        duration_ms: 1234,
        detail: detail.to_owned(),
    };
    let hooks = vec![
        run(HookStage::Pre, HookOutcome::Ok, "exit status 0"),
        run(HookStage::Post, HookOutcome::Timeout, "killed after 60 s"),
    ];
    Snapshot {
        provenance: Provenance { consistency: Consistency::Quiesced, freeze_ms: Some(1300), hooks },
        ..snapshot(number)
    }
}

/// A snapshot with hooks, whose disk is sealed.
fn sealed(number: u128) -> Snapshot {
    let mut snapshot = hooked(number);
    snapshot.disks[0].volume = Some(VolumeId([0xa5; 16]));
    snapshot.disks[0].seal = Some(Seal { modified_ns: 1_714_558_829_000_000_001, map: Some([0x5a; 32]) });
    snapshot
}

/// A sealed snapshot with labels and a description.
fn annotated(number: u128) -> Snapshot {
    let labels = [("job", "nightly"), ("empty", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let annotations = Annotations::new(labels.into(), Some("before the upgrade".to_owned())).unwrap();
    Snapshot { annotations, ..sealed(number) }
}

/// The events that wait for the webhook `a`.
fn events(store: &Store) -> Vec<String> {
    let mut found = Vec::new();
    while let Some((number, body)) = store.events().waiting("a", &BTreeMap::new()).unwrap().next {
        found.push(String::from_utf8(body).unwrap());
        let changes = QueueChanges { outcomes: [(number, Outcome::Delivered)].into(), ..QueueChanges::default() };
        store.events().record("a", &changes, 10).unwrap();
    }
    found
}

#[test]
fn failed_creation_is_reported_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let made = [1, 2, 3].map(|number| begin(&store, snapshot(number), None));
    store.commit(&[(Described::alone(made[0].clone()), None)]).unwrap();
    let event =
        |text: &str| NewEvent { webhooks: vec!["a".to_owned()], body: text.as_bytes().to_vec(), max_queued: 10 };
    // A complete snapshot stays, and one that is not known is none.
    let ids = [made[0].id, made[1].id, SnapshotId::from_u128(9)];
    let undo = ids.map(|id| (id, Some(event("failed"))));
    store.begin_undo(&undo).unwrap();
    store.begin_undo(&undo).unwrap();
    assert_eq!(events(&store), ["failed"]);
    assert_eq!(store.snapshots().unwrap(), made[..1]);
    // All else of the record is as before.
    assert_eq!(store.record(made[1].id).unwrap(), Some(Record::Deleting(unfinished_files(&made[1]))));
    assert_eq!(store.record(made[2].id).unwrap(), Some(Record::Creating(unfinished_files(&made[2]))));
    store.begin_undo(&[(made[2].id, None)]).unwrap();
    assert_eq!(store.record(made[2].id).unwrap(), Some(Record::Deleting(unfinished_files(&made[2]))));
    store.forget(&SnapshotFiles::from(&made[0]), Some(&event("gone"))).unwrap();
    assert_eq!(events(&store), ["gone"]);
}

#[test]
fn a_snapshot_is_visible_from_commit_to_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = Store::open(&path).unwrap();
    let first = begin(&store, snapshot(2), None);
    assert_eq!(store.snapshot(first.id).unwrap(), None);
    assert_eq!(store.unfinished().unwrap(), [unfinished_files(&first)]);
    store.commit(&[(Described::alone(first.clone()), None)]).unwrap();

    let second = begin(&store, snapshot(1), None);
    store.commit(&[(Described::alone(second.clone()), None)]).unwrap();
    drop(store);

    // Another process, later. The order is that of creation, not of ids or clocks.
    let store = Store::open(&path).unwrap();
    let vm: VmId = VM.parse().unwrap();
    assert_eq!(store.snapshots_of(&vm).unwrap(), [first.clone(), second.clone()]);
    assert_eq!(store.snapshot_ids().unwrap()[&vm], [first.id, second.id]);

    store.begin_deletion(&first, None).unwrap();
    assert_eq!(store.snapshot(first.id).unwrap(), None);
    assert_eq!(store.unfinished().unwrap(), [SnapshotFiles::from(&first)]);
    store.forget(&SnapshotFiles::from(&first), None).unwrap();
    assert_eq!(store.record(first.id).unwrap(), None);
    assert_eq!(store.snapshots_of(&vm).unwrap(), [second]);
    assert_eq!(store.unfinished().unwrap(), []);
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(&dir.path().join("db")).unwrap();
    assert!(matches!(Store::open(&dir.path().join("db")), Err(StoreError::InUse)));
}

#[test]
fn foreign_files_are_refused_and_left_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let mut bolt = vec![0; 64 << 10];
    bolt[16..20].copy_from_slice(&0xED0C_DAED_u32.to_ne_bytes());
    let text = b"not a database at all".repeat(1000);
    for (content, is_bolt) in [(&bolt, true), (&text, false)] {
        let path = dir.path().join("db");
        std::fs::write(&path, content).unwrap();
        let error = Store::open(&path).map(|_| ()).unwrap_err();
        assert_eq!(matches!(error, StoreError::Bolt(_)), is_bolt, "{error}");
        assert_eq!(&std::fs::read(&path).unwrap(), content, "{error}");
    }
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = Store::open(&path).unwrap();
    store
        .handle
        .write(|transaction| {
            transaction.open_table(schema::COUNTERS)?.insert("schema", 99)?;
            Ok(())
        })
        .unwrap();
    drop(store);
    let error = Store::open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("schema 99") && error.contains("newer version"), "{error}");
}

#[test]
fn pending_hooks_are_kept_until_they_are_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = Store::open(&path).unwrap();
    let first = begin(&store, hooked(1), Some(b"first"));
    let second = begin(&store, snapshot(2), None);
    store.commit(&[(Described::alone(first.clone()), None)]).unwrap();
    store.pending_hooks().record(PendingHooksKey::of_creation(second.id), b"second", &[]).unwrap();
    drop(store);

    let store = Store::open(&path).unwrap();
    assert_eq!(
        store.pending_hooks().all().unwrap(),
        [
            (PendingHooksKey::of_creation(first.id), b"first".to_vec()),
            (PendingHooksKey::of_creation(second.id), b"second".to_vec())
        ]
    );
    store.pending_hooks().clear(PendingHooksKey::of_creation(first.id), &[]).unwrap();
    // Clearing them twice is no error.
    store.pending_hooks().clear(PendingHooksKey::of_creation(first.id), &[]).unwrap();
    assert_eq!(store.pending_hooks().all().unwrap(), [(PendingHooksKey::of_creation(second.id), b"second".to_vec())]);
    assert_eq!(store.snapshot(first.id).unwrap(), Some(first));
}

#[test]
fn a_damaged_database_is_refused_and_left_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = Store::open(&path).unwrap();
    for number in 0..300 {
        begin(&store, snapshot(number), None);
    }
    drop(store);
    // Zeros over the middle of the file, where the tables are.
    let mut bytes = std::fs::read(&path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[8192..used].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    assert!(Store::open(&path).is_err(), "a database of zeros was opened");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes.len() as u64);
}

#[test]
fn a_damaged_record_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let snapshots = [1, 2].map(|number| begin(&store, snapshot(number), None));
    let spoil = |transaction: &WriteTransaction| {
        transaction.open_table(SNAPSHOTS)?.insert(1, [0xff; 3].as_slice())?;
        Ok(())
    };
    store.handle.write(spoil).unwrap();
    assert_eq!(store.unfinished().unwrap(), [unfinished_files(&snapshots[1])]);
    let error = store.record(snapshots[0].id).unwrap_err().to_string();
    assert!(error.contains(&snapshots[0].id.to_string()), "{error}");
}

#[test]
fn a_removed_file_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = Store::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let failed = store.handle.read(|_| Err::<(), _>(StoreError::Damaged(path.clone())));
    assert!(failed.is_err());
    assert!(store.check().is_err());
    assert!(!path.exists(), "an empty database was made");
}

#[test]
fn an_adopted_snapshot_is_older_than_those_of_this_service() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let made = begin(&store, snapshot(1), None);
    store.commit(&[(Described::alone(made.clone()), None)]).unwrap();
    let mut adopted = snapshot(2);
    adopted.sequence = 1_700_000_000;
    assert!(store.adopt(&Described::alone(adopted.clone())).unwrap());
    // Refused are a known snapshot, and a sequence beyond the limit.
    let elsewhere = Snapshot { sequence: 1_700_000_001, ..adopted.clone() };
    let beyond = Snapshot { id: SnapshotId::from_u128(9), sequence: u64::MAX, ..adopted.clone() };
    for refused in [elsewhere, beyond] {
        assert!(!store.adopt(&Described::alone(refused.clone())).unwrap());
    }
    assert_eq!(store.snapshots_of(&VM.parse().unwrap()).unwrap(), [adopted.clone(), made.clone()]);
    // Of two with one sequence, the one that was made earlier is the older one.
    let second = jiff::SignedDuration::from_secs(1);
    let (earlier, later) = (adopted.created_at - second, adopted.created_at + second);
    let same = |number, created_at| Snapshot { id: SnapshotId::from_u128(number), created_at, ..adopted.clone() };
    let (earlier, later) = (same(11, earlier), same(10, later));
    for other in [&later, &earlier] {
        assert!(store.adopt(&Described::alone(other.clone())).unwrap());
    }
    assert_eq!(store.snapshots_of(&VM.parse().unwrap()).unwrap(), [earlier.clone(), adopted, later.clone(), made]);
    store.forget(&SnapshotFiles::from(&earlier), None).unwrap();
    assert_eq!(store.snapshot(later.id).unwrap(), Some(later));
    // A sequence from a lost database: those assigned from now on are higher.
    let mut rebuilt = snapshot(3);
    rebuilt.sequence = FIRST_SEQUENCE + 100;
    assert!(store.adopt(&Described::alone(rebuilt.clone())).unwrap());
    let next = begin(&store, snapshot(4), None);
    assert_eq!(next.sequence, FIRST_SEQUENCE + 101);
}

#[test]
fn a_failed_write_is_trouble_until_the_next_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("exporter.db")).unwrap();
    let refused = StoreError::Record { id: SnapshotId::from_u128(1), cause: "a test".to_owned() };
    assert!(store.handle.write(|_| Err::<(), _>(refused)).is_err());
    assert_eq!(store.trouble(), None, "the work's own refusal says nothing about the disk");
    let failed = StoreError::Io(std::io::ErrorKind::StorageFull.into());
    assert!(store.handle.write(|_| Err::<(), _>(failed)).is_err());
    assert!(matches!(store.trouble(), Some(Trouble::WriteFailed(_))));
    store.retry_failed_write();
    assert_eq!(store.trouble(), None);
}
