//! Which requests are told of, and how much of them: `audit.k8s.io/v1` `Policy`.

use crate::request_info::RequestInfo;
use edge_api::UserInfo;
use edge_api::field::{ErrorList, Path};
use edge_api::names;
use serde::Deserialize;
use serde_json::Value;

/// How much is told of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    #[default]
    None,
    /// Who, what and when.
    Metadata,
    /// And what was submitted.
    Request,
    /// And what was answered.
    RequestResponse,
}

const LEVELS: [(&str, Level); 4] = [
    ("None", Level::None),
    ("Metadata", Level::Metadata),
    ("Request", Level::Request),
    ("RequestResponse", Level::RequestResponse),
];

impl Level {
    pub(crate) fn name(self) -> &'static str {
        LEVELS.iter().find(|(_, level)| *level == self).map_or("", |(name, _)| name)
    }
}

/// When in a request's life an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    RequestReceived,
    /// Of requests that may go on for ever: the headers of the answer are sent.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

const STAGES: [(&str, Stage); 4] = [
    ("RequestReceived", Stage::RequestReceived),
    ("ResponseStarted", Stage::ResponseStarted),
    ("ResponseComplete", Stage::ResponseComplete),
    ("Panic", Stage::Panic),
];

impl Stage {
    pub(crate) fn name(self) -> &'static str {
        STAGES.iter().find(|(_, stage)| *stage == self).map_or("", |(name, _)| name)
    }
}

/// What the policy says about a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) level: Level,
    /// Of these no events are made.
    pub(crate) omitted: Vec<Stage>,
    pub(crate) omit_managed_fields: bool,
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is not YAML, or not of this form.
    #[error("failed decoding: {0}")]
    Decoding(#[from] serde_yaml_ng::Error),
    /// It is something else.
    #[error("unknown group version field {0} in policy")]
    Kind(String),
    /// Its rules do not make sense.
    #[error("{0}")]
    Invalid(ErrorList),
    /// It says nothing.
    #[error("loaded illegal policy with 0 rules")]
    Empty,
}

/// A policy; the first rule that matches counts.
#[derive(Debug)]
pub(crate) struct Policy {
    rules: Vec<Rule>,
    otherwise: Verdict,
}

