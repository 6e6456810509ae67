//! The executor of a repository: the threads that do its file work, their queues, and whether it answers.
//!
//! A file system can hang: it is frozen, or its servers are gone. A system call on it then keeps its thread for
//! as long as that lasts. So all file work of a repository runs in threads that belong to that repository alone,
//! and whoever needs the result waits only as long as something moves. Nothing of one repository can take the
//! threads, the queue or the time of another.

mod health;
mod pending;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use health::{Call, Health, JobStatus};
use pending::Job;
pub use pending::Pending;

/// How long a call may stand still before the file system counts as hanging.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for calls that may take long without a sign of life: writing out, removing large files.
const CHANGE_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The same for reads on a caller's own thread. With an idle I/O class they let everybody else go first.
const READ_STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Callers' own threads that may be in calls at a time, and from how many on a stop of a second is enough to
/// refuse more: a file system that hangs must not take a thread for each connection.
const MAX_CALLER_THREADS: usize = 256;
const MANY_CALLER_THREADS: usize = 64;
const SHORT_STALL: Duration = Duration::from_secs(1);

/// Jobs that may wait in a lane.
const MAX_QUEUED: usize = 4096;

/// Threads of a lane, those that hang included.
const MAX_THREADS: usize = 32;

/// From when on a thread counts as taken, so that another is started in its place.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// How long a thread waits for its next job.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The file system does not answer, or its executor is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("does not answer; is it frozen, or are its servers gone?")]
pub struct Unresponsive;

/// Why a job that was waited for has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// The file system hangs.
    #[error(transparent)]
    Unresponsive(#[from] Unresponsive),
    /// Nobody wants it any more.
    #[error("nobody waits for it any more")]
    Cancelled,
}

/// Which threads do a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Short calls: names, sizes, small files.
    Short,
    /// Reading in bulk, which uses the host's processors too: maps, checksums, comparisons.
    Bulk,
}

impl Lane {
    /// Threads at a time that do not hang. The host's processors belong to its guests.
    fn limit(self) -> usize {
        match self {
            Self::Short => 8,
            Self::Bulk => thread::available_parallelism().map_or(1, usize::from).min(4),
        }
    }
}

/// What kind of job it is.
#[derive(Clone, Copy, Debug)]
pub struct JobKind {
    lane: Lane,
    stall_timeout: Duration,
    key: Option<u128>,
}

impl JobKind {
    /// A question that is answered at once where the file system is well.
    pub const SHORT: Self = Self { lane: Lane::Short, stall_timeout: STALL_TIMEOUT, key: None };
    /// Reading in bulk.
    pub const BULK: Self = Self { lane: Lane::Bulk, stall_timeout: READ_STALL_TIMEOUT, key: None };
    /// A change, which may have much to write out.
    pub const CHANGE: Self = Self { lane: Lane::Short, stall_timeout: CHANGE_STALL_TIMEOUT, key: None };

    /// The same, never at the same time as another job with this key. It follows such a job, also one that
    /// nobody waits for any more; one that hangs makes it fail at once.
    #[must_use]
    pub const fn exclusive(self, key: u128) -> Self {
        Self { key: Some(key), ..self }
    }
}

/// The permission to use the file system now. Only the executor gives it.
pub struct Access<'a>(&'a JobStatus);

impl Access<'_> {
    /// A sign of life: what follows may take its own time.
    pub fn progress(&self) {
        self.0.record_progress();
    }

    /// Whether somebody still waits for the job.
    pub fn is_wanted(&self) -> bool {
        self.0.is_wanted()
    }
}

/// The executor of the repository at one mount point.
#[derive(Clone, Debug)]
pub struct Executor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    mount_point: PathBuf,
    /// The file system that was there last, once it was asked.
    volume: Mutex<Option<Option<[u8; 16]>>>,
    state: Mutex<State>,
    /// Notified when a job of the lane may begin.
    short: Condvar,
    bulk: Condvar,
}

#[derive(Debug, Default)]
struct State {
    short: Threads,
    bulk: Threads,
    /// The calls that are under way, in the order in which they began.
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    health: Health,
}

/// The threads of a lane, and what waits for them.
#[derive(Debug, Default)]
struct Threads {
    queue: VecDeque<Job>,
    all: usize,
    idle: usize,
}

