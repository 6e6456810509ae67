use super::*;
use crate::model::{Lease, SnapshotFiles};
use crate::store::tests::{VM, begin, snapshot};

fn ms(number: i64) -> Timestamp {
    Timestamp::from_millisecond(number).unwrap()
}

fn key(text: &str) -> RequestKey {
    RequestKey { user: "admin".to_owned(), key: text.to_owned(), digest: [7; 32] }
}

fn made(store: &Store, number: u128, expires_at: Option<Timestamp>, request: Option<RequestKey>) -> Snapshot {
    let snapshot = begin(store, snapshot(number), None);
    let described = Described { expires_at, request, ..Described::alone(snapshot.clone()) };
    store.commit(&[(described, None)]).unwrap();
    snapshot
}

#[test]
fn retention_survives_a_restart_and_ends_with_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let store = Store::open(&path).unwrap();
    let first = made(&store, 1, Some(ms(5000)), Some(key("a")));
    let other = made(&store, 2, None, None);
    assert!(store.retentions().lease(first.id, "admin", ms(7000)).unwrap());
    assert!(store.retentions().lease(first.id, "", ms(9000)).unwrap());
    assert!(store.retentions().lease(other.id, "admin", ms(8000)).unwrap());
    drop(store);

    let store = Store::open(&path).unwrap();
    assert_eq!(
        store.retentions().of(first.id).unwrap(),
        Retention { expires_at: Some(ms(5000)), leased_until: Some(ms(9000)) }
    );
    assert_eq!(store.retentions().of(other.id).unwrap(), Retention { expires_at: None, leased_until: Some(ms(8000)) });
    assert_eq!(store.retentions().expiring().unwrap(), HashSet::from([first.id]));
    store.retentions().release(first.id, "").unwrap();
    store.retentions().lease(first.id, "admin", ms(6000)).unwrap();
    assert_eq!(
        store.retentions().of(first.id).unwrap().leased_until,
        Some(ms(6000)),
        "the new lease replaces the former one"
    );

    store.begin_deletion(&first, None).unwrap();
    assert!(!store.retentions().lease(first.id, "admin", ms(7000)).unwrap(), "it is being deleted");
    store.forget(&SnapshotFiles::from(&first), None).unwrap();
    assert_eq!(store.retentions().of(first.id).unwrap(), Retention::default());
    assert_eq!(store.retentions().expiring().unwrap(), HashSet::new());
    assert_eq!(store.retentions().of(other.id).unwrap().leased_until, Some(ms(8000)));
    let vm: VmId = VM.parse().unwrap();
    let used = store.key_use(&vm, &key("a"), Timestamp::now()).unwrap().unwrap();
    assert_eq!((used.snapshot(), used.digest), (first.id, [7; 32]), "the use of the key stays known");
}

#[test]
fn a_leased_snapshot_is_not_swept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let snapshot = made(&store, 1, None, None);
    let last = made(&store, u128::MAX, None, None);
    assert!(store.retentions().lease(snapshot.id, "admin", ms(5000)).unwrap());
    assert!(!store.retentions().begin_sweep(&snapshot, ms(4999), None).unwrap());
    assert!(store.snapshot(snapshot.id).unwrap().is_some());
    assert!(store.retentions().begin_sweep(&snapshot, ms(5000), None).unwrap(), "the lease is over");
    assert!(store.snapshot(snapshot.id).unwrap().is_none());
    assert!(!store.retentions().lease(snapshot.id, "admin", ms(9000)).unwrap());
    assert!(!store.retentions().begin_sweep(&snapshot, ms(9000), None).unwrap(), "it is being deleted already");
    assert!(store.retentions().begin_sweep(&last, ms(0), None).unwrap());
}

#[test]
fn a_key_belongs_to_user_and_vm_and_expires() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let made = made(&store, 1, None, Some(key("a")));
    let (vm, now) = (VM.parse().unwrap(), Timestamp::now());
    let use_of = |vm: &VmId, key: &RequestKey, now| store.key_use(vm, key, now).unwrap().map(|used| used.snapshot());
    assert_eq!(use_of(&vm, &key("a"), now), Some(made.id));
    assert_eq!(use_of(&vm, &key("b"), now), None);
    assert_eq!(use_of(&"f".repeat(32).parse().unwrap(), &key("a"), now), None);
    assert_eq!(use_of(&vm, &RequestKey { user: "eve".to_owned(), ..key("a") }, now), None);
    assert_eq!(use_of(&vm, &key("a"), now + KEY_LIFETIME - Duration::from_secs(60)), Some(made.id));
    assert_eq!(use_of(&vm, &key("a"), now + KEY_LIFETIME), None);
    assert_eq!(use_of(&vm, &key("a"), now - KEY_LIFETIME * 30), Some(made.id), "the clock was set back");
}

#[test]
fn the_number_of_keys_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let vm: VmId = VM.parse().unwrap();
    // The maximum number of keys, in one transaction, each older than the one before.
    let now = Timestamp::now().as_millisecond();
    store
        .handle
        .write(|transaction| {
            let mut keys = transaction.open_table(IDEMPOTENCY_KEYS)?;
            for number in 0..MAX_KEYS {
                let used_at_ms = now - number as i64;
                let used = KeyUse { digest: [7; 32], snapshot: number as u128, used_at_ms };
                let bytes = postcard::to_stdvec(&used).unwrap();
                keys.insert(("admin", VM, format!("{number}").as_str()), bytes.as_slice())?;
            }
            Ok(())
        })
        .unwrap();
    made(&store, 1, None, Some(key("new")));
    let known = |text: &str| store.key_use(&vm, &key(text), Timestamp::now()).unwrap().is_some();
    assert!(known("new") && known("0") && known(&format!("{}", MAX_KEYS - 2)));
    assert!(!known(&format!("{}", MAX_KEYS - 1)), "the oldest is dropped");
}

#[test]
fn leases_of_a_repository_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    let [first, second] = [1, 2].map(|number| made(&store, number, None, None));
    let elsewhere = Snapshot {
        disks: first
            .disks
            .iter()
            .cloned()
            .map(|mut disk| {
                disk.source.repository = "other".parse().unwrap();
                disk
            })
            .collect(),
        ..begin(&store, snapshot(3), None)
    };
    store.commit(&[(Described::alone(elsewhere.clone()), None)]).unwrap();
    let retentions = store.retentions();
    for (id, user) in [(first.id, "ann"), (first.id, "bob"), (elsewhere.id, "ann")] {
        assert!(retentions.lease(id, user, ms(7000)).unwrap());
    }
    let lease = |snapshot: &Snapshot, user: &str, until| Lease { snapshot: snapshot.id, user: user.to_owned(), until };
    let unknown = Lease { snapshot: SnapshotId::from_u128(9), user: "ann".to_owned(), until: ms(1) };
    let found = [lease(&first, "ann", ms(8000)), lease(&second, "eve", ms(9000)), unknown];
    let repository = &first.disks[0].source.repository;
    retentions.replace_leases(repository, &found).unwrap();
    let expected = [found[0].clone(), found[1].clone(), lease(&elsewhere, "ann", ms(7000))];
    assert_eq!(retentions.all_leases().unwrap(), expected);
    let other = "other".parse().unwrap();
    assert!(!retentions.are_shared(repository).unwrap());
    retentions.set_shared(repository).unwrap();
    assert!(retentions.are_shared(repository).unwrap() && !retentions.are_shared(&other).unwrap());
    retentions.end_sharing().unwrap();
    assert!(!retentions.are_shared(repository).unwrap());
}
