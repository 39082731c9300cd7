//! Streams into and out of containers, by both kubectls: exec, attach, cp, logs, port-forward. The newest kubectl speaks
//! WebSocket, Debian's speaks SPDY.

use crate::harness::images::BUSYBOX_IMAGE;
use crate::harness::{Cluster, Kubectl, PATIENCE, eventually, success};
use nix::pty::Winsize;
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const BOTH: [Kubectl; 2] = [Kubectl::Newest, Kubectl::Debian];

/// A kubectl on a pseudo terminal of its own, as a user at a keyboard has it.
struct Terminal {
    child: Child,
    master: File,
    output: mpsc::Receiver<Vec<u8>>,
    /// What came and was not expected yet.
    unseen: String,
}

impl Terminal {
    fn start(cluster: &Cluster, which: Kubectl, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(&size, None).unwrap();
        let kubectl = cluster.kubectl_command(which, args);
        let slave = || Stdio::from(pair.slave.try_clone().unwrap());
        // setsid makes the terminal the controlling one, without which there is no SIGWINCH
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(kubectl.get_program()).args(kubectl.get_args()).env("TERM", "xterm");
        command.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        drop(command);
        drop(pair.slave);
        let master = File::from(pair.master);
        let mut reader = master.try_clone().unwrap();
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // a terminal that nobody holds open any more gives an error
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, master, output, unseen: String::new() }
    }

    fn keys(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn resize(&self, columns: u16, rows: u16) {
        edge_sys::tty::set_window_size(self.master.as_fd(), columns, rows).unwrap();
    }

    /// Waits until `text` is shown; gives what came before it.
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.unseen.find(text) {
                let before = self.unseen[..at].to_owned();
                self.unseen.drain(..at + text.len());
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.unseen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{text:?} was not shown ({error}), but {:?}", self.unseen),
            }
        }
    }

    /// Asks for the size of the terminal inside until it is this one: the news of it travels.
    fn expect_size(&mut self, rows_and_columns: &str) {
        eventually("the terminal has the size", || {
            self.keys("echo at=`stty size`.\n");
            self.expect("at=`");
            self.expect("at=");
            let size = self.expect(".");
            if size == rows_and_columns { Ok(()) } else { Err(size) }
        });
    }

    fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process, which must come.
fn wait(child: &mut Child) -> ExitStatus {
    eventually("the process ends", || child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()))
}

/// Runs kubectl with bytes on its standard input, however many, while its output is read.
fn pipe(cluster: &Cluster, which: Kubectl, args: &[&str], input: &[u8]) -> Output {
    let mut command = cluster.kubectl_command(which, args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes with no pattern, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn commands_and_terminals() {
    let cluster = Cluster::start();
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: a, image: 'busybox:test', command: [sleep, "100000"], env: [{name: WHO, value: first}]}
  - {name: b, image: 'busybox:test', command: [sleep, "100000"], env: [{name: WHO, value: second}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shell-newest}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sh], stdin: true, tty: true}]
---
apiVersion: v1
kind: Pod
metadata: {name: shell-debian}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sh], stdin: true, tty: true}]
"#,
    );
    for pod in ["two", "shell-newest", "shell-debian"] {
        cluster.wait_for(&format!("pod/{pod}"), "condition=Ready");
    }
    for which in BOTH {
        a_shell_on_a_terminal(&cluster, which);
        exit_codes_and_missing_programs(&cluster, which);
        bytes_through_a_command(&cluster, which);
        attached_to_a_terminal(&cluster, which);
        attached_once(&cluster, which);
        directories_are_copied(&cluster, which);
    }
}

fn a_shell_on_a_terminal(cluster: &Cluster, which: Kubectl) {
    let mut shell = Terminal::start(cluster, which, &["exec", "-it", "two", "-c", "b", "--", "sh"]);
    shell.keys("tty; echo $WHO\n");
    shell.expect("/dev/pts/");
    shell.expect("second");
    shell.expect_size("33 101");
    shell.resize(140, 50);
    shell.expect_size("50 140");
    // ctrl-C is for the process inside, and kubectl stays
    shell.keys(
        "sh -c 'trap \"echo cau\"\"ght; exit 9\" INT; echo rea\"\"dy; while :; do sleep 0.1; done'; echo code=$?.\n",
    );
    shell.expect("ready");
    shell.keys("\u{3}");
    shell.expect("caught");
    shell.expect("code=9.");
    shell.keys("exit 5\n");
    assert_eq!(shell.wait().code(), Some(5));
}

