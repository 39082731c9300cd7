//! Unix sockets of type SEQPACKET with file descriptors: every message arrives whole, together with its descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, listen, recvmsg, sendmsg, socket, socketpair,
};

/// Most descriptors one message carries.
pub const MAX_FDS: usize = 8;

/// A connected pair of sockets, both close-on-exec and blocking.
///
/// # Errors
/// The error of `socketpair(2)`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A non-blocking listening socket at `path` (at most 107 bytes long), which must not exist.
///
/// # Errors
/// The error of the system calls.
pub fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(fd)
}

/// Takes one waiting connection, as a non-blocking socket; `None` when there is none.
///
/// # Errors
/// The error of `accept4(2)`.
pub fn accept_nonblocking(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
        // SAFETY: accept4 has just returned this new descriptor; nobody else owns it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Connects, as a non-blocking socket, to the listening socket `name` inside the directory `dir`, however long the directory's path is: the address of
/// a unix socket holds only 107 bytes, so the directory is reached through its descriptor.
///
/// # Errors
/// "Connection refused" when nobody listens any more; otherwise the error of the system call.
pub fn connect_in(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let dir = std::fs::File::open(dir)?;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    let address = UnixAddr::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).as_str())?;
    // Blocking until here: a full backlog is worth the moment it takes the listener to accept.
    connect(fd.as_raw_fd(), &address)?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// Sends one message with its descriptors (at most [`MAX_FDS`]).
///
/// # Errors
/// "Would block" when the peer is slow and the socket non-blocking; "broken pipe" when the peer is gone (no SIGPIPE).
pub fn send(socket: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

/// A received message and the descriptors that came with it (close-on-exec).
#[derive(Debug, Default)]
pub struct Message {
    /// The bytes; empty when the peer has closed the connection.
    pub bytes: Vec<u8>,
    /// The descriptors, in the order they were sent.
    pub fds: Vec<OwnedFd>,
}

/// Receives one message of at most `limit` bytes. An empty message means that the peer has closed the connection.
///
/// # Errors
/// "Invalid data" when the message or its descriptors did not fit; otherwise the error of `recvmsg(2)`.
pub fn receive(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Message> {
    // MSG_PEEK | MSG_TRUNC gives the size of the waiting message, so an idle process keeps no large buffer.
    let size = peek_size(socket)?;
    if size > limit {
        // Take it off the queue (and close what it carried), else the reader would see it again and again.
        let mut scratch = [0_u8; 1];
        drop(receive_into(socket, &mut scratch)?);
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message of {size} bytes exceeds the limit of {limit}"),
        ));
    }
    let mut buffer = vec![0_u8; size.max(1)];
    let (length, fds, truncated) = receive_into(socket, &mut buffer)?;
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message or its descriptors were truncated"));
    }
    buffer.truncate(length);
    Ok(Message { bytes: buffer, fds })
}

fn peek_size(socket: BorrowedFd<'_>) -> io::Result<usize> {
    loop {
        // SAFETY: recv(2) with a zero-length buffer writes nothing; the pointer is never dereferenced.
        let size = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_PEEK | libc::MSG_TRUNC) };
        if size >= 0 {
            return Ok(size as usize);
        }
        let err = io::Error::last_os_error();
        if err.kind() != io::ErrorKind::Interrupted {
            return Err(err);
        }
    }
}

fn receive_into(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let received = loop {
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(nix::errno::Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
    };
    let mut fds = Vec::new();
    let truncated = received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    if let Ok(messages) = received.cmsgs() {
        for message in messages {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    Ok((received.bytes, fds, truncated))
}

/// A duplicate of `fd`, close-on-exec.
///
/// # Errors
/// The error of `fcntl(2)`.
pub fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn message_and_descriptors_arrive_together() {
        let (a, b) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(a.as_fd(), b"hello", &[writer.as_fd()]).unwrap();
        send(a.as_fd(), b"second", &[]).unwrap();
        drop(writer);
        let message = receive(b.as_fd(), 100).unwrap();
        assert_eq!((message.bytes.as_slice(), message.fds.len()), (b"hello".as_slice(), 1));
        let mut passed = std::fs::File::from(message.fds.into_iter().next().unwrap());
        passed.write_all(b"through the passed pipe").unwrap();
        drop(passed);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the passed pipe");
        assert_eq!(receive(b.as_fd(), 100).unwrap().bytes, b"second");
        drop(a);
        assert!(receive(b.as_fd(), 100).unwrap().bytes.is_empty(), "a closed peer gives an empty message");
    }

    #[test]
    fn too_large_a_message_is_refused_and_does_not_block_the_next() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), &[7; 200], &[]).unwrap();
        send(a.as_fd(), b"next", &[]).unwrap();
        assert_eq!(receive(b.as_fd(), 100).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive(b.as_fd(), 100).unwrap().bytes, b"next");
    }

    #[test]
    fn connects_in_a_directory_with_a_long_path() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("x".repeat(120)).join("y".repeat(120));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(connect_in(&dir, "socket").is_err());
        let handle = std::fs::File::open(&dir).unwrap();
        let listener = listen_at(Path::new(&format!("/proc/self/fd/{}/socket", handle.as_raw_fd()))).unwrap();
        assert!(accept_nonblocking(listener.as_fd()).unwrap().is_none());
        let client = connect_in(&dir, "socket").unwrap();
        let server = accept_nonblocking(listener.as_fd()).unwrap().unwrap();
        send(client.as_fd(), b"x", &[]).unwrap();
        assert_eq!(receive(server.as_fd(), 10).unwrap().bytes, b"x");
    }
}
