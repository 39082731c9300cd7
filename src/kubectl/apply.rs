//! `apply` and `create`: the server merges, and knows who manages what.

use crate::cli::{ApplyArgs, CreateArgs, CreateWhat, DryRun};
use crate::error::Error;
use crate::resources::{Object, Resource};
use crate::session::{APPLY_PATCH, FIELD_MANAGER, Session, query};
use crate::{files, print, workloads};
use serde_json::{Value, json};

/// The resource of an object of a manifest, and its namespace.
pub(crate) async fn place(session: &Session, object: &Value) -> Result<(Resource, String), Error> {
    let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    let mut resource = session.resource_of(version, kind);
    if resource.is_none() {
        session.discover().await?;
        resource = session.resource_of(version, kind);
    }
    let resource = resource.ok_or_else(|| Error::NoSuchResource(format!("{kind} in {version}")))?;
    let namespace = Some(text(object, "/metadata/namespace")).filter(|n| !n.is_empty()).unwrap_or(&session.namespace);
    Ok((resource, namespace.to_owned()))
}

pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) async fn apply(session: &Session, args: ApplyArgs) -> Result<(), Error> {
    let dry = args.dry_run == Some(DryRun::Server);
    let mut failed = None;
    for object in files::objects(&args.files)? {
        match apply_one(session, &object, args.force_conflicts, dry).await {
            Ok(said) => print::line(&said)?,
            // the others have nothing to do with it
            Err(error) => {
                eprintln!("{error}");
                failed = Some(text(&object, "/metadata/name").to_owned());
            }
        }
    }
    failed.map_or(Ok(()), |name| Err(Error::Usage(format!("not everything could be applied ({name})"))))
}

async fn apply_one(session: &Session, object: &Value, force: bool, dry: bool) -> Result<String, Error> {
    let (resource, namespace) = place(session, object).await?;
    let name = text(object, "/metadata/name");
    let path = resource.path(Some(&namespace), Some(name));
    let before = match session.get(&path).await {
        Err(Error::Refused { reason, .. }) if reason == "NotFound" => None,
        other => Some(other?),
    };
    let (force, dry_run) = (force.then_some("true"), dry.then_some("All"));
    let query = query(&[("fieldManager", Some(FIELD_MANAGER)), ("force", force), ("dryRun", dry_run)]);
    let after = session.patch(&format!("{path}?{query}"), APPLY_PATCH, object).await?;
    let version = |object: &Value| text(object, "/metadata/resourceVersion").to_owned();
    let done = match before {
        None => "created",
        Some(before) if version(&before) == version(&after) => "unchanged",
        Some(_) => "configured",
    };
    Ok(format!("{} {done}{}", resource.display(name), if dry { " (server dry run)" } else { "" }))
}

pub(crate) async fn create(session: &Session, args: CreateArgs) -> Result<(), Error> {
    match args.what {
        None => {
            for object in files::objects(&args.files)? {
                create_one(session, &object).await?;
            }
            Ok(())
        }
        Some(CreateWhat::Namespace { name }) => {
            create_one(session, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await
        }
        Some(CreateWhat::Deployment { name, image, replicas, port, command }) => {
            create_one(session, &workloads::deployment(&name, &image, replicas, port, &command)).await
        }
    }
}

/// Creates an object, and says so.
pub(crate) async fn create_one(session: &Session, object: &Value) -> Result<(), Error> {
    let (resource, namespace) = place(session, object).await?;
    let query = query(&[("fieldManager", Some(FIELD_MANAGER))]);
    let path = format!("{}?{query}", resource.path(Some(&namespace), None));
    let made = session.post(&path, object).await?;
    print::line(&format!("{} created", resource.display(text(&made, "/metadata/name"))))
}

/// The object of a manifest by its name.
pub(crate) async fn named(session: &Session, object: &Value) -> Result<(Object, String), Error> {
    let (resource, namespace) = place(session, object).await?;
    Ok((Object { resource, name: text(object, "/metadata/name").to_owned() }, namespace))
}
