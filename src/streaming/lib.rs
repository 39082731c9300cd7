//! Room `streaming`: the server side of Kubernetes' streaming protocols (exec, attach, port-forward).
//!
//! In comes an HTTP request that asks for an upgrade; out go the `101` response to send and a future that, once the
//! client has switched protocols, yields a [`Session`] or a [`PortForwardSession`] made of plain byte streams. This
//! room knows bytes and channels only: no pods, no containers, no authorization (the caller has done that).
//!
//! Two transports carry the same channels: SPDY/3.1 (kubectl up to 1.28, the fallback of client-go) and WebSocket
//! (kubectl from 1.29 on); kubectl from 1.31 on carries port-forward as SPDY *inside* a WebSocket.
//!
//! Every stream has a bounded buffer and slows its peer down when it is full.

mod error;
mod feeder;
mod negotiate;
mod outbound;
mod portforward;
mod remotecommand;
mod resize;
mod session;
mod spdy;
#[cfg(test)]
mod testing;
mod websocket;

pub use error::{Error, UpgradeError};
pub use portforward::{ErrorChannel, PortConnection, PortForwardSession, port_forward};
pub use remotecommand::remote_command;
pub use session::{ByteStream, Completion, ExitStatus, RemoteCommandOptions, Session, TerminalSize};
