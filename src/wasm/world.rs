//! What a module expects around it.

use serde::{Deserialize, Serialize};

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
