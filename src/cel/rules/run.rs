//! What an object breaks.

use super::{Below, Items, Node, Rule, Rules, SELF};
use crate::budget::Budget;
use crate::error::Error;
use crate::value::Value;
use edge_api::field::{ErrorKind, ErrorList, Path};
use serde_json::Value as Json;
use std::collections::HashMap;
use std::sync::Arc;

/// A message that an expression makes is not longer than this, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

impl Rules {
    /// What is wrong with an object; `old` is what was there before. Parts that have not changed are not judged again, but by rules that
    /// compare.
    pub fn validate(&self, value: &Json, old: Option<&Json>) -> ErrorList {
        let mut run = Run { budget: Budget::default(), errors: ErrorList::new() };
        // an empty budget ends it, and has been told
        let _ = run.node(&self.root, value, old, &Path::root());
        run.errors
    }
}

struct Run {
    budget: Budget,
    errors: ErrorList,
}

/// Nothing more is to be judged.
struct Spent;

impl Run {
    fn node(&mut self, node: &Node, value: &Json, old: Option<&Json>, path: &Path) -> Result<(), Spent> {
        if value.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        let is_new = old != Some(value);
        for rule in &node.rules {
            let is_due = if rule.is_transition { old.is_some() || rule.optional_old } else { is_new };
            if is_due {
                self.rule(node, rule, value, old, path)?;
            }
        }
        match (&node.below, value) {
            (Below::Fields(fields, others), Json::Object(values)) => {
                let before = |name: &str| old.and_then(|o| o.get(name));
                for (name, node) in fields {
                    if let Some(value) = values.get(name) {
                        self.node(node, value, before(name), &path.child(name))?;
                    }
                }
                let Some(node) = others else { return Ok(()) };
                for (name, value) in values.iter().filter(|(name, _)| fields.iter().all(|(f, _)| f != *name)) {
                    self.node(node, value, before(name), &path.key(name))?;
                }
                Ok(())
            }
            (Below::Items(node, items), Json::Array(values)) => {
                let earlier = Earlier::new(items, old);
                for (i, value) in values.iter().enumerate() {
                    self.node(node, value, earlier.find(value), &path.index(i))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn rule(&mut self, node: &Node, rule: &Rule, value: &Json, old: Option<&Json>, path: &Path) -> Result<(), Spent> {
        let get = |place: usize, _: &mut Budget| {
            let before = || old.map(|o| Value::from_json(o, &node.ty));
            Ok(match (place, rule.optional_old) {
                (SELF, _) => Value::from_json(value, &node.ty),
                (_, true) => Value::Optional(before().map(Arc::new)),
                (_, false) => before().unwrap_or(Value::Null),
            })
        };
        let at = rule.field_path.iter().fold(path.clone(), |path, name| path.child(name));
        let source = rule.program.source().trim();
        match rule.program.run(&get, &mut self.budget) {
            Ok(Value::Bool(true)) => Ok(()),
            Ok(_) => {
                let made = rule.message_expression.as_ref().and_then(|program| {
                    let made = program.run(&get, &mut self.budget).ok()?;
                    let text = made.as_str()?.trim().to_owned();
                    (!text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n')).then_some(text)
                });
                let given =
                    || if rule.message.is_empty() { format!("failed rule: {source}") } else { rule.message.clone() };
                self.error(node, rule.kind, &at, &made.unwrap_or_else(given));
                Ok(())
            }
            Err(error @ Error::BudgetSpent) => {
                self.error(node, ErrorKind::Invalid, path, &error.to_string());
                Err(Spent)
            }
            Err(Error::TooExpensive) => {
                self.error(node, ErrorKind::Invalid, path, &format!("call cost exceeds limit for rule: {source}"));
                Ok(())
            }
            Err(error) => {
                self.error(node, ErrorKind::Invalid, path, &format!("{error} evaluating rule: {source}"));
                Ok(())
            }
        }
    }

    fn error(&mut self, node: &Node, kind: ErrorKind, path: &Path, message: &str) {
        match kind {
            ErrorKind::Forbidden => self.errors.forbidden(path, message),
            ErrorKind::Required => self.errors.required(path, message),
            ErrorKind::Duplicate => self.errors.duplicate(path, &node.name.into()),
            _ => self.errors.invalid(path, &node.name.into(), message),
        }
    }
}

/// The items of an older list, to be found again.
enum Earlier<'v> {
    Nothing,
    Set(&'v [Json]),
    Map(&'v [String], HashMap<String, &'v Json>),
}

/// What tells an item of a list from others.
fn identity(keys: &[String], item: &Json) -> String {
    let parts: Vec<&Json> = keys.iter().map(|key| &item[key]).collect();
    serde_json::to_string(&parts).unwrap_or_default()
}

impl<'v> Earlier<'v> {
    fn new(items: &'v Items, old: Option<&'v Json>) -> Self {
        match (items, old.and_then(Json::as_array)) {
            (Items::Set, Some(old)) => Self::Set(old),
            (Items::Map(keys), Some(old)) => {
                Self::Map(keys, old.iter().map(|item| (identity(keys, item), item)).collect())
            }
            _ => Self::Nothing,
        }
    }

    fn find(&self, item: &Json) -> Option<&'v Json> {
        match self {
            Self::Nothing => None,
            Self::Set(old) => old.iter().find(|o| *o == item),
            Self::Map(keys, old) => old.get(&identity(keys, item)).copied(),
        }
    }
}
