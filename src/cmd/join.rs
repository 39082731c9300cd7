//! How a machine becomes a node of a cluster: it checks who the server is, proves who it is itself, and keeps what it got
//! (authority, certificates, facts about the cluster) on disk, so that it can start without the server next time.

use super::facts::ClusterFacts;
use super::server::{Failure, doing};
use crate::config::AgentConfig;
use bytes::Bytes;
use edge_client::{Protocol, Servers};
use edge_pki::{ClientName, Identity, JoinToken, KeyRequest, PkiError, ServerNames, SharedIdentity};
use edge_sys::clock;
use http_body_util::{BodyExt, Full, Limited};
use rustls::ClientConfig;
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How long one exchange with the server may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// First and longest wait after a server that answers, but cannot let anybody join at this moment.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// No answer is longer, in bytes.
const LONGEST_ANSWER: usize = 1 << 20;
const CLIENT: &str = "client-kubelet.pem";
const SERVING: &str = "serving-kubelet.pem";
const AUTHORITY: &str = "server-ca.crt";
const PASSWORD: &str = "node-password";
const FACTS: &str = "cluster.json";

/// Why a machine cannot join. Nothing is tried again after these: somebody has to do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error(
        "a token is needed to join (--token, --token-file or EDGE_TOKEN): that in server/agent-token in the server's data directory, or one made there by `edge token create`"
    )]
    NoToken,
    #[error("the token cannot be read")]
    Token(#[from] edge_pki::TokenFormatError),
    #[error(
        "the server is not the one that the token is for: the server's certificate authority has the hash {found}, the token names {wanted}. Check the URL, or take the token of that server"
    )]
    OtherServer { found: String, wanted: String },
    #[error(
        "{dir} belongs to another cluster than the token: remove {dir} to join the token's cluster, or give that cluster's token"
    )]
    OtherCluster { dir: String },
    #[error(
        "the server does not accept the token: it is wrong, or it has expired or was deleted. `edge token list` on the server shows those that are valid, `edge token create` makes one"
    )]
    Refused,
    #[error("the server refuses this node: {0}")]
    Forbidden(String),
    #[error("the server does not let nodes join: it answered {0}; is it an edge server?")]
    Unexpected(String),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("{what} {path}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
}

/// What happened to one attempt.
enum Attempt {
    /// Somebody has to do something.
    Failed(JoinError),
    /// It may work later.
    Later(String),
}

impl<E: Into<JoinError>> From<E> for Attempt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Issued {
    client_certificate: String,
    serving_certificate: String,
    cluster: ClusterFacts,
}

