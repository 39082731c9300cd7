//! Exec and attach: the pipes between a client and a command.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::net::unix::pipe;

use edge_sys::pidfd::PidFd;

use super::Inner;
use crate::error::{Error, Result};
use crate::protocol::{ReplyBody, RequestBody};
use crate::session::{AttachSession, AttachStreams, ExecSession, Input, Output, Terminal};
use crate::spec::ExecSpec;

/// Wanted size in bytes of the pipes to attached clients, so that they miss nothing when they are slow for a moment.
const ATTACH_PIPE_SIZE: i32 = 1 << 20;

impl Inner {
    pub(super) async fn exec(&self, id: &str, spec: ExecSpec) -> Result<ExecSession> {
        if spec.args.is_empty() {
            return Err(Error::InvalidSpec("no command specified".to_owned()));
        }
        let (sandbox, container) = self.container(id)?;
        if container.spec.wasm.is_some() {
            return Err(Error::InvalidSpec(
                "a WebAssembly program runs in this container, and beside it no command can be executed".to_owned(),
            ));
        }
        let connection = sandbox.connection()?;
        let (mut streams, fds) = if spec.tty.is_some() { (Streams::default(), Vec::new()) } else { exec_pipes(&spec)? };
        let (name, exit) = connection.register_exec()?;
        let body =
            RequestBody::Exec { container: id.to_owned(), exec: name, args: spec.args.clone(), terminal: spec.tty };
        let answer = connection.request_with_fds(id, body, &fds).await;
        // The command holds them now; as long as we do, too, its output does not end.
        drop(fds);
        let (pid, fds) = match answer {
            Ok((ReplyBody::Exec { pid }, fds)) => (pid, fds),
            Ok(_) => return Err(Error::Monitor("unexpected answer to exec".to_owned())),
            Err(err) => {
                connection.unregister_exec(name);
                return Err(err);
            }
        };
        let mut fds = fds.into_iter();
        let process = fds.next().ok_or_else(|| Error::Monitor("no process handle came with exec".to_owned()))?;
        let mut terminal = None;
        if spec.tty.is_some() {
            let master = fds.next().ok_or_else(|| Error::Monitor("no terminal came with exec".to_owned()))?;
            let opened = Terminal::new(master).map_err(Error::io("cannot use", "terminal"))?;
            streams.stdin = spec.stdin.then(|| Box::new(opened.clone()) as Input);
            streams.stdout = spec.stdout.then(|| Box::new(opened.clone()) as Output);
            terminal = Some(opened);
        }
        Ok(ExecSession {
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal,
            pid,
            process: PidFd::from(process),
            exit,
            sandbox_id: sandbox.spec.id.clone(),
        })
    }

    pub(super) async fn attach(&self, id: &str, wanted: AttachStreams) -> Result<AttachSession> {
        let (sandbox, container) = self.container(id)?;
        let connection = sandbox.connection()?;
        let wanted = AttachStreams {
            stdin: wanted.stdin && container.spec.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr && !container.spec.tty,
        };
        let mut streams = Streams::default();
        let mut fds = Vec::new();
        if wanted.stdin {
            let (input, theirs) = input_pipe()?;
            streams.stdin = Some(input);
            fds.push(theirs);
        }
        if wanted.stdout {
            let (output, theirs) = large_output_pipe()?;
            streams.stdout = Some(output);
            fds.push(theirs);
        }
        if wanted.stderr {
            let (output, theirs) = large_output_pipe()?;
            streams.stderr = Some(output);
            fds.push(theirs);
        }
        let body = RequestBody::Attach {
            container: id.to_owned(),
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        };
        connection.request_with_fds(id, body, &fds).await?;
        Ok(AttachSession { stdin: streams.stdin, stdout: streams.stdout, stderr: streams.stderr })
    }
}

#[derive(Default)]
struct Streams {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
}

/// Our ends of what was asked for, and the three descriptors of the command.
fn exec_pipes(spec: &ExecSpec) -> Result<(Streams, Vec<OwnedFd>)> {
    let mut streams = Streams::default();
    let stdin = if spec.stdin {
        let (input, theirs) = input_pipe()?;
        streams.stdin = Some(input);
        theirs
    } else {
        null(File::options().read(true))?
    };
    let stdout = if spec.stdout {
        let (output, theirs) = output_pipe()?;
        streams.stdout = Some(output);
        theirs
    } else {
        null(File::options().write(true))?
    };
    let stderr = if spec.stderr {
        let (output, theirs) = output_pipe()?;
        streams.stderr = Some(output);
        theirs
    } else {
        null(File::options().write(true))?
    };
    Ok((streams, vec![stdin, stdout, stderr]))
}

fn null(options: &std::fs::OpenOptions) -> Result<OwnedFd> {
    options.open("/dev/null").map(OwnedFd::from).map_err(Error::io("cannot open", "/dev/null"))
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).map_err(|err| Error::io("cannot make", "pipe")(err.into()))
}

fn input_pipe() -> Result<(Input, OwnedFd)> {
    let (theirs, ours) = new_pipe()?;
    let ours = pipe::Sender::from_owned_fd(ours).map_err(Error::io("cannot use", "pipe"))?;
    Ok((Box::new(ours), theirs))
}

fn output_pipe() -> Result<(Output, OwnedFd)> {
    let (ours, theirs) = new_pipe()?;
    let ours = pipe::Receiver::from_owned_fd(ours).map_err(Error::io("cannot use", "pipe"))?;
    Ok((Box::new(ours), theirs))
}

fn large_output_pipe() -> Result<(Output, OwnedFd)> {
    let (output, theirs) = output_pipe()?;
    // Best effort: the total is limited for users without privileges.
    let _ = fcntl(theirs.as_fd(), FcntlArg::F_SETPIPE_SZ(ATTACH_PIPE_SIZE));
    Ok((output, theirs))
}
