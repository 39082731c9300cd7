//! Takes away everything that this room made on a machine, by the kernel's state alone: no process of edge has to run, and it
//! does not matter what a crash, or an earlier attempt, has left.
//!
//! What is ours is known by its name and kind (links), by its number (routes), by its table's name (packet filter), or by where
//! it is pinned (namespaces). Forwarding stays switched on: others on the machine may have come to depend on it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::netlink::Socket;
use crate::{BRIDGE, DNS_LINK, Error, link, nft, peers, pod};

/// Removes the pods' namespaces below `run_dir` (see [`crate::NodeConfig::run_dir`]), all links, routes, neighbours and packet
/// filter tables that edge made, and the pods' leases. Pods should have ended before. Call it again after an error.
///
/// # Errors
/// The first error; everything else is removed nevertheless.
pub fn tear_down(run_dir: &Path) -> Result<(), Error> {
    let mut socket = Socket::route()?;
    // pods' links first: they are known by the bridge they hang on
    let mut result = pod::delete_links_but(&mut socket, &BTreeSet::new());
    result = result.and(delete_namespaces(&run_dir.join("netns")));
    result = result.and(peers::clean_up(&mut socket));
    for name in [BRIDGE, DNS_LINK] {
        result = result.and(match link::find_kind(&mut socket, name, "bridge") {
            Ok(Some(_)) => link::delete(&mut socket, name),
            Ok(None) => Ok(()),
            // somebody else's link has that name
            Err(error) => Err(error),
        });
    }
    result = result.and(nft::delete_all());
    let leases = run_dir.join("leases");
    let removed = edge_sys::fsutil::remove_dir_all_if_exists(&leases);
    result.and(removed.map_err(|source| Error::file(leases, source)))
}

fn delete_namespaces(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::file(dir, source);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    let mut result = Ok(());
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let deleted = edge_sys::netns::delete(&path).map_err(|source| Error::file(path, source));
        result = result.and(deleted);
    }
    result
}
