//! The daemon's connection to one monitor: requests and their answers, and messages nobody asked for.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use edge_sys::pidfd::PidFd;
use edge_sys::socket;

use crate::error::{Error, Result};
use crate::paths::SOCKET;
use crate::protocol::{self, Failure, Message, ReplyBody, Request, RequestBody, VERSION};
use crate::status::ExitStatus;

type Answer = (std::result::Result<ReplyBody, Failure>, Vec<OwnedFd>);

/// A connection to a living monitor.
#[derive(Debug)]
pub(super) struct Connection {
    sandbox_id: String,
    socket: AsyncFd<OwnedFd>,
    monitor_pid: i32,
    monitor: PidFd,
    pause_pid: Option<i32>,
    next: AtomicU64,
    /// Keeps messages whole when the socket is full.
    sending: tokio::sync::Mutex<()>,
    /// `None` once the connection is closed.
    waiting: Mutex<Option<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    execs: HashMap<u64, oneshot::Sender<ExitStatus>>,
}

impl Connection {
    /// Connects to the monitor of the sandbox in `directory` and lets it introduce itself.
    pub(super) async fn open(sandbox_id: &str, directory: &Path) -> io::Result<Self> {
        let socket = edge_sys::async_fd::register(socket::connect_in(directory, SOCKET)?)?;
        let hello = next_message(&socket).await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let (Message::Hello { version, pid, pause_pid }, _) = hello else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the monitor did not introduce itself"));
        };
        if version != VERSION {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("the monitor speaks version {version}")));
        }
        Ok(Self {
            sandbox_id: sandbox_id.to_owned(),
            socket,
            monitor_pid: pid,
            monitor: PidFd::open(pid)?,
            pause_pid,
            next: AtomicU64::new(1),
            sending: tokio::sync::Mutex::default(),
            waiting: Mutex::new(Some(Waiting::default())),
        })
    }

    pub(super) fn monitor_pid(&self) -> i32 {
        self.monitor_pid
    }

    pub(super) fn pause_pid(&self) -> Option<i32> {
        self.pause_pid
    }

    /// A handle to the monitor's process.
    pub(super) fn monitor(&self) -> &PidFd {
        &self.monitor
    }

    /// The next message nobody asked for; `None` when the monitor is gone. Answers are handed to those who wait for them. Must
    /// be called again and again by one task.
    pub(super) async fn next_event(&self) -> io::Result<Option<Message>> {
        let result = loop {
            match next_message(&self.socket).await {
                Ok(Some((Message::Reply { sequence, result }, fds))) => {
                    let waiter = self.waiting.lock().as_mut().and_then(|waiting| waiting.answers.remove(&sequence));
                    if let Some(waiter) = waiter {
                        // Who asked may have given up.
                        let _ = waiter.send((result, fds));
                    }
                }
                Ok(Some((Message::ExecExited { exec, exit }, _))) => {
                    let waiter = self.waiting.lock().as_mut().and_then(|waiting| waiting.execs.remove(&exec));
                    if let Some(waiter) = waiter {
                        let _ = waiter.send(exit);
                    }
                }
                Ok(Some((message, _))) => return Ok(Some(message)),
                Ok(None) => break Ok(None),
                Err(err) => break Err(err),
            }
        };
        // Everybody who waits learns that nothing will come.
        *self.waiting.lock() = None;
        result
    }

    /// Asks the monitor to do something for a container (or, with an empty name, for the sandbox).
    pub(super) async fn request(&self, container: &str, body: RequestBody) -> Result<ReplyBody> {
        self.request_with_fds(container, body, &[]).await.map(|(body, _)| body)
    }

    /// As [`Self::request`], with descriptors there and back.
    pub(super) async fn request_with_fds(
        &self,
        container: &str,
        body: RequestBody,
        fds: &[OwnedFd],
    ) -> Result<(ReplyBody, Vec<OwnedFd>)> {
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.answers.insert(sequence, sender),
            None => return Err(self.gone()),
        };
        self.send(&Request { sequence, body }, fds).await?;
        let (result, fds) = receiver.await.map_err(|_| self.gone())?;
        result.map(|body| (body, fds)).map_err(|failure| to_error(container, failure))
    }

    /// A name for a new exec, and where its end will be told.
    pub(super) fn register_exec(&self) -> Result<(u64, oneshot::Receiver<ExitStatus>)> {
        let name = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.execs.insert(name, sender),
            None => return Err(self.gone()),
        };
        Ok((name, receiver))
    }

    /// Takes back [`Self::register_exec`].
    pub(super) fn unregister_exec(&self, name: u64) {
        if let Some(waiting) = self.waiting.lock().as_mut() {
            waiting.execs.remove(&name);
        }
    }

    async fn send(&self, request: &Request, fds: &[OwnedFd]) -> Result<()> {
        let bytes = protocol::encode(request).map_err(|err| Error::Monitor(err.to_string()))?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let _whole = self.sending.lock().await;
        loop {
            let mut guard = self.socket.writable().await.map_err(|_| self.gone())?;
            match guard.try_io(|socket| socket::send(socket.get_ref().as_fd(), &bytes, &fds)) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) => return Err(self.gone()),
                Err(_would_block) => {}
            }
        }
    }

    fn gone(&self) -> Error {
        Error::MonitorGone { id: self.sandbox_id.clone() }
    }
}

async fn next_message(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    loop {
        let mut guard = socket.readable().await?;
        match guard.try_io(|socket| protocol::receive(socket.get_ref().as_fd())) {
            Ok(Err(err)) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

fn to_error(container: &str, failure: Failure) -> Error {
    let id = container.to_owned();
    match failure {
        Failure::NotFound => Error::ContainerNotFound { id },
        Failure::WrongState(state) => Error::WrongState { id, state },
        Failure::Start(text) => Error::Start(text),
        Failure::Other(text) => Error::Monitor(text),
    }
}

/// Shared with the task that reads.
pub(super) type SharedConnection = Arc<Connection>;
