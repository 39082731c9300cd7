//! Programs in the text format, compiled and run as they will be.
#![expect(clippy::unwrap_used, reason = "tests")]

mod commands;
mod dense;
mod inspection;

use std::fs::File;
use std::io::Write;

use crate::{Invocation, Limits, Outcome, PrepareError, Profile, Program, Shutdown, World, engine, inspect};

/// An invocation that gives nothing.
fn invocation(world: World) -> Invocation {
    Invocation {
        world,
        args: vec!["program".into()],
        env: Vec::new(),
        cwd: None,
        preopens: Vec::new(),
        listen: Vec::new(),
        network: false,
        limits: Limits::default(),
    }
}

/// Machine code of a program, in a file that only its descriptor knows.
fn compile(wasm: &[u8]) -> File {
    let engine = engine(Profile::Compile).unwrap();
    let code = match inspect(wasm).unwrap() {
        World::Preview1Command => engine.precompile_module(wasm).unwrap(),
        World::CliCommand | World::HttpProxy => engine.precompile_component(wasm).unwrap(),
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&code).unwrap();
    file
}

fn prepare(text: &str, change: impl FnOnce(&mut Invocation)) -> Result<Program, PrepareError> {
    let wasm = wat::parse_str(text).unwrap();
    let mut invocation = invocation(inspect(&wasm).unwrap());
    change(&mut invocation);
    Program::prepare(compile(&wasm), &invocation)
}

fn run(text: &str) -> Outcome {
    let (_handle, shutdown) = Shutdown::by_handle();
    prepare(text, |_| ()).unwrap().run(shutdown)
}
