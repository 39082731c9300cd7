//! `describe`: an object as people read it, and its events.

use crate::apply::text;
use crate::cli::DescribeArgs;
use crate::error::Error;
use crate::get::{Wanted, wanted};
use crate::print;
use crate::session::{Session, query};
use jiff::Timestamp;
use serde_json::Value;

pub(crate) async fn run(session: &Session, args: DescribeArgs) -> Result<(), Error> {
    let mut texts = Vec::new();
    for one in wanted(session, &args.which)? {
        let objects = match &one {
            Wanted::One(object) => vec![session.get(&session.path(object)).await?],
            Wanted::All(resource) => {
                let namespace = if args.all_namespaces { None } else { Some(session.namespace.as_str()) };
                let selectors = query(&[
                    ("labelSelector", args.which.selector.as_deref()),
                    ("fieldSelector", args.which.field_selector.as_deref()),
                ]);
                let list = session.get(&format!("{}?{selectors}", resource.path(namespace, None))).await?;
                list["items"].as_array().cloned().unwrap_or_default()
            }
        };
        for object in objects {
            let events = events(session, &object).await?;
            texts.push(describe(&object, &events, Timestamp::now()));
        }
    }
    if texts.is_empty() {
        eprintln!("No resources found in {} namespace.", session.namespace);
    }
    print::raw(&texts.join("\n\n"))
}

async fn events(session: &Session, object: &Value) -> Result<Vec<Value>, Error> {
    let selector = format!("involvedObject.uid={}", text(object, "/metadata/uid"));
    let namespace = Some(text(object, "/metadata/namespace")).filter(|n| !n.is_empty());
    let path = session.resource("events")?.path(namespace, None);
    let list = session.get(&format!("{path}?{}", query(&[("fieldSelector", Some(&selector))]))).await?;
    let mut all = list["items"].as_array().cloned().unwrap_or_default();
    all.sort_by_key(|event| last_seen(event).map(Timestamp::as_second));
    Ok(all)
}

fn last_seen(event: &Value) -> Option<Timestamp> {
    let series = text(event, "/series/lastObservedTime");
    [series, text(event, "/lastTimestamp"), text(event, "/eventTime")].into_iter().find_map(|t| t.parse().ok())
}

fn describe(object: &Value, events: &[Value], now: Timestamp) -> String {
    let mut out = String::new();
    let metadata = &object["metadata"];
    for (title, value) in [("Name", &metadata["name"]), ("Namespace", &metadata["namespace"])] {
        if let Some(value) = value.as_str() {
            out += &format!("{:<15}{value}\n", format!("{title}:"));
        }
    }
    for (title, key, between) in [("Labels", "labels", "="), ("Annotations", "annotations", ": ")] {
        let all = metadata[key].as_object().into_iter().flatten();
        let lines: Vec<String> = all.map(|(k, v)| format!("{k}{between}{}", v.as_str().unwrap_or_default())).collect();
        let lines = if lines.is_empty() { "<none>".to_owned() } else { lines.join(&format!("\n{:15}", "")) };
        out += &format!("{:<15}{lines}\n", format!("{title}:"));
    }
    if let Some(time) = metadata["creationTimestamp"].as_str() {
        let age = time.parse::<Timestamp>().map(|t| print::age(now.as_second() - t.as_second())).unwrap_or_default();
        out += &format!("{:<15}{time} ({age} ago)\n", "Created:");
    }
    if let Some(time) = metadata["deletionTimestamp"].as_str() {
        out += &format!("{:<15}since {time}\n", "Terminating:");
    }
    for owner in metadata["ownerReferences"].as_array().into_iter().flatten().filter(|o| o["controller"] == true) {
        out += &format!("{:<15}{}/{}\n", "Controlled By:", text(owner, "/kind"), text(owner, "/name"));
    }
    for (key, value) in object.as_object().into_iter().flatten() {
        if !["apiVersion", "kind", "metadata"].contains(&key.as_str()) {
            field(&mut out, key, value, 0);
        }
    }
    out += "Events:";
    if events.is_empty() {
        return out + "        <none>\n";
    }
    out.push('\n');
    let mut rows = vec![["  Type", "Reason", "Age", "From", "Message"].map(str::to_owned).to_vec()];
    for event in events {
        let age = last_seen(event).map(|t| print::age(now.as_second() - t.as_second())).unwrap_or_default();
        let count = event["count"].as_i64().or(event["series"]["count"].as_i64()).filter(|n| *n > 1);
        let age = count.map_or(age.clone(), |n| format!("{age} (x{n})"));
        let from = [text(event, "/source/component"), text(event, "/reportingComponent")];
        let from = from.into_iter().find(|f| !f.is_empty()).unwrap_or_default().to_owned();
        let message = text(event, "/message").trim().replace('\n', " ");
        rows.push(vec![format!("  {}", text(event, "/type")), text(event, "/reason").to_owned(), age, from, message]);
    }
    out + &print::columns(&rows)
}

