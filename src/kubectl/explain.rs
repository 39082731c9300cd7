//! `explain`: what the server's OpenAPI document says of a type and its fields.

use crate::cli::ExplainArgs;
use crate::error::Error;
use crate::print;
use crate::resources::Resource;
use crate::session::Session;
use serde_json::Value;
use std::fmt::Write;

/// Columns of a description, without its indentation.
const WIDTH: usize = 76;
/// So many values of an enumeration are shown in a list of fields.
const VALUES: usize = 4;

pub(crate) async fn run(session: &Session, args: ExplainArgs) -> Result<(), Error> {
    let (word, fields) = args.what.split_once('.').unwrap_or((&args.what, ""));
    let fields: Vec<&str> = fields.split('.').filter(|field| !field.is_empty()).collect();
    let mut resource = session.resource(word)?;
    if let Some(version) = &args.api_version {
        let found = session.resource_of(version, &resource.kind);
        resource = found.ok_or_else(|| Error::NoSuchResource(format!("{word} in {version}")))?;
    }
    let document = document(session, &resource).await?;
    let page = Page { document: &document, recursive: args.recursive };
    print::raw(&page.of(&resource, &fields)?)
}

/// The OpenAPI document of a resource's group and version.
async fn document(session: &Session, resource: &Resource) -> Result<Value, Error> {
    let root = if resource.group.is_empty() { "api" } else { "apis" };
    let key = format!("{root}/{}", resource.api_version());
    let list = session.get("/openapi/v3").await?;
    let url = list["paths"][&key]["serverRelativeURL"].as_str();
    let url = url.ok_or_else(|| Error::Usage(format!("the server has no description of {key}")))?;
    session.get(url).await
}

struct Page<'d> {
    document: &'d Value,
    recursive: bool,
}

/// What a schema is called where nothing else is known of it.
const OBJECT: &str = "Object";

impl<'d> Page<'d> {
    fn of(&self, resource: &Resource, fields: &[&str]) -> Result<String, Error> {
        let mut out = String::new();
        if !resource.group.is_empty() {
            line(&mut out, format_args!("GROUP:      {}", resource.group));
        }
        line(&mut out, format_args!("KIND:       {}\nVERSION:    {}\n", resource.kind, resource.version));
        let mut schema = self.schema_of(resource)?;
        if let Some((last, before)) = fields.split_last() {
            for field in before {
                schema = self.field(schema, field)?;
            }
            schema = self.field(schema, last)?;
            line(&mut out, format_args!("FIELD: {last} <{}>", self.kind(schema)));
            let values: Vec<String> = values(schema).map(|value| format!("\n    {value}")).collect();
            if !values.is_empty() {
                out += &format!("ENUM:{}", values.concat());
            }
            out += "\n\n";
        }
        let described = self.description(schema);
        let described = if described.is_empty() { "<empty>".to_owned() } else { described };
        line(&mut out, format_args!("DESCRIPTION:\n{}", indented(&wrapped(&described, WIDTH), 4)));
        let mut list = String::new();
        self.list(schema, 1, &mut Vec::new(), &mut list);
        if !list.is_empty() {
            line(&mut out, format_args!("FIELDS:\n{list}"));
        } else {
            out.push('\n');
        }
        Ok(out)
    }

