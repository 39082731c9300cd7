//! Server-side tables: columns as data, computed cells as named functions.

mod autoscalers;
mod cells;
mod table;

use crate::conversion::Conversion;
use crate::resource::{ResourceInfo, Text};
use crate::stored::Stored;
use edge_api::Object;
use edge_api::jsonpath::{self, Template};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub(crate) use table::of;

/// What a cell shows.
#[derive(Clone, Debug)]
pub enum Cell {
    /// The value at a JSON pointer.
    Pointer(Text),
    /// The time since the timestamp at a JSON pointer, as kubectl writes durations.
    Age(Text),
    /// Computed.
    Computed(fn(&Object) -> Value),
    /// What a path of a custom resource's definition leads to.
    Path(Template),
    /// Nothing.
    Nothing,
}

/// A column of a table.
#[derive(Clone, Debug)]
pub struct Column {
    /// Heading.
    pub name: Text,
    /// OpenAPI type: `string`, `integer`, `number`, `boolean`, `date`.
    pub kind: Text,
    /// OpenAPI format; `name` marks the name column.
    pub format: Text,
    /// One line for people.
    pub description: Text,
    /// Zero: always shown; one: with `-o wide`.
    pub priority: i32,
    /// Content.
    pub cell: Cell,
}

/// What the rows of a table carry besides their cells (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// The metadata (`PartialObjectMetadata`).
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// The age, which custom resources have when their definition names no columns.
pub(crate) fn custom_age() -> Column {
    Column {
        name: "Age".into(),
        kind: "date".into(),
        format: "".into(),
        description: "Time since it came into being.".into(),
        priority: 0,
        cell: Cell::Age("/metadata/creationTimestamp".into()),
    }
}

/// The `columnDefinitions` of a resource's table, beginning with `Name`.
pub fn definitions(info: &ResourceInfo) -> Value {
    let name = json!({"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "Name of the object, unique within its namespace."});
    let others = info.columns.iter().map(|c| {
        json!({"name": c.name, "type": c.kind, "format": c.format, "priority": c.priority, "description": c.description})
    });
    std::iter::once(name).chain(others).collect()
}

/// The rows of a table. Objects that cannot be read give a row with their name only.
pub fn rows(info: &ResourceInfo, objects: &[Stored], include: IncludeObject) -> Vec<Value> {
    let now = Timestamp::now();
    objects.iter().map(|stored| row(info, stored, include, now)).collect()
}

/// The rows of a table of objects that are not stored.
pub fn rows_of_objects(info: &ResourceInfo, objects: Vec<Object>, include: IncludeObject) -> Vec<Value> {
    let now = Timestamp::now();
    let of = |object: Object| {
        let name = object.name().to_owned();
        object_row(info, &name, object, include, now)
    };
    objects.into_iter().map(of).collect()
}

fn row(info: &ResourceInfo, stored: &Stored, include: IncludeObject, now: Timestamp) -> Value {
    object_row(info, stored.name(), stored.object().unwrap_or_default(), include, now)
}

fn object_row(info: &ResourceInfo, name: &str, mut object: Object, include: IncludeObject, now: Timestamp) -> Value {
    // the class that claims get which name none
    let default = object.annotation("storageclass.kubernetes.io/is-default-class") == Some("true");
    let mut cells: Vec<Value> = vec![if default { format!("{name} (default)").into() } else { name.into() }];
    // for the paths of custom columns
    let tree = info.custom.as_ref().map(|_| Value::Object(object.fields().clone()));
    cells.extend(info.columns.iter().map(|c| cell(c, &object, tree.as_ref(), now)));
    // those of custom resources come in the served version
    if let Some(Conversion::BuiltIn(functions)) = &info.conversion {
        (functions.from_stored)(&mut object);
    }
    let carried = match include {
        IncludeObject::None => None,
        IncludeObject::Object => Some(object.into_value()),
        IncludeObject::Metadata => {
            let meta = object.metadata().cloned().unwrap_or_default();
            Some(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta}))
        }
    };
    let mut row = Map::from_iter([("cells".to_owned(), Value::from(cells))]);
    if let Some(object) = carried {
        row.insert("object".into(), object);
    }
    row.into()
}

fn cell(column: &Column, object: &Object, tree: Option<&Value>, now: Timestamp) -> Value {
    match &column.cell {
        Cell::Nothing => Value::Null,
        Cell::Path(path) => tree.map_or(Value::Null, |tree| found(column, path, tree, now)),
        Cell::Computed(f) => f(object),
        Cell::Age(pointer) => age(object.pointer(pointer), now).into(),
        Cell::Pointer(pointer) => match object.pointer(pointer) {
            None | Some(Value::Null) if column.kind == "integer" => 0.into(),
            None | Some(Value::Null) => "<none>".into(),
            Some(Value::String(text)) if text.is_empty() => "<none>".into(),
            Some(scalar @ (Value::String(_) | Value::Number(_))) => scalar.clone(),
            Some(Value::Bool(b)) => b.to_string().into(),
            Some(other) => other.to_string().into(),
        },
    }
}

/// The first value that a path leads to, as the column's type shows it; null where there is none.
fn found(column: &Column, path: &Template, tree: &Value, now: Timestamp) -> Value {
    let values = path.values(tree).unwrap_or_default();
    let Some(value) = values.first().filter(|v| !v.is_null()) else { return Value::Null };
    match (column.kind.as_ref(), value) {
        ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into(),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*value).clone(),
        ("date", Value::String(text)) if edge_api::meta::parse_time(text).is_none() => "<invalid>".into(),
        ("date", Value::String(_)) => age(Some(value), now).into(),
        ("integer" | "number" | "boolean" | "date", _) => Value::Null,
        _ => jsonpath::text(value).into(),
    }
}

fn age(timestamp: Option<&Value>, now: Timestamp) -> String {
    match timestamp.and_then(Value::as_str).and_then(edge_api::meta::parse_time) {
        Some(then) => human_duration(now.as_second() - then.as_second()),
        None => "<unknown>".into(),
    }
}

/// A duration in seconds as kubectl writes it: two parts while it is short, fewer the longer it is.
pub(crate) fn human_duration(seconds: i64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |a: i64, a_unit: &str, b: i64, b_unit: &str| {
        if b == 0 { format!("{a}{a_unit}") } else { format!("{a}{a_unit}{b}{b_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..=0 => "0s".into(),
        1..120 => format!("{seconds}s"),
        120..600 => two(m, "m", seconds % 60, "s"),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => two(h, "h", m % 60, "m"),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => two(d, "d", h % 24, "h"),
        691_200..63_072_000 => format!("{d}d"),
        63_072_000..252_288_000 => two(d / 365, "y", d % 365, "d"),
        _ => format!("{}y", d / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (100_000, "27h"),
            (200_000, "2d7h"),
            (700_000, "8d"),
            (70_000_000, "2y80d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
