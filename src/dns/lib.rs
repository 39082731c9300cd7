//! Room `dns`: the cluster's DNS, in process, after the Kubernetes DNS specification 1.1.
//!
//! Comes in: the informers of Services, EndpointSlices, Namespaces and one ConfigMap; queries over UDP and TCP; the host's
//! `resolv.conf`. Goes out: answers for the cluster's domain from memory, also while the API is away; for every other name
//! the answer of the host's name servers, or of those that the ConfigMap wants (`forwards`), cached for a short time.
//!
//! [`Records`] is pure: what exists and what a name stands for. `answer` makes messages of it, `server` owns the
//! sockets, `upstream` asks others, `cache` remembers what these said.

mod answer;
mod cache;
mod forwards;
mod metrics;
mod metrics_server;
mod records;
mod server;
mod service;
#[cfg(test)]
mod tests;
mod upstream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edge_client::{Change, Informers, Key};
use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;

use forwards::Forwards;

pub use forwards::CONFIG_MAP;
pub use metrics::Metrics;
pub use records::{Found, Lookup, Records};
pub use server::Server;
pub use upstream::Upstream;

/// How long to wait before an address that is taken is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Told of every new reason why the server does not serve yet.
pub type OnTrouble = Arc<dyn Fn(&Error) + Send + Sync>;

/// What the server needs to know.
#[derive(Clone)]
pub struct DnsConfig {
    /// Where to listen, UDP and TCP: the cluster's DNS addresses, usually with port 53.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, for instance `cluster.local`.
    pub domain: String,
    /// Where the host's name servers are listed, usually `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Counts what the server does.
    pub metrics: Arc<Metrics>,
    /// Where the counters are served over HTTP, usually the addresses of `listen` with port 9153.
    pub metrics_listen: Vec<SocketAddr>,
    /// Told why the server does not serve yet.
    pub on_trouble: OnTrouble,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("listen on {address}{}", hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cluster's domain is no domain name.
    #[error("{domain:?} is not a domain name")]
    InvalidDomain {
        /// The text.
        domain: String,
        /// Why.
        #[source]
        source: hickory_proto::ProtoError,
    },
}

/// What to do about an address that cannot be listened on.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            " (another program on this machine listens on this port, maybe on all addresses: `ss -lntup` shows it; let it \
             listen on certain addresses)"
        }
        _ => "",
    }
}

/// Serves the cluster's DNS. Ends only with an error at the start; drop the future to stop. An address that is taken is tried
/// again until it is free.
///
/// # Errors
/// When the domain is none.
pub async fn run(informers: Informers, config: DnsConfig) -> Result<(), Error> {
    let domain = config.domain.trim_end_matches('.');
    let zone = Name::from_ascii(format!("{domain}."))
        .map_err(|source| Error::InvalidDomain { domain: config.domain.clone(), source })?;
    let own: Vec<IpAddr> = config.listen.iter().map(SocketAddr::ip).collect();
    let records = Arc::new(RwLock::new(Records::new(zone, own.clone())));
    let upstream = Upstream::new(config.resolv_conf.clone(), own, config.metrics.clone());
    tokio::join!(
        serve(&config, records.clone(), upstream.clone()),
        metrics_server::run(&config.metrics_listen, config.metrics.clone()),
        follow(informers.clone(), records),
        follow_forwards(informers, upstream),
    );
    Ok(())
}

/// Serves as soon as the addresses can be listened on.
async fn serve(config: &DnsConfig, records: Arc<RwLock<Records>>, upstream: Upstream) {
    let (mut delay, mut told) = (RETRY.0, String::new());
    loop {
        match Server::bind(&config.listen, records.clone(), upstream.clone(), config.metrics.clone()).await {
            Ok(server) => {
                if !told.is_empty() {
                    tracing::info!("the cluster's DNS serves now");
                }
                return server.run().await;
            }
            Err(error) => {
                let text = error.to_string();
                if text != told {
                    (config.on_trouble)(&error);
                    told = text;
                }
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY.1);
            }
        }
    }
}

/// Keeps the name servers of certain domains as the administrator wants them.
async fn follow_forwards(informers: Informers, upstream: Upstream) {
    let maps = informers.select::<ConfigMap>(&format!("metadata.name={CONFIG_MAP}"));
    let mut changes = maps.subscribe();
    while let Some(change) = changes.recv().await {
        if Key::of(change.object().as_ref()).namespace != forwards::NAMESPACE {
            continue;
        }
        upstream.set_forwards(match &change {
            Change::Applied { new, .. } => Forwards::parse(new),
            Change::Deleted(_) => Forwards::default(),
        });
    }
}

/// Keeps the records in step with the cluster.
async fn follow(informers: Informers, records: Arc<RwLock<Records>>) {
    let (services, slices, namespaces) =
        (informers.of::<Service>(), informers.of::<EndpointSlice>(), informers.of::<Namespace>());
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    let mut namespace_changes = namespaces.subscribe();
    let synced = async { tokio::join!(services.known(), slices.known(), namespaces.known()) };
    let mut synced = std::pin::pin!(synced);
    let mut complete = false;
    loop {
        tokio::select! {
            // The changes first: all that was listed is in the records before they count as complete.
            biased;
            Some(change) = service_changes.recv() => records.write().service_changed(&change),
            Some(change) = slice_changes.recv() => records.write().slice_changed(&change),
            Some(change) = namespace_changes.recv() => {
                let present = matches!(change, Change::Applied { .. });
                records.write().namespace_changed(&Key::of(change.object().as_ref()).name, present);
            }
            _ = &mut synced, if !complete => {
                complete = true;
                records.write().set_complete();
            }
        }
    }
}
