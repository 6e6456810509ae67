//! Work on files whose file system may hang.
//!
//! A thread that hangs in the kernel keeps its process from ending. Therefore this program starts itself for such work, and
//! does not wait for a child that hangs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;

use super::bounded::run;

/// The hidden command of the child.
pub const COMMAND: &str = "support-item";

/// What the child prints about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    Log,
    Database,
    Repository,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Database => "database",
            Self::Repository => "repository",
        }
    }
}

/// What a child finds about `path`.
///
/// # Errors
/// Those of the child; it took longer than `limit`, because the file system does not respond.
pub fn isolated(part: Part, path: &Path, limit: Duration) -> Result<Vec<u8>, String> {
    // Also if the file of this program was replaced.
    let mut command = Command::new("/proc/self/exe");
    command.args([COMMAND, part.name()]).arg(path);
    let (status, printed) = run(command, limit)?;
    if status.success() {
        return Ok(printed);
    }
    Err(format!("{}: {status}: {}", path.display(), String::from_utf8_lossy(&printed).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_reads_the_names_of_the_parts() {
        for part in Part::value_variants() {
            assert_eq!(Part::from_str(part.name(), false).as_ref(), Ok(part));
        }
    }
}
