//! Kernel parameters under `/proc/sys/net`, of the network namespace of the calling thread.

use std::fs;
use std::io;
use std::path::Path;

use crate::Error;

/// Makes sure that a parameter (a path below `/proc/sys/net`) has a value.
pub(crate) fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net").join(name);
    // Reading first: where /proc/sys is read-only, a value that is right already is no error.
    if fs::read_to_string(&path).is_ok_and(|current| current.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| Error::file(path, source))
}

/// As [`set`], for a parameter that a kernel may lack or not let us change, and that is only an improvement.
pub(crate) fn set_if_possible(name: &str, value: &str) {
    match set(name, value) {
        Ok(()) => {}
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(parameter = name, value, %error, "kernel parameter not set"),
    }
}
