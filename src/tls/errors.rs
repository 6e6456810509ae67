//! Errors of TLS inside those of HTTP clients.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, OtherError, PeerIncompatible};

/// Texts of HTTP clients that say less than their cause.
const WRAPPERS: [&str; 5] =
    ["error sending request", "client error (Connect)", "client error (SendRequest)", "tcp connect error", "dns error"];

/// A refused certificate.
#[derive(Debug, thiserror::Error)]
#[error("the server's certificate, whose fingerprint is {fingerprint}, {reason}")]
pub struct Untrusted {
    /// `sha256:` and the digits, as in the config.
    pub fingerprint: String,
    pub reason: String,
}

impl Untrusted {
    /// The refusal that caused `error`, if one did.
    pub fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        match rustls_error(error)? {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
            _ => None,
        }
    }

    pub(super) fn into_error(self) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }
}

/// Whether the peer's certificate caused `error`.
pub fn is_invalid_certificate(error: &(dyn Error + 'static)) -> bool {
    matches!(rustls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether `error` came about because the two sides support no common TLS version or cipher.
pub fn has_no_common_parameters(error: &(dyn Error + 'static)) -> bool {
    use rustls::Error::{AlertReceived, PeerIncompatible as Incompatible};
    matches!(
        rustls_error(error),
        Some(
            AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion)
                | Incompatible(
                    PeerIncompatible::ServerDoesNotSupportTls12Or13
                        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                )
        )
    )
}

/// The TLS error that caused `error`, if one did.
pub fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    // `io::Error::source` skips the error inside it, so `get_ref` returns that.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.and_then(|inner| rustls_error(inner)).or_else(|| error.source().and_then(rustls_error))
}

/// The text of an error and of its causes, without those that say nothing new. Of a refused certificate, its fingerprint
/// and the reason.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    // rustls would show it as a value of Rust.
    if let Some(untrusted) = Untrusted::within(error) {
        return untrusted.to_string();
    }
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let mut texts: Vec<String> = Vec::new();
    for text in causes.map(ToString::to_string) {
        if !texts.last().is_some_and(|last| last.contains(&text)) {
            texts.push(text);
        }
    }
    let last = texts.pop();
    texts.retain(|text| !WRAPPERS.contains(&text.as_str()));
    texts.extend(last);
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_tls_error_is_found_below_io_errors() {
        let tls = rustls::Error::HandshakeNotComplete;
        let nested = Outer(io::Error::other(io::Error::other(tls.clone())));
        assert_eq!(rustls_error(&nested), Some(&tls));
        assert_eq!(rustls_error(&tls), Some(&tls));
        assert_eq!(rustls_error(&Outer(io::ErrorKind::NotFound.into())), None);
        assert_eq!(with_causes(&Outer(io::Error::other("inner"))), "outer: inner");
        assert_eq!(with_causes(&Outer(io::Error::other("outer"))), "outer");
        assert_eq!(
            with_causes(&io::Error::other(Outer(io::Error::other("tcp connect error")))),
            "outer: tcp connect error"
        );
    }

    #[test]
    fn what_http_clients_put_before_a_cause_is_left_out() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Wrapper(&'static str, #[source] Box<dyn Error + Send + Sync>);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let connecting = Wrapper("client error (Connect)", Wrapper("tcp connect error", refused.into()).into());
        let sending = Wrapper("error sending request for url (https://host/)", connecting.into());
        let expected = "error sending request for url (https://host/): connection refused";
        assert_eq!(with_causes(&sending), expected);
    }
}
