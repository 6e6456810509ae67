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
use tokio_util::sync::CancellationToken;

use super::frame::{self, CallRequest, Reply, Request};
use crate::hooks::calls;
use crate::hooks::event::CallReason;
use crate::hooks::isolated::run_isolated;
use crate::hooks::leftover_processes::Search;
use crate::hooks::program::{self, ProgramResult};
use crate::hooks::{directory, leftover_processes};
use crate::sys::passing::Received;
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
    loop {
        let connection = match passing::receive(&service)? {
            Received::Descriptor(connection) => connection,
            Received::Lost => {
                // The service sees that its connection is closed.
                tracing::error!("hook launcher: no free descriptor for a request; raise the limit of open files");
                continue;
            }
            Received::End => return Ok(()),
        };
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
}

async fn answer(connection: OwnedFd, directory: Option<&Path>) -> io::Result<()> {
    let connection = std::os::unix::net::UnixStream::from(connection);
    connection.set_nonblocking(true)?;
    let (mut receiving, mut sending) = UnixStream::from_std(connection)?.into_split();
    let reply = match frame::receive(&mut receiving).await? {
        Request::KillLeftovers { selection, deadline } => Reply::Searched(match calls::from_host_time(deadline) {
            Some(deadline) => leftover_processes::kill_until(selection, deadline.into()).await,
            None => Search::TookTooLong,
        }),
        Request::Call(request) => Reply::Ended(call(directory, request, &mut receiving).await?.into()),
    };
    frame::send(&mut sending, &reply).await
}

/// Runs a program of the directory, with the same checks as the service.
///
/// # Errors
/// The service has ended, so its `pre` hook is not started.
async fn call(
    directory: Option<&Path>,
    request: CallRequest,
    connection: &mut OwnedReadHalf,
) -> io::Result<ProgramResult> {
    let CallRequest { name, event, id, reason, deadline } = request;
    let failed = |problem: String| Ok(ProgramResult::failed(problem));
    let Some(directory) = directory else { return failed("hooks.directory is not set".to_owned()) };
    let path = match directory::callable(directory, &name) {
        Ok(path) => path,
        Err(problem) => return failed(format!("cannot be started: {problem}")),
    };
    // From here on nothing is waited for before the start. The launcher may have been stopped, and the directory may have
    // hung, while the service gave up the call and called the post hook: nothing may freeze the guest after that.
    let Some(deadline) = calls::from_host_time(deadline) else {
        return failed("was not started: its time was over before".to_owned());
    };
    let cancel = CancellationToken::new();
    match received(connection)? {
        Some(0) if reason == CallReason::Pre => {
            return Err(io::Error::other("the service has ended before its pre hook was started"));
        }
        Some(1..) => cancel.cancel(),
        _ => {}
    }
    let calling = program::call(&path, &event, &id, reason, deadline, &cancel);
    let cancelling = async {
        if connection.read_u8().await.is_ok() {
            cancel.cancel();
        }
        std::future::pending::<ProgramResult>().await
    };
    Ok(tokio::select! { result = calling => result, result = cancelling => result })
}

/// How many bytes the service has sent: at most one, which cancels the call. 0: it has closed its end of the connection.
fn received(connection: &OwnedReadHalf) -> io::Result<Option<usize>> {
    let stream: &UnixStream = connection.as_ref();
    match recv(stream.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
        Ok(received) => Ok(Some(received)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
