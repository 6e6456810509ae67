//! Arguments.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config;

/// What else a user of the command line may want to know.
const SIGNALS: &str = "\
Signals:
  SIGHUP           Read the certificate and open the log file anew
  SIGTERM, SIGINT  Let running answers finish, 30 seconds at most, and stop

Exit status:
  1                Something failed, and another start may go well
  2                Wrong arguments
  78               The config, or what it names, is broken: another start would fail as well

Environment:
  RUST_LOG         What goes into the log: error, warn, info (the default), debug, trace";

/// Incremental disk exporter for virtualization hosts.
///
/// Without a command it serves.
#[derive(Debug, Parser)]
#[command(version, after_help = SIGNALS)]
pub struct Args {
    /// The config file (-config, with one dash, is understood too)
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be done besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at everything that the service needs, and say what is to be mended
    ///
    /// Nothing is changed. The exit status is 1 where the service would not do its work.
    CheckConfig,
    /// Take over snapshots that the running service does not know, of the original exporter above all
    ///
    /// Each folder below CoriolisSnapshots is placed by its disks' names and its files' times. What
    /// cannot be placed is listed and left as it is.
    Adopt {
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Also those with a manifest: of a database that is lost. No other exporter may use them
        #[arg(long)]
        manifests: bool,
    },
}

/// The arguments `given`, with the original's one-dash long flags made ordinary: they stand in
/// everybody's unit files.
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
    fn the_originals_flag_is_understood() {
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
