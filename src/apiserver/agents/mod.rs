//! What agents on other machines need besides the Kubernetes API, below `/v1-edge/`: joining, and the tunnel through which
//! the server reaches their kubelets.

mod join;
mod tunnel;

pub(crate) use tunnel::{Routes, Tunnels};

use crate::Server;
use crate::body::Body;
use crate::request_info::RequestInfo;
use edge_api::{Reason, Status, UserInfo};
use http::{Method, Request, Response};
use std::sync::Arc;

/// Where machines join. Whoever asks is looked at closely there, so everybody may ask.
pub(crate) const JOIN_PATH: &str = "/v1-edge/join";
const TUNNEL_PATH: &str = "/v1-edge/tunnel";

/// Whether a path is one of these.
pub(crate) fn serves(info: &RequestInfo) -> bool {
    matches!(info.path.as_str(), JOIN_PATH | TUNNEL_PATH)
}

/// Answers a request for one of these paths.
///
/// # Errors
/// Whatever joining or the tunnel refuses; 405 for any other method than the path's.
pub(crate) async fn serve(
    server: &Arc<Server>,
    user: &UserInfo,
    info: &RequestInfo,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    match (info.path.as_str(), request.method()) {
        (JOIN_PATH, &Method::POST) => join::serve(server, user, request).await,
        (TUNNEL_PATH, &Method::GET) => tunnel::open(server, user, request),
        _ => Err(Status::new(405, Reason::MethodNotAllowed, "the server does not allow this method on this path")),
    }
}

pub(crate) use join::claim;
