//! Lengths of time in flags.

use std::time::Duration;

/// Reads a time such as `24h`, `1h30m`, `90s`, `2d` or `0`.
pub(crate) fn parse_time(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|n| *n > 0)?;
        let (number, tail) = rest.split_at(digits);
        let unit = match tail.chars().next()? {
            'd' => 24 * 60 * 60,
            'h' => 60 * 60,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = &tail[1..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [("24h", 86400), ("1h30m", 5400), ("90s", 90), ("2d", 172_800), ("0", 0)] {
            assert_eq!(parse_time(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "h", "1", "-1h", "1x", "99999999999999999999h"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}
