//! `edge server`: control plane and node agent in one process.

use super::agent::{self, LocalDialer, NodeParts};
use super::datastore::{self, Datastore};
use super::facts::ClusterFacts;
use super::identities::{client, user};
use super::join;
use super::join_tokens::JoinTokens;
use super::leading::{Candidates, lead};
use super::net_events::watch_network;
use super::own_certificates::OwnCertificates;
use super::signer::Signer;
use super::{
    GIT_VERSION, backups, fail,
    instance::{self, Instance},
    logging,
    notify::{keep_watchdog, notify, settle},
    places, tunnels,
};
use crate::config::{AuditConfig, Part, ServerConfig};
use edge_apiserver::{ApiServer, Component, FrontProxy, Parts};
use edge_auth::{Authenticator, AuthenticatorOptions};
use edge_client::{Informers, Supervisor};
use edge_controllers::{Identities, ManifestsOptions};
use edge_pki::{ClusterPki, SharedIdentity};
use edge_registry::Registry;
use edge_runtime::Zygote;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, sockopt};
use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Kubernetes' defaults for requests under way at once.
const MAX_READ_ONLY: usize = 400;
const MAX_MUTATING: usize = 200;
/// For so long an ending server waits until what it has to tell of requests is written and sent.
const AUDIT_PATIENCE: Duration = Duration::from_secs(5);
/// Some 30 kB each; nodes and clients that work need a few each, and are never cut off.
const MAX_CONNECTIONS: usize = 2048;

/// How long a change of the network may take until all of it is there.
const SETTLE: Duration = Duration::from_millis(50);

/// Something that had to work at the start did not.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Failure {
    what: Cow<'static, str>,
    source: Box<dyn Error + Send + Sync>,
}

/// Says what was being done when an error came.
pub(crate) fn doing<E: Into<Box<dyn Error + Send + Sync>>>(
    what: impl Into<Cow<'static, str>>,
) -> impl FnOnce(E) -> Failure {
    let what = what.into();
    move |source| Failure { what, source: source.into() }
}

/// What every long-running command has.
pub(crate) struct Process {
    /// Forked before the process had threads; for commands that run pods.
    pub(crate) zygote: Option<Zygote>,
    terminate: Signal,
    interrupt: Signal,
    /// Changes at every SIGHUP: certificates are to be renewed now.
    pub(crate) rotations: watch::Receiver<u64>,
}

impl Process {
    /// Waits for SIGTERM or SIGINT.
    pub(crate) async fn ended(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs a command that goes on until it is told to end. `pods`: it runs pods, by the zygote if there is one already.
pub(crate) fn run_process(
    pods: bool,
    debug: bool,
    zygote: Option<io::Result<Zygote>>,
    command: impl FnOnce(Process) -> Pin<Box<dyn Future<Output = ExitCode>>>,
) -> ExitCode {
    // monitors are forked from a process without threads, so this comes before everything else
    let zygote = match pods.then(|| zygote.unwrap_or_else(Zygote::start)).transpose() {
        Ok(zygote) => zygote,
        Err(error) => return fail(1, &Failure { what: "starting the zygote".into(), source: error.into() }),
    };
    logging::start(debug);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &Failure { what: "starting the runtime".into(), source: error.into() }),
    };
    let code = runtime.block_on(async {
        raise_file_limit();
        match process(zygote) {
            Ok(process) => command(process).await,
            Err(error) => fail(1, &Failure { what: "listening for signals".into(), source: error.into() }),
        }
    });
    // what a blocking thread still does (reading an archive, say) is safe to leave at any point, as in a crash
    runtime.shutdown_background();
    code
}

/// Listens for the signals of a process.
fn process(zygote: Option<Zygote>) -> io::Result<Process> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (rotate, rotations) = watch::channel(0);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            rotate.send_modify(|n| *n += 1);
        }
    });
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(Process { zygote, terminate, interrupt, rotations })
}

