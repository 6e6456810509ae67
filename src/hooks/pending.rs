//! The post hooks that an operation still has to call. They are stored before its pre hooks are called.

use std::ffi::{OsStr, OsString};

use serde::{Deserialize, Serialize};

use super::calls::FinishedCall;
use super::event::{Event, SyncTarget};

/// Hooks to call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingHooks {
    /// The names of programs, sorted.
    pub programs: Vec<OsString>,
    /// Whether the guest's server is to be called.
    pub server: bool,
}

impl PendingHooks {
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && !self.server
    }
}

/// An operation with its pending post hooks. The names in the database are those of earlier versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingPostHooks {
    #[serde(flatten)]
    pub event: Event,
    /// `None` if the directory could not be read: then all hooks that exist.
    #[serde(rename = "owed", default)]
    pub hooks: Option<PendingHooks>,
    /// Programs that are still pending from an earlier operation of this kind on the same snapshot.
    #[serde(default)]
    pub earlier: Vec<OsString>,
    /// Whether the operation succeeded.
    #[serde(rename = "done", default)]
    pub succeeded: bool,
    /// Failed attempts to call the post hooks. 0: the operation has not ended yet.
    #[serde(default)]
    pub attempts: u32,
    /// The time of the first failure, in milliseconds since 1970. `None` before it, and if an earlier version stored it.
    #[serde(default)]
    pub failing_since_ms: Option<i64>,
    /// Whether webhooks were told that post hooks have failed.
    #[serde(default)]
    pub reported: bool,
    /// The prefix of the ids of its calls. Empty if an earlier version stored it.
    #[serde(rename = "id", default)]
    pub call_prefix: String,
    /// Calls of programs that are known to have ended.
    #[serde(rename = "past", default)]
    pub finished: Vec<FinishedCall>,
}

impl PendingPostHooks {
    /// Whether the program existed when this was stored.
    pub(super) fn knows(&self, program: &OsStr) -> bool {
        self.hooks.as_ref().is_none_or(|hooks| hooks.programs.iter().any(|known| known == program))
    }

    /// The record of an operation whose calls may not all have been made: they have failed.
    pub fn failed(self) -> Option<Self> {
        Some(Self { attempts: 1, ..self })
    }

    /// The record of an operation of which no hook was called: what is still pending from earlier ones, if anything.
    /// Their failure was reported then.
    pub fn of_earlier(self) -> Option<Self> {
        let programs = self.earlier;
        let hooks = Some(PendingHooks { programs, server: false });
        let pending = Self { hooks, earlier: Vec::new(), attempts: 1, reported: true, ..self };
        (!pending.hooks.as_ref().is_some_and(PendingHooks::is_empty)).then_some(pending)
    }

    /// The names of the pending hooks, as far as they are known.
    pub fn names(&self) -> Vec<String> {
        let Some(hooks) = &self.hooks else { return Vec::new() };
        let server = match &self.event.sync {
            Some(SyncTarget::Url(url)) if hooks.server => Some(url.clone()),
            _ => None,
        };
        hooks.programs.iter().map(|name| name.to_string_lossy().into_owned()).chain(server).collect()
    }

    /// Encodes it for the database.
    ///
    /// # Errors
    /// It cannot be encoded; then no hook may be called.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Decodes what [`PendingPostHooks::to_bytes`] of this or an earlier version encoded.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::event;
    use serde_json::{Value, json};
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn operation_without_calls_leaves_pending_what_was_pending_before() {
        let pending = PendingPostHooks::from_bytes(&serde_json::to_vec(&event::example()).unwrap()).unwrap();
        assert_eq!(pending.clone().of_earlier(), None);
        let programs = vec![OsString::from("10-thaw")];
        let left = PendingPostHooks { earlier: programs.clone(), ..pending }.of_earlier().unwrap();
        assert_eq!((left.attempts, left.hooks), (1, Some(PendingHooks { programs, server: false })));
    }

    #[test]
    fn pending_hooks_are_decoded_as_they_were_encoded() {
        let programs = vec!["10-é".into(), OsString::from_vec(vec![b'x', 0xff])];
        let hooks = Some(PendingHooks { programs: programs.clone(), server: true });
        let pending = PendingPostHooks {
            event: event::example(),
            hooks,
            earlier: programs,
            succeeded: true,
            attempts: 7,
            failing_since_ms: Some(1),
            reported: true,
            call_prefix: "x".to_owned(),
            finished: vec![FinishedCall { id: "x.1".to_owned(), succeeded: true }],
        };
        let bytes = pending.to_bytes().unwrap();
        assert_eq!(PendingPostHooks::from_bytes(&bytes).unwrap(), pending);
        assert!(PendingPostHooks::from_bytes(b"{}").is_err());
        // Databases of earlier versions have these names.
        let stored: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&stored["done"], &stored["id"], &stored["attempts"]), (&json!(true), &json!("x"), &json!(7)));
        assert_eq!(stored["past"], json!([{"id": "x.1", "well": true}]));
        assert_eq!((&stored["owed"]["server"], &stored["failing_since_ms"]), (&json!(true), &json!(1)));
        // Schema 2 began with the event alone: all hooks that exist are pending.
        let event = serde_json::to_vec(&event::example()).unwrap();
        let expected = PendingPostHooks {
            hooks: None,
            earlier: Vec::new(),
            succeeded: false,
            attempts: 0,
            failing_since_ms: None,
            reported: false,
            call_prefix: String::new(),
            finished: Vec::new(),
            ..pending
        };
        assert_eq!(PendingPostHooks::from_bytes(&event).unwrap(), expected);
    }
}
