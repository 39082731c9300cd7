//! Pushing an artifact: its blobs as far as the registry lacks them, then its manifest under a tag.

use super::config::Registries;
use super::credentials::Credentials;
use super::repository::{Repository, resolve, server_message};
use super::transport::{Transport, read_body};
use super::{Endpoint, RegistryError};
use crate::artifact::Artifact;
use crate::digest::Digest;
use crate::error::Error;
use crate::oci::MAX_DOCUMENT;
use crate::reference::Reference;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use std::sync::Arc;

/// Actions that a token for pushing must allow.
const ACTIONS: &str = "pull,push";
/// How blobs are sent.
const OCTETS: &str = "application/octet-stream";

impl Artifact {
    /// Pushes it to its registry (never to a mirror), with one of `credentials` if there are any, else with those of
    /// `registries.yaml`, else with none.
    ///
    /// # Errors
    /// [`Error::Registry`], and [`Error::Malformed`] for a name by digest.
    pub async fn push(
        &self,
        registries: &Registries,
        reference: &Reference,
        credentials: Vec<Credentials>,
    ) -> Result<(), Error> {
        if reference.digest().is_some() {
            return Err(Error::malformed(
                reference.to_string(),
                "what is pushed needs a tag, its digest follows from it",
            ));
        }
        let transport = Arc::new(Transport::new(registries));
        let endpoints = registries.endpoints(reference.registry(), reference.repository());
        let mut last = None;
        for endpoint in endpoints.into_iter().filter(|e: &Endpoint| e.is_upstream) {
            let mut attempts: Vec<_> = credentials.iter().cloned().map(Some).collect();
            if attempts.is_empty() {
                attempts.push(transport.host_config(&endpoint.host).credentials);
            }
            for credentials in attempts {
                let repository = Repository::new(Arc::clone(&transport), endpoint.clone(), credentials);
                match repository.push(self, reference.tag().unwrap_or("latest")).await {
                    Ok(()) => return Ok(()),
                    Err(error) => last = Some(error),
                }
            }
        }
        let none = || Error::malformed(reference.to_string(), "no endpoint to push to");
        Err(last.map_or_else(none, Error::Registry))
    }
}

impl Repository {
    async fn push(&self, artifact: &Artifact, tag: &str) -> Result<(), RegistryError> {
        for (digest, blob) in artifact.blobs() {
            self.push_blob(*digest, blob).await?;
        }
        let (media_type, manifest) = artifact.manifest();
        let url = self.parse(&format!("{}/manifests/{tag}", self.endpoint.repository_url))?;
        self.expect_success(Method::PUT, url, media_type, manifest, tag).await.map(drop)
    }

    async fn push_blob(&self, digest: Digest, blob: &Bytes) -> Result<(), RegistryError> {
        let what = digest.to_string();
        let base = &self.endpoint.repository_url;
        let known =
            self.send(Method::HEAD, self.parse(&format!("{base}/blobs/{digest}"))?, OCTETS, Bytes::new()).await?;
        if known.status().is_success() {
            return Ok(());
        }
        let uploads = self.parse(&format!("{base}/blobs/uploads/"))?;
        let begun = self.expect_success(Method::POST, uploads.clone(), OCTETS, Bytes::new(), &what).await?;
        let location = begun.headers().get(LOCATION).and_then(|l| l.to_str().ok()).and_then(|l| resolve(&uploads, l));
        let location = location.ok_or_else(|| self.protocol("upload without a usable location".to_owned()))?;
        if (location.scheme(), location.authority()) != (uploads.scheme(), uploads.authority()) {
            // The credentials are this registry's, and no other host's business.
            return Err(self.protocol(format!("uploads to another host ({location})")));
        }
        let joined = if location.query().is_some() { '&' } else { '?' };
        let target = self.parse(&format!("{location}{joined}digest={digest}"))?;
        self.expect_success(Method::PUT, target, OCTETS, blob.clone(), &what).await.map(drop)
    }

    async fn expect_success(
        &self,
        method: Method,
        uri: Uri,
        content_type: &'static str,
        body: Bytes,
        part: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        let response = self.send(method, uri, content_type, body).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let host = self.endpoint.host.clone();
        let body = read_body(&host, response.into_body(), MAX_DOCUMENT).await.unwrap_or_default();
        let (reason, what) = (server_message(status, &body), self.describe(part));
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized { host, what, reason },
            StatusCode::NOT_FOUND => RegistryError::NotFound { host, what },
            status => RegistryError::Status { host, what, status, reason },
        })
    }

    /// Sends a request, and again with the answer to a challenge.
    async fn send(
        &self,
        method: Method,
        uri: Uri,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut challenged = false;
        loop {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(uri.clone())
                .header(USER_AGENT, concat!("edge/", env!("CARGO_PKG_VERSION")));
            if !body.is_empty() {
                request = request.header(CONTENT_TYPE, HeaderValue::from_static(content_type));
            }
            if let Some(header) = self.authorization.lock().clone() {
                request = request.header(AUTHORIZATION, header);
            }
            let request = request.body(Full::new(body.clone())).map_err(|error| self.protocol(error.to_string()))?;
            let response = self.transport.send(request).await?;
            let asked = response.status() == StatusCode::UNAUTHORIZED && !std::mem::replace(&mut challenged, true);
            if asked && let Some(header) = self.authorize(&response, ACTIONS).await? {
                *self.authorization.lock() = Some(header);
                continue;
            }
            return Ok(response);
        }
    }

    fn parse(&self, url: &str) -> Result<Uri, RegistryError> {
        url.parse().map_err(|error| self.protocol(format!("{url}: {error}")))
    }
}