fn exit_codes_and_missing_programs(cluster: &Cluster, which: Kubectl) {
    let exec = |command: &[&str]| {
        let out = cluster.try_kubectl(which, &[&["exec", "two", "-c", "a", "--"], command].concat());
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    assert_eq!(exec(&["sh", "-c", "echo $WHO; exit 42"]).0, Some(42));
    assert_eq!(exec(&["sh", "-c", "kill -9 $$"]).0, Some(137));
    assert_eq!(exec(&["sh", "-c", "nosuch"]).0, Some(127));
    assert_eq!(exec(&["sh", "-c", "/etc/passwd"]).0, Some(126));
    // what cannot be started at all has no exit code of its own
    for (program, reason) in [("nosuch", "not found"), ("/bin/nosuch", "no such file"), ("/etc/passwd", "denied")] {
        let (code, out, err) = exec(&[program]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.contains(program) && err.contains(reason), "{err}");
    }
    let wrong = cluster.try_kubectl(which, &["exec", "two", "-c", "x", "--", "true"]);
    assert!(!wrong.status.success() && text(&wrong.stderr).contains("container x is not valid"), "{wrong:?}");
    // without a name it is the first
    let out = cluster.try_kubectl(which, &["exec", "two", "--", "sh", "-c", "echo $WHO"]);
    assert_eq!(text(&out.stdout), "first\n", "{out:?}");
}

fn bytes_through_a_command(cluster: &Cluster, which: Kubectl) {
    let data = noise(6 << 20);
    let back = pipe(cluster, which, &["exec", "-i", "two", "-c", "a", "--", "cat"], &data);
    assert!(back.status.success(), "{which:?}: {}", text(&back.stderr));
    assert!(back.stdout == data, "{which:?}: {} bytes of {} came back", back.stdout.len(), data.len());
    let sum = success("sha256sum", pipe(cluster, which, &["exec", "-i", "two", "-c", "a", "--", "sha256sum"], &data));
    assert_eq!(sum.split_whitespace().next().unwrap(), hex::encode(Sha256::digest(&data)));
    // a command that ends early does not wait for the rest of its input
    let head = pipe(cluster, which, &["exec", "-i", "two", "-c", "a", "--", "head", "-c", "5"], &data);
    assert!(head.status.success() && head.stdout == data[..5], "{head:?}");
    // nor are both outputs mixed up
    let script = "for i in 1 2 3; do echo out$i; echo err$i >&2; done";
    let both = cluster.try_kubectl(which, &["exec", "two", "-c", "a", "--", "sh", "-c", script]);
    assert_eq!((text(&both.stdout), text(&both.stderr)), ("out1\nout2\nout3\n".into(), "err1\nerr2\nerr3\n".into()));
}

fn attached_to_a_terminal(cluster: &Cluster, which: Kubectl) {
    let pod = if which == Kubectl::Newest { "shell-newest" } else { "shell-debian" };
    let mut first = Terminal::start(cluster, which, &["attach", "-it", pod]);
    first.keys("x=left$((6*7)); echo $x\n");
    first.expect("left42");
    first.expect_size("33 101");
    // whoever goes away leaves the shell as it is
    drop(first);
    let mut second = Terminal::start(cluster, which, &["attach", "-it", pod]);
    second.keys("echo still:$x\n");
    second.expect("still:left42");
    second.resize(90, 20);
    second.expect_size("20 90");
    second.keys("exit 3\n");
    assert_eq!(second.wait().code(), Some(0), "an attach that ends with its container has done its work");
    cluster.wait_for(&format!("pod/{pod}"), "jsonpath={.status.phase}=Failed");
    let state = &cluster.get(&["pod", pod])["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["exitCode"], 3, "{state}");
}

/// `kubectl run -i` makes a container with `stdinOnce`: its input ends with the first who is attached.
fn attached_once(cluster: &Cluster, which: Kubectl) {
    let data = noise(300_000);
    let sum = hex::encode(Sha256::digest(&data));
    let args = [
        ["run", "once", "--image", BUSYBOX_IMAGE],
        ["-i", "--quiet", "--rm", "--restart=Never"],
        ["--command", "--", "sh", "-c"],
    ];
    let args: Vec<&str> = args.concat().into_iter().chain(["sha256sum; echo done >&2; exit 6"]).collect();
    let out = pipe(cluster, which, &args, &data);
    assert!(text(&out.stdout).contains(&sum), "{which:?}: {} {}", text(&out.stdout), text(&out.stderr));
    assert!(text(&out.stderr).contains("done"), "{which:?}: {}", text(&out.stderr));
    assert_eq!(out.status.code(), Some(6));
    assert!(!cluster.try_kubectl(which, &["get", "pod", "once"]).status.success());
}

fn directories_are_copied(cluster: &Cluster, which: Kubectl) {
    let (there, back) = (cluster.dir.join("there"), cluster.dir.join("back"));
    let remote = format!("/tmp/{which:?}");
    fs::create_dir_all(there.join("deep/deeper")).unwrap();
    fs::create_dir_all(there.join("empty")).unwrap();
    fs::write(there.join("big"), noise(2_000_000)).unwrap();
    fs::write(there.join("nothing"), "").unwrap();
    fs::write(there.join("deep/deeper/naïve name"), "text\n").unwrap();
    fs::write(there.join("deep/run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(there.join("deep/run"), fs::Permissions::from_mode(0o755)).unwrap();
    cluster.kubectl_as(which, &["cp", &there.display().to_string(), &format!("two:{remote}"), "-c", "b"]);
    let ran = cluster.kubectl_as(which, &["exec", "two", "-c", "b", "--", &format!("{remote}/deep/run")]);
    assert_eq!(ran, "ran\n");
    cluster.kubectl_as(which, &["cp", &format!("two:{remote}"), &back.display().to_string(), "-c", "b"]);
    assert_eq!(tree(&there), tree(&back));
    fs::remove_dir_all(there).unwrap();
    fs::remove_dir_all(back).unwrap();
}

/// Names and contents below a directory.
fn tree(dir: &Path) -> Vec<(String, Option<[u8; 32]>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            if path.is_dir() {
                found.push((name, None));
                dirs.push(path);
            } else {
                found.push((name, Some(Sha256::digest(fs::read(path).unwrap()).into())));
            }
        }
    }
    found.sort();
    found
}

const TALKER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: talker-WHICH}
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command:
    - sh
    - -c
    - |
      if [ ! -e /state/once ]; then touch /state/once; echo first life; exit 1; fi
      i=0
      while [ ! -e /state/stop ]; do echo line $i; i=$((i+1)); sleep 0.1; done
      printf 'good\nbye'
    volumeMounts: [{name: state, mountPath: /state}]
  volumes: [{name: state, emptyDir: {}}]
"#;

const SERVER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: echo:v1
    env: [{name: RAW_PORT, value: "9000"}]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{name: echo, port: 90, targetPort: 9000}, {name: web, port: 80, targetPort: 8080}]
