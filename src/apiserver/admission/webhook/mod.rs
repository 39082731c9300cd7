//! ValidatingWebhookConfiguration and MutatingWebhookConfiguration: programs of administrators that are asked about writes.
//!
//! In: a write, and the configurations. Out: another object, warnings, or a refusal in kube-apiserver's words. Configurations are read, and
//! their conditions compiled, when they change ([`Webhooks`]); where there are none, a write pays for nothing. Nobody is asked about the
//! configurations and the policies themselves, so that an administrator can always take away what stands in his way; besides these there
//! is no exemption, as in Kubernetes.

mod call;
mod check;
mod compiled;
mod metrics;
mod mutate;
mod review;
mod validate;
mod views;

pub(super) use check::check;
pub(crate) use metrics::HookMetrics;
pub(super) use mutate::mutate;
pub(super) use validate::validate;

use compiled::Webhook;
use parking_lot::RwLock;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

const VALIDATING: &str = "validatingwebhookconfigurations";
const MUTATING: &str = "mutatingwebhookconfigurations";
/// The resources of configurations, in the group of policies.
pub(crate) const RESOURCES: [&str; 2] = [VALIDATING, MUTATING];
const MUTATING_KIND: &str = "MutatingWebhookConfiguration";

/// Whether objects of this kind are configurations of webhooks.
pub(crate) fn is_configuration(kind: &str) -> bool {
    kind.ends_with("WebhookConfiguration")
}

/// The webhooks of all configurations.
#[derive(Debug, Default)]
pub(crate) struct Set {
    /// By whether they change objects, and the configuration's name.
    configurations: BTreeMap<(bool, String), Vec<Arc<Webhook>>>,
    /// Those that change objects, in the order of the configurations' names.
    mutating: Vec<Arc<Webhook>>,
    /// Those that judge, likewise.
    validating: Vec<Arc<Webhook>>,
}

impl Set {
    /// Whether none of them changes objects.
    pub(super) fn only_judges(&self) -> bool {
        self.mutating.is_empty()
    }

    fn new(configurations: BTreeMap<(bool, String), Vec<Arc<Webhook>>>) -> Option<Arc<Self>> {
        if configurations.is_empty() {
            return None;
        }
        let of = |wanted: bool| {
            let all = configurations.iter().filter(|((is_mutating, _), _)| *is_mutating == wanted);
            all.flat_map(|(_, hooks)| hooks.iter().cloned()).collect()
        };
        let (mutating, validating) = (of(true), of(false));
        Some(Arc::new(Self { configurations, mutating, validating }))
    }
}

/// The webhooks in force.
#[derive(Debug, Default)]
pub(crate) struct Webhooks(RwLock<Option<Arc<Set>>>);

impl Webhooks {
    /// What is in force, if anything is.
    pub(crate) fn current(&self) -> Option<Arc<Set>> {
        self.0.read().clone()
    }

    /// Takes in a configuration that is new or has changed.
    pub(crate) fn upsert(&self, configuration: &Value) {
        let name = configuration["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let is_mutating = configuration["kind"] == MUTATING_KIND;
        let hooks = configuration["webhooks"].as_array().into_iter().flatten();
        let hooks = hooks.map(|hook| Arc::new(Webhook::new(&name, hook))).collect();
        self.change(|all| drop(all.insert((is_mutating, name), hooks)));
    }

    /// Forgets one.
    pub(crate) fn remove(&self, kind: &str, name: &str) {
        self.change(|all| drop(all.remove(&(kind == MUTATING_KIND, name.to_owned()))));
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<(bool, String), Vec<Arc<Webhook>>>)) {
        let mut current = self.0.write();
        let mut next = current.as_deref().map(|set| set.configurations.clone()).unwrap_or_default();
        change(&mut next);
        *current = Set::new(next);
    }
}

#[cfg(test)]
mod tests;
