//! `-o custom-columns=NAME:.metadata.name,…`

use crate::error::Error;
use crate::print;
use edge_api::jsonpath::{Template, text};
use serde_json::Value;

/// Columns by their headers.
#[derive(Debug)]
pub(crate) struct Columns(Vec<(String, Template)>);

impl Columns {
    /// Reads `HEADER:path,HEADER:path`.
    pub(crate) fn parse(spec: &str) -> Result<Self, Error> {
        let wrong = |part: &str| {
            Error::Usage(format!("unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"))
        };
        if spec.is_empty() {
            return Err(Error::Usage("custom-columns format specified but no custom columns given".into()));
        }
        let column = |part: &str| {
            let (header, path) = part.split_once(':').ok_or_else(|| wrong(part))?;
            Ok((header.to_owned(), Template::parse(&relaxed(path)).map_err(|e| Error::Usage(e.to_string()))?))
        };
        parts(spec).into_iter().map(column).collect::<Result<_, Error>>().map(Self)
    }

    /// The table of some objects.
    pub(crate) fn table(&self, objects: &[Value], headers: bool) -> Result<String, Error> {
        let mut rows: Vec<Vec<String>> = Vec::new();
        if headers {
            rows.push(self.0.iter().map(|(header, _)| header.clone()).collect());
        }
        for object in objects {
            let cell = |(_, template): &(String, Template)| {
                let values = template.values(object).map_err(|e| Error::Usage(e.to_string()))?;
                let texts: Vec<String> = values.into_iter().map(cell).collect();
                Ok(if texts.is_empty() { "<none>".to_owned() } else { texts.join(",") })
            };
            rows.push(self.0.iter().map(cell).collect::<Result<_, Error>>()?);
        }
        Ok(print::columns(&rows))
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".into(),
        // as Go prints what has parts
        Value::Object(fields) => {
            let mut fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name}:{}", cell(value))).collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(cell).collect::<Vec<_>>().join(" ")),
        other => text(other),
    }
}

/// A path as a template: braces, and the point before the first name, may be left out.
fn relaxed(path: &str) -> String {
    let inner = path.strip_prefix('{').and_then(|p| p.strip_suffix('}')).unwrap_or(path);
    let point = if inner.starts_with(['.', '[', '$', '@']) { "" } else { "." };
    format!("{{{point}{inner}}}")
}

/// What is between commas that are not in brackets.
fn parts(spec: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let (mut depth, mut begin) = (0_i32, 0);
    for (at, c) in spec.char_indices() {
        match c {
            '[' | '(' | '{' => depth += 1,
            ']' | ')' | '}' => depth -= 1,
            ',' if depth == 0 => {
                all.push(&spec[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    all.push(&spec[begin..]);
    all
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn tables() {
        let objects = [
            json!({"metadata": {"name": "a", "labels": {"x": "1", "b": "2"}}, "spec": {"c": [{"i": "x"}, {"i": "y"}]}}),
            json!({"metadata": {"name": "longer"}, "spec": {"c": []}}),
        ];
        let columns = Columns::parse("NAME:.metadata.name,IMAGES:{.spec.c[*].i},LABELS:metadata.labels").unwrap();
        let expected = "NAME     IMAGES   LABELS\na        x,y      map[b:2 x:1]\nlonger   <none>   <none>\n";
        assert_eq!(columns.table(&objects, true).unwrap(), expected);
        let filtered = Columns::parse("N:.spec.c[?(@.i=='y')].i,M:.metadata['name','labels']").unwrap();
        assert_eq!(filtered.table(&objects[..1], false).unwrap(), "y   a,map[b:2 x:1]\n");
        for wrong in ["", "NAME", "NAME:.a[", "A:.b,C"] {
            Columns::parse(wrong).unwrap_err();
        }
    }
}
