//! The body of a download, sent within the rate limits.

use bytes::Bytes;
use tokio::time::Instant;

use super::block_export::{BlockExport, DiskExport};
use super::pieces::{PIECE, Part, Pieces};
use super::rate_limit::{ConnectionLimits, Reservation};
use crate::metrics::Counter;
use crate::repository::OpenError;

/// A body of known length, read piece by piece. It holds its slot until it is dropped.
pub struct Download {
    pieces: Pieces<DiskExport>,
    /// The first piece. It is read before the response begins.
    first: Option<(Bytes, Reservation)>,
    remaining: u64,
    limits: ConnectionLimits,
    /// Counts the bytes of all downloads.
    served: Counter,
}

impl Download {
    /// Starts a body of `parts` and reads its first piece. Errors found here still get an error response; later ones
    /// can only cut the body.
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
    pub fn client_ready(&mut self) {
        self.pieces.export.client_ready();
    }

    /// Reads the next piece. It may be sent at the time of its reservation. Blocks.
    ///
    /// # Errors
    /// After an error, the connection must be cut.
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
