//! `run`: an image in a pod, with its streams joined to this process's when that is wished.

use crate::apply::{create_one, text};
use crate::cli::{DeleteArgs, LogsArgs, RunArgs, Which};
use crate::error::Error;
use crate::resources::Object;
use crate::session::Session;
use crate::streams::{converse, has_terminal};
use crate::{delete, streams};
use edge_client::{Api, AttachParams};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

pub(crate) async fn run(session: &Session, args: RunArgs) -> Result<u8, Error> {
    let tty = has_terminal(args.tty, args.stdin);
    create_one(session, &pod(&args)?).await?;
    if !args.stdin {
        return Ok(0);
    }
    let object = Object { resource: session.resource("pods")?, name: args.name.clone() };
    let talked = talk(session, &object, tty).await;
    if args.rm {
        let which = Which { objects: vec![format!("pods/{}", args.name)], selector: None, field_selector: None };
        delete::run(session, DeleteArgs { which, grace_period: Some(1), ..DeleteArgs::default() }).await?;
    }
    talked
}

/// The pod as kubectl makes it.
fn pod(args: &RunArgs) -> Result<Value, Error> {
    let pair = |text: &String, what: &str| {
        let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = pair.ok_or_else(|| Error::Usage(format!("{text:?} is no {what}")))?;
        Ok::<_, Error>((name.to_owned(), value.to_owned()))
    };
    let labels: Map<String, Value> = match args.labels.is_empty() {
        true => Map::from_iter([("run".to_owned(), args.name.clone().into())]),
        false => {
            let all: Result<Vec<_>, Error> = args.labels.iter().map(|l| pair(l, "label: KEY=VALUE")).collect();
            all?.into_iter().map(|(key, value)| (key, value.into())).collect()
        }
    };
    let mut container = json!({"name": args.name, "image": args.image, "resources": {}});
    if !args.env.is_empty() {
        let all: Result<Vec<_>, Error> = args.env.iter().map(|e| pair(e, "variable: NAME=VALUE")).collect();
        container["env"] = all?.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    }
    if let Some(port) = args.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if !args.words.is_empty() {
        container[if args.command { "command" } else { "args" }] = args.words.clone().into();
    }
    if args.stdin {
        container["stdin"] = true.into();
        container["stdinOnce"] = true.into();
    }
    if args.tty {
        container["tty"] = true.into();
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": args.name, "labels": labels},
        "spec": {"containers": [container], "restartPolicy": args.restart, "dnsPolicy": "ClusterFirst"}
    }))
}

/// Joins the streams once the program runs; gives its exit code, where it is known to have ended.
async fn talk(session: &Session, object: &Object, tty: bool) -> Result<u8, Error> {
    let begun =
        await_state(session, object, |state| !state["running"].is_null() || !state["terminated"].is_null()).await?;
    if !begun["terminated"].is_null() {
        // too fast for us: what it wrote is in its log
        streams::logs(session, LogsArgs { pod: object.name.clone(), ..LogsArgs::default() }).await?;
        return Ok(code(&begun));
    }
    if tty {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let params = AttachParams { stdin: true, stdout: true, stderr: !tty, tty, ..AttachParams::default() };
    let process = api.attach(&object.name, &params).await?;
    converse(process, tty).await?;
    let known = session.get(&session.path(object)).await?;
    if text(&known, "/spec/restartPolicy") == "Always" {
        return Ok(0);
    }
    Ok(code(&await_state(session, object, |state| !state["terminated"].is_null()).await?))
}

fn code(state: &Value) -> u8 {
    // the system knows one byte
    state["terminated"]["exitCode"].as_i64().unwrap_or_default().to_le_bytes()[0]
}

/// Waits until the state of the pod's container is as wished, and gives it.
async fn await_state(session: &Session, object: &Object, wished: impl Fn(&Value) -> bool) -> Result<Value, Error> {
    let state = |pod: &Value| pod["status"]["containerStatuses"][0]["state"].clone();
    loop {
        let known = session.get(&session.path(object)).await?;
        if wished(&state(&known)) {
            return Ok(state(&known));
        }
        let mut events = session.follow(object, &session.namespace, &known).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            if event["type"] == "DELETED" {
                return Err(Error::Usage(format!("pod {:?} was deleted", object.name)));
            }
            if wished(&state(&event["object"])) {
                return Ok(state(&event["object"]));
            }
        }
    }
}
