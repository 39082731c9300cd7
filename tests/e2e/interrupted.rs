//! `edge backup` and `edge restore` that are killed at any moment: before every system call that matters, and some of the others.

use crate::harness::disk::Random;
use crate::harness::{Cluster, success};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Entries of system calls and returns from them: so many before the one that decides, and after it.
const AROUND: usize = 8;
const OTHERS: usize = 4;

/// Runs a command and kills it at the n-th entry of a system call or return from one; gives how many there were if it ended before.
fn kill_at(mut command: Command, n: usize) -> Option<usize> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the call touches only the child that is about to execute edge
    #[expect(unsafe_code, reason = "asking to be traced between fork and exec")]
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
    }
    let pid = Pid::from_raw(i32::try_from(command.spawn().unwrap().id()).unwrap());
    assert!(matches!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(_, Signal::SIGTRAP)));
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    let mut pass = None;
    for seen in 0..n {
        ptrace::syscall(pid, pass.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {}
            WaitStatus::Stopped(_, signal) => pass = Some(signal),
            WaitStatus::Exited(_, code) => {
                assert_eq!(code, 0);
                return Some(seen);
            }
            other => panic!("{other:?}"),
        }
    }
    kill(pid, Signal::SIGKILL).unwrap();
    waitpid(pid, None).unwrap();
    None
}

/// Moments at which something of so many stops is killed: all those around the one that decides, and some before. Whether that is over
/// at a moment tells `is_over`.
fn moments(stops: usize, random: &mut Random, is_over: impl Fn(usize) -> bool) -> Vec<usize> {
    let (mut before, mut after) = (0, stops);
    while after - before > 1 {
        let middle = before.midpoint(after);
        if is_over(middle) { after = middle } else { before = middle }
    }
    let mut all: Vec<usize> = (0..OTHERS).map(|_| random.below(before as u64) as usize).collect();
    all.extend(after.saturating_sub(AROUND)..stops.min(after + AROUND));
    all
}

/// What tells one cluster from another: token, authority, the node's password.
fn identity(data: &Path) -> [Vec<u8>; 3] {
    ["server/token", "server/tls/server-ca.crt", "agent/tls/node-password"]
        .map(|path| fs::read(data.join(path)).unwrap())
}

fn copy(from: &Path, to: &Path) {
    success("cp", Command::new("cp").arg("-a").args([from, to]).output().unwrap());
}

/// The directories of servers in a data directory.
fn servers(data: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("server")).collect()
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// A machine has a cluster, and a backup of another one is put back there.
#[test]
fn backups_and_restorations_can_be_killed_at_any_moment() {
    let mut random = Random::new();
    let mut cluster = Cluster::start();
    let data = cluster.data_dir();
    let [file, another, pristine] = ["backup", "another", "pristine"].map(|name| cluster.dir.join(name));
    let out = |file: &Path| file.display().to_string();
    cluster.kubectl(&["create", "configmap", "story", "--from-literal=is=backed up"]);
    success("backup", cluster.edge(&["backup", &out(&file)]));
    let backed_up = identity(&data);
    cluster.stop(Signal::SIGTERM);
    success("teardown", cluster.tear_down());
    fs::remove_dir_all(data.join("server")).unwrap();
    fs::remove_dir_all(data.join("agent/tls")).unwrap();
    cluster.launch();
    let present = identity(&data);
    assert!(present.iter().zip(&backed_up).all(|(a, b)| a != b));
    cluster.stop(Signal::SIGTERM);
    fs::create_dir_all(pristine.join("agent")).unwrap();
    copy(&data.join("server"), &pristine);
    copy(&data.join("agent/tls"), &pristine.join("agent"));
    let reset = || {
        servers(&data).iter().for_each(|path| fs::remove_dir_all(path).unwrap());
        fs::remove_dir_all(data.join("agent/tls")).unwrap();
        copy(&pristine.join("server"), &data);
        copy(&pristine.join("agent/tls"), &data.join("agent"));
    };
    let restoring = || cluster.edge_command(&["restore", &out(&file)]);

    let stops = kill_at(restoring(), usize::MAX).unwrap();
    assert_eq!(identity(&data), backed_up);
    let (mut old, mut new) = (0, 0);
    let killed = |moment: usize| {
        reset();
        assert!(kill_at(restoring(), moment).is_none(), "{moment} of {stops}");
        fs::read(data.join("server/token")).unwrap() == backed_up[0]
    };
    for moment in moments(stops, &mut random, killed) {
        reset();
        assert!(kill_at(restoring(), moment).is_none(), "{moment} of {stops}");
        // what was there is there, and all of it, whatever name it has
        let tokens: Vec<Vec<u8>> = servers(&data).iter().flat_map(|path| fs::read(path.join("token"))).collect();
        assert!(tokens.contains(&present[0]), "at {moment} of {stops}: {:?}", servers(&data));
        // the server is whole: what reads all of it says so; and then it is one of the two in every respect
        success("backup", cluster.edge(&["backup", &out(&another)]));
        success("check", cluster.edge(&["restore", "--check", &out(&another)]));
        match identity(&data) {
            found if found == present => old += 1,
            found if found == backed_up => new += 1,
            _ => panic!("killed at {moment} of {stops}: it is neither"),
        }
        success("restore", cluster.edge(&["restore", &out(&file)]));
        assert_eq!(identity(&data), backed_up, "at {moment}");
        let left = names(&data);
        assert!(!left.iter().any(|name| name == "server.restoring"), "{left:?}");
        let unfinished = servers(&data).iter().any(|path| path.join("node-password.restoring").exists());
        assert!(!unfinished, "at {moment}: {left:?}");
    }
    println!("restorations: {stops} stops; the server was the old one {old} times, the new one {new} times");
    assert!(old >= AROUND && new >= AROUND, "{old} {new}");

    // a server starts on what was left between the two last steps
    let mut last = stops - 1;
    while !killed(last) || !data.join("server/node-password.restoring").exists() {
        last -= 1;
    }
    cluster.launch();
    cluster.wait_for("node/node-1", "condition=Ready");
    assert_eq!(cluster.kubectl(&["get", "configmap", "story", "-o", "jsonpath={.data.is}"]), "backed up");
    assert_eq!(identity(&data), backed_up);

    // backups beside the server that runs
    let making = || cluster.edge_command(&["backup", &out(&another)]);
    success("backup", cluster.edge(&["backup", &out(&another)]));
    let before = fs::read(&another).unwrap();
    let stops = kill_at(making(), usize::MAX).unwrap();
    let mut kept = 0;
    let killed = |moment: usize| {
        fs::write(&another, &before).unwrap();
        kill_at(making(), moment);
        fs::read(&another).unwrap() != before
    };
    for moment in moments(stops, &mut random, killed) {
        kept += usize::from(!killed(moment));
        success("check", cluster.edge(&["restore", "--check", &out(&another)]));
    }
    assert!(kept >= AROUND / 2, "{kept}");
    success("backup", cluster.edge(&["backup", &out(&another)]));
    let left = names(&cluster.dir);
    assert!(!left.iter().any(|name| name.starts_with(".edge-backup-")), "{left:?}");
}
