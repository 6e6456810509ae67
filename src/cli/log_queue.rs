//! A bounded queue of log lines, and the thread that writes them.
//!
//! Logging never blocks: a log on a frozen file system, or a full pipe, blocks only this thread. Lines are dropped and
//! counted if the queue is full, or if they cannot be written. The count is logged as soon as writing works again.
//!
//! Until the thread starts, lines are also written to standard error, so that they are not lost if the process is killed.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

use crate::metrics::Counter;

/// Bytes of queued lines: more than 20,000 lines.
const MAX_BYTES: usize = 4 << 20;

/// After a failed write, how long to wait before writing the count of dropped lines, if no new line comes.
const RETRY: Duration = Duration::from_secs(5);

/// How long a writer that was never started may take to write the lines.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// The destination of a queue. Each write is one whole line. It is flushed when no line waits.
pub trait Sink: Write + Send {
    /// Writes `line` before there is a thread, without waiting. Returns whether the thread need not write it.
    fn write_early(&mut self, _line: &[u8]) -> bool {
        false
    }

    /// Reopens the destination by its name.
    ///
    /// # Errors
    /// It cannot be opened; the old one stays in use.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Writes how many lines were dropped.
    ///
    /// # Errors
    /// It was not written. It is repeated later.
    fn report_dropped(&mut self, dropped: u64) -> io::Result<()> {
        let now = jiff::Timestamp::now();
        let line = format!("{now:.6}  WARN {dropped} log lines were dropped: the log could not be written\n");
        self.write_all(line.as_bytes())
    }
}

/// Clones are handles of the same queue.
#[derive(Clone)]
pub struct LogQueue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Signals new work.
    work: Condvar,
    /// Signals finished work.
    progress: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    /// Bytes of the lines in `entries`.
    bytes: usize,
    /// Dropped lines that no entry reports yet.
    unreported: u64,
    reopen: bool,
    busy: bool,
    /// The destination until the thread starts.
    early: Option<Box<dyn Sink>>,
}

enum Entry {
    Line(Vec<u8>),
    /// The number of lines that were dropped at this place.
    Dropped(u64),
}

enum Job {
    Reopen,
    Write(Entry),
}

/// The writer of a queue, which has no thread yet.
#[must_use]
pub struct Writer(LogQueue);

impl Writer {
    /// Starts the thread that writes the lines.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(self) -> io::Result<()> {
        self.spawn()
    }

    fn spawn(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.0.0);
        let Some(sink) = shared.state().early.take() else { return Ok(()) };
        // It ends with the process, because it may hang in a write that cannot be interrupted.
        std::thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_all_to(sink))?;
        Ok(())
    }
}

impl Drop for Writer {
    /// If it was never started, because of a panic, the lines say why.
    fn drop(&mut self) {
        if self.0.0.state().early.is_some() && self.spawn().is_ok() {
            self.0.flush(DROP_TIMEOUT);
        }
    }
}

impl LogQueue {
    /// A queue whose lines are written to `sink` once its writer starts. `dropped` counts the lines that are lost.
    pub fn prepare(sink: impl Sink + 'static, dropped: Counter) -> (Self, Writer) {
        let state = Mutex::new(State { early: Some(Box::new(sink)), ..State::default() });
        let queue = Self(Arc::new(Shared { state, work: Condvar::new(), progress: Condvar::new(), dropped }));
        (queue.clone(), Writer(queue))
    }

    /// A queue with a thread that writes to `sink`. `dropped` counts the lines that are lost.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(sink: impl Sink + 'static, dropped: Counter) -> io::Result<Self> {
        let (queue, writer) = Self::prepare(sink, dropped);
        writer.start()?;
        Ok(queue)
    }

    /// Makes the thread reopen its destination before the next line.
    pub fn reopen(&self) {
        self.0.state().reopen = true;
        self.0.work.notify_one();
    }

    /// Waits until all lines are written, for `limit` at most, and returns whether they are.
    pub fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.0.state();
        while state.busy || state.reopen || !state.entries.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.progress.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Dropped lines that were not reported yet.
    pub fn unreported(&self) -> u64 {
        self.0.state().unreported
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.0.state();
        if state.early.as_mut().is_some_and(|sink| sink.write_early(line)) {
            return;
        }
        if state.bytes + line.len() > MAX_BYTES {
            state.unreported += 1;
            self.0.dropped.inc();
            return;
        }
        if state.unreported > 0 {
            let dropped = mem::take(&mut state.unreported);
            state.entries.push_back(Entry::Dropped(dropped));
        }
        state.bytes += line.len();
        state.entries.push_back(Entry::Line(line.to_owned()));
        drop(state);
        self.0.work.notify_one();
    }
}

impl Shared {
    fn write_all_to(&self, mut sink: Box<dyn Sink>) {
        let mut failing = false;
        loop {
            match self.next(failing) {
                Job::Reopen => match sink.reopen() {
                    Ok(()) => tracing::info!("log file reopened"),
                    Err(error) => tracing::error!(%error, "cannot reopen the log; keeping the open file"),
                },
                Job::Write(entry) => {
                    let (written, lines, new) = match entry {
                        Entry::Line(line) => (sink.write_all(&line), 1, 1),
                        Entry::Dropped(lines) => (sink.report_dropped(lines), lines, 0),
                    };
                    failing = written.is_err();
                    if failing {
                        self.state().unreported += lines;
                        self.dropped.inc_by(new);
                    }
                    if self.state().entries.is_empty() {
                        let _ = sink.flush(); // the sink reports it
                    }
                }
            }
        }
    }