#[derive(Debug)]
struct Rule {
    verdict: Verdict,
    matches: Matches,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Text {
    api_version: String,
    kind: String,
    rules: Vec<TextRule>,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TextRule {
    level: String,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
    #[serde(flatten)]
    matches: Matches,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Matches {
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// In kube-apiserver's words, what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, PolicyError> {
        let text: Text = serde_yaml_ng::from_str(text)?;
        if text.api_version != "audit.k8s.io/v1" || text.kind != "Policy" {
            return Err(PolicyError::Kind(format!("{}, Kind={}", text.api_version, text.kind)));
        }
        let mut errors = ErrorList::new();
        let everywhere = stages(&text.omit_stages, &Path::new("omitStages"), &mut errors);
        let otherwise =
            Verdict { level: Level::None, omitted: everywhere.clone(), omit_managed_fields: text.omit_managed_fields };
        let mut rules = Vec::new();
        for (i, rule) in text.rules.into_iter().enumerate() {
            let path = Path::new("rules").index(i);
            let level = level(&rule.level, &path.child("level"), &mut errors);
            let mut omitted = stages(&rule.omit_stages, &path.child("omitStages"), &mut errors);
            omitted.extend(&everywhere);
            rule.matches.check(&path, &mut errors);
            let omit_managed_fields = rule.omit_managed_fields.unwrap_or(text.omit_managed_fields);
            rules.push(Rule { verdict: Verdict { level, omitted, omit_managed_fields }, matches: rule.matches });
        }
        if !errors.is_empty() {
            return Err(PolicyError::Invalid(errors));
        }
        if rules.is_empty() { Err(PolicyError::Empty) } else { Ok(Self { rules, otherwise }) }
    }

    /// What it says about a request; `None`: nobody knows whose it is.
    pub(crate) fn judge(&self, user: Option<&UserInfo>, info: &RequestInfo) -> &Verdict {
        let found = self.rules.iter().find(|rule| rule.matches.is_met(user, info));
        found.map_or(&self.otherwise, |rule| &rule.verdict)
    }
}

fn level(text: &str, path: &Path, errors: &mut ErrorList) -> Level {
    match LEVELS.iter().find(|(name, _)| *name == text) {
        Some((_, level)) => return *level,
        None if text.is_empty() => errors.required(path, ""),
        None => errors.not_supported(path, &text.into(), &LEVELS.map(|(name, _)| name)),
    }
    Level::None
}

fn stages(texts: &[String], path: &Path, errors: &mut ErrorList) -> Vec<Stage> {
    let mut out = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        match STAGES.iter().find(|(name, _)| name == text) {
            Some((_, stage)) => out.push(*stage),
            None => {
                let names = STAGES.map(|(name, _)| name).join(",");
                errors.invalid(&path.index(i), &text.as_str().into(), &format!("allowed stages are {names}"));
            }
        }
    }
    out
}

impl Matches {
    fn check(&self, path: &Path, errors: &mut ErrorList) {
        let at = path.child("nonResourceURLs");
        for (i, url) in self.non_resource_urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            let at = at.index(i);
            if !url.starts_with('/') {
                errors.invalid(&at, &url.as_str().into(), "non-resource URL rules must begin with a '/' character");
            }
            if url.strip_suffix('*').unwrap_or(url).contains('*') {
                let why = "non-resource URL wildcards '*' must be the final character of the rule";
                errors.invalid(&at, &url.as_str().into(), why);
            }
        }
        let is_of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        if is_of_resources && !self.non_resource_urls.is_empty() {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.invalid(&at, &Value::from(self.non_resource_urls.clone()), why);
        }
        let at = path.child("resources");
        for of in &self.resources {
            if !of.group.is_empty()
                && of.group != "*"
                && let Err(why) = names::dns1123_subdomain(&of.group)
            {
                errors.invalid(&at.child("group"), &of.group.as_str().into(), &why);
            }
            if !of.resource_names.is_empty() && of.resources.is_empty() {
                let why = "using resourceNames requires at least one resource";
                errors.invalid(&at.child("resourceNames"), &Value::from(of.resource_names.clone()), why);
            }
        }
    }

    fn is_met(&self, user: Option<&UserInfo>, info: &RequestInfo) -> bool {
        let is_of = |all: &[String], one: &str| all.is_empty() || all.iter().any(|a| a == one);
        let of_user = user.map_or(self.users.is_empty(), |u| is_of(&self.users, &u.username));
        let of_group = self.user_groups.is_empty()
            || user.is_some_and(|u| u.groups.iter().any(|group| self.user_groups.contains(group)));
        if !of_user || !of_group || !is_of(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && is_of(&self.namespaces, &info.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.is_met(info)));
        }
        self.non_resource_urls.is_empty()
            || !info.is_resource && self.non_resource_urls.iter().any(|spec| is_path(&info.path, spec))
    }
}

