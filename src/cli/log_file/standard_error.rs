//! Standard error, for lines that a file could not take.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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
