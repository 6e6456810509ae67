//! Passing descriptors to another process over a Unix socket: unix(7), `SCM_RIGHTS`.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};

/// Two connected sockets. Each message is received as a whole.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends `descriptor`, without waiting.
///
/// # Errors
/// The errno of sendmsg(2): `EAGAIN` if the other process does not receive, `EPIPE` if it has ended.
pub fn send(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    let passed = [descriptor.as_fd().as_raw_fd()];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    // At least one byte has to be sent with a descriptor.
    let messages = [ControlMessage::ScmRights(&passed)];
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(&[0])], &messages, flags, None)?;
    Ok(())
}

/// What [`receive`] has received.
#[derive(Debug)]
pub enum Received {
    Descriptor(OwnedFd),
    /// This process had no free descriptor for it. It is closed.
    Lost,
    /// The other process has closed its socket.
    End,
}

/// Waits for the next descriptor.
///
/// # Errors
/// The errno of recvmsg(2).
pub fn receive(socket: impl AsFd) -> io::Result<Received> {
    loop {
        let mut byte = [0];
        let mut buffers = [IoSliceMut::new(&mut byte)];
        let mut space = cmsg_space!([RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut buffers, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        let messages = match received.cmsgs() {
            // `MSG_CTRUNC`
            Err(Errno::ENOBUFS) => return Ok(Received::Lost),
            messages => messages?,
        };
        let descriptors = messages.filter_map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        // SAFETY: the kernel has made these descriptors for this message, so nothing else owns them.
        let mut owned = descriptors.flatten().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) });
        match owned.next() {
            Some(descriptor) => return Ok(Received::Descriptor(descriptor)),
            None if received.bytes == 0 => return Ok(Received::End),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn a_descriptor_is_received_as_it_was_sent() {
        let (ours, theirs) = pair().unwrap();
        send(&ours, File::open("/proc/self/comm").unwrap()).unwrap();
        let mut text = String::new();
        let Received::Descriptor(descriptor) = receive(&theirs).unwrap() else { panic!("no descriptor") };
        File::from(descriptor).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        drop(ours);
        assert!(matches!(receive(&theirs).unwrap(), Received::End));
    }
}
