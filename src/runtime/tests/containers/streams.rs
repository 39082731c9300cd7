//! What goes into containers and comes out of them: logs, exec, attach, terminals.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use edge_runtime::spec::{LogRotation, User};
use edge_runtime::{AttachStreams, Error, ExecSpec, PodRuntime, WindowSize};
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{LogLine, Node, eventually, exit_of, is_alive, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("logs_are_complete", logs_are_complete),
        trial("logs_are_rotated", logs_are_rotated),
        trial("a_user_may_open_dev_stdout", a_user_may_open_dev_stdout),
        trial("exec_streams_and_exit_codes", exec_streams_and_exit_codes),
        trial("exec_gets_the_identity_of_the_container", exec_gets_the_identity_of_the_container),
        trial("exec_of_nothing", exec_of_nothing),
        trial("exec_with_a_terminal", exec_with_a_terminal),
        trial("an_exec_can_be_killed", an_exec_can_be_killed),
        trial("attach_to_a_filter", attach_to_a_filter),
        trial("attached_clients_cannot_block_a_container", attached_clients_cannot_block_a_container),
        trial("a_container_with_a_terminal", a_container_with_a_terminal),
        trial("grandchildren_do_not_delay_the_end", grandchildren_do_not_delay_the_end),
    ]
}

fn line(stream: &str, full: bool, text: &str) -> LogLine {
    LogLine { stream: stream.to_owned(), full, text: text.to_owned() }
}

