//! A progress bar on standard error, when that is a terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tupper::image::{LayerProgress, Progress, Step};
use tupper::transport::registry::{PushProgress, PushStep};

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

/// A bar for each layer of an image that is read, beside each other. They disappear when the image is there.
pub(super) struct LayerBars {
    /// Nothing when nobody would see them.
    all: Option<MultiProgress>,
}

impl LayerBars {
    pub(super) fn new(quiet: bool) -> LayerBars {
        LayerBars { all: (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new) }
    }

    /// What the library calls for the layers of one image.
    pub(super) fn callback(&self) -> LayerProgress {
        let Some(all) = self.all.clone() else { return Arc::new(|_, _| {}) };
        let bars: Mutex<BTreeMap<usize, ProgressBar>> = Mutex::new(BTreeMap::new());
        Arc::new(move |number, step| {
            let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            let bar = bars.entry(number).or_insert_with(|| {
                let bar = ProgressBar::no_length().with_message(format!("layer {}", number + 1));
                bar.set_style(style("{spinner} {msg:10} {bytes} ({bytes_per_sec})"));
                all.add(bar)
            });
            match step {
                Step::There => {
                    bar.set_style(style("  {msg:10} is here already"));
                    bar.finish();
                }
                Step::Read(read, length) => {
                    if let Some(length) = length.filter(|_| bar.length().is_none()) {
                        bar.set_style(style("  {msg:10} [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec})"));
                        bar.set_length(length);
                    }
                    bar.set_position(read);
                }
                Step::Unpacked => {
                    bar.set_style(style("  {msg:10} unpacked, {bytes}"));
                    bar.finish();
                }
            }
        })
    }

    /// What the library calls for the layers of an image that is pushed.
    pub(super) fn push_callback(&self) -> PushProgress {
        let Some(all) = self.all.clone() else { return Arc::new(|_, _| {}) };
        let bars: Mutex<BTreeMap<usize, ProgressBar>> = Mutex::new(BTreeMap::new());
        Arc::new(move |number, step| {
            let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
            let bar = bars.entry(number).or_insert_with(|| {
                let bar = ProgressBar::no_length().with_message(format!("layer {}", number + 1));
                bar.set_style(style("{spinner} {msg:10} {bytes} ({bytes_per_sec})"));
                all.add(bar)
            });
            let done = match step {
                PushStep::Read(read, size) => {
                    if let Some(size) = size.filter(|_| bar.length().is_none()) {
                        bar.set_style(style("  {msg:10} [{bar:30}] {bytes}/{total_bytes} ({bytes_per_sec})"));
                        bar.set_length(size);
                    }
                    return bar.set_position(read);
                }
                PushStep::There => "  {msg:10} is there already",
                PushStep::Mounted => "  {msg:10} is in another repository there",
                PushStep::Sent => "  {msg:10} pushed, {bytes}",
            };
            bar.set_style(style(done));
            bar.finish();
        })
    }

    /// Takes all bars away, so that a line of output has the place.
    pub(super) fn clear(&self) {
        if let Some(all) = &self.all {
            // What cannot be drawn cannot be taken away.
            let _ = all.clear();
        }
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
