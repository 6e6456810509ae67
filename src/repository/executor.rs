//! The executor of a repository: the threads for its file work, their queues, and whether its file system responds.
//!
//! A file system can hang because it is frozen or its servers are gone. A system call on it then blocks its thread
//! until the file system responds. Therefore each repository has its own threads, and callers wait only while there is
//! progress. A repository that hangs takes no threads, queue places or time from the others.

mod callers;
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

/// How long a call may go without progress before the file system counts as hanging.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// For calls that may take long without progress: writing dirty pages, removing large files.
const CHANGE_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// For reads. With the idle I/O class, they wait for the I/O of everyone else.
const READ_STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Jobs in the queue of a lane.
const MAX_QUEUED: usize = 4096;

/// Threads of a lane, including those that hang.
const MAX_THREADS: usize = 32;

/// A thread that is stuck for this long is replaced by a new one.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// How long a thread waits for its next job before it ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The file system does not respond, or its executor is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("does not respond; check whether it is frozen and whether its storage is reachable")]
pub struct Unresponsive;

/// Why a job has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    #[error(transparent)]
    Unresponsive(#[from] Unresponsive),
    #[error("the caller no longer waits for it")]
    Cancelled,
}

/// The group of threads that runs a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Short calls: names, sizes, small files.
    Short,
    /// Long reads, which also use the CPU: maps, checksums, comparisons.
    Bulk,
}

impl Lane {
    /// Threads that may run at a time, not counting stuck ones. The host's CPUs belong to its guests.
    fn limit(self) -> usize {
        match self {
            Self::Short => 8,
            Self::Bulk => thread::available_parallelism().map_or(1, usize::from).min(4),
        }
    }
}

/// Which threads run a job, and how long it may go without progress.
#[derive(Clone, Copy, Debug)]
pub struct JobKind {
    lane: Lane,
    stall_timeout: Duration,
    key: Option<u128>,
}

impl JobKind {
    /// A call that returns at once on a healthy file system.
    pub const SHORT: Self = Self { lane: Lane::Short, stall_timeout: STALL_TIMEOUT, key: None };
    /// A long read.
    pub const BULK: Self = Self { lane: Lane::Bulk, stall_timeout: READ_STALL_TIMEOUT, key: None };
    /// A change, which may have much to write.
    pub const CHANGE: Self = Self { lane: Lane::Short, stall_timeout: CHANGE_STALL_TIMEOUT, key: None };

    /// The same kind, but never at the same time as another job with this key. The job waits for such a job, even for
    /// one whose caller has left. If that one hangs, the job fails at once.
    #[must_use]
    pub const fn exclusive(self, key: u128) -> Self {
        Self { key: Some(key), ..self }
    }
}

/// Permission to access the file system now. Only the executor grants it.
pub struct Access<'a>(&'a JobStatus);

impl Access<'_> {
    /// Reports progress: the stall timeout starts again.
    pub fn progress(&self) {
        self.0.record_progress();
    }

    /// Whether a caller still waits for the job.
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
    /// The id of the file system that was seen there last, once it is known.
    volume: Mutex<Option<Option<[u8; 16]>>>,
    state: Mutex<State>,
    /// Notified when a job of the lane may start.
    short: Condvar,
    bulk: Condvar,
}

#[derive(Debug, Default)]
struct State {
    short: Threads,
    bulk: Threads,
    /// The running calls, in the order of their starts.
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    health: Health,
}

/// The threads of a lane, and its queue.
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

    /// The next job of a lane whose key is free.
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

/// The executors by mount point. A repository that is removed and added again keeps its executor.
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

    /// Runs `work` on a thread of the repository, and waits for it while there is progress.
    ///
    /// # Errors
    /// After [`Unresponsive`] the work may still be done, unless it had not started.
    pub fn run<T: Send + 'static>(
        &self,
        kind: JobKind,
        work: impl FnOnce(&Access<'_>) -> T + Send + 'static,
    ) -> Result<T, Unresponsive> {
        self.submit(kind, work).wait()
    }

    /// Runs one step of long work: `work` changes `state` on a thread of the repository. Between two steps other jobs
    /// get their turn. The caller waits while there is progress and `is_wanted` returns true.
    ///
    /// # Errors
    /// After an error the state is lost.
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

    /// Whether `volume` is the file system that was there before, or a newly mounted one. If nothing is mounted, only
    /// the folder is left.
    pub(super) fn recognizes(&self, volume: Option<[u8; 16]>, is_mounted_on: bool) -> bool {
        let mut known = self.0.volume.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = is_mounted_on || known.is_none_or(|known| known == volume);
        if is_it {
            *known = Some(volume);
        }
        is_it
    }

    /// Whether the file system responds, judging by the running calls. This makes no call itself.
    pub fn is_responsive(&self) -> bool {
        !self.0.state().is_stalled(Instant::now())
    }

    /// The number of running calls, including those that hang.
    pub fn calls(&self) -> usize {
        self.0.state().calls.len()
    }

    fn start_threads(&self, state: &mut State, lane: Lane) {
        let now = Instant::now();
        let is_stuck = |call: &&Call| call.lane == Some(lane) && call.status.stalled_for(now) > STUCK_AFTER;
        let stuck = state.calls.values().filter(is_stuck).count();
        let threads = state.lane(lane);
        while threads.queue.len() > threads.idle && threads.all < MAX_THREADS && threads.all < lane.limit() + stuck {
            let shared = Arc::clone(&self.0);
            let builder = thread::Builder::new().name("repository".to_owned()).stack_size(512 << 10);
            match builder.spawn(move || run_jobs(&shared, lane)) {
                // It counts as idle until it takes its first job.
                Ok(_) => (threads.all, threads.idle) = (threads.all + 1, threads.idle + 1),
                Err(error) => return tracing::error!(%error, "cannot start a repository thread"),
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

/// A running call, until this is dropped.
struct RunningCall<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for RunningCall<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        self.shared.call_ended(&mut state, self.number);
        // A queued job may wait for the key of this call.
        for lane in [Lane::Short, Lane::Bulk] {
            if !state.lane(lane).queue.is_empty() {
                self.shared.lane(lane).notify_all();
            }
        }
    }
}

/// Runs jobs of a lane until the queue stays empty for a while.
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
            // The job holds open files, and closing one can hang. Its end says nothing about the file system.
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
