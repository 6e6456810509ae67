//! `support-bundle`: an archive for a report about a fault.

mod ask;
mod bounded;
mod host;
mod isolated;
mod repositories;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use self::bounded::Item;
use self::isolated::isolated;
use super::terminal::{Lines, notice, output};
use crate::backup::files;
use crate::config::{self, Config, Socket};
use crate::store::{self, DatabaseState, StoreError};

pub use self::isolated::{COMMAND, Part};

#[derive(Clone, Debug, Args)]
pub struct SupportArgs {
    /// Where to write the archive (tar) [default: coriolis-ovm-exporter-support-TIME.tar in this folder]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How long the check of a database that no service has open may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

const ABOUT: &str = "\
A bundle of coriolis-ovm-exporter for a report about a fault.

It has no passwords, keys, tokens or tickets: secrets of the config are shown as \"(not shown ...)\". It has the names of
VMs, disks, repositories, users, hosts and files, and addresses of clients. Read it before you pass it on.

What each file is, and why one is missing:

";

/// Runs the command.
///
/// # Errors
/// The archive cannot be written. An item that cannot be had is a line in the archive.
pub fn run(args: &SupportArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let now = jiff::Timestamp::now();
    let name = format!("coriolis-ovm-exporter-support-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let output = args.output.clone().unwrap_or_else(|| format!("{name}.tar").into());
    let mut file = files::create_new(&output).with_context(|| format!("{}: cannot create it", output.display()))?;
    notice("collecting; this takes at most a few minutes");
    let items = collect(config);
    let written = archive(&name, &items, now).and_then(|archive| {
        file.write_all(&archive)?;
        file.sync_all()
    });
    if let Err(error) = written {
        let _ = std::fs::remove_file(&output);
        return Err(error).with_context(|| output.display().to_string());
    }
    let mut lines = Lines::default();
    for Item { name, found, .. } in &items {
        match found {
            Ok(bytes) => lines.add(format_args!("{name}  {} bytes", bytes.len())),
            Err(reason) => lines.add(format_args!("{name}  missing: {reason}")),
        }
    }
    lines.add("");
    lines.add(format_args!(
        "{} is complete. It has the names of VMs, disks and users, but no secrets.",
        output.display()
    ));
    lines.print()?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the hidden command: prints what there is about `path`.
///
/// # Errors
/// It cannot be read.
pub fn print(part: Part, path: &Path) -> io::Result<()> {
    let found = match part {
        Part::Log => host::end_of(path),
        Part::Database => Ok(database(path)),
        Part::Repository => repositories::examine(path),
    };
    output().write_all(&found?)
}

/// All items. Each takes a limited time.
fn collect(path: &Path) -> Vec<Item> {
    let loaded = config::load_with_faults(path);
    let (config, faults) = match &loaded {
        Ok((config, faults)) => (Ok(config), faults.join("\n")),
        Err(error) => (Err(error.to_string()), String::new()),
    };
    let mut items = vec![
        Item::new("config.toml", "every key with its value, without secrets", config.clone().map(text_of)),
        Item::new("config-faults.txt", "what is wrong with the config", Ok(faults.into_bytes())),
    ];
    // Without a config, the service may run with the default path.
    let socket = config.as_ref().map_or_else(
        |_| Some(PathBuf::from(Socket::DEFAULT_PATH)),
        |config| config.api.socket.as_ref().map(|socket| socket.path.clone()),
    );
    items.extend(ask::items(socket.as_deref()));
    items.extend(host::items(config.as_ref().ok().copied(), socket.as_deref()));
    let Ok(config) = config else { return items };
    let database = isolated(Part::Database, &config.db_file, CHECK_TIMEOUT);
    items.push(Item::new("database.txt", "a check of the database, if no service has it open", database));
    items.extend(repositories::items(config));
    items
}

fn text_of(config: &Config) -> Vec<u8> {
    toml::to_string(&config.keys).unwrap_or_else(|error| error.to_string()).into_bytes()
}

fn database(path: &Path) -> Vec<u8> {
    let mut text = match std::fs::metadata(path) {
        Ok(found) => format!("{}: {} bytes\n", path.display(), found.len()),
        Err(error) => format!("{}: {error}\n", path.display()),
    };
    let state = match store::inspect(path) {
        Ok(DatabaseState::Missing) => "there is no database".to_owned(),
        Ok(DatabaseState::Present { was_closed, unreadable }) => {
            let closed = if was_closed { "closed" } else { "not closed, and will be repaired" };
            let problem = unreadable.problem().map(|problem| format!("; {problem}")).unwrap_or_default();
            format!("whole, and {closed}{problem}")
        }
        Err(StoreError::InUse) => "in use by the service; status.json has the result of its last check".to_owned(),
        Err(error) => error.to_string(),
    };
    text += &state;
    text.push('\n');
    text.into_bytes()
}

/// The archive of all items that were found, and of a text about all.
fn archive(folder: &str, items: &[Item], now: jiff::Timestamp) -> io::Result<Vec<u8>> {
    let mut about = format!("{ABOUT}{now}\n\n");
    for Item { name, what, found } in items {
        let state = found.as_ref().err().map(|reason| format!("; MISSING: {reason}")).unwrap_or_default();
        let _ = writeln!(about, "{name}: {what}{state}");
    }
    let mut archive = tar::Builder::new(Vec::new());
    let found = items.iter().filter_map(|item| Some((item.name.as_str(), item.found.as_deref().ok()?)));
    for (name, bytes) in [("about.txt", about.as_bytes())].into_iter().chain(found) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(files::FILE_MODE);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or_default());
        archive.append_data(&mut header, format!("{folder}/{name}"), bytes)?;
    }
    archive.into_inner()
}
