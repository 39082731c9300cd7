//! port-forward.
use crate::{ByteStream, Error, UpgradeError};
use http::{Request, Response};
use std::future::Future;
use tokio::sync::{mpsc, oneshot};

/// Accepts a port-forward request: returns the `101` response to send and a future that yields the
/// [`PortForwardSession`]. Spawn the future; dropping it closes the connection.
///
/// # Errors
/// [`UpgradeError`] when the request is no such upgrade; answer it with [`UpgradeError::status_code`] and its text.
pub fn port_forward<B>(
    request: &mut Request<B>,
) -> Result<(Response<()>, impl Future<Output = Result<PortForwardSession, Error>> + Send + use<B>), UpgradeError> {
    let _ = request;
    Ok((Response::new(()), std::future::ready(Err(Error::Disconnected))))
}

/// The connections that a client opens through one port-forward request.
#[derive(Debug)]
pub struct PortForwardSession {
    pub(crate) connections: mpsc::Receiver<PortConnection>,
}

impl PortForwardSession {
    /// The next connection the client opens; `None` when the client is gone. Serve each in its own task.
    pub async fn next(&mut self) -> Option<PortConnection> {
        self.connections.recv().await
    }
}

/// One forwarded TCP connection.
#[derive(Debug)]
pub struct PortConnection {
    /// The port inside the pod.
    pub port: u16,
    /// Bytes both ways, with half-close. Dropping it ends the connection.
    pub stream: ByteStream,
    /// Where to say that the connection failed; dropping it says that all went well.
    pub error: ErrorChannel,
}

/// Tells the client why a forwarded connection failed; at most one message.
#[derive(Debug)]
pub struct ErrorChannel {
    pub(crate) message: oneshot::Sender<String>,
}

impl ErrorChannel {
    /// Sends `message`, which kubectl prints; ignored when the client is gone.
    pub fn send(self, message: impl Into<String>) {
        // The receiver is dropped with the connection; then there is nobody to tell.
        let _ = self.message.send(message.into());
    }
}
