//! `edge wasm`: trying WebAssembly programs, and packing them as images.

use super::server::{Failure, doing};
use super::{USAGE, credentials, fail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use edge_api::Quantity;
use edge_image::{Artifact, Credentials, Reference, Registries};
use edge_wasm::{CompileLimits, Compiler, Invocation, Limits, Outcome, Preopen, Program, Shutdown};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit code of a program that trapped, as its container has.
const TRAPPED: u8 = 134;
/// Exit code of a program that got no more memory, as its container has.
const OUT_OF_MEMORY: u8 = 137;

/// `edge wasm`
#[derive(Args)]
pub(crate) struct WasmArgs {
    #[command(subcommand)]
    command: WasmCommand,
}

#[derive(Subcommand)]
enum WasmCommand {
    /// Run a WebAssembly program on this machine, compiled and run by the engine that runs it in a pod
    ///
    /// It sees nothing but what it is given here: no file, no variable and no socket of the machine. The exit code is that of the
    /// program, 134 when it traps, 137 when it wants more memory than it may have.
    Run(RunArgs),
    /// Package a WebAssembly program as an OCI artifact, and push it to a registry or write it to a file
    ///
    /// Credentials are those of ~/.docker/config.json, or else of registries.yaml.
    Push(PushArgs),
}

#[derive(Args)]
struct RunArgs {
    /// A module (WASI preview 1) or component (WASI 0.2: a command, or an HTTP server)
    file: PathBuf,
    /// A variable of its environment; without a value that of this process
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A directory that it sees, at its root unless GUEST says where
    #[arg(long, short, value_name = "HOST[:GUEST[:ro]]")]
    dir: Vec<String>,
    /// Where its relative paths begin, if it sees a directory at its root
    #[arg(long, short, value_name = "GUEST", value_parser = absolute)]
    workdir: Option<PathBuf>,
    /// How much memory it may use, such as 64Mi [default: no limit]
    #[arg(long, short, value_name = "QUANTITY", value_parser = quantity)]
    memory: Option<u64>,
    /// Where an HTTP server listens: a port of this machine alone, or an address and port
    #[arg(long, short, value_name = "[ADDRESS:]PORT", default_value = "8080", value_parser = address)]
    listen: Vec<SocketAddr>,
    /// Let it use the network of this machine
    #[arg(long, short)]
    network: bool,
    /// Its arguments
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Args)]
struct PushArgs {
    /// A module or component
    file: PathBuf,
    /// The image's name, such as registry.example/app:v1
    name: String,
    /// Write an image archive, for the image directory of a node, and push nothing
    #[arg(long, short, value_name = "FILE.tar")]
    output: Option<PathBuf>,
    /// Registries, their credentials and certificates
    #[arg(long, default_value = "/etc/edge/registries.yaml", value_name = "FILE")]
    private_registry: PathBuf,
    /// Name and password for the registry; without them those of ~/.docker/config.json and registries.yaml are tried
    #[arg(long, env = "EDGE_CREDS", hide_env_values = true, value_name = "USER:PASSWORD", value_parser = credentials::parse)]
    creds: Option<Credentials>,
}

pub(crate) fn main(args: WasmArgs) -> ExitCode {
    let done = match args.command {
        WasmCommand::Run(args) => match invocation_parts(&args) {
            Ok((env, preopens)) => run(args, env, preopens),
            Err(error) => return fail(USAGE, &error),
        },
        WasmCommand::Push(args) => push(&args),
    };
    done.unwrap_or_else(|error| fail(1, &error))
}

/// Environment and directories out of the arguments.
type Parts = (Vec<(String, String)>, Vec<Preopen>);

fn invocation_parts(args: &RunArgs) -> Result<Parts, clap::Error> {
    let wrong = |text: String| clap::Error::raw(clap::error::ErrorKind::ValueValidation, text);
    let mut env = Vec::new();
    for entry in &args.env {
        match entry.split_once('=') {
            Some((name, value)) => env.push((name.to_owned(), value.to_owned())),
            None => match std::env::var(entry) {
                Ok(value) => env.push((entry.clone(), value)),
                Err(_) => return Err(wrong(format!("--env {entry}: not set here"))),
            },
        }
    }
    let mut preopens = Vec::new();
    for dir in &args.dir {
        preopens.push(preopen(dir).map_err(|why| wrong(format!("--dir {dir}: {why}")))?);
    }
    Ok((env, preopens))
}

