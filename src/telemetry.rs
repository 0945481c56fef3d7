//! Logs: events with the fields of the spans around them, to standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, reload};

use crate::config::{Log, LogFormat};

/// Starts logging, once a process; a later call changes nothing, and neither does what it gives back.
pub fn init(log: &Log) -> Level {
    let color = io::stderr().is_terminal();
    let (subscriber, level) = subscriber(log, color, || Dropping(io::stderr()));
    // The only error is that a subscriber is there already, which is what a test that starts twice wants.
    let _ = tracing::subscriber::set_global_default(subscriber);
    level
}

/// Lines of the log that could not be written.
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Counts the lines of the log that were dropped because they could not be written, since the process began.
pub fn dropped_lines() -> Counter {
    DROPPED.clone()
}

/// Writes what it can. A log that nobody takes, because its reader is gone or its disk is full, is no reason to stop
/// serving clients; each event is written in one call, so a line is dropped whole or cut.
struct Dropping<W>(W);

impl<W: Write> Write for Dropping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.write_all(bytes).is_err() {
            DROPPED.inc();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // What is written here was counted there.
        let _ = self.0.flush();
        Ok(())
    }
}

/// Changes what is logged while the process runs.
pub struct Level(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl Level {
    /// From now on, what `level` lets through: see [`Log::level`].
    pub fn change(&self, level: &str) {
        // The configuration has parsed this text already.
        if let Err(error) = self.0(EnvFilter::new(level)) {
            tracing::error!(%error, "log.level stays what it was");
        }
    }
}

fn subscriber<W>(log: &Log, color: bool, writer: W) -> (Box<dyn Subscriber + Send + Sync>, Level)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The configuration has parsed this text already.
    let builder = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(&log.level)).with_writer(writer);
    // Its own complaints would go to the same place, and end the process if they can't.
    let builder = builder.log_internal_errors(false);
    match log.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(color).with_filter_reloading();
            let level = builder.reload_handle();
            (Box::new(builder.finish()), Level(Box::new(move |filter| level.reload(filter))))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false).with_filter_reloading();
            let level = builder.reload_handle();
            (Box::new(builder.finish()), Level(Box::new(move |filter| level.reload(filter))))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics while it writes").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = Log { format, level: level.into() };
        let (subscriber, _) = subscriber(&log, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            let _connection = tracing::info_span!("connection", id = 7, peer = "10.0.0.1:5").entered();
            let _channel = tracing::info_span!("channel", number = 3).entered();
            tracing::info!(transaction = "t1", "committed");
            tracing::debug!("a detail");
        });
        let bytes = sink.0.lock().expect("no test panics while it writes").clone();
        String::from_utf8(bytes).expect("logs are UTF-8")
    }

    #[test]
    fn json_lines_carry_the_fields_of_every_span_around_them() {
        let text = logged(LogFormat::Json, "info");
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).expect("one JSON object");
        assert_eq!((&line["message"], &line["transaction"]), (&"committed".into(), &"t1".into()));
        assert_eq!((&line["spans"][0]["id"], &line["spans"][1]["number"]), (&7.into(), &3.into()));
    }

    #[test]
    fn levels_hold_per_module() {
        assert_eq!(logged(LogFormat::Text, "info").lines().count(), 1);
        assert_eq!(logged(LogFormat::Text, "warn,halfway::telemetry=debug").lines().count(), 2);
        assert_eq!(logged(LogFormat::Text, "warn").lines().count(), 0);
    }

    #[test]
    fn the_level_can_change() {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = Log { format: LogFormat::Json, level: "warn".into() };
        let (subscriber, level) = subscriber(&log, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            for (next, text) in [("debug", "first"), ("off", "second"), ("info", "third")] {
                tracing::info!(text);
                level.change(next);
            }
            tracing::info!("fourth");
        });
        let text = String::from_utf8(sink.0.lock().expect("no test panics while it writes").clone()).expect("UTF-8");
        let said = ["first", "second", "third", "fourth"].map(|word| text.contains(word));
        assert_eq!(said, [false, true, false, true], "{text}");
    }
}
