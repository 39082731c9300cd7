//! Timestamps of object metadata.

use jiff::Timestamp;

/// Now, as `metav1.Time` writes it: RFC 3339 in UTC with whole seconds, for instance `2026-11-24T19:00:00Z`.
pub fn now() -> String {
    time(Timestamp::now())
}

/// A point in time as `metav1.Time` writes it (whole seconds, UTC).
pub fn time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A point in time as `metav1.MicroTime` writes it (microseconds, UTC).
pub fn micro_time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads either form; `None` when it is no RFC 3339 time.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let t = parse_time("2026-11-24T19:00:01.25Z").expect("is a time");
        assert_eq!(time(t), "2026-11-24T19:00:01Z");
        assert_eq!(micro_time(t), "2026-11-24T19:00:01.250000Z");
        assert!(parse_time("yesterday").is_none());
    }
}
