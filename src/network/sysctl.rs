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

/// Lets the node forward IPv6. The kernel takes a node that forwards for a router, which need not listen to other routers'
/// advertisements: links that learn their addresses and default route from these must be told to go on.
pub(crate) fn forward_ipv6() -> Result<(), Error> {
    const FORWARDING: &str = "ipv6/conf/all/forwarding";
    let read = |name: &str| fs::read_to_string(Path::new("/proc/sys/net").join(name)).unwrap_or_default();
    if read(FORWARDING).trim() == "1" {
        return Ok(());
    }
    for link in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        let accept = format!("ipv6/conf/{name}/accept_ra");
        if name != "all" && read(&accept).trim() == "1" {
            set_if_possible(&accept, "2");
        }
    }
    set(FORWARDING, "1")
}

/// As [`set`], for a parameter that a kernel may lack or not let us change, and that is only an improvement.
pub(crate) fn set_if_possible(name: &str, value: &str) {
    match set(name, value) {
        Ok(()) => {}
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(parameter = name, value, %error, "kernel parameter not set"),
    }
}
