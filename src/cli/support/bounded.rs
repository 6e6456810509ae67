//! Items of a bundle, and work that ends in time.

use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of one item.
pub const MAX_ITEM: u64 = 16 << 20;

/// How long a program of the host may run.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);

/// A file of the bundle, or why it is missing.
pub struct Item {
    pub name: String,
    /// What it is.
    pub what: String,
    pub found: Result<Vec<u8>, String>,
}

impl Item {
    pub fn new(name: impl Into<String>, what: impl Into<String>, found: Result<Vec<u8>, String>) -> Self {
        Self { name: name.into(), what: what.into(), found: found.map_err(|reason| reason.replace('\n', "; ")) }
    }
}

/// Does `work` on a thread, which is left behind if it takes too long. Not for files that can hang in the kernel, such as
/// those of a repository: this process could not end before that thread. See [`isolated`](mod@super::isolated).
///
/// # Errors
/// Those of `work`, as text; it took longer than `limit`.
pub fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().spawn(move || sender.send(work())).map_err(|error| error.to_string())?;
    match receiver.recv_timeout(limit) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("it took longer than {} s", limit.as_secs())),
    }
}

/// What a file has, at most [`MAX_ITEM`] bytes.
pub fn file(path: &str) -> Result<Vec<u8>, String> {
    let name = path.to_owned();
    let read = move || {
        let mut bytes = Vec::new();
        std::fs::File::open(name)?.take(MAX_ITEM).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    within(PROGRAM_TIMEOUT, read).map_err(|error| format!("{path}: {error}"))
}

/// What a program of the host prints. It is killed if it takes too long.
///
/// # Errors
/// The program is missing, fails or takes too long.
pub fn program(words: &[&str]) -> Result<Vec<u8>, String> {
    program_within(PROGRAM_TIMEOUT, words)
}

/// As [`program`], with another limit.
///
/// # Errors
/// Those of [`program`].
pub fn program_within(limit: Duration, words: &[&str]) -> Result<Vec<u8>, String> {
    let Some((name, arguments)) = words.split_first() else { return Err("no program".to_owned()) };
    let mut command = Command::new(name);
    command.args(arguments);
    match run(command, limit) {
        Ok((status, printed)) if status.success() => Ok(printed),
        Ok((status, printed)) => Err(format!("{name}: {status}: {}", String::from_utf8_lossy(&printed).trim())),
        Err(error) => Err(format!("{name}: {error}")),
    }
}

/// Runs a program. Returns its exit status, and what it printed. If it takes longer than `limit`, it is killed, but not
/// waited for: a process that hangs in the kernel ends only when the kernel lets it go on.
///
/// # Errors
/// It cannot be started; it took longer than `limit`.
pub fn run(mut command: Command, limit: Duration) -> Result<(ExitStatus, Vec<u8>), String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let ended = within(limit, move || {
        let mut printed = Vec::new();
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let pipes = [output.map(|it| Box::new(it) as Box<dyn Read>), errors.map(|it| Box::new(it) as Box<dyn Read>)];
        for pipe in pipes.into_iter().flatten() {
            pipe.take(MAX_ITEM).read_to_end(&mut printed)?;
        }
        Ok((child.wait()?, printed))
    });
    if ended.is_err() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_left_behind_and_what_fails_says_why() {
        let (_held, hung) = mpsc::channel::<()>();
        let waits = move || hung.recv().map_err(io::Error::other);
        assert_eq!(within(Duration::ZERO, waits).unwrap_err(), "it took longer than 0 s");
        assert_eq!(within(Duration::from_secs(60), || Ok(7)), Ok(7));
        assert_eq!(program(&["printf", "%s", "abc"]).unwrap(), b"abc");
        assert!(program(&["false"]).unwrap_err().starts_with("false: exit status: 1"));
        assert!(program(&["/nonexistent/program"]).unwrap_err().contains("No such file"));
        assert!(file("/nonexistent/file").unwrap_err().starts_with("/nonexistent/file: No such file"));
    }
}
