//! The connections of a monitor's clients: normally one, the daemon's.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use edge_sys::socket;
use nix::poll::PollFlags;

use crate::protocol::{self, Message, Request};

/// Most messages that wait for a client that does not read. One that falls behind further is disconnected; it finds everything
/// again when it connects anew.
const MAX_QUEUE: usize = 4096;

/// Names a connection, never the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClientId(u64);

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Clients {
    listener: OwnedFd,
    next: u64,
    /// Cleared while no more connections can be taken (out of descriptors), until one of them ends.
    accepting: bool,
    connected: BTreeMap<ClientId, Client>,
}

impl Clients {
    pub(super) fn new(listener: OwnedFd) -> Self {
        Self { listener, next: 0, accepting: true, connected: BTreeMap::new() }
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// What to wait for at the listener.
    pub(super) fn listener_events(&self) -> PollFlags {
        if self.accepting { PollFlags::POLLIN } else { PollFlags::empty() }
    }

    /// Takes every waiting connection and greets it.
    pub(super) fn accept(&mut self, hello: &Message) {
        loop {
            match socket::accept_nonblocking(self.listener.as_fd()) {
                Ok(Some(socket)) => {
                    let id = ClientId(self.next);
                    self.next += 1;
                    self.connected.insert(id, Client { socket, queue: VecDeque::new() });
                    self.send(id, hello, Vec::new());
                }
                Ok(None) => return,
                Err(_) => {
                    self.accepting = false;
                    return;
                }
            }
        }
    }

    fn disconnect(&mut self, id: ClientId) {
        self.connected.remove(&id);
        self.accepting = true;
    }

    /// What to wait for: descriptor, whether to wait for room as well, connection.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool, ClientId)> {
        self.connected.iter().map(|(id, client)| (client.socket.as_fd(), !client.queue.is_empty(), *id))
    }

    /// The next request of a client, if one has arrived. A client that closes or sends nonsense is disconnected.
    pub(super) fn receive(&mut self, id: ClientId) -> Option<(Request, Vec<OwnedFd>)> {
        let client = self.connected.get(&id)?;
        match protocol::receive(client.socket.as_fd()) {
            Ok(Some(request)) => Some(request),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => None,
            Ok(None) | Err(_) => {
                self.disconnect(id);
                None
            }
        }
    }

    /// Sends a message, now or when the client has room. A client that is gone is fine.
    pub(super) fn send(&mut self, id: ClientId, message: &Message, fds: Vec<OwnedFd>) {
        let Some(client) = self.connected.get_mut(&id) else { return };
        // Our own messages are small; should one not be, the client must not wait for it for ever.
        let Ok(bytes) = protocol::encode(message) else {
            self.disconnect(id);
            return;
        };
        client.queue.push_back((bytes, fds));
        self.flush(id);
    }

    /// Sends a message to everybody.
    pub(super) fn broadcast(&mut self, message: &Message) {
        let ids: Vec<ClientId> = self.connected.keys().copied().collect();
        for id in ids {
            self.send(id, message, Vec::new());
        }
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self, id: ClientId) {
        let Some(client) = self.connected.get_mut(&id) else { return };
        while let Some((bytes, fds)) = client.queue.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send(client.socket.as_fd(), bytes, &fds) {
                Ok(()) => {
                    client.queue.pop_front();
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock && client.queue.len() <= MAX_QUEUE => return,
                Err(_) => {
                    self.disconnect(id);
                    return;
                }
            }
        }
    }
}
