//! The server's join tokens: `<data-dir>/server/token` and `agent-token`, made at the first start, read again when
//! somebody (`edge token rotate`) writes them.

use super::datastore::Shared;
use super::server::{Failure, doing};
use crate::config::{ServerConfig, TokenSource};
use edge_auth::JoinSecrets;
use edge_pki::{JoinToken, full_token, random_secret};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the file of the token with which servers and agents join, and of that with which only agents do.
pub(crate) const SERVER_TOKEN: &str = "token";
const AGENT_TOKEN: &str = "agent-token";
/// Under this name k3s users look for the token too.
const NODE_TOKEN: &str = "node-token";
/// Bytes of randomness in a secret.
const SECRET_BYTES: usize = 16;

/// The secrets in use, and where they are kept.
pub(crate) struct JoinTokens {
    dir: PathBuf,
    ca: String,
    secrets: Arc<JoinSecrets>,
    /// Who else must know of another server token.
    shared: Option<Shared>,
}

/// The server token that is given, or in its file.
pub(crate) fn server_token(given: &TokenSource, data_dir: &Path) -> Result<Option<JoinToken>, Failure> {
    let parse = |text: String| JoinToken::parse(&text).map_err(doing("reading the token"));
    if let Some(text) = given.read().map_err(doing("reading the token"))? {
        return parse(text).map(Some);
    }
    match std::fs::read_to_string(data_dir.join("server").join(SERVER_TOKEN)) {
        Ok(text) => parse(text).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(doing("reading the join token's file")(e)),
    }
}

/// A new token's secret.
pub(crate) fn new_secret() -> Result<String, Failure> {
    random_secret(SECRET_BYTES).map_err(doing("making a join token"))
}

impl JoinTokens {
    /// Reads the tokens as the configuration or the files say, and makes those that are missing. `ca` is the cluster's
    /// authority (PEM), whose hash the tokens carry.
    pub(crate) fn open(config: &ServerConfig, ca: &str, shared: Option<Shared>) -> Result<Self, Failure> {
        let dir = config.data_dir.join("server");
        let server = match given(&config.token)?.or(stored(&dir.join(SERVER_TOKEN))?) {
            Some(secret) => secret,
            None => new_secret()?,
        };
        let agent = given(&config.agent_token)?.or(stored(&dir.join(AGENT_TOKEN))?).unwrap_or_else(|| server.clone());
        let tokens = Self { dir, ca: ca.to_owned(), secrets: Arc::default(), shared };
        tokens.put(&server, &agent).map_err(doing("writing the join tokens"))?;
        Ok(tokens)
    }

    /// What authenticates those who join; follows the files.
    pub(crate) fn secrets(&self) -> Arc<JoinSecrets> {
        self.secrets.clone()
    }

    fn put(&self, server: &str, agent: &str) -> io::Result<()> {
        write(&self.dir.join(SERVER_TOKEN), &full_token(self.ca.as_bytes(), "server", server))?;
        write(&self.dir.join(AGENT_TOKEN), &full_token(self.ca.as_bytes(), "node", agent))?;
        let link = self.dir.join(NODE_TOKEN);
        if std::fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(SERVER_TOKEN, &link)?;
        }
        self.secrets.replace(&[("server", server), ("agent", agent)]);
        Ok(())
    }

    /// Takes in what is written into the files while the server runs, for ever.
    pub(crate) async fn follow(self) {
        use futures::StreamExt as _;
        use inotify::{Inotify, WatchMask};
        let watched = Inotify::init().and_then(|inotify| {
            inotify.watches().add(&self.dir, WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE)?;
            inotify.into_event_stream([0u8; 1024])
        });
        let mut events = match watched {
            Ok(events) => events,
            Err(error) => return tracing::warn!(%error, "changes of the join tokens hold only after a restart"),
        };
        while let Some(event) = events.next().await {
            let named = |name: &str| event.as_ref().is_ok_and(|e| e.name.as_deref() == Some(name.as_ref()));
            if !named(SERVER_TOKEN) && !named(AGENT_TOKEN) {
                continue;
            }
            match (stored(&self.dir.join(SERVER_TOKEN)), stored(&self.dir.join(AGENT_TOKEN))) {
                (Ok(Some(server)), Ok(agent)) => {
                    let agent = agent.unwrap_or_else(|| server.clone());
                    self.secrets.replace(&[("server", &server), ("agent", &agent)]);
                    tracing::info!("join tokens read again");
                    if let Some(shared) = &self.shared
                        && let Err(error) = shared.change_token(&server).await
                    {
                        let error = super::with_causes(&error);
                        tracing::error!(
                            error,
                            "further servers still need the old token: write the token's file again"
                        );
                    }
                }
                (server, agent) => {
                    let error = server.err().or(agent.err()).map(|e| super::with_causes(&e)).unwrap_or_default();
                    tracing::warn!(error, "the files of the join tokens cannot be read; the old ones hold");
                }
            }
        }
    }
}

/// Writes a token's file unless it holds that already.
pub(crate) fn write(path: &Path, token: &str) -> io::Result<()> {
    let content = format!("{token}\n");
    if std::fs::read_to_string(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    edge_sys::fsutil::write_atomic(path, content.as_bytes(), 0o600)
}

fn given(source: &TokenSource) -> Result<Option<String>, Failure> {
    let text = source.read().map_err(doing("reading the token"))?;
    text.map(|t| JoinToken::parse(&t).map(|t| t.secret)).transpose().map_err(doing("reading the token"))
}

fn stored(path: &Path) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => JoinToken::parse(&text).map(|t| Some(t.secret)).map_err(doing("reading the join token's file")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(doing("reading the join token's file")(e)),
    }
}
