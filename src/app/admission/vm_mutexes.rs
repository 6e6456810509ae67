//! One mutex per VM: only one operation of this service changes its snapshots at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::model::VmId;

/// The mutexes of VMs. Unused ones are removed.
#[derive(Default)]
pub(super) struct VmMutexes {
    by_vm: Mutex<HashMap<VmId, Weak<AsyncMutex<()>>>>,
}

impl VmMutexes {
    /// Locks `vm`; first come, first served.
    pub(super) async fn take(&self, vm: &VmId) -> OwnedMutexGuard<()> {
        self.mutex(vm).lock_owned().await
    }

    /// As [`VmMutexes::take`]; nothing if `most` operations hold the mutex or wait for it already.
    pub(super) async fn take_behind(&self, vm: &VmId, most: usize) -> Option<OwnedMutexGuard<()>> {
        let mutex = self.mutex(vm);
        // Each operation that holds the mutex or waits for it has a reference, and so does this call.
        if Arc::strong_count(&mutex) > most {
            return None;
        }
        Some(mutex.lock_owned().await)
    }

    /// Locks `vm` if that is possible at once.
    pub(super) fn try_take(&self, vm: &VmId) -> Option<OwnedMutexGuard<()>> {
        self.mutex(vm).try_lock_owned().ok()
    }

    fn mutex(&self, vm: &VmId) -> Arc<AsyncMutex<()>> {
        let mut by_vm = self.by_vm.lock().unwrap_or_else(PoisonError::into_inner);
        by_vm.retain(|_, mutex| mutex.strong_count() > 0);
        let mutex = by_vm.get(vm).and_then(Weak::upgrade).unwrap_or_default();
        by_vm.insert(vm.clone(), Arc::downgrade(&mutex));
        mutex
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn operations_on_one_vm_run_in_order_and_unused_mutexes_are_removed() {
        let mutexes = VmMutexes::default();
        let a: VmId = "0004fb0000060000000000000000000a".parse().unwrap();
        let b: VmId = "0004fb0000060000000000000000000b".parse().unwrap();
        let first = mutexes.take(&a).await;
        let other = mutexes.take(&b).await;
        let mut second = Box::pin(mutexes.take(&a));
        assert!(poll_once(&mut second).await.is_none(), "the mutex was free");
        drop(first);
        drop(second.await);
        drop(other);
        drop(mutexes.take(&b).await);
        assert_eq!(mutexes.by_vm.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn waiting_operations_of_one_vm_are_bounded() {
        let mutexes = VmMutexes::default();
        let vm: VmId = "0004fb0000060000000000000000000a".parse().unwrap();
        let first = mutexes.take_behind(&vm, 2).await.unwrap();
        assert!(mutexes.try_take(&vm).is_none());
        let mut second = Box::pin(mutexes.take_behind(&vm, 2));
        assert!(poll_once(&mut second).await.is_none(), "the mutex was free");
        assert!(mutexes.take_behind(&vm, 2).await.is_none(), "a third waits");
        // A cancelled wait makes room.
        drop(second);
        let mut third = Box::pin(mutexes.take_behind(&vm, 2));
        assert!(poll_once(&mut third).await.is_none(), "the mutex was free");
        drop(first);
        assert!(third.await.is_some());
        assert!(mutexes.try_take(&vm).is_some());
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(value) => Some(value),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
