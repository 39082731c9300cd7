//! The server's end of the agents' tunnels (see the client room for what is on the wire).

use crate::Server;
use crate::body::Body;
use crate::proxy::{NodeDialer, Stream};
use async_trait::async_trait;
use bytes::Bytes;
use edge_api::{Reason, Status, UserInfo};
use edge_auth::node_of;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

const PROTOCOL: &str = "edge-tunnel";
/// How long a request waits for a node that is not connected: it may be about to come back.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long an agent may take to accept a stream, before its tunnel is taken for dead.
const ANSWER: Duration = Duration::from_secs(10);

type Sender = SendRequest<Empty<Bytes>>;

/// The tunnels that are open, by node.
pub(crate) struct Tunnels {
    open: Mutex<HashMap<String, (u64, Sender)>>,
    /// Counts the tunnels that were opened.
    opened: watch::Sender<u64>,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self { open: Mutex::default(), opened: watch::Sender::new(0) }
    }
}

impl Tunnels {
    fn sender(&self, node: &str) -> Option<(u64, Sender)> {
        self.open.lock().get(node).filter(|(_, s)| !s.is_closed()).cloned()
    }

    fn put(&self, node: &str, sender: Sender) -> u64 {
        // the number is there before anybody is woken
        let mut open = self.open.lock();
        let number = *self.opened.borrow() + 1;
        open.insert(node.to_owned(), (number, sender));
        drop(open);
        self.opened.send_modify(|n| *n += 1);
        number
    }

    fn remove(&self, node: &str, number: u64) {
        let mut open = self.open.lock();
        if open.get(node).is_some_and(|(n, _)| *n == number) {
            open.remove(node);
        }
    }

    async fn wait(&self, node: &str) -> Option<(u64, Sender)> {
        let mut opened = self.opened.subscribe();
        loop {
            opened.mark_unchanged();
            if let Some(found) = self.sender(node) {
                return Some(found);
            }
            opened.changed().await.ok()?;
        }
    }
}

#[async_trait]
impl NodeDialer for Tunnels {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Stream>> {
        let not_connected = || io::Error::new(io::ErrorKind::NotConnected, format!("node {node:?} is not connected"));
        let found = timeout(PATIENCE, self.wait(node)).await.ok().flatten();
        let (number, mut sender) = found.ok_or_else(not_connected)?;
        let request = Request::connect("kubelet:10250").body(Empty::new()).map_err(io::Error::other)?;
        let Ok(answer) = timeout(ANSWER, sender.send_request(request)).await else {
            self.remove(node, number);
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("node {node:?} does not answer")));
        };
        let response = answer.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(io::Error::other(format!("node {node:?} refuses the stream: {}", response.status())));
        }
        let stream = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        Ok(Box::new(TokioIo::new(stream)))
    }
}

/// The way to any node: that of this process, else through its tunnel.
pub(crate) struct Routes {
    pub(crate) local: Arc<dyn NodeDialer>,
    pub(crate) tunnels: Arc<Tunnels>,
}

#[async_trait]
impl NodeDialer for Routes {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Stream>> {
        if self.tunnels.sender(node).is_some() {
            return self.tunnels.dial(node).await;
        }
        match self.local.dial(node).await {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => self.tunnels.dial(node).await,
            other => other,
        }
    }
}

/// Opens the tunnel of the node that asks.
pub(super) fn open(
    server: &Arc<Server>,
    user: &UserInfo,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let Some(node) = node_of(user).map(str::to_owned) else {
        return Err(Status::new(403, Reason::Forbidden, "only nodes have tunnels"));
    };
    let protocol = HeaderValue::from_static(PROTOCOL);
    if request.headers().get(UPGRADE) != Some(&protocol) {
        return Err(Status::bad_request(format!("an upgrade to {PROTOCOL} is expected")));
    }
    let (tunnels, stop) = (server.tunnels.clone(), server.shutdown.clone());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let run = async {
            let stream = upgrade.await?;
            let (sender, connection) =
                http2::Builder::new(TokioExecutor::new()).handshake::<_, Empty<Bytes>>(stream).await?;
            let number = tunnels.put(&node, sender);
            tracing::info!(node, "tunnel of the node is open");
            let result = connection.await;
            tunnels.remove(&node, number);
            result
        };
        match stop.run_until_cancelled(run).await {
            Some(Err(error)) => tracing::info!(node, %error, "tunnel of the node broke"),
            Some(Ok(())) | None => tracing::debug!(node, "tunnel of the node is closed"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, protocol);
    Ok(response)
}
