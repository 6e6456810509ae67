//! What the kernel knows about a connection.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::libc;

nix::ioctl_read_bad!(
    /// `SIOCOUTQ` of linux/sockios.h, which is `TIOCOUTQ`.
    ioctl_outq,
    nix::libc::TIOCOUTQ,
    nix::libc::c_int
);

/// Bytes that were written to a socket and that its peer has not acknowledged (tcp(7)), or has not read if it is a Unix
/// socket. There it counts the kernel's memory for them, which is more.
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

/// The supplementary groups of the process at the other end of a Unix socket, when it connected.
///
/// # Errors
/// The errno of getsockopt(2): `ENOPROTOOPT` before Linux 4.13.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(&*groups)).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `length` bytes to the buffer, which has that many, and any bytes are valid
        // group ids. It writes the number of bytes to `length`.
        let failed = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        } != 0;
        let count = length as usize / size_of::<libc::gid_t>();
        if !failed {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The buffer was too small, and `length` is what is needed.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
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

    #[test]
    fn bytes_that_a_local_peer_has_not_read_are_counted() {
        let (mut writer, mut reader) = UnixStream::pair().unwrap();
        assert_eq!(unacknowledged(writer.as_raw_fd()).unwrap(), 0);
        writer.write_all(&[1; 4096]).unwrap();
        assert!(unacknowledged(writer.as_raw_fd()).unwrap() >= 4096);
        reader.read_exact(&mut [0; 4096]).unwrap();
        assert_eq!(unacknowledged(writer.as_raw_fd()).unwrap(), 0);
    }

    #[test]
    fn groups_of_a_local_peer_are_those_of_its_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let mut own: Vec<u32> = line.split_whitespace().map(|group| group.parse().unwrap()).collect();
        let mut groups = peer_groups(one.as_fd()).unwrap();
        own.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, own);
        assert!(peer_groups(TcpListener::bind("127.0.0.1:0").unwrap().as_fd()).is_err());
    }
}
