//! A progress bar on standard error, when that is a terminal.

use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use tupper::image::Progress;

/// A bar for reading a source of bytes. It disappears when it is dropped.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar that says what is read; hidden when nobody would see it.
    pub(super) fn new(what: &str, quiet: bool) -> Bar {
        if quiet || !std::io::stderr().is_terminal() {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::no_length().with_message(what.to_string());
        bar.set_style(style("{spinner} {msg}  {bytes} ({bytes_per_sec})"));
        Bar(bar)
    }

    /// What the library calls as it reads.
    pub(super) fn callback(&self) -> Progress {
        let bar = self.0.clone();
        Arc::new(move |read, length| {
            if let Some(length) = length.filter(|_| bar.length().is_none()) {
                bar.set_style(style("{msg}  [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec})"));
                bar.set_length(length);
            }
            bar.set_position(read);
            if Some(read) == length {
                bar.set_style(style("{spinner} {msg}  writing to the disk"));
                bar.tick();
            }
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are those above; a mistake in one would show the default bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