/// A node's place in its cluster.
pub(crate) struct Membership {
    dir: PathBuf,
    node: String,
    token: Option<JoinToken>,
    servers: Vec<edge_client::Server>,
    network: watch::Receiver<u64>,
    password: String,
    /// The cluster's authority, PEM.
    pub(crate) ca: Vec<u8>,
    pub(crate) facts: ClusterFacts,
    /// What the node shows to servers.
    pub(crate) client: SharedIdentity,
    /// What the node's kubelet shows.
    pub(crate) serving: SharedIdentity,
    renewal: SystemTime,
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JoinError {
    move |source| JoinError::File { what, path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, JoinError> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file("cannot read", path)(e)),
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), JoinError> {
    edge_sys::fsutil::write_atomic(path, content, mode).map_err(file("cannot write", path))
}

/// The secret by which a node is known again; made when it is not there.
pub(crate) fn node_password(tls_dir: &Path) -> Result<String, JoinError> {
    let path = tls_dir.join(PASSWORD);
    if let Some(known) = read(&path)? {
        let known = String::from_utf8_lossy(&known).trim().to_owned();
        if !known.is_empty() {
            return Ok(known);
        }
    }
    edge_sys::fsutil::create_dir_all_mode(tls_dir, 0o700).map_err(file("cannot create", tls_dir))?;
    let new = edge_pki::random_secret(32).map_err(file("cannot make", &path))?;
    write(&path, new.as_bytes(), 0o600)?;
    Ok(new)
}

/// When an identity is to be renewed: after two thirds of its life, which began when its file was written.
fn renewal_of(path: &Path, identity: &Identity) -> SystemTime {
    let issued = std::fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let life = identity.not_after().duration_since(issued).unwrap_or_default();
    issued + life / 3 * 2
}

impl Membership {
    /// The membership that is kept on disk, or a new one: tries until a server answers, and returns when it has.
    ///
    /// # Errors
    /// What somebody has to do something about.
    pub(crate) async fn open(
        config: &AgentConfig,
        addresses: &[IpAddr],
        network: watch::Receiver<u64>,
    ) -> Result<Self, JoinError> {
        let dir = config.data_dir.join("agent/tls");
        edge_sys::fsutil::create_dir_all_mode(&dir, 0o700).map_err(file("cannot create", &dir))?;
        let token = config.token.read().map_err(file("cannot read the token", Path::new("")))?;
        let token = token.filter(|t| !t.is_empty()).map(|t| JoinToken::parse(&t)).transpose()?;
        let password = node_password(&dir)?;
        if let Some(known) = Self::kept(config, &dir, token.clone(), password.clone(), network.clone())? {
            return Ok(known);
        }
        let Some(token) = token else { return Err(JoinError::NoToken) };
        if token.ca_hash.is_none() {
            tracing::warn!(
                "the token does not name the cluster's certificate authority: whoever answers is believed. Use the whole \
                 token (K10...) to verify the server"
            );
        }
        let mut delay = RETRY.0;
        loop {
            let ca = authority(&config.servers, &token, network.clone()).await?;
            let servers = verified(&config.servers, &ca, network.clone())?;
            match issue(&servers, &dir, &config.node.name, addresses, &password, Some(&token)).await {
                Ok((client, serving, facts)) => {
                    write(&dir.join(AUTHORITY), &ca, 0o644)?;
                    tracing::info!(node = config.node.name, "joined the cluster");
                    return Self::assemble(
                        config,
                        &dir,
                        (token.into(), password, ca),
                        (client, serving, facts),
                        network,
                    );
                }
                Err(Attempt::Failed(error)) => return Err(error),
                Err(Attempt::Later(reason)) => {
                    tracing::warn!(reason, "cannot join yet, trying again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY.1);
                }
            }
        }
    }

    /// What an earlier start has left, if it is whole and of this node.
    fn kept(
        config: &AgentConfig,
        dir: &Path,
        token: Option<JoinToken>,
        password: String,
        network: watch::Receiver<u64>,
    ) -> Result<Option<Self>, JoinError> {
        let Some(ca) = read(&dir.join(AUTHORITY))? else { return Ok(None) };
        if token.as_ref().and_then(|t| t.trusts(&ca)) == Some(false) {
            return Err(JoinError::OtherCluster { dir: config.data_dir.display().to_string() });
        }
        let (Some(client), Some(serving), Some(facts)) =
            (Identity::load(&dir.join(CLIENT))?, Identity::load(&dir.join(SERVING))?, read(&dir.join(FACTS))?)
        else {
            return Ok(None);
        };
        let user = edge_pki::user_of_certificate(client.certificate());
        if user.is_none_or(|u| u.username != format!("system:node:{}", config.node.name)) {
            return Ok(None);
        }
        let Ok(facts) = serde_json::from_slice(&facts) else { return Ok(None) };
        Self::assemble(config, dir, (token, password, ca), (client, serving, facts), network).map(Some)
    }

    fn assemble(
        config: &AgentConfig,
        dir: &Path,
        (token, password, ca): (Option<JoinToken>, String, Vec<u8>),
        (client, serving, facts): (Identity, Identity, ClusterFacts),
        network: watch::Receiver<u64>,
    ) -> Result<Self, JoinError> {
        let renewal = renewal_of(&dir.join(CLIENT), &client).min(renewal_of(&dir.join(SERVING), &serving));
        Ok(Self {
            dir: dir.to_owned(),
            node: config.node.name.clone(),
            token,
            servers: config.servers.clone(),
            network,
            password,
            ca,
            facts,
            client: SharedIdentity::new(&client)?,
            serving: SharedIdentity::new(&serving)?,
            renewal,
        })
    }

    fn tls(&self) -> Result<ClientConfig, Failure> {
        edge_pki::remote_client_config(&self.ca, Some(&self.client)).map_err(doing("preparing TLS"))
    }

    /// The servers, for connections that show the node's certificate.
    pub(crate) fn servers(&self) -> Result<Arc<Servers>, Failure> {
        Ok(Servers::new(self.servers.clone(), &self.tls()?, self.network.clone()))
    }

    /// The same for any one server, by its address.
    pub(crate) fn server(&self) -> Result<impl Fn(SocketAddr) -> Arc<Servers> + use<>, Failure> {
        let (tls, network) = (self.tls()?, self.network.clone());
        Ok(move |at| Servers::listed(at, &tls, network.clone()))
    }

    /// Renews the certificates in good time, and at each rotation and whenever the addresses change, for ever. The node's password is enough
    /// for that; where its name was freed meanwhile, the token is.
    pub(crate) async fn keep_renewed(
        mut self,
        mut addresses: watch::Receiver<Vec<IpAddr>>,
        mut rotations: watch::Receiver<u64>,
        servers: Arc<Servers>,
    ) {
        let mut delay = RETRY.0;
        loop {
            let now = SystemTime::now();
            // with a clock that is behind, what was issued seems to come from the future
            if self.renewal > now {
                let moved = tokio::select! {
                    waited = clock::sleep_until(self.renewal) => {
                        if let Err(error) = waited {
                            tracing::error!(%error, "no timer for the renewal of certificates");
                            tokio::time::sleep(RETRY.1).await;
                        }
                        false
                    }
                    changed = addresses.changed() => changed.is_ok(),
                    Ok(()) = rotations.changed() => true,
                };
                if !moved && self.renewal > SystemTime::now() {
                    continue;
                }
            }
            let ips = addresses.borrow_and_update().clone();
            match self.renew(&ips).await {
                Ok(()) => {
                    delay = RETRY.0;
                    servers.identity_replaced();
                    tracing::info!(node = self.node, "certificates renewed");
                }
                Err(error) => {
                    tracing::warn!(error, "certificates not renewed, trying again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn renew(&mut self, addresses: &[IpAddr]) -> Result<(), String> {
        let text = |e: JoinError| super::with_causes(&e);
        let servers = verified(&self.servers, &self.ca, self.network.clone()).map_err(text)?;
        let request = |token| issue(&servers, &self.dir, &self.node, addresses, &self.password, token);
        let mut issued = request(None).await;
        if matches!(issued, Err(Attempt::Failed(JoinError::Refused))) && self.token.is_some() {
            issued = request(self.token.as_ref()).await;
        }
        let (client, serving, facts) = issued.map_err(|e| match e {
            Attempt::Failed(error) => text(error),
            Attempt::Later(reason) => reason,
        })?;
        self.client.replace(&client).map_err(|e| text(e.into()))?;
        self.serving.replace(&serving).map_err(|e| text(e.into()))?;
        self.renewal = renewal_of(&self.dir.join(CLIENT), &client).min(renewal_of(&self.dir.join(SERVING), &serving));
        self.facts = facts;
        Ok(())
    }
}

/// Servers whom the cluster's authority vouches for, without showing who asks.
fn verified(list: &[edge_client::Server], ca: &[u8], network: watch::Receiver<u64>) -> Result<Arc<Servers>, JoinError> {
    Ok(Servers::new(list.to_vec(), &edge_pki::remote_client_config(ca, None)?, network))
}

/// The cluster's authority: fetched from a server that nobody vouches for yet, and checked against the token. Nothing
/// secret has been sent when this returns.
async fn authority(
    list: &[edge_client::Server],
    token: &JoinToken,
    network: watch::Receiver<u64>,
) -> Result<Vec<u8>, JoinError> {
    let servers = Servers::new(list.to_vec(), &edge_pki::unverified_client_config()?, network);
    let mut delay = RETRY.0;
    loop {
        let request = http::Request::get("/cacerts").body(Full::default());
        let answer = match exchange(&servers, request).await {
            Ok((http::StatusCode::OK, body)) => body,
            Ok((status, _)) => return Err(JoinError::Unexpected(status.to_string())),
            Err(reason) => {
                tracing::warn!(reason, "cannot ask the server for its certificate authority, trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY.1);
                continue;
            }
        };
        return match (token.trusts(&answer), &token.ca_hash) {
            (Some(false), Some(wanted)) => {
                Err(JoinError::OtherServer { found: edge_pki::ca_hash(&answer), wanted: wanted.clone() })
            }
            _ => Ok(answer),
        };
    }
}

/// Gets certificates for new keys, and keeps them.
async fn issue(
    servers: &Servers,
    dir: &Path,
    node: &str,
    addresses: &[IpAddr],
    password: &str,
    token: Option<&JoinToken>,
) -> Result<(Identity, Identity, ClusterFacts), Attempt> {
    let name = ClientName::node(node);
    let client = KeyRequest::client(&name)?;
    let addresses: Vec<IpAddr> = addresses.iter().filter(|ip| !ip.is_loopback()).copied().collect();
    let serving = KeyRequest::serving(&name, &ServerNames::plain(&[node.to_owned()], &addresses))?;
    let body = serde_json::json!({
        "nodeName": node, "nodePassword": password, "version": super::GIT_VERSION,
        "clientRequest": client.pem(), "servingRequest": serving.pem(),
    });
    let mut request = http::Request::post("/v1-edge/join").header(http::header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {}", token.secret));
    }
    let request = request.body(Full::from(body.to_string()));
    let (status, body) = exchange(servers, request).await.map_err(Attempt::Later)?;
    if status != http::StatusCode::OK {
        let told = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        let message = told["message"].as_str().unwrap_or_default().to_owned();
        return Err(match status.as_u16() {
            401 => Attempt::Failed(JoinError::Refused),
            400 | 403 | 422 => Attempt::Failed(JoinError::Forbidden(message)),
            404 | 405 => Attempt::Failed(JoinError::Unexpected(status.to_string())),
            _ => Attempt::Later(format!("{status}: {message}")),
        });
    }
    let issued: Issued =
        serde_json::from_slice(&body).map_err(|e| Attempt::Later(format!("the server's answer is malformed: {e}")))?;
    let serving = serving.finish(&dir.join(SERVING), &issued.serving_certificate)?;
    // the facts come before the client certificate: a node that has the one has the other
    let facts = serde_json::to_vec(&issued.cluster).map_err(|e| Attempt::Later(e.to_string()))?;
    write(&dir.join(FACTS), &facts, 0o600)?;
    let client = client.finish(&dir.join(CLIENT), &issued.client_certificate)?;
    Ok((client, serving, issued.cluster))
}

/// One exchange with the first server that answers.
async fn exchange(
    servers: &Servers,
    request: http::Result<http::Request<Full<Bytes>>>,
) -> Result<(http::StatusCode, Vec<u8>), String> {
    let mut request = request.map_err(|e| e.to_string())?;
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("kubernetes"));
    let connection = servers.connect_at_last(Protocol::Http1, "joining").await;
    let exchange = async {
        let stream = hyper_util::rt::TokioIo::new(connection.stream);
        let (mut sender, driver) = hyper::client::conn::http1::handshake(stream).await.map_err(|e| e.to_string())?;
        let driver = tokio::spawn(driver);
        let response = sender.send_request(request).await.map_err(|e| super::with_causes(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await.map_err(|e| e.to_string())?;
        driver.abort();
        Ok((status, body.to_bytes().to_vec()))
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}
