//! A clock that shows another time than the machine's, for one process (libfaketime): machines without a battery begin in
//! 1970, and some are switched on again after years.

use std::fs;
use std::path::{Path, PathBuf};

/// A clock that can be set while its process runs.
pub(crate) struct Clock(PathBuf);

impl Clock {
    /// A clock that is off by `offset`, such as `-27y` or `+0`; its state is kept in a file of this directory.
    pub(crate) fn new(dir: &Path, offset: &str) -> Self {
        let clock = Self(dir.join("clock"));
        clock.set(offset);
        clock
    }

    /// Sets it.
    pub(crate) fn set(&self, offset: &str) {
        let part = self.0.with_extension("part");
        fs::write(&part, format!("{offset}\n")).unwrap();
        fs::rename(part, &self.0).unwrap();
    }

    /// What makes a process use it. What measures time spans (the monotonic clock) is left alone.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/libfaketime.so");
        assert!(library.exists(), "{} is missing: run scripts/setup test", library.display());
        let variables = [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).into()
    }
}
