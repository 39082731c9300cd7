//! What extension API servers say of themselves, as discovery and OpenAPI show it.

use super::Remote;
use super::reach::{By, fetch, get};
use crate::Server;
use edge_api::{GroupVersion, UserInfo};
use futures::future;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long it is believed what OpenAPI documents a server has.
const FRESH: Duration = Duration::from_secs(60);
/// The list of documents has at most so many bytes, and comes so soon, or is done without.
const LIMITS: (usize, Duration) = (1 << 20, Duration::from_secs(3));

#[derive(Deserialize)]
struct List {
    kind: String,
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Resource {
    name: String,
    singular_name: String,
    namespaced: bool,
    group: String,
    version: String,
    kind: String,
    verbs: Vec<String>,
    short_names: Vec<String>,
    categories: Vec<String>,
}

/// The resources of an `APIResourceList` in the form of aggregated discovery; `None` when it is none.
pub(super) fn resources(list: &[u8], group: &str, version: &str) -> Option<Value> {
    let list: List = serde_json::from_slice(list).ok().filter(|list: &List| list.kind == "APIResourceList")?;
    let mut all: Vec<Map<String, Value>> = Vec::new();
    let place = |all: &Vec<Map<String, Value>>, name: &str| all.iter().position(|r| r["resource"] == name);
    for r in list.resources {
        let or = |own: &str, of_list: &str| if own.is_empty() { of_list.to_owned() } else { own.to_owned() };
        let kind = json!({"group": or(&r.group, group), "version": or(&r.version, version), "kind": r.kind});
        let scope = if r.namespaced { "Namespaced" } else { "Cluster" };
        let (name, subresource) = r.name.split_once('/').map_or((r.name.as_str(), None), |(n, s)| (n, Some(s)));
        let at = place(&all, name).unwrap_or_else(|| {
            let mut new = Map::new();
            new.insert("resource".into(), name.into());
            new.insert("scope".into(), scope.into());
            all.push(new);
            all.len() - 1
        });
        let entry = &mut all[at];
        if let Some(subresource) = subresource {
            let sub = json!({"subresource": subresource, "responseKind": kind, "verbs": r.verbs});
            if let Some(subs) = entry.entry("subresources").or_insert_with(|| json!([])).as_array_mut() {
                subs.push(sub);
            }
            continue;
        }
        entry.insert("responseKind".into(), kind);
        entry.insert("scope".into(), scope.into());
        entry.insert("singularResource".into(), r.singular_name.into());
        entry.insert("verbs".into(), r.verbs.into());
        for (field, names) in [("shortNames", r.short_names), ("categories", r.categories)] {
            if !names.is_empty() {
                entry.insert(field.into(), names.into());
            }
        }
    }
    Some(all.into_iter().map(Value::Object).collect())
}

/// What is known of a server's OpenAPI document: since when, and the hash of its content, if it has one.
pub(super) type OpenApi = Mutex<Option<(Instant, Option<String>)>>;

/// The group versions of which another server has an OpenAPI document, with the documents' hashes. They are asked now, when
/// somebody wants to know, and not more often than every minute.
pub(crate) async fn openapi_versions(server: &Server) -> Vec<(GroupVersion, String)> {
    let remotes = server.aggregation.remotes();
    let all = remotes.iter().filter(|r| r.is_available()).map(|remote| async move {
        let mut known = remote.openapi.lock().await;
        let hash = match known.as_ref() {
            Some((since, hash)) if since.elapsed() < FRESH => hash.clone(),
            _ => {
                let hash = ask(server, remote).await;
                *known = Some((Instant::now(), hash.clone()));
                hash
            }
        };
        Some((GroupVersion::new(&remote.spec.group, &remote.spec.version), hash?))
    });
    future::join_all(all).await.into_iter().flatten().collect()
}

async fn ask(server: &Server, remote: &Remote) -> Option<String> {
    let user = UserInfo::new("system:aggregator", Vec::<String>::new());
    let asked = async { fetch(server, remote, &user, get("/openapi/v3")?, By::Kept, LIMITS).await };
    let answer = asked.await.inspect_err(|error| tracing::debug!(error, "no OpenAPI documents")).ok()?;
    let (group, version) = (&remote.spec.group, &remote.spec.version);
    answer.status().is_success().then(|| hash_in(answer.body(), group, version)).flatten()
}

/// The hash of one document in a list of documents; others than its own group version a server does not speak for.
fn hash_in(index: &[u8], group: &str, version: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Index {
        paths: BTreeMap<String, Document>,
    }
    #[derive(Deserialize)]
    struct Document {
        #[serde(rename = "serverRelativeURL", default)]
        url: String,
    }
    let index: Index = serde_json::from_slice(index).ok()?;
    let document = index.paths.get(&format!("apis/{group}/{version}"))?;
    let hash = document.url.split_once("hash=").map_or("", |(_, rest)| rest.split('&').next().unwrap_or_default());
    // it becomes part of an address
    Some(hash.chars().filter(char::is_ascii_alphanumeric).take(128).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lists_of_resources_become_aggregated_ones() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "a.b/v1", "resources": [
            {"name": "foos/status", "kind": "Foo", "namespaced": true, "verbs": ["get"]},
            {"name": "foos", "singularName": "foo", "kind": "Foo", "namespaced": true, "verbs": ["get", "list"], "shortNames": ["f"]},
            {"name": "foos/scale", "kind": "Scale", "group": "autoscaling", "version": "v1", "namespaced": true, "verbs": ["get"]},
            {"name": "bars", "singularName": "", "kind": "Bar", "namespaced": false, "verbs": []}]});
        let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
        let expected = json!([
            {"resource": "foos", "scope": "Namespaced", "singularResource": "foo", "verbs": ["get", "list"], "shortNames": ["f"],
             "responseKind": kind("a.b", "v1", "Foo"), "subresources": [
                {"subresource": "status", "responseKind": kind("a.b", "v1", "Foo"), "verbs": ["get"]},
                {"subresource": "scale", "responseKind": kind("autoscaling", "v1", "Scale"), "verbs": ["get"]}]},
            {"resource": "bars", "scope": "Cluster", "singularResource": "", "verbs": [], "responseKind": kind("a.b", "v1", "Bar")},
        ]);
        assert_eq!(resources(list.to_string().as_bytes(), "a.b", "v1").unwrap(), expected);
        for none in ["", "[]", "<html>", r#"{"kind": "FooList"}"#, r#"{"kind": "APIResourceList", "resources": [3]}"#] {
            assert_eq!(resources(none.as_bytes(), "a.b", "v1"), None, "{none}");
        }
    }

    #[test]
    fn a_server_speaks_for_its_own_documents() {
        let index = |path: &str, url: &str| json!({"paths": {path: {"serverRelativeURL": url}}}).to_string();
        let hash = |path: &str, url: &str| hash_in(index(path, url).as_bytes(), "a.b", "v1");
        assert_eq!(hash("apis/a.b/v1", "/openapi/v3/apis/a.b/v1?hash=AB12&x=y").as_deref(), Some("AB12"));
        assert_eq!(hash("apis/a.b/v1", "/openapi/v3/apis/a.b/v1").as_deref(), Some(""));
        assert_eq!(hash("apis/a.b/v1", "/x?hash=\r\n<a>/../").as_deref(), Some("a"));
        assert_eq!(hash("apis/apps/v1", "/openapi/v3/apis/apps/v1?hash=AB12"), None);
        assert_eq!(hash_in(b"{}", "a.b", "v1"), None);
    }
}
