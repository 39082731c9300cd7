//! What the machine is and has: read once at start, from the kernel and a few files.

use crate::eviction::{Signal, Thresholds};
use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nix::sys::statvfs::statvfs;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Bytes that pods do not get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reserved {
    memory: u64,
    disk: u64,
}

/// The machine's facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Processors this process may use.
    pub(crate) cpus: usize,
    /// Memory in bytes.
    pub(crate) memory: u64,
    /// Size in bytes of the file system that holds the agent's state.
    pub(crate) disk: u64,
    /// What must stay free of memory and disk lest the node is under pressure.
    pub(crate) reserved: Reserved,
    /// Bytes of huge pages by their size in the API's notation (`2Mi`).
    pub(crate) hugepages: BTreeMap<String, u64>,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

impl Machine {
    /// Reads the facts; what cannot be read stays empty.
    pub(crate) fn read(agent_dir: &Path, thresholds: &Thresholds) -> Self {
        let machine_id = line("/etc/machine-id");
        let uuid = line("/sys/class/dmi/id/product_uuid");
        let memory = memory_total(&line("/proc/meminfo"));
        let disk = statvfs(agent_dir).map_or(0, |s| s.blocks().saturating_mul(s.fragment_size()));
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory,
            disk,
            reserved: Reserved {
                memory: thresholds.reserved(Signal::Memory, memory),
                disk: thresholds.reserved(Signal::NodeFs, disk),
            },
            hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        }
    }

    /// What the node has.
    pub(crate) fn capacity(&self, max_pods: u32) -> BTreeMap<String, Quantity> {
        self.resources(max_pods, self.memory, self.disk)
    }

    /// What pods can have: all but what must stay free lest the node is under pressure, and memory set aside as huge pages.
    pub(crate) fn allocatable(&self, max_pods: u32) -> BTreeMap<String, Quantity> {
        let huge: u64 = self.hugepages.values().sum();
        let memory = self.memory.saturating_sub(self.reserved.memory.saturating_add(huge));
        self.resources(max_pods, memory, self.disk.saturating_sub(self.reserved.disk))
    }

    fn resources(&self, max_pods: u32, memory: u64, disk: u64) -> BTreeMap<String, Quantity> {
        let mut resources = BTreeMap::from([
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            ("memory".to_owned(), Quantity(format!("{}Ki", memory / 1024))),
            ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", disk / 1024))),
            ("pods".to_owned(), Quantity(max_pods.to_string())),
        ]);
        for (size, bytes) in &self.hugepages {
            resources.insert(format!("hugepages-{size}"), Quantity(bytes.to_string()));
        }
        resources
    }

    /// The node's `nodeInfo`.
    pub(crate) fn info(&self, edge_version: &str, kubelet_version: &str) -> NodeSystemInfo {
        NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: self.boot_id.clone(),
            container_runtime_version: format!("edge://{edge_version}"),
            kernel_version: self.kernel.clone(),
            // deprecated, and empty in today's kubelets
            kube_proxy_version: String::new(),
            kubelet_version: kubelet_version.to_owned(),
            machine_id: self.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: self.os_image.clone(),
            swap: None,
            system_uuid: self.system_uuid.clone(),
        }
    }
}

/// The processor in Go's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn memory_total(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = total.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The `PRETTY_NAME` of os-release(5).
fn os_image(text: &str) -> String {
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map(|n| n.trim_matches(['"', '\'']).to_owned()).filter(|n| !n.is_empty()).unwrap_or_else(|| "Linux".to_owned())
}

fn hugepages(dir: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib =
            name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")).and_then(|n| n.parse::<u64>().ok());
        let Some(kib) = kib else { continue };
        let count =
            fs::read_to_string(entry.path().join("nr_hugepages")).ok().and_then(|n| n.trim().parse::<u64>().ok());
        let size = match kib {
            k if k % (1 << 20) == 0 => format!("{}Gi", k >> 20),
            k if k % 1024 == 0 => format!("{}Mi", k >> 10),
            k => format!("{k}Ki"),
        };
        found.insert(size, count.unwrap_or(0).saturating_mul(kib * 1024));
    }
    found
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn facts_are_understood_and_garbage_is_survived() {
        assert_eq!(memory_total("MemFree: 1 kB\nMemTotal:    2048 kB\n"), 2 << 20);
        assert_eq!(memory_total("MemTotal:\nMemTotal: x"), 0);
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in
            [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "1"), ("hugepages-xkB", "1"), ("other", "1")]
        {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("nr_hugepages"), count).unwrap();
        }
        let expected = BTreeMap::from([("2Mi".to_owned(), 6 << 20), ("1Gi".to_owned(), 1 << 30)]);
        assert_eq!(hugepages(dir.path()), expected);
    }

    #[test]
    fn what_must_stay_free_is_not_allocatable() {
        let hugepages = BTreeMap::from([("2Mi".to_owned(), 24 << 20)]);
        let reserved = Reserved { memory: 100 << 20, disk: 20_000 << 10 };
        let machine =
            Machine { cpus: 2, memory: 1 << 30, disk: 200_000 << 10, reserved, hugepages, ..Machine::default() };
        let (all, free) = (machine.capacity(110), machine.allocatable(110));
        assert_eq!((all["memory"].0.as_str(), free["memory"].0.as_str()), ("1048576Ki", "921600Ki"));
        assert_eq!(
            (all["ephemeral-storage"].0.as_str(), free["ephemeral-storage"].0.as_str()),
            ("200000Ki", "180000Ki")
        );
        assert_eq!((all["cpu"].0.as_str(), free["cpu"].0.as_str()), ("2", "2"));
        assert_eq!(Machine { memory: 1, reserved, ..Machine::default() }.allocatable(1)["memory"].0, "0Ki");
    }

    #[test]
    fn this_machine_has_something() {
        let machine = Machine::read(Path::new("/"), &Thresholds::default());
        assert!(machine.cpus > 0 && machine.memory > 0 && machine.disk > 0 && !machine.kernel.is_empty());
        assert_eq!(machine.capacity(110)["pods"].0, "110");
    }
}
