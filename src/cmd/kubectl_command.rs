//! `edge kubectl`: the machine's kubectl, with the administrator's kubeconfig.

use super::server::doing;
use super::{USAGE, fail};
use clap::Args;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Where `edge server` writes it unless it is told otherwise.
const KUBECONFIG: &str = "/etc/edge/edge.yaml";

/// `edge kubectl`
#[derive(Args)]
pub(crate) struct KubectlArgs {
    /// What kubectl is told
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

/// Becomes kubectl. Returns only when that is not possible.
pub(crate) fn main(args: KubectlArgs) -> ExitCode {
    let mut command = Command::new("kubectl");
    command.args(args.arguments);
    if std::env::var_os("KUBECONFIG").is_none() && Path::new(KUBECONFIG).exists() {
        command.env("KUBECONFIG", KUBECONFIG);
    }
    let error = command.exec();
    match error.kind() {
        io::ErrorKind::NotFound => fail(
            USAGE,
            &io::Error::other(
                "there is no kubectl on the PATH: install one (https://kubernetes.io/docs/tasks/tools), any of the last three versions",
            ),
        ),
        _ => fail(1, &doing("running kubectl")(error)),
    }
}
