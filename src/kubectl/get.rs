//! `get`: tables that the server makes, or the objects themselves.

use crate::cli::{GetArgs, Output, Which};
use crate::error::Error;
use crate::print;
use crate::resources::{Object, Resource};
use crate::session::{Session, query};
use futures::StreamExt;
use serde_json::{Value, json};

/// One thing to ask for: objects of a type, or one of them.
pub(crate) enum Wanted {
    All(Resource),
    One(Object),
}

impl Wanted {
    fn resource(&self) -> &Resource {
        match self {
            Self::All(resource) => resource,
            Self::One(object) => &object.resource,
        }
    }
}

/// What the words of a command line ask for.
pub(crate) fn wanted(session: &Session, which: &Which) -> Result<Vec<Wanted>, Error> {
    let words = &which.objects;
    let Some(first) = words.first() else {
        return Err(Error::Usage(
            "say which type: get pods, get pod/NAME, get deployments,services; `api-resources` shows all".into(),
        ));
    };
    if words.len() > 1 || first.contains('/') {
        let objects = session.objects(words)?;
        return Ok(objects.into_iter().map(Wanted::One).collect());
    }
    let mut all = Vec::new();
    for word in first.split(',').filter(|word| !word.is_empty()) {
        all.extend(session.resolve(word)?.into_iter().map(Wanted::All));
    }
    Ok(all)
}

pub(crate) async fn run(session: &Session, args: GetArgs) -> Result<(), Error> {
    let wanted = wanted(session, &args.which)?;
    if args.watch {
        return match wanted.as_slice() {
            [one] => watch(session, one, &args).await,
            _ => Err(Error::Usage("one type at a time can be watched".into())),
        };
    }
    match &args.output {
        None | Some(Output::Wide) => tables(session, &wanted, &args).await,
        Some(form) => objects(session, &wanted, &args, form).await,
    }
}

/// Where something is, with what selects it.
fn path(session: &Session, wanted: &Wanted, args: &GetArgs, more: &[(&str, Option<&str>)]) -> String {
    let namespace = if args.all_namespaces { None } else { Some(session.namespace.as_str()) };
    let (path, selectors) = match wanted {
        Wanted::All(resource) => (
            resource.path(namespace, None),
            vec![
                ("labelSelector", args.which.selector.as_deref()),
                ("fieldSelector", args.which.field_selector.as_deref()),
            ],
        ),
        Wanted::One(object) => (session.path(object), Vec::new()),
    };
    match query(&[&selectors[..], more].concat()) {
        query if query.is_empty() => path,
        query => format!("{path}?{query}"),
    }
}

/// Nothing, where that is no error.
fn unless_absent(result: Result<Value, Error>, ignore: bool) -> Result<Option<Value>, Error> {
    match result {
        Err(Error::Refused { reason, .. }) if ignore && reason == "NotFound" => Ok(None),
        other => other.map(Some),
    }
}

async fn tables(session: &Session, wanted: &[Wanted], args: &GetArgs) -> Result<(), Error> {
    let several = wanted.iter().any(|w| w.resource() != wanted[0].resource());
    let mut blocks: Vec<(Resource, Vec<Vec<String>>)> = Vec::new();
    for one in wanted {
        let Some(table) =
            unless_absent(session.get_table(&path(session, one, args, &[])).await, args.ignore_not_found)?
        else {
            continue;
        };
        let rows = Table::of(&table, one.resource(), args, several).rows();
        match blocks.last_mut().filter(|(resource, _)| resource == one.resource()) {
            Some((_, known)) => known.extend(rows.into_iter().skip(1)),
            None => blocks.push((one.resource().clone(), rows)),
        }
    }
    blocks.retain(|(_, rows)| rows.len() > 1);
    if blocks.is_empty() {
        let scope = wanted.first().is_none_or(|w| w.resource().namespaced) && !args.all_namespaces;
        let place = if scope { format!(" in {} namespace", session.namespace) } else { String::new() };
        if !args.ignore_not_found {
            eprintln!("No resources found{place}.");
        }
        return Ok(());
    }
    let skip = usize::from(args.no_headers);
    let texts: Vec<String> = blocks.iter().map(|(_, rows)| print::columns(&rows[skip..])).collect();
    print::raw(&texts.join("\n"))
}

/// A table of the server, and which of it is shown.
struct Table<'a> {
    table: &'a Value,
    resource: &'a Resource,
    wide: bool,
    namespaces: bool,
    labels: bool,
    /// With the type before the name, for there are several.
    typed: bool,
}

impl<'a> Table<'a> {
    fn of(table: &'a Value, resource: &'a Resource, args: &GetArgs, typed: bool) -> Self {
        let wide = matches!(args.output, Some(Output::Wide));
        Self {
            table,
            resource,
            wide,
            namespaces: args.all_namespaces && resource.namespaced,
            labels: args.show_labels,
            typed,
        }
    }

