//! Arguments of the client's commands.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// How to reach and trust a service, and who the user is.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct ServerArgs {
    /// The user's name. The password comes from EXPORTER_PASSWORD, --password-file, or a prompt
    #[arg(long, value_name = "NAME", env = "EXPORTER_USERNAME")]
    pub user: Option<String>,
    /// A file with the password that only its owner can read
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Trust this authority, or this certificate, instead of those of the system
    #[arg(long, value_name = "FILE", env = "EXPORTER_CACERT")]
    pub cacert: Option<PathBuf>,
    /// Trust the certificate with this SHA-256 alone; for the hosts of a pool perhaps several, separated by commas
    #[arg(long, value_name = "SHA256,…", conflicts_with = "cacert")]
    pub fingerprint: Option<String>,
    /// Give up when nothing has succeeded for this long
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    pub patience: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// Bars on a terminal, else lines
    Auto,
    Bars,
    Lines,
    /// A JSON object per line, on standard output
    Json,
    None,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// How to show progress
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub progress: ProgressMode,
    /// Show only errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    Raw,
    Qcow2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quiesce {
    /// Fail if the guest cannot be quiesced
    Require,
    /// Quiesce the guest if possible
    Try,
    /// Do not freeze the guest
    Skip,
}

#[derive(Clone, Debug, Args)]
pub struct BackupArgs {
    /// Addresses of services such as https://host:5544, or names of profiles; then the VMs, by name or id. The hosts of
    /// one pool are one service: https://a:5544,https://b:5544
    #[arg(required = true, value_name = "SERVER|VM")]
    pub targets: Vec<String>,
    /// Back up all VMs
    #[arg(long)]
    pub all: bool,
    /// The backup directory. It is created if it is missing
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Do not back up this VM; may be repeated
    #[arg(long, value_name = "VM")]
    pub exclude: Vec<String>,
    /// Only these disks, by file name or device name
    #[arg(long, value_name = "DISK", value_delimiter = ',', conflicts_with = "exclude_disks")]
    pub disks: Option<Vec<String>>,
    /// Not these disks
    #[arg(long, value_name = "DISK", value_delimiter = ',')]
    pub exclude_disks: Option<Vec<String>>,
    /// Whether to quiesce the guest [default: try]
    #[arg(long, value_name = "HOW")]
    pub quiesce: Option<Quiesce>,
    /// A label of the snapshot and the restore point, as KEY=VALUE; may be repeated
    #[arg(long = "label", value_name = "K=V")]
    pub labels: Vec<String>,
    /// A description of the snapshot and the restore point
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// How long the service keeps the snapshot if no backup follows, such as 720h [default: the service's policy]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<String>,
    /// VMs to back up at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub jobs: usize,
    /// Connections for each VM
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub connections: usize,
    /// Compare each response with a digest of the service, besides the protection of TLS. It costs both sides CPU time
    #[arg(long)]
    pub digests: bool,
    /// The most bytes a second for each service, such as 50MiB
    #[arg(long, value_name = "SIZE")]
    pub bandwidth: Option<String>,
    /// The format of images [default: raw if the file system can clone files, else qcow2]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<ImageFormat>,
    /// Only say what would be transferred. This creates a snapshot without freezing the guest, and deletes it
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
pub struct PointsArgs {
    /// The backup directory
    pub directory: PathBuf,
    /// Only this VM, by name or id
    pub vm: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// The backup directory
    pub directory: PathBuf,
    /// The VM, by name or id
    pub vm: String,
    /// The restore point: the start of its id, or a time, for the newest point at or before it [default: the newest]
    #[arg(long, value_name = "TIME|ID")]
    pub at: Option<String>,
    /// The directory for the images. It is created if it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub format: ImageFormat,
    /// Only these disks
    #[arg(long, value_name = "DISK", value_delimiter = ',')]
    pub disks: Option<Vec<String>>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// The backup directory
    pub directory: PathBuf,
    /// Only this VM, by name or id
    pub vm: Option<String>,
    /// Only this restore point: the start of its id, or a time
    #[arg(long, value_name = "TIME|ID")]
    pub at: Option<String>,
    /// Compare the newest point of each VM with its snapshot on this service, without moving data. The hosts of one pool
    /// are separated by commas
    #[arg(long, value_name = "SERVER")]
    pub against: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
pub struct PruneArgs {
    /// The backup directory
    pub directory: PathBuf,
    /// Only this VM, by name or id
    pub vm: Option<String>,
    /// Keep the newest N points
    #[arg(long, value_name = "N")]
    pub keep_last: Option<usize>,
    /// Keep the newest point of each of N days
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<usize>,
    /// Keep the newest point of each of N weeks
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<usize>,
    /// Keep the newest point of each of N months
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<usize>,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct CatArgs {
    /// The address of the service, those of the hosts of one pool separated by commas, or the name of a profile
    pub service: String,
    /// The disk, as VM/SNAPSHOT/DISK
    pub disk: String,
    /// Write the changes since this snapshot: lines `offset length type`, each followed by its bytes if the type is data
    #[arg(long, value_name = "BASE")]
    pub since: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Clone, Debug, Args)]
pub struct LoginArgs {
    /// The address of the service, those of the hosts of one pool separated by commas, or the name of a profile
    pub service: String,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ClientCommand {
    /// Back up VMs: a full copy at first, then only what changed
    Backup(Box<BackupArgs>),
    /// List restore points
    Points(PointsArgs),
    /// Write the disks of a restore point
    Restore(RestoreArgs),
    /// Read restore points back, and compare every block with its checksum
    Verify(VerifyArgs),
    /// Remove restore points that no rule keeps
    Prune(PruneArgs),
    /// Write the bytes of a disk to standard output
    Cat(CatArgs),
    /// Log in and keep the token
    Login(LoginArgs),
    /// Forget the token
    Logout(LoginArgs),
}
