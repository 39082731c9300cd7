//! Programs, from machine code to how they end.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use tokio::sync::oneshot;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store, Trap, UpdateDeadline};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::{I32Exit, WasiCtxBuilder};
use wasmtime_wasi_http::WasiHttpCtx;

use crate::host::{ComponentHost, ModuleHost, preopen, wasi_builder};
use crate::inspect::ModuleError;
use crate::invocation::{Invocation, Outcome};
use crate::limits::MemoryLimiter;
use crate::machine_code::{Linked, link};
use crate::outgoing::Outgoing;
use crate::shutdown::{Shutdown, Source};
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
    /// The engine or its runtime does not start.
    #[error("the engine does not start: {0}")]
    Engine(String),
    /// A kind of program that does not run.
    #[error("programs of this kind do not run yet")]
    Unsupported,
}

/// A program that is ready to run.
pub struct Program {
    engine: Engine,
    kind: Kind,
}

enum Kind {
    Module(Box<Store<ModuleHost>>, wasmtime::InstancePre<ModuleHost>),
    Command(Box<Store<ComponentHost>>, CommandPre<ComponentHost>),
}

impl Program {
    /// Maps machine code, links it, and opens all that the invocation gives it: what can fail before the first instruction does so here.
    ///
    /// The machine code must come from a file which this program's own compiler wrote into a place where nobody else writes: what
    /// is in it is executed.
    ///
    /// # Errors
    /// As [`PrepareError`] says.
    pub fn prepare(engine: &Engine, machine_code: File, invocation: &Invocation) -> Result<Self, PrepareError> {
        let linked = link(engine, machine_code, invocation.world)?;
        linked.check_limits(&invocation.limits)?;
        let limiter = MemoryLimiter::new(invocation.limits.memory);
        let kind = match linked {
            Linked::Module(pre) => {
                let host = ModuleHost { wasi: command_builder(invocation)?.build_p1(), limiter };
                Kind::Module(Box::new(store(engine, host, |host| &mut host.limiter)), pre)
            }
            Linked::Component(pre) if invocation.world == World::CliCommand => {
                let host = ComponentHost {
                    table: ResourceTable::new(),
                    wasi: command_builder(invocation)?.build(),
                    http: WasiHttpCtx::new(),
                    outgoing: Outgoing,
                    limiter,
                };
                let pre = CommandPre::new(pre).map_err(|e| ModuleError::Link(format!("{e:#}")))?;
                Kind::Command(Box::new(store(engine, host, |host| &mut host.limiter)), pre)
            }
            Linked::Component(_) => return Err(PrepareError::Unsupported),
        };
        Ok(Self { engine: engine.clone(), kind })
    }

    /// Runs the program to its end. The process may have been forked, with this as its only thread.
    #[must_use]
    pub fn run(self, shutdown: Shutdown) -> Outcome {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return Outcome::Trapped(format!("the engine does not start: {e}")),
        };
        let outcome = runtime.block_on(async {
            match self.kind {
                Kind::Module(mut store, pre) => {
                    end_of(&self.engine, shutdown, async {
                        let result = run_module(&mut store, &pre).await;
                        outcome(result, &store.data().limiter)
                    })
                    .await
                }
                Kind::Command(mut store, pre) => {
                    end_of(&self.engine, shutdown, async {
                        let result = run_command(&mut store, &pre).await;
                        outcome(result, &store.data().limiter)
                    })
                    .await
                }
            }
        });
        // Standard input may be waited for by a thread that nothing ends.
        runtime.shutdown_background();
        outcome
    }
}

fn command_builder(invocation: &Invocation) -> Result<WasiCtxBuilder, PrepareError> {
    let mut builder = wasi_builder(invocation)?;
    builder.inherit_stdin();
    // It is alone in its process: nobody else waits while it waits for a disk, and no threads are needed for that.
    builder.allow_blocking_current_thread(true);
    preopen(&mut builder, invocation)?;
    Ok(builder)
}

fn store<T: Send + 'static>(
    engine: &Engine,
    host: T,
    limiter: impl FnMut(&mut T) -> &mut MemoryLimiter + Send + Sync + 'static,
) -> Store<T> {
    let mut limiter = limiter;
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

/// The outcome of a program, or that of the shutdown if it comes first.
async fn end_of(engine: &Engine, shutdown: Shutdown, program: impl Future<Output = Outcome>) -> Outcome {
    let asked = match shutdown.0 {
        Source::Signals => match edge_sys::signal::exit_on_signals() {
            Ok(()) => None,
            Err(e) => return Outcome::Trapped(format!("cannot handle signals: {e}")),
        },
        Source::Channel(receiver) => Some(receiver),
    };
    let Some(asked) = asked else { return program.await };
    let (tell, told) = oneshot::channel();
    let ticks = engine.weak();
    // The program's thread may never come back to this runtime by itself, so it must be another thread that waits.
    let waiter = std::thread::spawn(move || {
        let Ok(code) = asked.blocking_recv() else { return };
        let _ = tell.send(code);
        if let Some(engine) = ticks.upgrade() {
            engine.increment_epoch();
        }
    });
    drop(waiter);
    tokio::select! {
        biased;
        Ok(code) = told => Outcome::Exited(code),
        outcome = program => outcome,
    }
}

/// How a program ended, from what its last call gave.
fn outcome(result: wasmtime::Result<i32>, limiter: &MemoryLimiter) -> Outcome {
    let err = match result {
        Ok(code) => return Outcome::Exited(code),
        Err(err) => err,
    };
    if let Some(I32Exit(code)) = err.downcast_ref::<I32Exit>() {
        return Outcome::Exited(*code);
    }
    let trap = match err.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => err.root_cause().to_string(),
    };
    match limiter.denied() {
        Some(denied) => Outcome::OutOfMemory(format!("{denied} ({trap})")),
        None => Outcome::Trapped(trap),
    }
}
