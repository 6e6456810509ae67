//! Ends the work at the first signal, and the process at the second.

use tokio::signal::unix::{SignalKind, signal};

use crate::client::Cancel;

/// What a shell reports for a process that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// SIGINT and SIGTERM set `cancel`: the work ends at its next step, and another run goes on from there.
///
/// # Errors
/// No thread can be started.
pub fn cancel_on_signal(cancel: &Cancel) -> std::io::Result<()> {
    let cancel = cancel.clone();
    on_signal(move || {
        if cancel.is_cancelled() {
            std::process::exit(INTERRUPTED);
        }
        cancel.cancel();
    })
}

/// Calls `act` in a thread of its own at each SIGINT and SIGTERM from now on.
///
/// # Errors
/// No thread can be started, or no handler set.
pub fn on_signal(act: impl Fn() + Send + 'static) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the thread starts: a signal must not end the process meanwhile.
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                act();
            }
        });
    })?;
    Ok(())
}