impl State {
    fn lane(&mut self, lane: Lane) -> &mut Threads {
        match lane {
            Lane::Short => &mut self.short,
            Lane::Bulk => &mut self.bulk,
        }
    }

    /// The next job of a lane that may begin.
    fn next_job(&mut self, lane: Lane) -> Option<Job> {
        let taken: Vec<u128> = self.calls.values().filter_map(|call| call.key).collect();
        let queue = &mut self.lane(lane).queue;
        let free = queue.iter().position(|job| job.kind.key.is_none_or(|key| !taken.contains(&key)))?;
        queue.remove(free)
    }

    fn start(&mut self, lane: Option<Lane>, kind: JobKind, status: Arc<JobStatus>) -> u64 {
        let number = self.next_call;
        self.next_call += 1;
        status.record_progress();
        let JobKind { stall_timeout, key, .. } = kind;
        self.calls.insert(number, Call { status, lane, stall_timeout, key, is_written_off: false });
        number
    }
}

/// The executors, by mount point: a repository that is found anew keeps its own.
static EXECUTORS: LazyLock<Mutex<HashMap<PathBuf, Weak<Shared>>>> = LazyLock::new(Mutex::default);

impl Executor {
    /// The executor of the repository at `mount_point`.
    pub fn of(mount_point: &Path) -> Self {
        let mut all = EXECUTORS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = all.get(mount_point).and_then(Weak::upgrade) {
            return Self(shared);
        }
        all.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(Shared {
            mount_point: mount_point.to_owned(),
            volume: Mutex::default(),
            state: Mutex::default(),
            short: Condvar::new(),
            bulk: Condvar::new(),
        });
        all.insert(mount_point.to_owned(), Arc::downgrade(&shared));
        Self(shared)
    }

    /// Does `work` on a thread of the repository, and waits for it as long as it moves.
    ///
    /// # Errors
    /// [`Unresponsive`]. The work may still be done then, unless it had not begun.
    pub fn run<T: Send + 'static>(
        &self,
        kind: JobKind,
        work: impl FnOnce(&Access<'_>) -> T + Send + 'static,
    ) -> Result<T, Unresponsive> {
        self.submit(kind, work).wait()
    }