    /// Waits for work. While writes are `failing`, a count of dropped lines is written only after a pause.
    fn next(&self, failing: bool) -> Job {
        let mut state = self.state();
        state.busy = false;
        self.progress.notify_all();
        let mut retry = !failing;
        let job = loop {
            if mem::take(&mut state.reopen) {
                break Job::Reopen;
            }
            if let Some(entry) = state.entries.pop_front() {
                if let Entry::Line(line) = &entry {
                    state.bytes -= line.len();
                }
                break Job::Write(entry);
            }
            if state.unreported > 0 && retry {
                break Job::Write(Entry::Dropped(mem::take(&mut state.unreported)));
            }
            let (woken, timeout) = self.work.wait_timeout(state, RETRY).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            retry |= timeout.timed_out();
        };
        state.busy = true;
        job
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = &'a LogQueue;

    fn make_writer(&'a self) -> &'a LogQueue {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A sink whose writes each wait for a message, until the sender is dropped.
    struct Gated {
        gate: Receiver<()>,
        fails: Arc<AtomicBool>,
        written: Arc<Mutex<String>>,
        began: Sender<()>,
    }

    impl Write for Gated {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.began.send(());
            let _ = self.gate.recv();
            if self.fails.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.written.lock().unwrap().push_str(std::str::from_utf8(line).unwrap());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for Gated {
        /// Only the first line.
        fn write_early(&mut self, line: &[u8]) -> bool {
            let mut written = self.written.lock().unwrap();
            written.is_empty() && written.write_str(std::str::from_utf8(line).unwrap()).is_ok()
        }

        fn report_dropped(&mut self, dropped: u64) -> io::Result<()> {
            self.write_all(format!("{dropped} dropped\n").as_bytes())
        }
    }

    const LIMIT: Duration = Duration::from_secs(120);

    struct Scene {
        queue: LogQueue,
        gate: Sender<()>,
        fails: Arc<AtomicBool>,
        began: Receiver<()>,
        written: Arc<Mutex<String>>,
        dropped: Counter,
    }

    fn scene() -> Scene {
        let ((gate, gated), (begins, began)) = (channel(), channel());
        let (written, fails, dropped) = (Arc::default(), Arc::default(), Counter::default());
        let sink = Gated { gate: gated, fails: Arc::clone(&fails), written: Arc::clone(&written), began: begins };
        let queue = LogQueue::start(sink, dropped.clone()).unwrap();
        Scene { queue, gate, fails, began, written, dropped }
    }

    #[test]
    fn a_blocked_sink_does_not_block_logging() {
        let Scene { queue, gate, began, written, dropped, .. } = scene();
        let line = format!("{}\n", "x".repeat(1023));
        queue.push(line.as_bytes());
        began.recv().unwrap();
        // The first line is being written. 4 MiB may wait.
        for _ in 0..4096 + 7 {
            queue.push(line.as_bytes());
        }
        assert_eq!(dropped.get(), 7);
        assert!(!queue.flush(Duration::from_millis(1)));
        // One is written, so the queue has space for one.
        gate.send(()).unwrap();
        began.recv().unwrap();
        queue.push(&line.as_bytes()[1..]);
        drop(gate);
        assert!(queue.flush(LIMIT));
        assert_eq!(*written.lock().unwrap(), format!("{}7 dropped\n{}", line.repeat(4097), &line[1..]));
        assert_eq!(dropped.get(), 7);
    }

    #[test]
    fn the_count_is_written_without_a_new_line_once_the_sink_works_again() {
        let Scene { queue, gate, began, written, dropped, .. } = scene();
        queue.push(b"first\n");
        began.recv().unwrap();
        while dropped.get() == 0 {
            queue.push(&[b'x'; 1 << 20]);
        }
        drop(gate);
        let end = Instant::now() + LIMIT;
        while !written.lock().unwrap().ends_with("1 dropped\n") {
            assert!(Instant::now() < end, "the count was not written");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn failed_lines_are_counted_as_dropped() {
        let Scene { queue, gate, fails, written, dropped, .. } = scene();
        drop(gate);
        fails.store(true, Ordering::Relaxed);
        for line in ["a\n", "b\n"] {
            queue.push(line.as_bytes());
            assert!(queue.flush(LIMIT));
        }
        fails.store(false, Ordering::Relaxed);
        queue.push(b"c\n");
        assert!(queue.flush(LIMIT));
        assert_eq!((written.lock().unwrap().as_str(), dropped.get()), ("2 dropped\nc\n", 2));
    }

    #[test]
    fn before_the_thread_starts_lines_are_written_at_once_or_wait() {
        let ((_, gated), (begins, _began)) = (channel(), channel());
        let (written, fails) = (Arc::<Mutex<String>>::default(), Arc::default());
        let sink = Gated { gate: gated, fails, written: Arc::clone(&written), began: begins };
        let (queue, writer) = LogQueue::prepare(sink, Counter::default());
        queue.push(b"early\n");
        queue.push(b"panic\n");
        assert_eq!(*written.lock().unwrap(), "early\n");
        // Its thread was never started.
        drop(writer);
        assert_eq!(*written.lock().unwrap(), "early\npanic\n");
    }
}
