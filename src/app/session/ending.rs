//! Renews log-ins, and ends them.

use std::sync::Arc;

use jiff::Timestamp;
use secrecy::SecretString;

use super::revocations::now;
use super::service::Sessions;
use crate::api;
use crate::app::Error;
use crate::app::audit::{Actor, Outcome};
use crate::app::tasks::Service;
use crate::auth::{RefreshToken, Requester, Session};
use crate::store::{Renewal, Revocation};

impl Sessions {
    /// New tokens for a refresh token, which is then used.
    ///
    /// # Errors
    /// [`Error::BadRefreshToken`]; with `jwt.recheck_after` also [`Error::ManagerUnavailable`], [`Error::Throttled`].
    pub async fn renew(self: &Arc<Self>, refresh: SecretString, requester: Requester) -> Result<api::Token, Error> {
        let used = self.usable(&refresh).await;
        self.detached(async move |sessions| {
            let outcome = match used {
                Ok(used) => sessions.renewed(&used).await,
                Err(error) => Err((None, error)),
            };
            sessions.record_renewal(requester, outcome)
        })
        .await
    }

    /// The refresh token, as far as it is good without the database.
    async fn usable(self: &Arc<Self>, refresh: &SecretString) -> Result<RefreshToken, Error> {
        let used = RefreshToken::parse(refresh).ok_or(Error::BadRefreshToken)?;
        // Before it is used up, so that it can be sent again when the manager responds.
        if self.is_still_user(used.log_in()).await? { Ok(used) } else { Err(Error::BadRefreshToken) }
    }

    fn record_renewal(
        &self,
        requester: Requester,
        outcome: Result<(String, api::Token), (Option<String>, Error)>,
    ) -> Result<api::Token, Error> {
        let actor = Actor::unauthenticated(requester.clone());
        match outcome {
            Ok((user, token)) => {
                self.trail.add(&actor.named(&user), "refresh", String::new(), Outcome::DONE, None);
                Ok(token)
            }
            Err((Some(user), error)) => {
                tracing::warn!(%user, "a refresh token was used again; its log-in is revoked");
                let refused = Err(error);
                actor.named(&user).did("refresh", "a used token; its log-in is revoked", &refused);
                refused
            }
            Err((None, error)) => {
                self.trail.unauthenticated(requester, "/api/v1/auth/refresh", &error);
                Err(error)
            }
        }
    }

    /// Errors have the user whose token was used again.
    async fn renewed(self: &Arc<Self>, used: &RefreshToken) -> Result<(String, api::Token), (Option<String>, Error)> {
        let fail = |error: Error| (None, error);
        let next = used.next().map_err(|error| fail(Error::Internal(error.to_string())))?;
        let (log_in, old, new) = (used.log_in(), used.hash(), next.hash());
        let renewal = self.blocking(move |sessions| Ok(sessions.revocations.renew(log_in, old, new)?)).await;
        match renewal.map_err(fail)? {
            Renewal::Renewed { user, ends } => {
                let issued_ms = self.revocations.issue(&user);
                self.keep_issued(issued_ms).await;
                let token = self.short_token(&user, &next, issued_ms, ends).map_err(fail)?;
                Ok((user, token))
            }
            Renewal::Unknown => Err(fail(Error::BadRefreshToken)),
            Renewal::Reused { user } => {
                self.rechecks.iter().for_each(|rechecks| rechecks.forget(log_in));
                Err((Some(user), Error::BadRefreshToken))
            }
        }
    }

    /// Ends the log-in of a valid token: the token, its refresh token, and the other tokens of that.
    ///
    /// # Errors
    /// [`Error::Store`]: then the token is still valid.
    pub async fn log_out(self: &Arc<Self>, session: &Session, token: &str) -> Result<(), Error> {
        let token = self.valid(token)?;
        let (id, user) = (token.log_in(), token.user().to_owned());
        // A renewable log-in lasts longer than its token.
        let until = token.expires().max(now().saturating_add(self.tokens.time_to_live().as_secs()));
        let actor = Actor::from(session);
        self.detached(async move |sessions| {
            let revocation = sessions.blocking(move |it| {
                it.revocations.revoke(Revocation::LogIn { id, user: &user, until })?;
                Ok(())
            });
            let outcome = revocation.await;
            sessions.rechecks.iter().for_each(|rechecks| rechecks.forget(id));
            actor.did("log-out", "", &outcome);
            outcome
        })
        .await
    }

    /// Revokes the tokens of a user, or of all users, and ends their downloads.
    ///
    /// # Errors
    /// [`Error::BadRequest`], [`Error::Store`].
    pub async fn revoke(self: &Arc<Self>, session: &Session, request: api::Revoke) -> Result<api::Revoked, Error> {
        let what = request.user.clone().unwrap_or_else(|| "all users".to_owned());
        let actor = Actor::from(session);
        self.detached(async move |sessions| {
            let outcome = sessions.revoked(request).await;
            actor.did("revoke", what, &outcome);
            outcome
        })
        .await
    }

    async fn revoked(self: &Arc<Self>, request: api::Revoke) -> Result<api::Revoked, Error> {
        let api::Revoke { user, all, issued_before } = request;
        match &user {
            Some(user) if user.trim().is_empty() => return Err(bad("user is empty; name a user, or revoke all")),
            None if !all => return Err(bad("names no user; set user, or all to true")),
            Some(_) if all => return Err(bad("has user and all; keep one of them")),
            _ => {}
        }
        let latest = self.revocations.latest();
        let before_ms = match issued_before {
            None => latest,
            Some(text) => {
                let at = text.parse::<Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
                let problem = "issued_before: expected a time in the past, such as 2026-05-01T10:00:00Z";
                // Tokens that are issued at this very moment stay.
                at.filter(|at| *at <= latest).ok_or_else(|| bad(problem))?.saturating_sub(1)
            }
        };
        let whose = user.clone();
        let ended = self
            .blocking(move |sessions| {
                let revocation = Revocation::Before { user: whose.as_deref(), before_ms };
                Ok(sessions.revocations.revoke(revocation)?)
            })
            .await?;
        let problem = "too many users have revoked tokens; revoke those of all users, with all set to true";
        let log_ins = ended.ok_or_else(|| bad(problem))?;
        self.rechecks.iter().for_each(|rechecks| rechecks.forget_until(user.as_deref(), before_ms));
        let downloads = self.admission.end_exports(user.as_deref(), "the tokens of the user were revoked");
        let at = Timestamp::from_millisecond(i64::try_from(before_ms).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX);
        Ok(api::Revoked { user, issued_until: api::time(at), log_ins, downloads })
    }

    /// The log-ins and revocations, for the status and the metrics.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn counts(&self) -> Result<api::SessionStatus, Error> {
        Ok(api::SessionStatus {
            renewable: self.store.sessions().renewable(now())?,
            revocations: self.revocations.count(),
            throttled_log_ins: self.metrics.throttled_log_ins(),
        })
    }
}

fn bad(problem: &str) -> Error {
    Error::BadRequest(format!("the body {problem}"))
}
