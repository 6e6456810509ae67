//! The hook launcher: a process of the same program that was started before the service confined itself. It runs the
//! programs of the hook directory, and ends the processes that they leave behind. The service can do neither any more.
//!
//! For each request, the service sends it one end of a new connection, over the socket that is the launcher's standard
//! input. A connection carries one request and one reply, and between them the byte that cancels the call.
//!
//! An attacker who controls the service can ask the launcher only to run hooks and to end their processes.

mod frame;
mod server;

use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::calls;
use super::event::{CallReason, Event};
use super::leftover_processes::{self, Selection};
use super::output::Printed;
use super::program::{self, ProgramResult};
use crate::sys::passing;
use frame::{CallRequest, Reply, Request};

pub use server::serve;

/// The command of the program that runs the launcher.
pub const COMMAND: &str = "hook-launcher";

/// Cancels the call of a pre hook. The end of the connection does not: if the service is killed, its hooks go on.
const CANCEL: u8 = 0;

/// How long the launcher may take longer than the call.
const MARGIN: Duration = Duration::from_secs(5);

/// Starts programs.
#[derive(Clone, Default)]
pub enum Launcher {
    /// The service starts them itself.
    #[default]
    InProcess,
    /// The launcher, at the other end of this socket.
    Process(Arc<OwnedFd>),
}

impl Launcher {
    /// Starts the launcher for the programs of `directory`. It ends when the service does.
    ///
    /// # Errors
    /// No process can be started.
    pub fn start(directory: Option<&Path>) -> io::Result<Self> {
        let (ours, theirs) = passing::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            // Not the name of the service: a command that signals processes by name means the service.
            .arg0(COMMAND)
            .arg(COMMAND)
            .args(directory)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        // Signals for the service's process group are not for the launcher.
        command.process_group(0).spawn()?;
        Ok(Self::Process(Arc::new(ours)))
    }

    /// Waits until the launcher has ended, which it does not do by itself.
    pub async fn ended(&self) {
        let Self::Process(socket) = self else { return std::future::pending().await };
        let (socket, (ended, end)) = (Arc::clone(socket), tokio::sync::oneshot::channel());
        // The launcher sends nothing here, so only its end is received.
        let watch = move || {
            let _ = ended.send(passing::receive(&*socket));
        };
        let watching = std::thread::Builder::new().name("launcher".to_owned()).spawn(watch);
        // A connection that the launcher had not received yet makes its end an error.
        let error = match (watching, end.await) {
            (Ok(_), Ok(_)) => return,
            (Err(error), _) => error.to_string(),
            (Ok(_), Err(error)) => error.to_string(),
        };
        tracing::error!(error, "cannot watch the hook launcher");
        std::future::pending().await
    }

    /// As [`program::call`].
    pub(super) async fn call(
        &self,
        program: &Path,
        event: &Event,
        id: &str,
        reason: CallReason,
        deadline: Instant,
        cancel: &CancellationToken,
    ) -> ProgramResult {
        let result = match self {
            Self::InProcess => program::call(program, event, id, reason, deadline, cancel).await,
            Self::Process(socket) => match call_by(socket, program, event, id, reason, deadline, cancel).await {
                Ok(result) => result,
                Err(error) => {
                    // The program may still run, and freeze something after its post hook.
                    self.kill_leftovers(Selection::Call(id.to_owned())).await;
                    lost(error)
                }
            },
        };
        if let Some(search) = &result.search {
            search.log();
        }
        result
    }

    /// As [`leftover_processes::kill_on_thread`]. Logs what was done. False: processes may be left.
    pub(super) async fn kill_leftovers(&self, selection: Selection) -> bool {
        let Self::Process(socket) = self else { return leftover_processes::kill_on_thread(selection).await.log() };
        let end = Instant::now() + leftover_processes::MAX_DURATION;
        let request = Request::KillLeftovers { selection, deadline: calls::to_host_time(end) };
        let error = match ask(socket, &request, end + MARGIN, &CancellationToken::new()).await {
            Ok(Reply::Searched(search)) => return search.log(),
            Ok(Reply::Ended(_)) => io::Error::other("it gave another answer"),
            Err(error) => error,
        };
        tracing::error!(%error, "cannot end processes that hooks left behind: the hook launcher does not respond");
        false
    }
}

