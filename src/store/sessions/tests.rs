use super::super::{Added, Store, Ticket, TicketLimits, TicketSource};
use super::*;
use crate::model::SnapshotId;

const NOW: u64 = 1_700_000_000;
const WEEK: u64 = 7 * 24 * 3600;

fn at(now: u64) -> Clock {
    Clock { now, latest_ms: now * 1000 + 999 }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db")).unwrap();
    (dir, store)
}

fn begin(store: &Store, id: u128, user: &str) {
    store.sessions().begin(id, user, [1; 32], (NOW * 1000, NOW + WEEK), NOW).unwrap();
}

#[test]
fn a_refresh_token_is_good_once_and_its_second_use_revokes_the_log_in() {
    let (dir, store) = store();
    begin(&store, 7, "admin");
    let renew = |store: &Store, used, new, now| store.sessions().renew(7, [used; 32], [new; 32], at(now)).unwrap();
    let renewed = || Renewal::Renewed { user: "admin".to_owned(), ends: NOW + WEEK };
    assert_eq!(renew(&store, 1, 2, NOW), renewed());
    drop(store);
    let store = Store::open(&dir.path().join("db")).unwrap();
    assert_eq!(renew(&store, 2, 3, NOW + WEEK - 1), renewed());
    assert_eq!(renew(&store, 3, 4, NOW + WEEK), Renewal::Unknown, "the log-in has ended");
    assert_eq!(store.sessions().renew(8, [3; 32], [4; 32], at(NOW)).unwrap(), Renewal::Unknown);
    assert_eq!(renew(&store, 1, 9, NOW), Renewal::Reused { user: "admin".to_owned() });
    assert_eq!(renew(&store, 3, 4, NOW), Renewal::Unknown, "the newest token is good after that");
    drop(store);
    let store = Store::open(&dir.path().join("db")).unwrap();
    assert_eq!(store.sessions().revoked(NOW).unwrap().log_ins, [(7, NOW + WEEK)].into());
    assert_eq!(store.sessions().revoked(NOW + WEEK).unwrap(), RevokedTokens::default(), "its tokens have expired");
}

#[test]
fn renewable_log_ins_are_bounded_for_each_user() {
    let (_dir, store) = store();
    begin(&store, 1, "other");
    for id in 0..MAX_RENEWABLE_OF_USER as u128 + 3 {
        store.sessions().begin(100 + id, "admin", [1; 32], (NOW * 1000, NOW + WEEK + id as u64), NOW).unwrap();
    }
    assert_eq!(store.sessions().renewable(NOW).unwrap(), MAX_RENEWABLE_OF_USER + 1);
    let is_known = |id| store.sessions().renew(id, [1; 32], [1; 32], at(NOW)).unwrap() != Renewal::Unknown;
    assert!(is_known(1) && !is_known(100) && !is_known(102) && is_known(103));
    assert_eq!(store.sessions().renewable(NOW + 2 * WEEK).unwrap(), 0);
    // Those that have ended are removed.
    store.sessions().begin(9, "admin", [1; 32], ((NOW + 2 * WEEK) * 1000, NOW + 3 * WEEK), NOW + 2 * WEEK).unwrap();
    let count = store.handle.read(|transaction| Ok(transaction.open_table(RENEWABLE)?.len()?)).unwrap();
    assert_eq!(count, 1);
}

#[test]
fn tokens_of_a_user_or_of_all_are_revoked_with_their_log_ins() {
    let (_dir, store) = store();
    for (id, user) in [(1, "admin"), (2, "admin"), (3, "other")] {
        begin(&store, id, user);
    }
    let revoke = |user, before_ms| store.sessions().revoke(Revocation::Before { user, before_ms }, at(NOW)).unwrap();
    assert_eq!(revoke(Some("admin"), NOW * 1000 - 1), Some(0), "the log-ins are newer");
    assert_eq!(revoke(Some("admin"), NOW * 1000), Some(2));
    // An earlier time does not replace a later one.
    assert_eq!(revoke(Some("admin"), 5), Some(0));
    let revoked = store.sessions().revoked(NOW).unwrap();
    assert_eq!((revoked.users, revoked.all), ([(FoldedName::new("admin"), NOW * 1000)].into(), 0));
    assert_eq!(revoked.log_ins.len(), 2);
    assert_eq!(store.sessions().renewable(NOW).unwrap(), 1);
    assert_eq!(revoke(None, NOW * 1000 + 7), Some(1));
    let revoked = store.sessions().revoked(NOW).unwrap();
    assert_eq!((revoked.users.len(), revoked.all), (0, NOW * 1000 + 7));
    assert_eq!(store.sessions().renewable(NOW).unwrap(), 0);
}