"#;

#[test]
fn logs_ports_and_the_end() {
    let mut cluster = Cluster::start();
    cluster.apply(SERVER);
    for which in ["newest", "debian"] {
        cluster.apply(&TALKER.replace("WHICH", which));
    }
    cluster.wait_for("pod/server", "condition=Ready");
    for which in BOTH {
        logs_tell_everything(&cluster, which);
        ports_are_forwarded(&cluster, which);
    }
    streams_end_with_the_server(&mut cluster);
}

fn logs_tell_everything(cluster: &Cluster, which: Kubectl) {
    let pod = if which == Kubectl::Newest { "talker-newest" } else { "talker-debian" };
    let k = |args: &[&str]| cluster.kubectl_as(which, &[&["logs", pod], args].concat());
    cluster.wait_for(&format!("pod/{pod}"), "jsonpath={.status.containerStatuses[0].restartCount}=1");
    cluster.wait_for(&format!("pod/{pod}"), "condition=Ready");
    assert_eq!(k(&["--previous"]), "first life\n");
    // what the node says where there is none reaches whoever asked
    let refused = cluster.try_kubectl(which, &["logs", "server", "--previous"]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(
        words.contains("(BadRequest): previous terminated container \"")
            && words.contains("in pod \"server\" not found"),
        "{words}"
    );
    let mut follow = cluster.spawn_kubectl(which, &["logs", "-f", pod]);
    // kubectl cuts times to whole seconds: the last lines must be more than one younger than the first
    let begin = follow.read_until("line 17\n");
    assert!(begin.starts_with("line 0\nline 1\n"), "{begin}");
    // a line's time, and what was written since
    let stamped = k(&["--timestamps", "--tail=5"]);
    let first = stamped.lines().next().unwrap();
    let (time, line) = first.split_once(' ').unwrap();
    let since = k(&[&format!("--since-time={time}")]);
    assert!(since.contains(&format!("{line}\n")) && !since.starts_with("line 0\n"), "{since}");
    assert!(k(&["--since=1h"]).starts_with("line 0\n"));
    assert!(!k(&["--since=1s"]).starts_with("line 0\n"));
    assert_eq!(k(&["--tail=3"]).lines().count(), 3);
    assert_eq!(k(&["--limit-bytes=9"]), "line 0\nli");
    let mut tail = cluster.spawn_kubectl(which, &["logs", "-f", "--tail=1", pod]);
    assert!(!tail.read_until("\n").contains("line 0"));
    // it ends with the container, and has all of it, an unfinished line included
    cluster.kubectl(&["exec", pod, "--", "touch", "/state/stop"]);
    for follower in [follow, tail] {
        let out = follower.finish();
        assert!(out.status.success(), "{out:?}");
        assert!(text(&out.stdout).ends_with("good\nbye"), "{}", text(&out.stdout));
    }
    cluster.wait_for(&format!("pod/{pod}"), "jsonpath={.status.phase}=Succeeded");
    assert!(k(&[]).ends_with("good\nbye"));
    assert!(k(&["-f"]).ends_with("good\nbye"), "following what has ended ends");
}

/// Starts a port-forward on a free local port; gives that, too.
fn forward(cluster: &Cluster, which: Kubectl, target: &str, port: &str) -> (crate::harness::Background, u16) {
    let mut forward = cluster.spawn_kubectl(which, &["port-forward", target, port]);
    forward.read_until("Forwarding from 127.0.0.1:");
    let local = forward.read_until(" ");
    (forward, local.trim().parse().unwrap())
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends bytes to a server that sends them back, ends the sending half, and reads to the end.
fn round_trip(port: u16, data: &[u8]) -> Vec<u8> {
    let mut stream = connect(port);
    let mut sender = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            sender.write_all(data).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back
    })
}

