//! The service is killed at random moments of creations and deletions.

use std::thread;
use std::time::{Duration, Instant};

use reqwest::Method;

use super::setting;
use crate::harness::{Fault, FaultTest, HookDir, Random, SNAPSHOTS, for_a_while, text};
use crate::needs_root;

#[test]
fn snapshots_survive_kills_at_random_moments() {
    needs_root!();
    let (kills, mut random) = (setting("SOAK_KILLS", 20), Random(setting("SOAK_SEED", 1)));
    let hooks = HookDir::new();
    let mut test = FaultTest::new(|settings| settings.sections = hooks.section(""));
    hooks.put("freeze", "[ $2 = pre ] && touch $OUT/frozen || rm -f $OUT/frozen");
    let started = Instant::now();
    test.take_snapshot();
    let mut usual = started.elapsed();
    let (mut answered, mut made) = (0, 0);
    for number in 0..kills {
        let is_creation = test.confirmed.len() < 3 || random.below(2) == 0;
        let what = format!("kill {number} of a {}", if is_creation { "creation" } else { "deletion" });
        test.write(number as u8);
        let contents = test.disk_contents();
        let victim = test.confirmed.keys().next().cloned().unwrap();
        let (method, path) = match is_creation {
            true => (Method::POST, format!("/api/v1{SNAPSHOTS}")),
            false => (Method::DELETE, format!("/api/v1{SNAPSHOTS}/{victim}")),
        };
        let request = test.client.request(method, &path);
        let pause = usual.mul_f64(random.below(1000) as f64 / 700.0);
        let answer = thread::scope(|scope| {
            let answer = scope.spawn(|| test.client.try_send(request).ok());
            for_a_while(pause);
            test.world.exporter.kill();
            answer.join().unwrap()
        });
        if let Some(answer) = &answer {
            assert_eq!(answer.status, 200, "{what}: {}", String::from_utf8_lossy(&answer.body));
        }
        answered += u64::from(answer.is_some());
        // About a third of the requests have an answer, however fast the machine is.
        let factor = if answer.is_some() { 0.8 } else { 1.1 };
        usual = usual.mul_f64(factor).min(Duration::from_secs(5));
        let optional = if is_creation { contents.clone() } else { test.confirmed.remove(&victim).unwrap() };
        if let Some(answer) = &answer
            && is_creation
        {
            test.confirmed.insert(text(&answer.json()["id"]), contents);
        }
        test.restart(Fault::KillBefore);
        assert!(!hooks.at("frozen").exists(), "{what}: the post hook was not called");
        let optional = answer.is_none().then_some(&optional);
        if let Some(id) = test.check(&what, optional) {
            made += 1;
            test.confirmed.insert(id, optional.unwrap().clone());
        }
    }
    eprintln!("{kills} kills: {answered} requests had an answer, {made} without an answer left a snapshot");
}