/// Runs until SIGTERM or SIGINT; containers go on.
pub(crate) fn main(config: ServerConfig, debug: bool, zygote: Option<io::Result<Zygote>>) -> ExitCode {
    run_process(config.agent, debug, zygote, |process| {
        Box::pin(async move {
            match Box::pin(run(config, process)).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(1, &error),
            }
        })
    })
}

async fn run(mut config: ServerConfig, mut process: Process) -> Result<(), Failure> {
    config.kubeconfig = places::for_kubeconfig(config.kubeconfig, &config.data_dir);
    let secret = |dir: &str| edge_sys::fsutil::create_dir_all_mode(&config.data_dir.join(dir), 0o700);
    ["server", "agent", "run"].into_iter().try_for_each(secret).map_err(doing("making the data directory"))?;
    let instance = instance::claim(&config.data_dir)?;
    edge_backup::complete(&config.data_dir).map_err(doing("finishing a restoration"))?;
    let store = datastore::open(&config).await?;

    let mut tasks = JoinSet::new();
    let mut facts = facts(&config);
    let name = &config.node.name;
    // a machine without any network still has the address of the cluster's DNS, which never changes
    let fallback = config.agent.then(|| config.cluster_dns[0]);
    let changes = watch_network();
    let addresses = node_addresses(&config.node.ips, &facts.families(), fallback, changes.clone(), &mut tasks)?;
    let known = addresses.borrow().clone();
    let network = config.agent.then(|| agent::network(&config.data_dir, &config.node, &facts, &known)).transpose()?;
    let dialer = LocalDialer::new(name);
    let mut control =
        control_plane(&config, store, &mut facts, addresses.clone(), &process, dialer.clone(), &mut tasks).await?;
    let api = &control.api;
    let informers = Informers::new(client(api, user("system:kube-controller-manager")));
    let candidates = components(&config, &instance, &control, &facts, &informers, &mut tasks)?;

    let kubelet = match (process.zygote.take(), network) {
        (Some(zygote), Some(network)) => {
            let password = join::node_password(&config.data_dir.join("agent/tls"));
            let password = password.map_err(doing("preparing the node's password"))?;
            api.claim_node(name, &password).await.map_err(doing("taking the node's name"))?;
            let parts = NodeParts {
                data_dir: &config.data_dir,
                node: &config.node,
                facts: &facts,
                addresses: addresses.clone(),
                network,
                zygote,
                client: client(api, user(&format!("system:node:{name}"))),
                informers: informers.clone(),
            };
            let kubelet = agent::start(parts, &mut tasks).await?;
            dialer.set(kubelet.server());
            if let Some(socket) = control.kubelet_socket.take() {
                agent::serve_kubelet(&kubelet, socket, &control.kubelet_identity, &facts.client_ca, &mut tasks)?;
            }
            if let Some(identity) = &control.node_identity {
                let ca = control.pki.server_ca.pem();
                let own =
                    tunnels::Own { config: &config, identity, ca, addresses: addresses.clone(), network: changes };
                tunnels::reach_other_servers(own, &kubelet, &informers, &mut tasks)?;
            }
            Some(kubelet)
        }
        _ => None,
    };
    let ready = async {
        if let Some(kubelet) = &kubelet {
            // the sender lives as long as the kubelet
            let _ = kubelet.ready().wait_for(|ready| *ready).await;
        }
        notify("READY=1");
        let address = addresses.borrow().first().copied();
        tracing::info!(node = name, ?address, kubeconfig = %config.kubeconfig.display(), "edge is ready");
        tokio::join!(settle(), keep_watchdog());
    };
    let crash = tokio::select! {
        () = ready => None,
        () = process.ended() => None,
        crash = crash(&mut tasks) => Some(crash),
    };
    notify("STOPPING=1");
    tracing::info!("stopping; containers go on");
    if let Some(kubelet) = kubelet {
        kubelet.stop().await;
    }
    // those who ask stop before the one who answers
    tasks.shutdown().await;
    candidates.release(api).await;
    control.shutdown.cancel();
    control.serving.await.map_err(doing("ending the API"))?;
    control.api.flush_audit(AUDIT_PATIENCE).await;
    crash.map_or(Ok(()), Err)
}

