//! Label and field selectors: their two written forms (query text and object) and matching.

use crate::names;
use serde_json::Value;
use std::fmt;

/// Why a selector cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not follow the grammar.
    #[error("unable to parse requirement: {0}")]
    Syntax(String),
    /// A key is no qualified name.
    #[error("key: Invalid value: {key:?}: {reason}")]
    Key {
        /// The key.
        key: String,
        /// The reason, in Kubernetes' wording.
        reason: String,
    },
    /// A value is no label value.
    #[error("values[0][{key}]: Invalid value: {value:?}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The reason, in Kubernetes' wording.
        reason: String,
    },
}

/// How a requirement compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The label is one of the values.
    In(Vec<String>),
    /// The label is absent or none of the values.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is an integer greater than this.
    GreaterThan(i64),
    /// The label is an integer less than this.
    LessThan(i64),
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label key.
    pub key: String,
    /// The comparison.
    pub op: Op,
}

impl Requirement {
    fn matches<'a>(&self, get: &impl Fn(&str) -> Option<&'a str>) -> bool {
        self.holds(get(&self.key))
    }

    /// Whether it holds for the value that the key has.
    pub fn holds(&self, value: Option<&str>) -> bool {
        match &self.op {
            Op::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Op::NotIn(values) => value.is_none_or(|v| !values.iter().any(|x| x == v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::GreaterThan(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n),
            Op::LessThan(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n),
        }
    }
}

/// A conjunction of requirements; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object: what an absent selector means in most specs.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The requirements, all of which must hold.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Reads the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// [`SelectorError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text)? {
            requirements.push(parse_requirement(part)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Reads the object form (`metav1.LabelSelector`): `matchLabels` and `matchExpressions`. `Null` matches nothing,
    /// an empty object everything.
    ///
    /// # Errors
    /// [`SelectorError`] says which requirement is wrong.
    pub fn from_value(value: &Value) -> Result<Self, SelectorError> {
        let Some(map) = value.as_object() else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        if let Some(labels) = map.get("matchLabels").and_then(Value::as_object) {
            for (k, v) in labels {
                let v = v.as_str().unwrap_or_default().to_owned();
                requirements.push(checked(k, Op::In(vec![v]))?);
            }
        }
        for e in map.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = e.get("key").and_then(Value::as_str).unwrap_or_default();
            let values = || {
                e.get("values")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect::<Vec<_>>()
            };
            let op = match e.get("operator").and_then(Value::as_str).unwrap_or_default() {
                "In" => Op::In(values()),
                "NotIn" => Op::NotIn(values()),
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => {
                    return Err(SelectorError::Syntax(format!("{other:?} is not a valid label selector operator")));
                }
            };
            if matches!(&op, Op::In(v) | Op::NotIn(v) if v.is_empty()) {
                return Err(SelectorError::Syntax("for 'in', 'notin' operators, values set can't be empty".into()));
            }
            requirements.push(checked(key, op)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// A selector of equalities, as a Service or a ReplicationController has it.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirements = labels
            .into_iter()
            .map(|(k, v)| Requirement { key: k.to_owned(), op: Op::In(vec![v.to_owned()]) })
            .collect();
        Self { requirements, nothing: false }
    }

    /// Whether the labels that `get` answers for satisfy all requirements.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(&get))
    }
}

impl fmt::Display for LabelSelector {
    /// The query form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match &r.op {
                Op::In(v) if v.len() == 1 => write!(f, "{}={}", r.key, v[0])?,
                Op::NotIn(v) if v.len() == 1 => write!(f, "{}!={}", r.key, v[0])?,
                Op::In(v) => write!(f, "{} in ({})", r.key, v.join(","))?,
                Op::NotIn(v) => write!(f, "{} notin ({})", r.key, v.join(","))?,
                Op::Exists => f.write_str(&r.key)?,
                Op::DoesNotExist => write!(f, "!{}", r.key)?,
                Op::GreaterThan(n) => write!(f, "{}>{n}", r.key)?,
                Op::LessThan(n) => write!(f, "{}<{n}", r.key)?,
            }
        }
        Ok(())
    }
}

fn split_outside_parentheses(text: &str) -> Result<Vec<&str>, SelectorError> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return Err(SelectorError::Syntax(format!("found ')' in {text:?}"))),
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(SelectorError::Syntax(format!("missing ')' in {text:?}")));
    }
    let last = text[start..].trim();
    if !(parts.is_empty() && last.is_empty()) {
        parts.push(last);
    }
    Ok(parts)
}

