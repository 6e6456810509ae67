//! ioprio_set(2): whose reads and writes go first.
#![allow(unsafe_code)]

use std::io;

use nix::errno::Errno;
use nix::libc;

/// linux/ioprio.h: `IOPRIO_WHO_PROCESS`, and `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)`.
const WHO_PROCESS: libc::c_int = 1;
const IDLE: libc::c_int = 3 << 13;

/// From now on the calling thread reads when nobody else wants to, where the device's scheduler tells
/// threads apart (BFQ, CFQ, mq-deadline); elsewhere this changes nothing.
///
/// # Errors
/// The errno of ioprio_set(2).
pub fn make_this_thread_idle() -> io::Result<()> {
    const THIS_THREAD: libc::c_int = 0;
    // SAFETY: the call takes three numbers and touches no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, THIS_THREAD, IDLE) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_is_idle() {
        // SAFETY: the call takes two numbers and touches no memory.
        let class = || unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) } >> 13;
        let before = class();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                make_this_thread_idle().unwrap();
                assert_eq!(class(), 3);
            });
        });
        assert_ne!(before, 3);
        assert_eq!(class(), before);
    }
}