/// Waits until a task panics that cannot be started again alone: then the process has to. Containers do not notice.
pub(crate) async fn crash(tasks: &mut JoinSet<()>) -> Failure {
    loop {
        match tasks.join_next().await {
            Some(Ok(())) => {}
            Some(Err(panic)) => return doing("a part of this process panicked")(panic),
            None => std::future::pending().await,
        }
    }
}

/// What the nodes of the cluster are told.
fn facts(config: &ServerConfig) -> ClusterFacts {
    ClusterFacts {
        cluster_cidrs: config.cluster_cidrs.iter().map(ToString::to_string).collect(),
        service_cidrs: config.service_cidrs.iter().map(ToString::to_string).collect(),
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        network: config.backend.to_string(),
        client_ca: String::new(),
        disabled: config.disabled.iter().map(|part| part.name().to_owned()).collect(),
    }
}

/// The running control plane.
struct ControlPlane {
    api: ApiServer,
    pki: Arc<ClusterPki>,
    /// Where the kubelet of this process listens, and what it shows.
    kubelet_socket: Option<TcpListener>,
    kubelet_identity: SharedIdentity,
    /// What its node shows to other servers, where there may be any.
    node_identity: Option<SharedIdentity>,
    /// Serves until the shutdown.
    serving: JoinHandle<()>,
    shutdown: CancellationToken,
    /// Of scheduler and controllers.
    scheduler: Supervisor,
    controllers: Supervisor,
}

/// The API server, listening.
async fn control_plane(
    config: &ServerConfig,
    store: Datastore,
    facts: &mut ClusterFacts,
    addresses: watch::Receiver<Vec<IpAddr>>,
    process: &Process,
    dialer: Arc<LocalDialer>,
    tasks: &mut JoinSet<()>,
) -> Result<ControlPlane, Failure> {
    let tls = config.data_dir.join("server/tls");
    let audit = audit(config.audit.as_ref())?;
    let listener = listen(config.bind.0, config.bind.1).map_err(doing("listening for the API"))?;
    let kubelet_socket = config.agent.then(|| agent::kubelet_socket(config.node.kubelet_port)).transpose()?;
    let pki = Arc::new(ClusterPki::load_or_create(&tls).map_err(doing("preparing certificates"))?);
    pki.client_ca.pem().clone_into(&mut facts.client_ca);
    let own = OwnCertificates::open(config, pki.clone(), addresses.clone()).map_err(doing("preparing certificates"))?;
    let tls_config = edge_pki::shared_server_config(&own.identity(), &pki.client_ca).map_err(doing("preparing TLS"))?;

    let options = edge_registry::Options {
        service_networks: config.service_cidrs.iter().map(|network| (network.base(), network.prefix())).collect(),
        node_ports: config.node_ports.clone(),
    };
    if let Some(backup) = config.backup.clone() {
        let (data_dir, node) = (config.data_dir.clone(), config.node.name.clone());
        tasks.spawn(backups::keep(backup, data_dir, node, store.storage.clone()));
    }
    let registry = Registry::open(store.storage, options).await.map_err(doing("reading the store"))?;
    let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
    let tokens = JoinTokens::open(config, pki.server_ca.pem(), store.shared)?;
    let authenticator = Authenticator::new(
        pki.service_account.clone(),
        AuthenticatorOptions { audiences: vec![issuer.clone()], issuer },
    )
    .with_join_secrets(tokens.secrets());
    let (scheduler, controllers) = (Supervisor::default(), Supervisor::default());
    let shutdown = CancellationToken::new();
    let component = |name, supervisor: &Supervisor| {
        let supervisor = supervisor.clone();
        Component { name, problem: Arc::new(move || supervisor.problem()) }
    };
    let components = vec![component("scheduler", &scheduler), component("controller-manager", &controllers)];
    let api = ApiServer::new(Parts {
        registry,
        authenticator: Arc::new(authenticator),
        dialer,
        shutdown: shutdown.clone(),
        components,
        other_metrics: Arc::new(edge_client::reconcile_metrics),
        front_proxy: FrontProxy {
            identity: own.front_proxy_identity(),
            authority: pki.request_header_ca.pem().to_owned(),
            client_authority: pki.client_ca.pem().to_owned(),
        },
        audit,
        options: api_options(config, facts, own.advertised(), pki.server_ca.pem().to_owned())?,
    });
    api.bootstrap().await.map_err(doing("preparing the cluster"))?;
    let (server, kubelet_identity, node_identity) = (api.clone(), own.kubelet_identity(), own.node_identity());
    let serving = tokio::spawn(async move {
        if let Err(error) = server.serve(listener, Arc::new(tls_config)).await {
            tracing::error!(error = super::with_causes(&error), "the API is not served any more");
        }
    });
    tasks.spawn(tokens.follow());
    tasks.spawn(own.keep(api.clone(), process.rotations.clone()));
    Ok(ControlPlane {
        api,
        pki,
        kubelet_socket,
        kubelet_identity,
        node_identity,
        serving,
        shutdown,
        scheduler,
        controllers,
    })
}

