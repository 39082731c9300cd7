//! Parts of moments and of lengths of time.

use super::{Context, Function, member, text};
use crate::error::Error;
use crate::value::Value;
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

const OF_TIME: &[&str] = &["timestamp : int", "timestamp string : int"];
const OF_BOTH: &[&str] = &["timestamp : int", "timestamp string : int", "duration : int"];

pub(super) static FUNCTIONS: &[Function] = &[
    member("getFullYear", OF_TIME, |_, a| part(a, |z| z.year().into(), None)),
    member("getMonth", OF_TIME, |_, a| part(a, |z| i64::from(z.month()) - 1, None)),
    member("getDate", OF_TIME, |_, a| part(a, |z| z.day().into(), None)),
    member("getDayOfMonth", OF_TIME, |_, a| part(a, |z| i64::from(z.day()) - 1, None)),
    member("getDayOfYear", OF_TIME, |_, a| part(a, |z| i64::from(z.day_of_year()) - 1, None)),
    member("getDayOfWeek", OF_TIME, |_, a| part(a, |z| z.weekday().to_sunday_zero_offset().into(), None)),
    member("getHours", OF_BOTH, |_, a| part(a, |z| z.hour().into(), Some(3_600_000_000_000))),
    member("getMinutes", OF_BOTH, |_, a| part(a, |z| z.minute().into(), Some(60_000_000_000))),
    member("getSeconds", OF_BOTH, |_, a| part(a, |z| z.second().into(), Some(1_000_000_000))),
    member("getMilliseconds", OF_BOTH, milliseconds),
];

fn part<'a>(a: &[Value<'a>], of: fn(&Zoned) -> i64, nanos: Option<i64>) -> Result<Value<'a>, Error> {
    match (a.first(), nanos) {
        (Some(Value::Duration(d)), Some(nanos)) => Ok(Value::Int(d / nanos)),
        (Some(Value::Timestamp(t)), _) => Ok(Value::Int(of(&zoned(*t, a)?))),
        _ => Err(Error::no_overload()),
    }
}

fn milliseconds<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match a.first() {
        Some(Value::Duration(d)) => Ok(Value::Int(d / 1_000_000 % 1000)),
        _ => part(a, |z| z.millisecond().into(), None),
    }
}

/// A moment in a zone: a name, or an offset such as `-08:00`.
fn zoned(time: Timestamp, a: &[Value<'_>]) -> Result<Zoned, Error> {
    if a.len() < 2 {
        return Ok(time.to_zoned(TimeZone::UTC));
    }
    let name = &**text(a, 1)?;
    let zone = match name.split_once(':') {
        None => TimeZone::get(name).ok(),
        Some((hours, minutes)) => offset(hours, minutes),
    };
    zone.map(|zone| time.to_zoned(zone)).ok_or_else(|| Error::new(format!("unknown time zone {name}")))
}

fn offset(hours: &str, minutes: &str) -> Option<TimeZone> {
    let sign = if hours.starts_with('-') { -1 } else { 1 };
    let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok().filter(|h| (0..24).contains(h))?;
    let minutes: i32 = minutes.parse().ok().filter(|m| (0..60).contains(m))?;
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok().map(TimeZone::fixed)
}
