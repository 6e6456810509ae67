use jiff::Timestamp;

use super::*;
use crate::model::Described;
use crate::store::Store;
use crate::store::tests::{begin, snapshot};

fn event(webhooks: &[&str], body: &str) -> NewEvent {
    let webhooks = webhooks.iter().copied().map(str::to_owned).collect();
    NewEvent { webhooks, body: body.as_bytes().to_vec(), max_queued: 3 }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("x.db")).unwrap();
    (dir, store)
}

fn waiting(store: &Store, webhook: &str) -> Waiting {
    store.events().waiting(webhook, &BTreeMap::new()).unwrap()
}

fn record(store: &Store, webhook: &str, outcomes: &[(u64, Outcome)], reported: u64) {
    let changes = QueueChanges { outcomes: outcomes.iter().copied().collect(), reported, ..QueueChanges::default() };
    store.events().record(webhook, &changes, 3).unwrap();
}

/// The bodies that wait for a webhook, and how many were dropped. They are removed.
fn take(store: &Store, webhook: &str) -> (Vec<String>, u64) {
    let (mut bodies, dropped) = (Vec::new(), waiting(store, webhook).dropped);
    while let Some((number, body)) = waiting(store, webhook).next {
        bodies.push(String::from_utf8(body).unwrap());
        record(store, webhook, &[(number, Outcome::Delivered)], 0);
    }
    (bodies, dropped)
}

#[test]
fn events_wait_in_order_for_each_webhook() {
    let (_dir, store) = store();
    let events = store.events();
    for body in ["1", "2"] {
        events.add(&event(&["a", "b"], body)).unwrap();
    }
    events.add(&event(&["a"], "3")).unwrap();
    let first = waiting(&store, "a");
    assert_eq!((first.queued, first.dropped), (3, 0));
    // 99: an event that is gone meanwhile.
    record(&store, "a", &[(first.next.unwrap().0, Outcome::Postponed), (99, Outcome::Postponed)], 0);
    record(&store, "a", &[(99, Outcome::GivenUp)], 0);
    assert_eq!(take(&store, "a"), (vec!["2".to_owned(), "3".to_owned(), "1".to_owned()], 0));
    assert_eq!(waiting(&store, "b").queued, 2);
    // Not a start of the name of another one.
    assert_eq!(waiting(&store, ""), Waiting::default());
    events.set_condition(&["b".to_owned(), "c".to_owned()], "space", Some("low"), None).unwrap();
    assert_eq!(events.keep_only(|name| name == "a").unwrap(), ["b"]);
    assert_eq!(events.keep_only(|name| name == "a").unwrap(), Vec::<String>::new());
    assert_eq!((waiting(&store, "b"), events.conditions().unwrap()), (Waiting::default(), HashMap::new()));
}

/// The first one may be under way.
#[test]
fn oldest_events_but_one_of_a_full_queue_are_dropped_and_counted() {
    let (_dir, store) = store();
    let events = store.events();
    for body in ["1", "2", "3", "4", "5"] {
        events.add(&event(&["a"], body)).unwrap();
    }
    events.add(&event(&["b"], "6")).unwrap();
    let found = waiting(&store, "a");
    let (number, body) = found.next.unwrap();
    assert_eq!((found.queued, found.dropped, body.as_slice()), (3, 2, b"1".as_slice()));
    record(&store, "a", &[(number, Outcome::GivenUp)], 0);
    assert_eq!(waiting(&store, "a").dropped, 3);
    // Meanwhile another one is dropped, which is reported next time.
    record(&store, "a", &[(waiting(&store, "a").next.unwrap().0, Outcome::Delivered)], 2);
    assert_eq!(take(&store, "a"), (vec!["5".to_owned()], 1));
    assert_eq!(take(&store, "b"), (vec!["6".to_owned()], 0));
    events.add(&event(&["a"], "7")).unwrap();
    record(&store, "a", &[(waiting(&store, "a").next.unwrap().0, Outcome::Delivered)], 1);
    assert_eq!(waiting(&store, "a"), Waiting::default());
}

#[test]
fn bytes_of_a_queue_are_bounded() {
    let (_dir, store) = store();
    let large = NewEvent { body: vec![b'x'; MAX_QUEUED_BYTES as usize / 2], ..event(&["a"], "") };
    for _ in 0..3 {
        store.events().add(&large).unwrap();
    }
    let found = waiting(&store, "a");
    assert_eq!((found.queued, found.dropped), (2, 1));
    // One that is too large alone is kept.
    let larger = NewEvent { body: vec![b'x'; MAX_QUEUED_BYTES as usize + 1], ..event(&["b"], "") };
    store.events().add(&larger).unwrap();
    assert_eq!(waiting(&store, "b").queued, 1);
}

#[test]
fn events_with_an_outcome_are_not_next() {
    let (_dir, store) = store();
    let events = store.events();
    for body in ["1", "2", "3"] {
        events.add(&event(&["a"], body)).unwrap();
    }
    let (first, _) = waiting(&store, "a").next.unwrap();
    let mut changes = QueueChanges { outcomes: [(first, Outcome::Delivered)].into(), ..QueueChanges::default() };
    let (second, body) = events.waiting("a", &changes.outcomes).unwrap().next.unwrap();
    assert_eq!(body, b"2");
    assert_eq!(events.first_while("a", &changes.outcomes, |body| body == b"2").unwrap(), [second]);
    assert_eq!(events.first_while("a", &changes.outcomes, |body| body == b"1").unwrap(), [0; 0]);
    changes.unwritten = vec![b"4".to_vec()];
    changes.dropped = 5;
    changes.reported = 1;
    events.record("a", &changes, 3).unwrap();
    assert_eq!(take(&store, "a"), (vec!["2".to_owned(), "3".to_owned(), "4".to_owned()], 4));
}

#[test]
fn event_is_written_with_its_change_or_not_at_all() {
    let (_dir, store) = store();
    let made = begin(&store, snapshot(1), None);
    store.commit(&[(Described::alone(made.clone()), Some(event(&["a"], "made")))]).unwrap();
    let now = Timestamp::now();
    assert!(store.retentions().lease(made.id, "ann", now + std::time::Duration::from_secs(60)).unwrap());
    assert!(!store.retentions().begin_sweep(&made, now, Some(&event(&["a"], "swept"))).unwrap());
    store.retentions().release(made.id, "ann").unwrap();
    assert!(store.retentions().begin_sweep(&made, now, Some(&event(&["a"], "expired"))).unwrap());
    let other = begin(&store, snapshot(2), None);
    store.begin_deletion(&other, Some(&event(&["a"], "deleted"))).unwrap();
    assert_eq!(take(&store, "a").0, ["made", "expired", "deleted"]);
}

#[test]
fn condition_is_recorded_with_its_event() {
    let (_dir, store) = store();
    let events = store.events();
    let both = ["a".to_owned(), "b".to_owned()];
    events.set_condition(&both, "space", Some("low"), Some(&event(&["a"], "low"))).unwrap();
    events.set_condition(&both, "database", Some("damaged"), None).unwrap();
    events.set_condition(&both, "database", None, None).unwrap();
    events.set_condition(&both[..1], "space", None, None).unwrap();
    let expected = HashMap::from([(("b".to_owned(), "space".to_owned()), "low".to_owned())]);
    assert_eq!(events.conditions().unwrap(), expected);
    assert_eq!(take(&store, "a").0, ["low"]);
}
