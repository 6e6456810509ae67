//! The state of a TCP connection according to the kernel.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

nix::ioctl_read_bad!(
    /// `SIOCOUTQ` of linux/sockios.h, which is `TIOCOUTQ`.
    ioctl_outq,
    nix::libc::TIOCOUTQ,
    nix::libc::c_int
);

/// Bytes that were written to a TCP socket and that its peer has not acknowledged (tcp(7)).
///
/// # Errors
/// The errno of ioctl(2): `EINVAL` if it listens, `EBADF`, `ENOTTY` if it is not a socket.
pub fn unacknowledged(socket: RawFd) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the call writes one int, which is ours. For a number that is not an open descriptor it fails; for one of
    // another file it returns that file's bytes.
    unsafe { ioctl_outq(socket, &raw mut bytes) }?;
    Ok(u64::try_from(bytes).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    #[test]
    fn bytes_that_the_peer_has_not_acknowledged_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        assert_eq!(unacknowledged(writer.as_raw_fd()).unwrap(), 0);
        // Until all buffers on the way are full.
        writer.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut written = 0;
        while let Ok(length) = writer.write(&[0; 64 << 10]) {
            written += length as u64;
        }
        let left = unacknowledged(writer.as_raw_fd()).unwrap();
        assert!(left > 0 && left < written, "{left} of {written}");
        reader.read_exact(&mut vec![0; written as usize]).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while unacknowledged(writer.as_raw_fd()).unwrap() > 0 {
            assert!(Instant::now() < end, "all bytes were read, but not acknowledged");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(unacknowledged(-1).is_err());
    }
}
