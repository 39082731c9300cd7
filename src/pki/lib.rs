//! Certificates and keys: made on the first start, kept, and renewed in time.
//!
//! In: a directory (`<data-dir>/server/tls`) and who the server is. Out: TLS configuration, kubeconfigs, the identity
//! behind a client certificate, and signed service-account tokens.

mod authority;
mod certificate;
mod error;
mod files;
mod kubeconfig;
mod server;
mod token;

pub use authority::{Authority, Identity};
pub use certificate::user_of;
pub use error::PkiError;
pub use kubeconfig::kubeconfig;
pub use server::{Pki, PkiOptions};
pub use token::{TokenError, TokenKey};
