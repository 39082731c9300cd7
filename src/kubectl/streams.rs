//! `logs` and `exec`.

use crate::apply::text;
use crate::cli::{ExecArgs, LogsArgs};
use crate::error::Error;
use crate::resources::Resource;
use crate::session::{Session, query};
use crate::terminal::{RawTerminal, is_terminal, window_size};
use edge_client::{Api, AttachParams, AttachedProcess, TerminalSize};
use futures::{AsyncReadExt, SinkExt};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use std::io::Write;
use tokio::io::{AsyncWriteExt, copy};
use tokio::signal::unix::{SignalKind, signal};

/// The pod that a word means: its name, `pod/NAME`, or one of the pods of something.
pub(crate) async fn pod(session: &Session, word: &str) -> Result<Value, Error> {
    let pods = session.resource("pods")?;
    let (kind, name) = word.split_once('/').unwrap_or(("pods", word));
    let resource = session.resource(kind)?;
    if resource == pods {
        return session.get(&pods.path(Some(&session.namespace), Some(name))).await;
    }
    let owner = session.get(&resource.path(Some(&session.namespace), Some(name))).await?;
    pod_of(session, &pods, &owner, word).await
}

/// A pod that something selects, one that is ready if there is one.
pub(crate) async fn pod_of(session: &Session, pods: &Resource, owner: &Value, word: &str) -> Result<Value, Error> {
    let selector = selector(&owner["spec"]["selector"]);
    let selector = selector.ok_or_else(|| Error::Usage(format!("{word} has no pods that could be found by labels")))?;
    let path = pods.path(Some(&session.namespace), None);
    let list = session.get(&format!("{path}?{}", query(&[("labelSelector", Some(&selector))]))).await?;
    let all = list["items"].as_array().cloned().unwrap_or_default();
    let is_ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let found = all.iter().find(|pod| is_ready(pod)).or_else(|| all.first());
    found.cloned().ok_or_else(|| Error::Usage(format!("{word} has no pods")))
}

