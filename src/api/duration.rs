//! `meta/v1` `Duration`: a span of time as text such as `15s` or `1m30.5s`.

const SECOND: u128 = 1_000_000_000;
/// The units, from the largest to the smallest, in nanoseconds.
const UNITS: [(&str, u128); 8] = [
    ("h", 3600 * SECOND),
    ("ms", 1_000_000),
    ("m", 60 * SECOND),
    ("µs", 1_000),
    ("us", 1_000),
    ("μs", 1_000),
    ("ns", 1),
    ("s", SECOND),
];

/// Writes nanoseconds.
pub fn format(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = u128::from(nanos.unsigned_abs());
    let text = match n {
        0 => "0s".to_owned(),
        1..1_000 => format!("{n}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(n, 1_000)),
        1_000_000..SECOND => format!("{}ms", fraction(n, 1_000_000)),
        _ => {
            let (hours, minutes, rest) = (n / (3600 * SECOND), n / (60 * SECOND) % 60, n % (60 * SECOND));
            let seconds = fraction(rest, SECOND);
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, _) => format!("{minutes}m{seconds}s"),
                _ => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// `n` in a unit, exactly and without zeros at the end.
fn fraction(n: u128, unit: u128) -> String {
    let (whole, rest) = (n / unit, n % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    format!("{whole}.{}", format!("{rest:0digits$}").trim_end_matches('0'))
}

/// Reads a text, in nanoseconds (a finer fraction is cut off); `None` when it is no duration or too long a one.
pub fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let (name, unit) = UNITS.iter().find(|(name, _)| tail.starts_with(name))?;
        total = total.checked_add(amount(number, *unit)?)?;
        rest = &tail[name.len()..];
    }
    let total = i64::try_from(total).ok()?;
    Some(if negative { -total } else { total })
}

fn amount(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() > 20 || fraction.contains('.') {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(12)];
    let number = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
    let part = number(fraction)?.checked_mul(unit)? / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    number(whole)?.checked_mul(unit)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (15_000_000_000, "15s"),
            (15_214_000_001, "15.214000001s"),
            (60_000_000_000, "1m0s"),
            (90_500_000_000, "1m30.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (-5_000_000_000, "-5s"),
        ] {
            assert_eq!(format(nanos), text);
            assert_eq!(parse(text), Some(nanos), "{text}");
        }
    }

    #[test]
    fn what_is_read_and_what_is_not() {
        assert_eq!(parse("1h30m"), Some(5_400_000_000_000));
        assert_eq!(parse(".5s"), Some(500_000_000));
        assert_eq!(parse("3us"), Some(3_000));
        assert_eq!(parse("0"), Some(0));
        for bad in ["", "5", "s", "1.2.3s", "-", "1d", "1s5", "99999999999999999999h", "1 s"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
