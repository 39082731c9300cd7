//! `port-forward`: ports of this machine that lead into a pod.

use crate::apply::text;
use crate::cli::PortForwardArgs;
use crate::error::Error;
use crate::print;
use crate::session::Session;
use crate::streams::{pod, pod_of};
use edge_client::Api;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub(crate) async fn run(session: &Session, args: PortForwardArgs) -> Result<(), Error> {
    let (pod, service) = target(session, &args.pod).await?;
    let name = text(&pod, "/metadata/name").to_owned();
    let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let mut tasks = JoinSet::new();
    for spec in &args.ports {
        let (local, remote) = ports(spec)?;
        let remote = match &service {
            Some(service) => target_port(service, &pod, remote)?,
            None => remote,
        };
        for address in &args.address {
            let listener = TcpListener::bind((*address, local)).await?;
            print::line(&format!("Forwarding from {} -> {remote}", listener.local_addr()?))?;
            tasks.spawn(accept(listener, api.clone(), name.clone(), remote));
        }
    }
    // until the user ends it, or a listener breaks
    match tasks.join_next().await {
        Some(Ok(ended)) => ended,
        Some(Err(error)) => Err(Error::Usage(error.to_string())),
        None => Ok(()),
    }
}

/// The pod that is meant, and the service through which it was named.
async fn target(session: &Session, word: &str) -> Result<(Value, Option<Value>), Error> {
    if let Some((kind, name)) = word.split_once('/')
        && let resource = session.resource(kind)?
        && resource.kind == "Service"
    {
        let service = session.get(&resource.path(Some(&session.namespace), Some(name))).await?;
        let pod = pod_of(session, &session.resource("pods")?, &service, word).await?;
        return Ok((pod, Some(service)));
    }
    Ok((pod(session, word).await?, None))
}

/// `8080`, `8080:80`, `:80`
fn ports(spec: &str) -> Result<(u16, u16), Error> {
    let (local, remote) = spec.split_once(':').unwrap_or((spec, spec));
    let number = |text: &str| text.parse::<u16>().ok();
    let local = if local.is_empty() { Some(0) } else { number(local) };
    match (local, number(remote).filter(|port| *port > 0)) {
        (Some(local), Some(remote)) => Ok((local, remote)),
        _ => Err(Error::Usage(format!("{spec:?} is not [LOCAL:]REMOTE"))),
    }
}

/// The port of the pod behind a port of a service.
fn target_port(service: &Value, pod: &Value, port: u16) -> Result<u16, Error> {
    let mut entries = service["spec"]["ports"].as_array().into_iter().flatten();
    let entry = entries.find(|e| e["port"] == port);
    let entry = entry.ok_or_else(|| Error::Usage(format!("the service does not have a port {port}")))?;
    let narrow = |number: u64| u16::try_from(number).unwrap_or(port);
    let Some(name) = entry["targetPort"].as_str() else {
        return Ok(entry["targetPort"].as_u64().map_or(port, narrow));
    };
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut named = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let found = named.find(|p| p["name"] == name).and_then(|p| p["containerPort"].as_u64());
    found.map(narrow).ok_or_else(|| Error::Usage(format!("the pod does not have a port named {name:?}")))
}

async fn accept(listener: TcpListener, api: Api<Pod>, pod: String, port: u16) -> Result<(), Error> {
    loop {
        let (stream, _) = listener.accept().await?;
        eprintln!("Handling connection for {}", listener.local_addr()?.port());
        let (api, pod) = (api.clone(), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = forward(stream, &api, &pod, port).await {
                eprintln!("error: forwarding to {pod}:{port}: {error}");
            }
        });
    }
}

async fn forward(mut stream: TcpStream, api: &Api<Pod>, pod: &str, port: u16) -> Result<(), Error> {
    let mut forwarder = api.portforward(pod, &[port]).await?;
    let missing = || Error::Unreachable("the server opened no stream".into());
    let mut inside = forwarder.take_stream(port).ok_or_else(missing)?;
    let refused = forwarder.take_error(port);
    let copied = tokio::io::copy_bidirectional(&mut stream, &mut inside).await;
    drop(inside);
    if let Some(refused) = refused
        && let Some(message) = refused.await
    {
        return Err(Error::Unreachable(message));
    }
    // either side may break off
    let _ = copied;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_and_what_is_behind_them() {
        assert_eq!(ports("80").unwrap(), (80, 80));
        assert_eq!(ports("8080:80").unwrap(), (8080, 80));
        assert_eq!(ports(":80").unwrap(), (0, 80));
        assert!(ports("a").is_err() && ports("1:0").is_err() && ports("70000").is_err());
        let service = json!({"spec": {"ports": [{"port": 80, "targetPort": "web"}, {"port": 81, "targetPort": 8081}, {"port": 82}]}});
        let pod = json!({"spec": {"containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]}});
        assert_eq!([80, 81, 82].map(|p| target_port(&service, &pod, p).unwrap()), [8080, 8081, 82]);
        assert!(target_port(&service, &pod, 83).is_err());
        assert!(target_port(&service, &json!({}), 80).is_err());
    }
}