fn ports_are_forwarded(cluster: &Cluster, which: Kubectl) {
    for (target, port) in [("pod/server", ":9000"), ("service/server", ":90")] {
        let (_forward, port) = forward(cluster, which, target, port);
        // one that stays open all the while
        let mut idle = connect(port);
        idle.write_all(b"still ").unwrap();
        let data = noise(1 << 20);
        std::thread::scope(|scope| {
            for n in 1..=6 {
                let data = &data[..data.len() / n];
                scope.spawn(move || {
                    let back = round_trip(port, data);
                    let same = back.iter().zip(data).take_while(|(a, b)| a == b).count();
                    assert!(back == data, "{which:?} {target}: {same} of {} bytes, then {}", data.len(), back.len());
                });
            }
        });
        idle.write_all(b"here").unwrap();
        idle.shutdown(Shutdown::Write).unwrap();
        let mut back = String::new();
        idle.read_to_string(&mut back).unwrap();
        assert_eq!(back, "still here");
    }
    let (_forward, port) = forward(cluster, which, "service/server", ":web");
    for _ in 0..3 {
        let body = crate::harness::http_get(([127, 0, 0, 1], port).into(), "/x").unwrap();
        assert!(body.contains("path=/x"), "{body}");
    }
    // a port that nobody listens on: the connection ends, and kubectl says why
    let (mut forward, port) = forward(cluster, which, "pod/server", ":81");
    assert_eq!(connect(port).read(&mut [0]).unwrap_or(0), 0);
    let said = forward.read_errors_until("refused");
    assert!(said.contains("failed to connect to localhost:81"), "{which:?}: {said}");
}

fn streams_end_with_the_server(cluster: &mut Cluster) {
    let mut streams = Vec::new();
    for which in BOTH {
        let mut shell = Terminal::start(cluster, which, &["exec", "-it", "server", "--", "sh"]);
        shell.keys("echo rea\"\"dy\n");
        shell.expect("ready");
        let mut logs = cluster.spawn_kubectl(which, &["logs", "-f", "server"]);
        logs.read_until("listening");
        let (forward, port) = forward(cluster, which, "pod/server", ":9000");
        let mut connection = connect(port);
        connection.write_all(b"x").unwrap();
        connection.read_exact(&mut [0]).unwrap();
        streams.push((shell, logs, forward, connection));
    }
    let begin = Instant::now();
    assert!(cluster.stop(Signal::SIGTERM).success());
    assert!(begin.elapsed() < Duration::from_secs(5), "it waited for streams: {:?}", begin.elapsed());
    for (mut shell, logs, forward, mut connection) in streams {
        shell.expect("the node agent is stopping");
        assert_eq!(shell.wait().code(), Some(1));
        logs.finish();
        assert_eq!(connection.read(&mut [0]).unwrap_or(0), 0);
        // kubectl notices a lost connection only when it has something to do
        drop(forward);
    }
    // the containers went on, and what ran for the streams has ended
    cluster.launch();
    let shells = eventually("the pod is back", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["exec", "server", "--", "busybox", "ps"]);
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
    });
    assert!(!shells.lines().any(|line| line.ends_with(" sh")), "{shells}");
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    assert_eq!(cluster.kubectl(&["get", "pod", "server", "-o", restarts]), "0");
}
