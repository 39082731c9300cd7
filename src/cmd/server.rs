//! `edge server`: control plane and node agent in one process.

use super::agent::{self, LocalDialer};
use super::identities::{client, user};
use super::{GIT_VERSION, fail, logging, notify::notify};
use crate::config::ServerConfig;
use edge_apiserver::{ApiServer, Parts};
use edge_auth::{Authenticator, AuthenticatorOptions};
use edge_client::Informers;
use edge_controllers::{Identities, ManifestsOptions};
use edge_pki::{ClientName, ClusterPki, ServerNames};
use edge_registry::Registry;
use edge_runtime::Zygote;
use edge_storage::Lmdb;
use std::error::Error;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Kubernetes' defaults for requests under way at once.
const MAX_READ_ONLY: usize = 400;
const MAX_MUTATING: usize = 200;
/// Some 30 kB each; nodes and clients that work need a few each, and are never cut off.
const MAX_CONNECTIONS: usize = 2048;

/// Something that had to work at the start did not.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Failure {
    what: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

/// Says what was being done when an error came.
pub(crate) fn doing<E: Into<Box<dyn Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |source| Failure { what, source: source.into() }
}

/// Runs until SIGTERM or SIGINT; containers go on.
pub(crate) fn main(config: ServerConfig, debug: bool) -> ExitCode {
    // monitors are forked from a process without threads, so this comes before everything else
    let zygote = match config.agent.then(Zygote::start).transpose() {
        Ok(zygote) => zygote,
        Err(error) => return fail(1, &Failure { what: "starting the zygote", source: error.into() }),
    };
    logging::start(debug);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &Failure { what: "starting the runtime", source: error.into() }),
    };
    let result = runtime.block_on(Box::pin(run(config, zygote)));
    // what a blocking thread still does (reading an archive, say) is safe to leave at any point, as in a crash
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

