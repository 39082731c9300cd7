//! Cron lines as CronJobs have them: five fields (minute, hour, day of the month, month, day of the week) with `*`, `?`, names,
//! lists, ranges and steps; `@daily` and its like; `@every 1h30m`; and a leading `TZ=Zone`.
//!
//! In: text, a moment and a time zone. Out: the next moment. Where clocks are set forward, times that do not exist are left
//! out; where they are set back, times that exist twice come twice.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned, civil};
use std::time::Duration;

/// Why a line is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// There are more or fewer than five fields.
    #[error("expected exactly 5 fields, found {0}: {1}")]
    Fields(usize, String),
    /// A field has something that is no number, name, range or step.
    #[error("failed to parse {what} from {text}")]
    Syntax {
        /// Which field.
        what: &'static str,
        /// What it has.
        text: String,
    },
    /// A number is outside of its field's bounds.
    #[error("{what}: {text} is not between {least} and {most}")]
    Bounds {
        /// Which field.
        what: &'static str,
        /// What it has.
        text: String,
        /// The least that is possible.
        least: u32,
        /// The most that is possible.
        most: u32,
    },
    /// An unknown word with `@`.
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    /// An interval that is no positive time.
    #[error("failed to parse duration {0}")]
    Interval(String),
    /// A time zone that nobody knows.
    #[error("provided bad location {0}")]
    Zone(String),
}

/// The values of one field, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// Whether it was given as `*` or `?`: then it restricts nothing, which matters for days.
    any: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|v| v < 64 && self.bits & (1 << v) != 0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum When {
    Fields { minute: Field, hour: Field, day: Field, month: Field, weekday: Field },
    Every(Duration),
}

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    when: When,
    zone: Option<TimeZone>,
}

struct Kind {
    what: &'static str,
    least: u32,
    most: u32,
    names: &'static [&'static str],
    first_name: u32,
}

const MINUTE: Kind = Kind { what: "minute", least: 0, most: 59, names: &[], first_name: 0 };
const HOUR: Kind = Kind { what: "hour", least: 0, most: 23, names: &[], first_name: 0 };
const DAY: Kind = Kind { what: "day of month", least: 1, most: 31, names: &[], first_name: 0 };
const MONTH: Kind = Kind {
    what: "month",
    least: 1,
    most: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    first_name: 1,
};
const WEEKDAY: Kind = Kind {
    what: "day of week",
    least: 0,
    most: 6,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    first_name: 0,
};

impl Kind {
    fn field(&self, text: &str) -> Result<Field, CronError> {
        let mut field = Field { bits: 0, any: false };
        for part in text.split(',') {
            let (bits, any) = self.part(part)?;
            field.bits |= bits;
            field.any |= any;
        }
        Ok(field)
    }

    fn part(&self, text: &str) -> Result<(u64, bool), CronError> {
        let syntax = || CronError::Syntax { what: self.what, text: text.to_owned() };
        let (range, step) = match text.split_once('/') {
            None => (text, None),
            Some((range, step)) => (range, Some(step.parse::<u32>().ok().filter(|s| *s > 0).ok_or_else(syntax)?)),
        };
        let any = matches!(range, "*" | "?");
        let (first, last) = match range.split_once('-') {
            _ if any => (self.least, self.most),
            Some((first, last)) => (self.value(first).ok_or_else(syntax)?, self.value(last).ok_or_else(syntax)?),
            None => {
                let only = self.value(range).ok_or_else(syntax)?;
                // `5/15` goes on from 5
                (only, if step.is_some() { self.most } else { only })
            }
        };
        if first < self.least || last > self.most || first > last {
            return Err(CronError::Bounds {
                what: self.what,
                text: text.to_owned(),
                least: self.least,
                most: self.most,
            });
        }
        let mut bits = 0;
        let mut value = first;
        while value <= last {
            bits |= 1 << value;
            value += step.unwrap_or(1);
        }
        Ok((bits, any && step.is_none_or(|s| s == 1)))
    }

    fn value(&self, text: &str) -> Option<u32> {
        let lower = text.to_lowercase();
        if let Some(i) = self.names.iter().position(|n| *n == lower) {
            return Some(self.first_name + u32::try_from(i).ok()?);
        }
        text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
    }
}

/// A time like `1h30m`, as Go writes it.
fn interval(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?)?;
        rest = next;
    }
    // whole seconds, and at least one
    Some(Duration::from_secs(total.as_secs().max(1)))
}

