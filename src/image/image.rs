//! What the store tells about one image.

use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// An image of the store: unpacked, complete, ready to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The image id of CRI: the digest of the image's configuration.
    pub id: Digest,
    /// Canonical `name:tag`s, sorted.
    pub repo_tags: Vec<String>,
    /// Canonical `name@digest`s, sorted; the digests are those of the manifest or of the index that was asked for.
    pub repo_digests: Vec<String>,
    /// Bytes of the manifest, the configuration and the (compressed) layers, as CRI reports it.
    pub size: u64,
    /// Came out of an archive of the drop folder: never garbage collected.
    pub pinned: bool,
    /// When it was pulled, imported or last [touched](crate::ImageStore::touch).
    pub last_used: SystemTime,
    /// How to run it.
    pub config: ImageConfig,
    /// Directories for overlayfs' `lowerdir=`, top first. All are `<content>/layers/<32 hex digits>/fs`: change to
    /// `<content>/layers` and use relative paths when the options would not fit into a page.
    pub lower_dirs: Vec<PathBuf>,
    /// What runs it.
    pub kind: ImageKind,
}

/// What an image holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ImageKind {
    /// A root file system with native programs.
    Container,
    /// A root file system whose program is a WebAssembly module in it: made for the platform `wasi/wasm`, or for Linux with
    /// a module as its entrypoint.
    WasmRootfs {
        /// Digest of the module, if what the image says it runs is one.
        #[serde(default)]
        module: Option<Digest>,
    },
    /// An OCI artifact that is the module itself.
    WasmModule {
        /// Digest of the module.
        module: Digest,
    },
}

/// The part of an image's configuration that running it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageConfig {
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, replaced by a container's `args`.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group`, …; empty means root.
    pub user: String,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// `SIGTERM`, `15`, …
    pub stop_signal: Option<String>,
    /// Paths that the image declares as volumes.
    pub volumes: Vec<String>,
    /// `port/protocol`.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Go's word for the processor, `amd64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
}

/// A step of an import or a pull, for logs and progress displays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The image's manifest is known.
    Resolved {
        /// Digest of the manifest.
        digest: Digest,
        /// Bytes of all its layers.
        total: u64,
    },
    /// Bytes of a blob have arrived.
    Received {
        /// Which blob.
        digest: Digest,
        /// So far, resumed bytes included.
        received: u64,
        /// Its size.
        total: u64,
    },
    /// A layer was unpacked.
    Unpacked {
        /// Its diff id.
        diff_id: Digest,
    },
}

/// What a progress callback is; called from several threads.
pub type ProgressFn = dyn Fn(Progress) + Send + Sync;

/// Space taken by the store and the file system it lives on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes taken by images.
    pub used_bytes: u64,
    /// Inodes taken by images.
    pub used_inodes: u64,
    /// Size of the file system in bytes.
    pub capacity_bytes: u64,
    /// Bytes free on the file system.
    pub available_bytes: u64,
    /// Inodes of the file system.
    pub capacity_inodes: u64,
    /// Free inodes of the file system.
    pub available_inodes: u64,
}
