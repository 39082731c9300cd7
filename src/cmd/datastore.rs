//! Where the cluster's objects are: on this machine, or in etcd.
//!
//! Servers on one etcd are one cluster. What they must have in common beside the objects (authorities, the key of service
//! accounts) is in etcd too, sealed with the server token. Nothing is written, here or there, before it is clear that etcd
//! can be used and holds this cluster or none.

use super::join_tokens::{self, SERVER_TOKEN};
use super::server::{Failure, doing};
use crate::config::ServerConfig;
use bytes::Bytes;
use edge_pki::{ClusterPki, JoinToken, SealError};
use edge_storage::{Class, Etcd, EtcdOptions, ListRequest, Lmdb, Outcome, Storage, Transaction};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Under this key is what servers have in common.
pub(crate) const BOOTSTRAP: &str = "/edge/bootstrap";
/// Below this are a cluster's objects.
const OBJECTS: &str = "/registry/";
/// Its presence says that the cluster's objects are in etcd, and where that is.
const MARKER: &str = "datastore";

/// Why a store cannot be used. Somebody has to do something.
#[derive(Debug, thiserror::Error)]
enum DatastoreError {
    #[error(
        "etcd at {endpoints} holds the objects of another Kubernetes (keys below /registry/): give edge an etcd of its own"
    )]
    Foreign { endpoints: String },
    #[error(
        "etcd at {endpoints} holds a cluster: give its token (--token, --token-file or EDGE_TOKEN), which is in server/token in the data directory of a server that has it"
    )]
    NoToken { endpoints: String },
    #[error(
        "etcd at {endpoints} holds a cluster with another token: give that cluster's token (server/token in the data directory of a server that has it), or use another etcd"
    )]
    WrongToken { endpoints: String },
    #[error("a cluster was being moved to etcd at {endpoints}, and that broke off: give `edge store migrate` again")]
    Unfinished { endpoints: String },
    #[error("what etcd at {endpoints} has below {BOOTSTRAP} cannot be read: {source}")]
    Unreadable { endpoints: String, source: SealError },
    #[error(
        "the token is for another cluster than the one in etcd at {endpoints}: take the token from a server that has it"
    )]
    OtherToken { endpoints: String },
    #[error(
        "{path} is not that of the cluster in etcd at {endpoints}: this machine belongs to another cluster; use another --data-dir, or another etcd"
    )]
    OtherCluster { path: PathBuf, endpoints: String },
    #[error(
        "this machine has a cluster of its own in {path}, and etcd at {endpoints} has none: move it there with `edge store migrate --to etcd`, or move {path} away to begin a new one"
    )]
    HasOwn { path: PathBuf, endpoints: String },
    #[error("the cluster of this machine is in etcd at {endpoints}: back that up, with `etcdctl snapshot save`")]
    BackUpEtcd { endpoints: String },
    #[error(
        "the cluster of this machine is in etcd at {endpoints}: give --datastore-endpoint, bring it here with `edge store migrate --to local`, or remove {marker} to begin a new cluster here"
    )]
    IsInEtcd { endpoints: String, marker: PathBuf },
}

/// The open store.
pub(crate) struct Datastore {
    pub(crate) storage: Arc<dyn Storage>,
    /// Where the token's change is to be told.
    pub(crate) shared: Option<Shared>,
}

/// Opens the store that the configuration names.
pub(crate) async fn open(config: &ServerConfig) -> Result<Datastore, Failure> {
    let server_dir = config.data_dir.join("server");
    match &config.etcd {
        Some(options) => open_etcd(config, options, server_dir).await,
        None => open_local(&server_dir).await,
    }
}

async fn open_local(server_dir: &Path) -> Result<Datastore, Failure> {
    let marker = server_dir.join(MARKER);
    if let Some(endpoints) = marked(server_dir) {
        let error = DatastoreError::IsInEtcd { endpoints, marker };
        return Err(doing("opening the store")(error));
    }
    let db = server_dir.join("db");
    let storage = tokio::task::spawn_blocking(move || Lmdb::open(&db)).await.map_err(doing("opening the store"))?;
    Ok(Datastore { storage: Arc::new(storage.map_err(doing("opening the store"))?), shared: None })
}

