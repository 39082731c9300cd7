//! Which of the names that a definition wants it gets; pure.

use edge_api::Object;
use edge_registry::custom::Names;
use edge_registry::strategy::definition::set_condition;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// What of a definition is needed to follow it; its schemas are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    uid: String,
    deletion_timestamp: Option<String>,
    finalizers: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Spec {
    group: String,
    names: Names,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    accepted_names: Names,
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// Names that are in use in a group.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) resources: BTreeSet<String>,
    pub(super) kinds: BTreeSet<String>,
}

impl Taken {
    pub(super) fn add(&mut self, names: &Names) {
        self.resources.extend([names.plural.clone(), names.singular.clone()]);
        self.resources.extend(names.short_names.iter().cloned());
        self.kinds.extend([names.kind.clone(), names.list_kind.clone()]);
    }
}

/// What becomes of a definition's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    accepted: Names,
    /// Why not all names are accepted: reason and message.
    conflict: Option<(&'static str, String)>,
    /// Whether it is served, from now on or already.
    established: bool,
}

impl Head {
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    pub(super) fn uid(&self) -> &str {
        &self.metadata.uid
    }

    pub(super) fn group(&self) -> &str {
        &self.spec.group
    }

    pub(super) fn accepted(&self) -> &Names {
        &self.status.accepted_names
    }

    pub(super) fn has_all_names(&self) -> bool {
        self.spec.names == self.status.accepted_names
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn has_finalizer(&self, name: &str) -> bool {
        self.metadata.finalizers.iter().flatten().any(|f| f == name)
    }

    /// Its names are these from now on.
    pub(super) fn accept(&mut self, judgement: Judgement) {
        self.status.accepted_names = judgement.accepted;
    }

    fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().flatten().find(|c| c.kind == kind)
    }

    fn is(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| c.status == "True")
    }

    /// What has to change, if anything does.
    pub(super) fn judged(&self, taken: &Taken) -> Option<Judgement> {
        let (wanted, has) = (&self.spec.names, &self.status.accepted_names);
        let mut accepted = has.clone();
        let mut conflict = None;
        {
            let mut settle = |wanted: &str, has: &mut String, taken: &BTreeSet<String>, reason: &'static str| {
                if wanted != has.as_str() && taken.contains(wanted) {
                    conflict = Some((reason, format!("{wanted:?} is already in use")));
                } else {
                    wanted.clone_into(has);
                }
            };
            settle(&wanted.plural, &mut accepted.plural, &taken.resources, "PluralConflict");
            settle(&wanted.singular, &mut accepted.singular, &taken.resources, "SingularConflict");
            settle(&wanted.kind, &mut accepted.kind, &taken.kinds, "KindConflict");
            settle(&wanted.list_kind, &mut accepted.list_kind, &taken.kinds, "ListKindConflict");
        }
        let is_taken = |name: &&String| taken.resources.contains(*name) && !has.short_names.contains(name);
        let short: Vec<String> =
            wanted.short_names.iter().filter(is_taken).map(|name| format!("{name:?} is already in use")).collect();
        if short.is_empty() {
            accepted.short_names.clone_from(&wanted.short_names);
        } else {
            let all = if short.len() == 1 { short.concat() } else { format!("[{}]", short.join(", ")) };
            conflict = conflict.or(Some(("ShortNamesConflict", all)));
        }
        accepted.categories.clone_from(&wanted.categories);
        let established = self.is("Established") || conflict.is_none();
        let judgement = Judgement { accepted, conflict, established };
        let is_so = judgement.accepted == *has
            && judgement.established == self.is("Established")
            && self.condition("Established").is_some()
            && self.condition("NamesAccepted").is_some_and(|c| {
                judgement.names_condition() == (c.status == "True", c.reason.as_str(), c.message.as_str())
            });
        (!is_so).then_some(judgement)
    }
}

impl Judgement {
    /// Status, reason and message of `NamesAccepted`.
    fn names_condition(&self) -> (bool, &str, &str) {
        match &self.conflict {
            None => (true, "NoConflicts", "no conflicts found"),
            Some((reason, message)) => (false, reason, message),
        }
    }