    /// One step of long work: `work` changes `state` on a thread of the repository, and so it is done in turns
    /// with others. It is waited for as long as it moves and `is_wanted`.
    ///
    /// # Errors
    /// [`Interrupted`]; the state is gone with it.
    pub fn step<S: Send + 'static, T: Send + 'static>(
        &self,
        mut state: S,
        is_wanted: impl Fn() -> bool,
        work: impl FnOnce(&Access<'_>, &mut S) -> T + Send + 'static,
    ) -> Result<(S, T), Interrupted> {
        let pending = self.submit(JobKind::BULK, move |access| {
            let result = work(access, &mut state);
            (state, result)
        });
        pending.wait_while(is_wanted)
    }

    /// Queues `work` for a thread of the repository.
    pub fn submit<T: Send + 'static>(
        &self,
        kind: JobKind,
        work: impl FnOnce(&Access<'_>) -> T + Send + 'static,
    ) -> Pending<T> {
        let mut state = self.0.state();
        if !self.admits(&mut state) || state.lane(kind.lane).queue.len() >= MAX_QUEUED || state.is_blocked(kind) {
            return Pending::refused();
        }
        let (job, pending) = Pending::of(self.clone(), kind, work);
        state.lane(kind.lane).queue.push_back(job);
        self.start_threads(&mut state, kind.lane);
        self.0.lane(kind.lane).notify_one();
        pending
    }

    /// Does `work` on the caller's own thread, which hangs where the file system does. It is not begun where
    /// the file system hangs already, so that not all threads end there.
    ///
    /// # Errors
    /// [`Unresponsive`].
    pub fn run_here<T>(&self, work: impl FnOnce(&Access<'_>) -> T) -> Result<T, Unresponsive> {
        {
            let mut state = self.0.state();
            let lent = state.calls.values().filter(|call| call.lane.is_none()).count();
            let stops = lent >= MANY_CALLER_THREADS && state.stalled_for(Instant::now()) >= SHORT_STALL;
            if stops || lent >= MAX_CALLER_THREADS || !self.admits(&mut state) {
                return Err(Unresponsive);
            }
        }
        Ok(self.run_here_started(work))
    }

    /// The same for what has begun, and goes on whatever other calls meet.
    pub fn run_here_started<T>(&self, work: impl FnOnce(&Access<'_>) -> T) -> T {
        self.run_here_as(JobKind { stall_timeout: READ_STALL_TIMEOUT, ..JobKind::BULK }, work)
    }

    /// The same for work of another kind, which waits for nothing.
    pub fn run_here_as<T>(&self, kind: JobKind, work: impl FnOnce(&Access<'_>) -> T) -> T {
        let status = Arc::<JobStatus>::default();
        let number = self.0.state().start(None, kind, Arc::clone(&status));
        let _running = RunningCall { shared: &self.0, number };
        work(&Access(&status))
    }

    /// Whether the file system `volume` is what was there before. Another one can only have been mounted there: where
    /// nothing is mounted, the folder alone is left.
    pub(super) fn recognizes(&self, volume: Option<[u8; 16]>, is_mounted_on: bool) -> bool {
        let mut known = self.0.volume.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = is_mounted_on || known.is_none_or(|known| known == volume);
        if is_it {
            *known = Some(volume);
        }
        is_it
    }

    /// Whether the file system answers, as far as the calls that are under way tell. Nothing is asked of it.
    pub fn is_responsive(&self) -> bool {
        !self.0.state().is_stalled(Instant::now())
    }

    /// Calls that are under way, those that hang included.
    pub fn calls(&self) -> usize {
        self.0.state().calls.len()
    }

    /// Starts threads for what waits in a lane.
    fn start_threads(&self, state: &mut State, lane: Lane) {
        let now = Instant::now();
        let is_taken = |call: &&Call| call.lane == Some(lane) && call.status.stalled_for(now) > STUCK_AFTER;
        let taken = state.calls.values().filter(is_taken).count();
        let threads = state.lane(lane);
        while threads.queue.len() > threads.idle && threads.all < MAX_THREADS && threads.all < lane.limit() + taken {
            let shared = Arc::clone(&self.0);
            let builder = thread::Builder::new().name("repository".to_owned()).stack_size(512 << 10);
            match builder.spawn(move || run_jobs(&shared, lane)) {
                // Counted as idle until it takes its first job.
                Ok(_) => (threads.all, threads.idle) = (threads.all + 1, threads.idle + 1),
                Err(error) => return tracing::error!(%error, "a thread of a repository cannot be started"),
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lane(&self, lane: Lane) -> &Condvar {
        match lane {
            Lane::Short => &self.short,
            Lane::Bulk => &self.bulk,
        }
    }
}

/// A call that is under way until this is dropped.
struct RunningCall<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for RunningCall<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        self.shared.call_ended(&mut state, self.number);
        // What waits may wait for the key of this one.
        for lane in [Lane::Short, Lane::Bulk] {
            if !state.lane(lane).queue.is_empty() {
                self.shared.lane(lane).notify_all();
            }
        }
    }
}

/// Does the jobs of a lane until there are none for a while.
fn run_jobs(shared: &Shared, lane: Lane) {
    let mut state = shared.state();
    loop {
        let Some(job) = state.next_job(lane) else {
            let waited = shared.lane(lane).wait_timeout(state, IDLE_TIMEOUT);
            let (woken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            let threads = state.lane(lane);
            if waited.timed_out() && threads.queue.is_empty() {
                (threads.all, threads.idle) = (threads.all - 1, threads.idle - 1);
                return;
            }
            continue;
        };
        state.lane(lane).idle -= 1;
        if job.status.is_wanted() {
            let number = state.start(Some(lane), job.kind, Arc::clone(&job.status));
            drop(state);
            let running = RunningCall { shared, number };
            job.run();
            drop(running);
            state = shared.state();
        } else {
            // It holds open files, and closing one can hang. That it ends says nothing about the file system.
            let number = state.start(Some(lane), JobKind { key: None, ..job.kind }, Arc::clone(&job.status));
            drop(state);
            drop(job);
            state = shared.state();
            state.calls.remove(&number);
        }
        state.lane(lane).idle += 1;
    }
}

#[cfg(test)]
mod tests;