    fn schema_of(&self, resource: &Resource) -> Result<&'d Value, Error> {
        let is_it = |schema: &&Value| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds
                .into_iter()
                .flatten()
                .any(|k| k["kind"] == resource.kind && k["version"] == resource.version && k["group"] == resource.group)
        };
        let schemas = self.document.pointer("/components/schemas").and_then(Value::as_object);
        let found = schemas.and_then(|all| all.values().find(is_it));
        found.ok_or_else(|| Error::Usage(format!("the server has no description of {}", resource.kind)))
    }

    /// The schema that one refers to, or itself.
    fn resolved(&self, schema: &'d Value) -> &'d Value {
        let name = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/components/schemas/"));
        name.and_then(|name| self.document["components"]["schemas"].get(name)).unwrap_or(schema)
    }

    /// The schema of a field: of the schema itself, of its items or values, of what it is made of.
    fn field(&self, schema: &'d Value, name: &str) -> Result<&'d Value, Error> {
        self.find(schema, name).ok_or_else(|| Error::Usage(format!("field {name:?} does not exist")))
    }

    fn find(&self, schema: &'d Value, name: &str) -> Option<&'d Value> {
        let schema = self.resolved(schema);
        if let Some(field) = schema["properties"].get(name) {
            return Some(field);
        }
        within(schema).find_map(|part| self.find(part, name))
    }

    /// The type in a word.
    fn kind(&self, schema: &'d Value) -> String {
        if schema["items"].is_object() {
            return format!("[]{}", self.kind(&schema["items"]));
        }
        if schema["additionalProperties"].is_object() {
            return format!("map[string]{}", self.kind(&schema["additionalProperties"]));
        }
        if let Some([only]) = schema["allOf"].as_array().map(Vec::as_slice)
            && !schema["properties"].is_object()
        {
            return self.kind(only);
        }
        let word = |schema: &Value| schema["type"].as_str().unwrap_or("object").to_owned();
        match schema["$ref"].as_str() {
            Some(name) => match word(self.resolved(schema)) {
                word if word == "object" => name.rsplit(['/', '.']).next().unwrap_or(OBJECT).to_owned(),
                word => word,
            },
            None => match word(schema) {
                word if word == "object" => OBJECT.to_owned(),
                word => word,
            },
        }
    }

    /// All descriptions of a schema and of what it is made of.
    fn description(&self, schema: &'d Value) -> String {
        let schema = self.resolved(schema);
        let own = schema["description"].as_str().filter(|text| !text.is_empty());
        let mut out = own.map_or(String::new(), |text| format!("{text}\n"));
        within(schema).for_each(|part| out += &self.description(part));
        out
    }

    /// The fields of a schema, those of what it is made of, and with `recursive` those of theirs. `above`: the types that it is part of.
    fn list(&self, schema: &'d Value, level: usize, above: &mut Vec<&'d str>, out: &mut String) {
        let name = schema["$ref"].as_str();
        if name.is_some_and(|name| above.contains(&name)) {
            return;
        }
        above.extend(name);
        let schema = self.resolved(schema);
        let mut fields: Vec<(&String, &Value)> = schema["properties"].as_object().into_iter().flatten().collect();
        fields.sort_by_key(|(name, _)| *name);
        for (name, field) in fields {
            self.detail(schema, name, field, level, out);
            if self.recursive {
                self.list(field, level + 1, above, out);
            }
        }
        for part in within(schema) {
            self.list(part, level, above, out);
        }
        if name.is_some() {
            above.pop();
        }
    }

    fn detail(&self, schema: &Value, name: &str, field: &'d Value, level: usize, out: &mut String) {
        let indent = level * 2;
        let required = schema["required"].as_array().is_some_and(|all| all.iter().any(|n| n == name));
        let required = if required { " -required-" } else { "" };
        out.push_str(&format!("{:indent$}{name}\t<{}>{required}", "", self.kind(field)));
        let all: Vec<String> = values(field).collect();
        if !all.is_empty() {
            let more = if all.len() > VALUES { ", ...." } else { "" };
            let shown = all.iter().take(VALUES).map(String::as_str).collect::<Vec<_>>().join(", ");
            out.push_str(&format!("\n{:indent$}enum: {shown}{more}", ""));
        }
        out.push('\n');
        if !self.recursive {
            let text = field["description"].as_str().unwrap_or("<no description>");
            line(out, format_args!("{}\n", indented(&wrapped(text, WIDTH + 2 - indent), indent + 2)));
        }
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // a text takes everything
    let _ = writeln!(out, "{text}");
}

/// What a schema is made of beside its own fields: alternatives, items, values of a map.
fn within(schema: &Value) -> impl Iterator<Item = &Value> {
    let all_of = schema["allOf"].as_array().into_iter().flatten();
    let others = [&schema["items"], &schema["additionalProperties"]];
    all_of.chain(others.into_iter().filter(|part| part.is_object()))
}

fn values(schema: &Value) -> impl Iterator<Item = String> {
    schema["enum"].as_array().into_iter().flatten().map(|value| match value.as_str() {
        Some("") => "\"\"".to_owned(),
        Some(text) => text.to_owned(),
        None => value.to_string(),
    })
}

/// Breaks lines between words so that they have so many columns at most, where words allow it.
fn wrapped(text: &str, width: usize) -> String {
    let lines = text.split('\n').map(|line| {
        let mut out = String::new();
        let (mut column, mut blanks) = (0, 0);
        for (index, word) in line.split(' ').enumerate() {
            blanks += usize::from(index > 0);
            let length = word.chars().count();
            if length == 0 {
                continue;
            }
            if column + blanks + length > width && length < width && column > 0 {
                out.push('\n');
                column = 0;
            } else {
                out.extend(std::iter::repeat_n(' ', blanks));
                column += blanks;
            }
            out.push_str(word);
            column += length;
            blanks = 0;
        }
        if column + blanks <= width {
            out.extend(std::iter::repeat_n(' ', blanks));
        }
        out
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn indented(text: &str, by: usize) -> String {
    let blanks = " ".repeat(by);
    format!("{blanks}{}", text.replace('\n', &format!("\n{blanks}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("one two  three four", 9), "one two\nthree\nfour");
        assert_eq!(wrapped("a verylongword b", 6), "a verylongword\nb");
        assert_eq!(wrapped("one\n\ntwo\n", 9), "one\n\ntwo\n");
        assert_eq!(indented("a\n\nb", 2), "  a\n  \n  b");
    }
}
