//! What is behind a program's imports.

use std::sync::Arc;

use wasmtime::Engine;
use wasmtime::component::{self, ResourceTable};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::invocation::Invocation;
use crate::limits::MemoryLimiter;
use crate::outgoing::Outgoing;
use crate::stdio::Stdio;
use crate::world::PREVIEW1;

/// Data of a module's store.
pub(crate) struct ModuleHost {
    pub(crate) wasi: WasiP1Ctx,
    pub(crate) limiter: MemoryLimiter,
}

impl ModuleHost {
    /// Of a program that has nothing.
    pub(crate) fn empty() -> Self {
        Self { wasi: WasiCtxBuilder::new().build_p1(), limiter: MemoryLimiter::new(None) }
    }
}

/// Data of a component's store.
pub(crate) struct ComponentHost {
    pub(crate) table: ResourceTable,
    pub(crate) wasi: WasiCtx,
    pub(crate) http: WasiHttpCtx,
    pub(crate) outgoing: Outgoing,
    pub(crate) config: Arc<WasiConfigVariables>,
    pub(crate) limiter: MemoryLimiter,
}

impl WasiView for ComponentHost {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for ComponentHost {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

/// The imports of modules.
pub(crate) fn module_linker(engine: &Engine) -> wasmtime::Result<wasmtime::Linker<ModuleHost>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |host: &mut ModuleHost| &mut host.wasi)?;
    // The library's own takes codes from 126 on for an error; for us they are codes like all others, as far as a process has them.
    linker.allow_shadowing(true);
    linker
        .func_wrap(PREVIEW1, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code & 0xff).into()) })?;
    linker.allow_shadowing(false);
    Ok(linker)
}

/// The imports of components.
pub(crate) fn component_linker(engine: &Engine) -> wasmtime::Result<component::Linker<ComponentHost>> {
    let mut linker = component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_config::add_to_linker(&mut linker, |host: &mut ComponentHost| WasiConfig::from(&*host.config))?;
    Ok(linker)
}

/// What a component finds as its configuration: its environment, which in a pod comes from ConfigMaps and Secrets.
pub(crate) fn config(invocation: &Invocation) -> Arc<WasiConfigVariables> {
    Arc::new(invocation.env.iter().cloned().collect())
}

/// What an invocation gives a program, apart from its standard input and its directories.
pub(crate) fn wasi_builder(invocation: &Invocation, stdio: &Stdio) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    builder.args(&invocation.args).envs(&invocation.env);
    builder.stdout(stdio.stdout.clone()).stderr(stdio.stderr.clone());
    if invocation.network {
        builder.inherit_network().allow_ip_name_lookup(true).allow_tcp(true).allow_udp(true);
    }
    builder
}
