//! The stdio of one container: what it prints goes to its log and to whoever is attached, what they type goes to it.
//!
//! The container never waits for anybody: attached clients that do not keep up miss output.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, fchown, pipe2, read, write};

use super::log::{LineSplitter, Log, Stream};
use crate::fdio::set_nonblocking;
use crate::spec::ContainerSpec;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Most chunks taken when a container has ended: more than any pipe holds, but an end, should something go on printing.
const DRAIN_CHUNKS: usize = 128;

/// The container's ends of its stdio, to be given to the process that becomes the container.
#[derive(Debug)]
pub(super) struct ContainerEnds {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// One output of a container.
#[derive(Debug)]
struct Source {
    /// `None` after its end.
    fd: Option<OwnedFd>,
    splitter: LineSplitter,
}

/// Somebody connected to a running container.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// Our ends of a container's stdio.
#[derive(Debug)]
pub(super) struct Stdio {
    stdout: Source,
    stderr: Source,
    stdin: Option<OwnedFd>,
    /// Typed but not yet taken by the container.
    typed: Vec<u8>,
    stdin_once: bool,
    attached: Vec<Attachment>,
}

/// One of the descriptors of a [`Stdio`] in the set the event loop waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    Stdout,
    Stderr,
    /// The container can take what was typed.
    Stdin,
    /// The attachment of this index has something typed, or is gone.
    Typed(usize),
}

impl Stdio {
    /// Makes the pipes of a container without a terminal. They belong to the container's user, who may open `/dev/stdout` again.
    pub(super) fn pipes(spec: &ContainerSpec) -> io::Result<(Self, ContainerEnds)> {
        let flags = nix::fcntl::OFlag::O_CLOEXEC;
        let (out_read, out_write) = pipe2(flags)?;
        let (err_read, err_write) = pipe2(flags)?;
        let (stdin, stdin_write) = if spec.stdin {
            let (in_read, in_write) = pipe2(flags)?;
            set_nonblocking(&in_write)?;
            (in_read, Some(in_write))
        } else {
            (OwnedFd::from(File::open("/dev/null")?), None)
        };
        let mut owned = vec![out_write.as_fd(), err_write.as_fd()];
        if spec.stdin {
            owned.push(stdin.as_fd());
        }
        for fd in owned {
            fchown(fd, Some(Uid::from_raw(spec.user.uid)), Some(Gid::from_raw(spec.user.gid)))?;
        }
        set_nonblocking(&out_read)?;
        set_nonblocking(&err_read)?;
        let ours = Self::new(spec, Some(out_read), Some(err_read), stdin_write);
        Ok((ours, ContainerEnds { stdin, stdout: out_write, stderr: err_write }))
    }

    /// For a container with a terminal; [`Self::set_terminal`] follows.
    pub(super) fn without_terminal_yet(spec: &ContainerSpec) -> Self {
        Self::new(spec, None, None, None)
    }

    fn new(spec: &ContainerSpec, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>, stdin: Option<OwnedFd>) -> Self {
        Self {
            stdout: Source { fd: stdout, splitter: LineSplitter::new(Stream::Stdout) },
            stderr: Source { fd: stderr, splitter: LineSplitter::new(Stream::Stderr) },
            stdin,
            typed: Vec::new(),
            stdin_once: spec.stdin_once,
            attached: Vec::new(),
        }
    }

    /// Takes over the master side of the container's terminal.
    pub(super) fn set_terminal(&mut self, master: OwnedFd, stdin: bool) -> io::Result<()> {
        set_nonblocking(&master)?;
        self.stdin = if stdin { Some(master.try_clone()?) } else { None };
        self.stdout.fd = Some(master);
        Ok(())
    }

