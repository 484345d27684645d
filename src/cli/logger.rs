//! What the library says through the `log` crate, on standard error.

use log::{Level, LevelFilter, Log, Metadata, Record};

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
            let _ = match record.level() {
                Level::Info => super::output::note(format_args!("tupper: {}", record.args())),
                Level::Warn => super::output::note(format_args!("tupper: warning: {}", record.args())),
                Level::Error => super::output::note(format_args!("tupper: error: {}", record.args())),
                Level::Debug | Level::Trace => super::output::note(format_args!("tupper: debug: {}", record.args())),
            };
        }
    }

    fn flush(&self) {}
}
