//! Which token a host gets, and how a new one is had.

use std::sync::{MutexGuard, PoisonError};

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};

use super::connection::READ_TIMEOUT;
use super::credentials::{Credentials, Password, TokenCache, Tokens};
use super::error::ClientError;
use super::server::Client;
use super::token_state::{OfHost, TokenState};
use crate::api;

impl Client {
    fn tokens(&self) -> MutexGuard<'_, TokenState> {
        self.server.shared.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self, host: usize) -> Option<&TokenCache> {
        self.server.hosts()[host].token_cache.as_ref()
    }

    /// Whether the password is wrong, so that no other host has to be asked.
    pub(super) fn is_password_refused(&self) -> bool {
        self.tokens().refusal.is_some()
    }

    /// The token for a host, or a new one if the host refused `refused`. One thread renews it for all.
    pub(super) fn token(
        &self,
        host: usize,
        refused: Option<(&SecretString, ClientError)>,
    ) -> Result<SecretString, ClientError> {
        let mut state = self.tokens();
        let old = refused.as_ref().map(|(old, _)| old.expose_secret());
        if let Some(token) = state.usable(host).filter(|token| Some(token.expose_secret()) != old) {
            return Ok(token.clone());
        }
        if let Some(tokens) = state.hosts[host].own.take() {
            match self.renewed(host, &tokens) {
                Ok(Some(new)) => return Ok(state.hosts[host].own.insert(new).token.clone()),
                Ok(None) => {}
                Err(error) => {
                    // The refresh token may still be good when the service can be reached again.
                    state.hosts[host].own = Some(tokens);
                    return Err(error);
                }
            }
            if let Some(token) = state.usable(host).filter(|token| Some(token.expose_secret()) != old) {
                return Ok(token.clone());
            }
        }
        state.hosts[host].refuses_others |= refused.is_some();
        let Credentials::Password(password) = &self.server.shared.credentials else {
            let error = refused.map(|(_, error)| error);
            return Err(error.unwrap_or_else(|| ClientError::Setup("no credentials".to_owned())));
        };
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone().into());
        }
        let new = match self.post_for_tokens(|| self.log_in(host, password)) {
            Err(ClientError::Refused(refusal)) if refusal.status == 401 => {
                state.refusal = Some(refusal.clone());
                return Err(refusal.into());
            }
            result => result?,
        };
        self.store(host, &new);
        Ok(state.hosts[host].own.insert(new).token.clone())
    }

    /// New tokens for refused ones. `None` if the refresh token is of no use either.
    fn renewed(&self, host: usize, refused: &Tokens) -> Result<Option<Tokens>, ClientError> {
        if matches!(self.server.shared.credentials, Credentials::Token(_)) {
            return Ok(None);
        }
        let cache = self.cache(host);
        // Another process may be renewing the same tokens, or has done it. Without the lock, both may lose them.
        let _lock = cache.map(TokenCache::lock);
        if let Some(cached) = cache.and_then(TokenCache::load)
            && cached.token.expose_secret() != refused.token.expose_secret()
        {
            return Ok(Some(cached));
        }
        let Some(refresh) = refused.refresh.clone() else { return Ok(None) };
        let body = serde_json::to_vec(&api::Refresh { refresh_token: refresh }).map_err(std::io::Error::from)?;
        match self.post_for_tokens(|| self.tokens_from(host, "/auth/refresh", body.clone())) {
            Ok(new) => {
                self.store(host, &new);
                Ok(Some(new))
            }
            // Its answer may have been lost, so that it counts as used.
            Err(error) if error.status().is_some_and(|status| matches!(status, 401 | 404)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn store(&self, host: usize, tokens: &Tokens) {
        if let Some(cache) = self.cache(host)
            && let Err(error) = cache.store(tokens)
        {
            tracing::warn!(%error, "cannot cache the token");
            // A refresh token in it is used up. Its second use would end the log-in.
            if let Err(error) = cache.remove() {
                tracing::warn!(%error, "cannot remove the former token from the cache");
            }
        }
    }

    fn log_in(&self, host: usize, Password { user, password }: &Password) -> Result<Tokens, ClientError> {
        let login = api::Login { username: user.clone(), password: password.clone(), refresh: true };
        self.tokens_from(host, "/auth/login", serde_json::to_vec(&login).map_err(std::io::Error::from)?)
    }

    /// Asks for tokens. In a pool another host may be asked instead of a second attempt.
    fn post_for_tokens(&self, attempt: impl Fn() -> Result<Tokens, ClientError>) -> Result<Tokens, ClientError> {
        if self.server.hosts().len() > 1 { attempt() } else { self.retried(attempt) }
    }

    fn tokens_from(&self, host: usize, path: &str, body: Vec<u8>) -> Result<Tokens, ClientError> {
        self.server.cancel().check()?;
        let connection = self.connection(host)?;
        let request = connection.request(Method::POST, path).body(body);
        let request = request.header("content-type", "application/json");
        let api::Token { token, refresh_token, .. } = connection.send(request, READ_TIMEOUT)?.json()?;
        Ok(Tokens { token: token.into(), refresh: refresh_token })
    }

    /// Logs in at a host, even if there is a token.
    ///
    /// # Errors
    /// The credentials are refused, or the host cannot be reached.
    pub fn log_in_now(&self, host: usize) -> Result<(), ClientError> {
        self.asked.set(host);
        self.tokens().hosts[host] = OfHost { own: None, refuses_others: true };
        self.token(host, None).map(|_| ()).map_err(|error| self.named(error))
    }
}
