//! What the server has, as its discovery says, and which of that a word means.

use serde_json::Value;

/// A kind of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    /// Empty for the core group.
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) verbs: Vec<String>,
    pub(crate) namespaced: bool,
}

/// An object by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) resource: Resource,
    pub(crate) name: String,
}

impl Resource {
    /// `v1`, or `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, or `deployments.apps`.
    pub(crate) fn full_name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `pod/a`, or `deployment.apps/a`.
    pub(crate) fn display(&self, name: &str) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        format!("{}{group}/{name}", self.singular)
    }

    /// Where objects are: one, those of a namespace, or all.
    pub(crate) fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let mut path = format!("{root}/{}", self.api_version());
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            path += &format!("/namespaces/{}", escaped(namespace));
        }
        path += &format!("/{}", self.plural);
        if let Some(name) = name {
            path += &format!("/{}", escaped(name));
        }
        path
    }

    fn is_called(&self, word: &str) -> bool {
        let (name, group) = word.split_once('.').map_or((word, None), |(n, g)| (n, Some(g)));
        let named = [&self.plural, &self.singular].into_iter().chain(&self.short_names).any(|n| n == name)
            || self.kind.eq_ignore_ascii_case(name);
        // deployments.apps and deployments.v1.apps
        let versioned = format!("{}.{}", self.version, self.group);
        named && group.is_none_or(|g| self.group == g || versioned == g || (!g.is_empty() && self.group.starts_with(g)))
    }
}

/// A part of a path that cannot become more than one.
fn escaped(part: &str) -> String {
    part.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// All resources, in the server's order, each in all its versions, the preferred one first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resources {
    pub(crate) all: Vec<Resource>,
}

impl Resources {
    /// Takes what an aggregated discovery document says.
    pub(crate) fn add(&mut self, document: &Value) {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let texts = |value: &Value| list(value).iter().map(&text).collect::<Vec<_>>();
        for group in list(&document["items"]) {
            for version in list(&group["versions"]) {
                for resource in list(&version["resources"]) {
                    let kind = text(&resource["responseKind"]["kind"]);
                    let singular = text(&resource["singularResource"]);
                    self.all.push(Resource {
                        group: text(&group["metadata"]["name"]),
                        version: text(&version["version"]),
                        plural: text(&resource["resource"]),
                        singular: if singular.is_empty() { kind.to_lowercase() } else { singular },
                        kind,
                        short_names: texts(&resource["shortNames"]),
                        categories: texts(&resource["categories"]),
                        verbs: texts(&resource["verbs"]),
                        namespaced: resource["scope"] == "Namespaced",
                    });
                }
            }
        }
    }

    /// What a word means: a resource, or all of a category.
    pub(crate) fn resolve(&self, word: &str) -> Option<Vec<Resource>> {
        if let Some(resource) = self.all.iter().find(|r| r.is_called(word)) {
            return Some(vec![resource.clone()]);
        }
        let mut found: Vec<Resource> = Vec::new();
        for resource in self.all.iter().filter(|r| r.categories.iter().any(|c| c == word)) {
            if !found.iter().any(|f| (&f.group, &f.plural) == (&resource.group, &resource.plural)) {
                found.push(resource.clone());
            }
        }
        (!found.is_empty()).then_some(found)
    }

    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<Resource> {
        self.all.iter().find(|r| r.api_version() == api_version && r.kind == kind).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn resources() -> Resources {
        let resource = |plural: &str, kind: &str, short: &[&str], categories: &[&str]| {
            json!({"resource": plural, "responseKind": {"kind": kind}, "scope": "Namespaced", "shortNames": short,
                "singularResource": kind.to_lowercase(), "categories": categories, "verbs": ["get", "list"]})
        };
        let mut all = Resources::default();
        all.add(&json!({"items": [{"metadata": {"name": ""}, "versions": [{"version": "v1", "resources": [
            resource("pods", "Pod", &["po"], &["all"]), resource("events", "Event", &["ev"], &[])]}]}]}));
        all.add(&json!({"items": [
            {"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": [resource("deployments", "Deployment", &["deploy"], &["all"])]}]},
            {"metadata": {"name": "autoscaling"}, "versions": [
                {"version": "v2", "resources": [resource("horizontalpodautoscalers", "HorizontalPodAutoscaler", &["hpa"], &["all"])]},
                {"version": "v1", "resources": [resource("horizontalpodautoscalers", "HorizontalPodAutoscaler", &["hpa"], &["all"])]}]},
            {"metadata": {"name": "events.k8s.io"}, "versions": [{"version": "v1", "resources": [resource("events", "Event", &["ev"], &[])]}]},
        ]}));
        all
    }

    #[test]
    fn words_mean_resources() {
        let all = resources();
        for (word, name) in [
            ("po", "pods v1"),
            ("Pod", "pods v1"),
            ("deployment", "deployments.apps apps/v1"),
            ("deployments.apps", "deployments.apps apps/v1"),
            ("deploy.v1.apps", "deployments.apps apps/v1"),
            ("hpa", "horizontalpodautoscalers.autoscaling autoscaling/v2"),
            ("hpa.v1.autoscaling", "horizontalpodautoscalers.autoscaling autoscaling/v1"),
            ("events", "events v1"),
            ("events.events.k8s.io", "events.events.k8s.io events.k8s.io/v1"),
        ] {
            let found = all.resolve(word).unwrap();
            assert_eq!(format!("{} {}", found[0].full_name(), found[0].api_version()), name, "{word}");
        }
        let names: Vec<String> = all.resolve("all").unwrap().iter().map(Resource::full_name).collect();
        assert_eq!(names, ["pods", "deployments.apps", "horizontalpodautoscalers.autoscaling"]);
        assert!(all.resolve("nothing").is_none() && all.resolve("pods.apps").is_none());
    }

    #[test]
    fn names_cannot_leave_their_place() {
        let pods = resources().resolve("pods").unwrap().remove(0);
        assert_eq!(pods.path(Some("a"), Some("../b?c")), "/api/v1/namespaces/a/pods/..%2Fb%3Fc");
        assert_eq!(pods.path(None, None), "/api/v1/pods");
        assert_eq!(pods.display("x"), "pod/x");
    }
}
