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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Schema;

    /// Every line is read, and describes something there is.
    #[test]
    fn every_description_has_its_place() {
        let lines = include_str!("../descriptions.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
        let Descriptions(all) = Descriptions::load();
        assert_eq!(all.len(), lines.count(), "a line is malformed or there twice");
        let types: HashMap<_, _> =
            Schema::builtin().names().map(|ty| (names::short(ty.name().unwrap_or_default()), ty)).collect();
        for key in all.keys().filter(|key| !key.starts_with("*.")) {
            let field = || {
                let (ty, field) = key.rsplit_once('.')?;
                types.get(ty)?.field(field)
            };
            assert!(types.contains_key(key) || field().is_some(), "{key} describes nothing");
        }
    }
}
