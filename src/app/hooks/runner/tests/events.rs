//! What webhooks hear of hooks.

use super::*;
use crate::store::{Outcome, QueueChanges, Waiting};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn waiting(scene: &Scene) -> Waiting {
    scene.store.events().waiting("a", &BTreeMap::new()).unwrap()
}

/// The events that wait for the webhook, which are removed: their id, name and data.
fn take_events(scene: &Scene) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    while let Some((number, body)) = waiting(scene).next {
        let event: Value = serde_json::from_slice(&body).unwrap();
        let text = |member: &str| event[member].as_str().unwrap().to_owned();
        found.push((text("id"), text("event"), event["data"].clone()));
        let changes = QueueChanges { outcomes: [(number, Outcome::Delivered)].into(), ..QueueChanges::default() };
        scene.store.events().record("a", &changes, 10).unwrap();
    }
    found
}

/// The only event.
fn take_event(scene: &Scene) -> (String, String, Value) {
    let mut events = take_events(scene);
    assert_eq!(events.len(), 1, "{events:?}");
    events.remove(0)
}

/// Changes the record of the only operation.
fn change(scene: &Scene, change: impl FnOnce(PendingPostHooks) -> PendingPostHooks) {
    let (key, written) = scene.store.pending_hooks().all().unwrap().remove(0);
    let changed = change(PendingPostHooks::from_bytes(&written).unwrap());
    scene.store.pending_hooks().record(key, &changed.to_bytes().unwrap(), &[]).unwrap();
}

#[tokio::test]
async fn failure_is_reported_once_and_so_is_the_end_of_the_retries() {
    let (_dir, scene, key, post_hooks) = scene("[ $2 = pre ]").await;
    let prefix = post_hooks.call_prefix.clone();
    let (outcome, _) = scene.run(key, post_hooks, step(|| Ok(()), None)).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    let (id, kind, data) = take_event(&scene);
    assert_eq!((id, kind, &data["will_retry"]), (format!("{prefix}-failed"), "hook.failed".to_owned(), &json!(true)));
    assert_eq!((&data["hooks"][0]["name"], &data["hooks"][0]["stage"]), (&json!("freeze"), &json!("post")));
    // The service was restarted so often that all retries are used up, but not the time for them.
    change(&scene, |post_hooks| PendingPostHooks { attempts: 67, ..post_hooks });
    scene.pending.call_failed(0).await;
    assert_eq!((attempts(&scene), take_events(&scene)), (vec![68], vec![]));
    let a_week_ago = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(7 * 24)).as_millisecond();
    change(&scene, |post_hooks| PendingPostHooks { failing_since_ms: Some(a_week_ago), ..post_hooks });
    scene.pending.call_failed(0).await;
    let (id, kind, data) = take_event(&scene);
    assert_eq!((id, kind), (format!("{prefix}-given-up"), "hook.failed".to_owned()));
    assert_eq!((&data["will_retry"], &data["hooks"][0]["outcome"]), (&json!(false), &json!("failed")));
    scene.pending.call_failed(0).await;
    assert_eq!((attempts(&scene), take_events(&scene)), (vec![], vec![]));
}

#[tokio::test]
async fn success_is_reported_after_a_failure_that_was() {
    let (dir, scene, key, post_hooks) = scene("[ $2 = pre ] || [ -e mended ]").await;
    let prefix = post_hooks.call_prefix.clone();
    scene.run(key, post_hooks.clone(), step(|| Ok(()), None)).await.0.unwrap();
    assert_eq!(take_event(&scene).0, format!("{prefix}-failed"));
    fs::write(dir.path().join("mended"), "").unwrap();
    scene.pending.call_failed(1).await;
    let (id, kind, data) = take_event(&scene);
    assert_eq!((id, kind), (format!("{prefix}-recovered"), "hook.recovered".to_owned()));
    assert_eq!((&data["will_retry"], &data["hooks"][0]["outcome"]), (&json!(false), &json!("ok")));
    // Hooks that never fail are not reported.
    scene.pending.begin(key, &post_hooks).unwrap();
    scene.run(key, post_hooks, step(|| Ok(()), None)).await.0.unwrap();
    assert_eq!(take_events(&scene), []);
}

#[tokio::test]
async fn pre_hook_that_refuses_is_reported_without_retries() {
    let (_dir, scene, key, post_hooks) = scene("[ $2 = post ]").await;
    assert!(scene.run(key, post_hooks, step(|| Ok(()), None)).await.0.is_err());
    let (_, kind, data) = take_event(&scene);
    assert_eq!((kind.as_str(), &data["will_retry"]), ("hook.failed", &json!(false)));
    assert_eq!(data["hooks"][0]["stage"], "pre");
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
}

#[tokio::test]
async fn failure_after_an_interrupted_call_is_reported() {
    let (_dir, scene, key, post_hooks) = scene("[ $2 = pre ]").await;
    // The service was killed during a call after its start, before there was a result to report.
    let interrupted = post_hooks.failed().unwrap();
    scene.store.pending_hooks().record(key, &interrupted.to_bytes().unwrap(), &[]).unwrap();
    scene.pending.call_failed(0).await;
    let (_, kind, data) = take_event(&scene);
    assert_eq!((kind.as_str(), &data["will_retry"]), ("hook.failed", &json!(true)));
}

#[tokio::test]
async fn hooks_whose_thread_panicked_are_reported() {
    let (_dir, scene, key, post_hooks) = scene("").await;
    let prefix = post_hooks.call_prefix.clone();
    scene.runner.put_all(vec![(key, post_hooks)], PendingHooks::put_without_result).await;
    let (id, kind, data) = take_event(&scene);
    assert_eq!((id, kind, &data["will_retry"]), (format!("{prefix}-failed"), "hook.failed".to_owned(), &json!(true)));
    let hook = &data["hooks"][0];
    assert_eq!(
        (&hook["name"], &hook["kind"], &hook["outcome"]),
        (&json!("freeze"), &json!("directory"), &json!("failed"))
    );
    assert_eq!(attempts(&scene), [1]);
    scene.pending.call_failed(1).await;
    assert_eq!(take_event(&scene).1, "hook.recovered");
}

#[tokio::test]
async fn event_is_written_with_the_record_of_the_attempt_or_not_at_all() {
    let (_dir, scene, key, post_hooks) = scene("").await;
    let number_of_events = || waiting(&scene).queued;
    scene.pending.put_result(key, post_hooks.clone(), post_hooks.hooks.clone(), &[]);
    assert_eq!((attempts(&scene), number_of_events()), (vec![0], 0));
    scene.pending.write_unwritten();
    assert_eq!((attempts(&scene), number_of_events()), (vec![1], 1));
    // The next operation of this kind begins before the change is written: the event stays.
    let (_, written) = scene.store.pending_hooks().all().unwrap().remove(0);
    let failed = PendingPostHooks::from_bytes(&written).unwrap();
    scene.pending.put_result(key, failed, Some(crate::hooks::PendingHooks::default()), &[]);
    scene.pending.begin(key, &post_hooks).unwrap();
    assert_eq!((attempts(&scene), number_of_events()), (vec![0], 2));
    scene.pending.write_unwritten();
    assert_eq!((attempts(&scene), number_of_events()), (vec![0], 2));
}
