//! The documents themselves.

use super::{OWN_VERSIONS, Offer, RemoteVersion, Row, group_priority};
use edge_api::GroupVersion;
use edge_api::gvk::version_order;
use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// `/api`: the versions of the core group; `address` is where the server is, `host:port`.
pub(crate) fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`.
pub(crate) fn group_list(offer: &Offer) -> Value {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (group, version, _) in group_versions(offer).into_iter().filter(|(g, ..)| !g.is_empty()) {
        match groups.last_mut() {
            Some((last, versions)) if *last == group => versions.push(version),
            _ => groups.push((group, vec![version])),
        }
    }
    let groups: Vec<Value> = groups.iter().map(|(name, versions)| group_value(name, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`; `None` when it is not served.
pub(crate) fn group(offer: &Offer, name: &str) -> Option<Value> {
    let versions: Vec<&str> =
        group_versions(offer).into_iter().filter(|(g, ..)| *g == name && !g.is_empty()).map(|(_, v, _)| v).collect();
    if versions.is_empty() {
        return None;
    }
    let mut value = group_value(name, &versions);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

fn group_value(name: &str, versions: &[&str]) -> Value {
    let one = |v: &str| json!({"groupVersion": GroupVersion::new(name, v).to_string(), "version": v});
    json!({
        "name": name,
        "versions": versions.iter().map(|v| one(v)).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(|v| one(v)),
    })
}

/// `/api/v1` and `/apis/<group>/<version>`; `None` when it is not served.
pub(crate) fn resource_list(rows: &[Row], group: &str, version: &str) -> Option<Value> {
    let mut of_version: Vec<&Row> = rows.iter().filter(|r| r.group == group && r.version == version).collect();
    if of_version.is_empty() {
        return None;
    }
    of_version.sort_by_key(|r| &r.plural);
    let mut resources = Vec::new();
    for r in of_version {
        resources.push(resource_value(r));
        let mut subs: Vec<_> = r.subresources.iter().collect();
        subs.sort_by_key(|s| &s.name);
        for s in subs {
            let mut v = json!({
                "name": format!("{}/{}", r.plural, s.name),
                "singularName": "",
                "namespaced": r.namespaced,
                "kind": s.kind,
                "verbs": s.verbs,
            });
            if (s.group.as_str(), s.version.as_str()) != (group, version) {
                v["group"] = s.group.as_str().into();
                v["version"] = s.version.as_str().into();
            }
            resources.push(v);
        }
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": GroupVersion::new(group, version).to_string(),
        "resources": resources,
    }))
}

fn resource_value(r: &Row) -> Value {
    let mut v = json!({
        "name": r.plural,
        "singularName": r.singular,
        "namespaced": r.namespaced,
        "kind": r.kind,
        "verbs": r.verbs,
    });
    add_names(&mut v, r);
    v
}

fn add_names(v: &mut Value, r: &Row) {
    if !r.short_names.is_empty() {
        v["shortNames"] = r.short_names.clone().into();
    }
    if !r.categories.is_empty() {
        v["categories"] = r.categories.clone().into();
    }
}

