//! `audit verify`: whether the audit file is what the service wrote.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};

use crate::app::audit::{Difference, Head, Place, Summary, Verifier};
use crate::auth::{self, AuditKey};
use crate::cli::client::exit;
use crate::cli::terminal::Lines;
use crate::config::{self, Config};

/// The service writes no longer lines.
const MAX_LINE: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Verify that no line of the audit file was removed, changed, added or moved
    ///
    /// Without FILE, the audit file of the config and its rotated files are verified. The exit status is 0 if they are
    /// what the service wrote, 4 if not, and 1 if that cannot be found out. Removed lines at the end are found only
    /// with --expect.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The audit file and its rotated files (.1, .2 and so on, which are older), all of one service
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A line that must be there, from the service's log or status. It can be repeated
    #[arg(long, value_name = "SEQ:HASH", value_parser = head)]
    expect: Vec<Head>,
    /// Verify the hashes only, which others can compute too; not the proofs, for which the config and its key are needed
    #[arg(long)]
    without_key: bool,
}

fn head(text: &str) -> Result<Head, String> {
    let expected = || "expected SEQ:HASH, such as 4711:5f9c…, with the 64 hexadecimal digits of the hash".to_owned();
    let (seq, hash) = text.split_once(':').ok_or_else(expected)?;
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let seq = seq.parse().ok().filter(|seq| *seq > 0 && is_hash).ok_or_else(expected)?;
    Ok(Head { seq, hash: hash.to_ascii_lowercase() })
}

/// # Errors
/// The files, the config or the key cannot be read.
pub fn run(command: &AuditCommand, config: &Path) -> anyhow::Result<ExitCode> {
    let AuditCommand::Verify(args) = command;
    let paths = if args.files.is_empty() { configured_files(config)? } else { args.files.clone() };
    let key = if args.without_key { None } else { Some(key(config)?) };
    let files = open(paths)?;
    let mut lines = Lines::default();
    let status = match verify(&files, key.as_ref(), &args.expect)? {
        Ok(summary) => {
            describe(&mut lines, &summary, files.len(), key.is_some());
            if summary.lines.is_none() {
                lines.print()?;
                bail!("no line has a hash, so nothing can be verified");
            }
            ExitCode::SUCCESS
        }
        Err(Difference { place, what }) => {
            match place {
                Some(Place { file, line }) => lines.add(format_args!("{}:{line}: {what}", files[file].0.display())),
                None => lines.add(what),
            }
            ExitCode::from(exit::DIFFERENCE)
        }
    };
    lines.print()?;
    Ok(status)
}

fn key(path: &Path) -> anyhow::Result<AuditKey> {
    let remedy = "to verify the hashes only, use --without-key";
    let config = load(path).map_err(|error| anyhow!("{error}; {remedy}"))?;
    let secret = auth::key::find(&config).map_err(|error| anyhow!("jwt.secret: {error}; {remedy}"))?;
    let Some(secret) = secret else {
        bail!("there is no signing key: {} does not exist; {remedy}", auth::key::path(&config.db_file).display());
    };
    Ok(AuditKey::new(&secret))
}

/// For this command, a config that cannot be read says nothing about the service.
fn load(path: &Path) -> anyhow::Result<Config> {
    config::load(path).map_err(|error| anyhow!("{error}"))
}

/// The audit file of the config, and its rotated files.
fn configured_files(config: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Some(file) = load(config)?.audit.file else {
        bail!("audit.file is not set in {}, so the audit is in the log, without hashes", config.display());
    };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files = vec![file.clone()];
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let name = entry.with_context(|| folder.display().to_string())?.file_name();
        if file.file_name().is_some_and(|base| is_rotated(base, &name)) {
            files.push(folder.join(name));
        }
    }
    Ok(files)
}

