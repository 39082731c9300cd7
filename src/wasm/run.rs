//! Programs, from machine code to how they end.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store, Trap, UpdateDeadline};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{I32Exit, WasiCtxBuilder, WasiView};
use wasmtime_wasi_http::WasiHttpCtx;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::dial::Network;
use crate::directories::preopen;
use crate::engine::{Profile, engine, pooled_engine};
use crate::host::{ComponentHost, ModuleHost, config, wasi_builder};
use crate::inspect::ModuleError;
use crate::invocation::{Invocation, Outcome};
use crate::limits::MemoryLimiter;
use crate::machine_code::{Linked, link};
use crate::meter::Meter;
use crate::outgoing::Client;
use crate::server::{Server, listen};
use crate::shutdown::{FirstSignal, Shutdown, Source};
use crate::stdio::Stdio;
use crate::ticker::Ticker;
use crate::world::World;

/// Why a program cannot be started; the words are for `kubectl describe`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The module is not one that can run.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The memory limit is too small.
    #[error("needs {needs} bytes of memory to begin with and may use {limit}")]
    MemoryLimit {
        /// Bytes that it needs.
        needs: u64,
        /// Bytes that it may use.
        limit: u64,
    },
    /// The compiled code is damaged or of another version.
    #[error("the compiled code cannot be used: {0}")]
    MachineCode(String),
    /// The compiled code cannot be read.
    #[error("the compiled code cannot be read: {0}")]
    Read(#[source] io::Error),
    /// A directory cannot be opened.
    #[error("cannot open {} for the program: {reason}", path.display())]
    Preopen {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Standard output or error is closed.
    #[error("no standard output: {0}")]
    Output(#[source] io::Error),
    /// An HTTP server cannot have its address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// An HTTP server was given no address.
    #[error("is an HTTP server and has no port to listen on: a container of it needs a containerPort")]
    NowhereToListen,
    /// The engine does not start.
    #[error("the engine does not start: {0}")]
    Engine(String),
}

/// A program that is ready to run.
pub struct Program {
    engine: Engine,
    ready: Ready,
}

impl Program {
    /// Maps machine code, links it, and opens all that the invocation gives it: what can fail before the first instruction does so
    /// here. Starts no thread.
    ///
    /// The machine code must come from a file which this program's own compiler wrote into a place where nobody else writes: what
    /// is in it is executed.
    ///
    /// # Errors
    /// As [`PrepareError`] says.
    pub fn prepare(machine_code: File, invocation: &Invocation) -> Result<Self, PrepareError> {
        let mut invocation = invocation.clone();
        if invocation.world == World::HttpProxy {
            invocation.limits.memory = invocation.limits.memory.map(without_the_process);
        }
        let invocation = &invocation;
        let stdio = Stdio::of_process().map_err(PrepareError::Output)?;
        let (engine, places) = match invocation.world {
            World::HttpProxy => {
                let (engine, pool) = pooled_engine(invocation.limits.memory).map_err(engine_error)?;
                (engine, Some(pool))
            }
            World::Preview1Command | World::CliCommand => (engine(Profile::Single).map_err(engine_error)?, None),
        };
        let linked = link(&engine, machine_code, invocation.world)?;
        let places = places.map_or(1, |pool| pool.places(linked.resources().as_ref(), invocation.limits.memory));
        let listeners = match invocation.world {
            World::HttpProxy => listen(&invocation.listen)?,
            World::Preview1Command | World::CliCommand => Vec::new(),
        };
        let wasi = wasi_builder(invocation, &stdio);
        let network = if invocation.network { Network::Process } else { Network::Nobody };
        // The requests of a server share its limit; a command has but one instance.
        let memory = (invocation.world == World::HttpProxy).then(|| Arc::new(AtomicU64::new(0)));
        let mut given = Given { invocation, stdio: &stdio, wasi, listeners, places, memory, network, handles: None };
        given.wasi.inherit_stdin();
        // It is alone in its process: nobody else waits while it waits for a disk, and no threads are needed for that.
        given.wasi.allow_blocking_current_thread(true);
        let ready = Ready::prepare(&engine, linked, given)?;
        Ok(Self { engine, ready })
    }

    /// The addresses on which an HTTP server listens; ports that were asked for as 0 are known here.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        match &self.ready {
            Ready::Server(server) => server.listening(),
            Ready::Module(..) | Ready::Command(..) => Vec::new(),
        }
    }

    /// Runs the program to its end. The process may have been forked, with this as its only thread.
    #[must_use]
    pub fn run(self, shutdown: Shutdown) -> Outcome {
        let ended = match self.ready {
            Ready::Server(server) => serve(&self.engine, *server, shutdown),
            command => run_to_end(&self.engine, shutdown, command.run_command()),
        };
        ended.unwrap_or_else(|e| Outcome::Trapped(format!("the engine does not start: {e}")))
    }
}

