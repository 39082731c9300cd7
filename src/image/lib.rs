//! Room `image`: container images, from an archive or a registry to directories that overlayfs can mount.
//!
//! In come image archives ([`ImageStore::import_archive`], [`ImageStore::watch_archives`]) and image names
//! ([`ImageStore::pull`]); out come [`Image`]s with their configuration and their unpacked layers. The store is durable
//! and crash-safe, trusts neither archives nor registries, and verifies every byte against its digest.
//!
//! Layer blobs are dropped once they are unpacked: an edge machine keeps one copy of an image, not two.

mod archive;
mod artifact;
mod compression;
mod content;
mod digest;
mod distribution;
mod dropfolder;
mod error;
mod image;
mod layers;
mod module;
mod oci;
mod platform;
mod pull;
mod record;
mod reference;
mod store;
mod tarball;
mod unpack;

pub use artifact::Artifact;
pub use digest::{Digest, InvalidDigest};
pub use distribution::{Credentials, Keyring, Registries, RegistryError};
pub use dropfolder::ArchiveEvent;
pub use error::{Error, error_chain};
pub use image::{DiskUsage, Image, ImageConfig, ImageKind, Progress, ProgressFn};
pub use module::WasmProgram;
pub use platform::{Choice, Platform};
pub use pull::PullOptions;
pub use reference::{InvalidReference, Reference};
pub use store::{GarbagePolicy, ImageStore, ImageStoreConfig, Reclaimed};
pub use unpack::{LayerError, Limits};
