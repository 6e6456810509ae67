//! What changes the snapshots of one VM happens one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::model::VmId;

/// Who may change the snapshots of which VM.
#[derive(Default)]
pub(super) struct Turns {
    taken: Mutex<HashMap<VmId, Weak<AsyncMutex<()>>>>,
}

impl Turns {
    /// Waits until nobody else changes the snapshots of `vm`; first come, first served.
    pub(super) async fn take(&self, vm: &VmId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.retain(|_, turn| turn.strong_count() > 0);
            let turn = taken.get(vm).and_then(Weak::upgrade).unwrap_or_default();
            taken.insert(vm.clone(), Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_of_one_vm_take_turns_and_nothing_is_kept() {
        let turns = Turns::default();
        let a: VmId = "0004fb0000060000000000000000000a".parse().unwrap();
        let b: VmId = "0004fb0000060000000000000000000b".parse().unwrap();
        let first = turns.take(&a).await;
        let other = turns.take(&b).await;
        let mut second = Box::pin(turns.take(&a));
        assert!(futures_poll(&mut second).await.is_none(), "the turn was not free");
        drop(first);
        drop(second.await);
        drop(other);
        drop(turns.take(&b).await);
        assert_eq!(turns.taken.lock().unwrap().len(), 1);
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