    /// Writes it into the definition.
    pub(super) fn write(&self, definition: &mut Object) {
        let names = &self.accepted;
        let mut accepted = Map::new();
        for (field, name) in [
            ("plural", &names.plural),
            ("singular", &names.singular),
            ("kind", &names.kind),
            ("listKind", &names.list_kind),
        ] {
            if !name.is_empty() || matches!(field, "plural" | "kind") {
                accepted.insert(field.into(), name.as_str().into());
            }
        }
        for (field, list) in [("shortNames", &names.short_names), ("categories", &names.categories)] {
            if !list.is_empty() {
                accepted.insert(field.into(), Value::from(list.clone()));
            }
        }
        definition.section_mut("status").insert("acceptedNames".into(), accepted.into());
        let (status, reason, message) = self.names_condition();
        set_condition(definition, "NamesAccepted", status, reason, message);
        if self.established {
            let message = "the initial names have been accepted";
            set_condition(definition, "Established", true, "InitialNamesAccepted", message);
        } else {
            set_condition(definition, "Established", false, "NotAccepted", "not all names are accepted");
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn definition() -> Object {
        Object::from_value(json!({"metadata": {"name": "foos.a.b"}, "spec": {"group": "a.b",
            "names": {"plural": "foos", "singular": "foo", "shortNames": ["f"], "kind": "Foo", "listKind": "FooList"}}}))
        .unwrap()
    }

    fn head(object: &Object) -> Head {
        Head::read(&object.to_json()).unwrap()
    }

    #[test]
    fn free_names_are_accepted_and_then_nothing_is_left_to_do() {
        let mut object = definition();
        head(&object).judged(&Taken::default()).unwrap().write(&mut object);
        let status = &object.pointer("/status").unwrap();
        assert_eq!(
            status["acceptedNames"],
            json!({"plural": "foos", "singular": "foo", "shortNames": ["f"], "kind": "Foo", "listKind": "FooList"})
        );
        assert_eq!(
            (&status["conditions"][0]["type"], &status["conditions"][0]["reason"]),
            (&json!("NamesAccepted"), &json!("NoConflicts"))
        );
        assert_eq!(
            (&status["conditions"][1]["type"], &status["conditions"][1]["status"]),
            (&json!("Established"), &json!("True"))
        );
        assert!(head(&object).judged(&Taken::default()).is_none());
        assert!(head(&object).has_all_names());
    }

    #[test]
    fn taken_names_are_not() {
        for (taken, reason, says) in [
            (vec!["foos"], "PluralConflict", "\"foos\" is already in use"),
            (vec!["foo"], "SingularConflict", "\"foo\" is already in use"),
            (vec!["f"], "ShortNamesConflict", "\"f\" is already in use"),
            (vec!["Foo"], "KindConflict", "\"Foo\" is already in use"),
            (vec!["FooList"], "ListKindConflict", "\"FooList\" is already in use"),
        ] {
            let names = || taken.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
            let taken = Taken { resources: names(), kinds: names() };
            let mut object = definition();
            head(&object).judged(&taken).unwrap().write(&mut object);
            let conditions = object.pointer("/status/conditions").unwrap();
            assert_eq!(
                (&conditions[0]["status"], &conditions[0]["reason"], &conditions[0]["message"]),
                (&json!("False"), &json!(reason), &json!(says))
            );
            assert_eq!((&conditions[1]["status"], &conditions[1]["reason"]), (&json!("False"), &json!("NotAccepted")));
            assert!(head(&object).judged(&taken).is_none(), "nothing more to say");
            assert!(head(&object).judged(&Taken::default()).is_some(), "the names have become free");
        }
    }

    #[test]
    fn who_is_established_stays_so_and_keeps_the_names_that_it_had() {
        let mut object = definition();
        head(&object).judged(&Taken::default()).unwrap().write(&mut object);
        edge_api::object::object_entry(object.section_mut("spec"), "names").insert("kind".into(), "Bar".into());
        let taken = Taken { resources: BTreeSet::new(), kinds: ["Bar".to_owned()].into() };
        let judgement = head(&object).judged(&taken).unwrap();
        assert!(judgement.established && judgement.accepted.kind == "Foo" && judgement.conflict.is_some());
    }
}
