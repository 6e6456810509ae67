//! The output of a program. All of it is read, and a limited part is kept and logged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of one stream that are logged. The rest is discarded.
const OUTPUT_LIMIT: usize = 16 << 10;

/// The line with which a program claims to have quiesced the guest's disks.
const QUIESCED: &[u8] = b"quiesced";

/// Bytes of a line that are compared.
const LINE_LIMIT: usize = 64;

/// One stream of a program. Clones share their content.
#[derive(Clone, Debug, Default)]
pub(super) struct Output(Arc<Mutex<State>>);

/// What a program has printed, to be passed to another process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Printed {
    kept: Vec<u8>,
    total: usize,
    quiesced: bool,
}

impl Printed {
    /// Of a program whose output is lost: it may have printed `quiesced`.
    pub(super) fn lost() -> Self {
        Self { quiesced: true, ..Self::default() }
    }
}

impl From<Printed> for Output {
    fn from(Printed { kept, total, quiesced }: Printed) -> Self {
        // Nothing is read any more.
        Self(Arc::new(Mutex::new(State { kept, total, line: Vec::new(), quiesced })))
    }
}

#[derive(Debug, Default)]
struct State {
    kept: Vec<u8>,
    total: usize,
    /// The first bytes of the unfinished line.
    line: Vec<u8>,
    quiesced: bool,
}

impl Output {
    pub(super) async fn read(self, mut stream: impl AsyncRead + Unpin) {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = stream.read(&mut piece).await {
            self.state().take(&piece[..length]);
        }
        self.state().end_line();
    }

    pub(super) fn printed(&self) -> Printed {
        let state = self.state();
        Printed { kept: state.kept.clone(), total: state.total, quiesced: state.quiesced }
    }

    pub(super) fn says_quiesced(&self) -> bool {
        self.state().quiesced
    }

    /// Logs what is kept, line by line.
    pub(super) fn log(&self, hook: &str, stage: &'static str, stream: &'static str) {
        let state = self.state();
        // Lines are escaped, so that they cannot control the terminal of a reader.
        for line in String::from_utf8_lossy(&state.kept).lines() {
            tracing::info!(hook, stage, stream, ?line, "output");
        }
        let discarded = state.total.saturating_sub(state.kept.len());
        if discarded > 0 {
            tracing::warn!(hook, stage, stream, bytes = discarded, "more output was discarded");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, piece: &[u8]) {
        let room = OUTPUT_LIMIT - self.kept.len();
        self.kept.extend_from_slice(&piece[..piece.len().min(room)]);
        self.total += piece.len();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_LIMIT - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        self.quiesced |= self.line.trim_ascii() == QUIESCED;
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiesced_counts_only_as_a_whole_line() {
        let says = |pieces: &[&str]| {
            let mut state = State::default();
            pieces.iter().for_each(|piece| state.take(piece.as_bytes()));
            state.end_line();
            state.quiesced
        };
        let (long, noise) = ("x".repeat(1 << 20) + "\n", "noise\n".repeat(100_000));
        for good in
            [&["quiesced"][..], &["quiesced\n"], &["quie", "sced", "\r\n"], &[&long, &noise, " quiesced \n", "x"]]
        {
            assert!(says(good), "{} pieces", good.len());
        }
        let padded = " ".repeat(LINE_LIMIT) + "quiesced\n";
        for other in
            [&["not quiesced\n"][..], &["quiesced: no\n"], &["quiesced", "x\n"], &[&padded], &[], &["Quiesced"]]
        {
            assert!(!says(other), "{other:?}");
        }
    }

    #[tokio::test]
    async fn kept_output_is_limited() {
        let output = Output::default();
        let bytes = vec![b'y'; 3 << 20];
        output.clone().read(bytes.as_slice()).await;
        let state = output.state();
        assert_eq!((state.kept.len(), state.total), (OUTPUT_LIMIT, 3 << 20));
        assert!(state.line.capacity() <= 2 * LINE_LIMIT);
    }
}
