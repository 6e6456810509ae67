//! What this process does when it gets a signal.
#![allow(unsafe_code)]

use std::io;

use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Makes SIGHUP, SIGTERM and SIGINT have no effect on this process. The programs that it starts keep the default: a
/// handler does not survive execve(2), as an ignored signal would.
///
/// # Errors
/// The errno of sigaction(2).
pub fn disregard_stops() -> io::Result<()> {
    extern "C" fn nothing(_: c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler does nothing, which is safe at any time.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}
