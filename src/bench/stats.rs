//! What samples come to: percentiles, rates, and histograms on a logarithmic scale of time.

use std::time::Duration;

/// How long each of several runs of one thing took; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Sorts them. None if there are none.
    pub(super) fn new(mut times: Vec<Duration>) -> Option<Samples> {
        times.sort_unstable();
        (!times.is_empty()).then_some(Samples(times))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The shortest.
    pub fn min(&self) -> Duration {
        self.0[0]
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        self.0[self.0.len() - 1]
    }

    /// The arithmetic mean.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.iter().map(Duration::as_secs_f64).sum::<f64>() / self.0.len() as f64)
    }

    /// The shortest time that so many percent of the samples did not exceed (nearest rank): one of the samples, so of few
    /// the 99th percentile is the longest.
    pub fn percentile(&self, percent: u8) -> Duration {
        let rank = (self.0.len() * usize::from(percent)).div_ceil(100);
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    /// How many fall into each of `buckets` parts of the scale.
    pub fn histogram(&self, scale: Scale, buckets: usize) -> Vec<usize> {
        let mut counts = vec![0; buckets];
        for time in &self.0 {
            let bucket = (scale.position(*time) * buckets as f64) as usize;
            counts[bucket.min(buckets - 1)] += 1;
        }
        counts
    }
}

/// A logarithmic axis of time. Its ends are 1, 2 or 5 times a power of ten.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    from: f64,
    to: f64,
}

/// A nanosecond, in seconds: nothing that is measured is shorter.
const LEAST: f64 = 1e-9;

impl Scale {
    /// The shortest axis that holds all of them.
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Samples>) -> Scale {
        let (mut least, mut most) = (f64::INFINITY, LEAST);
        for samples in samples {
            least = least.min(samples.min().as_secs_f64().max(LEAST));
            most = most.max(samples.max().as_secs_f64());
        }
        let least = least.min(most);
        // What divides is a hair off: an end that is just missed is the next one, which holds it, too.
        let from = steps(least).rev().find(|step| *step <= least).unwrap_or(LEAST);
        let to = steps(most).find(|step| *step >= most && *step > from).unwrap_or(most * 10.0);
        Scale { from, to }
    }

    /// Where on the axis a time is, from 0 to 1.
    pub fn position(self, time: Duration) -> f64 {
        self.place(time.as_secs_f64().max(LEAST)).clamp(0.0, 1.0)
    }

    /// Where the axis is marked, from 0 to 1, and with what time.
    pub fn marks(self) -> Vec<(f64, Duration)> {
        let slack = 1.0 + 1e-9;
        let mut marks: Vec<f64> = Vec::new();
        let mut at = self.from;
        while at <= self.to * slack {
            marks.extend(steps(at).filter(|step| *step >= self.from / slack && *step <= self.to * slack));
            at *= 10.0;
        }
        marks.push(self.to);
        marks.sort_by(f64::total_cmp);
        marks.dedup_by(|a, b| *a <= *b * slack);
        marks.into_iter().map(|seconds| (self.place(seconds), Duration::from_secs_f64(seconds))).collect()
    }

    /// The time at a place on the axis.
    pub fn time(self, position: f64) -> Duration {
        Duration::from_secs_f64(self.from * (self.to / self.from).powf(position))
    }

    fn place(self, seconds: f64) -> f64 {
        (seconds / self.from).ln() / (self.to / self.from).ln()
    }
}

/// 1, 2 and 5 times the power of ten that is not above, and 10.
fn steps(seconds: f64) -> impl DoubleEndedIterator<Item = f64> {
    let power = 10f64.powf(seconds.log10().floor());
    [0.5, 1.0, 2.0, 5.0, 10.0].into_iter().map(move |step| step * power)
}

