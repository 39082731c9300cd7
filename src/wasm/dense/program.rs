//! A program in the host, from its descriptors to how it ends.

use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;

use super::asker::Asker;
use super::connection::Connection;
use super::host::Host;
use super::protocol::{Event, MAX_SPEC, Received, Request, Spec, Usage, invalid};
use crate::dial::Network;
use crate::host::wasi_builder;
use crate::invocation::{Invocation, Outcome, Preopen};
use crate::machine_code::Linked;
use crate::meter::Meter;
use crate::run::{Given, PrepareError, Ready};
use crate::stdio::{Output, Stdio};

/// Most requests that one server answers at the same time; others wait. The pool is everybody's.
const MAX_PLACES: usize = 64;
/// Most files and other things that an instance has open: the process' descriptors are everybody's.
const MAX_HANDLES: usize = 1024;

/// A program of one connection.
pub(super) struct Program {
    ready: Ready,
    pub(super) stdio: Stdio,
    meter: Arc<Meter>,
    memory: Arc<AtomicU64>,
    asker: Asker,
    /// Keeps the linked code for others who start the same.
    _linked: Arc<Linked>,
    /// Keeps the directory open, whose path goes through this descriptor.
    _root: OwnedFd,
}

impl Program {
    /// Prepares what came over a connection.
    pub(super) fn prepare(
        host: &Host,
        received: Received,
        listeners: Vec<TcpListener>,
        asker: Asker,
    ) -> Result<Self, PrepareError> {
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
            network: Network::Other(Arc::new(asker.clone())),
            handles: Some(MAX_HANDLES),
        };
        let ready = Ready::prepare(&host.engine, Linked::clone(&linked), given)?;
        Ok(Self {
            ready,
            stdio,
            meter: Meter::new(Arc::clone(&host.ticker), cpu_millis),
            memory,
            asker,
            _linked: linked,
            _root: root,
        })
    }

    /// What it uses before it runs.
    pub(super) fn usage(&self) -> Usage {
        Usage { cpu: self.meter.used(), memory: self.memory.load(Ordering::Relaxed) }
    }

    /// Runs to the end, and answers meanwhile. When the connection ends, so does the program.
    pub(super) async fn run(self, connection: &Connection) -> io::Result<Outcome> {
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
                Some((Request::Dialled { id, failure }, fds)) => self.asker.answered(id, failure, fds),
                Some((Request::Start | Request::Listener | Request::Run, _)) => return Err(invalid("a second start")),
            }
        }
    }
}
