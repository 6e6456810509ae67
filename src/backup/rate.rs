//! A limit for the bytes of all connections together.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::client::{Cancel, ClientError};

pub struct Rate {
    bytes_per_second: Option<u64>,
    /// When the bytes that were admitted so far are through.
    free_at: Mutex<Instant>,
}

impl Rate {
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more may be requested.
    ///
    /// # Errors
    /// [`ClientError::Cancelled`].
    pub fn wait(&self, bytes: u64, cancel: &Cancel) -> Result<(), ClientError> {
        let Some(rate) = self.bytes_per_second.filter(|rate| *rate > 0) else { return Ok(()) };
        let turn = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free_at).max(Instant::now());
            *free_at = turn + Duration::from_secs_f64(bytes as f64 / rate as f64);
            turn
        };
        cancel.wait_until(turn)
    }
}
