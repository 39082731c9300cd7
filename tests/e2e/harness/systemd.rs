//! A machine with systemd: this one's own root file system under a layer of its own, and systemd as the first process, in
//! namespaces and control groups of the test. What is installed there never reaches the machine itself.

use super::{Cluster, eventually, images, success};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Makes the root file system and becomes systemd. Arguments: directory to work in, name of the cgroups.
///
/// The layer and `/var/lib` are in memory: containers' own layers cannot lie on another one's. Devices, `/sys` and the
/// kernel's parameters of the whole machine cannot be written, and the clock is not touched, as in any container.
const BECOME_SYSTEMD: &str = r#"set -e
dir=$1 root=$1/root
for tree in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ -e "$tree/cgroup.procs" ] || continue
  mkdir -p "$tree/$2"
  for file in cpuset.cpus cpuset.mems; do [ ! -e "$tree/$file" ] || cat "$tree/$file" > "$tree/$2/$file" 2>/dev/null || true; done
  echo $$ > "$tree/$2/cgroup.procs"
done
exec unshare --mount --pid --fork --kill-child --ipc --uts --cgroup --propagation private /bin/sh -ec '
  dir=$1 root=$1/root
  mkdir -p $dir/layer $root
  mount -t tmpfs tmpfs $dir/layer
  mkdir $dir/layer/upper $dir/layer/work
  mount -t overlay overlay -o lowerdir=/,upperdir=$dir/layer/upper,workdir=$dir/layer/work $root
  rm -rf $root/etc/edge $root/var/log/pods $root/var/log/containers $root/usr/local/bin/edge* $root/etc/systemd/system/edge*
  for place in run tmp var/lib; do mount -t tmpfs -o mode=755 tmpfs $root/$place; done
  chmod 1777 $root/tmp
  mkdir $root/tmp/test $root/var/lib/systemd
  mount --bind $dir/test $root/tmp/test
  mount -t proc proc $root/proc
  mount --bind $root/proc/sys/fs $root/proc/sys/fs
  mount -o remount,bind,ro $root/proc/sys/fs
  mount -t sysfs -o ro sysfs $root/sys
  if [ -e /sys/fs/cgroup/cgroup.procs ]; then
    mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
  else
    mount -t tmpfs -o mode=755 tmpfs $root/sys/fs/cgroup
    while IFS=: read -r number controllers path; do
      case $number:$controllers in
        0:) mkdir $root/sys/fs/cgroup/unified; mount -t cgroup2 cgroup2 $root/sys/fs/cgroup/unified ;;
        *:name=*) mkdir $root/sys/fs/cgroup/${controllers#name=}
          mount -t cgroup -o none,$controllers cgroup $root/sys/fs/cgroup/${controllers#name=} ;;
        *) mkdir $root/sys/fs/cgroup/$controllers
          mount -t cgroup -o $controllers cgroup $root/sys/fs/cgroup/$controllers ;;
      esac
    done < /proc/self/cgroup
  fi
  mount -t tmpfs -o mode=755 tmpfs $root/dev
  for node in null zero full random urandom tty; do touch $root/dev/$node; mount --bind /dev/$node $root/dev/$node; done
  mkdir $root/dev/pts $root/dev/shm
  mount -t devpts -o newinstance,ptmxmode=0666 devpts $root/dev/pts
  ln -s pts/ptmx $root/dev/ptmx
  mount -t tmpfs tmpfs $root/dev/shm
  cd $root
  pivot_root . mnt
  umount -l /mnt
  exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /usr/lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
' sh "$@"
"#;

/// A running one.
pub(crate) struct Debian {
    /// Its network and directory, gone after it.
    _cluster: Cluster,
    unshare: Child,
    init: u32,
}

impl Debian {
    /// Starts one, in whose `/tmp/test` lie edge, its install script, kubectl and an image archive.
    pub(crate) fn start() -> Self {
        let cluster = Cluster::prepare(&[]);
        let shared = cluster.dir.join("test");
        fs::create_dir_all(shared.join("script")).unwrap();
        success(
            "strip",
            Command::new("strip").arg("-o").arg(shared.join("edge")).arg(super::edge_binary()).output().unwrap(),
        );
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (from, to) in [
            (project.join("scripts/install.sh"), "script/install.sh"),
            (super::Kubectl::Newest.path(), "kubectl"),
            (images::busybox_archive().to_owned(), "busybox.tar"),
        ] {
            fs::copy(&from, shared.join(to)).unwrap();
        }
        let openrc = project.join(".tools/openrc");
        assert!(openrc.exists(), "{} is missing: run scripts/setup test", openrc.display());
        success("cp", Command::new("cp").arg("-a").args([&openrc, &shared]).output().unwrap());
        let log = fs::File::create(cluster.dir.join("edge.log")).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", BECOME_SYSTEMD, "sh"]).arg(&cluster.dir).arg(cluster.id());
        command.env("EDGE_E2E", cluster.id()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        cluster.enter(&mut command);
        let unshare = command.spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = eventually("systemd starts", || {
            let child = fs::read_to_string(&children).unwrap_or_default();
            let pid = child.split_whitespace().next().and_then(|pid| pid.parse().ok()).ok_or("no child yet")?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "systemd" { Ok(pid) } else { Err(format!("it is {name} yet: {}", cluster.log())) }
        });
        let debian = Self { _cluster: cluster, unshare, init };
        eventually("systemd is up", || {
            let out = debian.try_run("systemctl is-active basic.target");
            if out.status.success() { Ok(()) } else { Err(format!("{out:?}")) }
        });
        debian
    }

    /// Runs a shell script as root on it; gives what it did.
    pub(crate) fn try_run(&self, script: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--all", "--", "/usr/bin/env", "-i"]).args([
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/tmp/test",
            "HOME=/tmp",
            "KUBECONFIG=/etc/edge/edge.yaml",
            "/bin/sh",
            "-c",
            script,
        ]);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// The same, which must succeed; gives its standard output.
    pub(crate) fn run(&self, script: &str) -> String {
        let out = self.try_run(script);
        if !out.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&self.try_run("journalctl --no-pager -n 60").stdout));
        }
        success(script, out)
    }

    /// The same, until it succeeds.
    pub(crate) fn run_until(&self, what: &str, script: &str) -> String {
        eventually(what, || {
            let out = self.try_run(script);
            if out.status.success() { Ok(success(script, out)) } else { Err(format!("{script}: {out:?}")) }
        })
    }

    /// What a removal must leave as it was: files, links, routes, packet filter, mounts, control groups.
    pub(crate) fn state(&self) -> String {
        self.run(
            "find /etc /usr/local/bin /usr/local/sbin /usr/share/bash-completion /usr/share/zsh /usr/share/fish /var/lib /var/log /root /opt \
                -xdev -printf '%p %m %l\n' | grep -vE '^/var/(log/journal|lib/systemd)' | sort
            ip -o link | sed 's/ mtu .*//'; ip -o route; ip -6 -o route show table main; ip rule
            nft list ruleset
            sed 's/ 0 0$//' /proc/self/mounts | grep -v '^systemd-1' | sort
            find /sys/fs/cgroup -type d | grep -vE '\\.(slice|scope|service|mount|socket)' | sort",
        )
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", String::from_utf8_lossy(&self.try_run("journalctl --no-pager -n 40 -u 'edge*'").stdout));
        }
        // everything on it ends with its first process
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.init).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = self.unshare.wait();
    }
}
