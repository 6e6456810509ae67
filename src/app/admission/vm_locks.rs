//! What changes the snapshots of one VM happens one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::model::VmId;

/// Who may change the snapshots of which VM.
#[derive(Default)]
pub(crate) struct VmLocks {
    taken: Mutex<HashMap<VmId, Weak<AsyncMutex<()>>>>,
}

impl VmLocks {
    /// Waits until nobody else changes the snapshots of `vm`; first come, first served.
    pub(crate) async fn take(&self, vm: &VmId) -> OwnedMutexGuard<()> {
        self.turn(vm).lock_owned().await
    }

    /// The same, unless `most` others are at it or wait already.
    pub(crate) async fn take_behind(&self, vm: &VmId, most: usize) -> Option<OwnedMutexGuard<()>> {
        let turn = self.turn(vm);
        // One count for each who holds the turn or waits for it; one is ours.
        if Arc::strong_count(&turn) > most {
            return None;
        }
        Some(turn.lock_owned().await)
    }

    /// The turn, where nobody has it.
    pub(crate) fn try_take(&self, vm: &VmId) -> Option<OwnedMutexGuard<()>> {
        self.turn(vm).try_lock_owned().ok()
    }

    fn turn(&self, vm: &VmId) -> Arc<AsyncMutex<()>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|_, turn| turn.strong_count() > 0);
        let turn = taken.get(vm).and_then(Weak::upgrade).unwrap_or_default();
        taken.insert(vm.clone(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_of_one_vm_take_turns_and_nothing_is_kept() {
        let vm_locks = VmLocks::default();
        let a: VmId = "0004fb0000060000000000000000000a".parse().unwrap();
        let b: VmId = "0004fb0000060000000000000000000b".parse().unwrap();
        let first = vm_locks.take(&a).await;
        let other = vm_locks.take(&b).await;
        let mut second = Box::pin(vm_locks.take(&a));
        assert!(futures_poll(&mut second).await.is_none(), "the turn was not free");
        drop(first);
        drop(second.await);
        drop(other);
        drop(vm_locks.take(&b).await);
        assert_eq!(vm_locks.taken.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_line_before_one_vm_has_an_end() {
        let vm_locks = VmLocks::default();
        let vm: VmId = "0004fb0000060000000000000000000a".parse().unwrap();
        let first = vm_locks.take_behind(&vm, 2).await.unwrap();
        assert!(vm_locks.try_take(&vm).is_none());
        let mut second = Box::pin(vm_locks.take_behind(&vm, 2));
        assert!(futures_poll(&mut second).await.is_none(), "the turn was not free");
        assert!(vm_locks.take_behind(&vm, 2).await.is_none(), "a third waits");
        // Who goes away leaves room.
        drop(second);
        let mut third = Box::pin(vm_locks.take_behind(&vm, 2));
        assert!(futures_poll(&mut third).await.is_none(), "the turn was not free");
        drop(first);
        assert!(third.await.is_some());
        assert!(vm_locks.try_take(&vm).is_some());
    }

    /// Polls once.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(value) => Some(value),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
