//! The process that runs the programs.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use edge_sys::async_fd::{AsyncFd, register};
use edge_sys::socket;
use tokio::task::JoinSet;
use wasmtime::Engine;

use super::asker::Asker;
use super::connection::Connection;
use super::program::Program;
use super::protocol::{Event, Received, Request, invalid};
use crate::engine::{Pool, Profile, engine};
use crate::invocation::Outcome;
use crate::machine_code::{Linked, link};
use crate::run::PrepareError;
use crate::ticker::Ticker;
use crate::world::World;

/// Most listening sockets of one program.
const MAX_LISTENERS: usize = 64;
/// For how long a host without programs waits for the next one.
pub const LINGER: Duration = Duration::from_secs(10);

/// How much fits into a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Most instances at the same time; a server has one for each request that it is answering.
    pub instances: u32,
    /// Most linear memories. Each reserves some 4 GiB of addresses, of which a process has 128 TiB, on some small machines half a TiB.
    pub memories: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { instances: 8192, memories: 8192 }
    }
}

pub(super) struct Host {
    pub(super) engine: Engine,
    pub(super) pool: Pool,
    pub(super) ticker: Arc<Ticker>,
    /// Linked programs by the file of their code, as long as somebody runs them.
    linked: Mutex<HashMap<CodeKey, Weak<Linked>>>,
}

/// Which file, and what it is linked as.
type CodeKey = (u64, u64, World);

/// Runs programs for everybody who connects to `listener` (a listening SEQPACKET socket), until nobody has been connected for
/// `linger`. The process must be what is allowed to the programs: without privileges, network, and files.
///
/// # Errors
/// When the engine does not start, or the listener breaks.
pub fn host(listener: OwnedFd, capacity: Capacity, linger: Duration) -> io::Result<()> {
    let (engine, pool) = shared_engine(capacity).map_err(|e| io::Error::other(format!("{e:#}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ticker = Arc::new(Ticker::start(&engine)?);
    let host = Arc::new(Host { engine, pool, ticker, linked: Mutex::default() });
    runtime.block_on(async {
        let listener = register(listener)?;
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = accept(&listener) => {
                    connections.spawn(serve(Arc::clone(&host), accepted?));
                }
                Some(_) = connections.join_next() => {}
                () = tokio::time::sleep(linger), if connections.is_empty() => return Ok(()),
            }
        }
    })
}

async fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<OwnedFd> {
    loop {
        let mut ready = listener.readable().await?;
        match socket::accept_nonblocking(listener.as_fd())? {
            Some(connection) => return Ok(connection),
            None => ready.clear_ready(),
        }
    }
}

/// As large a pool as the addresses of this machine allow.
fn shared_engine(capacity: Capacity) -> wasmtime::Result<(Engine, Pool)> {
    let Capacity { instances, mut memories } = capacity;
    loop {
        match engine(Profile::Pooled { instances, memories }) {
            Ok(engine) => return Ok((engine, Pool::new(instances, memories))),
            Err(error) if memories <= 16 => return Err(error),
            Err(_) => memories /= 2,
        }
    }
}

/// One connection: one program.
async fn serve(host: Arc<Host>, connection: OwnedFd) {
    let Ok(connection) = Connection::new(connection) else { return };
    // Who has gone is told nothing, and has no program.
    let _ = converse(&host, &Arc::new(connection)).await;
}

async fn converse(host: &Arc<Host>, connection: &Arc<Connection>) -> io::Result<()> {
    connection.tell(&Event::Hello).await?;
    let mut listeners = Vec::new();
    let received = loop {
        let Some((request, mut fds)) = connection.next().await? else { return Ok(()) };
        match request {
            Request::Listener if listeners.len() < MAX_LISTENERS => listeners.extend(fds.pop().map(TcpListener::from)),
            Request::Start => break Received::new(fds).ok_or_else(|| invalid("a start without its descriptors"))?,
            _ => return Err(invalid("a request at the wrong time")),
        }
    };
    let prepared = {
        let (host, asker) = (Arc::clone(host), Asker::new(Arc::clone(connection)));
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let _runtime = handle.enter();
            Program::prepare(&host, received, listeners, asker)
        })
        .await
    };
    let program = match prepared {
        Ok(Ok(program)) => program,
        Ok(Err(error)) => return connection.tell(&Event::Refused(error.to_string())).await,
        Err(panic) => return connection.tell(&Event::Refused(panic.to_string())).await,
    };
    connection.tell(&Event::Prepared).await?;
    loop {
        match connection.next().await? {
            None => return Ok(()),
            Some((Request::Run, _)) => break,
            Some((Request::Usage, _)) => connection.tell(&Event::Usage(program.usage())).await?,
            Some((Request::End(code), _)) => return connection.tell(&Event::Ended(Outcome::Exited(code))).await,
            Some(_) => return Err(invalid("a request at the wrong time")),
        }
    }
    connection.tell(&Event::Running).await?;
    let stdio = program.stdio.clone();
    let outcome = program.run(connection).await?;
    stdio.stdout.drain().await;
    stdio.stderr.drain().await;
    connection.tell(&Event::Ended(outcome)).await
}

impl Host {
    /// The linked program of a file of code: the one that others run already, or a new one.
    pub(super) fn linked(&self, code: File, world: World) -> Result<Arc<Linked>, PrepareError> {
        let metadata = code.metadata().map_err(PrepareError::Read)?;
        let key = (metadata.dev(), metadata.ino(), world);
        let mut all = self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        // Under the lock, so that a hundred pods which begin together link it once.
        let linked = Arc::new(link(&self.engine, code, world)?);
        all.retain(|_, other| other.strong_count() > 0);
        all.insert(key, Arc::downgrade(&linked));
        Ok(linked)
    }
}
