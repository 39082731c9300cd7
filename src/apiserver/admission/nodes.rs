//! `TaintNodesByCondition`: a new node gets no pods before its controller knows that it is ready.

use super::{AttributesExt, array_mut};
use edge_api::Object;
use edge_registry::Attributes;
use serde_json::json;

const TAINT: (&str, &str) = ("node.kubernetes.io/not-ready", "NoSchedule");

pub(super) fn taint_new(a: &Attributes<'_>, node: &mut Object) {
    if !a.is("", "nodes") {
        return;
    }
    let Some(taints) = array_mut(node.section_mut("spec"), "taints") else { return };
    let (key, effect) = TAINT;
    if !taints.iter().any(|t| t["key"] == key && t["effect"] == effect) {
        taints.push(json!({"key": key, "effect": effect}));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::attributes;
    use super::*;
    use edge_registry::Operation;

    #[test]
    fn new_nodes_are_tainted_once() {
        let mut node = Object::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        for _ in 0..2 {
            attributes(Operation::Create, ("", "nodes", "Node"), "", "n", |a| taint_new(a, &mut node));
        }
        assert_eq!(node.pointer("/spec/taints").unwrap(), &json!([{"key": TAINT.0, "effect": TAINT.1}]));
        let mut other = Object::from_value(json!({})).unwrap();
        attributes(Operation::Create, ("", "pods", "Pod"), "ns", "p", |a| taint_new(a, &mut other));
        assert_eq!(other.into_value(), json!({}));
    }
}
