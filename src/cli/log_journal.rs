//! The log in the journal of systemd: its native protocol, which has fields beside the message.
//!
//! The crate tracing-journald sends on the thread that logs, and waits there while the journal does not read. Here the
//! fields are written as text into the queue of the log, and its thread sends them.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use tracing_subscriber::field::Visit;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::log_file::to_standard_error;
use super::log_queue::Sink;
use crate::model::printable;

const SOCKET: &str = "/run/systemd/journal/socket";

/// If the journal does not read for this long, lines go to standard error.
const PATIENCE: Duration = Duration::from_secs(5);

/// Values that are fields of their own, with the names of these fields.
const FIELDS: &[(&str, &str)] =
    &[("vm", "VM"), ("snapshot", "SNAPSHOT"), ("disk", "DISK"), ("repository", "REPOSITORY"), ("hook", "HOOK")];

/// The journal that reads the standard error of this process.
pub struct Journal(UnixDatagram);

impl Journal {
    /// Opens the journal, if standard error is one of its streams. A process that has confined itself can no longer open
    /// it.
    pub fn open() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let found = fstat(io::stderr()).ok()?;
        if stream != format!("{}:{}", found.st_dev, found.st_ino) {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        socket.connect(SOCKET).ok()?;
        Some(Self(socket))
    }
}

impl Write for Journal {
    /// Sends one entry. If the journal does not take it, for example because it is too long, the message goes to
    /// standard error, which the journal reads as lines.
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        if self.0.send(entry).is_err() {
            to_standard_error(&plain(entry))?;
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Journal {
    fn write_early(&mut self, entry: &[u8]) -> bool {
        let mut writable = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        poll(&mut writable, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) && self.0.send(entry).is_ok()
            || to_standard_error(&plain(entry)).is_ok()
    }

    fn report_dropped(&mut self, dropped: u64) -> io::Result<()> {
        let message = format!("{dropped} log lines were dropped: the log could not be written");
        let entry = format!("{}MESSAGE={message}\n", head(tracing::Level::WARN));
        self.write_all(entry.as_bytes())
    }
}

/// The message of an entry as a line with its priority: sd-daemon(3).
fn plain(entry: &[u8]) -> Vec<u8> {
    let field = |name: &[u8]| entry.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name));
    let (priority, message) = (field(b"PRIORITY=").unwrap_or(b"6"), field(b"MESSAGE=").unwrap_or(entry));
    [b"<", priority, b">", message, b"\n"].concat()
}

/// The fields that each entry has.
fn head(level: tracing::Level) -> String {
    // syslog(3).
    let priority = match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        tracing::Level::DEBUG | tracing::Level::TRACE => 7,
    };
    format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=coriolis-ovm-exporter\n")
}

/// Writes an entry of the journal: a field per line. No value has more than one line, because all of them are escaped.
pub struct Entries;

impl<S, N> FormatEvent<S, N> for Entries
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        write!(writer, "{}", head(*event.metadata().level()))?;
        let (mut fields, mut message) = (Fields(String::new()), String::new());
        event.record(&mut fields);
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let values = extensions.get::<FormattedFields<N>>().map_or("", |values| &values.fields);
            message += &format!("{}{{{values}}}: ", span.name());
            let id = values.strip_prefix("id=").filter(|_| span.name() == "request");
            if let Some(id) = id.and_then(|rest| rest.split(' ').next()) {
                fields.add("REQUEST_ID", id);
            }
        }
        write!(writer, "{}MESSAGE={message}", fields.0)?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// The lines of [`FIELDS`].
struct Fields(String);

impl Fields {
    fn add(&mut self, name: &str, value: &str) {
        self.0 += &format!("{name}={}\n", printable(value));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if let Some((_, name)) = FIELDS.iter().find(|(known, _)| *known == field.name()) {
            self.add(name, value);
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::cli::log_fields::Escaped;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_entry_has_its_fields_and_no_value_can_add_one() {
        let written = Written::default();
        let sink = written.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).fmt_fields(Escaped).event_format(Entries);
        tracing::subscriber::with_default(subscriber.with_writer(move || sink.clone()).finish(), || {
            let _span = tracing::info_span!("request", id = %"a-b").entered();
            tracing::warn!(vm = %"1\nPRIORITY=0", disk = "b.img", number = 7, "message {}", "x\nVM=2");
        });
        let written: Vec<_> =
            written.0.lock().unwrap().iter().map(|it| String::from_utf8(it.clone()).unwrap()).collect();
        let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=coriolis-ovm-exporter\nVM=1\\nPRIORITY=0\nDISK=b.img\n\
                        REQUEST_ID=a-b\nMESSAGE=request{id=a-b}: message x\\nVM=2 vm=1\\nPRIORITY=0 disk=\"b.img\" number=7\n";
        assert_eq!(written, [expected], "an entry is one write");
        let line = plain(written[0].as_bytes());
        assert!(line.starts_with(b"<4>request{id=a-b}: message") && line.ends_with(b"number=7\n"), "{line:?}");
    }
}
