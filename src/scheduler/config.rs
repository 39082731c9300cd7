//! The configuration of the scheduler: Kubernetes' `KubeSchedulerConfiguration`, version `kubescheduler.config.k8s.io/v1`.
//!
//! What has no meaning here (leader election, client connections, how many nodes are looked at) is read and ignored; what
//! is not known is an error.

use crate::extender::{Extender, ExtenderFile};
use crate::plugins::resources::Strategy;
use crate::plugins::{MAX_SCORE, Plugin, spread};
use crate::profile::Profile;
use crate::queue::Backoff;
use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::time::Duration;

/// Plugins that Kubernetes has and that cannot be switched off here or have no part here.
const WITHOUT_EFFECT: [&str; 5] =
    ["DefaultBinder", "GangScheduling", "NodeDeclaredFeatures", "PrioritySort", "SchedulingGates"];
/// The highest score of a point of a shape; it stands for [`MAX_SCORE`].
const MAX_SHAPE_SCORE: i64 = 10;

/// How pods are scheduled.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) profiles: Vec<Profile>,
    pub(crate) extenders: Vec<Extender>,
    pub(crate) backoff: Backoff,
}

impl Default for Config {
    /// Kubernetes' defaults.
    fn default() -> Self {
        Self { profiles: vec![Profile::default()], extenders: Vec::new(), backoff: Backoff::default() }
    }
}