/// A selector as a query has it: labels alone (services), or in the form of workloads.
fn selector(selector: &Value) -> Option<String> {
    let fields = selector.as_object().filter(|fields| !fields.is_empty())?;
    let is_workload = fields.contains_key("matchLabels") || fields.contains_key("matchExpressions");
    let labels = if is_workload { selector["matchLabels"].as_object() } else { Some(fields) };
    let mut parts: Vec<String> =
        labels.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten().filter(|_| is_workload) {
        let key = text(expression, "/key");
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match text(expression, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    Some(parts.join(","))
}

/// The container that is meant, when none is named and there are several.
fn container(pod: &Value, given: Option<&String>) -> Option<String> {
    if let Some(name) = given {
        return Some(name.clone());
    }
    let all: Vec<&str> = pod["spec"]["containers"].as_array().into_iter().flatten().map(|c| text(c, "/name")).collect();
    let annotation = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let chosen = annotation.filter(|name| all.contains(name)).or_else(|| all.first().copied())?;
    if all.len() > 1 && annotation.is_none() {
        eprintln!("Defaulted container {chosen:?} out of: {}", all.join(", "));
    }
    Some(chosen.to_owned())
}

pub(crate) async fn logs(session: &Session, args: LogsArgs) -> Result<(), Error> {
    let pod = pod(session, &args.pod).await?;
    let container = container(&pod, args.container.as_ref());
    let number = |n: Option<i64>| n.map(|n| n.to_string());
    let (tail, since) = (number(args.tail.filter(|n| *n >= 0)), number(args.since));
    let flag = |set: bool| set.then_some("true");
    let query = query(&[
        ("container", container.as_deref()),
        ("follow", flag(args.follow)),
        ("previous", flag(args.previous)),
        ("timestamps", flag(args.timestamps)),
        ("tailLines", tail.as_deref()),
        ("sinceSeconds", since.as_deref()),
    ]);
    let path = session.resource("pods")?.path(Some(&session.namespace), Some(text(&pod, "/metadata/name")));
    let mut stream = session.stream(&format!("{path}/log?{query}"), false).await?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match out.write_all(&buffer[..read]).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
}

/// Whether there is a terminal, where one is wanted; says so when there is none.
pub(crate) fn has_terminal(tty: bool, stdin: bool) -> bool {
    let has = tty && stdin && is_terminal();
    if tty && !has {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    has
}

pub(crate) async fn exec(session: &Session, args: ExecArgs) -> Result<u8, Error> {
    let pod = pod(session, &args.pod).await?;
    let tty = has_terminal(args.tty, args.stdin);
    let params = AttachParams {
        container: container(&pod, args.container.as_ref()),
        stdin: args.stdin,
        stdout: true,
        stderr: !tty,
        tty,
        ..AttachParams::default()
    };
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let process = api.exec(text(&pod, "/metadata/name"), args.command, &params).await?;
    exit_code(&converse(process, tty).await?)
}

/// Joins this process's streams with those of a program until that ends; gives what the server says of it then.
pub(crate) async fn converse(mut process: AttachedProcess, tty: bool) -> Result<Value, Error> {
    let raw = tty.then(RawTerminal::enter).transpose()?;
    let (stdin, stdout, stderr) = (process.stdin(), process.stdout(), process.stderr());
    let (status, sizes) = (process.take_status(), process.terminal_size());
    // reading a terminal blocks a thread for good, which must not keep this process
    let input = tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            // the program may end before its input does
            let _ = copy(&mut tokio::io::stdin(), &mut stdin).await;
            let _ = stdin.shutdown().await;
        }
    });
    let resizes = tokio::spawn(async move {
        let (Some(mut sizes), Ok(mut changes)) = (sizes, signal(SignalKind::window_change())) else { return };
        while let Some((width, height)) = window_size() {
            if sizes.send(TerminalSize { width, height }).await.is_err() || changes.recv().await.is_none() {
                return;
            }
        }
    });
    let out = async {
        if let Some(mut stdout) = stdout {
            let _ = copy(&mut stdout, &mut tokio::io::stdout()).await;
        }
    };
    let err = async {
        if let Some(mut stderr) = stderr {
            let _ = copy(&mut stderr, &mut tokio::io::stderr()).await;
        }
    };
    tokio::join!(out, err);
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    input.abort();
    resizes.abort();
    drop(raw);
    let Some(status) = status else { return Err(Error::Unreachable("the connection ended before the program".into())) };
    Ok(serde_json::to_value(&status).unwrap_or_default())
}

/// What a program's status says: its exit code, or why it never ran.
fn exit_code(status: &Value) -> Result<u8, Error> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().cloned().unwrap_or_default();
    let code = causes.iter().find(|c| c["reason"] == "ExitCode").map(|c| text(c, "/message").to_owned());
    match code.and_then(|code| code.parse::<i32>().ok()) {
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            // the system knows one byte
            Ok(code.to_le_bytes()[0])
        }
        None => Err(Error::Refused {
            reason: text(status, "/reason").to_owned(),
            message: text(status, "/message").to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_of_services_and_workloads() {
        assert_eq!(selector(&json!({"app": "a", "tier": "b"})).unwrap(), "app=a,tier=b");
        let workload = json!({"matchLabels": {"app": "a"}, "matchExpressions": [
            {"key": "x", "operator": "In", "values": ["1", "2"]}, {"key": "y", "operator": "DoesNotExist"}]});
        assert_eq!(selector(&workload).unwrap(), "app=a,x in (1,2),!y");
        assert!(selector(&json!({})).is_none() && selector(&Value::Null).is_none());
    }

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(&json!({"status": "Success"})).unwrap(), 0);
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}});
        assert_eq!(exit_code(&failed).unwrap(), 7);
        assert!(
            exit_code(&json!({"status": "Failure", "reason": "InternalError", "message": "no such file"})).is_err()
        );
    }
}
