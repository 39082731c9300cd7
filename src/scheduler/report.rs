//! What users read about pods that fit nowhere, in Kubernetes' words.

use crate::plugins::Refusal;
use std::collections::BTreeMap;

/// `0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.` `others` are nodes that have a reason of their own.
pub(crate) fn summary<'a>(
    nodes: usize,
    general: Option<&Refusal>,
    refusals: impl Iterator<Item = &'a Refusal>,
    others: (usize, &'static str),
) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    if let Some(refusal) = general {
        return format!("0/{nodes} nodes are available: {}.", refusal.reasons.join(", "));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in refusals.flat_map(|r| &r.reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    if others.0 > 0 {
        *counts.entry(others.1).or_default() += others.0;
    }
    let mut parts: Vec<String> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::Plugin;

    #[test]
    fn the_message_counts_reasons() {
        let refusal = |reasons: &[&'static str]| Refusal {
            plugin: Plugin::NodeResourcesFit,
            reasons: reasons.iter().map(|r| (*r).into()).collect(),
            is_final: false,
        };
        let refusals = [
            refusal(&["Insufficient cpu", "Insufficient memory"]),
            refusal(&["Insufficient cpu"]),
            refusal(&["node(s) were unschedulable"]),
        ];
        assert_eq!(
            summary(3, None, refusals.iter(), (0, "")),
            "0/3 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, 2 Insufficient cpu."
        );
        assert_eq!(summary(0, None, refusals.iter(), (0, "")), "no nodes available to schedule pods");
        assert_eq!(summary(2, Some(&refusals[1]), [].iter(), (2, "x")), "0/2 nodes are available: Insufficient cpu.");
        assert_eq!(summary(2, None, [].iter(), (2, "x")), "0/2 nodes are available: 2 x.");
    }
}
