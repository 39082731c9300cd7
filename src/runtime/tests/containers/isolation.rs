//! What containers share, what they do not, and what they may.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use edge_runtime::spec::{Device, Mount, MountSource, ProcMount, Propagation, Rlimit, Seccomp, User};
use edge_runtime::{ContainerState, PodRuntime, Resources};
use libtest_mimic::Trial;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::{Node, eventually, exit_of, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("containers_of_a_pod_share_namespaces", containers_of_a_pod_share_namespaces),
        trial("a_shared_process_namespace", a_shared_process_namespace),
        trial("host_namespaces", host_namespaces),
        trial("sysctls_are_set_in_the_pod", sysctls_are_set_in_the_pod),
        trial("root_file_system", root_file_system),
        trial("mounts", mounts),
        trial("mount_propagation", mount_propagation),
        trial("out_of_memory", out_of_memory),
        trial("limit_of_processes", limit_of_processes),
        trial("capabilities_and_privileges", capabilities_and_privileges),
        trial("system_call_filter", system_call_filter),
        trial("devices", devices),
        trial("process_attributes", process_attributes),
    ]
}

async fn containers_of_a_pod_share_namespaces(node: Arc<Node>) {
    node.sandbox("a").await;
    node.sandbox("b").await;
    // They all run at once: the number of a namespace that is gone may be given to the next.
    for (pod, id) in [("a", "c1"), ("a", "c2"), ("b", "c3")] {
        node.start(pod, node.container(id, "echo $$; sleep 1000")).await;
        eventually("its pid is logged", || !node.log(id).is_empty()).await;
        assert_eq!(node.log(id)[0].text, "1");
    }
    let show = "for ns in ipc uts net pid mnt; do readlink /proc/self/ns/$ns; done; hostname; echo $HOSTNAME; \
                cat /dev/shm/note 2>/dev/null; echo note > /dev/shm/note";
    let mut shown = Vec::new();
    for id in ["c1", "c2", "c3"] {
        shown.push(node.exec(id, &["sh", "-c", show]).await.1);
    }
    let [first, second, other]: [String; 3] = shown.try_into().unwrap();
    let (first, second, other): (Vec<_>, Vec<_>, Vec<_>) =
        (first.lines().collect(), second.lines().collect(), other.lines().collect());
    assert_eq!(first[..3], second[..3], "IPC, UTS and network");
    assert!(first[3] != second[3] && first[4] != second[4], "PID and mount");
    assert!((0..5).all(|index| first[index] != other[index]), "another pod shares nothing");
    for name in ["ipc", "uts", "net", "pid", "mnt"] {
        let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
        assert!(!first.contains(&host.as_str()), "{name}");
    }
    assert_eq!(first[5..7], ["host-a", "host-a"]);
    assert_eq!((first.len(), second.last(), other.len()), (7, Some(&"note"), 7), "/dev/shm belongs to the pod");
}

async fn a_shared_process_namespace(node: Arc<Node>) {
    let mut spec = node.sandbox_spec("a");
    spec.share_process_namespace = true;
    node.runtime.create_sandbox(spec).await.unwrap();
    node.start("a", node.container("c1", "exec sleep 4321")).await;
    let seen = node.output("a", node.container("c2", "echo $$; cat /proc/1/comm; ps | grep -c 'sleep 432[1]'")).await;
    let seen: Vec<&str> = seen.lines().collect();
    assert_ne!(seen[0], "1");
    assert_eq!(seen[1..], ["edge-pause", "1"]);
    // Orphans are reaped by the pause process.
    let script = "(sh -c 'sleep 0.01 &'); sleep 0.3; ps -o stat | grep -c Z; true";
    assert_eq!(node.output("a", node.container("c3", script)).await, "0");
    node.runtime.remove_sandbox("a").await.unwrap();
}

async fn host_namespaces(node: Arc<Node>) {
    let mut spec = crate::support::sandbox_spec("a");
    (spec.hostname, spec.host_ipc, spec.host_pid) = (None, true, true);
    node.runtime.create_sandbox(spec).await.unwrap();
    let show = "for ns in ipc uts net pid; do readlink /proc/self/ns/$ns; done";
    let seen = node.output("a", node.container("c", show)).await;
    let names = ["ipc", "uts", "net", "pid"];
    let host = names.map(|name| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string());
    assert_eq!(seen.lines().collect::<Vec<_>>(), host);
    // Its own processes are killed with it all the same, and the host's are not.
    node.start("a", node.container("d", "sleep 1000 & sleep 1000")).await;
    node.runtime.remove_container("d").await.unwrap();
    assert!(node.cgroups().processes("kubepods").unwrap().is_empty());
}

