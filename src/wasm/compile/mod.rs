//! Compiling ahead of time: from a module's file to machine code in the cache.
//!
//! Modules come from anywhere, and a compiler is a large program, so it runs in a process of its own: [`worker`] says what that
//! process may do, [`process`] starts it and takes what it writes, [`cache`] keeps that on disk. The engine is never used in
//! the process of the caller, which therefore pays no memory for it.

mod cache;
mod error;
mod process;
mod worker;

pub use error::CompileError;
pub use process::CompileLimits;
pub use worker::{COMPILE_WORKER, compile_worker};

use crate::world::World;
use cache::Cache;
use parking_lot::Mutex;
use process::Job;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{OnceCell, Semaphore};

/// A module that is ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The file of machine code; only root can read or replace it.
    pub path: PathBuf,
    /// What the program is.
    pub world: World,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// Compiles modules and keeps the machine code. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Compiler {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cache: Cache,
    program: PathBuf,
    limits: CompileLimits,
    /// One permit for each processor.
    parallel: Semaphore,
    /// The key of the engine that the worker has, once somebody had to know it.
    engine_key: OnceCell<String>,
    /// By digest. Whoever holds a slot's lock compiles; the others wait for what comes out.
    slots: Mutex<HashMap<String, Slot>>,
}

type Slot = Arc<Module>;

/// What is known of a module.
#[derive(Debug, Default)]
struct Module {
    outcome: tokio::sync::Mutex<Option<Result<Compiled, CompileError>>>,
    /// It is being compiled now.
    is_compiled: AtomicBool,
}

/// Says that a module is being compiled, as long as it lives.
struct Busy<'a>(&'a AtomicBool);

impl<'a> Busy<'a> {
    fn new(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self(flag)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Compiler {
    /// Opens the cache in `directory` (made when missing, private to root) and removes what a crash left unfinished.
    /// `program` is what is executed with [`COMPILE_WORKER`] as its first argument: mostly `/proc/self/exe`. `limits` are mostly the default ones. Blocking.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(directory: &Path, program: &Path, limits: CompileLimits) -> Result<Self, CompileError> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let inner = Inner {
            cache: Cache::open(directory)?,
            program: program.to_owned(),
            limits,
            parallel: Semaphore::new(processors),
            engine_key: OnceCell::new(),
            slots: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Machine code of the module in the file `module`, whose SHA-256 in hex is `digest`: out of the cache, or compiled now.
    ///
    /// Callers for the same digest share one compilation; as many run at the same time as there are processors. Dropping the
    /// future ends the process that compiles. What is wrong with a module is remembered as long as nothing is
    /// [swept](Self::sweep) that concerns it, so trying it again costs nothing.
    ///
    /// # Errors
    /// [`CompileError`], in words for the user who brought the module.
    pub async fn compile(&self, digest: &str, module: &Path) -> Result<Compiled, CompileError> {
        self.compile_telling(digest, module, || {}).await
    }

    /// As [`Self::compile`]; calls `begins` when there is something to compile, and not when the machine code is there.
    ///
    /// # Errors
    /// As there.
    pub async fn compile_telling(
        &self,
        digest: &str,
        module: &Path,
        begins: impl Fn() + Send + Sync,
    ) -> Result<Compiled, CompileError> {
        let inner = &*self.inner;
        if digest.len() != 64 || !digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(CompileError::Digest(digest.to_owned()));
        }
        let slot = Arc::clone(inner.slots.lock().entry(digest.to_owned()).or_default());
        if slot.is_compiled.load(Ordering::Relaxed) {
            begins();
        }
        let mut known = slot.outcome.lock().await;
        match &*known {
            Some(Ok(known)) if cache::is_there(known) => return Ok(known.clone()),
            Some(Err(error)) => return Err(error.clone()),
            Some(Ok(_)) | None => {}
        }
        let begins = || {
            begins();
            Busy::new(&slot.is_compiled)
        };
        let outcome = self.find_or_compile(digest, module, begins).await;
        *known = match &outcome {
            Err(error) if !error.is_of_the_module() => None,
            outcome => Some(outcome.clone()),
        };
        outcome
    }

    async fn find_or_compile<'a>(
        &self,
        digest: &str,
        module: &Path,
        begins: impl Fn() -> Busy<'a>,
    ) -> Result<Compiled, CompileError> {
        let key = self.engine_key().await?;
        let (this, name) = (Arc::clone(&self.inner), cache::name(digest, key));
        if let Some(known) = process::blocking(move || Ok(this.cache.load(&name))).await? {
            return Ok(known);
        }
        let _busy = begins();
        // the semaphore is never closed
        let _permit = self.inner.parallel.acquire().await;
        let begun = std::time::Instant::now();
        let job = Job::module(&self.inner.program, module, self.inner.limits)?;
        let output = job.run(self.inner.cache.directory()).await?;
        if output.engine_key != key {
            return Err(CompileError::Crashed("its engine is another one than before".to_owned()));
        }
        let (this, name) = (Arc::clone(&self.inner), cache::name(digest, key));
        let compiled = process::blocking(move || this.cache.store(&name, output)).await?;
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(digest, bytes = compiled.bytes, milliseconds, "WebAssembly module compiled");
        Ok(compiled)
    }

    /// Asks the worker, once: to make an engine here would cost the caller's process memory for ever.
    async fn engine_key(&self) -> Result<&str, CompileError> {
        let ask = || async { Job::engine_key(&self.inner.program).ask_key().await };
        self.inner.engine_key.get_or_try_init(ask).await.map(String::as_str)
    }

    /// Removes all machine code but that of the modules `in_use` (digests in hex) for the engine of this program, and forgets
    /// what was wrong with others. Programs that run keep what they have open. Returns the bytes freed.
    ///
    /// # Errors
    /// When the directory cannot be read or a file not removed.
    pub async fn sweep(&self, in_use: HashSet<String>) -> Result<u64, CompileError> {
        let this = Arc::clone(&self.inner);
        if process::blocking(move || this.cache.is_empty()).await? {
            self.forget(&in_use);
            return Ok(0);
        }
        let key = self.engine_key().await?.to_owned();
        self.forget(&in_use);
        let this = Arc::clone(&self.inner);
        process::blocking(move || {
            // a module that is being compiled, or has just been, may belong to an image that is about to be
            let busy: HashSet<String> = this.slots.lock().keys().cloned().collect();
            this.cache.sweep(|digest, its_key| its_key == key && (in_use.contains(digest) || busy.contains(digest)))
        })
        .await
    }

    /// Forgets the outcomes for modules that nobody has; those at work stay.
    fn forget(&self, in_use: &HashSet<String>) {
        let idle = |slot: &Slot| Arc::strong_count(slot) == 1;
        self.inner.slots.lock().retain(|digest, slot| in_use.contains(digest) || !idle(slot));
    }

    /// Bytes that machine code takes on disk.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn disk_usage(&self) -> Result<u64, CompileError> {
        self.inner.cache.usage()
    }
}
