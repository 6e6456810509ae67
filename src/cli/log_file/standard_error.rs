//! Standard error, as the log, and for lines that a file could not take.

use std::io::{self, ErrorKind, Stderr, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::log_queue::Sink;

/// Writes to standard error without blocking: a full pipe must not block the file, which may be writable again.
pub fn to_standard_error(line: &[u8]) -> io::Result<()> {
    let mut stderr = io::stderr();
    for piece in line.chunks(nix::libc::PIPE_BUF) {
        let mut writable = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut writable, PollTimeout::ZERO)? == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        stderr.write_all(piece)?;
    }
    Ok(())
}

impl Sink for Stderr {
    fn write_early(&mut self, line: &[u8]) -> bool {
        to_standard_error(line).is_ok()
    }
}
