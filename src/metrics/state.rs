//! Metrics of what exists at a moment: repositories, snapshots, pending hooks. The service reads them regularly, and a
//! scrape gets those that were read last: it does not wait for a repository or the database.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// What exists at a moment. Times are seconds since 1970.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// When it was read.
    pub at: i64,
    /// Whether the service can do its work, as `/readyz` reports it.
    pub is_ready: bool,
    pub repositories: Vec<RepositoryState>,
    pub ages: SnapshotAges,
    /// Operations whose post hooks have failed.
    pub owed_hooks: usize,
    /// Deleted or unfinished snapshots whose files could not be removed yet.
    pub leftovers: usize,
    /// Leases that have not ended.
    pub leases: usize,
    pub renewable_log_ins: usize,
    /// Log-ins and users with revoked tokens.
    pub revocations: usize,
    /// What the service can no longer do, with whether that is so.
    pub confined: Vec<(&'static str, bool)>,
}

/// The state of a repository. Unknown values are missing.
#[derive(Clone, Debug, Default)]
pub struct RepositoryState {
    pub id: String,
    /// Whether it is available and writable.
    pub is_up: bool,
    pub total_bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    /// With fewer free bytes, no snapshot is created.
    pub min_free_bytes: Option<u64>,
    /// Snapshots with a disk in it.
    pub snapshots: usize,
    /// Snapshots in it that the database does not know.
    pub unknown_snapshots: Option<usize>,
}

/// How many snapshots there are of each age.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotAges {
    counts: [usize; AGES.len() + 1],
    /// When the oldest and the newest one were created.
    range: Option<(i64, i64)>,
}

const DAY: i64 = 24 * 3600;

/// The upper bounds of ages in seconds, with their labels.
const AGES: [(i64, &str); 4] = [(DAY, "0d-1d"), (7 * DAY, "1d-7d"), (30 * DAY, "7d-30d"), (90 * DAY, "30d-90d")];

/// The label of snapshots that are older.
const OLDER: &str = "90d-";

impl SnapshotAges {
    /// The ages at the time `now`.
    pub fn at(now: i64, created: impl Iterator<Item = i64>) -> Self {
        let mut ages = Self::default();
        for created in created {
            let age = now.saturating_sub(created);
            ages.counts[AGES.iter().position(|(bound, _)| age < *bound).unwrap_or(AGES.len())] += 1;
            let (oldest, newest) = ages.range.unwrap_or((created, created));
            ages.range = Some((oldest.min(created), newest.max(created)));
        }
        ages
    }
}

/// Encodes the state that was read last.
#[derive(Debug, Default)]
pub(super) struct StateCollector(Mutex<Option<Arc<State>>>);

impl StateCollector {
    pub fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(state));
    }

    pub fn set_not_ready(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.as_ref().map(|last| Arc::new(State { is_ready: false, ..State::clone(last) }));
    }
}

impl Collector for StateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // Before the first reading nothing is known.
        let Some(state) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return Ok(()) };
        let e = &mut encoder;
        gauge(e, "state_timestamp_seconds", "When the state of the service was last read, since 1970", state.at)?;
        let help = "Whether the service can do its work, as /readyz reports it: 1 if so";
        gauge(e, "ready", help, i64::from(state.is_ready))?;
        encode_repositories(e, &state.repositories)?;
        encode_ages(e, &state.ages)?;
        gauge(
            e,
            "owed_hooks",
            "Operations whose post hooks have failed: guests may be frozen",
            count(state.owed_hooks),
        )?;
        let help = "Deleted or unfinished snapshots whose files could not be removed yet";
        gauge(e, "leftovers", help, count(state.leftovers))?;
        gauge(e, "leases", "Leases of snapshots that have not ended", count(state.leases))?;
        gauge(e, "renewable_log_ins", "Log-ins that can be renewed", count(state.renewable_log_ins))?;
        gauge(e, "revocations", "Log-ins and users with revoked tokens", count(state.revocations))?;
        let confined = state.confined.iter().map(|(part, is_confined)| (*part, i64::from(*is_confined)));
        gauges(e, "confined", "Whether the service has given up what it does not need: 1 if so", "part", confined)
    }
}

fn encode_repositories(encoder: &mut DescriptorEncoder<'_>, all: &[RepositoryState]) -> Result<(), fmt::Error> {
    let mut each = |name, help, value: &dyn Fn(&RepositoryState) -> Option<i64>| {
        let values = all.iter().filter_map(|one| Some((one.id.as_str(), value(one)?)));
        gauges(encoder, name, help, "repository", values)
    };
    each("repository_up", "Whether a repository is available and writable: 1 if so", &|one| {
        Some(i64::from(one.is_up))
    })?;
    each("repository_size_bytes", "Size of a repository's file system", &|one| one.total_bytes.map(bytes))?;
    each("repository_free_bytes", "Free bytes of a repository", &|one| one.free_bytes.map(bytes))?;
    let help = "With fewer free bytes, no snapshot is created in a repository";
    each("repository_min_free_bytes", help, &|one| one.min_free_bytes.map(bytes))?;
    each("repository_snapshots", "Snapshots with a disk in a repository", &|one| Some(count(one.snapshots)))?;
    let help = "Snapshots in a repository that the database does not know";
    each("repository_unknown_snapshots", help, &|one| one.unknown_snapshots.map(count))
}

fn encode_ages(encoder: &mut DescriptorEncoder<'_>, ages: &SnapshotAges) -> Result<(), fmt::Error> {
    let labels = AGES.iter().map(|(_, label)| *label).chain([OLDER]);
    let counts = labels.zip(ages.counts.iter().copied().map(count));
    gauges(encoder, "stored_snapshots", "Snapshots, by age", "age", counts)?;
    let Some((oldest, newest)) = ages.range else { return Ok(()) };
    gauge(encoder, "oldest_snapshot_timestamp_seconds", "When the oldest snapshot was created, since 1970", oldest)?;
    gauge(encoder, "newest_snapshot_timestamp_seconds", "When the newest snapshot was created, since 1970", newest)
}

/// Encodes a gauge without labels.
fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> Result<(), fmt::Error> {
    let help = [help, "."].concat();
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, &help, None, MetricType::Gauge)?)
}

/// Encodes a gauge for each value of `label`.
fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: impl Iterator<Item = (&'a str, i64)>,
) -> Result<(), fmt::Error> {
    let help = [help, "."].concat();
    let mut metric = encoder.encode_descriptor(name, &help, None, MetricType::Gauge)?;
    for (value, number) in values {
        ConstGauge::new(number).encode(metric.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn bytes(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
