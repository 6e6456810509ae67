//! At start: what a crash left half made is undone, what it left half removed is removed.

use super::audit::Actor;
use super::{App, Error};

impl App {
    /// Finishes or undoes what was under way when the service stopped. No client was told of a
    /// snapshot that was still being made, so nobody misses it.
    ///
    /// # Errors
    /// Where the database does not answer. Files that cannot be removed are left to the next start.
    pub(super) fn recover(&self) -> Result<(), Error> {
        for (state, snapshot) in self.store.unfinished()? {
            tracing::warn!(snapshot = %snapshot.id, vm = %snapshot.vm, ?state, "left unfinished: its files are removed");
            let outcome = self.remove(&snapshot);
            Actor::service("recovery").did("delete", format_args!("{}/{}", snapshot.vm, snapshot.id), &outcome);
            if let Err(error) = outcome {
                tracing::error!(snapshot = %snapshot.id, %error, "not removed; the next start will try again");
            }
        }
        Ok(())
    }
}
