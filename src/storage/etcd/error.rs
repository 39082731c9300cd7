//! What can go wrong between this program and etcd.

/// Why etcd did not do what it was asked for. Each says what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EtcdError {
    /// An endpoint is not an address.
    #[error("{given:?} is not an address of etcd: {why} (expected something like https://192.0.2.1:2379)")]
    Endpoint {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file for TLS is no good.
    #[error("{} cannot be used to reach etcd: {why}", path.display())]
    TlsFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers; nothing was written.
    #[error(
        "no etcd answers at {endpoints} ({detail}): check that etcd runs, and that the addresses and TLS files are right"
    )]
    Unreachable {
        /// Where it was looked for.
        endpoints: String,
        /// What happened at the last one.
        detail: String,
    },
    /// Too old to be used.
    #[error("etcd at {endpoint} is version {found}, version 3.4 or later is needed: upgrade etcd")]
    Version {
        /// Which member.
        endpoint: String,
        /// What it says.
        found: String,
    },
    /// A write was sent, and its answer did not come: it may have happened or not.
    #[error("etcd did not say whether it has written ({detail}): look before writing again")]
    Unknown {
        /// What happened.
        detail: String,
    },
    /// etcd's quota is used up; it only reads and deletes.
    #[error("etcd is full: compact and defragment it, or raise its --quota-backend-bytes, and then disarm its alarm")]
    Full,
    /// A write is larger than etcd takes.
    #[error("the object is larger than etcd takes (its --max-request-bytes, 1.5 MiB by default)")]
    TooLarge,
    /// Objects were to be brought where there are some already.
    #[error(
        "this etcd holds a cluster or other objects already: nothing was changed; give one without keys below /registry/ and /edge/"
    )]
    NotEmpty,
    /// What was read back is not what was written.
    #[error(
        "etcd has other objects than those that were brought; somebody else writes to it: nothing is valid there, begin again"
    )]
    Differs,
    /// Anything else that etcd says.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// The answer was not etcd's.
    #[error("what answers at {endpoint} is no etcd: {detail}")]
    NotEtcd {
        /// Which.
        endpoint: String,
        /// What it answered.
        detail: String,
    },
}