async fn sysctls_are_set_in_the_pod(node: Arc<Node>) {
    let mut spec = node.sandbox_spec("a");
    spec.sysctls = BTreeMap::from(
        [("net.ipv4.ip_unprivileged_port_start", "77"), ("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "17")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let read = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
    let host = read("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    node.runtime.create_sandbox(spec).await.unwrap();
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max";
    assert_eq!(node.output("a", node.container("c", script)).await, "77\n1\n17");
    assert_eq!(read("/proc/sys/net/ipv4/ip_unprivileged_port_start"), host);
}

async fn root_file_system(node: Arc<Node>) {
    node.sandbox("a").await;
    let script = "stat -c %a /; echo x > /etc/new; cat /etc/new; rm /etc/passwd; ls /etc";
    assert_eq!(node.output("a", node.container("c", script)).await, "755\nx\nnew");
    assert!(
        node.image().join("etc/passwd").exists() && !node.image().join("etc/new").exists(),
        "layers are never written to"
    );
    // Two layers, the upper one wins.
    let upper = node.place.path().join("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/passwd"), "from the upper layer\n").unwrap();
    let mut spec = node.container("d", "cat /etc/passwd");
    spec.layers.push(upper);
    assert_eq!(node.output("a", spec).await, "from the upper layer");

    let mut spec = node.container(
        "ro",
        "(echo x > /etc/new) 2>/dev/null && exit 1; echo y > /dev/shm/y && echo z > /mnt/z && cat /mnt/z",
    );
    spec.security.read_only_rootfs = true;
    spec.mounts = vec![Mount {
        destination: "/mnt".into(),
        source: MountSource::Tmpfs { size: Some(1 << 20), mode: 0o1777 },
        read_only: false,
    }];
    assert_eq!(node.output("a", spec).await, "z");

    // A hundred layers fit.
    let mut spec = node.container("deep", "cat /etc/layer");
    for number in 0..100 {
        let layer = node.place.path().join(format!("layer,with:odd,name-{number}"));
        fs::create_dir_all(layer.join("etc")).unwrap();
        fs::write(layer.join("etc/layer"), number.to_string()).unwrap();
        spec.layers.push(layer);
    }
    assert_eq!(node.output("a", spec).await, "99");
}

fn bind(path: impl Into<PathBuf>, destination: &str, read_only: bool) -> Mount {
    let source = MountSource::Bind { path: path.into(), propagation: Propagation::Private };
    Mount { destination: destination.into(), source, read_only }
}

async fn mounts(node: Arc<Node>) {
    node.sandbox("a").await;
    let volume = node.place.path().join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("file"), "content\n").unwrap();
    let script = "cat /data/deep/file /etc/hosts; echo more > /data/deep/more; (echo no > /ro/no) 2>/dev/null; ls /ro; stat -f -c %T /cache; \
                  stat -c %a /cache; cat /dev/shm/file";
    let mut spec = node.container("c", script);
    spec.mounts = vec![
        bind(&volume, "/data/deep", false),
        bind(volume.join("file"), "/etc/hosts", true),
        bind(&volume, "/ro", true),
        // Replaces the pod's.
        bind(&volume, "/dev/shm", false),
        Mount {
            destination: "/cache".into(),
            source: MountSource::Tmpfs { size: Some(1 << 20), mode: 0o700 },
            read_only: false,
        },
    ];
    assert_eq!(node.output("a", spec).await, "content\ncontent\nfile\nmore\ntmpfs\n700\ncontent");
    assert!(volume.join("more").exists() && !volume.join("no").exists());

    let mut spec = node.container("d", "true");
    spec.mounts = vec![bind("/no/such/source", "/x", false)];
    let err = node.runtime.create_container("a", spec).await.unwrap_err();
    assert!(err.to_string().contains("/no/such/source"), "the text names the path: {err}");
    // A link in the image that leads outside must not be followed to the host.
    let evil = node.place.path().join("evil");
    fs::create_dir_all(evil.join("var/tmp")).unwrap();
    std::os::unix::fs::symlink("/../../../../../../var/tmp", evil.join("out")).unwrap();
    let mut spec = node.container("e", "ls /var/tmp/edge-escape");
    spec.layers.push(evil);
    spec.mounts = vec![bind(&volume, "/out/edge-escape", false)];
    assert_eq!(node.output("a", spec).await, "file\nmore");
    assert!(!PathBuf::from("/var/tmp/edge-escape").exists());
}

async fn mount_propagation(node: Arc<Node>) {
    node.sandbox("a").await;
    let shared = node.place.path().join("shared");
    fs::create_dir_all(&shared).unwrap();
    mount(Some("tmpfs"), &shared, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    mount(None::<&str>, &shared, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    for name in ["late", "back"] {
        fs::create_dir(shared.join(name)).unwrap();
    }
    for (id, propagation) in [
        ("private", Propagation::Private),
        ("slave", Propagation::HostToContainer),
        ("both", Propagation::Bidirectional),
    ] {
        let mut spec = node.container(id, "sleep 1000");
        spec.security.privileged = propagation == Propagation::Bidirectional;
        let source = MountSource::Bind { path: shared.clone(), propagation };
        spec.mounts = vec![Mount { destination: "/shared".into(), source, read_only: false }];
        node.start("a", spec).await;
    }
    mount(Some("tmpfs"), &shared.join("late"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(shared.join("late/file"), "x").unwrap();
    let mut seen = Vec::new();
    for id in ["private", "slave", "both"] {
        seen.push(node.exec(id, &["test", "-e", "/shared/late/file"]).await.0.code == 0);
    }
    let (exit, _, stderr) = node.exec("both", &["mount", "-t", "tmpfs", "none", "/shared/back"]).await;
    node.exec("both", &["touch", "/shared/back/file"]).await;
    let back = shared.join("back/file").exists();
    umount2(&shared, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(seen, [false, true, true]);
    assert_eq!(exit.code, 0, "{stderr}");
    assert!(back, "a mount made in the container must appear on the host");
}

async fn out_of_memory(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = node.container("c", "tail /dev/zero");
    spec.resources = Resources { memory_limit: Some(16 << 20), ..Resources::default() };
    // As a kubelet has it: the first process itself is the hungry one.
    spec.args = vec!["tail".to_owned(), "/dev/zero".to_owned()];
    let exit = node.run("a", spec).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    let exit = node.run("a", node.container("d", "kill -9 $$; exit 9")).await;
    assert!(!exit.oom_killed, "{exit:?}");
}

async fn limit_of_processes(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = node.container("c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo all");
    spec.resources = Resources { pids_limit: Some(5), ..Resources::default() };
    let exit = node.run("a", spec).await;
    assert_ne!(exit.code, 0);
    let log = node.log("c");
    assert!(log.iter().any(|line| line.text.contains("fork")), "{log:?}");
}

async fn capabilities_and_privileges(node: Arc<Node>) {
    node.sandbox("a").await;
    let show = "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status | cut -f2; cat /proc/kcore 2>/dev/null | head -c1 | wc -c; \
                (echo 0 > /proc/sys/kernel/printk) 2>/dev/null && echo writable; true";
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let plain = lines(node.output("a", node.container("plain", show)).await);
    assert_eq!(plain, ["00000000a80425fb", "0", "0"]);

    let mut spec = node.container("changed", show);
    spec.security.add_capabilities = vec!["NET_ADMIN".to_owned()];
    spec.security.drop_capabilities = vec!["ALL".to_owned()];
    spec.security.no_new_privileges = true;
    assert_eq!(lines(node.output("a", spec).await)[..2], ["0000000000001000", "1"]);

    let mut spec =
        node.container("unmasked", "head -c1 /proc/kcore | wc -c; cat /proc/kmsg < /dev/null >/dev/null 2>&1; true");
    spec.security.proc_mount = ProcMount::Unmasked;
    spec.security.add_capabilities = vec!["SYS_RAWIO".to_owned()];
    node.output("a", spec).await;

    let mut spec = node.container(
        "privileged",
        "grep ^CapEff /proc/self/status | cut -f2; mount -t tmpfs none /tmp && echo mounted; ls /dev | wc -l",
    );
    spec.security.privileged = true;
    let privileged = lines(node.output("a", spec).await);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap().trim();
    assert_eq!(privileged[..2], [own, "mounted"]);
    assert!(privileged[2].parse::<u32>().unwrap() > 15, "the host's devices: {privileged:?}");
}

async fn system_call_filter(node: Arc<Node>) {
    node.sandbox("a").await;
    // A user namespace needs no capability, so only the filter can forbid it.
    let script = "unshare -U true 2>/dev/null && echo allowed; grep ^Seccomp: /proc/self/status | cut -f2";
    assert_eq!(node.output("a", node.container("default", script)).await, "2");
    let mut spec = node.container("nnp", script);
    spec.security.no_new_privileges = true;
    assert_eq!(node.output("a", spec).await, "2");
    let mut spec = node.container("unconfined", script);
    spec.security.seccomp = Seccomp::Unconfined;
    assert_eq!(node.output("a", spec).await, "allowed\n0");
    let mut spec = node.container("own", "mkdir /tmp/x 2>&1 | grep -c denied; true");
    spec.security.seccomp = Seccomp::Localhost(serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 }],
    }));
    assert_eq!(node.output("a", spec).await, "1");
    let mut spec = node.container("broken", "true");
    spec.security.seccomp = Seccomp::Localhost(serde_json::json!({ "defaultAction": 5 }));
    assert!(node.runtime.create_container("a", spec).await.is_err());
}

async fn devices(node: Arc<Node>) {
    node.sandbox("a").await;
    let script = "test -c /dev/edge-null && echo x > /dev/edge-null && echo ok; test -e /dev/kmsg || echo none; \
                  test -c /dev/null -a -c /dev/zero -a -c /dev/urandom -a -c /dev/tty -a -d /dev/pts && echo usual";
    let mut spec = node.container("c", script);
    spec.devices = vec![Device {
        host_path: "/dev/null".into(),
        container_path: "/dev/edge-null".into(),
        permissions: "rwm".to_owned(),
        ..Device::default()
    }];
    assert_eq!(node.output("a", spec).await, "ok\nnone\nusual");
    let mut spec = node.container("d", "true");
    spec.devices = vec![Device {
        host_path: "/etc/passwd".into(),
        container_path: "/dev/x".into(),
        permissions: "r".to_owned(),
        ..Device::default()
    }];
    assert!(node.runtime.create_container("a", spec).await.is_err());
}

async fn process_attributes(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = node.container(
        "c",
        "cat /proc/self/oom_score_adj; ulimit -n; grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f2; ls /proc/self/fd | wc -l; umask; \
         echo $HOME; pwd; id -G; cat /proc/1/cgroup | grep -c edge-test; true",
    );
    spec.oom_score_adj = 500;
    spec.rlimits = vec![Rlimit { name: "RLIMIT_NOFILE".to_owned(), soft: 512, hard: u64::MAX }];
    spec.user = User { uid: 0, gid: 0, additional_gids: vec![], home: Some("/root".to_owned()) };
    spec.cwd = "/made/for/it".into();
    let seen = node.output("a", spec).await;
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!(seen[..4], ["500", "512", "0000000000000000", "0000000000000000"]);
    assert_eq!(seen[4], "4", "stdin, stdout, stderr and the directory that is listed");
    assert_eq!(
        seen[5..],
        ["0022", "/root", "/made/for/it", "0", "0"],
        "the cgroup namespace hides where the container is"
    );

    // Asked for less than is allowed here, it gets what is allowed.
    let mut spec = node.container("d", "sleep 1000");
    spec.oom_score_adj = -998;
    node.start("a", spec).await;
    let ContainerState::Running { pid, .. } = node.runtime.container_status("d").await.unwrap().state else { panic!() };
    let score: i32 = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap();
    assert!((-998..=0).contains(&score), "{score}");
    // The monitor itself is not affected by what its containers ask for.
    let monitor = node.place.monitors()[0];
    eventually("scores are read", || fs::read_to_string(format!("/proc/{monitor}/oom_score_adj")).is_ok()).await;
    let monitor: i32 = fs::read_to_string(format!("/proc/{monitor}/oom_score_adj")).unwrap().trim().parse().unwrap();
    assert!(monitor <= 0, "{monitor}");
    let mut events = node.runtime.events();
    node.runtime.kill_container("d", 9).await.unwrap();
    exit_of(&mut events, "d").await;
}
