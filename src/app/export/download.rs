//! A body that is sent to a client, no faster than the limits allow.

use bytes::Bytes;
use tokio::time::Instant;

use super::block_export::{BlockExport, DiskExport};
use super::pieces::{PIECE, Part, Pieces};
use super::rate_limit::{ConnectionLimits, Reservation};
use crate::metrics::Counter;
use crate::repository::OpenError;

/// A body of known length, read piece by piece. Its slot is held until it is dropped.
pub struct Download {
    pieces: Pieces<DiskExport>,
    /// The first piece, which was read before anything was promised.
    first: Option<(Bytes, Reservation)>,
    remaining: u64,
    limits: ConnectionLimits,
    /// Bytes of all downloads.
    served: Counter,
}

impl Download {
    /// A body of `parts`, the first piece of which is read: after the response has begun, an error can only cut it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) fn start(
        export: DiskExport,
        parts: Vec<Part>,
        limits: ConnectionLimits,
        served: Counter,
    ) -> Result<Self, OpenError> {
        let remaining = parts.iter().map(Part::len).sum();
        let pieces = Pieces::new(export, parts, limits.piece(PIECE));
        let mut download = Self { pieces, first: None, remaining, limits, served };
        download.first = Some(download.next()?);
        Ok(download)
    }

    /// Bytes that are still to be sent.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The connection asks for the next piece.
    pub fn is_asked(&mut self) {
        self.pieces.export.is_asked();
    }

    /// Reads the next piece. It may be sent at the time of its reservation. This blocks.
    ///
    /// # Errors
    /// [`OpenError`]: the connection must be cut.
    pub fn next(&mut self) -> Result<(Bytes, Reservation), OpenError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let piece = self.pieces.next()?;
        let reservation = self.limits.take(piece.len() as u64, Instant::now());
        Ok((piece, reservation))
    }

    /// `bytes` were handed to the connection.
    pub fn sent(&mut self, bytes: u64) {
        self.remaining = self.remaining.saturating_sub(bytes);
        self.pieces.export.sent(bytes);
        self.served.inc_by(bytes);
    }
}
