//! A log event as one line of JSON, written straight into the line.

use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Causes;
use crate::clock::{Clock as _, SystemClock};
use crate::line::is_unprintable;

/// `timestamp`, `level`, `message` and the event's own fields, all on one level.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // An event that is logged while another one is written finds an empty line of its own.
        let mut line = LINE.take();
        line.begin(SystemClock.now(), event.metadata().level().as_str());
        event.record(&mut line);
        line.text.push_str("}\n");
        let written = out.write_str(&line.text);
        LINE.set(line);
        written
    }
}

thread_local! {
    /// Its memory is used again and again.
    static LINE: Cell<Line> = Cell::default();
}

#[derive(Default)]
struct Line {
    text: String,
    /// Of the second in which the last event was.
    date: String,
    second: Duration,
}

impl Line {
    fn begin(&mut self, now: SystemTime, level: &str) {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let second = Duration::from_secs(since.as_secs());
        if second != self.second || self.date.is_empty() {
            let time = jiff::Timestamp::try_from(SystemTime::UNIX_EPOCH + second).unwrap_or_default();
            (self.second, self.date) = (second, time.strftime("%Y-%m-%dT%H:%M:%S").to_string());
        }
        self.text.clear();
        let (date, micros) = (&self.date, since.subsec_micros());
        // A text takes whatever is written into it.
        let _ = write!(self.text, "{{\"timestamp\":\"{date}.{micros:06}Z\",\"level\":\"{level}\"");
    }

    /// What the `log` crate's events say of themselves is left out.
    fn field(&mut self, field: &Field, write: impl FnOnce(&mut Self)) {
        if !field.name().starts_with("log.") {
            self.text.push(',');
            self.quoted(|text| text.push_str(field.name()));
            self.text.push(':');
            write(self);
        }
    }

    /// A JSON text (RFC 8259 section 7).
    fn quoted(&mut self, write: impl FnOnce(&mut String)) {
        self.text.push('"');
        let start = self.text.len();
        write(&mut self.text);
        // Without a branch for each byte, many are looked at together; nearly no text has a special one.
        let written = self.text.as_bytes().get(start..).unwrap_or_default();
        if written.iter().fold(false, |found, byte| found | special(*byte)) {
            let plain = self.text.split_off(start);
            plain.chars().for_each(|c| self.escaped(c));
        }
        self.text.push('"');
    }

    fn escaped(&mut self, c: char) {
        match c {
            '"' | '\\' => self.text.extend(['\\', c]),
            '\n' => self.text.push_str("\\n"),
            _ if is_unprintable(c) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(self.text, "\\u{unit:04x}");
                }
            }
            _ => self.text.push(c),
        }
    }

    fn bare(&mut self, value: impl fmt::Display) {
        let _ = write!(self.text, "{value}");
    }
}

fn special(byte: u8) -> bool {
    !(b' '..=b'~').contains(&byte) || byte == b'"' || byte == b'\\'
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, |line| line.quoted(|text| text.push_str(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, |line| {
            line.quoted(|text| {
                let _ = write!(text, "{value:?}");
            });
        });
    }

    fn record_error(&mut self, field: &Field, error: &(dyn Error + 'static)) {
        self.field(field, |line| {
            line.quoted(|text| {
                let _ = write!(text, "{}", Causes(error));
            });
        });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, |line| line.bare(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, |line| line.bare(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, |line| line.bare(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity.
        self.field(field, |line| if value.is_finite() { line.bare(value) } else { line.text.push_str("null") });
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("a lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Kept {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// What is logged while `event` runs, line by line.
    fn logged(event: impl FnOnce()) -> Vec<Value> {
        let kept = Kept::default();
        let layer = tracing_subscriber::fmt::layer().event_format(Json).with_writer(kept.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), event);
        let bytes = kept.0.lock().expect("a lock").clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn an_event_is_one_object_with_its_fields_as_they_are() {
        let lines = logged(|| {
            tracing::warn!(a.text = "x", a.shown = %"y", a.truth = true, a.number = 7u64, a.below = -1i64, absent = None::<u64>, "two {}", 2);
        });
        let [mut line] = lines.try_into().expect("one line");
        let time = line.as_object_mut().and_then(|line| line.remove("timestamp")).expect("a time");
        assert!(time.as_str().is_some_and(|time| time.ends_with('Z')), "{time}");
        let expected = json!({
            "level": "WARN", "message": "two 2", "a.text": "x", "a.shown": "y", "a.truth": true, "a.number": 7, "a.below": -1,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn what_others_wrote_steers_no_terminal_that_shows_the_log() {
        let kept = Kept::default();
        let layer = tracing_subscriber::fmt::layer().event_format(Json).with_writer(kept.clone());
        let hostile = "\u{202e}\u{9b}2J\u{e0041}";
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(user_agent = hostile, "{hostile}");
        });
        let text = String::from_utf8(kept.0.lock().expect("a lock").clone()).expect("UTF-8");
        assert!(!text.trim_end().chars().any(is_unprintable), "{text}");
        let line: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&line["user_agent"], &line["message"]), (&json!(hostile), &json!(hostile)));
    }

    #[test]
    fn an_error_comes_with_all_that_led_to_it() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot \"write\"")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("disk full"));
        let lines = logged(|| tracing::error!(error = &error as &dyn Error, "lost"));
        assert_eq!(lines[0]["error"], "cannot \"write\": disk full");
    }

    proptest! {
        #[test]
        fn any_text_comes_back_as_it_was(text in any::<String>()) {
            let lines = logged(|| tracing::info!(text, shown = %text, "{text}"));
            prop_assert_eq!(lines.len(), 1);
            for field in ["text", "shown", "message"] {
                prop_assert_eq!(lines[0][field].as_str(), Some(text.as_str()));
            }
        }
    }
}
