//! Command-line arguments.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use super::audit::AuditCommand;
use super::client::ClientCommand;
use super::operator::OperatorCommand;
use super::support::{self, SupportArgs};
use crate::config;
use crate::hooks::launcher;

const AFTER_HELP: &str = "\
Signals:
  SIGHUP           Reload the certificate, the access rules, the policy and the limits; reopen the log file
  SIGTERM, SIGINT  Finish running requests (30 seconds at most) and stop

Exit status:
  1                Failed; another start may succeed
  2                Wrong arguments
  3                Some VMs failed, others succeeded (backup)
  4                A difference was found (verify, audit verify)
  75               A service cannot be reached or is too busy; try again later (commands that ask a service)
  78               The config, or a file that it names, is invalid; another start would fail too
  130              Interrupted twice (backup, restore, verify, cat)

Environment:
  RUST_LOG         The log level: error, warn, info (the default), debug, trace";

/// Incremental disk exporter for virtualization hosts.
///
/// Without a command it runs the service.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Args {
    /// The config file (-config with one dash works too)
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Instead of running the service.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check everything that the service needs, and report what to fix
    ///
    /// Nothing is changed. The exit status is 1 if the service would not work.
    CheckConfig,
    /// Verify the audit file
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Collect what a report about a fault needs in an archive, without secrets
    ///
    /// The archive has the config without secrets, the end of the log, the state of the running service, versions, mounts,
    /// and the number of extents of the largest disks. It has the names of VMs, disks and users.
    SupportBundle(SupportArgs),
    /// Run the hooks of the service, which starts this itself
    #[command(hide = true, name = launcher::COMMAND)]
    HookLauncher { directory: Option<PathBuf> },
    /// Look at one thing for support-bundle, which starts this itself
    #[command(hide = true, name = support::COMMAND)]
    SupportItem { part: support::Part, path: PathBuf },
    #[command(flatten)]
    Operator(OperatorCommand),
    #[command(flatten)]
    Client(ClientCommand),
}

/// The commands and options, for manual pages and completions.
pub fn command() -> clap::Command {
    Args::command()
}

/// Accepts the one-dash long flags of the original exporter, which existing unit files use.
pub fn normalize_go_flags(given: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    given.map(|argument| match argument.to_str() {
        Some(text) if matches!(text, "-config" | "-version" | "-help") || text.starts_with("-config=") => {
            OsString::from(format!("-{text}"))
        }
        _ => argument,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_original_are_accepted() {
        let config = |arguments: &[&str]| {
            let given = ["exporter"].iter().chain(arguments).map(OsString::from);
            Args::try_parse_from(normalize_go_flags(given)).map(|args| args.config)
        };
        assert_eq!(config(&[]).unwrap(), PathBuf::from("/etc/coriolis-ovm-exporter/config.toml"));
        for spelling in [
            &["-config", "/x.toml"][..],
            &["-config=/x.toml"],
            &["--config", "/x.toml"],
            &["--config=/x.toml"],
            &["check-config", "-config", "/x.toml"],
            &["-config", "/x.toml", "adopt", "--dry-run"],
        ] {
            assert_eq!(config(spelling).unwrap(), PathBuf::from("/x.toml"), "{spelling:?}");
        }
        assert_eq!(config(&["-version"]).unwrap_err().kind(), clap::error::ErrorKind::DisplayVersion);
        assert!(config(&["-nonsense"]).is_err());
    }
}
