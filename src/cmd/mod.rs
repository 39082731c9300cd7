//! The composition root: the only room that knows all others. Wiring, no logic.

mod access;
mod agent;
mod agent_command;
mod backup_command;
mod backups;
mod certificate_command;
mod check_command;
mod config_command;
mod credentials;
mod datastore;
mod facts;
mod identities;
mod image_command;
mod instance;
mod join;
mod join_tokens;
mod kubectl_command;
mod leading;
mod logging;
mod net_events;
mod notify;
mod options_page;
mod own_certificates;
mod places;
mod report;
mod server;
mod signer;
mod status_command;
mod store_command;
mod teardown_command;
mod token_command;
mod tunnels;
mod unpack_command;
mod wasm_command;

use crate::config::{AgentArgs, ServerArgs, with_files};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use edge_runtime::Zygote;
use std::error::Error;
use std::process::ExitCode;

/// The version of Kubernetes that is claimed, and which edge it is.
pub(crate) const GIT_VERSION: &str = concat!("v1.36.0+edge", env!("CARGO_PKG_VERSION"));

/// Wrong usage or configuration.
const USAGE: u8 = 2;

/// A complete Kubernetes in one small binary, for the edge.
#[derive(Parser)]
#[command(name = "edge", version = GIT_VERSION, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Run the control plane, and the node agent of this machine
    ///
    /// Every flag can also be a key in the configuration file (`node-name: a` for --node-name=a); flags win over the
    /// environment, which wins over the file. SIGTERM ends the server and leaves the containers running.
    #[command(args_override_self = true)]
    Server(Box<ServerArgs>),
    /// Run a node of a cluster whose server is another machine
    ///
    /// The machine dials out to the server and needs no open port. Every flag can also be a key in the configuration file.
    /// SIGTERM ends the agent and leaves the containers running.
    #[command(args_override_self = true)]
    Agent(Box<AgentArgs>),
    /// Manage the tokens with which machines join
    Token(token_command::TokenArgs),
    /// Look after the container images of this node
    ///
    /// Asks the edge that runs on this machine, and needs root. Archives can also be dropped into the directory
    /// agent/images of the data directory.
    Image(image_command::ImageArgs),
    /// End all pods of this machine and take away what edge has made of it
    ///
    /// Containers, control groups, mounts, links, routes and packet filter tables go; the data directory stays, and
    /// forwarding of packets stays switched on. edge must not run. It goes by what the kernel knows, so it works after any
    /// crash, and can be repeated.
    Teardown(teardown_command::TeardownArgs),
    /// Say whether this machine and its cluster are fine, and what to do where they are not
    ///
    /// Exit code 1 when something has failed, 0 when there are only warnings.
    Status(status_command::StatusArgs),
    /// Show this machine's certificates, and renew them
    Certificate(certificate_command::CertificateArgs),
    /// Run kubectl with the administrator's kubeconfig
    ///
    /// That on the PATH; where there is none, edge does what a first day needs itself: get, describe, apply, create, run, delete, logs, exec,
    /// port-forward, expose, scale, rollout, label, annotate, explain.
    Kubectl(kubectl_command::KubectlArgs),
    /// Look at the configuration: flags, environment and files together
    Config(config_command::ConfigArgs),
    /// Move a cluster's objects between this machine and etcd
    Store(store_command::StoreArgs),
    /// Write a server's store, keys, tokens and manifests to one file
    ///
    /// The server goes on meanwhile. Whoever has the file is the administrator of the cluster: keep it as safe as the server. Images,
    /// containers and volumes of nodes are not in it.
    Backup(backup_command::BackupArgs),
    /// Put a server back to what it was when a backup was made, on this machine or another
    ///
    /// The server must not run. What is there is kept beside it. Pods that were made since go, those that were removed come back; other
    /// nodes join by themselves.
    Restore(backup_command::RestoreArgs),
    /// Look whether this machine has what edge needs, and say what to do where it has not
    ///
    /// Changes nothing. Exit code 1 when edge would not run.
    Check(check_command::CheckArgs),
    /// Try WebAssembly programs, and package them as images
    Wasm(wasm_command::WasmArgs),
    /// Print what a shell needs to complete edge's commands and flags
    ///
    /// For bash: edge completion bash > /usr/share/bash-completion/completions/edge
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version of edge and of the Kubernetes that it is
    Version {
        /// Format
        #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
        output: VersionOutput,
    },
    /// Write the files that a machine needs beside the program; the install script puts them into their places
    #[command(hide = true)]
    Unpack(unpack_command::UnpackArgs),
}

/// How the version is printed.
#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum VersionOutput {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    // Not for people: edge executes itself to compile WebAssembly modules, and to run those of many pods.
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    match &first {
        Some(first) if first == edge_wasm::COMPILE_WORKER => return edge_wasm::compile_worker(args),
        Some(first) if first == edge_runtime::DENSE_HOST => return edge_runtime::dense_host(args),
        _ => {}
    }
    // Each pod has a copy of the memory that this process has now: that should be little.
    let runs_pods = first.is_some_and(|first| first == "server" || first == "agent");
    let zygote = runs_pods.then(Zygote::start);
    let mut root = Cli::command();
    root.build();
    let args = match with_files(&root, std::env::args_os().collect()) {
        Ok(args) => args,
        Err(error) => return fail(USAGE, &error),
    };
    let cli = match root.try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(error) => {
            // help and version are errors to clap, but no failures
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            // a closed terminal cannot be told anything
            let _ = error.print();
            return code;
        }
    };
    match cli.command {
        Commands::Server(args) => {
            let debug = args.debug;
            match args.check() {
                Ok(config) => server::main(config, debug, zygote),
                Err(error) => fail(USAGE, &error),
            }
        }
        Commands::Agent(args) => {
            let debug = args.debug;
            match args.check(|name| std::env::var(name).ok()) {
                Ok(config) => agent_command::main(config, debug, zygote),
                Err(error) => fail(USAGE, &error),
            }
        }
        Commands::Image(args) => image_command::main(args),
        Commands::Token(args) => token_command::main(args),
        Commands::Store(args) => store_command::main(args),
        Commands::Teardown(args) => teardown_command::main(&args),
        Commands::Status(args) => status_command::main(&args),
        Commands::Certificate(args) => certificate_command::main(&args),
        Commands::Kubectl(args) => kubectl_command::main(args),
        Commands::Config(args) => config_command::main(args),
        Commands::Backup(args) => backup_command::backup(args),
        Commands::Restore(args) => backup_command::restore(&args),
        Commands::Check(args) => check_command::main(&args),
        Commands::Wasm(args) => wasm_command::main(args),
        Commands::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "edge", &mut script);
            print(&script)
        }
        Commands::Version { output } => print(version(output).as_bytes()),
        Commands::Unpack(args) => unpack_command::main(&args),
    }
}

fn version(output: VersionOutput) -> String {
    let (edge, architecture) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    match output {
        VersionOutput::Text => format!("edge {GIT_VERSION}\n"),
        VersionOutput::Json => {
            let value = serde_json::json!({"version": edge, "kubernetes": GIT_VERSION, "architecture": architecture});
            format!("{value:#}\n")
        }
    }
}

/// Writes to standard output, which may be a pipe that nobody reads to the end.
fn print(bytes: &[u8]) -> ExitCode {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => fail(1, &error),
        _ => ExitCode::SUCCESS,
    }
}

/// Says what went wrong, with its causes, and gives the exit code.
fn fail(code: u8, error: &dyn Error) -> ExitCode {
    eprintln!("edge: {}", with_causes(error));
    ExitCode::from(code)
}

/// An error and its causes in one line.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}
