//! `label` and `annotate`.

use crate::cli::{MetadataArgs, Which};
use crate::error::Error;
use crate::get::{Wanted, wanted};
use crate::print;
use crate::resources::Object;
use crate::session::{FIELD_MANAGER, MERGE_PATCH, Session, query};
use serde_json::{Map, Value, json};

/// Which of an object's maps is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Labels,
    Annotations,
}

impl Part {
    fn field(self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::Annotations => "annotations",
        }
    }
}

/// What is to become of an object's map: values, or their absence.
#[derive(Debug, PartialEq, Eq)]
struct Changes(Vec<(String, Option<String>)>);

pub(crate) async fn run(session: &Session, part: Part, args: MetadataArgs) -> Result<(), Error> {
    let (words, changes) = split(&args.words)?;
    let which = Which { objects: words, selector: args.selector.clone(), field_selector: args.field_selector.clone() };
    let selects = args.all || which.selector.is_some() || which.field_selector.is_some();
    for (object, namespace) in objects(session, &which, selects, args.all_namespaces).await? {
        let path = object.resource.path(Some(&namespace), Some(&object.name));
        let now = session.get(&path).await?;
        let known = now["metadata"][part.field()].as_object().cloned().unwrap_or_default();
        if !args.overwrite {
            changes.refuse_others(part, &known)?;
        }
        if part == Part::Labels {
            for key in changes.absent(&known) {
                print::line(&format!("label {key:?} not found."))?;
            }
        }
        let query = query(&[("fieldManager", Some(FIELD_MANAGER))]);
        let patch = json!({"metadata": {part.field(): changes.patch()}});
        session.patch(&format!("{path}?{query}"), MERGE_PATCH, &patch).await?;
        print::line(&format!("{} {}", object.resource.display(&object.name), changes.done(part, &known)))?;
    }
    Ok(())
}

/// The objects, with their namespaces.
async fn objects(
    session: &Session,
    which: &Which,
    selects: bool,
    all_namespaces: bool,
) -> Result<Vec<(Object, String)>, Error> {
    let mut found = Vec::new();
    for one in wanted(session, which)? {
        let resource = match one {
            Wanted::One(object) => {
                found.push((object, session.namespace.clone()));
                continue;
            }
            Wanted::All(resource) => resource,
        };
        if !selects {
            return Err(Error::Usage("resource(s) were provided, but no name was specified".into()));
        }
        let namespace = if all_namespaces { None } else { Some(session.namespace.as_str()) };
        let selectors =
            query(&[("labelSelector", which.selector.as_deref()), ("fieldSelector", which.field_selector.as_deref())]);
        let list = session.get(&format!("{}?{selectors}", resource.path(namespace, None))).await?;
        for item in list["items"].as_array().into_iter().flatten() {
            let text = |key: &str| item["metadata"][key].as_str().unwrap_or_default().to_owned();
            found.push((Object { resource: resource.clone(), name: text("name") }, text("namespace")));
        }
    }
    Ok(found)
}

/// The words that name objects, and those that say what changes: `KEY=VALUE` and `KEY-`.
fn split(words: &[String]) -> Result<(Vec<String>, Changes), Error> {
    let is_change = |word: &String| word.contains('=') || word.ends_with('-') && word.len() > 1;
    let first = words.iter().position(is_change).unwrap_or(words.len());
    let (objects, rest) = words.split_at(first);
    let change = |word: &String| match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), Some(value.to_owned()))),
        None if word.ends_with('-') => Ok((word.trim_end_matches('-').to_owned(), None)),
        _ => Err(Error::Usage(format!("{word:?} is neither KEY=VALUE nor KEY-"))),
    };
    let changes: Vec<(String, Option<String>)> = rest.iter().map(change).collect::<Result<_, _>>()?;
    match changes.is_empty() {
        true => Err(Error::Usage("at least one KEY=VALUE or KEY- is needed".into())),
        false => Ok((objects.to_vec(), Changes(changes))),
    }
}

impl Changes {
    fn patch(&self) -> Value {
        self.0.iter().map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect::<Map<_, _>>().into()
    }

    /// What is to be removed and is not there.
    fn absent<'s>(&'s self, known: &'s Map<String, Value>) -> impl Iterator<Item = &'s str> {
        self.0.iter().filter(|(key, value)| value.is_none() && !known.contains_key(key)).map(|(key, _)| key.as_str())
    }

    /// Nothing that is there gets another value by mistake.
    fn refuse_others(&self, part: Part, known: &Map<String, Value>) -> Result<(), Error> {
        let others = self.0.iter().filter_map(|(key, value)| {
            let (new, old) = (value.as_deref()?, known.get(key)?.as_str()?);
            (new != old).then_some((key, old))
        });
        let others: Vec<(&String, &str)> = others.collect();
        let Some((key, old)) = others.first() else { return Ok(()) };
        Err(Error::Usage(match part {
            Part::Labels => format!("'{key}' already has a value ({old}), and --overwrite is false"),
            Part::Annotations => {
                let all: Vec<String> =
                    others.iter().map(|(key, old)| format!("'{key}' already has a value ({old})")).collect();
                format!("--overwrite is false but found the following declared annotation(s): {}", all.join("; "))
            }
        }))
    }

    /// What has been done, in kubectl's words.
    fn done(&self, part: Part, known: &Map<String, Value>) -> &'static str {
        let is_new =
            |(key, value): &&(String, Option<String>)| known.get(key).and_then(Value::as_str) != value.as_deref();
        let changed: Vec<_> = self.0.iter().filter(is_new).collect();
        match part {
            Part::Annotations => "annotated",
            Part::Labels if changed.is_empty() => "not labeled",
            Part::Labels if changed.iter().all(|(_, value)| value.is_none()) => "unlabeled",
            Part::Labels => "labeled",
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn words(all: &[&str]) -> Vec<String> {
        all.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn words_of_objects_and_of_changes() {
        let (objects, changes) = split(&words(&["pods", "a", "x=1", "y-", "z="])).unwrap();
        assert_eq!(objects, ["pods", "a"]);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(changes.0, [("x".into(), some("1")), ("y".into(), None), ("z".into(), some(""))]);
        assert_eq!(changes.patch(), json!({"x": "1", "y": null, "z": ""}));
        for wrong in [&["pods", "a"][..], &["pod/a", "=x"], &["pod/a", "x=1", "word"]] {
            split(&words(wrong)).unwrap_err();
        }
    }

    #[test]
    fn what_is_said() {
        let known = json!({"a": "1", "b": "2"}).as_object().unwrap().clone();
        let said = |all: &[&str]| split(&words(all)).unwrap().1.done(Part::Labels, &known);
        assert_eq!(
            [said(&["a=1"]), said(&["a-"]), said(&["c=3"]), said(&["c-"]), said(&["a-", "c=1"])],
            ["not labeled", "unlabeled", "labeled", "not labeled", "labeled"]
        );
        let refused = |part, all: &[&str]| split(&words(all)).unwrap().1.refuse_others(part, &known);
        assert!(refused(Part::Labels, &["a=1", "b-", "c=1"]).is_ok());
        let error = refused(Part::Labels, &["b=3"]).unwrap_err().to_string();
        assert_eq!(error, "'b' already has a value (2), and --overwrite is false");
    }
}
