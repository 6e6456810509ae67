//! What is owed after an operation: written down before it, and what is left of it written down after.

use std::ffi::{OsStr, OsString};

use serde::{Deserialize, Serialize};

use super::calls::PastCall;
use super::event::{Event, SyncTarget};

/// The calls that are owed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingHooks {
    /// Programs, by their names, in their order.
    pub programs: Vec<OsString>,
    /// The guest's server.
    pub server: bool,
}

impl PendingHooks {
    /// Whether all was called, and did what it should.
    pub fn is_nothing(&self) -> bool {
        self.programs.is_empty() && !self.server
    }
}

/// An operation, with what is owed after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingPostHooks {
    /// The operation.
    #[serde(flatten)]
    pub event: Event,
    /// What is owed; nothing where that could not be told: then it is whatever there is.
    #[serde(default)]
    pub owed: Option<PendingHooks>,
    /// Programs that an earlier operation of this kind, on the same snapshot, still owes.
    #[serde(default)]
    pub earlier: Vec<OsString>,
    /// Whether the operation was done.
    #[serde(default)]
    pub done: bool,
    /// How often the second half was called in vain. None: the operation is not over yet.
    #[serde(default)]
    pub attempts: u32,
    /// With what the ids of its calls begin; empty in what earlier versions wrote.
    #[serde(default)]
    pub id: String,
    /// Calls of programs that are known to be over.
    #[serde(default)]
    pub past: Vec<PastCall>,
}

impl PendingPostHooks {
    /// Whether a program is one that was there when this was written down.
    pub(super) fn knows(&self, program: &OsStr) -> bool {
        self.owed.as_ref().is_none_or(|owed| owed.programs.iter().any(|known| known == program))
    }

    /// The hooks that are owed, by their names, as far as they are known.
    pub fn hooks(&self) -> Vec<String> {
        let Some(owed) = &self.owed else { return Vec::new() };
        let server = match &self.event.sync {
            Some(SyncTarget::Url(url)) if owed.server => Some(url.clone()),
            _ => None,
        };
        owed.programs.iter().map(|name| name.to_string_lossy().into_owned()).chain(server).collect()
    }

    /// As it is written down.
    ///
    /// # Errors
    /// Where it cannot be; then nothing may be frozen under it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// What was written down.
    ///
    /// # Errors
    /// Where it was not written by [`PendingPostHooks::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::event;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_debt_is_read_as_it_was_written_down() {
        let programs = vec!["10-é".into(), OsString::from_vec(vec![b'x', 0xff])];
        let owed = Some(PendingHooks { programs: programs.clone(), server: true });
        let past = vec![PastCall { id: "x.1".to_owned(), well: true }];
        let id = "x".to_owned();
        let debt =
            PendingPostHooks { event: event::example(), owed, earlier: programs, done: true, attempts: 7, id, past };
        assert_eq!(PendingPostHooks::from_bytes(&debt.to_bytes().unwrap()).unwrap(), debt);
        assert!(PendingPostHooks::from_bytes(b"{}").is_err());
        // An event alone, as schema 2 began with: whatever there is.
        let event = serde_json::to_vec(&event::example()).unwrap();
        let expected = PendingPostHooks {
            owed: None,
            earlier: Vec::new(),
            done: false,
            attempts: 0,
            id: String::new(),
            past: Vec::new(),
            ..debt
        };
        assert_eq!(PendingPostHooks::from_bytes(&event).unwrap(), expected);
    }
}
