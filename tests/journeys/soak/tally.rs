//! Counts the answers, and judges those that are errors.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::Answer;

/// A cause of errors that begins and ends during the test.
#[derive(Default)]
pub struct Cause {
    acts: AtomicBool,
    /// How often it has begun.
    begun: AtomicU64,
}

/// A moment in the life of a [`Cause`], before a request.
#[derive(Clone, Copy)]
pub struct Moment {
    acted: bool,
    begun: u64,
}

impl Cause {
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.acts.store(true, Ordering::SeqCst);
    }

    pub fn end(&self) {
        self.acts.store(false, Ordering::SeqCst);
    }

    pub fn now(&self) -> Moment {
        Moment { acted: self.acts.load(Ordering::SeqCst), begun: self.begun.load(Ordering::SeqCst) }
    }

    /// Whether it has acted at any time since `moment`.
    pub fn acted_since(&self, moment: Moment) -> bool {
        let now = self.now();
        moment.acted || now.acted || now.begun != moment.begun
    }
}

/// What has to happen at least once.
const WANTED: [&str; 14] = [
    "backup: restored",
    "checksum: 200",
    "compare: 200",
    "create: 200",
    "curl: 206",
    "delete: 200",
    "disconnected",
    "first request: 200",
    "list: 200",
    "log in: 200",
    "operator: 200",
    "range: 206",
    "whole disk: 200",
    "without a token: unauthorized",
];

#[derive(Default)]
pub struct Tally {
    /// Numbers of answers, by client and status or code.
    answers: Mutex<BTreeMap<String, u64>>,
    /// Bytes that were compared with the expected content.
    compared: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    pub fn count(&self, what: &str) {
        *self.answers.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    pub fn compared(&self, bytes: usize) {
        self.compared.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn fail(&self, text: String) {
        self.failures.lock().unwrap().push(text);
    }

    pub fn has_failed(&self) -> bool {
        !self.failures.lock().unwrap().is_empty()
    }

    /// Counts the answer; returns it if it is a success. Other answers have to be one of `expected`: the code of an
    /// error, or `broken` for a connection that ended early.
    pub fn judge<E: std::fmt::Display>(
        &self,
        client: &str,
        answer: Result<Answer, E>,
        expected: impl Fn(&str) -> bool,
    ) -> Option<Answer> {
        let (code, text) = match answer {
            Ok(answer) if answer.status < 300 => {
                self.count(&format!("{client}: {}", answer.status));
                return Some(answer);
            }
            Ok(answer) => {
                let body = String::from_utf8_lossy(&answer.body).into_owned();
                let json: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
                let code = json.and_then(|json| Some(json["code"].as_str()?.to_owned()));
                (code.unwrap_or_else(|| format!("status {}", answer.status)), body)
            }
            Err(error) => ("broken".to_owned(), format!("{error:#}")),
        };
        self.count(&format!("{client}: {code}"));
        if !expected(&code) {
            self.fail(format!("{client}: {code}: {text}"));
        }
        None
    }

    /// Prints the figures; panics if anything has failed, or has never happened.
    pub fn finish(&self) {
        let answers = self.answers.lock().unwrap();
        for (what, count) in &*answers {
            eprintln!("{count:>8} {what}");
        }
        let missing: Vec<_> = WANTED.iter().filter(|what| !answers.contains_key(**what)).collect();
        assert!(missing.is_empty(), "never: {missing:?}");
        eprintln!("{:>8} MiB compared", self.compared.load(Ordering::Relaxed) >> 20);
        let failures = self.failures.lock().unwrap();
        let first = failures.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
        assert!(failures.is_empty(), "{} failures:\n{first}", failures.len());
    }
}
