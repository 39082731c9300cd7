//! What is said on a connection: JSON in messages of a SEQPACKET socket, some with descriptors.
//!
//! The host greets. Then come the listening sockets of a server, one a message, and the start, by which the program is prepared, and
//! at last the word to run. It ends with [`Event::Refused`] or [`Event::Ended`].
//!
//! The other side may be older or younger than the host: fields are only ever added, with defaults.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::invocation::{Invocation, Outcome};

/// Most bytes of a message; what may be longer is in a file.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;
/// Most bytes of a [`Spec`]: arguments and environment of a pod can have some MiB.
pub(super) const MAX_SPEC: u64 = 16 << 20;

/// What the host is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Comes with a socket on which a server is to accept.
    Listener,
    /// Comes with what [`Descriptors`] lists, in its order, after a file with the [`Spec`].
    Start,
    /// Lets the program run that is prepared.
    Run,
    /// The answer to an [`Event::Dial`]: why there is no connection, or else it comes with a connected socket.
    Dialled {
        /// That of the event.
        id: u64,
        /// `None` for a connection.
        failure: Option<DialFailure>,
    },
    /// Ends the program: a command at once, with this exit code; a server when it has answered what has begun, or at once when it is
    /// asked again.
    End(i32),
    /// Asks for an [`Event::Usage`].
    Usage,
}

/// Why a connection for a request could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DialFailure {
    /// The name means nothing, in words.
    Name(String),
    /// Nobody could be reached: the number of the system's error.
    Connect(i32),
}

/// What the host tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The host is there, and will be as long as this connection is. The first word on every one.
    Hello,
    /// The program can run.
    Prepared,
    /// The program wants a connection, which the host cannot make: it is in nobody's network.
    Dial {
        /// For the answer.
        id: u64,
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The program has begun.
    Running,
    /// It cannot begin, and why.
    Refused(String),
    /// How it ended. All that it wrote is in its pipes.
    Ended(Outcome),
    /// What it uses.
    Usage(Usage),
}

/// What a program uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Nanoseconds of processor time so far.
    pub cpu: u64,
    /// Bytes of memories and tables now, of all its instances.
    pub memory: u64,
}

/// What is to run. Directories are not named but given: `preopens` holds their paths for the program alone, and only one for `/` is
/// heeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// The program and its surroundings.
    pub invocation: Invocation,
    /// Thousandths of a processor that it may use; no limit without.
    pub cpu_millis: Option<u32>,
}

/// What a program consists of and gets.
#[derive(Debug)]
pub struct Descriptors<'a> {
    /// File of machine code, as for [`crate::Program::prepare`].
    pub code: BorrowedFd<'a>,
    /// Directory that the program sees as `/`.
    pub root: BorrowedFd<'a>,
    /// Pipe for its standard output; nobody else may have its writing end.
    pub stdout: BorrowedFd<'a>,
    /// Pipe for its standard error.
    pub stderr: BorrowedFd<'a>,
}

/// Gives a listening socket for the program that is started next on this connection.
///
/// # Errors
/// That the host is gone.
pub fn send_listener(socket: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<()> {
    edge_sys::socket::send(socket, &serde_json::to_vec(&Request::Listener)?, &[listener])
}

/// Starts a program.
///
/// # Errors
/// That the host is gone, or no memory for the message.
pub fn send_start(socket: BorrowedFd<'_>, spec: &Spec, descriptors: &Descriptors<'_>) -> io::Result<()> {
    let mut file = File::from(memfd_create(c"spec", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(spec)?)?;
    file.rewind()?;
    let Descriptors { code, root, stdout, stderr } = *descriptors;
    let fds = [file.as_fd(), code, root, stdout, stderr];
    edge_sys::socket::send(socket, &serde_json::to_vec(&Request::Start)?, &fds)
}

/// Gives a connection that was asked for.
///
/// # Errors
/// That the host is gone.
pub fn send_dialled(socket: BorrowedFd<'_>, id: u64, connected: BorrowedFd<'_>) -> io::Result<()> {
    edge_sys::socket::send(socket, &serde_json::to_vec(&Request::Dialled { id, failure: None })?, &[connected])
}

/// Sends a request without descriptors.
///
/// # Errors
/// That the host is gone.
pub fn send_request(socket: BorrowedFd<'_>, request: &Request) -> io::Result<()> {
    edge_sys::socket::send(socket, &serde_json::to_vec(request)?, &[])
}

/// Receives what the host tells; `None` when it is gone.
///
/// # Errors
/// "Would block" when nothing is there and the socket does not wait, and what is no event.
pub fn read_event(socket: BorrowedFd<'_>) -> io::Result<Option<Event>> {
    let message = edge_sys::socket::receive(socket, MAX_MESSAGE)?;
    if message.bytes.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&message.bytes)?)) }
}

/// What came with a start.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) spec: File,
    pub(super) code: File,
    pub(super) root: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Received {
    pub(super) fn new(fds: Vec<OwnedFd>) -> Option<Self> {
        let [spec, code, root, stdout, stderr] = <[OwnedFd; 5]>::try_from(fds).ok()?;
        Some(Self { spec: spec.into(), code: code.into(), root, stdout, stderr })
    }
}

/// A peer that does not keep to the order of things.
pub(super) fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