#[test]
fn many_log_outs_of_a_user_become_a_revocation_of_all_its_tokens() {
    let (_dir, store) = store();
    store
        .handle
        .write(|transaction| {
            for id in 0..MAX_REVOKED_OF_USER as u128 {
                transaction.open_table(REVOKED_LOG_INS)?.insert(id, ("admin", NOW + WEEK))?;
            }
            transaction.open_table(REVOKED_LOG_INS)?.insert(u128::MAX, ("other", NOW + WEEK))?;
            Ok(())
        })
        .unwrap();
    let log_out = Revocation::LogIn { id: 1 << 64, user: "admin", until: NOW + WEEK };
    store.sessions().revoke(log_out, Clock { now: NOW, latest_ms: NOW * 1000 + 7000 }).unwrap();
    let revoked = store.sessions().revoked(NOW).unwrap();
    assert_eq!(revoked.log_ins, [(u128::MAX, NOW + WEEK), (1 << 64, NOW + WEEK)].into());
    assert_eq!(revoked.users, [(FoldedName::new("admin"), NOW * 1000 + 7000)].into());
}

#[test]
fn a_log_in_that_begins_while_it_is_revoked_cannot_be_renewed() {
    let (_dir, store) = store();
    let renew = |id, used: u8| store.sessions().renew(id, [used; 32], [2; 32], at(NOW)).unwrap();
    let revoke = |revocation| store.sessions().revoke(revocation, at(NOW)).unwrap();
    // The revocations run between the moment at which a log-in gets its time and the moment at which it is recorded.
    revoke(Revocation::Before { user: Some("ann"), before_ms: NOW * 1000 });
    begin(&store, 1, "ann");
    begin(&store, 2, " ANN");
    begin(&store, 3, "bob");
    store.sessions().begin(4, "ann", [1; 32], (NOW * 1000 + 1, NOW + WEEK), NOW).unwrap();
    assert_eq!((renew(1, 1), renew(2, 1)), (Renewal::Unknown, Renewal::Unknown));
    assert_eq!(store.sessions().renewable(NOW).unwrap(), 2, "they are removed");
    for (id, user) in [(3, "bob"), (4, "ann")] {
        assert_eq!(renew(id, 1), Renewal::Renewed { user: user.to_owned(), ends: NOW + WEEK });
    }
    // One log-in, and then all users.
    revoke(Revocation::LogIn { id: 5, user: "bob", until: NOW + WEEK });
    begin(&store, 5, "bob");
    assert_eq!(renew(5, 1), Renewal::Unknown);
    revoke(Revocation::Before { user: None, before_ms: NOW * 1000 + 1 });
    begin(&store, 6, "carl");
    assert_eq!(renew(6, 1), Renewal::Unknown);
    assert_eq!(store.sessions().renewable(NOW).unwrap(), 0);
}

#[test]
fn each_spelling_of_a_name_is_revoked() {
    let (_dir, store) = store();
    for (id, user) in [(1, "ANN"), (2, "ann "), (3, "anna"), (4, " ")] {
        begin(&store, id, user);
    }
    let revoke = |user| {
        let revocation = Revocation::Before { user: Some(user), before_ms: NOW * 1000 };
        store.sessions().revoke(revocation, at(NOW)).unwrap()
    };
    assert_eq!(revoke("Ann"), Some(2));
    assert_eq!(revoke("  "), Some(1), "a name of spaces is not all users");
    let revoked = store.sessions().revoked(NOW).unwrap();
    assert_eq!((revoked.users.len(), revoked.all), (2, 0));
    assert_eq!(revoked.users[&FoldedName::new("aNN")], NOW * 1000);
    assert_eq!(store.sessions().renewable(NOW).unwrap(), 1);
}

#[test]
fn the_newest_log_in_is_known_after_the_clock_was_set_back() {
    let (_dir, store) = store();
    assert_eq!(store.sessions().newest().unwrap(), 0);
    begin(&store, 1, "ann");
    store.sessions().begin(2, "ann", [1; 32], ((NOW + 60) * 1000, NOW + WEEK), NOW).unwrap();
    begin(&store, 3, "bob");
    assert_eq!(store.sessions().newest().unwrap(), (NOW + 60) * 1000);
    // Of tokens that cannot be renewed there is no record but this.
    for (issued, newest) in [(NOW, NOW + 60), (NOW + 90, NOW + 90), (NOW + 70, NOW + 90)] {
        store.sessions().set_issued(issued * 1000).unwrap();
        assert_eq!(store.sessions().newest().unwrap(), newest * 1000);
    }
}

