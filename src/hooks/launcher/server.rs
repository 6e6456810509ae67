//! The launcher's side.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame::{self, CallRequest, Reply, Request};
use crate::hooks::calls;
use crate::hooks::event::CallReason;
use crate::hooks::isolated::run_isolated;
use crate::hooks::program::{self, ProgramResult};
use crate::hooks::{directory, leftover_processes};
use crate::sys::{passing, signals};

/// Serves the `service` at the other end of this socket until it has ended. A program that runs then goes on: the next
/// start of the service ends it. Signals that stop or reload the service have no effect here, because systemd may send
/// them to all processes of the unit: the post hooks of the requests that the service finishes are still to be called.
///
/// # Errors
/// It is no socket; the signals cannot be handled.
pub fn serve(service: impl AsFd, directory: Option<PathBuf>) -> io::Result<()> {
    signals::disregard_stops()?;
    // Otherwise it would have the name of the link that it was started by.
    let _ = nix::sys::prctl::set_name(c"hook-launcher");
    let directory: Option<Arc<Path>> = directory.map(Into::into);
    while let Some(connection) = passing::receive(&service)? {
        let directory = directory.clone();
        // Each on its own thread: one that hangs in the kernel must not delay another.
        if let Err(error) = run_isolated(async move {
            if let Err(error) = answer(connection, directory.as_deref()).await {
                tracing::warn!(%error, "hook launcher: the service's request was not answered");
            }
        }) {
            // The service sees that its connection is closed.
            tracing::error!(%error, "hook launcher: no thread for a request");
        }
    }
    Ok(())
}

async fn answer(connection: OwnedFd, directory: Option<&Path>) -> io::Result<()> {
    let connection = std::os::unix::net::UnixStream::from(connection);
    connection.set_nonblocking(true)?;
    let (mut receiving, mut sending) = UnixStream::from_std(connection)?.into_split();
    let reply = match frame::receive(&mut receiving).await? {
        Request::KillLeftovers(selection) => Reply::Searched(leftover_processes::kill_on_thread(selection).await),
        // The next start has called, or will call, the post hook: nothing may freeze the guest after that.
        Request::Call(request) if request.reason == CallReason::Pre && has_hung_up(&receiving)? => {
            return Err(io::Error::other("the service has ended before its pre hook was started"));
        }
        Request::Call(request) => {
            let cancel = CancellationToken::new();
            let calling = call(directory, request, &cancel);
            let cancelling = async {
                if receiving.read_u8().await.is_ok() {
                    cancel.cancel();
                }
                std::future::pending::<ProgramResult>().await
            };
            Reply::Ended(tokio::select! { result = calling => result, result = cancelling => result }.into())
        }
    };
    frame::send(&mut sending, &reply).await
}

/// Whether the service has closed its end of the connection.
fn has_hung_up(receiving: &OwnedReadHalf) -> io::Result<bool> {
    let stream: &UnixStream = receiving.as_ref();
    match recv(stream.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(received) => Ok(received == 0),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Runs a program of the directory, with the same checks as the service.
async fn call(directory: Option<&Path>, request: CallRequest, cancel: &CancellationToken) -> ProgramResult {
    let remaining = request.deadline.saturating_sub(calls::host_time());
    if remaining.is_zero() {
        return ProgramResult::failed("cannot be started: the hook launcher received the request too late".to_owned());
    }
    let deadline = Instant::now() + remaining;
    let CallRequest { name, event, id, reason, .. } = request;
    let Some(directory) = directory else { return ProgramResult::failed("hooks.directory is not set".to_owned()) };
    match directory::callable(directory, &name) {
        Ok(path) => program::call(&path, &event, &id, reason, deadline, cancel).await,
        Err(problem) => ProgramResult::failed(format!("cannot be started: {problem}")),
    }
}
