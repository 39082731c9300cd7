//! Pods that look the same to other pods: one namespace, the same labels, the same wishes about others.
//!
//! Pods of one template make one group, so that a decision asks each selector once for a group instead of once for a pod.

use super::NodeId;
use crate::pod::{Look, PodInfo};
use crate::terms::Terms;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// How many pods of a group are on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) all: u32,
    /// Those of them that have been asked to go.
    pub(crate) going: u32,
}

/// Pods that look the same to others.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) look: Arc<Look>,
    pub(crate) terms: Option<Arc<Terms>>,
    pub(crate) places: HashMap<NodeId, Count>,
    pods: usize,
}

/// All groups.
#[derive(Default)]
pub(crate) struct Groups {
    groups: Vec<Option<Group>>,
    free: Vec<usize>,
    by_look: HashMap<Arc<Look>, usize>,
    by_namespace: HashMap<String, BTreeSet<usize>>,
    with_terms: BTreeSet<usize>,
}

impl Groups {
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_look.len()
    }

    /// All groups.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().flatten()
    }

    /// The groups of a namespace.
    pub(crate) fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Group> {
        self.by_namespace.get(namespace).into_iter().flatten().filter_map(|i| self.groups[*i].as_ref())
    }

    /// The groups whose pods have wishes about others.
    pub(crate) fn with_terms(&self) -> impl Iterator<Item = (&Group, &Terms)> {
        self.with_terms.iter().filter_map(|i| {
            let group = self.groups[*i].as_ref()?;
            Some((group, &**group.terms.as_ref()?))
        })
    }

    /// Lets a pod share with its group what is the same for all of it: there may be very many pods.
    pub(super) fn share(&self, info: &mut PodInfo) {
        let Some(group) = self.by_look.get(&info.look).and_then(|index| self.groups[*index].as_ref()) else { return };
        info.look = group.look.clone();
        info.terms = group.terms.clone();
    }

    pub(super) fn add(&mut self, info: &PodInfo, node: NodeId) -> usize {
        let index = match self.by_look.get(&info.look) {
            Some(index) => *index,
            None => self.make(info),
        };
        if let Some(group) = &mut self.groups[index] {
            group.pods += 1;
            let count = group.places.entry(node).or_default();
            count.all += 1;
            count.going += u32::from(info.is_going);
        }
        index
    }

    fn make(&mut self, info: &PodInfo) -> usize {
        let look = info.look.clone();
        let group = Group { look: look.clone(), terms: info.terms.clone(), places: HashMap::new(), pods: 0 };
        let index = self.free.pop().unwrap_or_else(|| {
            self.groups.push(None);
            self.groups.len() - 1
        });
        self.by_namespace.entry(look.namespace.clone()).or_default().insert(index);
        if group.terms.is_some() {
            self.with_terms.insert(index);
        }
        self.groups[index] = Some(group);
        self.by_look.insert(look, index);
        index
    }

    pub(super) fn remove(&mut self, index: usize, node: NodeId, going: bool) {
        let Some(group) = &mut self.groups[index] else { return };
        group.pods -= 1;
        if let Some(count) = group.places.get_mut(&node) {
            count.all -= 1;
            count.going -= u32::from(going);
            if count.all == 0 {
                group.places.remove(&node);
            }
        }
        if group.pods > 0 {
            return;
        }
        self.by_look.remove(&group.look);
        if let Some(indexes) = self.by_namespace.get_mut(&group.look.namespace) {
            indexes.remove(&index);
            if indexes.is_empty() {
                self.by_namespace.remove(&group.look.namespace);
            }
        }
        self.with_terms.remove(&index);
        self.groups[index] = None;
        self.free.push(index);
    }
}