/// What a group version consists of.
enum Content<'o> {
    Rows(Vec<&'o Row>),
    Remote(&'o RemoteVersion),
}

/// Group versions in discovery order with what they consist of. The highest priority of its versions is the group's.
fn group_versions(offer: &Offer) -> Vec<(&str, &str, Content<'_>)> {
    let mut versions: BTreeMap<(&str, &str), (i32, Content<'_>)> = BTreeMap::new();
    let mut groups: BTreeMap<&str, i32> = BTreeMap::new();
    let mut sorted: Vec<&Row> = offer.rows.iter().collect();
    sorted.sort_by_key(|r| &r.plural);
    for r in sorted {
        groups.entry(&r.group).or_insert_with_key(|group| group_priority(group));
        let new = || (OWN_VERSIONS, Content::Rows(Vec::new()));
        if let (_, Content::Rows(list)) = versions.entry((&r.group, &r.version)).or_insert_with(new) {
            list.push(r);
        }
    }
    for r in &offer.remotes {
        let priority = groups.entry(&r.group).or_insert(r.group_priority);
        *priority = r.group_priority.max(*priority);
        versions.insert((&r.group, &r.version), (r.version_priority, Content::Remote(r)));
    }
    let mut out: Vec<(&str, &str, i32, Content<'_>)> = versions
        .into_iter()
        .map(|((group, version), (priority, content))| (group, version, priority, content))
        .collect();
    out.sort_by_key(|(group, version, priority, _)| {
        (Reverse(groups.get(group).copied()), *group, Reverse(*priority), version_order(version))
    });
    out.into_iter().map(|(group, version, _, content)| (group, version, content)).collect()
}

/// A version of the aggregated document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aggregated {
    V2,
    V2Beta1,
}

impl Aggregated {
    /// The version that the client prefers over the plain documents, if any.
    pub(crate) fn wanted(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
        for range in texts.flat_map(|t| t.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            if parts.next() != Some("application/json") {
                continue;
            }
            let params: Vec<&str> = parts.collect();
            if params.is_empty() {
                return None;
            }
            let has = |p| params.contains(&p);
            if !has("g=apidiscovery.k8s.io") || !has("as=APIGroupDiscoveryList") {
                continue;
            }
            if has("v=v2") {
                return Some(Self::V2);
            }
            if has("v=v2beta1") {
                return Some(Self::V2Beta1);
            }
        }
        None
    }

    fn version(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }

    /// The media type of the document.
    pub(crate) fn media_type(self) -> String {
        format!("application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList", self.version())
    }
}

/// The aggregated document of the core group (`/api`) or of all others (`/apis`).
pub(crate) fn aggregated(offer: &Offer, core: bool, form: Aggregated) -> Value {
    let mut items: Vec<(&str, Vec<Value>)> = Vec::new();
    for (group, version, content) in group_versions(offer).into_iter().filter(|(g, ..)| g.is_empty() == core) {
        let resources = match content {
            Content::Rows(rows) => Some(rows.into_iter().map(discovered).collect()),
            Content::Remote(remote) => remote.resources.as_deref().cloned(),
        };
        let version = match resources {
            Some(resources) => json!({"version": version, "resources": resources, "freshness": "Current"}),
            None => json!({"version": version, "freshness": "Stale"}),
        };
        match items.last_mut() {
            Some((last, versions)) if *last == group => versions.push(version),
            _ => items.push((group, vec![version])),
        }
    }
    let items: Vec<Value> = items
        .into_iter()
        .map(|(name, versions)| {
            let mut metadata = Map::new();
            if !name.is_empty() {
                metadata.insert("name".into(), name.into());
            }
            metadata.insert("creationTimestamp".into(), Value::Null);
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", form.version()),
        "metadata": {},
        "items": items,
    })
}

fn discovered(r: &Row) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut v = json!({
        "resource": r.plural,
        "responseKind": kind(&r.group, &r.version, &r.kind),
        "scope": if r.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": r.singular,
        "verbs": r.verbs,
    });
    add_names(&mut v, r);
    if !r.subresources.is_empty() {
        let subs: Vec<Value> = r
            .subresources
            .iter()
            .map(|s| {
                json!({
                    "subresource": s.name,
                    "responseKind": kind(&s.group, &s.version, &s.kind),
                    "verbs": s.verbs,
                })
            })
            .collect();
        v["subresources"] = subs.into();
    }
    v
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::SubRow;
    use super::*;
    use std::sync::Arc;

    fn rows() -> Vec<Row> {
        let row = |group: &str, version: &str, kind: &str, plural: &str| Row {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase(),
            namespaced: true,
            verbs: vec!["get"],
            short_names: vec![],
            categories: vec!["all".into()],
            subresources: vec![],
            schema: Default::default(),
        };
        let mut deployments = row("apps", "v1", "Deployment", "deployments");
        deployments.short_names = vec!["deploy".into()];
        deployments.subresources = vec![SubRow {
            name: "scale".into(),
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            verbs: vec!["get", "update"],
        }];
        vec![
            row("autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
            row("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
            deployments,
            row("", "v1", "Pod", "pods"),
        ]
    }

    fn offer() -> Offer {
        Offer::new(rows().into(), Vec::new())
    }

    fn remote(group: &str, version: &str, priorities: (i32, i32), resources: Option<Value>) -> RemoteVersion {
        RemoteVersion {
            group: group.into(),
            version: version.into(),
            group_priority: priorities.0,
            version_priority: priorities.1,
            resources: resources.map(Arc::new),
        }
    }

    #[test]
    fn other_servers_groups_are_among_them_by_their_priorities() {
        let remotes = vec![
            remote("late.io", "v1", (50, 10), None),
            remote("apps", "v2", (10, 200), Some(json!([{"resource": "things"}]))),
            remote("apps", "v1beta1", (10, 5), None),
            remote("first.io", "v1", (17_850, 10), None),
            remote("autoscaling", "v2", (10, 10), None),
        ];
        let offer = Offer::new(rows().into(), remotes);
        let list = group_list(&offer);
        let groups: Vec<(&str, Vec<&str>)> = list["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| {
                let versions = g["versions"].as_array().unwrap().iter().map(|v| v["version"].as_str().unwrap());
                (g["name"].as_str().unwrap(), versions.collect())
            })
            .collect();
        let expected = [
            ("first.io", vec!["v1"]),
            ("apps", vec!["v2", "v1", "v1beta1"]),
            ("autoscaling", vec!["v1", "v2"]),
            ("late.io", vec!["v1"]),
        ];
        assert_eq!(groups, expected);
        let all = aggregated(&offer, false, Aggregated::V2);
        assert_eq!(all["items"][0]["versions"], json!([{"version": "v1", "freshness": "Stale"}]));
        let apps = &all["items"][1]["versions"];
        assert_eq!(apps[0], json!({"version": "v2", "resources": [{"resource": "things"}], "freshness": "Current"}));
        assert_eq!(apps[1]["resources"][0]["resource"], "deployments");
        assert_eq!(all["items"][2]["versions"][1]["freshness"], "Stale", "the rows of it are not served");
    }

    #[test]
    fn groups_come_in_order_with_their_preferred_version() {
        let v = group_list(&offer());
        let names: Vec<_> = v["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["apps", "autoscaling"], "the core group is not among them");
        assert_eq!(v["groups"][1]["preferredVersion"], json!({"groupVersion": "autoscaling/v2", "version": "v2"}));
        assert_eq!(group(&offer(), "apps").unwrap()["kind"], "APIGroup");
        assert!(group(&offer(), "").is_none() && group(&offer(), "x").is_none());
    }

    #[test]
    fn resource_lists_name_foreign_subresource_kinds() {
        let v = resource_list(&rows(), "apps", "v1").unwrap();
        assert_eq!(
            v["resources"],
            json!([
                {"name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment",
                 "verbs": ["get"], "shortNames": ["deploy"], "categories": ["all"]},
                {"name": "deployments/scale", "singularName": "", "namespaced": true, "kind": "Scale",
                 "group": "autoscaling", "version": "v1", "verbs": ["get", "update"]},
            ])
        );
        assert!(resource_list(&rows(), "apps", "v2").is_none());
    }

    #[test]
    fn aggregated_discovery_holds_everything_once() {
        let v = aggregated(&offer(), false, Aggregated::V2);
        assert_eq!(v["apiVersion"], "apidiscovery.k8s.io/v2");
        assert_eq!(v["items"].as_array().unwrap().len(), 2);
        assert_eq!(v["items"][1]["versions"][0]["version"], "v2");
        assert_eq!(v["items"][0]["versions"][0]["resources"][0]["subresources"][0]["responseKind"]["kind"], "Scale");
        let core = aggregated(&offer(), true, Aggregated::V2Beta1);
        assert_eq!(core["items"][0]["versions"][0]["resources"][0]["resource"], "pods");
        let mut h = HeaderMap::new();
        h.insert(
            ACCEPT,
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
                .parse()
                .unwrap(),
        );
        assert_eq!(Aggregated::wanted(&h), Some(Aggregated::V2Beta1));
        h.insert(ACCEPT, "application/json, */*".parse().unwrap());
        assert_eq!(Aggregated::wanted(&h), None);
    }
}