/// Whether `name` is `base` with a number.
fn is_rotated(base: &OsStr, name: &OsStr) -> bool {
    let number = name.as_bytes().strip_prefix(base.as_bytes()).and_then(|rest| rest.strip_prefix(b"."));
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

/// The number of a rotated file. The newest one has 1.
fn age(path: &Path) -> u64 {
    path.extension().and_then(OsStr::to_str).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Opens the files, and returns them from the oldest to the newest.
fn open(mut paths: Vec<PathBuf>) -> anyhow::Result<Vec<(PathBuf, File)>> {
    paths.sort_by_key(|path| Reverse(age(path)));
    let mut files = Vec::new();
    let mut known = Vec::new();
    // The newest first: if the service rotates its file now, one is opened twice, and none is left out.
    for path in paths.into_iter().rev() {
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let metadata = file.metadata().with_context(|| path.display().to_string())?;
        if !metadata.is_file() {
            bail!("{}: is not a regular file; name an audit file", path.display());
        }
        let identity = (metadata.dev(), metadata.ino());
        if !known.contains(&identity) {
            known.push(identity);
            files.push((path, file));
        }
    }
    files.reverse();
    Ok(files)
}

fn verify(
    files: &[(PathBuf, File)],
    key: Option<&AuditKey>,
    expected: &[Head],
) -> anyhow::Result<Result<Summary, Difference>> {
    let mut verifier = Verifier::new(key, expected);
    for (number, (path, file)) in files.iter().enumerate() {
        let mut reader = BufReader::with_capacity(64 << 10, file);
        let mut line = Vec::new();
        for n in 1.. {
            line.clear();
            let read = reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line);
            if read.with_context(|| path.display().to_string())? == 0 {
                break;
            }
            let place = Place { file: number, line: n };
            if line.len() as u64 > MAX_LINE {
                let what = "is longer than 1 MiB, and the service writes no such lines".to_owned();
                return Ok(Err(Difference { place: Some(place), what }));
            }
            if let Err(difference) = verifier.line(place, &line) {
                return Ok(Err(difference));
            }
        }
    }
    Ok(verifier.finish())
}

fn describe(lines: &mut Lines, summary: &Summary, files: usize, has_key: bool) {
    let Summary { lines: range, last_time, proven, other_key, unchained, incomplete, ends_incomplete, older_heads } =
        summary;
    if let Some((first, last)) = range {
        let time = last_time.as_deref().unwrap_or("an unknown time");
        lines.add(format_args!("lines {first} to {} are whole, in {files} files; the last one is of {time}", last.seq));
        lines.add(format_args!("newest line: {}:{}", last.seq, last.hash));
        if has_key {
            lines.add(format_args!("{proven} lines are proven to be of this service"));
        } else {
            lines.add("the proofs were not checked: who can write the files can also have replaced all lines");
        }
    }
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            lines.add(format_args!("{count} {what}"));
        }
    };
    note(*other_key, "older lines have another key: jwt.secret was changed since; only their hashes were checked");
    note(*unchained, "lines before them have no hash: an older version wrote them, or the log did; they prove nothing");
    note(*incomplete, "lines are incomplete, as later lines say: the disk was full, or the service was killed");
    note(*older_heads, "expected lines are older than the first line of the files");
    if *ends_incomplete {
        lines.add("the last file ends with an incomplete line: it is being written, or the service was killed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_read_oldest_first() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["audit.json", "audit.json.1", "audit.json.10", "audit.json.2"];
        let paths: Vec<PathBuf> = names.iter().map(|name| folder.path().join(name)).collect();
        paths.iter().for_each(|path| fs::write(path, "").unwrap());
        let files = open(paths.clone()).unwrap();
        let order: Vec<&str> = files.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(order, ["audit.json.10", "audit.json.2", "audit.json.1", "audit.json"]);
        // Renamed by a rotation while they were opened.
        fs::remove_file(&paths[3]).unwrap();
        fs::hard_link(&paths[0], &paths[3]).unwrap();
        assert_eq!(open(paths).unwrap().len(), 3);
        assert!(open(vec![folder.path().to_owned()]).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn only_numbers_belong_to_rotated_files() {
        let is = |name: &str| is_rotated(OsStr::new("audit.json"), OsStr::new(name));
        assert!(is("audit.json.1") && is("audit.json.27"));
        for other in ["audit.json", "audit.json.", "audit.json.new", "audit.json.1.gz", "audit.json1", "other.json.1"] {
            assert!(!is(other), "{other}");
        }
    }

    #[test]
    fn an_expected_line_is_a_number_and_a_hash() {
        let hash = "5F9c".repeat(16);
        assert_eq!(head(&format!("7:{hash}")).unwrap(), Head { seq: 7, hash: hash.to_lowercase() });
        for wrong in ["", "7", "7:", &hash, &format!("0:{hash}"), &format!("x:{hash}"), &format!("7:{hash}0"), "7:5f9c"]
        {
            assert!(head(wrong).unwrap_err().contains("expected SEQ:HASH"), "{wrong}");
        }
    }
}
