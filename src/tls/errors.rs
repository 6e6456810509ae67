//! Errors of TLS inside those of HTTP clients.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, PeerIncompatible};

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

/// The text of an error and of all its causes.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
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
    }
}
