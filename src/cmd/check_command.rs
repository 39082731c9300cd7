//! `edge check`: whether this machine has what edge needs, and what to do where it has not. Changes nothing.

use super::report::{self, Check, Output, State};
use clap::Args;
use nix::sys::statfs::{FsType, statfs};
use nix::sys::utsname::uname;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// The oldest kernel: `openat2` came with it.
const KERNEL: (u32, u32) = (5, 6);
/// What the node needs free below its data directory: less, and it is under pressure from the start.
const DISK_PERCENT: u64 = 10;
const DISK_BYTES: u64 = 1 << 30;
/// How many programs in containers may watch files.
const INOTIFY_INSTANCES: u64 = 512;
/// A clock that shows less has never been set: 2025-01-01.
const CLOCK: u64 = 1_735_689_600;
/// File systems on which the writable layer of a container cannot lie, by the kernel's magic numbers.
const UNFIT: [(i64, &str); 5] =
    [(0x794c_7630, "overlay"), (0x6969, "nfs"), (0x4d44, "vfat"), (0x0102_1997, "9p"), (0x6573_5546, "fuse")];

/// `edge check`
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Configuration file of edge, for where things are
    #[arg(long, env = "EDGE_CONFIG_FILE", default_value = "/etc/edge/config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Directory for all state, as edge will be told
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
    data_dir: PathBuf,
    /// Port on which the API will be served; 0 for an agent
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    https_listen_port: u16,
    /// Port of the kubelet
    #[arg(long, default_value_t = 10250, value_name = "PORT")]
    kubelet_port: u16,
    /// Format
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

pub(crate) fn main(args: &CheckArgs) -> ExitCode {
    report::print(&all(args), args.output)
}

fn all(args: &CheckArgs) -> Vec<Check> {
    let root = nix::unistd::geteuid().is_root();
    let mut checks = vec![
        Check::new(
            "root",
            root,
            State::Failure,
            if root { "yes" } else { "no" },
            "run edge as root: it makes namespaces, mounts and links",
        ),
        kernel(),
    ];
    checks.extend(cgroups(Path::new("/sys/fs/cgroup")));
    checks.extend(modules());
    checks.push(inotify());
    checks.push(clock());
    checks.extend(disk(&args.data_dir));
    checks.extend(ports(args));
    checks
}

fn kernel() -> Check {
    let release = uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    let fit = version(&release).is_some_and(|version| version >= KERNEL);
    let (major, minor) = KERNEL;
    Check::new(
        "kernel",
        fit,
        State::Failure,
        release,
        format!("Linux {major}.{minor} or newer is needed: upgrade the system"),
    )
}

/// Major and minor number of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The controllers that limits of pods need.
fn cgroups(root: &Path) -> Vec<Check> {
    let unified = fs::read_to_string(root.join("cgroup.controllers")).ok();
    let layout = if unified.is_some() { "version 2" } else { "version 1" };
    let missing = |name: &str| match &unified {
        Some(list) => !list.split_whitespace().any(|controller| controller == name),
        None => !root.join(name).join("tasks").exists(),
    };
    let memory = match missing("memory") {
        true => {
            "add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line (Raspberry Pi: /boot/firmware/cmdline.txt) and reboot"
        }
        false => "",
    };
    let others: Vec<&str> = ["cpu", "cpuset", "pids"].into_iter().filter(|name| missing(name)).collect();
    vec![
        Check::new(
            "memory cgroup",
            memory.is_empty(),
            State::Failure,
            if memory.is_empty() { format!("cgroup {layout}") } else { format!("missing in cgroup {layout}") },
            memory,
        ),
        Check::new(
            "other cgroups",
            others.is_empty(),
            State::Warning,
            if others.is_empty() { "cpu, cpuset, pids".to_owned() } else { format!("missing: {}", others.join(", ")) },
            "limits that need these do not hold: mount the controllers, or boot with cgroup version 2",
        ),
    ]
}

/// What of the kernel is used, who needs it, and what happens without.
fn modules() -> Vec<Check> {
    let release = uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    let directory = Path::new("/lib/modules").join(release);
    let known =
        ["modules.builtin", "modules.dep"].map(|file| fs::read_to_string(directory.join(file)).unwrap_or_default());
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let is_there = |name: &str| {
        Path::new("/sys/module").join(name).exists()
            || filesystems.split_whitespace().any(|word| word == name)
            || known.iter().any(|list| lists(list, name))
    };
    // without any list the kernel alone knows, and is asked when it matters
    let unknown = known.iter().all(String::is_empty);
    let check = |title: &'static str, names: &[&str], otherwise: State, fix: &str| {
        let missing: Vec<&str> = names.iter().copied().filter(|name| !is_there(name)).collect();
        match (missing.is_empty(), unknown) {
            (false, true) => {
                Check::new(title, true, State::Ok, format!("not known: {} is empty", directory.display()), "")
            }
            (fit, _) => {
                let found = if fit { names.join(", ") } else { format!("the kernel has no {}", missing.join(", ")) };
                Check::new(title, fit, otherwise, found, fix)
            }
        }
    };
    vec![
        check(
            "containers",
            &["overlay"],
            State::Failure,
            "install the kernel's modules (linux-modules-extra on some systems)",
        ),
        check(
            "packet filter",
            &["nf_tables", "nf_conntrack", "nft_chain_nat"],
            State::Failure,
            "install a kernel with nftables: services and policies are made of it",
        ),
        check(
            "pod network",
            &["veth", "bridge"],
            State::Failure,
            "install the kernel's modules: pods are connected by these",
        ),
        check(
            "between nodes",
            &["vxlan"],
            State::Warning,
            "nodes on different networks need it (or --network=wireguard)",
        ),
    ]
}

