use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::*;

impl Queued for u8 {
    fn share(&self) -> Option<Share> {
        None
    }
}

/// A user and the last digit of a VM.
type Work = (&'static str, u8);

impl Queued for Work {
    fn share(&self) -> Option<Share> {
        Some((self.0.into(), self.1.to_string().into()))
    }
}

/// All requests, and whether they run.
fn entries<T: Queued + Copy>(queue: &AdmissionQueue<T>) -> Vec<(T, bool)> {
    let mut all = Vec::new();
    queue.each(|entry| all.push((*entry.work, entry.is_running)));
    all
}

/// A request that waits for a slot.
type Waiting<T> = Pin<Box<dyn Future<Output = Result<Permit<T>, QueueFull>>>>;

/// Requests a slot, none of which is free.
fn request<T: Queued + 'static>(queue: &AdmissionQueue<T>, work: T) -> Waiting<T> {
    let mut waiting: Waiting<T> = Box::pin(queue.join(work).unwrap().admitted());
    // The slot is requested at the first poll.
    assert!(now(&mut waiting).is_none(), "a slot was free");
    waiting
}

/// The result of a waiting request, if it has ended.
fn now<T: Queued>(waiting: &mut Waiting<T>) -> Option<Result<Permit<T>, QueueFull>> {
    match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    }
}

async fn run<T: Queued>(queue: &AdmissionQueue<T>, work: T) -> Permit<T> {
    queue.join(work).unwrap().admitted().await.unwrap()
}

#[tokio::test]
async fn slots_are_granted_in_order_and_queue_is_bounded() {
    let queue = AdmissionQueue::new(1, 2);
    let first = run(&queue, 1).await;
    let (second, third) = (queue.join(2).unwrap(), queue.join(3).unwrap());
    assert_eq!(queue.join(4).err(), Some(QueueFull));
    assert_eq!(entries(&queue), [(1, true), (2, false), (3, false)]);
    // A request that leaves makes room, and gets no slot.
    drop(second);
    let fourth = queue.join(4).unwrap();
    drop(first);
    let third = third.admitted().await.unwrap();
    assert_eq!((*third.work(), entries(&queue)), (3, vec![(3, true), (4, false)]));
    // Hung work stays listed, but its slot goes to another request.
    let mut third = third;
    queue.release_slots(|work| *work == 3);
    let mut fourth = fourth.admitted().await.unwrap();
    assert_eq!(entries(&queue), [(3, true), (4, true)]);
    third.release();
    let mut fifth = request(&queue, 5);
    drop(third);
    assert!(now(&mut fifth).is_none(), "a released slot was granted twice");
    fourth.release();
    drop(now(&mut fifth).unwrap());
    assert_eq!(entries(&queue), [(4, true)]);
    drop(fourth);
    assert_eq!(entries(&queue), []);
    // A burst on an idle queue: requests that get a slot at once do not count as waiting.
    let burst: Vec<_> = (0..3).map(|n| queue.join(n).unwrap()).collect();
    assert_eq!(queue.join(9).err(), Some(QueueFull));
    drop(burst);
}

#[tokio::test]
async fn dropped_request_passes_on_its_slot() {
    let queue = AdmissionQueue::new(1, 9);
    let first = run(&queue, 1).await;
    let (second, mut third) = (request(&queue, 2), request(&queue, 3));
    drop(first);
    // It already has the slot, but never learns of it.
    drop(second);
    assert_eq!(*now(&mut third).unwrap().unwrap().work(), 3);
    assert_eq!(queue.waiting(), 0);
}

#[tokio::test]
async fn share_with_fewest_slots_is_next_and_none_holds_all() {
    let queue = AdmissionQueue::<Work>::fair(4, 100);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(run(&queue, ("a", 1)).await);
    }
    // The user's other VM holds no slot, so it need not wait.
    let other_vm = run(&queue, ("a", 2)).await;
    let mut more = request(&queue, ("a", 1));
    let mut others: Vec<_> = [("b", 1), ("b", 2), ("a", 3)].map(|work| request(&queue, work)).into();
    assert_eq!(queue.waiting(), 4);
    drop(other_vm);
    // The spare slot goes to the first share without one. The earlier request's share has four.
    let b1 = now(&mut others[0]).unwrap().unwrap();
    assert!(now(&mut more).is_none() && now(&mut others[1]).is_none() && now(&mut others[2]).is_none());
    // Among shares without a slot, the user with the fewest is first.
    drop(others.remove(1));
    let mut c = request(&queue, ("c", 9));
    drop(b1);
    assert!(now(&mut c).is_some(), "the user with four slots was served before the one without");
    drop(c);
    let a3 = now(&mut others[1]).unwrap().unwrap();
    drop(held.split_off(1));
    assert_eq!(now(&mut more).unwrap().unwrap().work(), &("a", 1));
    drop((a3, held));

    // A single slot has no spare.
    let queue = AdmissionQueue::<Work>::fair(1, 100);
    let first = run(&queue, ("a", 1)).await;
    let mut second = request(&queue, ("b", 1));
    drop(first);
    assert!(now(&mut second).is_some());
}

#[tokio::test]
async fn share_with_few_requests_displaces_others_from_full_queue() {
    let queue = AdmissionQueue::<Work>::fair(1, 4);
    let _first = run(&queue, ("a", 1)).await;
    let mut waiting: Vec<_> = (0..4).map(|_| request(&queue, ("a", 1))).collect();
    assert_eq!(queue.join(("a", 1)).err(), Some(QueueFull));
    let mut other = request(&queue, ("a", 2));
    assert!(matches!(now(&mut waiting[3]), Some(Err(QueueFull))), "the last request is displaced");
    assert!(waiting[..3].iter_mut().all(|one| now(one).is_none()));
    // Three to one becomes two to two.
    let same = request(&queue, ("a", 2));
    assert!(matches!(now(&mut waiting[2]), Some(Err(QueueFull))));
    assert_eq!(queue.join(("a", 2)).err(), Some(QueueFull));
    assert_eq!(queue.join(("a", 1)).err(), Some(QueueFull));
    assert!(queue.join(("b", 1)).is_ok(), "two to one");
    drop((waiting, same));
    assert!(now(&mut other).is_none());
}
