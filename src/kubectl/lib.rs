//! What a first day with a cluster needs of kubectl, for machines that have none: commands with kubectl's names, flags and words.
//!
//! In: arguments, a kubeconfig, manifests. Out: what is printed, and an exit code. Nothing here knows a type of object that it does not
//! have to: names of resources come from the server's discovery, tables are printed by the server, manifests are applied by the
//! server (server-side apply).

mod apply;
mod cli;
mod columns;
mod delete;
mod describe;
mod error;
mod explain;
mod files;
mod get;
mod metadata;
mod ports;
mod print;
mod resources;
mod rollout;
mod run;
mod session;
mod streams;
mod terminal;
mod top;
mod workloads;

pub use cli::Kubectl;
pub use error::Error;

use cli::Command;
use session::Session;
use std::path::PathBuf;

/// Runs a command; gives the exit code: that of a program for `exec`, otherwise 0. `kubeconfig` is used when neither the command line nor the
/// environment names another one. Must be called within a tokio runtime.
///
/// # Errors
/// What the user has to know.
pub async fn run(command: Kubectl, kubeconfig: PathBuf) -> Result<u8, Error> {
    let Kubectl { global, command } = command;
    let session = Session::open(&global, kubeconfig).await?;
    match command {
        Command::Get(args) => get::run(&session, args).await?,
        Command::Describe(args) => describe::run(&session, args).await?,
        Command::Apply(args) => apply::apply(&session, args).await?,
        Command::Create(args) => apply::create(&session, args).await?,
        Command::Delete(args) => delete::run(&session, args).await?,
        Command::Logs(args) => streams::logs(&session, args).await?,
        Command::Exec(args) => return streams::exec(&session, args).await,
        Command::PortForward(args) => ports::run(&session, args).await?,
        Command::Expose(args) => workloads::expose(&session, args).await?,
        Command::Run(args) => return run::run(&session, args).await,
        Command::Label(args) => metadata::run(&session, metadata::Part::Labels, args).await?,
        Command::Annotate(args) => metadata::run(&session, metadata::Part::Annotations, args).await?,
        Command::Scale(args) => workloads::scale(&session, args).await?,
        Command::Rollout(args) => rollout::run(&session, args).await?,
        Command::Top(args) => top::run(&session, args).await?,
        Command::Explain(args) => explain::run(&session, args).await?,
        Command::ApiResources => get::api_resources(&session)?,
        Command::Version => session.version().await?,
    }
    Ok(0)
}