fn preopen(text: &str) -> Result<Preopen, &'static str> {
    let mut parts = text.split(':');
    let host = PathBuf::from(parts.next().unwrap_or_default());
    let guest = parts.next().unwrap_or("/").to_owned();
    let read_only = match parts.next() {
        None => false,
        Some("ro") => true,
        Some(_) => return Err("only \"ro\" may follow the second colon"),
    };
    if parts.next().is_some() || host.as_os_str().is_empty() {
        return Err("is not HOST[:GUEST[:ro]]");
    }
    if !guest.starts_with('/') {
        return Err("the path that the program knows must be absolute");
    }
    Ok(Preopen { host, guest, read_only })
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("is not absolute") }
}

fn quantity(text: &str) -> Result<u64, String> {
    let quantity = Quantity::parse(text).map_err(|error| error.to_string())?;
    u64::try_from(quantity.value()).map_err(|_| "is negative".to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<u16>() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => text.parse().map_err(|_| "is neither a port nor an address and port".to_owned()),
    }
}

fn run(args: RunArgs, env: Vec<(String, String)>, preopens: Vec<Preopen>) -> Result<ExitCode, Failure> {
    let wasm = read(&args.file)?;
    let digest = hex::encode(Sha256::digest(&wasm));
    drop(wasm);
    // What is compiled may only be what this user's own compiler wrote; without a directory of the user's nothing is kept.
    let temporary = tempfile::tempdir().map_err(doing("making a temporary directory"))?;
    let cache = cache_directory().unwrap_or_else(|| temporary.path().join("wasm"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing("starting"))?;
    let compiled = runtime.block_on(async {
        let program = Path::new("/proc/self/exe");
        let compiler = Compiler::open(&cache, program, CompileLimits::default()).map_err(doing("opening the cache"))?;
        compiler.compile(&digest, &args.file).await.map_err(doing(format!("compiling {}", args.file.display())))
    })?;
    drop(runtime);
    let code = File::open(&compiled.path).map_err(doing("opening the compiled program"))?;
    drop(temporary);
    let mut program_args = vec![args.file.file_name().unwrap_or_default().to_string_lossy().into_owned()];
    program_args.extend(args.args);
    let invocation = Invocation {
        world: compiled.world,
        args: program_args,
        env,
        preopens,
        cwd: args.workdir,
        listen: args.listen,
        network: args.network,
        limits: Limits { memory: args.memory },
    };
    let program = Program::prepare(code, &invocation).map_err(doing(args.file.display().to_string()))?;
    for address in program.listening() {
        eprintln!("edge: listening on http://{address}");
    }
    let outcome = program.run(Shutdown::on_signals());
    let code = match &outcome {
        // A status has eight bits.
        Outcome::Exited(code) => return Ok(ExitCode::from((code & 0xff) as u8)),
        Outcome::Trapped(_) => TRAPPED,
        Outcome::OutOfMemory(_) => OUT_OF_MEMORY,
    };
    eprintln!("edge: the program {outcome}");
    Ok(ExitCode::from(code))
}

/// Where this user's programs keep what can be made again.
fn cache_directory() -> Option<PathBuf> {
    let directory = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = directory("XDG_CACHE_HOME").or_else(|| Some(directory("HOME")?.join(".cache")))?;
    Some(caches.join("edge/wasm"))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(doing(format!("reading {}", path.display())))
}

fn push(args: &PushArgs) -> Result<ExitCode, Failure> {
    let file = args.file.display().to_string();
    let wasm = Bytes::from(read(&args.file)?);
    // What would not run is told to its author here, not on a node.
    edge_wasm::inspect(&wasm).map_err(doing(file.clone()))?;
    let outline = edge_wasm::outline(&wasm).map_err(doing(file.clone()))?;
    let reference: Reference = args.name.parse().map_err(doing(args.name.clone()))?;
    let artifact = match outline.component {
        true => Artifact::of_component(wasm, &outline.imports, &outline.exports),
        false => Artifact::of_module(wasm),
    };
    match &args.output {
        Some(output) => {
            artifact.write_archive(&reference, output).map_err(doing(format!("writing {}", output.display())))?;
        }
        None => {
            let registries = Registries::load(&args.private_registry).map_err(doing("reading the registries"))?;
            let credentials = credentials::find(args.creds.clone(), &reference)?;
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing("starting"))?;
            runtime
                .block_on(artifact.push(&registries, &reference, credentials))
                .map_err(doing(format!("pushing {reference}")))?;
        }
    }
    println!("{reference}@{}", artifact.digest());
    Ok(ExitCode::SUCCESS)
}