/// A socket on an address, or on all of both families.
fn listen(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    if let Some(address) = address {
        return TcpListener::bind((address, port));
    }
    match listen_on_all(port) {
        // a machine without IPv6
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        other => Ok(other?),
    }
}

/// The same for IPv6, which takes IPv4 too, whatever the machine's default (`net.ipv6.bindv6only`).
fn listen_on_all(port: u16) -> Result<TcpListener, Errno> {
    let socket = socket::socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    socket::bind(socket.as_raw_fd(), &SockaddrIn6::from(any))?;
    socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

fn api_options(
    config: &ServerConfig,
    facts: &ClusterFacts,
    advertised: IpAddr,
    ca: String,
) -> Result<edge_apiserver::Options, Failure> {
    let told = serde_json::to_value(facts).map_err(doing("preparing what nodes are told"))?;
    Ok(edge_apiserver::Options {
        git_version: GIT_VERSION.into(),
        git_commit: String::new(),
        build_date: String::new(),
        advertise_address: advertised,
        advertise_port: config.bind.1,
        service_ip: config.service_cidrs[0].nth(1),
        service_cidrs: config.service_cidrs.iter().map(ToString::to_string).collect(),
        dns_ips: facts.own_dns(),
        metrics_api: facts.has(Part::Metrics),
        local_storage: facts.has(Part::LocalStorage),
        cluster_ca_pem: ca.into(),
        max_connections: MAX_CONNECTIONS,
        cluster_facts: Arc::new(told),
        max_read_only_in_flight: MAX_READ_ONLY,
        max_mutating_in_flight: MAX_MUTATING,
    })
}

/// What is told of requests. Sends in this runtime, where there is a webhook.
fn audit(config: Option<&AuditConfig>) -> Result<Option<Arc<edge_apiserver::Audit>>, Failure> {
    let Some(AuditConfig { policy, options }) = config else { return Ok(None) };
    let reading = format!("reading the audit policy {}", policy.display());
    let text = std::fs::read_to_string(policy).map_err(doing(reading.clone()))?;
    let audit = edge_apiserver::Audit::open(&text, options.clone()).map_err(|error| match error {
        edge_apiserver::AuditError::Policy(error) => doing(reading)(error),
        error => doing("opening the audit log")(error),
    })?;
    Ok(Some(Arc::new(audit)))
}

/// What the scheduler goes by: the file's configuration, or Kubernetes' defaults.
fn scheduler_settings(file: Option<&Path>) -> Result<edge_scheduler::Config, Failure> {
    let Some(file) = file else { return Ok(edge_scheduler::Config::default()) };
    let reading = format!("reading the scheduler's configuration {}", file.display());
    let text = std::fs::read_to_string(file).map_err(doing(reading.clone()))?;
    edge_scheduler::Config::parse(&text).map_err(doing(reading))
}

/// Scheduler, controllers and the manifests of the watched directory.
fn components(
    config: &ServerConfig,
    instance: &Instance,
    control: &ControlPlane,
    facts: &ClusterFacts,
    informers: &Informers,
    tasks: &mut JoinSet<()>,
) -> Result<Candidates, Failure> {
    let identities = Identities::new(informers.clone(), {
        let api = control.api.clone();
        move |name| client(&api, user(name))
    });
    let directory = config.data_dir.join("server/manifests");
    // each server of several has a directory of its own
    let record = "edge-manifests".to_owned();
    let record = if config.etcd.is_some() { format!("{record}-{}", config.node.name) } else { record };
    let (own, supervisor) = (identities.clone(), control.controllers.clone());
    tasks.spawn(async move {
        let run = || {
            let options = ManifestsOptions { directory: directory.clone(), record: record.clone() };
            edge_controllers::run_manifests(own.context("edge-manifests"), options)
        };
        supervisor.keep("edge-manifests", run).await;
    });
    let signer = Arc::new(Signer { pki: control.pki.clone(), longest: config.signing_duration });
    let options = edge_controllers::Options {
        root_ca: control.pki.server_ca.pem().to_owned(),
        cluster_cidrs: facts.cluster_cidrs.clone(),
        node_masks: config.node_masks,
        service_cidrs: facts.service_cidrs.clone(),
        signer: signer.clone(),
        tokens: signer,
        load_balancers: facts.has(Part::ServiceLb),
        autoscaling: config.autoscaling,
        local_path: facts.has(Part::LocalStorage).then(|| config.local_storage.clone()),
    };
    let supervisor = control.controllers.clone();
    if config.agent {
        let (identities, node) = (identities.clone(), config.node.name.clone());
        tasks.spawn(edge_controllers::run_server_label(identities, node, supervisor.clone()));
    }
    let candidates = Candidates::new(config, instance, &control.api)?;
    let controllers = move || edge_controllers::run(identities.clone(), options.clone(), supervisor.clone());
    tasks.spawn(lead(candidates.controllers.clone(), controllers));
    let (informers, supervisor) = (informers.clone(), control.scheduler.clone());
    let scheduler = client(&control.api, user("system:kube-scheduler"));
    let settings = scheduler_settings(config.scheduler.as_deref())?;
    tasks.spawn(lead(candidates.scheduler.clone(), move || {
        let (informers, scheduler, supervisor) = (informers.clone(), scheduler.clone(), supervisor.clone());
        let settings = settings.clone();
        async move {
            let run = || edge_scheduler::run(informers.clone(), scheduler.clone(), settings.clone());
            supervisor.keep("scheduler", run).await;
        }
    }));
    let api = control.api.clone();
    tasks.spawn(async move { api.keep_endpoints().await });
    Ok(candidates)
}

/// The node's addresses, at least one, one of a family: those given, else what the network says, which may change, else
/// `fallback`.
pub(crate) fn node_addresses(
    given: &[IpAddr],
    families: &[bool],
    fallback: Option<IpAddr>,
    mut changes: watch::Receiver<u64>,
    tasks: &mut JoinSet<()>,
) -> Result<watch::Receiver<Vec<IpAddr>>, Failure> {
    let families = families.to_vec();
    let find = move || edge_network::node_addresses(&families);
    let is_given = !given.is_empty();
    let mut first = if is_given { given.to_vec() } else { find().map_err(doing("finding the node's address"))? };
    if first.is_empty() {
        first.push(fallback.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
    let (tx, rx) = watch::channel(first);
    tasks.spawn(async move {
        while changes.changed().await.is_ok() && !is_given {
            // routes follow addresses a moment later
            tokio::time::sleep(SETTLE).await;
            changes.mark_unchanged();
            let find = find.clone();
            match tokio::task::spawn_blocking(find).await {
                // a machine that is offline for a while keeps the addresses it had
                Ok(Ok(now)) if !now.is_empty() => {
                    tx.send_if_modified(|known| {
                        let changed = *known != now;
                        if changed {
                            tracing::info!(addresses = ?now, "this node's addresses changed");
                            *known = now;
                        }
                        changed
                    });
                }
                _ => {}
            }
        }
        // others wait for changes
        std::future::pending::<()>().await;
    });
    Ok(rx)
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
