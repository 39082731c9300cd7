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
/// In this header the server says who it is, so that a node with tunnels to several servers does not open two to one.
const SERVER: &str = "edge-server";
/// How long a request waits for a node that is not connected: it may be about to come back.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long an agent may take to accept a stream, before its tunnel is taken for dead.
const ANSWER: Duration = Duration::from_secs(10);

type Sender = SendRequest<Empty<Bytes>>;

/// The tunnels that are open, by node. A node may have several for a while, as when it changes from one to another: the newest
/// is used.
pub(crate) struct Tunnels {
    open: Mutex<HashMap<String, Vec<(u64, Sender)>>>,
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
        self.open.lock().get(node)?.iter().rev().find(|(_, s)| !s.is_closed()).cloned()
    }

    fn put(&self, node: &str, sender: Sender) -> u64 {
        // the number is there before anybody is woken
        let mut open = self.open.lock();
        let number = *self.opened.borrow() + 1;
        open.entry(node.to_owned()).or_default().push((number, sender));
        drop(open);
        self.opened.send_modify(|n| *n += 1);
        number
    }

    fn remove(&self, node: &str, number: u64) {
        let mut open = self.open.lock();
        if let Some(tunnels) = open.get_mut(node) {
            tunnels.retain(|(n, _)| *n != number);
            if tunnels.is_empty() {
                open.remove(node);
            }
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
    let own = HeaderValue::try_from(server.address()).map_err(Status::internal)?;
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
    response.headers_mut().insert(SERVER, own);
    Ok(response)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn the_newest_tunnel_that_is_open_is_used() {
        let open = || async {
            let (ours, its) = tokio::io::duplex(1 << 16);
            let handshake = http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(ours)).await;
            let (sender, connection) = handshake.unwrap();
            (sender, (connection, its))
        };
        let tunnels = Tunnels::default();
        let used = || tunnels.sender("a").map(|(number, _)| number);
        let ((sender, _older), (other, newer)) = (open().await, open().await);
        let (first, second) = (tunnels.put("a", sender), tunnels.put("a", other));
        assert_eq!(used(), Some(second));
        // it is closed, and a moment later it is known that it has ended
        drop(newer);
        assert_eq!(used(), Some(first));
        tunnels.remove("a", second);
        assert_eq!(used(), Some(first));
        tunnels.remove("a", first);
        assert!(used().is_none() && tunnels.open.lock().is_empty());
        assert!(tunnels.sender("b").is_none());
    }
}
