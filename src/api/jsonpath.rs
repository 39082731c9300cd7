//! Kubernetes' JSONPath templates, as `-o jsonpath=…` has them: text with `{expressions}`, `{range …}{end}`, filters, slices, unions and
//! recursion. What an object does not have is nothing, not an error.

use serde_json::{Map, Value};

/// What is wrong with a template, or with what it asks of an object.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A brace or bracket that is not closed.
    #[error("unclosed action in {0:?}")]
    Unclosed(String),
    /// What makes no sense where it is.
    #[error("unexpected {0:?} in a jsonpath")]
    Unexpected(String),
    /// A `range` without its `end`, or the other way round.
    #[error("{{range}} and {{end}} do not match")]
    Range,
    /// An index beyond the end of a list.
    #[error("array index out of bounds: index {index}, length {length}")]
    Bounds {
        /// The index.
        index: i64,
        /// How long the list is.
        length: usize,
    },
    /// A filter of something that is no list.
    #[error("{0} is not array or slice and cannot be filtered")]
    Filter(String),
}

/// A template that can be applied to objects.
#[derive(Clone, Debug)]
pub struct Template(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Path(Path),
    Range(Path, Vec<Node>),
}

type Path = Vec<Step>;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    /// The value and all that is below it.
    Recursive,
    Slice {
        from: Option<i64>,
        to: Option<i64>,
        by: i64,
    },
    Index(i64),
    /// What each of these finds.
    Union(Vec<Path>),
    Filter(Operand, Option<(Comparison, Operand)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(Path),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

const COMPARISONS: [(&str, Comparison); 6] = [
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        // for each range that is open: its path, and what came before it
        let mut open: Vec<(Path, Vec<Node>)> = Vec::new();
        let mut nodes = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            if at > 0 {
                nodes.push(Node::Text(rest[..at].to_owned()));
            }
            let (action, after) = action(&rest[at + 1..]).ok_or_else(|| PathError::Unclosed(text.to_owned()))?;
            rest = after;
            let action = action.trim();
            if action == "end" {
                let (path, before) = open.pop().ok_or(PathError::Range)?;
                let body = std::mem::replace(&mut nodes, before);
                nodes.push(Node::Range(path, body));
            } else if let Some(path) = action.strip_prefix("range").filter(|p| !p.starts_with(char::is_alphanumeric)) {
                open.push((path_of(path.trim())?, std::mem::take(&mut nodes)));
            } else if action.starts_with(['"', '\'']) {
                let (text, after) = quoted(action)?;
                if !after.trim().is_empty() {
                    return Err(PathError::Unexpected(after.to_owned()));
                }
                nodes.push(Node::Text(text));
            } else {
                nodes.push(Node::Path(path_of(action)?));
            }
        }
        if !rest.is_empty() {
            nodes.push(Node::Text(rest.to_owned()));
        }
        if open.is_empty() { Ok(Self(nodes)) } else { Err(PathError::Range) }
    }

    /// What it makes of an object.
    ///
    /// # Errors
    /// When it asks for what cannot be, such as an element beyond the end of a list.
    pub fn apply(&self, object: &Value) -> Result<String, PathError> {
        let mut out = String::new();
        write(&self.0, object, &mut out)?;
        Ok(out)
    }

    /// The values of its expressions, without its text.
    ///
    /// # Errors
    /// The same.
    pub fn values<'v>(&self, object: &'v Value) -> Result<Vec<&'v Value>, PathError> {
        let mut found = Vec::new();
        for node in &self.0 {
            if let Node::Path(path) = node {
                found.extend(walk(path, object)?);
            }
        }
        Ok(found)
    }
}

fn write(nodes: &[Node], object: &Value, out: &mut String) -> Result<(), PathError> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(path) => {
                let texts: Vec<String> = walk(path, object)?.into_iter().map(text).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(path, body) => {
                for item in walk(path, object)? {
                    write(body, item, out)?;
                }
            }
        }
    }
    Ok(())
}

