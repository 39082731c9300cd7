//! Which devices a container gets. Pure.
//!
//! What an init container had goes to the containers after it, sidecars keep theirs. After that the plugin's preference counts, then the order
//! of the names. (Kubernetes' kubelet also looks at memory nodes when its topology manager has a policy; edge has none, as its default.)

use super::held::Held;
use crate::pods::record::Kind;
use std::collections::{BTreeMap, BTreeSet};

type Ids = BTreeSet<String>;

/// A choice that is being made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) chosen: Ids,
    /// How many are still to be chosen.
    pub(super) needed: usize,
    /// From these.
    pub(super) available: Ids,
}

impl Choice {
    /// Chooses what the container gets from those before it, and finds what is there for the rest.
    ///
    /// # Errors
    /// When that is too little, in Kubernetes' words.
    pub(super) fn begin(
        resource: &str,
        number: usize,
        reusable: &Ids,
        healthy: &Ids,
        in_use: &Ids,
    ) -> Result<Self, String> {
        let chosen: Ids = reusable.intersection(healthy).take(number).cloned().collect();
        let needed = number - chosen.len();
        let available: Ids = healthy.difference(in_use).filter(|id| !chosen.contains(*id)).cloned().collect();
        if available.len() < needed {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {}",
                available.len()
            ));
        }
        Ok(Self { chosen, needed, available })
    }

    /// Chooses the rest: first what the plugin prefers.
    pub(super) fn end(mut self, preferred: &[String]) -> Ids {
        let preferred: Vec<&String> = preferred.iter().filter(|id| self.available.contains(*id)).collect();
        for id in preferred.into_iter().chain(&self.available) {
            if self.needed > 0 && self.chosen.insert(id.clone()) {
                self.needed -= 1;
            }
        }
        self.chosen
    }
}

/// What containers that come later in a pod may have again, by resource.
#[derive(Debug, Default)]
pub(super) struct Reusable(BTreeMap<String, Ids>);

impl Reusable {
    pub(super) fn of(&self, resource: &str) -> Ids {
        self.0.get(resource).cloned().unwrap_or_default()
    }

    /// Notes what a container has been given.
    pub(super) fn note(&mut self, kind: Kind, given: &BTreeMap<String, Held>) {
        for (resource, held) in given {
            let known = self.0.entry(resource.clone()).or_default();
            match kind {
                Kind::Init => known.extend(held.ids()),
                Kind::Sidecar | Kind::Main => known.retain(|id| !held.devices.contains_key(id)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn ids(names: &str) -> Ids {
        names.chars().map(String::from).collect()
    }

    fn text(ids: &Ids) -> String {
        ids.iter().map(String::as_str).collect()
    }

    fn chosen(number: usize, reusable: &str, healthy: &str, in_use: &str, preferred: &str) -> Result<String, String> {
        let choice = Choice::begin("x.io/d", number, &ids(reusable), &ids(healthy), &ids(in_use))?;
        let preferred: Vec<String> = preferred.chars().map(String::from).collect();
        Ok(text(&choice.end(&preferred)))
    }

    #[test]
    fn devices_are_chosen() {
        for (number, reusable, healthy, in_use, preferred, want) in [
            (1, "", "abc", "", "", "a"),
            (2, "", "abc", "a", "", "bc"),
            (1, "", "abc", "", "c", "c"),
            // who prefers too little, what is not there, or what others have, is not heard
            (2, "", "abc", "", "c", "ac"),
            (1, "", "abc", "c", "xc", "a"),
            (1, "", "abc", "", "cb", "c"),
            (3, "", "abc", "", "ccc", "abc"),
            // what the container before had comes first, and counts as in use for all others
            (1, "b", "abc", "b", "c", "b"),
            (2, "b", "abc", "b", "c", "bc"),
            // but not what has become unhealthy
            (1, "b", "ac", "b", "", "a"),
            (0, "b", "abc", "", "a", ""),
        ] {
            let got = chosen(number, reusable, healthy, in_use, preferred).unwrap();
            assert_eq!(got, want, "{number} of {healthy} but {in_use}, again {reusable}, preferably {preferred}");
        }
        let why = "requested number of devices unavailable for x.io/d. Requested: 2, Available: 1";
        assert_eq!(chosen(2, "", "ab", "b", "").unwrap_err(), why);
        // what is already chosen need not be available
        assert_eq!(chosen(3, "b", "ab", "b", "").unwrap_err(), why);
    }

    #[test]
    fn init_containers_pass_devices_on_and_sidecars_keep_them() {
        let given = |names: &str| {
            let devices = names.chars().map(|c| (c.to_string(), Vec::new())).collect();
            BTreeMap::from([("x.io/d".to_owned(), Held { devices, ..Held::default() })])
        };
        let mut reusable = Reusable::default();
        reusable.note(Kind::Init, &given("ab"));
        assert_eq!(text(&reusable.of("x.io/d")), "ab");
        reusable.note(Kind::Sidecar, &given("a"));
        assert_eq!(text(&reusable.of("x.io/d")), "b");
        reusable.note(Kind::Init, &given("bc"));
        assert_eq!(text(&reusable.of("x.io/d")), "bc");
        reusable.note(Kind::Main, &given("b"));
        assert_eq!(text(&reusable.of("x.io/d")), "c");
        assert!(reusable.of("x.io/e").is_empty());
    }
}
