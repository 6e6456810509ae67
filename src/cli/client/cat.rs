//! `cat`: the bytes of a disk on standard output.

use std::io::{self, Write};
use std::ops::Range;
use std::process::ExitCode;

use super::args::CatArgs;
use super::connect::connect;
use super::exit::UsageError;
use super::profile::Profiles;
use super::signals::cancel_on_signal;
use crate::backup::{Features, api_path};
use crate::cli::terminal;
use crate::client::{Cancel, Client, ClientError, Fetch, RangeSink};

/// Bytes of one request. They are written as they arrive.
const REQUEST_BYTES: u64 = 16 << 20;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

pub fn run(args: &CatArgs) -> anyhow::Result<ExitCode> {
    let cancel = Cancel::default();
    cancel_on_signal(&cancel)?;
    let problem = || UsageError(format!("{:?} is no disk of a snapshot: expected VM/SNAPSHOT/DISK", args.disk));
    let parts: Vec<&str> = args.disk.splitn(3, '/').collect();
    let [vm, snapshot, disk] = parts[..] else { return Err(problem().into()) };
    let server = connect(&args.service, &args.server, &Profiles::load()?, &cancel)?;
    let client = server.client()?;
    let path = api_path(vm, snapshot, disk);
    let (size, etag) = client.head(&path)?;
    let mut output = io::BufWriter::with_capacity(1 << 20, terminal::output().lock());
    let disk = Source { client: &client, path: &path, etag: &etag, size };
    let result = match &args.since {
        None => disk.write_all(&mut output),
        Some(base) => disk.write_changes(base, &mut output),
    };
    let flushed = result.and_then(|()| Ok(output.flush()?));
    match flushed {
        // The reader has enough.
        Err(ClientError::Local(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => Ok(result.map(|()| ExitCode::SUCCESS)?),
    }
}

struct Source<'a> {
    client: &'a Client,
    path: &'a str,
    etag: &'a str,
    size: u64,
}

impl Source<'_> {
    /// The whole disk, with zeros where nothing is stored.
    fn write_all(&self, output: &mut dyn Write) -> Result<(), ClientError> {
        // The original exporter has no map of one disk: its bytes are fetched as they are.
        let is_original = Features::of(self.client.capabilities()?.as_ref()).is_original;
        let data: Vec<Range<u64>> = if is_original {
            std::iter::once(0..self.size).filter(|range| !range.is_empty()).collect()
        } else {
            let mut data = Vec::new();
            self.client.compare(self.path, None, &mut |range, is_zero| {
                if !is_zero {
                    data.push(range);
                }
            })?;
            data
        };
        let mut at = 0;
        for range in data.into_iter().chain(std::iter::once(self.size..self.size)) {
            write_zeros(output, range.start - at)?;
            self.write_range(range.clone(), output)?;
            at = range.end;
        }
        Ok(())
    }

    /// A line for each range, followed by its bytes if it has any.
    fn write_changes(&self, base: &str, output: &mut dyn Write) -> Result<(), ClientError> {
        let mut chunks = Vec::new();
        let comparison =
            self.client.compare(self.path, Some(base), &mut |range, is_zero| chunks.push((range, is_zero)))?;
        let mode = if comparison.mode == crate::api::Mode::Full { "full" } else { "incremental" };
        writeln!(output, "size {} {mode}", self.size)?;
        for (range, is_zero) in chunks {
            let kind = if is_zero { "zero" } else { "data" };
            writeln!(output, "{} {} {kind}", range.start, range.end - range.start)?;
            if !is_zero {
                self.write_range(range, output)?;
            }
        }
        writeln!(output, "end")?;
        Ok(())
    }

    fn write_range(&self, mut range: Range<u64>, output: &mut dyn Write) -> Result<(), ClientError> {
        let mut backoff = self.client.server().backoff();
        while !range.is_empty() {
            let request = range.start..range.end.min(range.start + REQUEST_BYTES);
            let Self { path, etag, size, .. } = *self;
            let fetch = Fetch { path, etag, size, ranges: std::slice::from_ref(&request), digest: false };
            let mut sink = Forward { output, written: 0 };
            let result = self.client.fetch(&fetch, &mut sink);
            if sink.written > 0 {
                backoff.reset();
            }
            range.start += sink.written;
            if let Err(error) = result {
                self.client.wait(&mut backoff, error)?;
            }
        }
        Ok(())
    }
}

struct Forward<'a> {
    output: &'a mut dyn Write,
    written: u64,
}

impl RangeSink for Forward<'_> {
    fn write(&mut self, _: u64, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn write_zeros(output: &mut dyn Write, mut length: u64) -> io::Result<()> {
    while length > 0 {
        let now = length.min(ZEROS.len() as u64);
        output.write_all(&ZEROS[..now as usize])?;
        length -= now;
    }
    Ok(())
}