async fn logs_are_complete(node: Arc<Node>) {
    node.sandbox("a").await;
    let script = "echo one; echo two >&2; sleep 0.1; printf 'no newline'";
    node.run("a", node.container("c", script)).await;
    // The order between two pipes is nobody's promise.
    let mut log = node.log("c");
    log.sort_by(|a, b| a.stream.cmp(&b.stream));
    assert_eq!(log, [line("stderr", true, "two"), line("stdout", true, "one"), line("stdout", false, "no newline")]);

    node.run("a", node.container("long", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end")).await;
    let lengths: Vec<_> = node.log("long").iter().map(|line| (line.full, line.text.len())).collect();
    assert_eq!(lengths, [(false, 16384), (false, 16384), (true, 40000 - 2 * 16384), (true, 3)]);

    // All lines are there when the end is told, however many.
    let exit = node.run("a", node.container("many", "seq 1 50000")).await;
    assert_eq!(exit.code, 0);
    let log = node.log("many");
    assert_eq!(log.len(), 50000);
    assert!(log.iter().enumerate().all(|(index, line)| line.text == (index + 1).to_string()));
}

async fn logs_are_rotated(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = node.container("c", "seq 1 20000");
    spec.log_rotation = LogRotation { max_size: 100_000, max_files: 3 };
    node.run("a", spec).await;
    let mut files: Vec<_> =
        fs::read_dir(node.place.path().join("logs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 100_000));
    assert_eq!(node.log("c").last().unwrap().text, "20000");

    // Somebody else renames it.
    let log = node.place.path().join("logs/d.log");
    node.start("a", node.container("d", "echo before; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo after")).await;
    eventually("the first line is logged", || !node.log("d").is_empty()).await;
    fs::rename(&log, node.place.path().join("logs/moved")).unwrap();
    node.runtime.reopen_log("d").await.unwrap();
    let mut events = node.runtime.events();
    node.exec("d", &["touch", "/tmp/go"]).await;
    exit_of(&mut events, "d").await;
    assert_eq!(node.log("d"), [line("stdout", true, "after")]);
}

async fn a_user_may_open_dev_stdout(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = node.container("c", "echo out > /dev/stdout; echo err > /dev/stderr; id -u");
    spec.user = User { uid: 1000, gid: 1000, ..User::default() };
    let exit = node.run("a", spec).await;
    assert_eq!(exit.code, 0, "{:?}", node.log("c"));
    let mut texts: Vec<_> = node.log("c").into_iter().map(|line| line.text).collect();
    texts.sort();
    assert_eq!(texts, ["1000", "err", "out"]);
}

async fn exec_streams_and_exit_codes(node: Arc<Node>) {
    node.sandbox("a").await;
    node.start("a", node.container("c", "sleep 1000")).await;
    let (exit, stdout, stderr) = node.exec("c", &["sh", "-c", "echo out; echo err >&2; exit 9"]).await;
    assert_eq!((exit.code, stdout.as_str(), stderr.as_str()), (9, "out\n", "err\n"));
    let (exit, ..) = node.exec("c", &["sh", "-c", "kill -TERM $$"]).await;
    assert_eq!((exit.code, exit.signal), (143, Some(15)));

    // A megabyte through stdin and back.
    let args = vec!["cat".to_owned()];
    let spec = ExecSpec { args, stdin: true, stdout: true, ..ExecSpec::default() };
    let mut session = node.runtime.exec("c", spec).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    let writer = tokio::spawn({
        let sent = sent.clone();
        async move { stdin.write_all(&sent).await.unwrap() }
    });
    let mut received = Vec::new();
    stdout.read_to_end(&mut received).await.unwrap();
    writer.await.unwrap();
    assert!(received == sent);
    assert_eq!(session.wait().await.unwrap().code, 0);

    // Without any stream, and in parallel.
    let mut tasks = Vec::new();
    for number in 0..20 {
        let node = Arc::clone(&node);
        tasks.push(tokio::spawn(async move {
            let args = ["sh", "-c", &format!("cat; exit {number}")].map(str::to_owned).to_vec();
            let mut session = node.runtime.exec("c", ExecSpec { args, ..ExecSpec::default() }).await.unwrap();
            assert!(session.stdin.is_none() && session.stdout.is_none() && session.stderr.is_none());
            assert_eq!(session.wait().await.unwrap().code, number);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn exec_gets_the_identity_of_the_container(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = node.container("c", "sleep 1000");
    spec.user = User { uid: 1000, gid: 1001, additional_gids: vec![7], home: Some("/home/web".to_owned()) };
    spec.fs_group = Some(4242);
    spec.cwd = "/work/here".into();
    spec.env = vec![("COLOR".to_owned(), "red".to_owned()), ("COLOR".to_owned(), "blue".to_owned())];
    node.start("a", spec).await;
    let show = "id -u; id -g; id -G; pwd; echo $COLOR $HOME $HOSTNAME; hostname; test $(readlink /proc/self/ns/pid) = pid:[$(stat -L -c %i /proc/1/ns/pid)] && echo 1; \
                echo x > /dev/stdout";
    let (exit, stdout, stderr) = node.exec("c", &["sh", "-c", show]).await;
    assert_eq!(exit.code, 0, "{stdout} {stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(
        &lines[..8],
        ["1000", "1001", "1001 7 4242", "/work/here", "blue /home/web host-a", "host-a", "1", "x"],
        "{stdout}"
    );
    let pattern = "^(CapEff|CapBnd|Seccomp|SigBlk|SigIgn):";
    let (_, stdout, _) = node.exec("c", &["grep", "-E", pattern, "/proc/self/status"]).await;
    let lines: Vec<&str> = stdout.lines().collect();
    let status = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    assert_eq!(status("CapEff:"), "0000000000000000");
    assert_eq!(status("CapBnd:"), "00000000a80425fb", "the default capabilities of container engines");
    assert_eq!(status("Seccomp:"), "2", "filtered");
    assert_eq!((status("SigBlk:"), status("SigIgn:")), ("0000000000000000", "0000000000000000"));
    // It counts against the container's limits.
    let pid =
        node.runtime.exec("c", ExecSpec { args: vec!["sleep".to_owned(), "1000".to_owned()], ..ExecSpec::default() });
    let pid = pid.await.unwrap().pid();
    assert!(node.cgroups().processes("kubepods/burstable/poda/c").unwrap().contains(&pid));
    // And ends with it.
    node.runtime.remove_container("c").await.unwrap();
    assert!(!is_alive(pid));
}

async fn exec_of_nothing(node: Arc<Node>) {
    node.sandbox("a").await;
    node.start("a", node.container("c", "sleep 1000")).await;
    let monitor = node.place.monitors()[0];
    for _ in 0..10 {
        let spec = ExecSpec { args: vec!["/bin/nonexist".to_owned()], stdout: true, ..ExecSpec::default() };
        let err = node.runtime.exec("c", spec).await.unwrap_err();
        assert_eq!(err.to_string(), "exec: \"/bin/nonexist\": stat /bin/nonexist: no such file or directory");
    }
    assert!(matches!(node.runtime.exec("c", ExecSpec::default()).await, Err(Error::InvalidSpec(_))));
    // No zombies: the only child is the container.
    eventually("all helpers are reaped", || {
        let children = fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
        children.split_whitespace().count() == 1
    })
    .await;
    assert_eq!(node.runtime.stop_container("c", Duration::ZERO).await.unwrap().signal, Some(9));
    let spec = ExecSpec { args: vec!["true".to_owned()], ..ExecSpec::default() };
    assert!(matches!(node.runtime.exec("c", spec).await, Err(Error::WrongState { state, .. }) if state == "exited"));
}

async fn exec_with_a_terminal(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut spec = node.container("c", "sleep 1000");
    spec.user = User { uid: 1000, gid: 1000, ..User::default() };
    node.start("a", spec).await;
    let tty = Some(WindowSize { columns: 91, rows: 17 });
    let args =
        ["sh", "-c", "tty; stty size; echo again > /dev/stdout; read x; stty size; exit 4"].map(str::to_owned).to_vec();
    let spec = ExecSpec { args, tty, stdin: true, stdout: true, stderr: true };
    let mut session = node.runtime.exec("c", spec).await.unwrap();
    assert!(session.stderr.is_none());
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("again") {
        let mut buffer = [0; 1000];
        let count = stdout.read(&mut buffer).await.unwrap();
        assert!(count > 0, "ended after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(seen.starts_with("/dev/pts/0\r\n17 91\r\n"), "{seen:?}");
    session.resize(WindowSize { columns: 132, rows: 50 }).unwrap();
    stdin.write_all(b"\n").await.unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("50 132\r\n"), "{rest:?}");
    assert_eq!(session.wait().await.unwrap().code, 4);
}

async fn an_exec_can_be_killed(node: Arc<Node>) {
    node.sandbox("a").await;
    node.start("a", node.container("c", "sleep 1000")).await;
    let spec = ExecSpec { args: vec!["sleep".to_owned(), "1000".to_owned()], stdout: true, ..ExecSpec::default() };
    let mut session = node.runtime.exec("c", spec).await.unwrap();
    session.kill(9).unwrap();
    assert_eq!(session.wait().await.unwrap().signal, Some(9));
    session.kill(9).unwrap();
    // The container itself goes on.
    assert_eq!(node.exec("c", &["true"]).await.0.code, 0);
}

async fn attach_to_a_filter(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut events = node.runtime.events();
    let mut spec = node.container("c", "cat; echo done >&2");
    (spec.stdin, spec.stdin_once) = (true, true);
    node.start("a", spec).await;
    let all = AttachStreams { stdin: true, stdout: true, stderr: true };
    let mut session = node.runtime.attach("c", all).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let sent = "a line\n".repeat(20_000);
    let (mut stdout, mut stderr) = (session.stdout.take().unwrap(), session.stderr.take().unwrap());
    let writer = tokio::spawn({
        let sent = sent.clone();
        async move {
            stdin.write_all(sent.as_bytes()).await.unwrap();
            // Dropping it is the end of the container's stdin, because of stdin_once.
        }
    });
    let (mut received, mut errors) = (String::new(), String::new());
    stdout.read_to_string(&mut received).await.unwrap();
    stderr.read_to_string(&mut errors).await.unwrap();
    writer.await.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    assert_eq!(errors, "done\n");
    assert_eq!(exit_of(&mut events, "c").await.code, 0);
    assert_eq!(node.log("c").len(), 20_001, "what is attached to is logged all the same");
    assert!(matches!(node.runtime.attach("c", all).await, Err(Error::WrongState { .. })));

    // Without stdin_once the container's stdin stays open for the next client.
    let mut spec = node.container("d", "read a; read b; echo $a $b");
    spec.stdin = true;
    node.start("a", spec).await;
    for text in ["first\n", "second\n"] {
        let mut session =
            node.runtime.attach("d", AttachStreams { stdin: true, stdout: false, stderr: false }).await.unwrap();
        session.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    }
    assert_eq!(exit_of(&mut events, "d").await.code, 0);
    assert_eq!(node.log("d")[0].text, "first second");
}

async fn attached_clients_cannot_block_a_container(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut events = node.runtime.events();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.01; done; head -c 8000000 /dev/zero | tr '\\0' x | cut -c1-100";
    node.start("a", node.container("c", script)).await;
    let session = node.runtime.attach("c", AttachStreams { stdin: false, stdout: true, stderr: true }).await.unwrap();
    node.exec("c", &["touch", "/tmp/go"]).await;
    // Nobody reads, and yet it ends.
    assert_eq!(exit_of(&mut events, "c").await.code, 0);
    drop(session);
}

async fn a_container_with_a_terminal(node: Arc<Node>) {
    node.sandbox("a").await;
    let mut events = node.runtime.events();
    let script =
        "tty; echo $TERM; read x; stty size; echo got $x >&2; echo again > /dev/stdout; ls -l /dev/console | cut -c1";
    let mut spec = node.container("c", script);
    spec.user = User { uid: 1000, gid: 1000, ..User::default() };
    (spec.tty, spec.stdin) = (true, true);
    node.start("a", spec).await;
    node.runtime.resize_container("c", WindowSize { columns: 100, rows: 30 }).await.unwrap();
    let mut session =
        node.runtime.attach("c", AttachStreams { stdin: true, stdout: true, stderr: true }).await.unwrap();
    assert!(session.stderr.is_none());
    session.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
    let mut output = String::new();
    session.stdout.as_mut().unwrap().read_to_string(&mut output).await.unwrap();
    assert_eq!(exit_of(&mut events, "c").await.code, 0, "{:?}", node.log("c"));
    // The terminal's echo of what was typed may come before anything the shell prints.
    let mut log: Vec<String> = node.log("c").into_iter().map(|line| line.text.trim_end().to_owned()).collect();
    let echo = log.iter().position(|line| line == "hello").unwrap();
    log.remove(echo);
    assert_eq!(log, ["/dev/pts/0", "xterm", "30 100", "got hello", "again", "c"]);
    assert!(output.contains("got hello\r\n"), "{output:?}");
}

async fn grandchildren_do_not_delay_the_end(node: Arc<Node>) {
    let mut spec = node.sandbox_spec("a");
    spec.share_process_namespace = true;
    node.runtime.create_sandbox(spec).await.unwrap();
    // In a shared PID namespace the background process survives the first one and holds the pipes open.
    let exit = node.run("a", node.container("c", "sleep 1000 & echo $!; printf tail; exit 6")).await;
    assert_eq!(exit.code, 6);
    assert!(node.log("c")[0].full);
    eventually("the rest of the container is killed", || {
        node.cgroups().processes("kubepods/burstable/poda/c").unwrap().is_empty()
    })
    .await;
    // The unfinished line is written when the pipe ends.
    eventually("the last line is logged", || node.log("c").last().unwrap().text == "tail").await;
    assert_eq!(node.log("c").last().unwrap(), &line("stdout", false, "tail"));
}
