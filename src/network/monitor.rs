//! Tells when links, addresses or routes of the host change in a way that the way to other nodes may depend on.

use std::os::fd::OwnedFd;

use edge_sys::async_fd::{self, AsyncFd};
use nix::errno::Errno;

use crate::link::parse_link;
use crate::netlink::{Received, Socket, messages};
use crate::{Error, route};

/// Groups of rtnetlink: links, addresses and routes of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Watches the links, addresses and routes of the network namespace of the thread that made it.
pub struct Monitor {
    socket: Socket,
    /// The socket in the event loop, once somebody has waited.
    polled: Option<AsyncFd<OwnedFd>>,
}

impl Monitor {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::watch(GROUPS)?, polled: None })
    }

    /// Takes what has come in, without waiting; true when something of it matters.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn changed(&mut self) -> Result<bool, Error> {
        take(&mut self.socket)
    }

    /// Waits for something that matters. Must be called within a tokio runtime; nothing is lost when it is dropped.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn news(&mut self) -> Result<(), Error> {
        let failed = |source| Error::kernel("watch links", source);
        let polled = match self.polled.take() {
            Some(polled) => polled,
            None => async_fd::register(self.socket.as_fd().try_clone_to_owned().map_err(failed)?).map_err(failed)?,
        };
        let polled = self.polled.insert(polled);
        loop {
            let mut ready = polled.readable().await.map_err(failed)?;
            if take(&mut self.socket)? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

fn take(socket: &mut Socket) -> Result<bool, Error> {
    let mut matters = false;
    loop {
        match socket.try_receive() {
            Ok(datagram) => matters |= messages(datagram).any(|message| is_of_interest(&message)),
            Err(Errno::EAGAIN) => return Ok(matters),
            // more than the socket could hold: anything may have changed
            Err(Errno::ENOBUFS | Errno::EMSGSIZE) => matters = true,
            Err(errno) => return Err(Error::kernel("watch links", errno)),
        }
    }
}

/// Pods come and go, and what is written here comes back as news: neither matters.
fn is_of_interest(message: &Received<'_>) -> bool {
    match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            parse_link(message.payload).is_none_or(|link| !link.name.starts_with("veth"))
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => true,
        libc::RTM_NEWROUTE => route::is_main(message.payload) && !route::is_ours(message.payload),
        libc::RTM_DELROUTE => route::is_main(message.payload),
        _ => false,
    }
}
