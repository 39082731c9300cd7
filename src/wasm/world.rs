//! What a module expects around it.

use serde::{Deserialize, Serialize};

/// The module name of the functions of WASI preview 1.
pub(crate) const PREVIEW1: &str = "wasi_snapshot_preview1";
/// What a command of WASI 0.2 exports.
pub(crate) const CLI_RUN: &str = "wasi:cli/run";
/// What an HTTP server of WASI 0.2 exports.
pub(crate) const HTTP_HANDLER: &str = "wasi:http/incoming-handler";

/// The kinds of programs that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum World {
    /// A core module with `_start` that imports `wasi_snapshot_preview1`.
    Preview1Command,
    /// A component that exports `wasi:cli/run`.
    CliCommand,
    /// A component that exports `wasi:http/incoming-handler`.
    HttpProxy,
}
