//! A whole machine for a test, for what the machine at hand may not have: a kernel with cgroup version 2 only, a power
//! switch. Debian's cloud kernel under qemu, a root file system of busybox and edge on its one disk.
//!
//! ```text
//! network namespace of the test               guest, eth0 10.0.2.15
//!   10.254.N.2:6443  ───── qemu ─────▶  :6443  edge server, which init starts again whenever it ends
//!   10.254.N.2:7000  ───── qemu ─────▶  :7000  a root shell for each connection
//! ```
//!
//! The machine is emulated, which works everywhere; `EDGE_E2E_KVM=1` makes it use `/dev/kvm` (where that can run an
//! ordinary kernel, which its mere existence does not tell).

use super::{Cluster, PATIENCE, eventually, images, success};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const QEMU: &str = if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
/// Type of the machine, model of its processor when emulated, its serial console.
const HARDWARE: [&str; 3] =
    if cfg!(target_arch = "aarch64") { ["virt", "cortex-a72", "ttyAMA0"] } else { ["pc", "max", "ttyS0"] };

const DISK_SIZE: &str = "640M";
const SHELL_PORT: u16 = 7000;

/// In the initial RAM disk: finds the disk and goes on from there.
const EARLY_INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sbin /root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox modprobe -a virtio_pci virtio_blk
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount --move /dev /root/dev
/bin/busybox mount --move /proc /root/proc
exec /bin/busybox switch_root /root /sbin/init
";

/// On the disk: what an init system does for a node, so far as edge needs it. Kernel modules are left to the kernel, which
/// asks modprobe for what edge uses. Standard error goes through a pipe because edge colours what it writes to a terminal.
const INIT: &str = "#!/bin/sh
export PATH=/bin HOME=/root EDGE_LOG=${EDGE_LOG:-info}
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount --make-rshared /
modprobe virtio_net
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
route add default gw 10.0.2.2
nc -ll -p 7000 -e /bin/sh &
while :; do
  edge server 2>&1 &
  echo $! > /run/edge.pid
  wait $!
  echo \"init: edge has ended with $?\"
  sleep 0.2
done | cat
";

/// A machine with one disk that runs edge. What is reached through its network works as with any other [`Cluster`].
pub(crate) struct Machine {
    cluster: Cluster,
    qemu: Option<Child>,
    /// What the machine's own clock shows when it is switched on, such as `2000-01-01T00:00:00`, if not the time.
    pub(crate) clock: Option<&'static str>,
    /// How often edge has told that it is ready.
    starts: usize,
}

impl std::ops::Deref for Machine {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Machine {
    /// Makes a machine and what is on its disk. It is switched off.
    pub(crate) fn new() -> Self {
        Self::with("", &[])
    }

    /// The same with further lines of edge's configuration, and programs of this machine.
    pub(crate) fn with(config: &str, programs: &[&str]) -> Self {
        let machine = Self { cluster: Cluster::prepare(&[]), qemu: None, clock: None, starts: 0 };
        let root = machine.dir.join("root");
        machine.make_root(&root, config);
        for program in programs {
            install(&root, Path::new(program));
        }
        run(Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .args([&root, &machine.disk()])
            .arg(DISK_SIZE));
        fs::remove_dir_all(root).unwrap();
        machine.make_early_root(&machine.dir.join("early"));
        machine
    }

    /// The image of the disk as it was made.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// Switches the machine on, with a disk in the notation of qemu's `-blockdev`, and waits until edge is ready.
    pub(crate) fn boot(&mut self, disk: &str) {
        assert!(self.qemu.is_none(), "the machine runs already");
        let [hardware, processor, console] = HARDWARE;
        let acceleration =
            if std::env::var_os("EDGE_E2E_KVM").is_some() { ["kvm", "host"] } else { ["tcg", processor] };
        let forward = |port: u16| format!("hostfwd=tcp:{}:{port}-:{port}", self.ip);
        let mut command = Command::new(QEMU);
        // One processor: with two, an emulated kernel has stood still now and then, both waiting for each other.
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-smp", "1", "-m", "1024"])
            .args(self.clock.iter().flat_map(|clock| ["-rtc".to_owned(), format!("base={clock}")]))
            .args(["-machine", hardware, "-accel", acceleration[0], "-cpu", acceleration[1]])
            .arg("-chardev")
            .arg(format!("file,id=console,path={},append=on", self.dir.join("edge.log").display()))
            .args(["-serial", "chardev:console"])
            .args(["-monitor", &format!("unix:{},server,nowait", self.monitor().display())])
            .arg("-kernel")
            .arg(kernel_files().join("vmlinuz"))
            .arg("-initrd")
            .arg(self.dir.join("early.img"))
            .args(["-append", &format!("console={console} loglevel=7 panic=-1")])
            .args(["-blockdev", &format!("node-name=disk,{disk}"), "-device", "virtio-blk-pci,drive=disk"])
            .args(["-netdev", &format!("user,id=net,{},{}", forward(6443), forward(SHELL_PORT))])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .env("EDGE_E2E", self.id())
            .stdin(Stdio::null());
        self.cluster.enter(&mut command);
        self.qemu = Some(command.spawn().expect("scripts/setup installs qemu"));
        self.wait_for_start();
        fs::write(self.kubeconfig(), self.shell("cat /etc/edge/edge.yaml")).unwrap();
    }

