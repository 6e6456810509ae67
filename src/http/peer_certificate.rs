//! The certificate that the client of a connection has shown. It must stay acceptable for as long as the connection is
//! open: the service can load a new revocation list, a certificate can expire, and so can a list.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::tls::{ClientCertificate, ServerTls};

/// How often a certificate is checked again although nothing was loaded.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct PeerCertificate {
    chain: Vec<CertificateDer<'static>>,
    /// `None` if it has no usable name.
    named: Option<Arc<ClientCertificate>>,
    /// With the version that the certificate was last checked with.
    tls: Mutex<watch::Receiver<Arc<ServerTls>>>,
}

impl PeerCertificate {
    /// Of a handshake with the current version of `tls`.
    pub(super) fn new(chain: &[CertificateDer<'_>], tls: watch::Receiver<Arc<ServerTls>>) -> Self {
        let named = ClientCertificate::new(chain).map(Arc::new);
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Self { chain, named, tls: Mutex::new(tls) }
    }

    /// For the rules of access.
    pub(super) fn named(&self) -> Option<&Arc<ClientCertificate>> {
        self.named.as_ref()
    }

    /// For the log.
    pub(super) fn name(&self) -> &str {
        self.named.as_ref().map_or("-", |certificate| certificate.name())
    }

    fn is_accepted_by(&self, tls: &ServerTls) -> bool {
        tls.clients.as_ref().is_some_and(|clients| clients.accepts_chain(&self.chain))
    }

    /// Whether it is accepted by what has been loaded. Each request asks this, because [`Self::refused`] may be late.
    pub(super) fn is_accepted(&self) -> bool {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if !tls.has_changed().unwrap_or_default() {
            return true;
        }
        let current = Arc::clone(&tls.borrow_and_update());
        let is_accepted = self.is_accepted_by(&current);
        if !is_accepted {
            // Otherwise the next request would pass.
            tls.mark_changed();
        }
        is_accepted
    }

    /// Waits until it is not accepted any more.
    pub(super) async fn refused(&self) {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loop {
            // The sender lives as long as the service.
            let changed = timeout(CHECK_INTERVAL, tls.changed()).await;
            let current = Arc::clone(&tls.borrow_and_update());
            if matches!(changed, Ok(Err(_))) || !self.is_accepted_by(&current) {
                return;
            }
        }
    }
}
