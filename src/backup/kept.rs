//! The backups of a schedule: their names, and how many are kept.

use crate::error::{Result, at};
use jiff::Timestamp;
use std::fs;
use std::path::{Path, PathBuf};

const ENDING: &str = ".edge-backup";

/// The name of a scheduled backup, without a directory. Names of one node are in the order of their times.
pub fn file_name(node: &str, time: Timestamp) -> String {
    format!("{node}-{}{ENDING}", time.strftime("%Y%m%dT%H%M%SZ"))
}

/// Removes the oldest scheduled backups of a node, until only so many are left; gives those that went. Other files are not touched.
///
/// # Errors
/// When the directory cannot be read, or a file not be removed.
pub fn retain(directory: &Path, node: &str, keep: usize) -> Result<Vec<PathBuf>> {
    let mut own: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let entry = entry.map_err(at(directory))?;
        if entry.file_name().to_str().is_some_and(|name| is_scheduled(name, node)) {
            own.push(entry.path());
        }
    }
    own.sort();
    own.truncate(own.len().saturating_sub(keep));
    for path in &own {
        edge_sys::fsutil::remove_file_if_exists(path).map_err(at(path))?;
    }
    Ok(own)
}

/// Whether a file is a scheduled backup of this node, not of one whose name begins the same.
fn is_scheduled(name: &str, node: &str) -> bool {
    let time = name.strip_prefix(node).and_then(|n| n.strip_prefix('-')).and_then(|n| n.strip_suffix(ENDING));
    time.is_some_and(|t| {
        t.len() == 16
            && t.bytes().enumerate().all(|(i, b)| matches!((i, b), (8, b'T') | (15, b'Z')) || b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let names: Vec<String> = [5, 1, 3, 4].map(|day| file_name("pi", at(day * 86_400))).to_vec();
        let others =
            [file_name("pi-2", at(0)), "pi-notes.edge-backup".into(), "pi-20260101T000000Z.edge-backup.txt".into()];
        for name in names.iter().chain(&others) {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let gone = retain(dir.path(), "pi", 2).unwrap();
        assert_eq!(gone, [dir.path().join(&names[1]), dir.path().join(&names[2])]);
        let mut left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        let mut expected = [&names[..1], &names[3..], &others].concat();
        expected.sort();
        assert_eq!(left, expected);
        assert!(retain(dir.path(), "pi", 2).unwrap().is_empty());
    }
}
