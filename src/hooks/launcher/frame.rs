//! Requests to the launcher and its replies: four bytes with the length, and JSON.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::hooks::event::{CallReason, Event};
use crate::hooks::leftover_processes::{Search, Selection};
use crate::hooks::output::{Output, Printed};
use crate::hooks::program::{ProgramResult, STDERR, STDOUT};
use crate::model::HookOutcome;

/// More than an event with the longest list of disks, and than the kept output of a program.
const MAX_BYTES: u32 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Call(CallRequest),
    KillLeftovers {
        selection: Selection,
        /// As [`CallRequest::deadline`].
        deadline: Duration,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CallRequest {
    /// The program's name in the directory.
    pub name: OsString,
    pub event: Event,
    pub id: String,
    pub reason: CallReason,
    /// The deadline, as the time of the host's monotonic clock: a launcher that was stopped meanwhile must not begin
    /// what the service has given up.
    pub deadline: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Ended(Ended),
    Searched(Search),
}

/// A [`ProgramResult`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    outcome: String,
    detail: String,
    stdout: Printed,
    stderr: Printed,
    search: Option<Search>,
}

impl From<ProgramResult> for Ended {
    fn from(result: ProgramResult) -> Self {
        let printed = |name| {
            let output = result.output.iter().find(|(stream, _)| *stream == name);
            output.map(|(_, output)| output.printed()).unwrap_or_default()
        };
        let (stdout, stderr) = (printed(STDOUT), printed(STDERR));
        let ProgramResult { outcome, detail, search, .. } = result;
        Self { outcome: outcome.as_str().to_owned(), detail, stdout, stderr, search }
    }
}

impl From<Ended> for ProgramResult {
    fn from(ended: Ended) -> Self {
        let Ended { outcome, detail, stdout, stderr, search } = ended;
        Self {
            outcome: outcome.parse().unwrap_or(HookOutcome::Failed),
            detail,
            output: vec![(STDOUT, Output::from(stdout)), (STDERR, Output::from(stderr))],
            search,
        }
    }
}

pub(super) async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= MAX_BYTES);
    stream.write_u32(length.ok_or_else(too_large)?).await?;
    stream.write_all(&bytes).await
}

pub(super) async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > MAX_BYTES {
        return Err(too_large());
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the message is too large")
}