fn is_path(path: &str, spec: &str) -> bool {
    spec == path || spec.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

impl GroupResources {
    fn is_met(&self, info: &RequestInfo) -> bool {
        if self.group != info.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let is_named = self.resource_names.is_empty() || self.resource_names.contains(&info.name);
        is_named && self.resources.iter().any(|of| is_resource(of, info))
    }
}

/// Whether `pods`, `pods/log`, `*`, `pods/*` or `*/scale` is what a request is about.
fn is_resource(of: &str, info: &RequestInfo) -> bool {
    match of.split_once('/') {
        None if of == "*" => true,
        None => of == info.resource && info.subresource.is_empty(),
        Some(("*", subresource)) => !info.subresource.is_empty() && subresource == info.subresource,
        // also the resource itself
        Some((resource, "*")) => resource == info.resource,
        Some((resource, subresource)) => resource == info.resource && subresource == info.subresource,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn policy(rules: &str) -> Result<Policy, String> {
        Policy::parse(&format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}")).map_err(|e| e.to_string())
    }

    fn pod(verb: &str, subresource: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            resource: "pods".into(),
            subresource: subresource.into(),
            namespace: "default".into(),
            name: "p".into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let policy = policy(
            r#"
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, users: ["system:kube-proxy"], verbs: [watch]}
- {level: RequestResponse, resources: [{group: "", resources: [pods/log, "*/scale"]}], omitManagedFields: false}
- {level: Request, resources: [{group: "", resources: [pods], resourceNames: [q]}]}
- {level: Metadata, namespaces: [default], userGroups: [dev], omitStages: [Panic]}
- {level: Metadata, nonResourceURLs: ["/healthz*", "/version"]}
"#,
        )
        .unwrap();
        let (jane, proxy) = (UserInfo::new("jane", ["dev"]), UserInfo::new("system:kube-proxy", [""]));
        let level = |user: &UserInfo, info: &RequestInfo| policy.judge(Some(user), info).level;
        assert_eq!(level(&proxy, &pod("watch", "")), Level::None);
        assert_eq!(level(&jane, &pod("get", "log")), Level::RequestResponse);
        assert!(!policy.judge(Some(&jane), &pod("get", "log")).omit_managed_fields);
        assert_eq!(level(&jane, &pod("update", "scale")), Level::RequestResponse);
        assert_eq!(level(&jane, &RequestInfo { name: "q".into(), ..pod("get", "") }), Level::Request);
        let verdict = policy.judge(Some(&jane), &pod("get", ""));
        assert_eq!((verdict.level, verdict.omit_managed_fields), (Level::Metadata, true));
        assert_eq!(verdict.omitted, [Stage::Panic, Stage::RequestReceived]);
        assert_eq!(level(&proxy, &pod("get", "")), Level::None, "no rule");
        let path = |path: &str| RequestInfo { path: path.into(), verb: "get".into(), ..RequestInfo::default() };
        assert_eq!(level(&proxy, &path("/healthz/etcd")), Level::Metadata);
        assert_eq!(level(&proxy, &path("/version/x")), Level::None);
        assert_eq!(policy.judge(None, &pod("get", "log")).level, Level::RequestResponse, "nobody may be told of, too");
        assert_eq!(policy.judge(None, &pod("get", "")).level, Level::None);
    }

    #[test]
    fn bad_policies_say_what_is_wrong() {
        assert!(Policy::parse("rules: {").unwrap_err().to_string().starts_with("failed decoding: "));
        let other = Policy::parse("apiVersion: v1\nkind: Policy\n").unwrap_err().to_string();
        assert_eq!(other, "unknown group version field v1, Kind=Policy in policy");
        for (rules, why) in [
            ("", "loaded illegal policy with 0 rules"),
            ("rules: [{}]", "rules[0].level: Required value"),
            (
                "rules: [{level: All}]",
                "rules[0].level: Unsupported value: \"All\": supported values: \"None\", \"Metadata\", \"Request\", \"RequestResponse\"",
            ),
            (
                "omitStages: [Never]\nrules: [{level: None}]",
                "omitStages[0]: Invalid value: \"Never\": allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
            ),
            ("rules: [{level: None, nonResourceURLs: [a]}]", "must begin with a '/' character"),
            ("rules: [{level: None, nonResourceURLs: ['/a*b']}]", "must be the final character of the rule"),
            (
                "rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]",
                "rules cannot apply to both regular resources and non-resource URLs",
            ),
            ("rules: [{level: None, resources: [{group: apps/v1}]}]", "rules[0].resources.group: Invalid value"),
            (
                "rules: [{level: None, resources: [{resourceNames: [a]}]}]",
                "using resourceNames requires at least one resource",
            ),
            ("rules: [{level: None, users: {}}]", "failed decoding: "),
        ] {
            let told = policy(rules).unwrap_err();
            assert!(told.contains(why), "{rules}: {told}");
        }
    }
}
