//! `edge kubectl`: the machine's kubectl with the administrator's kubeconfig, or what edge has of it.

use super::server::doing;
use super::{USAGE, fail, places};
use clap::{Args, Parser};
use edge_kubectl::Kubectl;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// `edge kubectl`
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct KubectlArgs {
    /// What kubectl is told
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

/// Becomes kubectl; where there is none, does what edge has of it.
pub(crate) fn main(args: KubectlArgs) -> ExitCode {
    let mut command = Command::new("kubectl");
    command.args(&args.arguments);
    let kubeconfig = places::kubeconfig();
    if std::env::var_os("KUBECONFIG").is_none() && kubeconfig.exists() {
        command.env("KUBECONFIG", kubeconfig);
    }
    // returns only when there is none
    let error = command.exec();
    match error.kind() {
        io::ErrorKind::NotFound => built_in(args.arguments),
        _ => fail(1, &doing("running kubectl")(error)),
    }
}

fn built_in(arguments: Vec<OsString>) -> ExitCode {
    let command = match Kubectl::try_parse_from(std::iter::once("edge kubectl".into()).chain(arguments)) {
        Ok(command) => command,
        Err(error) => {
            // help is an error to clap, but no failure
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            // a closed terminal cannot be told anything
            let _ = error.print();
            return code;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &doing("starting the runtime")(error)),
    };
    let done = runtime.block_on(edge_kubectl::run(command, places::kubeconfig()));
    // the standard input may still be waited for
    runtime.shutdown_background();
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(1, &error),
    }
}