/// Has the launcher at `socket` call the program.
///
/// # Errors
/// The launcher did not answer. The program may run.
async fn call_by(
    socket: &OwnedFd,
    program: &Path,
    event: &Event,
    id: &str,
    reason: CallReason,
    deadline: Instant,
    cancel: &CancellationToken,
) -> Result<ProgramResult, String> {
    let request = Request::Call(CallRequest {
        name: program.file_name().unwrap_or_default().to_owned(),
        event: event.clone(),
        id: id.to_owned(),
        reason,
        deadline: calls::to_host_time(deadline),
    });
    let limit = deadline + program::MAX_KILL_DURATION + MARGIN;
    match ask(socket, &request, limit, cancel).await {
        Ok(Reply::Ended(result)) => Ok(result.into()),
        Ok(Reply::Searched(_)) => Err("it gave another answer".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The result if the launcher does not respond. The program may have been started, and have frozen something, so its
/// post hook is called.
fn lost(reason: impl Display) -> ProgramResult {
    ProgramResult {
        output: vec![(program::STDOUT, Printed::lost().into())],
        ..ProgramResult::failed(format!("the hook launcher does not respond: {reason}; restart the service"))
    }
}

/// Sends a request over a new connection, and waits for its reply.
async fn ask(socket: &OwnedFd, request: &Request, limit: Instant, cancel: &CancellationToken) -> io::Result<Reply> {
    let (ours, theirs) = UnixStream::pair()?;
    passing::send(socket, &theirs)?;
    drop(theirs);
    ours.set_nonblocking(true)?;
    let (mut receiving, mut sending) = tokio::net::UnixStream::from_std(ours)?.into_split();
    let exchange = async {
        frame::send(&mut sending, request).await?;
        let reply = frame::receive(&mut receiving);
        let cancelling = async {
            cancel.cancelled().await;
            // If the call has ended meanwhile, the launcher has closed the connection, and its reply is there.
            let _ = sending.write_all(&[CANCEL]).await;
            std::future::pending().await
        };
        tokio::select! { reply = reply => reply, reply = cancelling => reply }
    };
    timeout_at(limit, exchange).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use leftover_processes::Search;

    #[tokio::test]
    async fn reply_that_arrives_with_the_cancellation_counts() {
        let (ours, theirs) = passing::pair().unwrap();
        let cancel = CancellationToken::new();
        let (received, is_received) = tokio::sync::oneshot::channel();
        // The call has ended, and the launcher has closed the connection.
        let cancelling = cancel.clone();
        let launcher = std::thread::spawn(move || {
            let connection = match passing::receive(theirs).unwrap() {
                passing::Received::Descriptor(connection) => UnixStream::from(connection),
                other => panic!("{other:?}"),
            };
            connection.set_nonblocking(true).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = tokio::net::UnixStream::from_std(connection).unwrap();
                let _request: Request = frame::receive(&mut connection).await.unwrap();
                received.send(()).unwrap();
                frame::send(&mut connection, &Reply::Searched(Search::TookTooLong)).await.unwrap();
            });
            cancelling.cancel();
        });
        let selection = Selection::Call("x".to_owned());
        let request = Request::KillLeftovers { selection, deadline: calls::host_time() };
        let asked = ask(&ours, &request, Instant::now() + Duration::from_secs(60), &cancel);
        // Keeps the thread from seeing the reply before the cancellation.
        let busy = async {
            is_received.await.unwrap();
            launcher.join().unwrap();
        };
        let (reply, ()) = tokio::join!(asked, busy);
        assert!(matches!(reply, Ok(Reply::Searched(Search::TookTooLong))), "{reply:?}");
    }
}
