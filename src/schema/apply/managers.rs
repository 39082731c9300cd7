//! `metadata.managedFields`: who set which fields.

use super::set::FieldSet;
use super::typed::Comparison;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// How many managers that wrote without apply are kept apart.
const MAX_UPDATE_MANAGERS: usize = 10;
/// Takes over the fields of the oldest ones when there are more.
const OLDEST: &str = "ancient-changes";

/// How a manager wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// Who wrote. For an applier the version does not count, so an upgrade of its manifests leaves it the same manager.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: Operation,
    pub(super) subresource: String,
    /// Empty for appliers.
    update_version: String,
}

impl Manager {
    pub(super) fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        Self {
            name: name.to_owned(),
            operation,
            subresource: subresource.to_owned(),
            update_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
        }
    }
}

/// As conflicts name it.
impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Value::from(self.name.as_str()))?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {}", Value::from(self.subresource.as_str()))?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.update_version)?;
        }
        Ok(())
    }
}

/// What a manager owns.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Entry {
    pub(super) fields: FieldSet,
    pub(super) api_version: String,
    /// When it last changed something (`metav1.Time`); empty when it never did.
    pub(super) time: String,
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Managers(BTreeMap<Manager, Entry>);

/// The list in an object's metadata.
pub(super) fn list_of(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

impl Managers {
    /// Reads `metadata.managedFields`; `None` when it is malformed.
    pub(super) fn decode(list: &Value) -> Option<Self> {
        let mut out = BTreeMap::new();
        for entry in list.as_array()? {
            let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            if text("fieldsType") != "FieldsV1" {
                return None;
            }
            let fields = match entry.get("fieldsV1") {
                Some(fields) => FieldSet::from_json(fields)?,
                None => FieldSet::default(),
            };
            let api_version = text("apiVersion").to_owned();
            let manager = Manager::new(text("manager"), operation, &api_version, text("subresource"));
            out.insert(manager, Entry { fields, api_version, time: text("time").to_owned() });
        }
        Some(Self(out))
    }

    /// The managers of an object; nobody when the list is absent or malformed.
    pub(super) fn of(object: &Value) -> Self {
        list_of(object).and_then(Self::decode).unwrap_or_default()
    }

    /// The list for `metadata.managedFields`, in Kubernetes' order; `None` when nobody owns anything.
    fn encode(&self) -> Option<Value> {
        let mut entries: Vec<(&Manager, &Entry)> = self.0.iter().filter(|(_, e)| !e.fields.is_empty()).collect();
        entries.sort_by_key(|(m, e)| (m.operation, &e.time, &m.name, &e.api_version, &m.subresource));
        let list: Vec<Value> = entries.into_iter().map(|(m, e)| encode_entry(m, e)).collect();
        (!list.is_empty()).then_some(Value::Array(list))
    }

    /// Writes the list into an object.
    pub(super) fn store(&self, object: &mut Value) {
        let Some(map) = object.as_object_mut() else { return };
        let metadata = edge_api::object::object_entry(map, "metadata");
        match self.encode() {
            Some(list) => metadata.insert("managedFields".into(), list),
            None => metadata.remove("managedFields"),
        };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, manager: &Manager) -> Option<&Entry> {
        self.0.get(manager)
    }

    pub(super) fn set(&mut self, manager: Manager, entry: Entry) {
        if entry.fields.is_empty() {
            self.0.remove(&manager);
        } else {
            self.0.insert(manager, entry);
        }
    }

    /// Everything that somebody owns.
    pub(super) fn all_fields(&self) -> FieldSet {
        self.0.values().fold(FieldSet::default(), |all, e| all.union(&e.fields))
    }

    /// What others than `writer` own of the fields that a write changes.
    pub(super) fn conflicts(&self, writer: &Manager, comparison: &Comparison) -> Vec<(Manager, FieldSet)> {
        let changed = comparison.changed();
        let others = self.0.iter().filter(|(m, _)| *m != writer);
        others
            .map(|(m, e)| (m.clone(), e.fields.intersection(&changed)))
            .filter(|(_, fields)| !fields.is_empty())
            .collect()
    }

    /// Takes from everybody but `writer` the fields that a write changes or removes.
    pub(super) fn disown(&mut self, writer: Option<&Manager>, comparison: &Comparison) {
        let lost = comparison.changed().union(&comparison.removed);
        for (_, entry) in self.0.iter_mut().filter(|(m, _)| Some(*m) != writer) {
            entry.fields = entry.fields.difference(&lost);
        }
        self.0.retain(|_, e| !e.fields.is_empty());
    }

    /// Merges the oldest non-appliers of a version into one when there are too many.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<(String, Manager)> = self
            .0
            .iter()
            .filter(|(m, _)| m.operation == Operation::Update)
            .map(|(m, e)| (e.time.clone(), m.clone()))
            .collect();
        updaters.sort();
        let mut count = updaters.len();
        let mut first_of_version: BTreeMap<String, Manager> = BTreeMap::new();
        for (_, manager) in updaters {
            if count <= MAX_UPDATE_MANAGERS {
                return;
            }
            let version = manager.update_version.clone();
            let bucket = Manager::new(OLDEST, Operation::Update, &version, "");
            let Some(first) = first_of_version.get(&version) else {
                first_of_version.insert(version, manager);
                continue;
            };
            if !self.0.contains_key(&bucket)
                && let Some(entry) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), entry);
            }
            if manager != bucket
                && let Some(entry) = self.0.remove(&manager)
                && let Some(all) = self.0.get_mut(&bucket)
            {
                all.fields = all.fields.union(&entry.fields);
                all.time = entry.time;
                count -= 1;
            }
        }
    }
}

fn encode_entry(manager: &Manager, entry: &Entry) -> Value {
    let operation = match manager.operation {
        Operation::Apply => "Apply",
        Operation::Update => "Update",
    };
    let mut out = Map::new();
    out.insert("manager".into(), json!(manager.name));
    out.insert("operation".into(), json!(operation));
    out.insert("apiVersion".into(), json!(entry.api_version));
    if !entry.time.is_empty() {
        out.insert("time".into(), json!(entry.time));
    }
    out.insert("fieldsType".into(), json!("FieldsV1"));
    out.insert("fieldsV1".into(), entry.fields.to_json());
    if !manager.subresource.is_empty() {
        out.insert("subresource".into(), json!(manager.subresource));
    }
    Value::Object(out)
}
