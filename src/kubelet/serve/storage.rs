//! `/v1-edge/storage`: directories of volumes that were made for claims.

use super::{Answer, Refusal, text_answer};
use crate::volumes::local::{self, RemoveError};
use hyper::Request;
use hyper::body::Incoming;

/// `DELETE ?path=`: removes the directory of a volume whose claim is gone.
pub(super) async fn remove(request: &Request<Incoming>) -> Answer {
    let query = request.uri().query().unwrap_or_default();
    let path = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "path");
    let path = path.ok_or_else(|| Refusal::bad_request("the parameter `path` is missing"))?.1.into_owned();
    match tokio::task::spawn_blocking(move || local::remove_storage_directory(&path)).await {
        Ok(Ok(())) => Ok(text_answer(String::new())),
        Ok(Err(error @ RemoveError::NotOurs(_))) => Err(Refusal::bad_request(error.to_string())),
        Ok(Err(RemoveError::Io { path, source })) => Err(Refusal::internal(format!("cannot remove {path}: {source}"))),
        Err(error) => Err(Refusal::internal(error.to_string())),
    }
}
