//! The process that runs the programs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use edge_sys::async_fd::{AsyncFd, register};
use edge_sys::socket;
use tokio::sync::oneshot;
use wasmtime::Engine;

use super::protocol::{Event, MAX_MESSAGE, MAX_SPEC, Received, Request, Spec, Usage};
use crate::engine::{Pool, Profile, engine};
use crate::host::wasi_builder;
use crate::invocation::{Invocation, Outcome, Preopen};
use crate::machine_code::{Linked, link};
use crate::meter::Meter;
use crate::run::{Given, PrepareError, Ready};
use crate::stdio::{Output, Stdio};
use crate::ticker::Ticker;
use crate::world::World;

/// Most listening sockets of one program.
const MAX_LISTENERS: usize = 64;
/// Most requests that one server answers at the same time; others wait. The pool is everybody's.
const MAX_PLACES: usize = 64;

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

struct Host {
    engine: Engine,
    pool: Pool,
    ticker: Arc<Ticker>,
    /// Linked programs by the file of their code, as long as somebody runs them.
    linked: Mutex<HashMap<CodeKey, Weak<Linked>>>,
}

/// Which file, and what it is linked as.
type CodeKey = (u64, u64, World);

/// Runs programs for everybody who connects to `listener` (a listening SEQPACKET socket), for ever. The process must be what is
/// allowed to the programs: without privileges, network, and files.
///
/// # Errors
/// When the engine does not start, or the listener breaks.
pub fn host(listener: OwnedFd, capacity: Capacity) -> io::Result<()> {
    let (engine, pool) = shared_engine(capacity).map_err(|e| io::Error::other(format!("{e:#}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ticker = Arc::new(Ticker::start(&engine)?);
    let host = Arc::new(Host { engine, pool, ticker, linked: Mutex::default() });
    runtime.block_on(async {
        let listener = register(listener)?;
        loop {
            let mut ready = listener.readable().await?;
            match socket::accept_nonblocking(listener.as_fd())? {
                Some(connection) => {
                    tokio::spawn(serve(Arc::clone(&host), connection));
                }
                None => ready.clear_ready(),
            }
        }
    })
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
    let Ok(connection) = register(connection) else { return };
    let connection = Connection(connection);
    // Who has gone is told nothing, and has no program.
    let _ = converse(&host, &connection).await;
}

struct Connection(AsyncFd<OwnedFd>);

impl Connection {
    /// The next request with its descriptors; `None` at the end.
    async fn next(&self) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.0.readable().await?;
            match socket::receive(self.0.as_fd(), MAX_MESSAGE) {
                Ok(message) if message.bytes.is_empty() => return Ok(None),
                Ok(message) => return Ok(Some((serde_json::from_slice(&message.bytes)?, message.fds))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) => return Err(e),
            }
        }
    }

    async fn tell(&self, event: &Event) -> io::Result<()> {
        let message = serde_json::to_vec(event)?;
        loop {
            let mut ready = self.0.writable().await?;
            match socket::send(self.0.as_fd(), &message, &[]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                sent => return sent,
            }
        }
    }
}

async fn converse(host: &Arc<Host>, connection: &Connection) -> io::Result<()> {
    let mut listeners = Vec::new();
    let received = loop {
        let Some((request, mut fds)) = connection.next().await? else { return Ok(()) };
        match request {
            Request::Listener if listeners.len() < MAX_LISTENERS => listeners.extend(fds.pop().map(TcpListener::from)),
            Request::Start => break Received::new(fds).ok_or_else(|| invalid("a start without its descriptors"))?,
            _ => return Err(invalid("a request at the wrong time")),
        }
    };
    let begun = {
        let host = Arc::clone(host);
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let _runtime = handle.enter();
            Program::begin(&host, received, listeners)
        })
        .await
    };
    let program = match begun {
        Ok(Ok(program)) => program,
        Ok(Err(error)) => return connection.tell(&Event::Refused(error.to_string())).await,
        Err(panic) => return connection.tell(&Event::Refused(panic.to_string())).await,
    };
    connection.tell(&Event::Running).await?;
    let stdio = program.stdio.clone();
    let outcome = program.run(connection).await?;
    stdio.stdout.drain().await;
    stdio.stderr.drain().await;
    connection.tell(&Event::Ended(outcome)).await
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A program of one connection.
struct Program {
    ready: Ready,
    stdio: Stdio,
    meter: Arc<Meter>,
    memory: Arc<AtomicU64>,
    /// Keeps the linked code for others who start the same.
    _linked: Arc<Linked>,
    /// Keeps the directory open, whose path goes through this descriptor.
    _root: OwnedFd,
}