/// Why a configuration is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{0}")]
    Syntax(String),
    /// A value is wrong.
    #[error("{field}: {reason}")]
    Value {
        /// Where it is.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn wrong(field: impl Into<String>, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value { field: field.into(), reason: reason.into() }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<ProfileFile>,
    #[serde(default)]
    extenders: Vec<ExtenderFile>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    percentage_of_nodes_to_score: Option<usize>,
    // what has no meaning here
    #[serde(rename = "parallelism")]
    _parallelism: Option<IgnoredAny>,
    #[serde(rename = "leaderElection")]
    _leader_election: Option<IgnoredAny>,
    #[serde(rename = "clientConnection")]
    _client_connection: Option<IgnoredAny>,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<IgnoredAny>,
    #[serde(rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<IgnoredAny>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProfileFile {
    scheduler_name: Option<String>,
    #[serde(default)]
    plugins: PluginsFile,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
    percentage_of_nodes_to_score: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginsFile {
    #[serde(default)]
    multi_point: PluginSet,
    #[serde(default)]
    filter: PluginSet,
    #[serde(default)]
    post_filter: PluginSet,
    #[serde(default)]
    score: PluginSet,
    #[serde(default)]
    pre_filter: PluginSet,
    #[serde(default)]
    pre_score: PluginSet,
    #[serde(default)]
    pre_enqueue: PluginSet,
    #[serde(default)]
    queue_sort: PluginSet,
    #[serde(default)]
    reserve: PluginSet,
    #[serde(default)]
    permit: PluginSet,
    #[serde(default)]
    pre_bind: PluginSet,
    #[serde(default)]
    bind: PluginSet,
    #[serde(default)]
    post_bind: PluginSet,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginSet {
    #[serde(default)]
    enabled: Vec<PluginEntry>,
    #[serde(default)]
    disabled: Vec<PluginEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginEntry {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResourceEntry {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ShapePoint {
    utilization: i64,
    score: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ratio {
    #[serde(default)]
    shape: Vec<ShapePoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ScoringStrategy {
    r#type: String,
    #[serde(default)]
    resources: Vec<ResourceEntry>,
    #[serde(default)]
    requested_to_capacity_ratio: Option<Ratio>,
}

/// The arguments of all plugins: each has its own fields, and those of another are refused by name.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Args {
    #[serde(rename = "apiVersion")]
    _api_version: Option<IgnoredAny>,
    #[serde(rename = "kind")]
    _kind: Option<IgnoredAny>,
    scoring_strategy: Option<ScoringStrategy>,
    ignored_resources: Option<Vec<String>>,
    ignored_resource_groups: Option<Vec<String>>,
    resources: Option<Vec<ResourceEntry>>,
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: Option<bool>,
    added_affinity: Option<NodeAffinity>,
    default_constraints: Option<Vec<TopologySpreadConstraint>>,
    defaulting_type: Option<String>,
    min_candidate_nodes_percentage: Option<usize>,
    min_candidate_nodes_absolute: Option<usize>,
    bind_timeout_seconds: Option<u64>,
    #[serde(rename = "shape")]
    _shape: Option<IgnoredAny>,
}

impl Config {
    /// Reads a configuration file's text, YAML or JSON.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = serde_yaml_ng::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        if file.api_version != "kubescheduler.config.k8s.io/v1" || file.kind != "KubeSchedulerConfiguration" {
            let found = format!("{} {}", file.api_version, file.kind);
            return Err(wrong(
                "apiVersion",
                format!("expected kubescheduler.config.k8s.io/v1 KubeSchedulerConfiguration, found {found}"),
            ));
        }
        let percent = percentage(file.percentage_of_nodes_to_score, "percentageOfNodesToScore")?;
        let mut profiles = Vec::new();
        for (i, profile) in file.profiles.into_iter().enumerate() {
            let at = format!("profiles[{i}]");
            let own = percentage(profile.percentage_of_nodes_to_score, &format!("{at}.percentageOfNodesToScore"))?;
            let mut profile = profile_of(profile, &at)?;
            profile.percentage = own.or(percent);
            if profiles.iter().any(|p: &Profile| p.name == profile.name) {
                return Err(wrong(at, format!("scheduler name {:?} is there twice", profile.name)));
            }
            profiles.push(profile);
        }
        if profiles.is_empty() {
            profiles.push(Profile { percentage: percent, ..Profile::default() });
        }
        let defaults = Backoff::default();
        let seconds = |n: Option<u64>, or| n.map_or(or, Duration::from_secs);
        let backoff = Backoff {
            initial: seconds(file.pod_initial_backoff_seconds, defaults.initial),
            longest: seconds(file.pod_max_backoff_seconds, defaults.longest),
        };
        if backoff.initial.is_zero() || backoff.longest < backoff.initial {
            let reason = "expected 0 < podInitialBackoffSeconds <= podMaxBackoffSeconds";
            return Err(wrong("podMaxBackoffSeconds", reason));
        }
        let counted_elsewhere: Vec<String> = file.extenders.iter().flat_map(ExtenderFile::counts_itself).collect();
        for profile in &mut profiles {
            profile.resources.ignored.extend_from_slice(&counted_elsewhere);
        }
        let extenders = file
            .extenders
            .into_iter()
            .enumerate()
            .map(|(i, e)| Extender::new(e).map_err(|reason| wrong(format!("extenders[{i}]"), reason)));
        Ok(Self { profiles, extenders: extenders.collect::<Result<_, _>>()?, backoff })
    }
}

/// A part of the nodes; none, as 0 is, leaves it to the scheduler.
fn percentage(given: Option<usize>, at: &str) -> Result<Option<usize>, ConfigError> {
    match given {
        Some(over) if over > 100 => Err(wrong(at, format!("not in valid range [0-100]: {over}"))),
        other => Ok(other.filter(|percent| *percent > 0)),
    }
}

/// A plugin by name; `None`: one that has no part here.
fn plugin(name: &str, at: &str) -> Result<Option<Plugin>, ConfigError> {
    match Plugin::named(name) {
        Some(plugin) => Ok(Some(plugin)),
        None if WITHOUT_EFFECT.contains(&name) => Ok(None),
        None => Err(wrong(at, format!("there is no plugin {name:?}"))),
    }
}

fn profile_of(file: ProfileFile, at: &str) -> Result<Profile, ConfigError> {
    let mut out = Profile { name: file.scheduler_name.unwrap_or_else(|| crate::NAME.into()), ..Profile::default() };
    let p = &file.plugins;
    let silent =
        [&p.pre_filter, &p.pre_score, &p.pre_enqueue, &p.queue_sort, &p.reserve, &p.permit, &p.pre_bind, &p.bind];
    for entry in silent.into_iter().chain([&p.post_bind]).flat_map(|s| s.enabled.iter().chain(&s.disabled)) {
        if entry.name != "*" {
            plugin(&entry.name, at)?;
        }
    }
    for (set, filters, scores, makes_room) in [
        (&p.multi_point, true, true, true),
        (&p.filter, true, false, false),
        (&p.score, false, true, false),
        (&p.post_filter, false, false, true),
    ] {
        switch(&mut out, set, at, (filters, scores, makes_room))?;
    }
    for config in file.plugin_config {
        let at = format!("{at}.pluginConfig[{}]", config.name);
        let Some(plugin) = plugin(&config.name, &at)? else { continue };
        let args: Args =
            if config.args.is_null() { serde_json::from_str("{}") } else { serde_json::from_value(config.args) }
                .map_err(|e| wrong(&at, e.to_string()))?;
        configure(&mut out, plugin, args, &at)?;
    }
    Ok(out)
}

/// Switches plugins off and on, where they filter, score, or make room.
fn switch(out: &mut Profile, set: &PluginSet, at: &str, places: (bool, bool, bool)) -> Result<(), ConfigError> {
    let (filters, scores, makes_room) = places;
    for entry in &set.disabled {
        let all = entry.name == "*";
        let named = if all { None } else { plugin(&entry.name, at)? };
        let is_meant = |p: Plugin| all || named == Some(p);
        if filters {
            for (_, p) in Plugin::NAMED.iter().filter(|(_, p)| is_meant(*p)) {
                out.filters = out.filters.without(*p);
            }
        }
        if scores {
            out.weights.retain(|(p, _)| !is_meant(*p));
        }
        if makes_room && is_meant(Plugin::DefaultPreemption) {
            out.preempts = false;
        }
    }
    for entry in &set.enabled {
        let Some(p) = plugin(&entry.name, at)? else { continue };
        if !(0..=MAX_SCORE).contains(&entry.weight) {
            return Err(wrong(at, format!("weight of {}: expected 0 to {MAX_SCORE}", entry.name)));
        }
        if filters {
            out.filters = out.filters.with(p);
        }
        if scores {
            let known = out.weights.iter().find(|(known, _)| *known == p).map(|(_, weight)| *weight);
            out.weights.retain(|(known, _)| *known != p);
            let weight = if entry.weight > 0 { entry.weight } else { known.unwrap_or(1) };
            out.weights.push((p, weight));
        }
        if makes_room && p == Plugin::DefaultPreemption {
            out.preempts = true;
        }
    }
    Ok(())
}

fn configure(out: &mut Profile, plugin: Plugin, args: Args, at: &str) -> Result<(), ConfigError> {
    match plugin {
        Plugin::NodeResourcesFit => {
            out.resources.ignored = args.ignored_resources.unwrap_or_default();
            out.resources.ignored_groups = args.ignored_resource_groups.unwrap_or_default();
            if let Some(strategy) = args.scoring_strategy {
                if !strategy.resources.is_empty() {
                    out.resources.weights =
                        strategy.resources.iter().map(|r| (r.name.clone(), r.weight.max(1))).collect();
                }
                out.resources.strategy = strategy_of(strategy, at)?;
            }
        }
        Plugin::NodeResourcesBalancedAllocation => {
            if let Some(resources) = args.resources {
                out.resources.balanced = resources.into_iter().map(|r| r.name).collect();
            }
        }
        Plugin::InterPodAffinity => {
            out.near.hard_weight = args.hard_pod_affinity_weight.unwrap_or(1);
            out.near.only_own = args.ignore_preferred_terms_of_existing_pods.unwrap_or(false);
            if !(0..=MAX_SCORE).contains(&out.near.hard_weight) {
                return Err(wrong(at, format!("hardPodAffinityWeight: expected 0 to {MAX_SCORE}")));
            }
        }
        Plugin::NodeAffinity => out.added_affinity = args.added_affinity,
        Plugin::PodTopologySpread => {
            let list = args.default_constraints.unwrap_or_default();
            out.spread = match args.defaulting_type.as_deref().unwrap_or("List") {
                "System" if list.is_empty() => spread::Defaults::System,
                "System" => return Err(wrong(at, "defaultConstraints: expected none when defaultingType is System")),
                "List" => spread::Defaults::List(list),
                other => return Err(wrong(at, format!("defaultingType: expected System or List, found {other:?}"))),
            };
        }
        Plugin::DefaultPreemption => {
            let (percent, least) = out.candidates;
            out.candidates = (
                args.min_candidate_nodes_percentage.unwrap_or(percent),
                args.min_candidate_nodes_absolute.unwrap_or(least),
            );
            if out.candidates.0 > 100 || out.candidates == (0, 0) {
                return Err(wrong(at, "minCandidateNodesPercentage: expected 0 to 100, and not both of them 0"));
            }
        }
        Plugin::VolumeBinding => {
            if let Some(seconds) = args.bind_timeout_seconds {
                out.bind_timeout = Duration::from_secs(seconds);
            }
        }
        _ => {}
    }
    Ok(())
}

fn strategy_of(strategy: ScoringStrategy, at: &str) -> Result<Strategy, ConfigError> {
    match strategy.r#type.as_str() {
        "LeastAllocated" => Ok(Strategy::LeastAllocated),
        "MostAllocated" => Ok(Strategy::MostAllocated),
        "RequestedToCapacityRatio" => {
            let shape = strategy.requested_to_capacity_ratio.unwrap_or_default().shape;
            let rises = shape.windows(2).all(|w| matches!(w, [a, b] if a.utilization < b.utilization));
            let within =
                |p: &ShapePoint| (0..=100).contains(&p.utilization) && (0..=MAX_SHAPE_SCORE).contains(&p.score);
            if shape.is_empty() || !rises || !shape.iter().all(within) {
                let reason = "shape: expected points of rising utilization (0 to 100) with scores (0 to 10)";
                return Err(wrong(at, reason));
            }
            let scaled = shape.iter().map(|p| (p.utilization, p.score * MAX_SCORE / MAX_SHAPE_SCORE));
            Ok(Strategy::RequestedToCapacityRatio(scaled.collect()))
        }
        other => Err(wrong(at, format!("scoringStrategy.type: there is no {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(profile: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
             leaderElection: {{leaderElect: false}}\nprofiles:\n- {profile}"
        ))
    }

    fn only(profile: &str) -> Profile {
        parse(profile).unwrap().profiles.remove(0)
    }

    #[test]
    fn an_empty_one_is_the_default() {
        let config = parse("{}").unwrap();
        assert_eq!(config.profiles, [Profile::default()]);
        assert_eq!(config.backoff, Backoff::default());
    }

    #[test]
    fn a_part_of_the_nodes_for_all_and_for_one() {
        let text = "{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, percentageOfNodesToScore: 30, \
            profiles: [{schedulerName: a}, {schedulerName: b, percentageOfNodesToScore: 70}, {schedulerName: c, percentageOfNodesToScore: 0}]}";
        let percentages = |c: Config| c.profiles.iter().map(|p| p.percentage).collect::<Vec<_>>();
        assert_eq!(percentages(Config::parse(text).unwrap()), [Some(30), Some(70), Some(30)]);
        let error = Config::parse(&text.replace("30", "101")).unwrap_err().to_string();
        assert!(error.contains("percentageOfNodesToScore") && error.contains("not in valid range [0-100]"), "{error}");
    }

    #[test]
    fn plugins_are_switched() {
        let p = only(
            "{schedulerName: packer, plugins: {score: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit, weight: 5}]}, \
             filter: {disabled: [{name: NodePorts}]}, postFilter: {disabled: [{name: DefaultPreemption}]}, \
             multiPoint: {enabled: [{name: DefaultBinder}]}}}",
        );
        assert_eq!(p.weights, [(Plugin::NodeResourcesFit, 5)]);
        assert!(!p.filters.has(Plugin::NodePorts) && p.filters.has(Plugin::NodeResourcesFit) && !p.preempts);
        assert_eq!(p.name, "packer");
        let heavier = only("{plugins: {multiPoint: {enabled: [{name: ImageLocality, weight: 7}]}}}");
        assert!(heavier.weights.contains(&(Plugin::ImageLocality, 7)) && heavier.weights.len() == 8);
    }

    #[test]
    fn arguments() {
        let p = only(
            "{pluginConfig: [
                {name: NodeResourcesFit, args: {ignoredResourceGroups: [x.y], scoringStrategy: {type: RequestedToCapacityRatio,
                   resources: [{name: cpu, weight: 3}], requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}}}},
                {name: InterPodAffinity, args: {hardPodAffinityWeight: 9}},
                {name: NodeAffinity, args: {addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}},
                {name: PodTopologySpread, args: {defaultingType: List, defaultConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]}},
                {name: VolumeBinding, args: {bindTimeoutSeconds: 5}}]}",
        );
        assert_eq!(p.resources.strategy, Strategy::RequestedToCapacityRatio(vec![(0, 0), (100, 100)]));
        assert_eq!((p.resources.weights, p.near.hard_weight), (vec![("cpu".to_owned(), 3)], 9));
        assert!(p.added_affinity.is_some() && matches!(p.spread, spread::Defaults::List(list) if list.len() == 1));
        assert_eq!(p.bind_timeout, Duration::from_secs(5));
    }

    #[test]
    fn what_an_extender_counts_nobody_else_does() {
        let text = "{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, extenders: [{urlPrefix: 'http://x', \
            managedResources: [{name: a/x, ignoredByScheduler: true}, {name: a/y}]}]}";
        let config = Config::parse(text).unwrap();
        assert!(config.profiles.iter().all(|p| p.resources.ignored == ["a/x"]) && config.profiles.len() == 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (profile, want) in [
            ("{plugins: {filter: {disabled: [{name: NodePort}]}}}", "profiles[0]: there is no plugin \"NodePort\""),
            (
                "{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: Best}}}]}",
                "there is no \"Best\"",
            ),
            ("{pluginConfig: [{name: NodeResourcesFit, args: {ignored: [x]}}]}", "unknown field `ignored`"),
            ("{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 101}}]}", "expected 0 to 100"),
            ("{name: x}", "unknown field `name`"),
            ("{schedulerName: a}\n- {schedulerName: a}", "profiles[1]: scheduler name \"a\" is there twice"),
        ] {
            let error = parse(profile).unwrap_err().to_string();
            assert!(error.contains(want), "{profile}: {error}");
        }
        let other = Config::parse("{apiVersion: v1, kind: Pod}").unwrap_err().to_string();
        assert!(other.contains("found v1 Pod"), "{other}");
    }
}
