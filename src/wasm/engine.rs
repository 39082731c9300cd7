//! The one configuration of the engine: what is compiled with it runs with it.

use wasmtime::{Config, Engine};

/// What an engine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// To compile, or to run one program in a process of its own.
    Single,
    /// To run many instances in one process, out of a pool.
    Pooled,
}

/// Makes an engine.
///
/// # Errors
/// When the machine lacks what the engine needs.
pub fn engine(profile: Profile) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config.wasm_component_model(true).epoch_interruption(true);
    let _ = profile;
    Engine::new(&config)
}

/// A name for all that decides whether machine code made by one engine runs in another: version, settings, features of the
/// processor. Fit for a file name.
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
