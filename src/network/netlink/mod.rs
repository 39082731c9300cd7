//! A small synchronous netlink client, shared by links and addresses (rtnetlink), nftables and conntrack (nfnetlink).
//!
//! Comes in: [`Message`]s. Goes out: the kernel's answers as bytes, its refusals as [`Error::Kernel`]. A socket belongs to
//! the network namespace of the thread that opened it.

mod message;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

pub(crate) use message::{
    ATTRIBUTE_HEADER, ATTRIBUTE_MAX, Message, Received, attribute, attribute_at, attributes, be_u16, be_u32, messages,
    ne_u32, text,
};

use crate::Error;

/// Large enough for every datagram of the kernel (dumps come in pieces of at most 32 KiB).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// How often a dump that another change interrupted is started again.
const DUMP_ATTEMPTS: usize = 16;

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket for links, addresses and routes in the current network namespace.
    pub(crate) fn route() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkRoute, 0)
    }

    /// Opens a socket for nftables and conntrack in the current network namespace.
    pub(crate) fn netfilter() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkNetFilter, 0)
    }

    /// Opens a socket for generic netlink families in the current network namespace.
    pub(crate) fn generic() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkGeneric, 0)
    }

    /// Opens a socket that receives the news of some groups of rtnetlink (a bit for each), of the current namespace.
    pub(crate) fn watch(groups: u32) -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkRoute, groups)
    }

    /// The same for nfnetlink.
    pub(crate) fn watch_netfilter(groups: u32) -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkNetFilter, groups)
    }

    fn open(protocol: SockProtocol, groups: u32) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::kernel("open netlink socket", errno);
        let fd =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(protocol)).map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(failed)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, operation: &str, mut message: Message) -> Result<(), Error> {
        message.add_flags(libc::NLM_F_ACK as u16);
        self.exchange(operation, message, |_, _| {})
    }

    /// Sends one request whose answer is a single message; gives its kind and payload.
    pub(crate) fn get(&mut self, operation: &str, mut message: Message) -> Result<(u16, Vec<u8>), Error> {
        message.add_flags(libc::NLM_F_ACK as u16);
        let mut answer = None;
        self.exchange(operation, message, |kind, payload| answer = Some((kind, payload.to_vec())))?;
        answer.ok_or_else(|| Error::Malformed { operation: operation.to_owned() })
    }

    /// Sends a dump request; gives every object's message (kind, payload). A dump that a concurrent change interrupted
    /// is repeated, so the result is consistent.
    pub(crate) fn dump(&mut self, operation: &str, mut message: Message) -> Result<Vec<(u16, Vec<u8>)>, Error> {
        message.add_flags(libc::NLM_F_DUMP as u16);
        for _ in 0..DUMP_ATTEMPTS {
            let mut all = Vec::new();
            match self.exchange(operation, message.clone(), |kind, payload| all.push((kind, payload.to_vec()))) {
                Err(err) if err.errno() == Some(libc::EINTR) => {}
                Err(err) => return Err(err),
                Ok(()) => return Ok(all),
            }
        }
        Err(Error::kernel(operation, Errno::EINTR))
    }

    fn exchange(&mut self, operation: &str, message: Message, mut answer: impl FnMut(u16, &[u8])) -> Result<(), Error> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(operation, &message.finish(sequence))?;
        let mut interrupted = false;
        loop {
            let length = self.receive(MsgFlags::empty()).map_err(|errno| Error::kernel(operation, errno))?;
            let datagram = &self.buffer[..length];
            let mut understood = false;
            for received in messages(datagram) {
                understood = true;
                if received.sequence != sequence {
                    continue;
                }
                interrupted |= received.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(received.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        // Both carry a negative error number; NLMSG_DONE of old kernels may carry none.
                        return match error_number(received.payload) {
                            None | Some(0) if interrupted => Err(Error::kernel(operation, Errno::EINTR)),
                            None | Some(0) => Ok(()),
                            Some(number) => Err(Error::kernel(operation, io::Error::from_raw_os_error(number))),
                        };
                    }
                    libc::NLMSG_NOOP => {}
                    _ => answer(received.kind, received.payload),
                }
            }
            if !understood {
                return Err(Error::Malformed { operation: operation.to_owned() });
            }
        }
    }

    /// Sends an nfnetlink batch, which the kernel applies as a whole or not at all. `operations` are the messages between
    /// the batch's begin and end, each with a description for the error; at least one.
    pub(crate) fn batch(
        &mut self,
        begin: Message,
        operations: Vec<(String, Message)>,
        end: Message,
    ) -> Result<(), Error> {
        let first = self.sequence + 1;
        let mut names = Vec::with_capacity(operations.len());
        let mut bytes = begin.finish(first);
        let last = operations.len().saturating_sub(1);
        for (index, (name, mut message)) in operations.into_iter().enumerate() {
            if index == last {
                // One acknowledgement tells that all went well: with one for each the receive buffer would overflow.
                message.add_flags(libc::NLM_F_ACK as u16);
            }
            names.push(name);
            bytes.extend(message.finish(first + names.len() as u32));
        }
        let final_sequence = first + names.len() as u32;
        bytes.extend(end.finish(final_sequence + 1));
        self.sequence = final_sequence + 1;
        self.grow_send_buffer(bytes.len());
        self.send("apply nftables batch", &bytes)?;
        self.batch_result(first, final_sequence, &names)
    }

    /// The answers are in the socket's queue when the batch's `send` returns; the first refusal is the cause.
    fn batch_result(&mut self, first: u32, last: u32, names: &[String]) -> Result<(), Error> {
        let name_of = |sequence: u32| {
            let index = (sequence as usize).checked_sub(first as usize + 1);
            index.and_then(|i| names.get(i)).map_or("commit nftables batch", String::as_str)
        };
        let mut acknowledged = false;
        loop {
            let length = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EAGAIN) if acknowledged => return Ok(()),
                Err(errno) => return Err(Error::kernel("apply nftables batch", errno)),
            };
            let mut refused = None;
            for received in messages(&self.buffer[..length]) {
                let of_batch =
                    i32::from(received.kind) == libc::NLMSG_ERROR && (first..=last).contains(&received.sequence);
                match error_number(received.payload) {
                    _ if !of_batch => {}
                    Some(0) => acknowledged |= received.sequence == last,
                    number => refused = refused.or(Some((received.sequence, number.unwrap_or(libc::EPROTO)))),
                }
            }
            if let Some((sequence, number)) = refused {
                self.drain();
                return Err(Error::kernel(name_of(sequence), io::Error::from_raw_os_error(number)));
            }
        }
    }

    fn drain(&mut self) {
        while self.receive(MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    fn grow_send_buffer(&self, wanted: usize) {
        // The kernel counts its own overhead too. A failure shows as "message too long" when sending.
        let wanted = wanted * 2 + 4096;
        let _ = setsockopt(&self.fd, sockopt::SndBufForce, &wanted)
            .or_else(|_| setsockopt(&self.fd, sockopt::SndBuf, &wanted));
    }

    fn send(&self, operation: &str, bytes: &[u8]) -> Result<(), Error> {
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::kernel(operation, errno)),
            }
        }
    }

    /// The next datagram, if one has come.
    pub(crate) fn try_receive(&mut self) -> Result<&[u8], Errno> {
        let length = self.receive(MsgFlags::MSG_DONTWAIT)?;
        Ok(&self.buffer[..length])
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn receive(&mut self, flags: MsgFlags) -> Result<usize, Errno> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, flags | MsgFlags::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => return Err(Errno::EMSGSIZE),
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

/// The positive error number in the payload of NLMSG_ERROR or NLMSG_DONE.
fn error_number(payload: &[u8]) -> Option<i32> {
    let number = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    Some(number.checked_neg().unwrap_or(libc::EPROTO))
}
