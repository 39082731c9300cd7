//! Requests that look at as little of the answers as they can.

use bytes::Bytes;
use http_body_util::BodyExt;
use kube::client::Body;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt;

/// Why a request did not succeed.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The server has answered with this code.
    Code(u16, String),
    /// Nobody has answered; what was asked for may be done or not.
    Unknown(String),
}

impl Refused {
    /// The HTTP status code; 0 when nobody has answered.
    pub(crate) fn code(&self) -> u16 {
        match self {
            Refused::Code(code, _) => *code,
            Refused::Unknown(_) => 0,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Code(code, text) => write!(f, "{code}: {text}"),
            Refused::Unknown(text) => write!(f, "no answer: {text}"),
        }
    }
}

/// The way to the API server.
#[derive(Clone)]
pub(crate) struct Wire {
    client: kube::Client,
}

impl Wire {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client }
    }

    pub(crate) fn client(&self) -> &kube::Client {
        &self.client
    }

    /// Sends a request; gives the body of the answer.
    pub(crate) async fn send(&self, method: &str, path: &str, kind: &str, body: Vec<u8>) -> Result<Bytes, Refused> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, kind)
            .body(Body::from(body))
            .map_err(|e| Refused::Unknown(e.to_string()))?;
        let answer = self.client.send(request).await.map_err(|e| Refused::Unknown(e.to_string()))?;
        let code = answer.status();
        let bytes = answer.into_body().collect().await.map_err(|e| Refused::Unknown(e.to_string()))?.to_bytes();
        if code.is_success() { Ok(bytes) } else { Err(Refused::Code(code.as_u16(), message(&bytes))) }
    }

    /// Creates an object.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Result<Bytes, Refused> {
        self.send("POST", path, "application/json", object.to_string().into_bytes()).await
    }

    /// Changes an object by a JSON merge patch.
    pub(crate) async fn patch(&self, path: &str, patch: &Value) -> Result<Bytes, Refused> {
        self.send("PATCH", path, "application/merge-patch+json", patch.to_string().into_bytes()).await
    }

    /// Changes an object by a strategic merge patch.
    pub(crate) async fn strategic(&self, path: &str, patch: &Value) -> Result<Bytes, Refused> {
        self.send("PATCH", path, "application/strategic-merge-patch+json", patch.to_string().into_bytes()).await
    }

    /// Deletes an object, with `DeleteOptions`.
    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Result<Bytes, Refused> {
        self.send("DELETE", path, "application/json", options.to_string().into_bytes()).await
    }

    /// Reads something.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refused> {
        let bytes = self.send("GET", path, "application/json", Vec::new()).await?;
        serde_json::from_slice(&bytes).map_err(|e| Refused::Unknown(e.to_string()))
    }

    /// Reads text.
    pub(crate) async fn text(&self, path: &str) -> Result<String, Refused> {
        let bytes = self.send("GET", path, "application/json", Vec::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The message of a Status, or what there is.
fn message(body: &[u8]) -> String {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    status["message"].as_str().map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned)
}