/// What a limit leaves for the instances of a server, whose process is in the same control group: when they have had all of it the
/// process must live, as other requests are not to suffer for one.
fn without_the_process(limit: u64) -> u64 {
    const LEAST: u64 = 4 << 20;
    const MOST: u64 = 32 << 20;
    limit - (limit / 8).clamp(LEAST, MOST).min(limit / 2)
}

/// A program with all that it is given, ready to begin.
pub(crate) enum Ready {
    Module(Box<Store<ModuleHost>>, wasmtime::InstancePre<ModuleHost>),
    Command(Box<Store<ComponentHost>>, CommandPre<ComponentHost>),
    Server(Box<Server>),
}

/// What a program is given.
pub(crate) struct Given<'a> {
    pub(crate) invocation: &'a Invocation,
    pub(crate) stdio: &'a Stdio,
    /// For a command, without its directories.
    pub(crate) wasi: WasiCtxBuilder,
    /// For a server, non-blocking.
    pub(crate) listeners: Vec<TcpListener>,
    /// For a server: how many requests are answered at the same time.
    pub(crate) places: usize,
    /// Where the bytes are counted that its instances use.
    pub(crate) memory: Option<Arc<AtomicU64>>,
    /// Where its requests to others go.
    pub(crate) network: Network,
    /// Most files and other things that an instance may have open; `None` is no limit but the process'.
    pub(crate) handles: Option<usize>,
}

impl Ready {
    pub(crate) fn prepare(engine: &Engine, linked: Linked, mut given: Given<'_>) -> Result<Self, PrepareError> {
        let invocation = given.invocation;
        linked.check_limits(&invocation.limits)?;
        let limiter = MemoryLimiter::new(invocation.limits.memory).counted_in(given.memory.clone());
        match linked {
            Linked::Module(pre) => {
                preopen(&mut given.wasi, invocation)?;
                let mut host = ModuleHost { wasi: given.wasi.build_p1(), limiter };
                if let Some(most) = given.handles {
                    host.wasi.ctx().table.set_max_capacity(most);
                }
                Ok(Self::Module(Box::new(new_store(engine, host, |host| &mut host.limiter)), pre))
            }
            Linked::Component(pre) if invocation.world == World::CliCommand => {
                preopen(&mut given.wasi, invocation)?;
                let host = ComponentHost {
                    table: table(given.handles),
                    wasi: given.wasi.build(),
                    http: WasiHttpCtx::new(),
                    outgoing: Arc::new(Client::new(invocation, given.network)).for_instance(),
                    config: config(invocation),
                    limiter,
                };
                let pre = CommandPre::new(pre).map_err(|e| ModuleError::Link(format!("{e:#}")))?;
                Ok(Self::Command(Box::new(new_store(engine, host, |host| &mut host.limiter)), pre))
            }
            Linked::Component(pre) => {
                let pre = ProxyPre::new(pre).map_err(|e| ModuleError::Link(format!("{e:#}")))?;
                Ok(Self::Server(Box::new(Server::prepare(engine, pre, given)?)))
            }
        }
    }