/// A value as it is printed: texts as they are, what has parts as JSON.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(_) | Value::Array(_) => {
            // as Go writes it, which thinks of web pages
            let json = sorted(value).to_string();
            json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
        }
        other => other.to_string(),
    }
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            Value::Object(Map::from_iter(fields.into_iter().map(|(name, value)| (name.clone(), sorted(value)))))
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// What is between braces, and what comes after them.
fn action(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (None, '}') => return Some((&text[..at], &text[at + 1..])),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

/// A text in quotes at the beginning of another, and the rest of that.
fn quoted(text: &str) -> Result<(String, &str), PathError> {
    let unexpected = || PathError::Unexpected(text.to_owned());
    let mut chars = text.char_indices();
    let (_, quote) = chars.next().ok_or_else(unexpected)?;
    let mut out = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Ok((out, &text[at + c.len_utf8()..])),
            '\\' => out.push(match chars.next().ok_or_else(unexpected)?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            }),
            c => out.push(c),
        }
    }
    Err(unexpected())
}

fn path_of(text: &str) -> Result<Path, PathError> {
    let (path, rest) = path(text)?;
    if rest.trim().is_empty() { Ok(path) } else { Err(PathError::Unexpected(rest.to_owned())) }
}

/// The steps at the beginning of a text, and its rest.
fn path(text: &str) -> Result<(Path, &str), PathError> {
    let mut steps = Vec::new();
    let mut rest = text.strip_prefix(['@', '$']).unwrap_or(text);
    // a name without a point is a step, too
    if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
        let (name, after) = field(rest);
        steps.push(Step::Field(name));
        rest = after;
    }
    loop {
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Recursive);
            rest = after;
            if rest.starts_with(['[', '.']) {
                continue;
            }
            rest = name(rest, &mut steps);
        } else if let Some(after) = rest.strip_prefix('.') {
            rest = name(after, &mut steps);
        } else if let Some(after) = rest.strip_prefix("[?(") {
            let (filter, after) = filter(after)?;
            steps.push(filter);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (step, after) = brackets(after)?;
            steps.push(step);
            rest = after;
        } else {
            return Ok((steps, rest));
        }
    }
}

fn name<'t>(text: &'t str, steps: &mut Path) -> &'t str {
    if let Some(after) = text.strip_prefix('*') {
        steps.push(Step::Wildcard);
        return after;
    }
    let (name, after) = field(text);
    // `{.}` is the object itself
    if !name.is_empty() {
        steps.push(Step::Field(name));
    }
    after
}

/// The name at the beginning of a text. A backslash takes the meaning from what follows.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            c if std::mem::take(&mut escaped) => name.push(c),
            '\\' => escaped = true,
            ' ' | '.' | '[' | ']' | '(' | ')' | '=' | '!' | '<' | '>' | ',' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// What is in brackets: `*`, numbers, slices, names in quotes, several of those.
fn brackets(text: &str) -> Result<(Step, &str), PathError> {
    let mut all = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if rest.starts_with(['"', '\'']) {
            let (name, after) = quoted(rest)?;
            all.push(Step::Field(name));
            rest = after.trim_start();
        } else {
            let end = rest.find([',', ']']).ok_or_else(|| PathError::Unclosed(text.to_owned()))?;
            all.push(positions(rest[..end].trim())?);
            rest = &rest[end..];
        }
        if let Some(after) = rest.strip_prefix(']') {
            let step =
                if all.len() == 1 { all.remove(0) } else { Step::Union(all.into_iter().map(|s| vec![s]).collect()) };
            return Ok((step, after));
        }
        rest = rest.strip_prefix(',').ok_or_else(|| PathError::Unexpected(rest.to_owned()))?;
    }
}

fn positions(text: &str) -> Result<Step, PathError> {
    let unexpected = |_| PathError::Unexpected(text.to_owned());
    if text == "*" {
        return Ok(Step::Wildcard);
    }
    let number = |part: &str| match part.trim() {
        "" => Ok(None),
        part => part.parse::<i64>().map(Some).map_err(unexpected),
    };
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [index] => Ok(Step::Index(index.parse().map_err(unexpected)?)),
        [from, to] => Ok(Step::Slice { from: number(from)?, to: number(to)?, by: 1 }),
        [from, to, by] => {
            let by = number(by)?.unwrap_or(1);
            if by < 1 {
                return Err(PathError::Unexpected(text.to_owned()));
            }
            Ok(Step::Slice { from: number(from)?, to: number(to)?, by })
        }
        _ => Err(PathError::Unexpected(text.to_owned())),
    }
}