impl Program {
    fn begin(host: &Host, received: Received, listeners: Vec<TcpListener>) -> Result<Self, PrepareError> {
        let Received { spec, code, root, stdout, stderr } = received;
        let mut text = Vec::new();
        spec.take(MAX_SPEC).read_to_end(&mut text).map_err(PrepareError::Read)?;
        let Spec { invocation, cpu_millis } =
            serde_json::from_slice(&text).map_err(|e| PrepareError::Read(e.into()))?;
        let invocation = Invocation {
            // All that it may name is below the directory that came with it.
            preopens: invocation
                .preopens
                .iter()
                .filter(|p| p.guest == "/")
                .map(|p| Preopen { host: format!("/proc/self/fd/{}", root.as_raw_fd()).into(), ..p.clone() })
                .collect(),
            // The sockets of this process are in nobody's network.
            network: false,
            ..invocation
        };
        let stdio = Stdio {
            stdout: Output::pipe(stdout).map_err(PrepareError::Output)?,
            stderr: Output::pipe(stderr).map_err(PrepareError::Output)?,
        };
        for listener in &listeners {
            listener.set_nonblocking(true).map_err(PrepareError::Read)?;
        }
        let linked = host.linked(code, invocation.world)?;
        let places = host.pool.places(linked.resources().as_ref(), invocation.limits.memory).min(MAX_PLACES);
        let memory = Arc::new(AtomicU64::new(0));
        let given = Given {
            invocation: &invocation,
            stdio: &stdio,
            wasi: wasi_builder(&invocation, &stdio),
            listeners,
            places,
            memory: Some(Arc::clone(&memory)),
        };
        let ready = Ready::prepare(&host.engine, Linked::clone(&linked), given)?;
        Ok(Self {
            ready,
            stdio,
            meter: Meter::new(Arc::clone(&host.ticker), cpu_millis),
            memory,
            _linked: linked,
            _root: root,
        })
    }

    /// Runs to the end, and answers meanwhile. When the connection ends, so does the program.
    async fn run(self, connection: &Connection) -> io::Result<Outcome> {
        let meter = Arc::clone(&self.meter);
        let (end, ended) = oneshot::channel::<()>();
        let mut end = Some(end);
        let is_server = matches!(self.ready, Ready::Server(_));
        let running = async move {
            match self.ready {
                Ready::Server(server) => match server.serve(self.meter, async { drop(ended.await) }).await {
                    Ok(()) => Outcome::Exited(0),
                    Err(e) => Outcome::Trapped(format!("the server does not start: {e}")),
                },
                command => self.meter.count(command.run_command()).await,
            }
        };
        let mut running = pin!(running);
        loop {
            let request = tokio::select! {
                outcome = &mut running => return Ok(outcome),
                request = connection.next() => request?,
            };
            match request {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some((Request::Usage, _)) => {
                    let usage = Usage { cpu: meter.used(), memory: self.memory.load(Ordering::Relaxed) };
                    connection.tell(&Event::Usage(usage)).await?;
                }
                Some((Request::End(code), _)) => match end.take().filter(|_| is_server) {
                    Some(end) => drop(end),
                    None => return Ok(Outcome::Exited(code)),
                },
                Some((Request::Start | Request::Listener, _)) => return Err(invalid("a second start")),
            }
        }
    }
}

impl Host {
    /// The linked program of a file of code: the one that others run already, or a new one.
    fn linked(&self, code: File, world: World) -> Result<Arc<Linked>, PrepareError> {
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