    /// Runs a command.
    pub(crate) async fn run_command(self) -> Outcome {
        match self {
            Self::Module(mut store, pre) => {
                let result = run_module(&mut store, &pre).await;
                outcome(result, &store.data().limiter)
            }
            Self::Command(mut store, pre) => {
                let result = run_command(&mut store, &pre).await;
                outcome(result, &store.data().limiter)
            }
            Self::Server(_) => Outcome::Trapped("a server was run as a command".to_owned()),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn engine_error(err: wasmtime::Error) -> PrepareError {
    PrepareError::Engine(format!("{err:#}"))
}

/// A table for so many things.
pub(crate) fn table(most: Option<usize>) -> ResourceTable {
    let mut table = ResourceTable::new();
    if let Some(most) = most {
        table.set_max_capacity(most);
    }
    table
}

pub(crate) fn new_store<T: Send + 'static>(
    engine: &Engine,
    host: T,
    limiter: impl Fn(&mut T) -> &mut MemoryLimiter + Send + Sync + 'static,
) -> Store<T> {
    let mut store = Store::new(engine, host);
    store.limiter(move |host| limiter(host));
    // Each tick of the engine's clock lets others have the thread; it ticks only when there are others, or the end.
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Yield(1)));
    store
}

async fn run_module(store: &mut Store<ModuleHost>, pre: &wasmtime::InstancePre<ModuleHost>) -> wasmtime::Result<i32> {
    let instance = pre.instantiate_async(&mut *store).await?;
    let start = instance.get_typed_func::<(), ()>(&mut *store, "_start")?;
    start.call_async(store, ()).await?;
    Ok(0)
}

async fn run_command(store: &mut Store<ComponentHost>, pre: &CommandPre<ComponentHost>) -> wasmtime::Result<i32> {
    let command = pre.instantiate_async(&mut *store).await?;
    Ok(i32::from(command.wasi_cli_run().call_run(store).await?.is_err()))
}

/// Runs a command, in this thread, until it or the shutdown ends it.
fn run_to_end(engine: &Engine, shutdown: Shutdown, program: impl Future<Output = Outcome>) -> io::Result<Outcome> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let outcome = match shutdown.0 {
        Source::Signals => {
            edge_sys::signal::exit_on_signals()?;
            runtime.block_on(program)
        }
        Source::Handle(asked) => {
            let told = wait_elsewhere(engine, asked)?;
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    Ok(code) = told => Outcome::Exited(code),
                    outcome = program => outcome,
                }
            })
        }
    };
    // Standard input may be waited for by a thread that nothing ends.
    runtime.shutdown_background();
    Ok(outcome)
}

/// Waits in a thread of its own, since the program's may never come back to its runtime by itself.
fn wait_elsewhere(engine: &Engine, asked: oneshot::Receiver<i32>) -> io::Result<oneshot::Receiver<i32>> {
    let (tell, told) = oneshot::channel();
    let engine = engine.weak();
    std::thread::Builder::new().name("shutdown".into()).spawn(move || {
        let Ok(code) = asked.blocking_recv() else { return };
        // Whoever does not receive it has ended.
        let _ = tell.send(code);
        if let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
        }
    })?;
    Ok(told)
}

/// Serves until the shutdown, with as many threads as the process may use processors.
fn serve(engine: &Engine, server: Server, shutdown: Shutdown) -> io::Result<Outcome> {
    let meter = Meter::none(Ticker::start(engine)?);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime: Runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let served = runtime.block_on(async {
        match shutdown.0 {
            Source::Signals => {
                let signal = FirstSignal::listen()?;
                server.serve(meter, async { signal.heard().await.unwrap_or_default() }).await
            }
            Source::Handle(asked) => server.serve(meter, async { drop(asked.await) }).await,
        }
    });
    runtime.shutdown_background();
    served.map(|()| Outcome::Exited(0))
}

/// How a program ended, from what its last call gave.
fn outcome(result: wasmtime::Result<i32>, limiter: &MemoryLimiter) -> Outcome {
    match result {
        Ok(code) => Outcome::Exited(code),
        Err(err) => match err.downcast_ref::<I32Exit>() {
            Some(I32Exit(code)) => Outcome::Exited(*code),
            None => trap_of(&err, limiter),
        },
    }
}

/// What a program died of.
pub(crate) fn trap_of(err: &wasmtime::Error, limiter: &MemoryLimiter) -> Outcome {
    let trap = match err.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => err.root_cause().to_string(),
    };
    let trap = trap.strip_prefix("wasm trap: ").map(str::to_owned).unwrap_or(trap);
    match limiter.denied() {
        Some(denied) => Outcome::OutOfMemory(format!("{denied} ({trap})")),
        None => Outcome::Trapped(trap),
    }
}
