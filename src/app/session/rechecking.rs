//! Asks the manager again whether a user's password is good, some time after the log-in (`jwt.recheck_after`).

use std::sync::Arc;

use super::rechecks::Kept;
use super::service::Sessions;
use crate::app::Error;
use crate::app::admission::LogIn;
use crate::app::audit::Actor;
use crate::app::tasks::Service;
use crate::auth::{BadToken, Credentials};
use crate::store::Revocation;

impl Sessions {
    /// Keeps the password of a log-in, if the config wants it to be checked again.
    pub(super) fn keep(&self, log_in: u128, credentials: Credentials, issued_ms: u64, ends: u64) {
        if let Some(rechecks) = &self.rechecks {
            rechecks.keep(log_in, credentials, issued_ms, ends);
        }
    }

    /// Asks the manager about the user of a valid token, if the config wants that and it is due.
    ///
    /// # Errors
    /// [`Error::NoSession`] if the user has to log in again; [`Error::ManagerUnavailable`], [`Error::Throttled`].
    pub async fn recheck(self: &Arc<Self>, token: &str) -> Result<(), Error> {
        if self.rechecks.is_none() {
            return Ok(());
        }
        let log_in = self.valid(token)?.log_in();
        if self.is_still_user(log_in).await? { Ok(()) } else { Err(BadToken.into()) }
    }

    /// Whether the manager still accepts the password of a log-in, as far as the config wants that.
    pub(super) async fn is_still_user(self: &Arc<Self>, log_in: u128) -> Result<bool, Error> {
        let Some(rechecks) = &self.rechecks else { return Ok(true) };
        let Some(kept) = rechecks.find(log_in) else { return Ok(false) };
        if !rechecks.is_due(&kept) {
            return Ok(true);
        }
        let asking = Arc::clone(&kept.asking).lock_owned().await;
        // Another log-in with the same password may have asked meanwhile.
        if rechecks.find(log_in).is_none() {
            return Ok(false);
        }
        if !rechecks.is_due(&kept) {
            return Ok(true);
        }
        rechecks.check_pause()?;
        // With a slot of the reserve: others who guess passwords must not keep users out.
        let slot = self.admission.admit_log_in(LogIn { address: None, is_known: true }).await?;
        rechecks.check_pause()?;
        self.detached(async move |sessions| {
            let _held = (asking, slot);
            sessions.ask_again(&kept).await
        })
        .await
    }

    /// Whether the manager still accepts this password. If it refuses it, ends the log-ins with it.
    async fn ask_again(self: &Arc<Self>, kept: &Kept) -> Result<bool, Error> {
        let Some(rechecks) = &self.rechecks else { return Ok(true) };
        let answer = self.ask_manager(&kept.credentials).await;
        rechecks.answered(&answer);
        match answer {
            Ok(_) => {
                rechecks.accepted(kept);
                Ok(true)
            }
            Err(Error::BadCredentials) => {
                let user = &kept.credentials.username;
                let outcome = self.end_refused(rechecks.refused(kept), user).await;
                // The request that has asked may have no line: its client can be gone.
                Actor::service("recheck").did("revoke", user, &outcome);
                outcome.map(|()| false)
            }
            Err(error) => Err(error),
        }
    }

    /// Revokes the log-ins of a user whose password the manager refuses, and ends the user's downloads.
    async fn end_refused(self: &Arc<Self>, log_ins: Vec<(u128, Arc<Kept>)>, user: &str) -> Result<(), Error> {
        let count = log_ins.len();
        tracing::warn!(%user, count, "the manager no longer accepts the password of log-ins; their tokens are revoked");
        let revoked = self.blocking(move |it| {
            for (id, kept) in log_ins {
                let (user, until) = (&kept.credentials.username, kept.ends);
                it.revocations.revoke(Revocation::LogIn { id, user, until })?;
            }
            Ok(())
        });
        // If this fails, they are refused until jwt.recheck_after is removed from the config.
        let revoked = revoked.await.inspect_err(|error| tracing::error!(%error, "cannot revoke the tokens"));
        self.admission.end_exports(Some(user), "the manager no longer accepts the user's password");
        revoked
    }
}
