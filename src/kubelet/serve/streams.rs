//! `/exec`, `/attach`, `/portForward`: streams of running containers.

use super::{Answer, Refusal, full, query};
use crate::context::Context;
use crate::pods::record::State;
use crate::pods::shared::PodShared;
use edge_runtime::error::chain;
use edge_runtime::{AttachStreams, ExecSpec, WindowSize};
use edge_streaming::{
    Error, ExitStatus, PortConnection, RemoteCommandOptions, Session, TerminalSize, UpgradeError,
    port_forward as forward, remote_command,
};
use http::{Request, Response};
use hyper::body::Incoming;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

/// How long a connection to a port of a pod may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process may take to read what its client typed before it went away.
const INPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to hear that the agent ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The session, once the client has opened it, unless the agent ends before.
async fn established<T>(cx: &Context, what: &str, session: impl Future<Output = Result<T, Error>>) -> Option<T> {
    let opened = cx.stop.run_until_cancelled(session).await?;
    opened.inspect_err(|error| tracing::debug!(%error, "{what} did not come up")).ok()
}

fn upgraded(answer: Response<()>) -> Response<super::Body> {
    answer.map(|()| full(""))
}

fn refused(error: UpgradeError) -> Refusal {
    Refusal(error.status_code(), error.to_string())
}

/// The id of a running container.
fn running(shared: &PodShared, container: &str) -> Result<String, Refusal> {
    let record = shared.record();
    let state = record.containers.iter().find(|c| c.name == container).map(|c| &c.state);
    match state {
        Some(State::Running(running)) => Ok(running.id.clone()),
        _ => Err(Refusal::not_found(format!("container not found (\"{container}\")"))),
    }
}

fn options(query: &[(String, String)]) -> RemoteCommandOptions {
    let tty = super::flag(query, "tty");
    RemoteCommandOptions {
        stdin: super::flag(query, "input"),
        stdout: super::flag(query, "output"),
        stderr: super::flag(query, "error") && !tty,
        tty,
    }
}

fn window(size: TerminalSize) -> WindowSize {
    WindowSize { columns: size.columns, rows: size.rows }
}

/// Runs a command in a container.
pub(super) fn exec(shared: Arc<PodShared>, container: &str, mut request: Request<Incoming>) -> Answer {
    let query = query(&request);
    let args: Vec<String> = query.iter().filter(|(n, _)| n == "command").map(|(_, v)| v.clone()).collect();
    if args.is_empty() {
        return Err(Refusal::bad_request("you must specify at least 1 command"));
    }
    let id = running(&shared, container)?;
    let options = options(&query);
    let (answer, session) = remote_command(&mut request, options).map_err(refused)?;
    shared.cx.clone().streams.spawn(async move {
        if let Some(session) = established(&shared.cx, "exec", session).await {
            run_command(&shared, &id, args, options, session).await;
        }
    });
    Ok(upgraded(answer))
}

async fn run_command(
    shared: &PodShared,
    id: &str,
    args: Vec<String>,
    options: RemoteCommandOptions,
    mut session: Session,
) {
    let first_size = session.resize.as_mut().and_then(|sizes| sizes.try_recv().ok());
    let spec = ExecSpec {
        args,
        tty: options.tty.then(|| first_size.map(window).unwrap_or_default()),
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
    };
    let mut process = match shared.cx.runtime.exec(id, spec).await {
        Ok(process) => process,
        Err(error) => return refuse(session, chain(&error)).await,
    };
    let terminal = process.terminal();
    let resize = move |size: TerminalSize| {
        if let Some(terminal) = &terminal
            && let Err(error) = terminal.resize(window(size))
        {
            tracing::debug!(%error, "terminal not resized");
        }
        std::future::ready(())
    };
    let streams = Streams { stdin: process.stdin.take(), stdout: process.stdout.take(), stderr: process.stderr.take() };
    let wait = async {
        match process.wait().await {
            Ok(exit) if exit.code == 0 => ExitStatus::Success,
            Ok(exit) => ExitStatus::Exited(exit.code),
            Err(error) => ExitStatus::Failed(chain(&error)),
        }
    };
    pump(&shared.cx.stop, session, streams, resize, wait).await;
}

/// Connects to the streams of a container.
pub(super) fn attach(shared: Arc<PodShared>, container: &str, mut request: Request<Incoming>) -> Answer {
    let query = query(&request);
    let id = running(&shared, container)?;
    let options = options(&query);
    let (answer, session) = remote_command(&mut request, options).map_err(refused)?;
    shared.cx.clone().streams.spawn(async move {
        if let Some(session) = established(&shared.cx, "attach", session).await {
            run_attach(&shared, &id, options, session).await;
        }
    });
    Ok(upgraded(answer))
}

async fn run_attach(shared: &Arc<PodShared>, id: &str, options: RemoteCommandOptions, session: Session) {
    let wanted = AttachStreams { stdin: options.stdin, stdout: options.stdout, stderr: options.stderr };
    let attached = match shared.cx.runtime.attach(id, wanted).await {
        Ok(attached) => attached,
        Err(error) => return refuse(session, chain(&error)).await,
    };
    let streams = Streams { stdin: attached.stdin, stdout: attached.stdout, stderr: attached.stderr };
    let resize = |size: TerminalSize| {
        let (runtime, id) = (shared.cx.runtime.clone(), id.to_owned());
        async move {
            if let Err(error) = runtime.resize_container(&id, window(size)).await {
                tracing::debug!(error = chain(&error), "terminal not resized");
            }
        }
    };
    // it ends with the container, which is noticed by the end of its output, or of its running
    let mut record = shared.follow_record();
    let ended = async {
        let over = |record: &Arc<crate::pods::record::Record>| {
            !record.containers.iter().any(|c| matches!(&c.state, State::Running(r) if r.id == id))
        };
        // an error means that the pod is gone altogether
        let _ = record.wait_for(over).await;
        ExitStatus::Success
    };
    pump(&shared.cx.stop, session, streams, resize, ended).await;
}