async fn run(config: ServerConfig, zygote: Option<Zygote>) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(doing("listening for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(doing("listening for SIGINT"))?;
    raise_file_limit();
    let secret = |dir: &str| edge_sys::fsutil::create_dir_all_mode(&config.data_dir.join(dir), 0o700);
    ["server", "agent", "run"].into_iter().try_for_each(secret).map_err(doing("making the data directory"))?;

    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let addresses = node_addresses(&config)?;
    let address = addresses[0];
    let network = config.agent.then(|| agent::network(&config, &addresses)).transpose()?;
    let dialer = LocalDialer::new(&config.node_name);
    let (api, root_ca, serving) = control_plane(&config, &addresses, dialer.clone(), &shutdown).await?;
    let informers = Informers::new(client(&api, user("system:kube-controller-manager")));
    components(&config, &api, &informers, root_ca, &mut tasks);

    let kubelet = match (zygote, network) {
        (Some(zygote), Some(network)) => {
            let node = client(&api, user(&format!("system:node:{}", config.node_name)));
            let started = agent::start(&config, &addresses, zygote, network, (node, informers), &dialer, &mut tasks);
            Some(started.await?)
        }
        _ => None,
    };
    let ready = async {
        if let Some(kubelet) = &kubelet {
            // the sender lives as long as the kubelet
            let _ = kubelet.ready().wait_for(|ready| *ready).await;
        }
        notify("READY=1");
        tracing::info!(node = config.node_name, %address, kubeconfig = %config.kubeconfig.display(), "edge is ready");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = ready => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify("STOPPING=1");
    tracing::info!("stopping; containers go on");
    if let Some(kubelet) = kubelet {
        kubelet.stop().await;
    }
    // those who ask stop before the one who answers
    tasks.shutdown().await;
    shutdown.cancel();
    serving.await.map_err(doing("ending the API"))
}

/// The API server, listening; gives with it the certificate authority that clients verify it with, and the task that
/// serves until the shutdown.
async fn control_plane(
    config: &ServerConfig,
    addresses: &[IpAddr],
    dialer: Arc<LocalDialer>,
    shutdown: &CancellationToken,
) -> Result<(ApiServer, String, JoinHandle<()>), Failure> {
    let server_dir = config.data_dir.join("server");
    let (db, tls) = (server_dir.join("db"), server_dir.join("tls"));
    let storage = tokio::task::spawn_blocking(move || Lmdb::open(&db))
        .await
        .map_err(doing("opening the store"))?
        .map_err(doing("opening the store"))?;
    let listener = TcpListener::bind(SocketAddr::from(config.bind)).map_err(doing("listening for the API"))?;
    let pki = ClusterPki::load_or_create(&tls).map_err(doing("preparing certificates"))?;
    let service_ips: Vec<IpAddr> = config.service_cidrs.iter().map(|network| network.nth(1)).collect();
    let mut names = config.tls_san.clone();
    names.push(config.node_name.clone());
    let advertised = config.advertise_address.unwrap_or(addresses[0]);
    let server_ips = [&service_ips, addresses, &[advertised]].concat();
    let server_names = ServerNames::new(&config.cluster_domain, &server_ips, &names);
    let identity = pki.serving(&server_names).map_err(doing("preparing certificates"))?;
    let tls_config = edge_pki::server_config(&identity, &pki.client_ca).map_err(doing("preparing TLS"))?;
    let admin = pki.client("admin", &ClientName::admin()).map_err(doing("preparing certificates"))?;
    let url = format!("https://127.0.0.1:{}", config.bind.1);
    edge_pki::write_kubeconfig(&config.kubeconfig, config.kubeconfig_mode, &url, &pki.server_ca, &admin)
        .map_err(doing("writing the kubeconfig"))?;
    let root_ca = pki.server_ca.pem().to_owned();

    let options = edge_registry::Options {
        service_networks: config.service_cidrs.iter().map(|network| (network.base(), network.prefix())).collect(),
        node_ports: config.node_ports.clone(),
    };
    let registry = Registry::open(Arc::new(storage), options).await.map_err(doing("reading the store"))?;
    let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
    let authenticator = Authenticator::new(
        Arc::new(pki.service_account),
        AuthenticatorOptions { audiences: vec![issuer.clone()], issuer },
    );
    let api = ApiServer::new(Parts {
        registry,
        authenticator: Arc::new(authenticator),
        dialer,
        shutdown: shutdown.clone(),
        options: api_options(config, advertised, service_ips[0], root_ca.clone()),
    });
    api.bootstrap().await.map_err(doing("preparing the cluster"))?;
    let server = api.clone();
    let serving = tokio::spawn(async move {
        if let Err(error) = server.serve(listener, Arc::new(tls_config)).await {
            tracing::error!(error = super::with_causes(&error), "the API is not served any more");
        }
    });
    Ok((api, root_ca, serving))
}

fn api_options(config: &ServerConfig, advertised: IpAddr, service_ip: IpAddr, ca: String) -> edge_apiserver::Options {
    edge_apiserver::Options {
        git_version: GIT_VERSION.into(),
        git_commit: String::new(),
        build_date: String::new(),
        advertise_address: advertised,
        advertise_port: config.bind.1,
        service_ip,
        dns_ips: config.cluster_dns.clone(),
        cluster_ca_pem: ca.into(),
        max_connections: MAX_CONNECTIONS,
        max_read_only_in_flight: MAX_READ_ONLY,
        max_mutating_in_flight: MAX_MUTATING,
    }
}

/// Scheduler, controllers and the manifests of the watched directory.
fn components(config: &ServerConfig, api: &ApiServer, informers: &Informers, root_ca: String, tasks: &mut JoinSet<()>) {
    let identities = Identities::new(informers.clone(), {
        let api = api.clone();
        move |name| client(&api, user(name))
    });
    let manifests = ManifestsOptions { directory: config.data_dir.join("server/manifests") };
    tasks.spawn(edge_controllers::run_manifests(identities.context("edge-manifests"), manifests));
    tasks.spawn(edge_controllers::run(
        identities,
        edge_controllers::Options {
            root_ca,
            cluster_cidrs: config.cluster_cidrs.iter().map(ToString::to_string).collect(),
            service_cidrs: config.service_cidrs.iter().map(ToString::to_string).collect(),
        },
    ));
    tasks.spawn(edge_scheduler::run(informers.clone(), client(api, user("system:kube-scheduler"))));
}

/// The node's addresses, at least one: those given, else what the network says, else one that only this node reaches.
fn node_addresses(config: &ServerConfig) -> Result<Vec<IpAddr>, Failure> {
    if !config.node_ip.is_empty() {
        return Ok(config.node_ip.clone());
    }
    let families: Vec<bool> = config.cluster_cidrs.iter().map(|network| network.base().is_ipv4()).collect();
    let mut found = edge_network::node_addresses(&families).map_err(doing("finding the node's address"))?;
    if found.is_empty() {
        // a machine without any network still has the address of the cluster's DNS, which never changes
        found.push(if config.agent { config.cluster_dns[0] } else { IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) });
    }
    Ok(found)
}

/// Many watches and pods need many files; what the administrator allows is used.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
