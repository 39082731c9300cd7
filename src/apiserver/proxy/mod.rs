//! Requests that are answered by somebody else: a kubelet (exec, attach, port-forward, logs), a pod, a service.
//!
//! In comes an authorized request for a proxying subresource, out goes the other side's answer, byte for byte, upgraded
//! connections (SPDY and WebSocket alike) included. What the streams carry is no business of the API server; only links of
//! pages are led back through it.

mod kubelet;
mod links;
mod transport;
mod web;

pub(crate) use kubelet::{Attachment, attach, logs, node};
pub(crate) use transport::{Onward, relay, unreachable};
pub(crate) use web::{Target, pod, ready_endpoint, redirect_to_root, service};

use async_trait::async_trait;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way stream of bytes, such as a socket or one channel of an agent's tunnel.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The way to the kubelet of a node. Agents dial out, so what this hands back is usually a channel of their tunnel.
#[async_trait]
pub trait NodeDialer: Send + Sync {
    /// A fresh stream to the kubelet's HTTP/1.1 service; whoever is at its other end takes the API server's word for
    /// who is authorized.
    ///
    /// # Errors
    /// When the node is not connected.
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Stream>>;
}
