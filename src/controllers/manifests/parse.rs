//! YAML and JSON texts into objects, each with the line on which its document begins.

use serde::Deserialize;
use serde_json::Value;

/// An object of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Manifest {
    /// The line of the file on which its document begins; from 1.
    pub(super) line: usize,
    pub(super) object: Value,
}

/// What is wrong with a text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(super) struct ParseError {
    line: usize,
    reason: String,
}

/// All objects of a text, with Lists taken apart.
///
/// # Errors
/// [`ParseError`] names the line.
pub(super) fn documents(text: &str) -> Result<Vec<Manifest>, ParseError> {
    let mut out = Vec::new();
    for (line, document) in split(text) {
        let value = Value::deserialize(serde_yaml_ng::Deserializer::from_str(&document)).map_err(|e| {
            let inner = e.location().map_or(1, |l| l.line());
            ParseError { line: line + inner - 1, reason: e.to_string() }
        })?;
        if !value.is_null() {
            objects(value, line, &mut out)?;
        }
    }
    Ok(out)
}

/// The documents of a YAML stream, with their first lines. Done here and not by the parser, so that an error knows its
/// line and a document that ends a block scalar is not misread: `---` only counts at the beginning of a line.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let (mut start, mut current) = (1, String::new());
    for (i, line) in text.lines().enumerate() {
        let separator = line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if separator {
            out.push((start, std::mem::take(&mut current)));
            start = i + 1;
            // what follows on the same line belongs to the document
            let rest = line.get(3..).unwrap_or_default().trim();
            if !rest.starts_with('#') {
                current.push_str(rest);
            }
        } else {
            current.push_str(line);
        }
        current.push('\n');
    }
    out.push((start, current));
    out
}

fn objects(value: Value, line: usize, out: &mut Vec<Manifest>) -> Result<(), ParseError> {
    let wrong = |reason: &str| ParseError { line, reason: reason.to_owned() };
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion").is_empty() || text("kind").is_empty() {
        return Err(wrong("not a Kubernetes object: apiVersion and kind are required"));
    }
    if text("kind") == "List" {
        let Some(items) = value.get("items").and_then(Value::as_array) else {
            return Err(wrong("a List without items"));
        };
        return items.iter().cloned().try_for_each(|item| objects(item, line, out));
    }
    if value.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(wrong("metadata.name is required"));
    }
    out.push(Manifest { line, object: value });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";

    #[test]
    fn documents_lists_and_json() {
        let text = format!("# nothing\n---\n{MAP}---\n\n--- # again\n{MAP}data:\n  text: |\n    one\n     --- inner\n");
        let found = documents(&text).unwrap();
        assert_eq!(found.iter().map(|m| m.line).collect::<Vec<_>>(), [2, 8]);
        assert_eq!(found[1].object["data"]["text"], "one\n --- inner\n");
        let list = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}]}"#;
        assert_eq!(documents(list).unwrap()[0].object["kind"], "Secret");
        assert!(documents("").unwrap().is_empty());
    }

    #[test]
    fn mistakes_name_their_line() {
        let line = |text: &str| documents(text).unwrap_err().line;
        assert_eq!(line(&format!("{MAP}---\nkind: Pod\nmetadata:\n  name: [\n")), 8);
        assert_eq!(line(&format!("{MAP}---\nkind: Pod\n")), 4);
        assert_eq!(line("apiVersion: v1\nkind: Pod\n"), 1);
        assert_eq!(line("just a text"), 1);
    }
}
