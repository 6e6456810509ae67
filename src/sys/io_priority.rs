//! ioprio_set(2): whose reads and writes go first.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;

use nix::errno::Errno;
use nix::libc;

/// linux/ioprio.h: `IOPRIO_WHO_PROCESS`, and `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)`.
const WHO_PROCESS: libc::c_int = 1;
const IDLE: libc::c_int = 3 << 13;

const THIS_THREAD: libc::c_int = 0;

/// A thread that lets others go first, until this is dropped.
#[derive(Debug)]
pub struct Idle {
    /// Its class and priority before.
    before: libc::c_long,
    /// It is the thread's own.
    _stays: PhantomData<*const ()>,
}

/// From now on the calling thread reads when nobody else wants to, where the device's scheduler tells
/// threads apart (BFQ, CFQ, mq-deadline); elsewhere this changes nothing. So would any thread that it starts.
///
/// # Errors
/// The errno of ioprio_get(2) or ioprio_set(2).
pub fn set_idle() -> io::Result<Idle> {
    // SAFETY: the call takes two numbers and touches no memory.
    let before = Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, THIS_THREAD) })?;
    set(IDLE.into())?;
    Ok(Idle { before, _stays: PhantomData })
}

impl Drop for Idle {
    fn drop(&mut self) {
        // Nobody else has changed it: what it was is allowed, but for capabilities that are gone.
        let _ = set(settable(self.before));
    }
}

/// What sets the class and priority that `found` tells. Before Linux 5.14 that of a thread that has none
/// comes with a number (`IOPRIO_NORM`), which ioprio_set(2) refuses.
fn settable(found: libc::c_long) -> libc::c_long {
    if found >> 13 == 0 { 0 } else { found }
}

fn set(priority: libc::c_long) -> io::Result<()> {
    // SAFETY: the call takes three numbers and touches no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, THIS_THREAD, priority) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_idle_for_a_while() {
        // SAFETY: the call takes two numbers and touches no memory.
        let class = || unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) } >> 13;
        let before = class();
        let idle = set_idle().unwrap();
        assert_ne!(before, 3);
        assert_eq!(class(), 3);
        drop(idle);
        assert_eq!(class(), before);
    }

    #[test]
    fn no_class_is_set_as_none() {
        assert_eq!([0, 4, (2 << 13) | 4, 3 << 13].map(settable), [0, 0, (2 << 13) | 4, 3 << 13]);
    }
}