    /// The headers and the rows.
    fn rows(&self) -> Vec<Vec<String>> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let definitions = list(&self.table["columnDefinitions"]);
        let shown: Vec<usize> = (0..definitions.len())
            .filter(|i| self.wide || definitions[*i]["priority"].as_i64().unwrap_or(0) == 0)
            .collect();
        let mut header: Vec<String> =
            shown.iter().map(|i| definitions[*i]["name"].as_str().unwrap_or_default().to_uppercase()).collect();
        if self.namespaces {
            header.insert(0, "NAMESPACE".into());
        }
        if self.labels {
            header.push("LABELS".into());
        }
        let mut rows = vec![header];
        for row in list(&self.table["rows"]) {
            let metadata = &row["object"]["metadata"];
            let mut cells: Vec<String> = shown.iter().map(|i| print::cell(&row["cells"][*i])).collect();
            if self.typed
                && let Some(name) = cells.first_mut()
            {
                *name = self.resource.display(name);
            }
            if self.namespaces {
                cells.insert(0, print::cell(&metadata["namespace"]));
            }
            if self.labels {
                let labels = metadata["labels"].as_object().into_iter().flatten();
                let labels: Vec<String> =
                    labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
                cells.push(if labels.is_empty() { "<none>".into() } else { labels.join(",") });
            }
            rows.push(cells);
        }
        rows
    }
}

async fn objects(session: &Session, wanted: &[Wanted], args: &GetArgs, form: &Output) -> Result<(), Error> {
    let mut items: Vec<(Resource, Value)> = Vec::new();
    for one in wanted {
        let Some(found) = unless_absent(session.get(&path(session, one, args, &[])).await, args.ignore_not_found)?
        else {
            continue;
        };
        let resource = one.resource();
        match one {
            Wanted::One(_) => items.push((resource.clone(), found)),
            Wanted::All(_) => {
                for item in found["items"].as_array().into_iter().flatten() {
                    let mut item = item.clone();
                    // the items of a list do not say what they are
                    item["apiVersion"] = resource.api_version().into();
                    item["kind"] = resource.kind.clone().into();
                    items.push((resource.clone(), item));
                }
            }
        }
    }
    match form {
        Output::Name => {
            for (resource, item) in &items {
                print::line(&resource.display(item["metadata"]["name"].as_str().unwrap_or_default()))?;
            }
            return Ok(());
        }
        Output::Columns(columns) => {
            let items: Vec<Value> = items.into_iter().map(|(_, item)| item).collect();
            return print::raw(&columns.table(&items, !args.no_headers)?);
        }
        _ => {}
    }
    let one = matches!(wanted, [Wanted::One(_)]);
    let value = match (one, items.len()) {
        (true, 0) => return Ok(()),
        (true, _) => items.remove(0).1,
        _ => {
            let items: Vec<Value> = items.into_iter().map(|(_, item)| item).collect();
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
        }
    };
    show(&without_managed_fields(value), form)
}

/// What managers own fills screens, and nobody asks for it.
fn without_managed_fields(mut value: Value) -> Value {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    };
    if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(strip);
    }
    strip(&mut value);
    value
}

fn show(value: &Value, form: &Output) -> Result<(), Error> {
    match form {
        Output::Json => print::line(&format!("{value:#}")),
        Output::JsonPath(template) => {
            let text = template.apply(value).map_err(|e| Error::Usage(format!("error executing jsonpath: {e}")))?;
            print::raw(&text)
        }
        Output::Columns(columns) => print::raw(&columns.table(std::slice::from_ref(value), false)?),
        _ => print::raw(&print::yaml(value)?),
    }
}

/// Prints what there is, and then what changes, until the server or the user ends it.
async fn watch(session: &Session, wanted: &Wanted, args: &GetArgs) -> Result<(), Error> {
    let resource = wanted.resource().clone();
    let (all, one_name) = match wanted {
        Wanted::All(_) => (Wanted::All(resource.clone()), None),
        Wanted::One(object) => (Wanted::All(resource.clone()), Some(format!("metadata.name={}", object.name))),
    };
    let table = matches!(args.output, None | Some(Output::Wide));
    let more = [("watch", Some("true")), ("fieldSelector", one_name.as_deref())];
    let mut events = session.events(&path(session, &all, args, &more), table).await?;
    let mut headers = !args.no_headers;
    // only the first table has them
    let mut definitions = Value::Null;
    while let Some(event) = events.next().await {
        let event = event?;
        let object = &event["object"];
        match event["type"].as_str() {
            Some("BOOKMARK") => {}
            Some("ERROR") => {
                let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
                return Err(Error::Refused { reason: text("reason"), message: text("message") });
            }
            _ if matches!(args.output, Some(Output::Name)) => {
                print::line(&resource.display(object["metadata"]["name"].as_str().unwrap_or_default()))?;
            }
            _ if table => {
                if object["columnDefinitions"].as_array().is_some_and(|all| !all.is_empty()) {
                    definitions = object["columnDefinitions"].clone();
                }
                let mut object = object.clone();
                object["columnDefinitions"] = definitions.clone();
                let rows = Table::of(&object, &resource, args, false).rows();
                let rows = if std::mem::take(&mut headers) { &rows[..] } else { &rows[1..] };
                print::raw(&print::columns(rows))?;
            }
            _ => {
                if matches!(args.output, Some(Output::Yaml)) {
                    print::line("---")?;
                }
                show(&without_managed_fields(object.clone()), args.output.as_ref().unwrap_or(&Output::Yaml))?;
            }
        }
    }
    Ok(())
}

/// `api-resources`
pub(crate) fn api_resources(session: &Session) -> Result<(), Error> {
    let mut rows = vec![["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"].map(str::to_owned).to_vec()];
    let mut seen = Vec::new();
    for resource in session.resources() {
        let name = resource.full_name();
        if resource.verbs.is_empty() || seen.contains(&name) {
            continue;
        }
        let (version, namespaced) = (resource.api_version(), resource.namespaced.to_string());
        rows.push(vec![resource.plural, resource.short_names.join(","), version, namespaced, resource.kind]);
        seen.push(name);
    }
    print::raw(&print::columns(&rows))
}