/// `hostIP` as `Host IP`.
fn title(key: &str) -> String {
    let mut out = String::new();
    let all: Vec<char> = key.chars().collect();
    for (i, c) in all.iter().enumerate() {
        let begins = c.is_uppercase()
            && i > 0
            && (!all[i - 1].is_uppercase() || all.get(i + 1).is_some_and(|n| n.is_lowercase()));
        if begins {
            out.push(' ');
        }
        out.extend(if i == 0 { c.to_uppercase().collect::<Vec<_>>() } else { vec![*c] });
    }
    out
}

/// A field with all that is in it. Keys that are data, not names of fields, stay as they are.
fn field(out: &mut String, key: &str, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let is_name = !key.contains(['.', '/', '-', '_']);
    let title = if is_name { title(key) } else { key.to_owned() };
    match value {
        Value::Object(fields) if fields.is_empty() => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Object(fields) => {
            *out += &format!("{indent}{title}:\n");
            for (key, value) in fields {
                field(out, key, value, depth + 1);
            }
        }
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            let items: Vec<String> = items.iter().map(print::cell).collect();
            *out += &format!("{indent}{title}: {}\n", items.join(", "));
        }
        Value::Array(items) => {
            *out += &format!("{indent}{title}:\n");
            for item in items {
                let mut inner = String::new();
                match item.as_object() {
                    Some(fields) => {
                        // what it is called comes first
                        let (names, others): (Vec<_>, Vec<_>) = fields.iter().partition(|(key, _)| *key == "name");
                        for (key, value) in names.into_iter().chain(others) {
                            field(&mut inner, key, value, depth + 2);
                        }
                    }
                    None => inner = format!("{indent}    {item}\n"),
                }
                // the first line of an item has its mark
                let mark = 2 * depth + 2;
                if inner.len() > mark {
                    inner.replace_range(mark..=mark, "-");
                }
                *out += &inner;
            }
        }
        value => {
            let text = print::cell(value);
            match text.contains('\n') {
                true => {
                    *out += &format!(
                        "{indent}{title}:\n{indent}  {}\n",
                        text.trim_end().replace('\n', &format!("\n{indent}  "))
                    )
                }
                false => *out += &format!("{indent}{title}: {text}\n"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_are_told_in_words() {
        let object = json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "b", "labels": {"x": "y"}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}, {"name": "d"}], "hostIPs": [], "dnsPolicy": "Default"},
            "data": {"my.key": "1\n2\n"}});
        let event = json!({"type": "Normal", "reason": "Started", "count": 3, "lastTimestamp": "2026-01-01T00:00:00Z",
            "source": {"component": "kubelet"}, "message": "it runs"});
        let text = describe(&object, &[event], "2026-01-01T00:00:10Z".parse().unwrap());
        for part in [
            "Name:          a\n",
            "Labels:        x=y\n",
            "  Dns Policy: Default\n",
            "  Containers:\n    - Name: c\n",
            "  my.key:\n    1\n    2\n",
            "Normal   Started   10s (x3)   kubelet   it runs\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert_eq!(
            (title("hostIP"), title("containerID"), title("x")),
            ("Host IP".into(), "Container ID".into(), "X".into())
        );
    }
}
