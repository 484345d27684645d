//! What the library says through the `log` crate, on standard error.

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::output;

struct Logger;

static LOGGER: Logger = Logger;

/// Starts printing what is at least this important.
pub(super) fn init(level: LevelFilter) {
    // The only way to fail is to do it twice.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tupper")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let prefix = match record.level() {
                Level::Info => "",
                Level::Warn => "warning: ",
                Level::Error => "error: ",
                Level::Debug | Level::Trace => "debug: ",
            };
            let _ = output::note(format_args!("tupper: {prefix}{}", output::one_line(record.args())));
        }
    }

    fn flush(&self) {}
}
