//! What a program is given, and how it ends.

use crate::world::World;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// One start of a program. Standard input, output and error are those of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    /// What the program is.
    pub world: World,
    /// Arguments; the first is the program's name.
    pub args: Vec<String>,
    /// Environment as name and value.
    pub env: Vec<(String, String)>,
    /// Directories that the program sees.
    pub preopens: Vec<Preopen>,
    /// Where relative paths begin, as an absolute path below the directory that the program knows as `/`; there without one.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// Where a [`World::HttpProxy`] listens.
    pub listen: Vec<SocketAddr>,
    /// Whether the program may open sockets and look up names.
    pub network: bool,
    /// What it may use.
    pub limits: Limits,
}

/// A directory of the process that the program sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preopen {
    /// Path in the process.
    pub host: PathBuf,
    /// Absolute path by which the program knows it.
    pub guest: String,
    /// Refuse every write, whatever the file system allows.
    pub read_only: bool,
}

/// What one instance may use. `None` is no limit beside the process' own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of linear memory and tables, all memories of the program together.
    pub memory: Option<u64>,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// By itself, or asked to.
    Exited(i32),
    /// By a trap, with the engine's words for it.
    Trapped(String),
    /// By a trap after it was refused memory beyond [`Limits::memory`].
    OutOfMemory(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Trapped(trap) => write!(f, "trapped: {trap}"),
            Self::OutOfMemory(what) => write!(f, "out of memory: {what}"),
        }
    }
}