fn parse_requirement(part: &str) -> Result<Requirement, SelectorError> {
    if let Some(key) = part.strip_prefix('!') {
        return checked(key.trim(), Op::DoesNotExist);
    }
    if let Some(body) = part.strip_suffix(')') {
        let Some((head, list)) = body.split_once('(') else {
            return Err(SelectorError::Syntax(format!("found ')' in {part:?}")));
        };
        let Some((key, word)) = head.trim().split_once(char::is_whitespace) else {
            return Err(SelectorError::Syntax(format!("expected: in, notin in {part:?}")));
        };
        let values: Vec<String> = list.split(',').map(|v| v.trim().to_owned()).collect();
        return match word.trim() {
            "in" => checked(key, Op::In(values)),
            "notin" => checked(key, Op::NotIn(values)),
            other => Err(SelectorError::Syntax(format!("found {other:?}, expected: in, notin"))),
        };
    }
    // the two-character operators come first, so that `!=` is not taken for `=`
    for (token, make) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = part.split_once(token) {
            let values = vec![value.trim().to_owned()];
            return checked(key.trim(), if make { Op::In(values) } else { Op::NotIn(values) });
        }
    }
    for (token, greater) in [('>', true), ('<', false)] {
        if let Some((key, value)) = part.split_once(token) {
            let n = value.trim().parse().map_err(|_| {
                SelectorError::Syntax(format!("for 'Gt', 'Lt' operators, the value must be an integer, not {value:?}"))
            })?;
            return checked(key.trim(), if greater { Op::GreaterThan(n) } else { Op::LessThan(n) });
        }
    }
    checked(part, Op::Exists)
}

fn checked(key: &str, op: Op) -> Result<Requirement, SelectorError> {
    names::qualified_name(key).map_err(|reason| SelectorError::Key { key: key.to_owned(), reason })?;
    if let Op::In(values) | Op::NotIn(values) = &op {
        for v in values {
            names::label_value(v).map_err(|reason| SelectorError::Value {
                key: key.to_owned(),
                value: v.clone(),
                reason,
            })?;
        }
    }
    Ok(Requirement { key: key.to_owned(), op })
}

/// A conjunction of field comparisons such as `spec.nodeName=a,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldRequirement>);

/// One comparison of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field, for instance `spec.nodeName`.
    pub field: String,
    /// The value to compare with; absent fields count as the empty string.
    pub value: String,
    /// Whether the field must be equal (or unequal).
    pub equal: bool,
}

impl FieldSelector {
    /// Reads the query form. `\,`, `\=` and `\\` are escapes.
    ///
    /// # Errors
    /// [`SelectorError::Syntax`] when a term has no operator.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut out = Vec::new();
        for term in split_escaped(text, ',') {
            if term.trim().is_empty() {
                continue;
            }
            let (field, value, equal) = split_term(&term).ok_or_else(|| {
                SelectorError::Syntax(format!("invalid selector: {text:?}; can't understand {term:?}"))
            })?;
            out.push(FieldRequirement { field: field.trim().to_owned(), value: unescape(value), equal });
        }
        Ok(Self(out))
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the fields that `get` answers for satisfy all comparisons.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|r| (get(&r.field).unwrap_or("") == r.value) == r.equal)
    }
}

fn split_escaped(text: &str, at: char) -> Vec<String> {
    let (mut parts, mut current, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        if c == at && !escaped {
            parts.push(std::mem::take(&mut current));
            continue;
        }
        escaped = c == '\\' && !escaped;
        current.push(c);
    }
    parts.push(current);
    parts
}

fn split_term(term: &str) -> Option<(&str, &str, bool)> {
    let mut escaped = false;
    for (i, c) in term.char_indices() {
        if !escaped {
            for (token, equal) in [("!=", false), ("==", true), ("=", true)] {
                if term[i..].starts_with(token) {
                    return Some((&term[..i], &term[i + token.len()..], equal));
                }
            }
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<&'a str> {
        move |k| pairs.iter().find(|(key, _)| *key == k).map(|(_, v)| *v)
    }

    #[test]
    fn query_form() {
        let s = LabelSelector::parse("a=b, c!=d,e in (f, g),h notin (i),j,!k,l>1").expect("parses");
        assert_eq!(s.requirements().len(), 7);
        let ok = [("a", "b"), ("e", "g"), ("j", ""), ("l", "2")];
        assert!(s.matches(labels(&ok)));
        assert!(!s.matches(labels(&[("a", "b"), ("e", "g"), ("j", ""), ("l", "1")])));
        assert!(!s.matches(labels(&[("a", "b"), ("e", "g"), ("j", ""), ("l", "2"), ("k", "")])));
        assert_eq!(LabelSelector::parse(&s.to_string()).expect("parses again"), s);
        assert!(LabelSelector::parse("").expect("parses").is_everything());
        for bad in ["a=-", "=b", "a in (b", "a in b)", "a foo (b)", "a,,b", "x y", "a>b"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn object_form() {
        let s = LabelSelector::from_value(&json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]}]}))
        .expect("parses");
        assert!(s.matches(labels(&[("a", "b")])));
        assert!(!s.matches(labels(&[("a", "b"), ("c", "d")])));
        assert!(!LabelSelector::from_value(&Value::Null).expect("parses").matches(labels(&[])));
        assert!(LabelSelector::from_value(&json!({})).expect("parses").matches(labels(&[])));
        assert!(LabelSelector::from_value(&json!({"matchExpressions": [{"key": "c", "operator": "In"}]})).is_err());
    }

    #[test]
    fn fields() {
        let s = FieldSelector::parse(r"spec.nodeName=a\,b,status.phase!=Running,metadata.name==x").expect("parses");
        let get = |f: &str| match f {
            "spec.nodeName" => Some("a,b"),
            "metadata.name" => Some("x"),
            _ => None,
        };
        assert!(s.matches(get));
        assert!(FieldSelector::parse("nonsense").is_err());
        assert!(FieldSelector::parse("").expect("parses").is_everything());
    }
}
