//! Descriptions of kinds and fields, in this project's own words (`descriptions.txt`).

use std::collections::HashMap;

use super::names;

/// Descriptions by key: `core.v1.Pod` (a type), `core.v1.Pod.spec` (a field), `*.spec` (a field of any type).
pub(super) struct Descriptions(HashMap<&'static str, &'static str>);

impl Descriptions {
    /// Parses the text; a few hundred lines.
    pub(super) fn load() -> Self {
        let lines = include_str!("../descriptions.txt").lines();
        Self(lines.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(": ")).collect())
    }

    /// Of a type.
    pub(super) fn of_type(&self, name: &str) -> Option<&'static str> {
        self.0.get(names::short(name)).copied()
    }

    /// Of a field of a type.
    pub(super) fn of_field(&self, ty: &str, field: &str) -> Option<&'static str> {
        let own = self.0.get(format!("{}.{field}", names::short(ty)).as_str());
        own.or_else(|| self.0.get(format!("*.{field}").as_str())).copied()
    }

    /// Every key, for the test that each of them names something.
    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }
}
