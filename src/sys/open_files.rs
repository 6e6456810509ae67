//! How many files this process may open: setrlimit(2), `RLIMIT_NOFILE`.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

use nix::libc::rlim_t;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft and the hard limit that this process was started with.
static BEFORE: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Raises the soft limit to the hard one.
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = BEFORE.set((soft, hard));
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Starts the program of `command` with the limit from before [`raise_limit`]: a program that uses select(2) fails with
/// a higher one, and others close all descriptors up to the limit.
pub fn keep_former_limit(command: &mut Command) {
    let Some(&(soft, hard)) = BEFORE.get() else { return };
    let set = move || setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(io::Error::from);
    // SAFETY: the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(set) };
}
