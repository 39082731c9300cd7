//! The one configuration of the engine: what is compiled with it runs with it.

use std::fs::File;

use nix::sys::prctl;
use wasmtime::{Config, Enabled, Engine, PoolingAllocationConfig, ResourcesRequired};

/// What an engine is for. Machine code made by a [`Profile::Compile`] engine runs in all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// To make machine code.
    Compile,
    /// To run one program in a process of its own.
    Single,
    /// To run many instances in one process, out of a pool.
    Pooled {
        /// Most component instances (and modules) at the same time.
        instances: u32,
        /// Most linear memories at the same time. Each reserves some 4 GiB of addresses, and no memory.
        memories: u32,
    },
}

/// Most bytes that one function call of a program may use of its stack.
const STACK: usize = 1024 * 1024;
/// Bytes of the stack on which a program and what it calls in the host run.
const STACK_WITH_HOST: usize = 2 * STACK;
/// Most elements of one table of a pool.
const TABLE_ELEMENTS: usize = 100_000;

/// Bytes of a memory, and of a table, that a place of a pool keeps for its next instance. Pages that an instance has written to
/// are then made by copying what they were, which takes a fraction of the time in which the kernel takes them away and brings
/// them again. Only where the kernel says which pages those are (since 6.7); otherwise all of these bytes would be touched.
const KEPT: usize = 256 * 1024;

/// Tables and core instances that a component may have on average, beside its memories.
const PER_INSTANCE: u32 = 4;
/// Most instances of a pool.
const MOST_INSTANCES: u32 = 256;
/// Fewest instances of a pool, and how many run without one.
const FEWEST_INSTANCES: u32 = 8;
/// Bytes of memory that an instance takes at least.
const LEAST_MEMORY: u64 = 1024 * 1024;

/// What a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    instances: u32,
    memories: u32,
}

/// Makes an engine with a pool as large as the memory limit and the addresses of this machine make sensible.
pub(crate) fn pooled_engine(memory: Option<u64>) -> wasmtime::Result<(Engine, Pool)> {
    let wanted = memory.map_or(u64::from(MOST_INSTANCES), |limit| limit / LEAST_MEMORY);
    let mut instances = u32::try_from(wanted).unwrap_or(MOST_INSTANCES).clamp(FEWEST_INSTANCES, MOST_INSTANCES);
    loop {
        // Few components have more than one memory; those that do get fewer places.
        let pool = Pool { instances, memories: instances };
        match engine(Profile::Pooled { instances, memories: instances }) {
            Ok(engine) => return Ok((engine, pool)),
            // Small 64-bit machines have addresses for a hundred memories, not for a thousand.
            Err(_) if instances > FEWEST_INSTANCES => instances = (instances / 2).max(FEWEST_INSTANCES),
            Err(_) => return Ok((engine(Profile::Single)?, Pool { instances, memories: u32::MAX })),
        }
    }
}

impl Pool {
    pub(crate) fn new(instances: u32, memories: u32) -> Self {
        Self { instances, memories }
    }

    /// How many instances of a component fit into the pool and the memory limit at the same time: at least one, which may then fail.
    pub(crate) fn places(self, needs: Option<&ResourcesRequired>, memory: Option<u64>) -> usize {
        let Some(needs) = needs else { return 1 };
        let memories = self.memories / needs.num_memories.max(1);
        let tables = self.memories.saturating_mul(PER_INSTANCE) / needs.num_tables.max(1);
        let limit = memory.map_or(u64::MAX, |limit| limit / memory_bytes(needs).max(1));
        let places = self.instances.min(memories).min(tables).min(u32::try_from(limit).unwrap_or(u32::MAX));
        places.max(1) as usize
    }
}

/// Bytes of memory with which a program begins; of several memories only the largest is known.
pub(crate) fn memory_bytes(needs: &ResourcesRequired) -> u64 {
    const PAGE: u64 = 65_536;
    needs.max_initial_memory_size.unwrap_or(0).saturating_mul(PAGE)
}

/// Makes an engine.
///
/// # Errors
/// When the machine lacks what the engine needs: instructions of its processor, or addresses for a pool.
pub fn engine(profile: Profile) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    // All that machine code depends on comes first and is the same for all profiles.
    config
        .wasm_component_model(true)
        // No streams and futures between components (WASI 0.3), so no bookkeeping for them either.
        .concurrency_support(false)
        // So that a program can always be told to end, and leaves its thread to others.
        .epoch_interruption(true)
        .max_wasm_stack(STACK)
        .async_stack_size(STACK_WITH_HOST);
    match profile {
        Profile::Compile => {}
        Profile::Single => {
            config.enable_compiler(false);
        }
        Profile::Pooled { instances, memories } => {
            let mut pool = PoolingAllocationConfig::new();
            pool.total_component_instances(instances)
                .total_core_instances(instances.saturating_mul(2 * PER_INSTANCE))
                .total_memories(memories)
                .total_tables(memories.saturating_mul(PER_INSTANCE))
                .total_stacks(instances)
                .max_memories_per_module(8)
                .max_tables_per_module(8)
                .max_memories_per_component(16)
                .max_tables_per_component(32)
                .table_elements(TABLE_ELEMENTS)
                // An instance is what its program makes of it: no limit but that of the addresses.
                .max_core_instance_size(16 << 20)
                .max_component_instance_size(16 << 20);
            if knows_its_pages() {
                pool.linear_memory_keep_resident(KEPT).table_keep_resident(KEPT).pagemap_scan(Enabled::Auto);
            }
            config.enable_compiler(false).allocation_strategy(pool);
        }
    }
    Engine::new(&config)
}

/// Whether the kernel says which pages of this process have been written to. The engine keeps open what it asks.
fn knows_its_pages() -> bool {
    // Who has become another user since it was executed may not see its own pages, unless it is as visible as all others. Looked at
    // here first, since the engine asks but once. (What `PR_GET_DUMPABLE` says is no answer: `fs.suid_dumpable` has a say in it.)
    let is_hidden = File::open("/proc/self/pagemap").is_err() && prctl::set_dumpable(true).is_ok();
    let known = PoolingAllocationConfig::is_pagemap_scan_available();
    if is_hidden {
        // It was possible before.
        let _ = prctl::set_dumpable(false);
    }
    known
}

/// A name for all that decides whether machine code made by one engine runs in another: version, settings, features of the
/// processor. Fit for a file name. Asks for a [`Profile::Compile`] engine.
#[must_use]
pub fn engine_key(engine: &Engine) -> String {
    use std::hash::{Hash, Hasher};
    #[expect(
        deprecated,
        reason = "SipHash with fixed keys: the same on every start, which DefaultHasher does not promise"
    )]
    let mut hasher = std::hash::SipHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