/// A time with a unit and three digits.
pub fn time_text(time: Duration) -> String {
    let nanoseconds = time.as_secs_f64() * 1e9;
    let (value, unit) = match nanoseconds {
        n if n < 999.5 => (n, "ns"),
        n if n < 999.5e3 => (n / 1e3, "µs"),
        n if n < 999.5e6 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A round time, without the digits that say nothing.
pub fn round_time_text(time: Duration) -> String {
    let text = time_text(time);
    match text.split_once(' ') {
        Some((value, unit)) if value.contains('.') => {
            format!("{} {unit}", value.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// How often something happens in a second.
pub fn rate_text(rate: f64) -> String {
    three_digits(rate)
}

fn three_digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples(milliseconds: &[u64]) -> Samples {
        Samples::new(milliseconds.iter().map(|ms| Duration::from_millis(*ms)).collect()).expect("some")
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let hundred = samples(&(1..=100).rev().collect::<Vec<_>>());
        for (percent, expected) in [(0, 1), (1, 1), (50, 50), (90, 90), (99, 99), (100, 100)] {
            assert_eq!(hundred.percentile(percent), Duration::from_millis(expected), "{percent}");
        }
        let three = samples(&[30, 10, 20]);
        assert_eq!((three.percentile(50), three.percentile(99)), (Duration::from_millis(20), three.max()));
        assert_eq!((three.min(), three.mean()), (Duration::from_millis(10), Duration::from_millis(20)));
        assert_eq!(samples(&[7]).percentile(50), Duration::from_millis(7));
        assert_eq!(Samples::new(Vec::new()), None);
    }

    #[test]
    fn a_scale_ends_at_round_times_and_is_marked_at_them() {
        let scale = Scale::of([&samples(&[3, 40]), &samples(&[700])]);
        let marks: Vec<String> = scale.marks().into_iter().map(|(_, time)| time_text(time)).collect();
        let expected = ["2.00 ms", "5.00 ms", "10.0 ms", "20.0 ms", "50.0 ms", "100 ms", "200 ms", "500 ms", "1.00 s"];
        assert_eq!(marks, expected);
        assert_eq!(scale.marks()[0].0, 0.0);
        assert!((scale.marks()[8].0 - 1.0).abs() < 1e-9);
        assert!((scale.time(0.5).as_secs_f64() - (0.002f64 * 1.0).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn one_sample_has_a_scale_too() {
        for time in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(1), Duration::from_secs(1000)] {
            let one = Samples::new(vec![time]).expect("some");
            let scale = Scale::of([&one]);
            assert!(scale.to > scale.from, "{scale:?}");
            assert_eq!(one.histogram(scale, 8).iter().sum::<usize>(), 1);
            assert!(scale.marks().len() >= 2, "{scale:?}");
        }
    }

    #[test]
    fn times_have_three_digits() {
        for (nanoseconds, text) in [
            (0, "0.00 ns"),
            (999, "999 ns"),
            (1000, "1.00 µs"),
            (12_340, "12.3 µs"),
            (999_600, "1.00 ms"),
            (5_120_000, "5.12 ms"),
            (159_400_000, "159 ms"),
            (61_000_000_000, "61.0 s"),
        ] {
            assert_eq!(time_text(Duration::from_nanos(nanoseconds)), text);
        }
        assert_eq!([1, 20, 500].map(|ms| round_time_text(Duration::from_millis(ms))), ["1 ms", "20 ms", "500 ms"]);
    }

    proptest! {
        #[test]
        fn every_sample_is_in_the_histogram_at_its_place(times in prop::collection::vec(0u64..10_000_000_000, 1..50)) {
            let samples = Samples::new(times.into_iter().map(Duration::from_nanos).collect()).expect("some");
            let scale = Scale::of([&samples]);
            let counts = samples.histogram(scale, 16);
            prop_assert_eq!(counts.iter().sum::<usize>(), samples.count());
            let first = counts.iter().position(|count| *count > 0).expect("one");
            // The first bucket that is not empty holds the shortest.
            prop_assert!(scale.time((first + 1) as f64 / 16.0).as_secs_f64() >= samples.min().as_secs_f64() * 0.999_999);
            prop_assert!(scale.marks().windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }
}