async fn refuse(mut session: Session, cause: String) {
    session.stdout = None;
    session.stderr = None;
    // a client that is gone need not be told
    let _ = session.completion.finish(ExitStatus::Failed(cause)).await;
}

/// The streams of a process.
struct Streams {
    stdin: Option<edge_runtime::session::Input>,
    stdout: Option<edge_runtime::session::Output>,
    stderr: Option<edge_runtime::session::Output>,
}

/// Moves bytes between a client and a process until the process has ended and all its output was sent, or the client is
/// gone, or the agent ends, which the client is told: without a word it would take all for well.
async fn pump<Resizing: Future<Output = ()>>(
    stop: &CancellationToken,
    session: Session,
    streams: Streams,
    resize: impl Fn(TerminalSize) -> Resizing,
    wait: impl Future<Output = ExitStatus>,
) {
    let Session { stdin, stdout, stderr, resize: sizes, closed, completion } = session;
    let input = async {
        if let (Some(mut from), Some(mut to)) = (stdin, streams.stdin) {
            // a process that reads no more, or a client that sends no more: both end the input
            let _ = copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        }
    };
    // what was typed before the client went away is still for the process
    let abandoned = async {
        let patience = async {
            closed.cancelled().await;
            tokio::time::sleep(INPUT_TIMEOUT).await;
        };
        tokio::select! {
            _ = async { tokio::join!(input, closed.cancelled()) } => {}
            () = patience => {}
        }
    };
    let sizes = async {
        if let Some(mut sizes) = sizes {
            while let Some(size) = sizes.recv().await {
                resize(size).await;
            }
        }
        std::future::pending::<()>().await;
    };
    let output = async { tokio::join!(move_output(streams.stdout, stdout), move_output(streams.stderr, stderr)) };
    let process = async {
        let (status, _) = tokio::join!(wait, output);
        status
    };
    let status = tokio::select! {
        status = process => status,
        () = abandoned => return,
        () = sizes => return,
        () = stop.cancelled() => {
            let farewell = async {
                let told = completion.finish(ExitStatus::Failed("the node agent is stopping".into())).await;
                // the client closes the connection when it has heard it
                if told.is_ok() {
                    closed.cancelled().await;
                }
            };
            // a client that does not listen is let go
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
            return;
        }
    };
    if let Err(error) = completion.finish(status).await {
        tracing::debug!(%error, "client did not hear the end of its command");
    }
}

async fn move_output<R, W>(from: Option<R>, to: Option<W>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    // a client that is gone ends the copy, and with it the session
    let _ = copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// Forwards connections to ports of a pod.
pub(super) fn port_forward(shared: Arc<PodShared>, mut request: Request<Incoming>) -> Answer {
    let (answer, session) = forward(&mut request).map_err(refused)?;
    shared.cx.clone().streams.spawn(async move {
        let Some(mut session) = established(&shared.cx, "port-forward", session).await else { return };
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                connection = session.next() => match connection {
                    Some(connection) => { connections.spawn(serve_port(shared.clone(), connection)); }
                    None => return,
                },
                Some(_) = connections.join_next() => {}
                () = shared.cx.stop.cancelled() => return,
            }
        }
    });
    Ok(upgraded(answer))
}

async fn serve_port(shared: Arc<PodShared>, connection: PortConnection) {
    let PortConnection { port, stream, error, closed } = connection;
    let pod = tokio::select! {
        dialed = dial(shared.netns(), port) => dialed,
        () = closed.cancelled() => return,
    };
    let pod = match pod {
        Ok(pod) => pod,
        Err(e) => {
            let (name, uid) = (&shared.name, &shared.uid);
            let why = format!("failed to connect to localhost:{port} inside namespace: {e}");
            return error.send(format!("error forwarding port {port} to pod {name}, uid {uid}: {why}"));
        }
    };
    let (mut from_client, mut to_client) = tokio::io::split(stream);
    let (mut from_pod, mut to_pod) = pod.into_split();
    let sending = async {
        // how the connection ends is the peers' affair
        let sent = copy(&mut from_client, &mut to_pod).await;
        let _ = to_pod.shutdown().await;
        tracing::debug!(port, ?sent, "the client of a forwarded port has ended its half");
        std::future::pending::<()>().await;
    };
    let receiving = async {
        let received = copy(&mut from_pod, &mut to_client).await;
        let _ = to_client.shutdown().await;
        tracing::debug!(port, ?received, "forwarded port");
    };
    // what the pod has ended is over: a client that waits for the end would otherwise keep its side open for ever
    tokio::select! {
        () = sending => {}
        () = receiving => {}
        () = closed.cancelled() => tracing::debug!(port, "the client gave a forwarded port up"),
    }
}

/// Connects to a port of the loopback interface, in a network namespace if given.
async fn dial(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let first = match connect(netns.clone(), SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    connect(netns, SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await.map_err(|_| first)
}

async fn connect(netns: Option<PathBuf>, address: SocketAddr) -> io::Result<TcpStream> {
    let open = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = match netns {
        // only making it takes a thread: it stays in its namespace wherever it is used
        Some(netns) => {
            let opened = tokio::task::spawn_blocking(move || edge_sys::netns::run_in(&netns, open)?);
            opened.await.map_err(io::Error::other)??
        }
        None => open()?,
    };
    let connected = tokio::time::timeout(DIAL_TIMEOUT, socket.connect(address)).await;
    let stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
