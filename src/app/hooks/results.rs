//! What follows from the results of post hooks: whether they stay pending, and what webhooks hear of it.

use jiff::{SignedDuration, Timestamp};

use super::pending::{MINUTELY_RETRIES, PendingHooks};
use crate::app::notifications::Event;
use crate::hooks::{PendingHooks as FailedHooks, PendingPostHooks};
use crate::model::{HookKind, HookOutcome, HookRun, HookStage, PendingHooksKey};

/// Retries end after so many failures: about a week, or less if the service is restarted often.
const MAX_RETRIES: u32 = MINUTELY_RETRIES + 7;

/// Nor do they end before this time, so that restarts do not end them early. The last of seven daily retries can be so
/// long after the first failure.
const MIN_RETRY_TIME: SignedDuration = SignedDuration::from_hours(6 * 24);

impl PendingHooks {
    /// Takes the result of calling post hooks: the `failed` ones stay pending. `calls` are those of this time, also of
    /// `pre` hooks. [`PendingHooks::write_change`] writes it, together with its event.
    ///
    /// Webhooks hear of the first failure, and of the end: a success, or the last retry.
    pub(super) fn put_result(
        &self,
        key: PendingHooksKey,
        post_hooks: PendingPostHooks,
        failed: Option<FailedHooks>,
        calls: &[HookRun],
    ) {
        let (snapshot, vm) = (post_hooks.event.snapshot_id.clone(), post_hooks.event.vm.name.clone());
        let (failures, others): (Vec<_>, Vec<_>) = calls.iter().cloned().partition(HookRun::has_failed);
        if failed.as_ref().is_some_and(FailedHooks::is_empty) {
            let mut events = Vec::new();
            // A `pre` hook.
            if !failures.is_empty() {
                events.push(Event::hooks_failed(&post_hooks, &failures, false));
            }
            if post_hooks.reported || !post_hooks.earlier.is_empty() {
                let posts: Vec<_> = others.into_iter().filter(|call| call.stage == HookStage::Post).collect();
                events.push(Event::hooks_recovered(&post_hooks, &posts));
            }
            return self.put(key, None, events);
        }
        let failures = if failures.is_empty() { not_called(&post_hooks) } else { failures };
        let now = Timestamp::now();
        // One in the future was recorded while the clock was wrong.
        let since = post_hooks.failing_since_ms.and_then(|since| Timestamp::from_millisecond(since).ok());
        let since = since.filter(|since| *since <= now).unwrap_or(now);
        let was_reported = post_hooks.reported;
        let post_hooks = PendingPostHooks {
            hooks: failed,
            earlier: Vec::new(),
            attempts: post_hooks.attempts.saturating_add(1),
            failing_since_ms: Some(since.as_millisecond()),
            reported: true,
            ..post_hooks
        };
        let (attempts, hooks) = (post_hooks.attempts, &post_hooks.hooks);
        if attempts > MAX_RETRIES && now.duration_since(since) >= MIN_RETRY_TIME {
            tracing::error!(snapshot, vm, attempts, ?hooks, "post hooks have failed for a week; retries end");
            let event = Event::hooks_given_up(&post_hooks, &failures);
            return self.put(key, None, vec![event]);
        }
        let next = if attempts <= MINUTELY_RETRIES { "in a minute" } else { "in a day, and at the next start" };
        tracing::error!(snapshot, vm, attempts, ?hooks, next, "post hooks have failed and will be retried");
        let event = (!was_reported).then(|| Event::hooks_failed(&post_hooks, &failures, true));
        self.put(key, Some(post_hooks), Vec::from_iter(event));
    }

    /// Takes that an operation ended without the results of its hooks: a guest may be frozen, and only failed post hooks
    /// are called again. [`PendingHooks::write_change`] writes it, together with its event.
    pub(super) fn put_without_result(&self, key: PendingHooksKey, post_hooks: PendingPostHooks) {
        let event = Event::hooks_failed(&post_hooks, &not_called(&post_hooks), true);
        let failed = PendingPostHooks { reported: true, ..post_hooks }.failed();
        self.put(key, failed, vec![event]);
    }
}

/// The calls of all pending post hooks, if there are no results of them.
fn not_called(post_hooks: &PendingPostHooks) -> Vec<HookRun> {
    let call = |name: String| HookRun {
        kind: if name.contains("://") { HookKind::Sync } else { HookKind::Directory },
        name,
        stage: HookStage::Post,
        outcome: HookOutcome::Failed,
        duration_ms: 0,
        detail: "an internal error of the service; it is not known whether the hook was called".to_owned(),
    };
    post_hooks.names().into_iter().map(call).collect()
}
