//! `edge agent`: a node of a cluster whose servers are elsewhere.

use super::agent::{self, NodeParts};
use super::join::{JoinError, Membership};
use super::net_events::watch_network;
use super::server::{Failure, Process, crash, doing, node_addresses};
use super::{
    fail, instance,
    notify::{keep_watchdog, notify, settle},
    server, tunnels,
};
use crate::config::AgentConfig;
use edge_client::{Informers, Uplink};
use edge_runtime::Zygote;
use http::{HeaderMap, HeaderValue};
use std::io;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The exit code when the server will not have this machine: trying again does not help.
const REFUSED: u8 = 5;
/// A node that starts without its server has started; this long it is waited for.
const SERVER_PATIENCE: Duration = Duration::from_secs(15);
/// The user under whom the network part of a node reads the cluster's state.
const NETWORK_USER: &str = "edge:network";

/// Runs until SIGTERM or SIGINT; containers go on.
pub(crate) fn main(config: AgentConfig, debug: bool, zygote: Option<io::Result<Zygote>>) -> ExitCode {
    server::run_process(true, debug, zygote, |process| Box::pin(run(config, process)))
}

async fn run(config: AgentConfig, process: Process) -> ExitCode {
    match run_agent(&config, process).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Refused(error)) => fail(REFUSED, &error),
        Err(Ended::Failed(error)) => fail(1, &error),
    }
}

enum Ended {
    Refused(JoinError),
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(error: Failure) -> Self {
        Self::Failed(error)
    }
}

async fn run_agent(config: &AgentConfig, mut process: Process) -> Result<(), Ended> {
    let secret = |dir: &str| edge_sys::fsutil::create_dir_all_mode(&config.data_dir.join(dir), 0o700);
    ["agent", "run"].into_iter().try_for_each(secret).map_err(doing("making the data directory"))?;
    let _instance = instance::claim(&config.data_dir)?;
    let Some(zygote) = process.zygote.take() else { return Ok(()) };
    let socket = agent::kubelet_socket(config.node.kubelet_port)?;
    let network_changes = watch_network();
    let mut tasks = JoinSet::new();
    // which families the cluster has is not known yet; nodes are reached by the first
    let both = [true, false];
    let addresses = node_addresses(&config.node.ips, &both, None, network_changes.clone(), &mut tasks)?;
    let known = addresses.borrow().clone();
    let joining = Membership::open(config, &known, network_changes);
    let membership = tokio::select! {
        joined = joining => joined.map_err(|error| match error {
            JoinError::File { .. } | JoinError::Pki(_) => Ended::Failed(doing("joining the cluster")(error)),
            refused => Ended::Refused(refused),
        })?,
        () = process.ended() => return Ok(()),
    };
    let servers = membership.servers()?;
    let uplink = Uplink::new(servers.clone());
    let node = uplink.client(HeaderMap::new());
    let as_network = HeaderMap::from_iter([(
        http::HeaderName::from_static("impersonate-user"),
        HeaderValue::from_static(NETWORK_USER),
    )]);
    let informers = Informers::new(uplink.client(as_network));
    let memory = config.data_dir.join("agent/memory");
    edge_sys::fsutil::create_dir_all_mode(&memory, 0o700).map_err(doing("making the data directory"))?;
    edge_proxy::memory::remember(&informers, &memory, &config.node.name, edge_dns::CONFIG_MAP);
    let parts = NodeParts {
        data_dir: &config.data_dir,
        node: &config.node,
        facts: &membership.facts,
        addresses: addresses.clone(),
        network: agent::network(&config.data_dir, &config.node, &membership.facts, &known)?,
        zygote,
        client: node,
        informers: informers.clone(),
    };
    let kubelet = agent::start(parts, &mut tasks).await?;
    agent::serve_kubelet(&kubelet, socket, &membership.serving, &membership.facts.client_ca, &mut tasks)?;
    let home = watch::Sender::new(None);
    tunnels::reach_servers(&kubelet, &informers, home.subscribe(), membership.server()?, &mut tasks);
    tasks.spawn(edge_client::keep_tunnel(servers.clone(), home, tunnels::serve(&kubelet)));
    tasks.spawn(membership.keep_renewed(addresses, process.rotations.clone(), servers));

    let ready = async {
        // the sender lives as long as the kubelet
        let mut ready = kubelet.ready();
        match tokio::time::timeout(SERVER_PATIENCE, ready.wait_for(|ready| *ready)).await {
            Ok(_) => tracing::info!(node = config.node.name, "the node is ready"),
            Err(_) => tracing::warn!("the server does not know of this node yet; its pods run nevertheless"),
        }
        notify("READY=1");
        tokio::join!(settle(), keep_watchdog());
    };
    let crash = tokio::select! {
        () = ready => None,
        () = process.ended() => None,
        crash = crash(&mut tasks) => Some(crash),
    };
    notify("STOPPING=1");
    tracing::info!("stopping; containers go on");
    kubelet.stop().await;
    informers.save().await;
    tasks.shutdown().await;
    crash.map_or(Ok(()), |crash| Err(crash.into()))
}