    /// Waits until edge has become ready once more than before.
    pub(crate) fn wait_for_start(&mut self) {
        self.starts += 1;
        let starts = self.starts;
        let begun = Instant::now();
        eventually("edge is ready", || {
            let seen = self.log().matches("edge is ready").count();
            if let Some(status) = self.qemu.as_mut().and_then(|qemu| qemu.try_wait().unwrap()) {
                panic!("qemu has ended: {status}");
            }
            if seen >= starts {
                return Ok(());
            }
            let processors = if begun.elapsed() < PATIENCE { String::new() } else { self.processors() };
            Err(format!("{seen} starts, waiting for {starts}; {processors}"))
        });
    }

    /// The socket of qemu's monitor.
    fn monitor(&self) -> PathBuf {
        self.dir.join("monitor.sock")
    }

    /// Where the processors are: tells a machine that stands still from one that is slow.
    fn processors(&self) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(self.monitor())?;
            stream.set_read_timeout(Some(Duration::from_millis(500)))?;
            stream.write_all(b"info registers -a\n")?;
            let mut answer = Vec::new();
            // it goes on listening
            let _ = stream.read_to_end(&mut answer);
            let text = String::from_utf8_lossy(&answer).into_owned();
            Ok(text
                .lines()
                .filter(|line| line.contains("HLT=") || line.starts_with("RSP"))
                .collect::<Vec<_>>()
                .join("\n"))
        };
        ask().unwrap_or_else(|e| e.to_string())
    }

    /// Ends the machine between two instructions.
    pub(crate) fn cut_power(&mut self) {
        let mut qemu = self.qemu.take().expect("the machine runs");
        qemu.kill().unwrap();
        qemu.wait().unwrap();
    }

    /// Runs a shell script as root on the machine, which must succeed; gives its standard output.
    pub(crate) fn shell(&self, script: &str) -> String {
        let mut stream = TcpStream::connect(SocketAddr::new(self.ip.into(), SHELL_PORT)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("({script}\n) 2>&1; echo \"=$?\"; exit\n").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut output = Vec::new();
        stream.read_to_end(&mut output).unwrap();
        let output = String::from_utf8_lossy(&output);
        let (text, status) = output.rsplit_once('=').unwrap_or((&output, "no status"));
        assert_eq!(status.trim(), "0", "{script}: {text}");
        text.to_owned()
    }

    fn make_root(&self, root: &Path, config: &str) {
        for directory in ["bin", "etc/edge", "proc", "sys", "dev", "run", "tmp", "root", "var/lib/edge/agent/images"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        // where the kernel looks for modprobe
        symlink("bin", root.join("sbin")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("scripts/setup installs busybox-static");
        for applet in run(Command::new("/bin/busybox").arg("--list")).lines().filter(|a| *a != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let edge = root.join("bin/edge");
        run(Command::new("strip").arg("-o").arg(&edge).arg(env!("CARGO_BIN_EXE_edge")));
        install_libraries(root, &edge);
        run(Command::new("cp").arg("-r").arg(kernel_files().join("lib/modules")).arg(root.join("lib")));
        let write = |path: &str, text: &str, mode| {
            // init is a link to busybox otherwise
            let _ = fs::remove_file(root.join(path));
            fs::write(root.join(path), text).unwrap();
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("bin/init", INIT, 0o755);
        write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
        write("etc/group", "root:x:0:\n", 0o644);
        write("etc/resolv.conf", "nameserver 10.0.2.3\n", 0o644);
        let names = format!("tls-san: [\"{}\", 10.99.0.1]\n", self.ip);
        write("etc/edge/config.yaml", &format!("node-name: node-1\n{names}{config}"), 0o644);
        fs::copy(images::busybox_archive(), root.join("var/lib/edge/agent/images/busybox.tar")).unwrap();
    }

    fn make_early_root(&self, root: &Path) {
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        fs::write(root.join("init"), EARLY_INIT).unwrap();
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
        let script = "set -e
            to=$PWD; cd \"$1\"
            cp --parents -t \"$to\" lib/modules/*/modules.dep lib/modules/*/kernel/drivers/virtio/*.ko \\
                lib/modules/*/kernel/drivers/block/virtio_blk.ko
            cd \"$to\"; find . | busybox cpio -o -H newc > ../early.img";
        run(Command::new("sh").args(["-c", script, "sh"]).arg(kernel_files()).current_dir(root));
        fs::remove_dir_all(root).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}

/// Kernel and modules, as `scripts/setup` has put them there.
fn kernel_files() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/vm");
    assert!(path.join("vmlinuz").exists(), "{} is missing: run scripts/setup test", path.display());
    path
}

/// Puts a program of this machine into the root, in place of busybox's of that name.
fn install(root: &Path, program: &Path) {
    let target = root.join("bin").join(program.file_name().unwrap());
    let _ = fs::remove_file(&target);
    fs::copy(program, &target).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    install_libraries(root, &target);
}

fn install_libraries(root: &Path, program: &Path) {
    for library in shared_libraries(program) {
        let target = root.join(library.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&library, target).unwrap();
    }
}

/// The shared libraries of a program, the dynamic linker among them, where the program looks for them.
fn shared_libraries(program: &Path) -> Vec<PathBuf> {
    // `libc.so.6 => /lib/libc.so.6 (0x7f…)` or `/lib64/ld-linux-x86-64.so.2 (0x7f…)`
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    run(Command::new("ldd").arg(program)).lines().filter_map(path).collect()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    success(&format!("{command:?}"), output)
}
