//! A report as a picture: for each operation a row for each contender, its histogram over one logarithmic axis of time.
//!
//! Plain SVG without scripts or fonts of its own. Its colours follow the reader's scheme, and tell the contenders apart for
//! those who see fewer of them (Okabe and Ito's).

use std::fmt::Write;
use std::time::Duration;

use super::stats::{rate_text, round_time_text, time_text};
use super::{Report, Scale, Series};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Where the axis of time begins and ends.
const LEFT: f64 = 176.0;
const RIGHT: f64 = 650.0;
/// The right ends of the columns of figures.
const COLUMNS: [(&str, f64); 4] = [("p50", 726.0), ("p90", 796.0), ("p99", 866.0), ("per s", 936.0)];
/// Of a row, and of the highest bar in it.
const ROW: f64 = 38.0;
const BAR: f64 = 30.0;
/// Of a line of text.
const LINE: f64 = 17.0;
/// Parts of the axis in which samples are counted.
const BUCKETS: usize = 72;
/// Characters of small text in a line, at least.
const LINE_LENGTH: usize = 140;

const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:12px;fill:#1f2328}\
.title{font-size:19px;font-weight:600}.operation{font-size:14px;font-weight:600}.small{fill:#59636e}\
.figure{text-anchor:end;font-variant-numeric:tabular-nums}.mark{text-anchor:middle}.ours{font-weight:600}\
.page{fill:#fff}.grid{stroke:#d1d9e0}.base{stroke:#8c959f}.p50{stroke:#1f2328;stroke-width:2}\
.p99{stroke:#1f2328;stroke-dasharray:2 2}\
.c0{fill:#0072b2}.c1{fill:#56b4e9}.c2{fill:#d55e00}.c3{fill:#e69f00}.c4{fill:#009e73}.c5{fill:#cc79a7}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.page{fill:#0d1117}.grid{stroke:#30363d}\
.base{stroke:#656c76}.p50,.p99{stroke:#f0f6fc}.c0{fill:#3a9fe0}}";

/// The report as an SVG document.
pub fn svg(report: &Report) -> String {
    let mut picture = Picture { body: String::new(), y: MARGIN + 14.0 };
    picture.text(MARGIN, "title", &report.title);
    picture.y += 6.0;
    for line in report.conditions.iter().chain(&report.machine.lines()) {
        for part in wrapped(line, LINE_LENGTH) {
            picture.y += LINE;
            picture.text(MARGIN, "small", &part);
        }
    }
    let scale = report.scale();
    let contenders = contenders(report);
    for operation in report.operations() {
        picture.operation(operation, &report.of(operation).collect::<Vec<_>>(), scale, &contenders);
    }
    picture.y += LINE;
    picture.text(
        LEFT,
        "small",
        "time for each, logarithmic · height: share of the samples · solid line: p50, dashed: p99",
    );
    let height = picture.y + MARGIN;
    let title = escaped(&report.title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n{}</svg>\n",
        picture.body
    )
}

/// Those that are in the report, each once: their places are their colours.
fn contenders(report: &Report) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for series in &report.series {
        if !names.contains(&series.contender.as_str()) {
            names.push(&series.contender);
        }
    }
    names
}

struct Picture {
    body: String,
    /// The base line of what comes next.
    y: f64,
}

impl Picture {
    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = writeln!(self.body, "{element}");
    }

    fn text(&mut self, x: f64, class: &str, text: &str) {
        let y = self.y;
        self.add(format_args!("<text x=\"{x}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escaped(text)));
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>"));
    }

    /// A heading, the grid with its marks, and a row for each contender.
    fn operation(&mut self, word: &str, rows: &[&Series], scale: Scale, contenders: &[&str]) {
        self.y += 34.0;
        self.text(MARGIN, "operation", word);
        for (title, x) in COLUMNS {
            self.text(x, "small figure", title);
        }
        let (top, bottom) = (self.y + 6.0, self.y + 6.0 + ROW * rows.len() as f64);
        for (place, _) in scale.marks() {
            self.line("grid", (across(place), top), (across(place), bottom));
        }
        for series in rows {
            self.y += ROW;
            let colour = contenders.iter().position(|name| *name == series.contender).unwrap_or(0) % 6;
            self.row(series, scale, colour);
        }
        self.y = bottom + LINE;
        for (place, label) in labels(scale) {
            self.text(across(place), "small mark", &label);
        }
    }

    fn row(&mut self, series: &Series, scale: Scale, colour: usize) {
        let base = self.y + 6.0;
        self.y = base - 10.0;
        self.text(MARGIN, if colour == 0 { "ours" } else { "" }, &series.contender);
        let samples = &series.samples;
        let figures = [50, 90, 99].map(|percent| time_text(samples.percentile(percent)));
        let figures = figures.into_iter().chain([rate_text(series.per_second())]);
        for ((_, x), figure) in COLUMNS.into_iter().zip(figures) {
            self.text(x, "figure", &figure);
        }
        self.line("base", (LEFT, base), (RIGHT, base));
        let counts = samples.histogram(scale, BUCKETS);
        let most = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
        let mut path = String::new();
        for (bucket, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let (x, width) = (across(bucket as f64 / BUCKETS as f64), (RIGHT - LEFT) / BUCKETS as f64);
            // One sample of many is to be seen, too.
            let height = (count as f64 / most * BAR).max(1.5);
            let _ = write!(path, "M{x:.1} {base:.1}v-{height:.1}h{width:.1}v{height:.1}z");
        }
        self.add(format_args!("<path class=\"c{colour}\" d=\"{path}\"/>"));
        for (class, percent) in [("p50", 50), ("p99", 99)] {
            let x = across(scale.position(samples.percentile(percent)));
            self.line(class, (x, base), (x, base - BAR - 2.0));
        }
        self.y = base - 6.0;
    }
}

fn across(place: f64) -> f64 {
    LEFT + place * (RIGHT - LEFT)
}

/// The marks that have room for what is written below them.
fn labels(scale: Scale) -> Vec<(f64, String)> {
    const ROOM: f64 = 48.0;
    let power_of_ten = |time: Duration| {
        let power = time.as_secs_f64().log10();
        (power - power.round()).abs() < 1e-6
    };
    let mut marks = scale.marks();
    // Powers of ten come first, and whatever is too near to one that is there is left out.
    marks.sort_by_key(|(_, time)| !power_of_ten(*time));
    let mut labels: Vec<(f64, String)> = Vec::new();
    for (place, time) in marks {
        if labels.iter().all(|(there, _)| (across(*there) - across(place)).abs() >= ROOM) {
            labels.push((place, round_time_text(time)));
        }
    }
    labels
}

/// Parts of a line that are not longer than this, unless a word is.
fn wrapped(line: &str, length: usize) -> Vec<String> {
    let mut parts: Vec<String> = vec![String::new()];
    for word in line.split(' ') {
        match parts.last_mut() {
            Some(part) if part.is_empty() => part.push_str(word),
            Some(part) if part.chars().count() + 1 + word.chars().count() <= length => {
                part.push(' ');
                part.push_str(word);
            }
            _ => parts.push(word.to_string()),
        }
    }
    parts
}

/// Text of XML: without what is markup, and without the controls that XML has not (section 2.2).
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Machine, Samples};

    fn report() -> Report {
        let series = |contender: &str, operation, milliseconds: &[u64]| Series {
            contender: contender.to_string(),
            operation,
            samples: Samples::new(milliseconds.iter().map(|ms| Duration::from_millis(*ms)).collect()).expect("some"),
            wall: Duration::from_secs(1),
        };
        Report {
            title: "a <b> & \"c\" \u{1}".to_string(),
            conditions: vec!["one at a time".to_string()],
            machine: Machine {
                program: "tupper".to_string(),
                kernel: "Linux 6.1 x86_64".to_string(),
                processor: "A CPU & more".to_string(),
                processors: 2,
                memory: 4 << 30,
                device: "/dev/vda".to_string(),
                mount_options: vec!["rw".to_string(), "noatime".to_string()],
                node_size: 8192,
                size: 8 << 30,
            },
            series: vec![
                series("tupper, a call", "create", &[4, 5, 6, 7, 40]),
                series("cp -a", "create", &[400, 500]),
                series("tupper, a call", "remove", &[1, 1, 1]),
                series("cp -a", "remove", &[90, 100]),
            ],
        }
    }

    #[test]
    fn text_cannot_be_markup() {
        assert_eq!(escaped("a <b> & \"c\"\u{1}\n"), "a &lt;b&gt; &amp; &quot;c&quot;\u{fffd}\u{fffd}");
        let svg = svg(&report());
        assert!(svg.contains("<title>a &lt;b&gt; &amp;"), "{svg}");
        assert!(!svg.contains("<b>") && !svg.contains('\u{1}'), "{svg}");
    }

    #[test]
    fn it_has_axis_units_machine_and_a_row_for_each() {
        let svg = svg(&report());
        for text in
            ["A CPU &amp; more", "8 KiB nodes", "noatime", ">create<", ">remove<", ">1 ms<", ">10 ms<", "logarithmic"]
        {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert_eq!(svg.matches("<path").count(), 4);
        assert_eq!(svg.matches(">cp -a<").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn labels_do_not_touch() {
        let samples = Samples::new(vec![Duration::from_nanos(3), Duration::from_secs(90)]).expect("some");
        let mut labels = labels(Scale::of([&samples]));
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(labels.len() >= 4, "{labels:?}");
        assert!(labels.windows(2).all(|pair| across(pair[1].0) - across(pair[0].0) >= 48.0), "{labels:?}");
        assert_eq!(wrapped("ab cd ef", 5), ["ab cd", "ef"]);
    }
}