/// Whether a module is in a list such as `kernel/fs/overlayfs/overlay.ko.xz: …`.
fn lists(list: &str, name: &str) -> bool {
    let of_line = |line: &str| -> Option<String> {
        let path = line.split(':').next()?;
        Some(path.rsplit('/').next()?.split('.').next()?.replace('-', "_"))
    };
    list.lines().any(|line| of_line(line).is_some_and(|module| module == name))
}

fn inotify() -> Check {
    let text = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap_or_default();
    let instances = text.trim().parse::<u64>().unwrap_or(0);
    Check::new(
        "inotify",
        instances >= INOTIFY_INSTANCES,
        State::Warning,
        format!("fs.inotify.max_user_instances = {instances}"),
        "programs in many pods run out of it: `sysctl -w fs.inotify.max_user_instances=8192` (the install script does that)",
    )
}

pub(super) fn clock() -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let shown = i64::try_from(now).ok().and_then(|now| jiff::Timestamp::from_second(now).ok());
    Check::new(
        "clock",
        now >= CLOCK,
        State::Warning,
        shown.map_or_else(String::new, |time| time.to_string()),
        "it has never been set: edge starts, but other machines do not believe it; install an NTP client (systemd-timesyncd, chrony)",
    )
}

pub(super) fn disk(data_dir: &Path) -> Vec<Check> {
    let Some((place, stats)) = data_dir.ancestors().find_map(|place| Some((place, statfs(place).ok()?))) else {
        return Vec::new();
    };
    let block = u64::try_from(stats.block_size()).unwrap_or(0);
    let (free, total) = (stats.blocks_available() * block, stats.blocks() * block);
    let percent = if total == 0 { 0 } else { u128::from(free) * 100 / u128::from(total) };
    let unfit = UNFIT.iter().find(|(magic, _)| stats.filesystem_type() == FsType(*magic as _));
    vec![
        Check::new(
            "disk space",
            free >= DISK_BYTES && percent >= u128::from(DISK_PERCENT),
            State::Warning,
            format!("{} MiB free of {} MiB at {} ({percent} %)", free >> 20, total >> 20, place.display()),
            "below 10 % the node is under disk pressure and takes no pods: make space, or choose another --data-dir",
        ),
        Check::new(
            "file system",
            unfit.is_none(),
            State::Failure,
            unfit.map_or_else(
                || "fit for containers".to_owned(),
                |(_, name)| format!("{} is on {name}", place.display()),
            ),
            "containers' writable layers cannot lie on it: choose a --data-dir on ext4, xfs, btrfs, f2fs or tmpfs",
        ),
    ]
}

/// Ports of this machine that edge opens. While edge itself runs there they are its own.
fn ports(args: &CheckArgs) -> Vec<Check> {
    let lock = fs::read_to_string(args.data_dir.join("run/lock")).unwrap_or_default();
    if let Ok(pid) = lock.trim().parse::<u32>()
        && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "edge")
    {
        return vec![Check::new("ports", true, State::Ok, format!("edge runs already, as process {pid}"), "")];
    }
    let wanted = [("API", args.https_listen_port), ("kubelet", args.kubelet_port)];
    let mut taken: Vec<String> = wanted
        .iter()
        .filter(|(_, port)| *port != 0)
        .filter_map(|(what, port)| {
            Some(format!("{what} {port}/tcp ({})", TcpListener::bind(("0.0.0.0", *port)).err()?))
        })
        .collect();
    taken.extend(UdpSocket::bind(("0.0.0.0", 8472)).err().map(|error| format!("VXLAN 8472/udp ({error})")));
    vec![Check::new(
        "ports",
        taken.is_empty(),
        State::Failure,
        if taken.is_empty() { "free".to_owned() } else { taken.join(", ") },
        "another program has them (another Kubernetes?): stop it, or choose others with --https-listen-port and --kubelet-port",
    )]
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn releases_of_kernels() {
        for (release, want) in [
            ("6.1.0-56-cloud-amd64", Some((6, 1))),
            ("5.4.0", Some((5, 4))),
            ("6.12.25+rpt-rpi-v8", Some((6, 12))),
            ("5.10-rc1", Some((5, 10))),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(version(release), want, "{release}");
        }
    }

    #[test]
    fn lists_of_modules() {
        let list = "kernel/fs/overlayfs/overlay.ko.xz: kernel/lib/x.ko\nkernel/net/netfilter/nft-chain-nat.ko:\n";
        assert!(lists(list, "overlay") && lists(list, "nft_chain_nat"));
        assert!(!lists(list, "x") && !lists(list, "over"));
    }

    #[test]
    fn a_raspberry_pi_without_memory_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpuset cpu io pids\n").unwrap();
        let checks = cgroups(dir.path());
        assert_eq!((checks[0].state, checks[1].state), (State::Failure, State::Ok));
        assert!(checks[0].fix.contains("cgroup_enable=memory"), "{checks:?}");
        fs::write(dir.path().join("cgroup.controllers"), "memory\n").unwrap();
        let checks = cgroups(dir.path());
        assert_eq!((checks[0].state, checks[1].state), (State::Ok, State::Warning));
        assert_eq!(checks[1].found, "missing: cpu, cpuset, pids");
    }
}