impl Schedule {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let mut text = text.trim();
        let mut zone = None;
        for prefix in ["TZ=", "CRON_TZ="] {
            if let Some(rest) = text.strip_prefix(prefix) {
                let (name, line) = rest.split_once(' ').unwrap_or((rest, ""));
                zone = Some(TimeZone::get(name).map_err(|_| CronError::Zone(name.to_owned()))?);
                text = line.trim();
                break;
            }
        }
        let line = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => match text.strip_prefix("@every ") {
                Some(every) => {
                    let every = interval(every.trim()).ok_or_else(|| CronError::Interval(every.to_owned()))?;
                    return Ok(Self { when: When::Every(every), zone });
                }
                None if text.starts_with('@') => return Err(CronError::Descriptor(text.to_owned())),
                None => text,
            },
        };
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(CronError::Fields(fields.len(), format!("[{}]", fields.join(" "))));
        };
        let when = When::Fields {
            minute: MINUTE.field(minute)?,
            hour: HOUR.field(hour)?,
            day: DAY.field(day)?,
            month: MONTH.field(month)?,
            weekday: WEEKDAY.field(weekday)?,
        };
        Ok(Self { when, zone })
    }

    /// Whether the line itself names a time zone.
    pub fn names_zone(&self) -> bool {
        self.zone.is_some()
    }

    /// The first moment after another; `None` when there is none within five years, as with the 30th of February. `zone` counts
    /// when the line names none itself.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let (minute, hour, day, month, weekday) = match &self.when {
            When::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(SignedDuration::try_from(*every).ok()?).ok();
            }
            When::Fields { minute, hour, day, month, weekday } => (minute, hour, day, month, weekday),
        };
        let zone = self.zone.as_ref().unwrap_or(zone);
        // days may be given by date, by weekday, or (when both are) by either
        let is_day = |d: civil::Date| {
            let by_date = day.has(d.day());
            let by_weekday = weekday.has(d.weekday().to_sunday_zero_offset());
            if day.any || weekday.any { by_date && by_weekday } else { by_date || by_weekday }
        };
        let mut t = after.checked_add(60.seconds()).ok()?.to_zoned(zone.clone());
        t = t.checked_sub(i64::from(t.second()).seconds().nanoseconds(i64::from(t.subsec_nanosecond()))).ok()?;
        let limit = i32::from(t.year()) + 5;
        while i32::from(t.year()) <= limit {
            if !month.has(t.month()) {
                let next = t.date().first_of_month().checked_add(1.month()).ok()?;
                t = start_of(next, zone)?;
            } else if !is_day(t.date()) {
                t = start_of(t.date().tomorrow().ok()?, zone)?;
            } else if !hour.has(t.hour()) {
                // real hours go by, whatever the clocks do
                let past = i64::from(t.minute());
                t = t.checked_add((60 - past).minutes()).ok()?;
            } else if !minute.has(t.minute()) {
                t = t.checked_add(1.minute()).ok()?;
            } else {
                return Some(t.timestamp());
            }
        }
        None
    }
}

impl Schedule {
    /// The last moment after one and not after another; `None` when there is none.
    pub fn latest(&self, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let first = self.next(after, zone).filter(|t| *t <= until)?;
        if let When::Every(every) = &self.when {
            let every = i64::try_from(every.as_secs()).ok()?;
            let rounds = (until.as_second() - first.as_second()) / every;
            return first.checked_add(SignedDuration::from_secs(rounds.checked_mul(every)?)).ok();
        }
        // moments are at least a minute apart, so that halving finds the last one
        let (mut low, mut high) = (after, until);
        while high.as_second() - low.as_second() > 30 {
            let middle = Timestamp::from_second(i64::midpoint(low.as_second(), high.as_second())).ok()?;
            if self.next(middle, zone).is_some_and(|t| t <= until) { low = middle } else { high = middle }
        }
        self.next(low, zone)
    }
}

