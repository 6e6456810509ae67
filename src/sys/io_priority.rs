//! ioprio_set(2): the I/O priority of a thread.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;

use nix::errno::Errno;
use nix::libc;

/// linux/ioprio.h: `IOPRIO_WHO_PROCESS`, and `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)`.
const WHO_PROCESS: libc::c_int = 1;
const IDLE: libc::c_int = 3 << 13;

const THIS_THREAD: libc::c_int = 0;

/// The calling thread has the idle I/O class until this is dropped.
#[derive(Debug)]
pub struct Idle {
    /// Its I/O class and priority before.
    before: libc::c_long,
    /// Not `Send`: the priority is the thread's.
    _stays: PhantomData<*const ()>,
}

/// Gives the calling thread the idle I/O class: the device serves it only when no one else needs the device. This works
/// with the I/O schedulers BFQ, CFQ and mq-deadline, and has no effect with others. Threads started meanwhile inherit
/// it.
pub fn set_idle() -> io::Result<Idle> {
    // SAFETY: the call takes two numbers and touches no memory.
    let before = Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, THIS_THREAD) })?;
    set(IDLE.into())?;
    Ok(Idle { before, _stays: PhantomData })
}

impl Drop for Idle {
    fn drop(&mut self) {
        // The former priority was allowed, unless capabilities were dropped since.
        let _ = set(settable(self.before));
    }
}

/// The value that restores the priority `found`. Before Linux 5.14, a thread without a priority reports a level
/// (`IOPRIO_NORM`) that ioprio_set(2) refuses.
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
    fn a_thread_is_idle_until_the_guard_is_dropped() {
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
    fn a_thread_without_a_class_is_restored_without_one() {
        assert_eq!([0, 4, (2 << 13) | 4, 3 << 13].map(settable), [0, 0, (2 << 13) | 4, 3 << 13]);
    }
}