/// `@.a=="b")]`, and the rest.
fn filter(text: &str) -> Result<(Step, &str), PathError> {
    let (left, rest) = operand(text.trim_start())?;
    let mut rest = rest.trim_start();
    let mut compared = None;
    if let Some((sign, comparison)) = COMPARISONS.into_iter().find(|(sign, _)| rest.starts_with(sign)) {
        let (right, after) = operand(rest[sign.len()..].trim_start())?;
        compared = Some((comparison, right));
        rest = after.trim_start();
    }
    let rest = rest.strip_prefix(")]").ok_or_else(|| PathError::Unexpected(rest.to_owned()))?;
    Ok((Step::Filter(left, compared), rest))
}

fn operand(text: &str) -> Result<(Operand, &str), PathError> {
    if text.starts_with(['"', '\'']) {
        let (literal, rest) = quoted(text)?;
        return Ok((Operand::Literal(literal.into()), rest));
    }
    if text.starts_with(['@', '$', '.', '[']) {
        let (path, rest) = path(text)?;
        return Ok((Operand::Path(path), rest));
    }
    let end = text.find([' ', ')', '=', '!', '<', '>']).unwrap_or(text.len());
    let literal = serde_json::from_str(&text[..end]).map_err(|_| PathError::Unexpected(text.to_owned()))?;
    Ok((Operand::Literal(literal), &text[end..]))
}

/// All that the steps lead to.
fn walk<'v>(path: &[Step], from: &'v Value) -> Result<Vec<&'v Value>, PathError> {
    let mut found = vec![from];
    for step in path {
        let mut next = Vec::new();
        for value in found {
            take(step, value, &mut next)?;
        }
        found = next;
    }
    Ok(found)
}

fn take<'v>(step: &Step, value: &'v Value, found: &mut Vec<&'v Value>) -> Result<(), PathError> {
    match step {
        Step::Field(name) => found.extend(value.as_object().and_then(|fields| fields.get(name))),
        Step::Wildcard => found.extend(parts(value)),
        Step::Recursive => {
            found.push(value);
            for part in parts(value).into_iter().filter(|part| part.is_object() || part.is_array()) {
                take(step, part, found)?;
            }
        }
        Step::Index(index) => {
            let Some(items) = value.as_array() else { return Ok(()) };
            let length = items.len();
            let bounds = PathError::Bounds { index: *index, length };
            let at = if *index < 0 { *index + length as i64 } else { *index };
            let item = usize::try_from(at).ok().and_then(|at| items.get(at));
            found.push(item.ok_or(bounds)?);
        }
        Step::Slice { from, to, by } => {
            let Some(items) = value.as_array() else { return Ok(()) };
            let length = items.len() as i64;
            let inside = |n: i64| if n < 0 { n + length } else { n }.clamp(0, length) as usize;
            let range = inside(from.unwrap_or(0))..inside(to.unwrap_or(length));
            let items = items.get(range).unwrap_or_default();
            found.extend(items.iter().step_by(usize::try_from(*by).unwrap_or(1)));
        }
        Step::Union(paths) => {
            for path in paths {
                found.extend(walk(path, value)?);
            }
        }
        Step::Filter(left, compared) => {
            let items = value.as_array().ok_or_else(|| PathError::Filter(text(value)))?;
            for item in items {
                if passes(left, compared.as_ref(), item)? {
                    found.push(item);
                }
            }
        }
    }
    Ok(())
}

/// The parts of a value, those of objects in the order of their names.
fn parts(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            fields.into_iter().map(|(_, value)| value).collect()
        }
        _ => Vec::new(),
    }
}

