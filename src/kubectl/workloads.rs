//! Objects that are made or changed by a few words.

use crate::apply::{create_one, text};
use crate::cli::{ExposeArgs, ScaleArgs};
use crate::error::Error;
use crate::print;
use crate::session::{FIELD_MANAGER, MERGE_PATCH, Session, query};
use serde_json::{Map, Value, json};

/// A deployment as `create deployment` makes it.
pub(crate) fn deployment(name: &str, image: &str, replicas: i32, port: Option<u16>, command: &[String]) -> Value {
    // as kubectl does it: the image's name without its place and version
    let short = image.rsplit('/').next().unwrap_or(image).split(['@', ':']).next().unwrap_or(image);
    let mut container = json!({"name": short.replace('_', "-"), "image": image});
    if let Some(port) = port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if !command.is_empty() {
        container["command"] = command.into();
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}}
    })
}

pub(crate) async fn scale(session: &Session, args: ScaleArgs) -> Result<(), Error> {
    for object in session.objects(&args.objects)? {
        let query = query(&[("fieldManager", Some(FIELD_MANAGER))]);
        let path = format!("{}/scale?{query}", session.path(&object));
        session.patch(&path, MERGE_PATCH, &json!({"spec": {"replicas": args.replicas}})).await?;
        print::line(&format!("{} scaled", object.resource.display(&object.name)))?;
    }
    Ok(())
}

pub(crate) async fn expose(session: &Session, args: ExposeArgs) -> Result<(), Error> {
    let object = session.object(&args.objects)?;
    let exposed = session.get(&session.path(&object)).await?;
    let service = service(&object.resource.kind, &object.name, &exposed, &args)?;
    create_one(session, &service).await
}

/// The service for the pods of something.
fn service(kind: &str, name: &str, exposed: &Value, args: &ExposeArgs) -> Result<Value, Error> {
    let (selector, pod) = match kind {
        "Deployment" | "ReplicaSet" => {
            if exposed.pointer("/spec/selector/matchExpressions").is_some() {
                return Err(Error::Usage("its selector has expressions, which a service cannot have".into()));
            }
            (&exposed["spec"]["selector"]["matchLabels"], &exposed["spec"]["template"]["spec"])
        }
        "ReplicationController" => (&exposed["spec"]["selector"], &exposed["spec"]["template"]["spec"]),
        "Pod" => (&exposed["metadata"]["labels"], &exposed["spec"]),
        "Service" => (&exposed["spec"]["selector"], &exposed["spec"]),
        _ => return Err(Error::Usage(format!("a {kind} cannot be exposed"))),
    };
    if selector.as_object().is_none_or(Map::is_empty) {
        return Err(Error::Usage(format!(
            "{} {name:?} has no labels by which its pods could be found",
            kind.to_lowercase()
        )));
    }
    let ports = match args.port {
        Some(port) => vec![(port, args.protocol.clone())],
        None => declared(kind, pod),
    };
    if ports.is_empty() {
        return Err(Error::Usage("couldn't find port via --port flag or introspection".into()));
    }
    let many = ports.len() > 1;
    let port = |(i, (port, protocol)): (usize, &(u16, String))| {
        let target = args.target_port.as_deref().map_or_else(
            || Value::from(*port),
            |target| target.parse::<u16>().map_or_else(|_| Value::from(target), Value::from),
        );
        let mut entry = Map::from_iter([
            ("port".to_owned(), Value::from(*port)),
            ("protocol".to_owned(), Value::from(protocol.as_str())),
            ("targetPort".to_owned(), target),
        ]);
        if many {
            entry.insert("name".into(), format!("port-{}", i + 1).into());
        }
        Value::Object(entry)
    };
    let ports: Vec<Value> = ports.iter().enumerate().map(port).collect();
    let name = args.name.as_deref().unwrap_or(name);
    Ok(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": text(exposed, "/metadata/namespace"), "labels": exposed["metadata"]["labels"]},
        "spec": {"type": args.kind, "selector": selector, "ports": ports}
    }))
}

/// The ports that containers, or a service, have.
fn declared(kind: &str, spec: &Value) -> Vec<(u16, String)> {
    let (lists, key) = match kind {
        "Service" => (vec![&spec["ports"]], "port"),
        _ => (spec["containers"].as_array().into_iter().flatten().map(|c| &c["ports"]).collect(), "containerPort"),
    };
    let ports = lists.into_iter().filter_map(Value::as_array).flatten();
    ports
        .filter_map(|port| {
            let number = u16::try_from(port[key].as_u64()?).ok()?;
            Some((number, port["protocol"].as_str().unwrap_or("TCP").to_owned()))
        })
        .collect()
}