async fn open_etcd(config: &ServerConfig, options: &EtcdOptions, server_dir: PathBuf) -> Result<Datastore, Failure> {
    let etcd = Arc::new(Etcd::connect(options).await.map_err(doing("opening the store"))?);
    let shared = Shared::new(etcd.clone(), options.endpoints.clone(), server_dir);
    let token = join_tokens::server_token(&config.token, &config.data_dir)?;
    shared.join(token).await?;
    mark(&shared.server_dir, Some(&options.endpoints))?;
    Ok(Datastore { storage: etcd, shared: Some(shared) })
}

/// Where in etcd the cluster of this machine is, if it is.
fn marked(server_dir: &Path) -> Option<String> {
    std::fs::read_to_string(server_dir.join(MARKER)).ok().map(|text| text.trim().to_owned())
}

/// Refuses what is about a store on this machine when the cluster is in etcd: what is here is old then.
pub(crate) fn is_here(server_dir: &Path) -> Result<(), Failure> {
    match marked(server_dir) {
        Some(endpoints) => Err(doing("opening the store")(DatastoreError::BackUpEtcd { endpoints })),
        None => Ok(()),
    }
}

/// Notes that the cluster of this machine is in etcd, or not.
pub(crate) fn mark(server_dir: &Path, endpoints: Option<&str>) -> Result<(), Failure> {
    let marker = server_dir.join(MARKER);
    let marked = match endpoints {
        Some(endpoints) => edge_sys::fsutil::write_atomic(&marker, format!("{endpoints}\n").as_bytes(), 0o600),
        None => match std::fs::remove_file(&marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => edge_sys::fsutil::sync_dir(server_dir),
        },
    };
    marked.map_err(doing("noting where the store is"))
}

/// The key and the content by which a server that has the token joins the cluster of this machine.
pub(crate) fn sealed(server_dir: &Path, secret: &str) -> Result<(Bytes, Bytes), Failure> {
    let files = read_files(&server_dir.join("tls")).map_err(doing("reading what the cluster has in common"))?;
    let content = serde_json::to_vec(&files).map_err(doing("sealing what the cluster has in common"))?;
    let sealed = edge_pki::seal(secret, &content).map_err(doing("sealing what the cluster has in common"))?;
    Ok((Bytes::from_static(BOOTSTRAP.as_bytes()), sealed.into()))
}

/// What the servers of a cluster have in common, by file name.
type Files = BTreeMap<String, String>;

/// The place in etcd of what servers have in common.
pub(crate) struct Shared {
    etcd: Arc<Etcd>,
    endpoints: String,
    server_dir: PathBuf,
}

const JOINING: &str = "joining the cluster in etcd";

impl Shared {
    pub(crate) fn new(etcd: Arc<Etcd>, endpoints: String, server_dir: PathBuf) -> Self {
        Self { etcd, endpoints, server_dir }
    }

    fn tls_dir(&self) -> PathBuf {
        self.server_dir.join("tls")
    }

    /// Takes what the cluster has in common, or makes it when there is no cluster yet.
    async fn join(&self, token: Option<JoinToken>) -> Result<(), Failure> {
        let endpoints = || self.endpoints.clone();
        loop {
            let found = self.etcd.get(BOOTSTRAP.as_bytes()).await.map_err(doing(JOINING))?;
            if let Some(found) = found {
                let Some(token) = token else {
                    return Err(doing(JOINING)(DatastoreError::NoToken { endpoints: endpoints() }));
                };
                return self.take(&token, &found.value);
            }
            if self.etcd.is_unfinished().await.map_err(doing(JOINING))? {
                return Err(doing(JOINING)(DatastoreError::Unfinished { endpoints: endpoints() }));
            }
            let objects = ListRequest { prefix: OBJECTS.into(), limit: 1, ..ListRequest::default() };
            if !self.etcd.list(objects).await.map_err(doing(JOINING))?.items.is_empty() {
                return Err(doing(JOINING)(DatastoreError::Foreign { endpoints: endpoints() }));
            }
            let path = self.server_dir.join("db");
            if path.join("data.mdb").exists() {
                return Err(doing(JOINING)(DatastoreError::HasOwn { path, endpoints: endpoints() }));
            }
            if self.begin(token.as_ref()).await? {
                return Ok(());
            }
            // another server was faster
        }
    }

