//! `delete`, until the objects are gone.

use crate::apply::{named, text};
use crate::cli::DeleteArgs;
use crate::error::Error;
use crate::get::{Wanted, wanted};
use crate::resources::Object;
use crate::session::{Session, query};
use crate::{files, print};
use futures::StreamExt;
use serde_json::json;

pub(crate) async fn run(session: &Session, args: DeleteArgs) -> Result<(), Error> {
    let mut gone = Vec::new();
    for (object, namespace) in objects(session, &args).await? {
        let path = object.resource.path(Some(&namespace), Some(&object.name));
        let grace = if args.now { Some(1) } else { args.grace_period };
        let grace = if args.force { Some(grace.unwrap_or(0)) } else { grace };
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        if let Some(seconds) = grace {
            options["gracePeriodSeconds"] = seconds.into();
        }
        let answer = match session.delete(&path, &options).await {
            Err(Error::Refused { reason, .. }) if reason == "NotFound" && args.ignore_not_found => continue,
            other => other?,
        };
        let place = if object.resource.namespaced { format!(" from {namespace} namespace") } else { String::new() };
        let how = if args.force { " force" } else { "" };
        let kind = object.resource.display("");
        print::line(&format!("{} {:?}{how} deleted{place}", kind.trim_end_matches('/'), object.name))?;
        // an object is told as it is while it is going, a status where it has gone
        let uid = text(&answer, "/metadata/uid").to_owned();
        if !uid.is_empty() {
            gone.push((object, namespace, uid));
        }
    }
    if args.wait {
        for (object, namespace, uid) in gone {
            await_gone(session, &object, &namespace, &uid).await?;
        }
    }
    Ok(())
}

/// What is to be deleted, with namespaces.
async fn objects(session: &Session, args: &DeleteArgs) -> Result<Vec<(Object, String)>, Error> {
    if !args.files.is_empty() {
        let mut all = Vec::new();
        for object in files::objects(&args.files)? {
            all.push(named(session, &object).await?);
        }
        return Ok(all);
    }
    let mut all = Vec::new();
    for one in wanted(session, &args.which)? {
        match one {
            Wanted::One(object) => all.push((object, session.namespace.clone())),
            Wanted::All(resource) => {
                if !args.all && args.which.selector.is_none() && args.which.field_selector.is_none() {
                    return Err(Error::Usage("say which: by names, with -l, or --all".into()));
                }
                let selectors = query(&[
                    ("labelSelector", args.which.selector.as_deref()),
                    ("fieldSelector", args.which.field_selector.as_deref()),
                ]);
                let list =
                    session.get(&format!("{}?{selectors}", resource.path(Some(&session.namespace), None))).await?;
                for item in list["items"].as_array().into_iter().flatten() {
                    let name = text(item, "/metadata/name").to_owned();
                    all.push((Object { resource: resource.clone(), name }, session.namespace.clone()));
                }
            }
        }
    }
    Ok(all)
}

/// Waits until an object is not there any more; another one of its name is another one.
async fn await_gone(session: &Session, object: &Object, namespace: &str, uid: &str) -> Result<(), Error> {
    let path = object.resource.path(Some(namespace), Some(&object.name));
    loop {
        let known = match session.get(&path).await {
            Err(Error::Refused { reason, .. }) if reason == "NotFound" => return Ok(()),
            other => other?,
        };
        if text(&known, "/metadata/uid") != uid {
            return Ok(());
        }
        let mut events = session.follow(object, namespace, &known).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            if event["type"] == "DELETED" && text(&event, "/object/metadata/uid") == uid {
                return Ok(());
            }
        }
    }
}
