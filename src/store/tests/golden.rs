//! Databases of earlier programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;

/// A copy of the database that the program of that schema wrote.
fn golden(schema: u64) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    std::fs::copy(golden_path(schema), &path).unwrap();
    let store = Store::open(&path).unwrap();
    (dir, store)
}

pub fn golden_path(schema: u64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/schema-{schema}.redb"))
}

fn golden_definition() -> Definition {
    let network = [("mac".to_owned(), "00:21:f6:aa:bb:cc".to_owned())].into();
    Definition {
        format: "vm.cfg".to_owned(),
        text: Some("memory = 2048\n".to_owned()),
        memory_mb: Some(2048),
        networks: vec![network],
        ..Definition::default()
    }
}

fn golden_described(snapshot: Snapshot) -> (Described, Option<NewEvent>) {
    let key = RequestKey { user: "admin".to_owned(), key: "golden".to_owned(), digest: [7; 32] };
    let event = NewEvent { webhooks: vec!["a".to_owned()], body: b"{}".to_vec(), max_queued: 1 };
    let described = Described {
        snapshot,
        expires_at: golden_retention().expires_at,
        request: Some(key),
        is_of_group: false,
        definition: Some(golden_definition()),
    };
    (described, Some(event))
}

fn golden_ticket() -> Ticket {
    let user = ("cert:backup".to_owned(), TicketSource::Certificate(vec![vec![0x30, 0]]));
    let target = (VM.to_owned(), SnapshotId::from_u128(7), "system.img".to_owned());
    Ticket::new(user, target, (true, false), (1_714_558_830_000, 1_714_562_430_000))
}

fn golden_retention() -> Retention {
    let at = |text: &str| Some(text.parse().unwrap());
    Retention { expires_at: at("2024-05-02T10:20:30Z"), leased_until: at("2024-05-03T10:20:30Z") }
}

#[test]
fn the_database_of_schema_1_is_opened() {
    let (_dir, store) = golden(1);
    let mut ready = snapshot(7);
    ready.sequence = 1;
    assert_eq!(store.retentions().of(ready.id).unwrap(), Retention::default());
    assert_eq!(store.snapshots_of(&VM.parse().unwrap()).unwrap(), [ready]);
    let mut creating = snapshot(8);
    creating.sequence = 2;
    assert_eq!(store.unfinished().unwrap(), [SnapshotFiles::from(&creating)]);
    assert_eq!(store.pending_hooks().all().unwrap(), []);
    // New sequences come after those of adopted snapshots.
    let next = begin(&store, snapshot(9), None);
    assert_eq!(next.sequence, FIRST_SEQUENCE);
    store.commit(&[golden_described(next)]).unwrap();
}

/// The retention of snapshots came with schema 3, seals with schema 4, annotations with schema 5, definitions with
/// schema 6, tickets with schema 7, revocations with schema 8, events with schema 9;
/// since schema 10, snapshots may have one sequence.
#[test]
fn the_databases_of_schema_2_to_10_are_opened() {
    for schema in 2..=10 {
        let (_dir, store) = golden(schema);
        let second = match schema {
            2 | 3 => hooked(8),
            4 => sealed(8),
            _ => annotated(8),
        };
        let (mut plain, mut quiesced, mut creating) = (snapshot(7), second, snapshot(9));
        plain.sequence = FIRST_SEQUENCE;
        quiesced.sequence = FIRST_SEQUENCE + 1;
        creating.sequence = FIRST_SEQUENCE + 2;
        let retention = if schema < 3 { Retention::default() } else { golden_retention() };
        assert_eq!(store.retentions().of(plain.id).unwrap(), retention);
        assert_eq!(store.definition(plain.id).unwrap(), (schema >= 6).then(golden_definition));
        assert!(store.retentions().lease(plain.id, "another user", golden_retention().leased_until.unwrap()).unwrap());
        assert_eq!(store.snapshots_of(&VM.parse().unwrap()).unwrap(), [plain, quiesced]);
        assert_eq!(store.pending_hooks().all().unwrap(), [(PendingHooksKey::of_creation(creating.id), b"{}".to_vec())]);
        let tickets = if schema < 7 { Vec::new() } else { vec![([7; 32], golden_ticket())] };
        assert_eq!(store.tickets().all().unwrap(), tickets);
        let revoked = store.sessions().revoked(1_700_000_000).unwrap();
        assert_eq!(
            revoked.users,
            if schema < 8 { [].into() } else { [(FoldedName::new("admin"), 1_714_558_830_123)].into() }
        );
        assert_eq!(revoked.log_ins, if schema < 8 { [].into() } else { [(8, 1_800_000_000)].into() });
        assert_eq!(store.sessions().renewable(1_700_000_000).unwrap(), usize::from(schema >= 8));
        // Of two events, the queue had room for one.
        let waiting = store.events().waiting("a", &BTreeMap::new()).unwrap();
        let is_new = u64::from(schema >= 9);
        assert_eq!((waiting.queued, waiting.dropped), (is_new, is_new));
        assert_eq!(store.events().conditions().unwrap().len(), usize::from(schema >= 9));
        // Earlier programs recorded inodes before the files existed.
        let files = if schema < 5 { SnapshotFiles::from(&creating) } else { unfinished_files(&creating) };
        assert_eq!(store.unfinished().unwrap(), [files]);
    }
}

/// Writes the golden file of the current schema. Run it by hand after a new migration: `cargo test --lib -- --ignored
/// write_the_golden_database`.
#[test]
#[ignore = "writes tests/golden, by hand"]
fn write_the_golden_database() {
    let path = golden_path(schema::CURRENT_SCHEMA);
    assert!(!path.exists(), "a golden file is never overwritten");
    let store = Store::open(&path).unwrap();
    for snapshot in [snapshot(7), annotated(8)] {
        store.commit(&[golden_described(begin(&store, snapshot, None))]).unwrap();
    }
    assert!(
        store.retentions().lease(SnapshotId::from_u128(7), "admin", golden_retention().leased_until.unwrap()).unwrap()
    );
    begin(&store, snapshot(9), Some(b"{}"));
    assert_eq!(
        store.tickets().add(&[7; 32], &golden_ticket(), TicketLimits { of_user: 1, of_all: 1 }).unwrap(),
        Added::Yes
    );
    let (sessions, now) = (store.sessions(), Clock { now: 1_714_558_830, latest_ms: 1_714_558_830_123 });
    sessions.revoke(Revocation::LogIn { id: 8, user: "admin", until: 1_800_000_000 }, now).unwrap();
    sessions.revoke(Revocation::Before { user: Some("admin"), before_ms: 1_714_558_830_123 }, now).unwrap();
    sessions.begin(9, "admin", [9; 32], (1_714_558_831_000, 1_800_000_000), 1_714_558_831).unwrap();
    store.events().set_condition(&["a".to_owned()], "database", Some("damaged"), None).unwrap();
}
