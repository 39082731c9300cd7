//! Machine code out of an open file.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Engine, Module, ResourcesRequired, Store};

use crate::engine::memory_bytes;
use crate::host::{ComponentHost, ModuleHost, component_linker, module_linker};
use crate::inspect::ModuleError;
use crate::invocation::Limits;
use crate::run::PrepareError;
use crate::world::World;

/// A program that is linked and can be instantiated any number of times.
#[derive(Clone)]
pub(crate) enum Linked {
    Module(wasmtime::InstancePre<ModuleHost>),
    Component(InstancePre<ComponentHost>),
}

/// Maps machine code, so that all processes that run it share its pages, and links it.
///
/// The file must have been written by this program, by a [`crate::Profile::Compile`] engine, into a place where nobody else writes: what
/// is in it is executed.
pub(crate) fn link(engine: &Engine, code: File, world: World) -> Result<Linked, PrepareError> {
    match world {
        World::Preview1Command => link_module(engine, &load_module(engine, code)?),
        World::CliCommand | World::HttpProxy => link_component(engine, &load_component(engine, &code)?),
    }
}

/// Whether all that compiled code imports is there, in the form it expects. For the compiler, so that an image which cannot run is
/// refused when it is pulled.
///
/// The code must have been made by this program just now.
///
/// # Errors
/// What is missing or different, by name.
pub(crate) fn check(engine: &Engine, code: &[u8], world: World) -> Result<(), PrepareError> {
    let linked = match world {
        World::Preview1Command => link_module(engine, &copy_module(engine, code)?),
        World::CliCommand | World::HttpProxy => link_component(engine, &copy_component(engine, code)?),
    };
    linked.map(drop)
}

fn link_module(engine: &Engine, module: &Module) -> Result<Linked, PrepareError> {
    let linker = module_linker(engine).map_err(engine_error)?;
    match linker.instantiate_pre(module) {
        Ok(pre) => Ok(Linked::Module(pre)),
        Err(e) => Err(module_link_error(engine, &linker, module, &e).into()),
    }
}

fn link_component(engine: &Engine, component: &Component) -> Result<Linked, PrepareError> {
    let linker = component_linker(engine).map_err(engine_error)?;
    match linker.instantiate_pre(component) {
        Ok(pre) => Ok(Linked::Component(pre)),
        Err(e) => Err(component_link_error(engine, component, &e).into()),
    }
}

impl Linked {
    /// What an instance needs, if that can be known.
    pub(crate) fn resources(&self) -> Option<ResourcesRequired> {
        match self {
            Self::Module(pre) => Some(pre.module().resources_required()),
            Self::Component(pre) => pre.component().resources_required(),
        }
    }

    /// Refuses limits with which not even the memory that the program begins with can be had.
    pub(crate) fn check_limits(&self, limits: &Limits) -> Result<(), PrepareError> {
        let Some(limit) = limits.memory else { return Ok(()) };
        let needs = self.resources().as_ref().map_or(0, memory_bytes);
        if needs > limit { Err(PrepareError::MemoryLimit { needs, limit }) } else { Ok(()) }
    }
}

#[expect(unsafe_code, reason = "machine code is trusted by where it comes from, which no check can replace")]
fn load_module(engine: &Engine, code: File) -> Result<Module, PrepareError> {
    // SAFETY: the file was written by our own compiler and is not changed afterwards (contract of `link`).
    unsafe { Module::deserialize_open_file(engine, code) }.map_err(|e| PrepareError::MachineCode(format!("{e:#}")))
}

#[expect(unsafe_code, reason = "machine code is trusted by where it comes from, which no check can replace")]
fn load_component(engine: &Engine, code: &File) -> Result<Component, PrepareError> {
    // There is no function of the library that takes an open file for a component: the kernel's name of the descriptor opens it again.
    let path = format!("/proc/self/fd/{}", code.as_raw_fd());
    if std::fs::exists(&path).unwrap_or(false)
        && File::open(&path).is_ok_and(|mut again| again.read(&mut [0; 1]).is_ok())
    {
        // SAFETY: the file was written by our own compiler and is not changed afterwards (contract of `link`).
        return unsafe { Component::deserialize_file(engine, path) }
            .map_err(|e| PrepareError::MachineCode(format!("{e:#}")));
    }
    // Without /proc, or with no right to open it again: a copy does it too.
    let mut bytes = vec![0; usize::try_from(code.metadata().map_err(PrepareError::Read)?.len()).unwrap_or(usize::MAX)];
    code.read_exact_at(&mut bytes, 0).map_err(PrepareError::Read)?;
    copy_component(engine, &bytes)
}

#[expect(unsafe_code, reason = "machine code is trusted by where it comes from, which no check can replace")]
fn copy_module(engine: &Engine, code: &[u8]) -> Result<Module, PrepareError> {
    // SAFETY: the code was made by our own compiler (contract of the callers).
    unsafe { Module::deserialize(engine, code) }.map_err(|e| PrepareError::MachineCode(format!("{e:#}")))
}

#[expect(unsafe_code, reason = "machine code is trusted by where it comes from, which no check can replace")]
fn copy_component(engine: &Engine, code: &[u8]) -> Result<Component, PrepareError> {
    // SAFETY: the code was made by our own compiler (contract of the callers).
    unsafe { Component::deserialize(engine, code) }.map_err(|e| PrepareError::MachineCode(format!("{e:#}")))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn engine_error(err: wasmtime::Error) -> PrepareError {
    PrepareError::Engine(format!("{err:#}"))
}

/// All imports of a module that are missing, or else the engine's words.
fn module_link_error(
    engine: &Engine,
    linker: &wasmtime::Linker<ModuleHost>,
    module: &Module,
    err: &wasmtime::Error,
) -> ModuleError {
    let mut store = Store::new(engine, ModuleHost::empty());
    let missing: Vec<String> = module
        .imports()
        .filter(|i| linker.get(&mut store, i.module(), i.name()).is_err())
        .map(|i| format!("{}.{}", i.module(), i.name()))
        .collect();
    if missing.is_empty() { ModuleError::Link(format!("{err:#}")) } else { ModuleError::MissingImports(missing) }
}

/// All imports of a component that are missing, or else the engine's words.
fn component_link_error(engine: &Engine, component: &Component, err: &wasmtime::Error) -> ModuleError {
    let missing: Vec<String> = component
        .component_type()
        .imports(engine)
        .filter(|(name, _)| !is_provided(name))
        .filter(|(_, item)| match &item.ty {
            // One that consists of types alone asks for nothing.
            ComponentItem::ComponentInstance(instance) => {
                instance.exports(engine).any(|(_, e)| !matches!(e.ty, ComponentItem::Type(_)))
            }
            _ => true,
        })
        .map(|(name, _)| name.to_owned())
        .collect();
    if missing.is_empty() { ModuleError::Link(format!("{err:#}")) } else { ModuleError::MissingImports(missing) }
}

/// Whether [`component_linker`] has this interface.
fn is_provided(import: &str) -> bool {
    import
        .split_once('@')
        .is_some_and(|(interface, version)| PROVIDED.contains(&interface) && version.starts_with("0.2."))
}

/// The interfaces that components find, all of version 0.2; for error messages.
const PROVIDED: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:config/store",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];
