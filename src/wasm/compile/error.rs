//! Why a module was not compiled.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A module could not be compiled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CompileError {
    /// It is not a module that runs here; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// It needs more processor time than any honest module of its size.
    #[error("compiling takes more than {seconds} s of processor time, so it was given up")]
    TooMuchTime {
        /// What it was allowed.
        seconds: u64,
    },
    /// The machine was too busy to finish in time; trying again may help.
    #[error("compiling did not end within {seconds} s")]
    TimedOut {
        /// What it was allowed.
        seconds: u64,
    },
    /// It needs more memory than any honest module of its size, or than the machine has.
    #[error("compiling takes more than {} MiB of memory, so it was given up", bytes >> 20)]
    TooMuchMemory {
        /// What it was allowed.
        bytes: u64,
    },
    /// Larger than what is compiled at all.
    #[error("the module has {bytes} bytes; more than {limit} are not compiled")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The largest size.
        limit: u64,
    },
    /// The compiler crashed. It had nothing that it could have taken along.
    #[error("the compiler crashed: {0}")]
    Crashed(String),
    /// The worker could not do its work, for a reason that is not in the module.
    #[error("the compiler could not start: {0}")]
    Worker(String),
    /// A file of the cache or the module could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `write`.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// What was given as digest is none.
    #[error("{0:?} is not a SHA-256 in hex")]
    Digest(String),
}

impl CompileError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source: Arc::new(source) }
    }

    /// Whether the same module would fail again in the same way.
    #[must_use]
    pub fn is_of_the_module(&self) -> bool {
        match self {
            Self::Invalid(_)
            | Self::TooMuchTime { .. }
            | Self::TooMuchMemory { .. }
            | Self::TooLarge { .. }
            | Self::Crashed(_) => true,
            Self::TimedOut { .. } | Self::Worker(_) | Self::Io { .. } | Self::Digest(_) => false,
        }
    }

    /// Whether the disk was full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}
