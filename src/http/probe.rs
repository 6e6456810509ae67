//! Finds out whether the server serves: a question that the accept loop answers as it serves a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Asks the server.
#[derive(Debug)]
pub struct Prober(mpsc::Sender<Probe>);

/// The server's end.
#[derive(Debug)]
pub struct Probes(mpsc::Receiver<Probe>);

/// A question. It is dropped without an answer if the server cannot start a thread.
#[derive(Debug)]
pub(super) struct Probe {
    passed: Arc<AtomicU8>,
    answer: oneshot::Sender<()>,
}

/// Both ends.
pub fn prober() -> (Prober, Probes) {
    let (sender, receiver) = mpsc::channel(1);
    (Prober(sender), Probes(receiver))
}

impl Prober {
    /// Waits until the accept loop has started a thread as for a connection, and a task has run on the pool for blocking
    /// work. `passed` counts these two. Returns whether they have done so.
    pub async fn probe(&self, passed: Arc<AtomicU8>) -> bool {
        let (answer, answered) = oneshot::channel();
        self.0.send(Probe { passed, answer }).await.is_ok() && answered.await.is_ok()
    }
}

impl Probes {
    /// The next question. Waits forever if the other end is gone.
    pub(super) async fn next(&mut self) -> Probe {
        match self.0.recv().await {
            Some(probe) => probe,
            None => std::future::pending().await,
        }
    }
}

impl Probe {
    /// The accept loop has got it.
    pub(super) fn received(&self) {
        self.passed.store(1, Ordering::Relaxed);
    }

    /// To be run on a connection's thread. `service` is the runtime of the service.
    pub(super) async fn answer(self, service: Handle) {
        self.passed.store(2, Ordering::Relaxed);
        if service.spawn_blocking(|| ()).await.is_ok() {
            let _ = self.answer.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pool_that_is_wholly_stuck_does_not_answer() {
        let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(1).enable_all().build().unwrap();
        let (release, stuck) = std_mpsc::channel::<()>();
        runtime.block_on(async {
            let (prober, mut probes) = prober();
            let passed = Arc::new(AtomicU8::new(0));
            let hung = Handle::current().spawn_blocking(move || stuck.recv());
            let mut asked = std::pin::pin!(prober.probe(Arc::clone(&passed)));
            let served = async {
                let probe = probes.next().await;
                probe.received();
                probe.answer(Handle::current()).await;
            };
            let mut served = std::pin::pin!(served);
            let early = tokio::select! {
                answered = &mut asked => Some(answered),
                () = &mut served => None,
                () = tokio::time::sleep(Duration::from_millis(50)) => None,
            };
            assert_eq!((early, passed.load(Ordering::Relaxed)), (None, 2));
            release.send(()).unwrap();
            let (answered, ()) = tokio::join!(asked, served);
            assert!(answered);
            hung.await.unwrap().unwrap();
        });
    }

    #[tokio::test]
    async fn a_question_without_a_thread_is_not_answered() {
        let (prober, mut probes) = prober();
        let passed = Arc::new(AtomicU8::new(0));
        let dropped = async { drop(probes.next().await) };
        assert!(!tokio::join!(prober.probe(passed), dropped).0);
    }
}