/// The first moment of a day.
fn start_of(date: civil::Date, zone: &TimeZone) -> Option<Zoned> {
    date.to_zoned(zone.clone()).ok()?.start_of_day().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn next(line: &str, after: &str, zone: &str) -> String {
        let zone = TimeZone::get(zone).unwrap();
        let after: Timestamp = after.parse().unwrap();
        Schedule::parse(line).unwrap().next(after, &zone).map_or("never".into(), |t| t.to_string())
    }

    #[test]
    fn the_next_time() {
        for (line, after, want) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2026-01-01T00:00:59.9Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:14:00Z", "2026-01-01T00:15:00Z"),
            ("*/15 * * * *", "2026-01-01T00:45:00Z", "2026-01-01T01:00:00Z"),
            ("5/20 * * * *", "2026-01-01T00:46:00Z", "2026-01-01T01:05:00Z"),
            ("30 2 * * *", "2026-01-01T02:30:00Z", "2026-01-02T02:30:00Z"),
            ("0 0 1 jan *", "2026-06-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("0 0 31 * *", "2026-02-01T00:00:00Z", "2026-03-31T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 30 2 *", "2026-01-01T00:00:00Z", "never"),
            ("0 12 * * MON-FRI", "2026-01-02T13:00:00Z", "2026-01-05T12:00:00Z"),
            ("0 0 * * sun", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            // both days are given: either will do
            ("0 0 13 * 5", "2026-02-01T00:00:00Z", "2026-02-06T00:00:00Z"),
            ("0 0 13 * 5", "2026-02-06T00:00:00Z", "2026-02-13T00:00:00Z"),
            ("0 0 */2 * 5", "2026-02-01T00:00:00Z", "2026-02-03T00:00:00Z"),
            ("0 0 ? * 1,3", "2026-02-03T00:00:00Z", "2026-02-04T00:00:00Z"),
            ("@hourly", "2026-01-01T00:10:00Z", "2026-01-01T01:00:00Z"),
            ("@weekly", "2026-01-01T00:10:00Z", "2026-01-04T00:00:00Z"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:10.5Z", "2026-01-01T01:30:10Z"),
        ] {
            assert_eq!(next(line, after, "UTC"), want, "{line} after {after}");
        }
    }

    #[test]
    fn the_latest_time() {
        for (line, after, until, want) in [
            ("* * * * *", "2020-01-01T00:00:00Z", "2026-06-01T12:34:56Z", Some("2026-06-01T12:34:00Z")),
            ("0,1 0,6,12 * * *", "2026-01-01T00:01:00Z", "2026-01-01T23:00:00Z", Some("2026-01-01T12:01:00Z")),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z", "2026-12-31T23:59:59Z", None),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", Some("2027-01-01T00:00:00Z")),
            ("@every 7m", "2026-01-01T00:00:01Z", "2026-01-01T01:00:00Z", Some("2026-01-01T00:56:01Z")),
        ] {
            let (after, until): (Timestamp, Timestamp) = (after.parse().unwrap(), until.parse().unwrap());
            let got = Schedule::parse(line).unwrap().latest(after, until, &TimeZone::UTC);
            assert_eq!(got.map(|t| t.to_string()).as_deref(), want, "{line}");
        }
    }

    #[test]
    fn time_zones_and_their_changes() {
        let berlin = "Europe/Berlin";
        assert_eq!(next("0 8 * * *", "2026-01-10T06:00:00Z", berlin), "2026-01-10T07:00:00Z");
        assert_eq!(next("0 8 * * *", "2026-07-10T00:00:00Z", berlin), "2026-07-10T06:00:00Z");
        // 2:30 is left out when clocks go from 2:00 to 3:00, and comes twice when they go back
        assert_eq!(next("30 2 * * *", "2026-03-28T12:00:00Z", berlin), "2026-03-30T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-24T12:00:00Z", berlin), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:30:00Z", berlin), "2026-10-25T01:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T01:30:00Z", berlin), "2026-10-26T01:30:00Z");
        assert_eq!(next("TZ=Asia/Tokyo 0 9 * * *", "2026-01-01T12:00:00Z", berlin), "2026-01-02T00:00:00Z");
        assert!(Schedule::parse("CRON_TZ=Asia/Tokyo 0 9 * * *").unwrap().names_zone());
    }

    #[test]
    fn what_is_no_schedule() {
        for (line, why) in [
            ("", "expected exactly 5 fields, found 0: []"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]"),
            ("60 * * * *", "minute: 60 is not between 0 and 59"),
            ("* * 0 * *", "day of month: 0 is not between 1 and 31"),
            ("* * * * 7", "day of week: 7 is not between 0 and 6"),
            ("* 5-3 * * *", "hour: 5-3 is not between 0 and 23"),
            ("x * * * *", "failed to parse minute from x"),
            ("*/0 * * * *", "failed to parse minute from */0"),
            ("-1 * * * *", "failed to parse minute from -1"),
            ("99999999999 * * * *", "failed to parse minute from 99999999999"),
            ("@sometimes", "unrecognized descriptor: @sometimes"),
            ("@every soon", "failed to parse duration soon"),
            ("TZ=Nowhere/Land * * * * *", "provided bad location Nowhere/Land"),
        ] {
            assert_eq!(Schedule::parse(line).unwrap_err().to_string(), why, "{line}");
        }
    }
}
