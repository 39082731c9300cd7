//! Capabilities of a container: the default set, what is added and dropped, and what this process can give at all.

use std::str::FromStr;

use libcontainer::capabilities::CapabilityExt;
use libcontainer::oci_spec::runtime::{Capabilities, Capability};

use crate::error::{Error, Result};
use crate::spec::Security;

/// What containers hold unless told otherwise, in every container engine.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// All capabilities Linux knows.
const ALL: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// The names (without `CAP_`, sorted) of the capabilities a container gets.
///
/// # Errors
/// [`Error::InvalidSpec`] for a name Linux does not know.
pub(crate) fn names(security: &Security) -> Result<Vec<String>> {
    let mut names: Vec<&str> = if security.privileged { ALL.to_vec() } else { DEFAULT.to_vec() };
    let added = plain_names(&security.add_capabilities)?;
    let dropped = plain_names(&security.drop_capabilities)?;
    if !security.privileged {
        // "ALL" first, then the single ones, so that "drop ALL, add X" gives X and "add ALL, drop X" all but X.
        if added.iter().any(|name| name == "ALL") {
            names = ALL.to_vec();
        }
        if dropped.iter().any(|name| name == "ALL") {
            names.clear();
        }
        names.retain(|name| !dropped.iter().any(|dropped| dropped == name));
        names.extend(ALL.iter().filter(|name| added.iter().any(|added| added == *name)));
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// The OCI form of `names`, without those this process does not hold itself: it could not give them.
pub(crate) fn effective(names: &[String]) -> Capabilities {
    let own = own_permitted();
    names
        .iter()
        .filter_map(|name| Capability::from_str(name).ok())
        .filter(|capability| own & (1_u64 << capability.to_cap().index()) != 0)
        .collect()
}

fn plain_names(names: &[String]) -> Result<Vec<String>> {
    names
        .iter()
        .map(|name| {
            let upper = name.to_ascii_uppercase();
            let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if plain == "ALL" || ALL.contains(&plain) {
                Ok(plain.to_owned())
            } else {
                Err(Error::InvalidSpec(format!("unknown capability {name:?}")))
            }
        })
        .collect()
}

/// Our permitted capabilities as the kernel's bit mask; everything when it cannot be read.
fn own_permitted() -> u64 {
    std::fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Vec<String> {
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        names(&Security { add_capabilities: owned(add), drop_capabilities: owned(drop), ..Security::default() })
            .unwrap()
    }

    #[test]
    fn every_name_is_known_to_the_oci_library() {
        assert!(ALL.iter().all(|name| Capability::from_str(name).is_ok()));
        assert!(DEFAULT.iter().all(|name| ALL.contains(name)));
    }

    #[test]
    fn added_and_dropped() {
        assert_eq!(of(&[], &[]).len(), 14);
        assert_eq!(of(&["NET_ADMIN"], &["ALL"]), ["NET_ADMIN"]);
        assert_eq!(of(&["cap_net_admin"], &["CHOWN"]).len(), 14);
        assert_eq!(of(&["ALL"], &[]).len(), 41);
        assert_eq!(of(&["ALL"], &["SYS_ADMIN"]).len(), 40);
        assert!(names(&Security { add_capabilities: vec!["FLY".to_owned()], ..Security::default() }).is_err());
        let privileged =
            Security { privileged: true, drop_capabilities: vec!["ALL".to_owned()], ..Security::default() };
        assert_eq!(names(&privileged).unwrap().len(), 41);
    }
}
