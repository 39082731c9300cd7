//! `edge server`.

use crate::config::ServerConfig;
use std::process::ExitCode;

/// Runs the control plane and the node agent.
pub(crate) fn main(config: &ServerConfig) -> ExitCode {
    // the rooms below the API stand; the registry, on which the API server builds, does not yet
    eprintln!(
        "edge: this revision cannot serve yet: the API server is not finished (configuration of {} is valid)",
        config.node_name
    );
    ExitCode::FAILURE
}
