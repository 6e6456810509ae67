//! Arguments of the operator's commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::client::args::{Quiesce, ServerArgs};
use crate::config;

/// The service that a command asks: by default the one that runs on this host.
#[derive(Clone, Debug, Args)]
pub struct TargetArgs {
    /// Ask another service: its address, such as https://host:5544, those of the hosts of one pool separated by commas, or
    /// the name of a profile
    #[arg(long, value_name = "URL,…|PROFILE", conflicts_with = "socket", help_heading = "Service")]
    pub server: Option<String>,
    /// The Unix socket of the service on this host [default: api.socket of the config]
    #[arg(long, value_name = "PATH", help_heading = "Service")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub connection: ServerArgs,
}

#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// The Unix socket of the service [default: api.socket of the config]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Show the status again every 2 seconds, or as often as given here, until Ctrl-C ends it
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = interval)]
    pub watch: Option<Duration>,
    /// Use only ASCII characters
    #[arg(long)]
    pub ascii: bool,
    /// Print the API's JSON
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct AdoptArgs {
    /// Only report what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Also adopt folders with a manifest, after the database was lost. No other exporter may use them
    #[arg(long)]
    pub manifests: bool,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct BackupDbArgs {
    /// Where to write the copy. A file there is replaced when the copy is complete
    pub file: PathBuf,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct SnapshotListArgs {
    /// Only the snapshots of this VM: its name, uuid or friendly name
    pub vm: Option<String>,
    /// Only snapshots with this label, as KEY or KEY=VALUE. If it is repeated, a snapshot needs all of them
    #[arg(long = "label", value_name = "K[=V]")]
    pub labels: Vec<String>,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct SnapshotShowArgs {
    /// The VM: its name, uuid or friendly name
    pub vm: String,
    /// The snapshot: its id, or at least the first 6 characters of it
    pub snapshot: String,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct SnapshotCreateArgs {
    /// The VM: its name, uuid or friendly name
    pub vm: String,
    /// Only these disks, by file name or device name
    #[arg(long, value_name = "DISK", value_delimiter = ',', conflicts_with = "exclude_disks")]
    pub disks: Option<Vec<String>>,
    /// Not these disks
    #[arg(long, value_name = "DISK", value_delimiter = ',')]
    pub exclude_disks: Option<Vec<String>>,
    /// How long to keep the snapshot, such as 72h, or none [default: the service's policy]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<String>,
    /// A label, as KEY=VALUE; may be repeated
    #[arg(long = "label", value_name = "K=V")]
    pub labels: Vec<String>,
    /// What the snapshot is for
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Whether to quiesce the guest [default: try]
    #[arg(long, value_name = "HOW")]
    pub quiesce: Option<Quiesce>,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct SnapshotDeleteArgs {
    /// The VM: its name, uuid or friendly name
    pub vm: String,
    /// The snapshots: their ids, or at least the first 6 characters of each
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    #[command(flatten)]
    pub deletion: DeletionArgs,
}

#[derive(Clone, Debug, Args)]
pub struct SnapshotPurgeArgs {
    /// The VM: its name, uuid or friendly name
    pub vm: String,
    #[command(flatten)]
    pub deletion: DeletionArgs,
}

#[derive(Clone, Debug, Args)]
pub struct DeletionArgs {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print the ids of the deleted snapshots as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct SnapshotDiffArgs {
    /// The VM: its name, uuid or friendly name
    pub vm: String,
    /// A snapshot: its id, or at least the first 6 characters of it
    #[arg(value_name = "SNAPSHOT")]
    pub first: String,
    /// Another one. The older of both is the base
    #[arg(value_name = "SNAPSHOT")]
    pub second: String,
    /// Compare contents in blocks of this size, such as 4096. Without it the extent maps of the file system decide,
    /// which is faster and may list more than has changed
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    pub refine: u64,
    /// Draw with ASCII characters only
    #[arg(long)]
    pub ascii: bool,
    /// Print the API's JSON: the sums of each disk
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct SnapshotTicketArgs {
    /// The VM: its name, uuid or friendly name
    pub vm: String,
    /// The snapshot: its id, or at least the first 6 characters of it
    pub snapshot: String,
    /// The disk: its file name
    pub disk: String,
    /// How long the URL is valid, such as 2h [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<String>,
    /// Also permit to list the chunks of the disk
    #[arg(long)]
    pub map: bool,
    /// The address of the service in the URL, such as https://host:5544 [default: that of --server, or of this host]
    #[arg(long, value_name = "URL")]
    pub address: Option<String>,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct RevokeArgs {
    /// The tokens of this user
    #[arg(long, value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    pub of: Option<String>,
    /// The tokens of all users
    #[arg(long)]
    pub all: bool,
    /// Only tokens that were issued before this time, such as 2026-05-01T10:00:00Z [default: all so far]
    #[arg(long, value_name = "TIME")]
    pub issued_before: Option<String>,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Clone, Debug, Args)]
pub struct TestArgs {
    /// The name of the webhook [default: all of them]
    pub webhook: Option<String>,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

/// About webhooks.
#[derive(Clone, Debug, Subcommand)]
pub enum NotificationsCommand {
    /// Send a test event to webhooks, and show what they answer
    Test(TestArgs),
}

/// About the log-ins of users.
#[derive(Clone, Debug, Subcommand)]
pub enum SessionsCommand {
    /// Revoke tokens, and end the downloads of their users
    ///
    /// A user can log in again with the password, unless the manager refuses that. The revocation lasts.
    Revoke(RevokeArgs),
}

/// About the snapshots of VMs.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotsCommand {
    /// List the snapshots of a VM, or of all VMs, oldest first
    List(SnapshotListArgs),
    /// Show all that the service knows about a snapshot: disks, hooks, labels, the VM's definition
    Show(SnapshotShowArgs),
    /// Create a snapshot
    Create(SnapshotCreateArgs),
    /// Delete snapshots of a VM
    ///
    /// Without a newer snapshot to compare with, the next backup of the VM is a full one.
    Delete(SnapshotDeleteArgs),
    /// Delete all snapshots of a VM
    ///
    /// The next backup of the VM is then a full one. A snapshot that is created meanwhile is not deleted.
    Purge(SnapshotPurgeArgs),
    /// Show how much has changed between two snapshots, and where on the disks
    Diff(SnapshotDiffArgs),
    /// Print a URL with which tools such as qemu-img, wget and browsers can read a disk for a while
    ///
    /// Anyone who has the URL can read the disk until it expires.
    Ticket(SnapshotTicketArgs),
}

#[derive(Clone, Debug, Subcommand)]
pub enum OperatorCommand {
    /// List the VMs
    Vms(ListArgs),
    /// List, show, create, delete and compare snapshots
    #[command(subcommand)]
    Snapshots(SnapshotsCommand),
    /// End log-ins
    #[command(subcommand)]
    Sessions(SessionsCommand),
    /// Test webhooks
    #[command(subcommand)]
    Notifications(NotificationsCommand),
    /// List the repositories
    Repositories(ListArgs),
    /// Show running and waiting work, and what needs attention
    Status(StatusArgs),
    /// Check that the service on this host answers, for the health checks of containers
    ///
    /// It asks /healthz over the Unix socket and prints nothing if the service answers within 10 seconds. The status
    /// tells whether the service can do its work.
    Health(HealthArgs),
    /// Adopt snapshots that the running service does not know, such as those of the original exporter
    ///
    /// Each folder below CoriolisSnapshots is assigned to a VM by its disks' names, and ordered by its files' times.
    /// Folders that cannot be assigned are listed with the reason and not changed.
    Adopt(AdoptArgs),
    /// Write a copy of the database of the running service to a file
    ///
    /// The copy has all snapshots that were complete when it was made. To use it, stop the service, put the copy at
    /// db_file and start the service.
    BackupDb(BackupDbArgs),
}

/// A shorter interval would keep the service busy.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let interval = seconds.or_else(|| config::parse_duration(text)).filter(|interval| *interval >= SHORTEST_INTERVAL);
    interval.ok_or_else(|| "expected seconds, such as 2 or 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_seconds() {
        for (text, expected) in [("2", Some(2000)), ("0.5", Some(500)), ("1m", Some(60_000))] {
            assert_eq!(interval(text).ok(), expected.map(Duration::from_millis), "{text}");
        }
        for text in ["0", "-1", "0.01", "nan", "inf", "soon", ""] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
