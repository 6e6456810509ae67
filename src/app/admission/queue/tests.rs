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
        Some((self.0.into(), format!("{:032x}", self.1).parse().unwrap()))
    }
}

fn standing<T: Queued + Copy>(line: &AdmissionQueue<T>) -> Vec<(T, bool)> {
    let mut all = Vec::new();
    line.each(|entry| all.push((*entry.what, entry.works)));
    all
}

/// One that waits for a place.
type Waiting<T> = Pin<Box<dyn Future<Output = Result<Permit<T>, QueueFull>>>>;

/// Asks for a place.
fn ask<T: Queued + 'static>(line: &AdmissionQueue<T>, what: T) -> Waiting<T> {
    let mut waiting: Waiting<T> = Box::pin(line.join(what).unwrap().admitted());
    // Nothing is asked for before.
    assert!(now(&mut waiting).is_none(), "there was a place");
    waiting
}

/// What has become of one that waits.
fn now<T: Queued>(waiting: &mut Waiting<T>) -> Option<Result<Permit<T>, QueueFull>> {
    match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    }
}

async fn work<T: Queued>(line: &AdmissionQueue<T>, what: T) -> Permit<T> {
    line.join(what).unwrap().admitted().await.unwrap()
}

#[tokio::test]
async fn places_are_given_in_order_and_the_queue_has_an_end() {
    let line = AdmissionQueue::new(1, 2);
    let first = work(&line, 1).await;
    let (second, third) = (line.join(2).unwrap(), line.join(3).unwrap());
    assert_eq!(line.join(4).err(), Some(QueueFull));
    assert_eq!(standing(&line), [(1, true), (2, false), (3, false)]);
    // Who goes away makes room, and is not served.
    drop(second);
    let fourth = line.join(4).unwrap();
    drop(first);
    let third = third.admitted().await.unwrap();
    assert_eq!((*third.what(), standing(&line)), (3, vec![(3, true), (4, false)]));
    // Who is stuck, and who gives up, keeps its stand, and another works.
    let mut third = third;
    line.release_slots(|what| *what == 3);
    let mut fourth = fourth.admitted().await.unwrap();
    assert_eq!(standing(&line), [(3, true), (4, true)]);
    third.release();
    let mut fifth = ask(&line, 5);
    drop(third);
    assert!(now(&mut fifth).is_none(), "a place that was given up was given twice");
    fourth.release();
    drop(now(&mut fifth).unwrap());
    assert_eq!(standing(&line), [(4, true)]);
    drop(fourth);
    assert_eq!(standing(&line), []);
    // A burst on an idle line: those who will work at once are no queue.
    let burst: Vec<_> = (0..3).map(|n| line.join(n).unwrap()).collect();
    assert_eq!(line.join(9).err(), Some(QueueFull));
    drop(burst);
}

#[tokio::test]
async fn one_that_goes_away_with_its_place_passes_it_on() {
    let line = AdmissionQueue::new(1, 9);
    let first = work(&line, 1).await;
    let (second, mut third) = (ask(&line, 2), ask(&line, 3));
    drop(first);
    // It has the place by now, and never asks.
    drop(second);
    assert_eq!(*now(&mut third).unwrap().unwrap().what(), 3);
    assert_eq!(line.waiting(), 0);
}

#[tokio::test]
async fn the_share_with_fewest_places_is_served_next_and_none_holds_all() {
    let line = AdmissionQueue::<Work>::fair(4, 100);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(work(&line, ("a", 1)).await);
    }
    // The user's other VM, and another user, have none: they need not wait.
    let other_vm = work(&line, ("a", 2)).await;
    let mut more = ask(&line, ("a", 1));
    let mut others: Vec<_> = [("b", 1), ("b", 2), ("a", 3)].map(|what| ask(&line, what)).into();
    assert_eq!(line.waiting(), 4);
    drop(other_vm);
    // One more than four: the first of those that have none. The one that came before has four.
    let b1 = now(&mut others[0]).unwrap().unwrap();
    assert!(now(&mut more).is_none() && now(&mut others[1]).is_none() && now(&mut others[2]).is_none());
    // Of those that have none, the user's with the fewest goes first.
    drop(others.remove(1));
    let mut c = ask(&line, ("c", 9));
    drop(b1);
    assert!(now(&mut c).is_some(), "the user who has four was served before the one who has none");
    drop(c);
    let a3 = now(&mut others[1]).unwrap().unwrap();
    drop(held.split_off(1));
    assert_eq!(now(&mut more).unwrap().unwrap().what(), &("a", 1));
    drop((a3, held));

    // With one place only, it is held by one.
    let line = AdmissionQueue::<Work>::fair(1, 100);
    let first = work(&line, ("a", 1)).await;
    let mut second = ask(&line, ("b", 1));
    drop(first);
    assert!(now(&mut second).is_some());
}

#[tokio::test]
async fn a_full_queue_has_room_for_those_who_have_few_in_it() {
    let line = AdmissionQueue::<Work>::fair(1, 4);
    let _first = work(&line, ("a", 1)).await;
    let mut waiting: Vec<_> = (0..4).map(|_| ask(&line, ("a", 1))).collect();
    assert_eq!(line.join(("a", 1)).err(), Some(QueueFull));
    let mut other = ask(&line, ("a", 2));
    assert!(matches!(now(&mut waiting[3]), Some(Err(QueueFull))), "the last that came is turned away");
    assert!(waiting[..3].iter_mut().all(|one| now(one).is_none()));
    // Now it is three to one, and may become two to two.
    let same = ask(&line, ("a", 2));
    assert!(matches!(now(&mut waiting[2]), Some(Err(QueueFull))));
    assert_eq!(line.join(("a", 2)).err(), Some(QueueFull));
    assert_eq!(line.join(("a", 1)).err(), Some(QueueFull));
    assert!(line.join(("b", 1)).is_ok(), "two to one");
    drop((waiting, same));
    assert!(now(&mut other).is_none());
}