    /// Takes what another server has made.
    pub(crate) fn take(&self, token: &JoinToken, sealed: &[u8]) -> Result<(), Failure> {
        let endpoints = self.endpoints.clone();
        let content = match edge_pki::unseal(&token.secret, sealed) {
            Ok(content) => content,
            Err(SealError::WrongToken) => return Err(doing(JOINING)(DatastoreError::WrongToken { endpoints })),
            Err(source) => return Err(doing(JOINING)(DatastoreError::Unreadable { endpoints, source })),
        };
        let malformed = |_| DatastoreError::Unreadable { endpoints: endpoints.clone(), source: SealError::Malformed };
        let files: Files = serde_json::from_slice(&content).map_err(malformed).map_err(doing(JOINING))?;
        if files.get("server-ca.crt").is_some_and(|ca| token.trusts(ca.as_bytes()) == Some(false)) {
            return Err(doing(JOINING)(DatastoreError::OtherToken { endpoints }));
        }
        self.keep(&files)
    }

    /// Writes the files that are missing; one that is there and differs is another cluster's.
    fn keep(&self, files: &Files) -> Result<(), Failure> {
        let dir = self.tls_dir();
        let mut missing = Vec::new();
        // names that were not written by this program are not followed anywhere
        for (name, content) in files.iter().filter(|(name, _)| ClusterPki::SHARED.contains(&name.as_str())) {
            let path = dir.join(name);
            match std::fs::read_to_string(&path) {
                Ok(own) if own == *content => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push((path, content)),
                Ok(_) => {
                    let error = DatastoreError::OtherCluster { path, endpoints: self.endpoints.clone() };
                    return Err(doing(JOINING)(error));
                }
                Err(error) => return Err(doing("reading what the cluster has in common")(error)),
            }
        }
        let written = edge_sys::fsutil::create_dir_all_mode(&dir, 0o700).and_then(|()| {
            missing.iter().try_for_each(|(path, content)| {
                let mode = if path.extension().is_some_and(|e| e == "key") { 0o600 } else { 0o644 };
                edge_sys::fsutil::write_atomic(path, content.as_bytes(), mode)
            })
        });
        written.map_err(doing("writing what the cluster has in common"))
    }

    /// Makes a new cluster; `false` when another server has made one meanwhile.
    async fn begin(&self, token: Option<&JoinToken>) -> Result<bool, Failure> {
        let secret = match token {
            Some(token) => token.secret.clone(),
            None => join_tokens::new_secret()?,
        };
        // what an interrupted start has left is gone on with; what loses the race is thrown away
        let fresh = self.server_dir.join("tls-new");
        let dir = if self.tls_dir().join("server-ca.crt").exists() { self.tls_dir() } else { fresh.clone() };
        ClusterPki::load_or_create(&dir).map_err(doing("preparing certificates"))?;
        let files = read_files(&dir).map_err(doing("reading what the cluster has in common"))?;
        if token.is_none() {
            // a cluster whose token nobody knows would be of no use
            join_tokens::write(&self.server_dir.join(SERVER_TOKEN), &secret).map_err(doing("writing the token"))?;
        }
        let made = self.put(&secret, &files, 0).await?;
        if made {
            self.keep(&files)?;
        }
        match std::fs::remove_dir_all(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(doing("removing what is not needed")(error)),
            _ => Ok(made),
        }
    }

    /// Seals the files into etcd, if what is there is of this revision (zero: nothing).
    async fn put(&self, secret: &str, files: &Files, revision: u64) -> Result<bool, Failure> {
        let content = serde_json::to_vec(files).map_err(doing("sealing what the cluster has in common"))?;
        let sealed = edge_pki::seal(secret, &content).map_err(doing("sealing what the cluster has in common"))?;
        let key = Bytes::from_static(BOOTSTRAP.as_bytes());
        let put = Transaction::put(key, sealed.into(), Class::Durable, revision);
        let outcome = self.etcd.transact(put).await.map_err(doing(JOINING))?;
        Ok(matches!(outcome, Outcome::Committed(_)))
    }

    /// Seals with another token: servers that join from now on need that one.
    pub(crate) async fn change_token(&self, secret: &str) -> Result<(), Failure> {
        let files = read_files(&self.tls_dir()).map_err(doing("reading what the cluster has in common"))?;
        loop {
            let found = self.etcd.get(BOOTSTRAP.as_bytes()).await.map_err(doing(JOINING))?;
            if found.as_ref().is_some_and(|kv| edge_pki::unseal(secret, &kv.value).is_ok()) {
                return Ok(());
            }
            if self.put(secret, &files, found.map_or(0, |kv| kv.mod_revision)).await? {
                return Ok(());
            }
        }
    }
}

fn read_files(dir: &Path) -> io::Result<Files> {
    ClusterPki::SHARED.iter().map(|name| Ok(((*name).to_owned(), std::fs::read_to_string(dir.join(name))?))).collect()
}
