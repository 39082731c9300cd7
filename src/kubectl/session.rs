//! The cluster that a command talks to.

use crate::cli::Global;
use crate::error::Error;
use crate::resources::{Object, Resource, Resources};
use edge_client::Client;
use futures::{AsyncBufRead, AsyncBufReadExt, Stream, StreamExt};
use http::Request;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Mutex;

/// The cluster, where and as whom the kubeconfig says. Nothing is tried again.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    resources: Mutex<Resources>,
}

/// The media types of request bodies.
pub(crate) const JSON: &str = "application/json";
pub(crate) const MERGE_PATCH: &str = "application/merge-patch+json";
pub(crate) const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";
pub(crate) const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// Who manages the fields that are set here.
pub(crate) const FIELD_MANAGER: &str = "edge-kubectl";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// A query, without the question mark.
pub(crate) fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let mut all = form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs {
        if let Some(value) = value {
            all.append_pair(name, value);
        }
    }
    all.finish()
}

impl Session {
    /// Reads the kubeconfig and asks the server what it has.
    pub(crate) async fn open(global: &Global, default: PathBuf) -> Result<Self, Error> {
        let file = global.kubeconfig.clone().unwrap_or(default);
        let cluster = edge_client::from_kubeconfig(&file, global.context.as_deref(), None).await;
        let cluster = cluster.map_err(|e| Error::Config(e.to_string()))?;
        let namespace = global.namespace.clone().unwrap_or(cluster.namespace);
        let session = Self { client: cluster.client, namespace, resources: Mutex::default() };
        session.discover().await?;
        Ok(session)
    }

    /// Asks the server again: a definition may just have been applied.
    pub(crate) async fn discover(&self) -> Result<(), Error> {
        let mut found = Resources::default();
        for path in ["/api", "/apis"] {
            let request = Request::get(path)
                .header("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
            found.add(&self.client.request(body(request, Vec::new())?).await?);
        }
        *self.locked() = found;
        Ok(())
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Resources> {
        self.resources.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All resources.
    pub(crate) fn resources(&self) -> Vec<Resource> {
        self.locked().all.clone()
    }

    /// The resources that a word such as `po`, `deployments.apps`, `Service` or `all` means.
    pub(crate) fn resolve(&self, word: &str) -> Result<Vec<Resource>, Error> {
        self.locked().resolve(word).ok_or_else(|| Error::NoSuchResource(word.to_owned()))
    }

    /// The one resource that a word means.
    pub(crate) fn resource(&self, word: &str) -> Result<Resource, Error> {
        self.resolve(word)?.into_iter().next().ok_or_else(|| Error::NoSuchResource(word.to_owned()))
    }

    /// The resource of an object in a manifest.
    pub(crate) fn resource_of(&self, api_version: &str, kind: &str) -> Option<Resource> {
        self.locked().of_kind(api_version, kind)
    }

    /// Objects by the words of a command line: `TYPE NAME…` or `TYPE/NAME…`.
    pub(crate) fn objects(&self, words: &[String]) -> Result<Vec<Object>, Error> {
        let usage = || Error::Usage("expected TYPE NAME or TYPE/NAME".into());
        if words.first().is_some_and(|word| word.contains('/')) {
            let each = words.iter().map(|word| {
                let (kind, name) = word.split_once('/').ok_or_else(usage)?;
                Ok(Object { resource: self.resource(kind)?, name: name.to_owned() })
            });
            return each.collect();
        }
        let (kind, names) = words.split_first().ok_or_else(usage)?;
        if names.is_empty() {
            return Err(usage());
        }
        let resource = self.resource(kind)?;
        Ok(names.iter().map(|name| Object { resource: resource.clone(), name: name.clone() }).collect())
    }

    /// The one object that the words name.
    pub(crate) fn object(&self, words: &[String]) -> Result<Object, Error> {
        let mut all = self.objects(words)?;
        if all.len() == 1 { Ok(all.remove(0)) } else { Err(Error::Usage("expected one object".into())) }
    }

    /// Where an object is.
    pub(crate) fn path(&self, object: &Object) -> String {
        object.resource.path(Some(&self.namespace), Some(&object.name))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Error> {
        Ok(self.client.request(body(Request::get(path), Vec::new())?).await?)
    }

    /// The same as a table.
    pub(crate) async fn get_table(&self, path: &str) -> Result<Value, Error> {
        Ok(self.client.request(body(Request::get(path).header("accept", TABLE), Vec::new())?).await?)
    }

    /// A watch, a line for each event.
    pub(crate) async fn stream(&self, path: &str, table: bool) -> Result<impl AsyncBufRead + use<>, Error> {
        let accept = if table { TABLE } else { JSON };
        Ok(self.client.request_stream(body(Request::get(path).header("accept", accept), Vec::new())?).await?)
    }

    /// The events of a watch, as they come. That the server ends it is no error.
    pub(crate) async fn events(
        &self,
        path: &str,
        table: bool,
    ) -> Result<impl Stream<Item = Result<Value, Error>> + Unpin + use<>, Error> {
        let lines = self.stream(path, table).await?.lines();
        Ok(lines.map(|line| serde_json::from_str(&line?).map_err(|e| Error::Unreachable(e.to_string()))))
    }

    /// What happens to an object after it was as it is `known`.
    pub(crate) async fn follow(
        &self,
        object: &Object,
        namespace: &str,
        known: &Value,
    ) -> Result<impl Stream<Item = Result<Value, Error>> + Unpin + use<>, Error> {
        let name = format!("metadata.name={}", object.name);
        let version = known["metadata"]["resourceVersion"].as_str();
        let query = query(&[("watch", Some("true")), ("fieldSelector", Some(&name)), ("resourceVersion", version)]);
        self.events(&format!("{}?{query}", object.resource.path(Some(namespace), None)), false).await
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value, Error> {
        let request = Request::post(path).header("content-type", JSON);
        Ok(self.client.request(body(request, object.to_string().into_bytes())?).await?)
    }

    pub(crate) async fn patch(&self, path: &str, media_type: &str, patch: &Value) -> Result<Value, Error> {
        let request = Request::patch(path).header("content-type", media_type);
        Ok(self.client.request(body(request, patch.to_string().into_bytes())?).await?)
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Result<Value, Error> {
        let request = Request::delete(path).header("content-type", JSON);
        Ok(self.client.request(body(request, options.to_string().into_bytes())?).await?)
    }

    pub(crate) async fn version(&self) -> Result<(), Error> {
        let version = self.get("/version").await?;
        crate::print::line(&format!("Server Version: {}", version["gitVersion"].as_str().unwrap_or_default()))
    }
}

fn body(builder: http::request::Builder, body: Vec<u8>) -> Result<Request<Vec<u8>>, Error> {
    builder.body(body).map_err(|e| Error::Usage(e.to_string()))
}
