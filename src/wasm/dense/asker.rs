//! Connections that the host cannot make itself, asked for from whoever has the program's network.

use std::collections::HashMap;
use std::io;
use std::net::TcpStream as StdStream;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

use super::connection::Connection;
use super::protocol::{DialFailure, Event};
use crate::dial::{Dial, DialError};

/// Most connections that one program has asked for and not got yet; who wants more waits.
const MAX_ASKED: usize = 16;

type Answer = Result<TcpStream, DialError>;

/// Asks over the connection of one program.
#[derive(Clone)]
pub(super) struct Asker(Arc<Inner>);

struct Inner {
    connection: Arc<Connection>,
    places: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    by_id: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Asker {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_ASKED));
        Self(Arc::new(Inner { connection, places, waiting: Mutex::default() }))
    }

    /// Hands over what came for a question. Nobody may wait for it any more.
    pub(super) fn answered(&self, id: u64, failure: Option<DialFailure>, fds: Vec<OwnedFd>) {
        let waiter = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).by_id.remove(&id);
        let answer = match failure {
            Some(DialFailure::Name(words)) => Err(DialError::Name(io::Error::other(words))),
            Some(DialFailure::Connect(errno)) => Err(DialError::Connect(io::Error::from_raw_os_error(errno))),
            None => stream(fds).map_err(DialError::Connect),
        };
        if let Some(waiter) = waiter {
            let _ = waiter.send(answer);
        }
    }
}

fn stream(fds: Vec<OwnedFd>) -> io::Result<TcpStream> {
    let stream = StdStream::from(fds.into_iter().next().ok_or(io::ErrorKind::InvalidData)?);
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

impl Dial for Asker {
    fn dial(&self, host: String, port: u16) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let gone = || DialError::Connect(io::ErrorKind::BrokenPipe.into());
            let _place = Arc::clone(&inner.places).acquire_owned().await.map_err(|_| gone())?;
            let (sender, receiver) = oneshot::channel();
            let id = {
                let mut waiting = inner.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.last += 1;
                let id = waiting.last;
                waiting.by_id.insert(id, sender);
                id
            };
            inner.connection.tell(&Event::Dial { id, host, port }).await.map_err(DialError::Connect)?;
            receiver.await.map_err(|_| gone())?
        })
    }
}
