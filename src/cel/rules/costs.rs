//! What the rules of a schema cost at worst, each and all together.

use super::sizes;
use crate::estimate::Size;
use edge_api::field::{ErrorList, Path};
use serde_json::Value;

/// What one expression may cost at worst, as often as it may be asked for one object (Kubernetes' `StaticEstimatedCostLimit`).
const EACH: u64 = 10_000_000;
/// What all of a schema may cost (`StaticEstimatedCRDCostLimit`).
const ALL: u64 = 100_000_000;
/// So many of the most expensive are named.
const NAMED: usize = 4;

/// What has been reckoned so far.
pub(super) struct Costs {
    /// Whether each expression is judged by itself, too.
    pub(super) each: bool,
    total: u64,
    most: Vec<(Path, u64)>,
}

/// Where a part of a schema is, as costs go.
#[derive(Clone, Copy)]
pub(super) struct Place<'s> {
    pub(super) size: Option<&'s Size>,
    /// How many of its kind an object may have; `None`: as many as there is room for.
    pub(super) count: Option<u64>,
}

impl Place<'_> {
    /// What an expression here costs, asked as often as possible.
    pub(super) fn all(&self, cost: u64) -> u64 {
        let shortest = self.size.map_or(2, |size| size.shortest);
        cost.saturating_mul(self.count.unwrap_or_else(|| sizes::cardinality(shortest)))
    }

    /// How many parts below it there may be.
    pub(super) fn below(&self, schema: &Value) -> Option<u64> {
        let each = match schema["type"].as_str() {
            Some("object") if !schema["additionalProperties"].is_null() => sizes::limit(schema, "maxProperties")?,
            Some("array") => sizes::limit(schema, "maxItems")?,
            _ => 1,
        };
        Some(self.count?.saturating_mul(each))
    }
}

/// By what a cost exceeds what there is.
fn too_much(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

impl Costs {
    pub(super) fn new(each: bool) -> Self {
        Self { each, total: 0, most: Vec::new() }
    }

    /// Reckons with an expression.
    pub(super) fn add(&mut self, what: &str, path: &Path, cost: u64, errors: &mut ErrorList) {
        if self.each && cost > EACH {
            errors.forbidden(path, &too_much(&format!("estimated {what} cost"), cost, EACH));
        }
        self.total = self.total.saturating_add(cost);
        // what is small is not to blame
        if cost >= ALL / 100 {
            self.most.push((path.clone(), cost));
            self.most.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            self.most.truncate(NAMED);
        }
    }

    /// Judges all of them together; `path` is the schema's.
    pub(super) fn finish(self, path: &Path, errors: &mut ErrorList) {
        if self.total <= ALL {
            return;
        }
        for (path, _) in &self.most {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.forbidden(path, why);
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(path, &too_much(what, self.total, ALL));
    }
}
