//! The format of values in the log.

use tracing_subscriber::field::{MakeExt, RecordFields};
use tracing_subscriber::fmt::format::{FormatFields, Writer, debug_fn};

use crate::model::printable;

/// Writes escaped `name=value` pairs, so that a value can neither end the line nor control a terminal.
#[derive(Debug)]
pub struct Escaped;

impl<'writer> FormatFields<'writer> for Escaped {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> std::fmt::Result {
        let escaped = debug_fn(|writer, field, value| {
            let value = format!("{value:?}");
            match field.name() {
                "message" => write!(writer, "{}", printable(&value)),
                name => write!(writer, "{name}={}", printable(&value)),
            }
        });
        escaped.delimited(" ").format_fields(writer, fields)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn values_cannot_end_a_line_or_control_a_terminal() {
        let written = Written::default();
        let sink = written.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false);
        let subscriber = subscriber.fmt_fields(Escaped).with_writer(move || sink.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("request", id = %"1\n2").entered();
            tracing::warn!(plain = %"a\nb\x1b[2J", quoted = ?"c\nd", number = 7, text = "e\nf", "message {}", "g\r\nh");
        });
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let expected = " WARN request{id=1\\n2}: message g\\r\\nh plain=a\\nb\\u{1b}[2J quoted=\"c\\nd\" number=7 text=\"e\\nf\"\n";
        assert_eq!(written, expected);
    }
}
