//! Which snapshots are kept: so many of the last, and the last of so many hours, days, weeks, months and years.

use std::collections::HashSet;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

use crate::name::Id;

/// How many are kept by each rule; 0 where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Of the newest.
    pub last: u32,
    /// Of the hours that have one, the newest of each.
    pub hourly: u32,
    /// Of such days.
    pub daily: u32,
    /// Of such weeks, which begin on Monday.
    pub weekly: u32,
    /// Of such months.
    pub monthly: u32,
    /// Of such years.
    pub yearly: u32,
}

impl Retention {
    /// There is no rule.
    pub fn is_empty(&self) -> bool {
        *self == Retention::default()
    }

    /// Those of `snapshots` that a rule keeps. Periods are those of the clocks in `zone`; one without a snapshot does not
    /// count.
    pub fn choose(&self, snapshots: impl IntoIterator<Item = (Id, Timestamp)>, zone: &TimeZone) -> HashSet<Id> {
        let mut newest_first: Vec<(Id, ZonedDateTime)> =
            snapshots.into_iter().map(|(id, created)| (id, created.to_zoned_datetime(zone.clone()))).collect();
        newest_first.sort_by(|(a_id, a), (b_id, b)| b.timestamp().cmp(&a.timestamp()).then(a_id.cmp(b_id)));
        let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        let mut kept: HashSet<Id> = newest_first.iter().take(count(self.last)).map(|(id, _)| *id).collect();
        for (most, period) in [
            (self.hourly, hour as fn(&ZonedDateTime) -> [i64; 3]),
            (self.daily, day),
            (self.weekly, week),
            (self.monthly, month),
            (self.yearly, year),
        ] {
            let mut seen = None;
            let first_of_each = newest_first.iter().filter(|(_, created)| {
                let now = Some(period(created));
                let first = now != seen;
                seen = now;
                first
            });
            kept.extend(first_of_each.take(count(most)).map(|(id, _)| *id));
        }
        kept
    }
}

/// Each hour for itself, of the two by one name when the clocks are set back, too.
fn hour(time: &ZonedDateTime) -> [i64; 3] {
    let [year, day, _] = day(time);
    [year, day, i64::from(time.hour()) * 1_000_000 + i64::from(time.offset().seconds())]
}

fn day(time: &ZonedDateTime) -> [i64; 3] {
    [i64::from(time.year()), i64::from(time.day_of_year()), 0]
}

fn week(time: &ZonedDateTime) -> [i64; 3] {
    let week = time.date().iso_week_date();
    [i64::from(week.year()), i64::from(week.week()), 0]
}

fn month(time: &ZonedDateTime) -> [i64; 3] {
    [i64::from(time.year()), i64::from(time.month()), 0]
}

fn year(time: &ZonedDateTime) -> [i64; 3] {
    [i64::from(time.year()), 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of snapshots made at these times in the zone, as their times.
    fn kept<'a>(keep: Retention, zone: &str, times: &[&'a str]) -> Vec<&'a str> {
        let zone = TimeZone::posix(zone).expect("a zone");
        let id = |nth: usize| Id::from_bytes([u8::try_from(nth).expect("few"); 32]);
        let created = |text: &str| text.parse::<Timestamp>().expect(text);
        let all = times.iter().enumerate().map(|(nth, text)| (id(nth), created(text)));
        let chosen = keep.choose(all, &zone);
        times.iter().enumerate().filter(|(nth, _)| chosen.contains(&id(*nth))).map(|(_, text)| *text).collect()
    }

    const TIMES: [&str; 7] = [
        "2026-03-02T10:50:00Z", // a Monday
        "2026-03-02T10:10:00Z",
        "2026-03-02T09:59:00Z",
        "2026-03-01T23:30:00Z", // a Sunday
        "2026-02-27T12:00:00Z",
        "2026-02-20T12:00:00Z",
        "2025-12-31T12:00:00Z",
    ];

    #[test]
    fn no_rule_keeps_none() {
        assert!(Retention::default().is_empty());
        assert!(kept(Retention::default(), "UTC0", &TIMES).is_empty());
        assert!(!Retention { yearly: 1, ..Retention::default() }.is_empty());
        assert!(kept(Retention { last: 3, ..Retention::default() }, "UTC0", &[]).is_empty());
    }

    #[test]
    fn each_rule_keeps_the_newest_of_its_periods() {
        let of = |keep| kept(keep, "UTC0", &TIMES);
        let none = Retention::default();
        assert_eq!(of(Retention { last: 2, ..none }), TIMES[..2]);
        assert_eq!(of(Retention { last: 99, ..none }), TIMES);
        assert_eq!(of(Retention { hourly: 2, ..none }), [TIMES[0], TIMES[2]]);
        assert_eq!(of(Retention { daily: 3, ..none }), [TIMES[0], TIMES[3], TIMES[4]]);
        assert_eq!(of(Retention { weekly: 2, ..none }), [TIMES[0], TIMES[3]]);
        assert_eq!(of(Retention { monthly: 9, ..none }), [TIMES[0], TIMES[4], TIMES[6]]);
        assert_eq!(of(Retention { yearly: 2, ..none }), [TIMES[0], TIMES[6]]);
    }

    #[test]
    fn what_any_rule_keeps_is_kept() {
        let keep = Retention { last: 1, daily: 2, yearly: 2, ..Retention::default() };
        assert_eq!(kept(keep, "UTC0", &TIMES), [TIMES[0], TIMES[3], TIMES[6]]);
    }

    #[test]
    fn the_order_in_which_they_are_told_does_not_matter() {
        let mut turned = TIMES;
        turned.reverse();
        let mut kept = kept(Retention { daily: 3, ..Retention::default() }, "UTC0", &turned);
        kept.reverse();
        assert_eq!(kept, [TIMES[0], TIMES[3], TIMES[4]]);
    }

    #[test]
    fn periods_are_those_of_the_clock_on_the_wall() {
        // An hour before midnight in London is a quarter past noon, the next day, on the Chatham Islands.
        let days = |zone| {
            kept(
                Retention { daily: 9, ..Retention::default() },
                zone,
                &["2026-03-02T01:00:00Z", "2026-03-01T23:00:00Z"],
            )
        };
        assert_eq!(days("UTC0").len(), 2);
        assert_eq!(days("<+1245>-12:45").len(), 1);
        // The last week of a year is perhaps the first of the next.
        let weeks = ["2026-01-01T12:00:00Z", "2025-12-29T12:00:00Z", "2025-12-28T12:00:00Z"];
        assert_eq!(kept(Retention { weekly: 9, ..Retention::default() }, "UTC0", &weeks), [weeks[0], weeks[2]]);
        // 02:30 comes twice on 25 October 2026 in Berlin.
        let twice = ["2026-10-25T01:30:00Z", "2026-10-25T00:30:00Z"];
        assert_eq!(kept(Retention { hourly: 9, ..Retention::default() }, "CET-1CEST,M3.5.0,M10.5.0/3", &twice), twice);
    }
}
