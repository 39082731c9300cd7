//! What is printed, and how.

use crate::error::Error;
use serde_json::Value;
use std::io::{self, Write};

/// Writes a line. Nobody has to read it to the end.
pub(crate) fn line(text: &str) -> Result<(), Error> {
    raw(&format!("{text}\n"))
}

/// Writes a text.
pub(crate) fn raw(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `| head` has seen enough
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Rows as columns, as kubectl spaces them.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|c| rows.iter().map(|r| r.get(c).map_or(0, |cell| cell.chars().count())).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("   ").trim_end();
        text.push('\n');
    }
    text
}

/// A value in a cell.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".into(),
        Value::String(text) if text.is_empty() => "<none>".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// An object as YAML.
pub(crate) fn yaml(value: &Value) -> Result<String, Error> {
    serde_yaml_ng::to_string(value).map_err(|e| Error::Usage(e.to_string()))
}

/// How long something is, as kubectl says it: the two largest units of what is not too long.
pub(crate) fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let two = |large: i64, l: &str, rest: i64, small: i64, s: &str| {
        let rest = rest / small;
        if rest == 0 { format!("{large}{l}") } else { format!("{large}{l}{rest}{s}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(seconds / 60, "m", seconds % 60, 1, "s"),
        600..10_800 => format!("{}m", seconds / 60),
        10_800..28_800 => two(seconds / 3600, "h", seconds % 3600, 60, "m"),
        28_800..172_800 => format!("{}h", seconds / 3600),
        172_800..691_200 => two(seconds / 86_400, "d", seconds % 86_400, 3600, "h"),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_ages() {
        let rows = [["NAME", "AGE"], ["a-long-name", "5s"]].map(|r| r.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "NAME          AGE\na-long-name   5s\n");
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (125, "2m5s"),
            (120, "2m"),
            (900, "15m"),
            (11_000, "3h3m"),
            (90_000, "25h"),
            (200_000, "2d7h"),
            (900_000, "10d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
