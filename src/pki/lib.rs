//! The certificates and keys of a cluster.
//!
//! In: a directory (`<data-dir>/server/tls`), the names the API server is reached by. Out: certificate authorities, identities signed by
//! them ([`Identity`]), the service-account signing key, TLS configurations, kubeconfigs, and the user that a client certificate stands
//! for. Nobody else writes that directory; it is 0700 and every key in it 0600.
//!
//! Nothing here needs a correct clock: certificates are valid from the epoch on, and their end is counted from the later of now and
//! the time this program was made. All keys are ECDSA P-256, so a first start makes them in a few milliseconds.

mod authority;
mod cluster;
mod facts;
mod files;
mod identity;
mod itself;
mod kubeconfig;
mod request;
mod sealed;
mod service_account;
mod tls;
mod token;
mod user;

pub use authority::Authority;
pub use cluster::{ClusterPki, ServerNames};
pub use facts::{CertificateFacts, certificate_facts};
pub use files::PkiError;
pub use identity::{ClientName, Identity};
pub use kubeconfig::write_kubeconfig;
pub use request::{KeyRequest, RequestError, RequestFacts};
pub use sealed::{SealError, seal, unseal};
pub use service_account::ServiceAccountKey;
pub use tls::{
    AnyServer, SharedIdentity, Trust, client_config, kubelet_server_config, outgoing_config, remote_client_config,
    server_config, shared_server_config, unverified_client_config,
};
pub use token::{JoinToken, TokenFormatError, ca_hash, full_token, random_secret};
pub use user::{certificate_end, user_of_certificate};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 2026-11-01T00:00:00Z: no clock that is right shows an earlier time.
const NOT_EARLIER_THAN: Duration = Duration::from_secs(1_793_491_200);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The time to count validity from: a machine without a battery-backed clock starts in 1970.
fn plausible_now() -> SystemTime {
    SystemTime::now().max(UNIX_EPOCH + NOT_EARLIER_THAN)
}
