//! Room `wasm`: WebAssembly modules and components, from their bytes to a program that runs.
//!
//! Comes in: a module's file, an [`Invocation`] (plain data). Goes out: a file of machine code that only this engine on this
//! machine reads, a running program, how it ended ([`Outcome`]).
//!
//! The room knows nothing of containers: who calls it has made the process that it runs in what it should be (namespaces,
//! cgroup, system call filter, identity).

mod compile;
pub mod dense;
mod dial;
mod directories;
mod engine;
mod host;
mod inspect;
mod invocation;
mod limits;
mod machine_code;
mod meter;
mod outgoing;
mod run;
mod server;
mod shutdown;
mod stdio;
#[cfg(test)]
mod tests;
mod ticker;
mod world;

pub use compile::{COMPILE_WORKER, CompileError, CompileLimits, Compiled, Compiler, compile_worker};
pub use engine::{Profile, engine, engine_key};
pub use inspect::{ModuleError, Outline, inspect, outline};
pub use invocation::{Invocation, Limits, Outcome, Preopen};
pub use run::{PrepareError, Program};
pub use shutdown::{Shutdown, ShutdownHandle};
pub use world::World;
