//! Work that several threads share.

use std::sync::{Mutex, PoisonError};
use std::thread;

/// Runs `work` on up to `threads` threads at once, including the caller's. `work` must take parts until nothing is left:
/// then fewer threads finish it too if the others cannot be started.
pub fn share(name: &str, threads: usize, work: impl Fn() + Sync) {
    thread::scope(|scope| {
        for _ in 1..threads {
            if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, &work) {
                tracing::debug!(%error, name, "a thread cannot be started; the others do its work");
                break;
            }
        }
        work();
    });
}

/// Calls `each` with every item, on at most `threads` threads. The results are in the order of the items.
pub fn map<T: Send, R: Send>(name: &str, threads: usize, items: Vec<T>, each: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = threads.min(items.len());
    let (items, results) = (Mutex::new(items.into_iter().enumerate()), Mutex::new(Vec::new()));
    share(name, threads, || {
        loop {
            let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((index, item)) = next else { return };
            let result = each(item);
            results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        let doubled = map("test", 4, (0..1000).collect(), |number: u32| number * 2);
        assert_eq!(doubled, (0..1000).map(|number| number * 2).collect::<Vec<_>>());
        assert_eq!(map("test", 4, Vec::new(), |(): ()| ()), []);
    }

    #[test]
    fn the_caller_works_too() {
        let caller = thread::current().id();
        let ids = map("test", 1, vec![(); 3], |()| thread::current().id());
        assert_eq!(ids, [caller; 3]);
    }
}