#[test]
fn a_log_in_whose_time_is_far_ahead_of_the_clock_does_not_end_those_of_others() {
    let (_dir, store) = store();
    begin(&store, 1, "ann");
    // After a revocation at a time when the clock was ahead, each log-in gets a later time.
    let ahead = (NOW + 2 * WEEK) * 1000;
    store.sessions().begin(2, "bob", [1; 32], (ahead, NOW + WEEK), NOW).unwrap();
    begin(&store, 3, "carl");
    assert_eq!(store.sessions().renewable(NOW).unwrap(), 3);
}

#[test]
fn a_log_out_lasts_as_long_as_the_log_in_would_have() {
    let (_dir, store) = store();
    // The log-in began when log-ins were longer: another token of it may be good until its end.
    begin(&store, 1, "ann");
    let revocation = Revocation::LogIn { id: 1, user: "ann", until: NOW + 60 };
    assert_eq!(store.sessions().revoke(revocation, at(NOW)).unwrap(), Some(1));
    assert_eq!(store.sessions().revoked(NOW).unwrap().log_ins, [(1, NOW + WEEK)].into());
    // One that could not be renewed ends with its token.
    let revocation = Revocation::LogIn { id: 2, user: "ann", until: NOW + 60 };
    assert_eq!(store.sessions().revoke(revocation, at(NOW)).unwrap(), Some(0));
    assert_eq!(store.sessions().revoked(NOW).unwrap().log_ins[&2], NOW + 60);
}

/// Makes the ticket `number` with a token of the log-in that was renewed a minute after the log-in.
fn add_ticket(store: &Store, number: u8, log_in: u128) -> Added {
    let issued_ms = (NOW + 60) * 1000;
    let target = ("vm".to_owned(), SnapshotId::from_u128(7), "a.img".to_owned());
    let times = (issued_ms as i64, issued_ms as i64 + 1000);
    let ticket =
        Ticket::new(("ann".to_owned(), TicketSource::TokenOf { log_in, issued_ms }), target, (true, false), times);
    store.tickets().add(&[number; 32], &ticket, TicketLimits { of_user: 8, of_all: 8 }).unwrap()
}

fn tickets(store: &Store) -> Vec<u8> {
    store.tickets().all().unwrap().iter().map(|(hash, _)| hash[0]).collect()
}

#[test]
fn tickets_end_with_the_log_in_whose_renewed_token_they_were_made_with() {
    let (_dir, store) = store();
    begin(&store, 1, "ann");
    store.sessions().begin(2, "ann", [1; 32], ((NOW + 30) * 1000, NOW + WEEK), NOW).unwrap();
    begin(&store, 3, "ann");
    for number in 1..=3 {
        assert_eq!(add_ticket(&store, number, number.into()), Added::Yes);
    }
    let revoke = |revocation| store.sessions().revoke(revocation, at(NOW)).unwrap();
    revoke(Revocation::LogIn { id: 3, user: "ann", until: NOW + WEEK });
    assert_eq!(tickets(&store), [1, 2, 3], "a log-out ends tickets");
    // After the first log-in began, and before its token was renewed.
    assert_eq!(revoke(Revocation::Before { user: Some("ann"), before_ms: NOW * 1000 }), Some(1));
    assert_eq!(tickets(&store), [2, 3]);
    // A request that began before the revocation.
    assert_eq!(add_ticket(&store, 4, 1), Added::Revoked);
    assert_eq!(tickets(&store), [2, 3]);
}

#[test]
fn the_second_use_of_a_refresh_token_ends_the_tickets_of_its_log_in() {
    let (_dir, store) = store();
    begin(&store, 1, "ann");
    begin(&store, 2, "ann");
    assert_eq!((add_ticket(&store, 1, 1), add_ticket(&store, 2, 2)), (Added::Yes, Added::Yes));
    let reused = store.sessions().renew(1, [9; 32], [2; 32], at(NOW)).unwrap();
    assert_eq!(reused, Renewal::Reused { user: "ann".to_owned() });
    assert_eq!(tickets(&store), [2]);
}
