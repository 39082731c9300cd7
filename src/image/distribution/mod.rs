//! A client for registries that speak the OCI distribution protocol (`/v2/`), as far as pulling needs it.
//!
//! [`config`] knows where a registry is (`registries.yaml`), [`credentials`] who we are there, [`transport`] moves HTTP,
//! [`auth`] answers challenges, and [`repository`] fetches manifests and blobs.

mod auth;
mod config;
mod credentials;
mod error;
mod repository;
mod tls;
mod transport;

pub(crate) use config::Endpoint;
pub use config::Registries;
pub use credentials::{Credentials, Keyring};
pub use error::RegistryError;
pub(crate) use repository::{BlobTarget, FetchedManifest, Repository};
pub(crate) use transport::Transport;