    /// The container's terminal, when it has one and is alive.
    pub(super) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.stdout.fd.as_ref().map(AsFd::as_fd)
    }

    /// Connects somebody. Streams the container does not have are closed at once, which is their end.
    pub(super) fn attach(&mut self, mut attachment: Attachment) -> io::Result<()> {
        for fd in [&attachment.stdin, &attachment.stdout, &attachment.stderr].into_iter().flatten() {
            set_nonblocking(fd)?;
        }
        if self.stdin.is_none() {
            attachment.stdin = None;
        }
        if self.stdout.fd.is_none() {
            attachment.stdout = None;
        }
        if self.stderr.fd.is_none() {
            attachment.stderr = None;
        }
        self.attached.push(attachment);
        self.forget_detached();
        Ok(())
    }

    /// What to wait for: descriptors, whether to write instead of read, and what to call back with.
    pub(super) fn interests(&self) -> Vec<(BorrowedFd<'_>, bool, Interest)> {
        let mut list = Vec::new();
        list.extend(self.stdout.fd.as_ref().map(|fd| (fd.as_fd(), false, Interest::Stdout)));
        list.extend(self.stderr.fd.as_ref().map(|fd| (fd.as_fd(), false, Interest::Stderr)));
        if !self.typed.is_empty() {
            // Nothing more is taken from anybody until the container has taken this.
            list.extend(self.stdin.as_ref().map(|fd| (fd.as_fd(), true, Interest::Stdin)));
        } else if self.stdin.is_some() {
            for (index, attachment) in self.attached.iter().enumerate() {
                list.extend(attachment.stdin.as_ref().map(|fd| (fd.as_fd(), false, Interest::Typed(index))));
            }
        }
        list
    }

    /// Something of [`Self::interests`] is ready.
    pub(super) fn ready(&mut self, interest: Interest, log: &mut Log) {
        match interest {
            Interest::Stdout => {
                self.copy_output(Stream::Stdout, log);
            }
            Interest::Stderr => {
                self.copy_output(Stream::Stderr, log);
            }
            Interest::Stdin => self.give_typed(),
            Interest::Typed(index) => self.take_typed(index),
        }
    }

    /// Takes all output that is there now: the container has ended, and its log should be complete before anybody is told.
    pub(super) fn drain(&mut self, log: &mut Log) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            for _ in 0..DRAIN_CHUNKS {
                if !self.copy_output(stream, log) {
                    break;
                }
            }
        }
        self.stdin = None;
        self.typed.clear();
        for attachment in &mut self.attached {
            attachment.stdin = None;
        }
        self.forget_detached();
    }

    /// Ends everything, whoever still holds the other ends.
    pub(super) fn close(&mut self, log: &mut Log) {
        self.end(Stream::Stdout, log);
        self.end(Stream::Stderr, log);
        self.stdin = None;
        self.attached.clear();
    }

    /// Copies one chunk; false when there is nothing more for now.
    fn copy_output(&mut self, stream: Stream, log: &mut Log) -> bool {
        let mut buffer = [0_u8; CHUNK];
        let source = self.source(stream);
        let Some(fd) = &source.fd else { return false };
        match read(fd, &mut buffer) {
            Ok(count) if count > 0 => {
                source.splitter.push(&buffer[..count], log);
                self.give_output(stream, &buffer[..count]);
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => false,
            // End of file; a terminal nobody holds open any more gives EIO.
            Ok(_) | Err(_) => {
                self.end(stream, log);
                false
            }
        }
    }

    fn source(&mut self, stream: Stream) -> &mut Source {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn end(&mut self, stream: Stream, log: &mut Log) {
        let source = self.source(stream);
        source.fd = None;
        source.splitter.finish(log);
        for attachment in &mut self.attached {
            match stream {
                Stream::Stdout => attachment.stdout = None,
                Stream::Stderr => attachment.stderr = None,
            }
        }
        self.forget_detached();
    }

    fn give_output(&mut self, stream: Stream, output: &[u8]) {
        for attachment in &mut self.attached {
            let end = match stream {
                Stream::Stdout => &mut attachment.stdout,
                Stream::Stderr => &mut attachment.stderr,
            };
            let Some(fd) = end else { continue };
            match write(&*fd, output) {
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => *end = None,
            }
        }
        self.forget_detached();
    }

    fn take_typed(&mut self, index: usize) {
        let mut buffer = [0_u8; CHUNK];
        let Some(attachment) = self.attached.get_mut(index) else { return };
        let Some(fd) = &attachment.stdin else { return };
        match read(fd, &mut buffer) {
            Ok(count) if count > 0 => {
                self.typed.extend_from_slice(&buffer[..count]);
                self.give_typed();
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(_) | Err(_) => {
                attachment.stdin = None;
                if self.stdin_once {
                    self.stdin = None;
                }
                self.forget_detached();
            }
        }
    }

    fn give_typed(&mut self) {
        let Some(fd) = &self.stdin else {
            self.typed.clear();
            return;
        };
        match write(fd, &self.typed) {
            Ok(count) => {
                self.typed.drain(..count);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // The container has closed its stdin.
            Err(_) => {
                self.typed.clear();
                self.stdin = None;
            }
        }
        if self.typed.is_empty() {
            // Most containers are typed to once; the memory is not worth keeping.
            self.typed.shrink_to_fit();
        }
    }

    fn forget_detached(&mut self) {
        self.attached
            .retain(|attached| attached.stdin.is_some() || attached.stdout.is_some() || attached.stderr.is_some());
    }
}