fn passes(left: &Operand, compared: Option<&(Comparison, Operand)>, item: &Value) -> Result<bool, PathError> {
    let value = |operand: &Operand| match operand {
        Operand::Literal(value) => Ok(Some(value.clone())),
        Operand::Path(path) => Ok(walk(path, item)?.first().map(|value| (*value).clone())),
    };
    let Some(left) = value(left)? else { return Ok(false) };
    let Some((comparison, right)) = compared else { return Ok(true) };
    let Some(right) = value(right)? else { return Ok(false) };
    let order = match (&left, &right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) => (a == b).then_some(std::cmp::Ordering::Equal),
    };
    Ok(match comparison {
        Comparison::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
        Comparison::NotEqual => !order.is_some_and(std::cmp::Ordering::is_eq),
        Comparison::Less => order.is_some_and(std::cmp::Ordering::is_lt),
        Comparison::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
        Comparison::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
        Comparison::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn pods() -> Value {
        json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app": "x", "t": "<1>"}, "annotations": {"a.b/c": "dotted"}},
             "spec": {"nodeName": "n1", "containers": [{"name": "c1", "image": "i1"}, {"name": "c2", "image": "i2"}]},
             "status": {"n": 3, "ok": true, "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}},
            {"metadata": {"name": "b"}, "spec": {"containers": [{"name": "c3", "image": "i3"}]}, "status": {"n": 11}}]})
    }

    #[test]
    fn templates() {
        for (template, expected) in [
            ("{.kind}", "List"),
            ("plain", "plain"),
            ("{.items[*].metadata.name}", "a b"),
            ("{.items[0].metadata.labels}", r#"{"app":"x","t":"\u003c1\u003e"}"#),
            ("{.items[0]['metadata']['labels']['app']}", "x"),
            (r"{.items[0].metadata.annotations.a\.b/c}", "dotted"),
            ("{.items[0].metadata.annotations['a.b/c']}", "dotted"),
            ("{.items[-1].metadata.name}", "b"),
            ("{.items[0].spec.containers[0:2].name}", "c1 c2"),
            ("{.items[0].spec.containers[1:].name}", "c2"),
            ("{.items[0].spec.containers[::2].name}", "c1"),
            ("{.items[*]['metadata.name','spec.nodeName']}", ""),
            ("{.items[0].spec.containers[0]['name','image']}", "c1 i1"),
            ("{.items[0].spec.containers[0,1].name}", "c1 c2"),
            ("{.items[0].status.n} {.items[0].status.ok}", "3 true"),
            (r#"{.items[0].status.conditions[?(@.type=="Ready")].status}"#, "True"),
            (r"{.items[0].status.conditions[?(@.type!='Ready')].type}", "Other"),
            ("{.items[?(@.status.n>5)].metadata.name}", "b"),
            ("{.items[?(@.status.n<=3)].metadata.name}", "a"),
            ("{.items[?(@.spec.nodeName)].metadata.name}", "a"),
            ("{.items[?(@.status.ok==true)].metadata.name}", "a"),
            (r#"{range .items[*]}{.metadata.name}{"\t"}{.spec.nodeName}{"\n"}{end}"#, "a\tn1\nb\t\n"),
            ("{range .items[*]}{.metadata.name}:{range .spec.containers[*]}{.image},{end} {end}", "a:i1,i2, b:i3, "),
            ("{..image}", "i1 i2 i3"),
            ("{.items[*].nothing}", ""),
            ("{.nothing.at.all}", ""),
            ("{$.kind}-{@.kind}", "List-List"),
            ("{kind}", "List"),
            ("a}b", "a}b"),
            ("{.items[0].metadata.labels.*}", "x <1>"),
        ] {
            let found = Template::parse(template).and_then(|t| t.apply(&pods()));
            assert_eq!(found.as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn mistakes() {
        for template in
            ["{.a", "{range .items[*]}{.a}", "{end}", "{.a[}", "{.a[x]}", "{.a[?(@.b==)]}", "{.a b}", "{\"x}"]
        {
            Template::parse(template).unwrap_err();
        }
        let out = |template: &str| Template::parse(template).unwrap().apply(&pods()).unwrap_err();
        assert_eq!(out("{.items[7].kind}"), PathError::Bounds { index: 7, length: 2 });
        assert!(matches!(out("{.kind[?(@.a)]}"), PathError::Filter(_)));
    }
}
