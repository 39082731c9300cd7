//! A client for registries that speak the OCI distribution protocol (`/v2/`), as far as pulling images and pushing small artifacts need it.
//!
//! [`config`] knows where a registry is (`registries.yaml`), [`credentials`] who we are there, [`transport`] moves HTTP,
//! [`auth`] answers challenges, [`repository`] fetches manifests and blobs, and [`push`] sends them.

mod auth;
mod config;
mod credentials;
mod error;
mod push;
mod repository;
mod tls;
mod transport;

pub(crate) use config::Endpoint;
pub use config::Registries;
pub use credentials::{Credentials, Keyring};
pub use error::RegistryError;
pub(crate) use repository::{BlobTarget, FetchedManifest, Repository};
pub(crate) use transport::Transport;
