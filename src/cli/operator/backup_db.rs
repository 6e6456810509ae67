//! `backup-db`: writes a copy of the running service's database to a file.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::args::BackupDbArgs;
use super::service::Service;
use crate::backup::files;
use crate::cli::client::table;
use crate::cli::terminal::{Lines, notice};
use crate::client::{Client, ClientError};
use crate::store::{self, DatabaseState, StoreError};

pub fn run(args: &BackupDbArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let file = &args.file;
    check_target(file)?;
    let client = Service::find(&args.target, config)?.client;
    let temporary = Temporary(files::temporary(file));
    let bytes = receive(&client, &temporary.0)
        .map_err(|error| if matches!(error, ClientError::Local(_)) { named(error, file) } else { error.into() })?;
    // The service has checked the copy. This finds what was damaged on the way, or on this disk.
    let unreadable = match store::inspect(&temporary.0) {
        Ok(DatabaseState::Present { was_closed: true, unreadable }) => unreadable,
        Ok(_) => bail!("the copy of the database did not arrive whole; {} was not written", file.display()),
        Err(error) => bail!("the copy of the database cannot be used: {error}; {} was not written", file.display()),
    };
    let written = fs::rename(&temporary.0, file).and_then(|()| files::sync_directory(folder_of(file)));
    written.with_context(|| file.display().to_string())?;
    let mut lines = Lines::default();
    lines.add(format_args!("{}  {}", file.display(), table::bytes(bytes)));
    lines.print()?;
    if let Some(problem) = unreadable.problem() {
        notice(format_args!("warning: {problem}; the copy has it as it is in the database"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A file that is removed at the end, unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn named(error: ClientError, file: &Path) -> anyhow::Error {
    anyhow::Error::new(error).context(file.display().to_string())
}

/// Refuses to replace a database that a service uses, or something that is not a file.
fn check_target(file: &Path) -> anyhow::Result<()> {
    let shown = file.display();
    match fs::symlink_metadata(file) {
        Ok(found) if !found.is_file() => bail!("{shown} is not a regular file; name another file"),
        Ok(_) if matches!(store::inspect(file), Err(StoreError::InUse)) => {
            bail!("{shown} is the database of a running service; name another file")
        }
        _ => {}
    }
    if file.file_name().is_none() { bail!("{shown} does not name a file") } else { Ok(()) }
}

/// Writes the copy to a new file at `path`. Returns its length.
fn receive(client: &Client, path: &Path) -> Result<u64, ClientError> {
    files::remove_if_there(path)?;
    let mut file = files::create_new(path)?;
    let mut bytes = 0;
    client.download("/database", &mut |piece| {
        bytes += piece.len() as u64;
        file.write_all(piece)
    })?;
    file.sync_all()?;
    Ok(bytes)
}
