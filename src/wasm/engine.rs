//! The one configuration of the engine: what is compiled with it runs with it.

use wasmtime::{Config, Engine, PoolingAllocationConfig};

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
                .total_core_instances(instances.saturating_mul(8))
                .total_memories(memories)
                .total_tables(memories.saturating_mul(4))
                .total_stacks(instances)
                .max_memories_per_module(8)
                .max_tables_per_module(8)
                .max_memories_per_component(16)
                .max_tables_per_component(32)
                .table_elements(TABLE_ELEMENTS)
                // An instance is what its program makes of it: no limit but that of the addresses.
                .max_core_instance_size(16 << 20)
                .max_component_instance_size(16 << 20);
            config.enable_compiler(false).allocation_strategy(pool);
        }
    }
    Engine::new(&config)
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
