//! Everything a server keeps in its TLS directory.

use crate::authority::Authority;
use crate::files::{self, PkiError};
use crate::identity::{ClientName, Identity};
use crate::service_account::ServiceAccountKey;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The authorities and the service-account key of a cluster.
#[derive(Debug)]
pub struct ClusterPki {
    /// Signs what servers show.
    pub server_ca: Authority,
    /// Signs what clients show.
    pub client_ca: Authority,
    /// Signs what the API server shows to extension API servers when it passes on who asked.
    pub request_header_ca: Authority,
    /// Signs service-account tokens.
    pub service_account: Arc<ServiceAccountKey>,
    dir: PathBuf,
}

impl ClusterPki {
    /// The files in the TLS directory that all servers of a cluster have in common; everything else there is a server's own.
    pub const SHARED: [&str; 7] = [
        "server-ca.crt",
        "server-ca.key",
        "client-ca.crt",
        "client-ca.key",
        "request-header-ca.crt",
        "request-header-ca.key",
        "service.key",
    ];

    /// The name under which the API server passes on who asked; k3s' one.
    pub const FRONT_PROXY: &str = "system:auth-proxy";

    /// Reads the TLS directory `dir`, and makes what is missing in it.
    ///
    /// # Errors
    /// When the directory is not accessible or a file in it malformed; the error names the file.
    pub fn load_or_create(dir: &Path) -> Result<Self, PkiError> {
        files::private_dir(dir)?;
        Ok(Self {
            server_ca: Authority::load_or_create(dir, "server-ca")?,
            client_ca: Authority::load_or_create(dir, "client-ca")?,
            request_header_ca: Authority::load_or_create(dir, "request-header-ca")?,
            service_account: Arc::new(ServiceAccountKey::load_or_create(&dir.join("service.key"))?),
            dir: dir.to_owned(),
        })
    }

    /// What the API server shows; renewed when it ends within 90 days or `names` changed.
    ///
    /// # Errors
    /// As [`Identity::server`].
    pub fn serving(&self, names: &ServerNames) -> Result<Identity, PkiError> {
        Identity::server(&self.dir.join("serving-kube-apiserver.pem"), &self.server_ca, names)
    }

    /// What the kubelet API of a node shows.
    ///
    /// # Errors
    /// As [`Identity::server`].
    pub fn kubelet_serving(&self, node: &str, ips: &[IpAddr]) -> Result<Identity, PkiError> {
        let names = ServerNames::plain(&[node.to_owned()], ips);
        Identity::server(&self.dir.join("serving-kubelet.pem"), &self.server_ca, &names)
    }

    /// What the API server shows to extension API servers, as [`ClusterPki::FRONT_PROXY`].
    ///
    /// # Errors
    /// As [`Identity::client`].
    pub fn front_proxy(&self) -> Result<Identity, PkiError> {
        let name = ClientName { common_name: Self::FRONT_PROXY.into(), organization: "edge".into() };
        Identity::client(&self.dir.join("client-front-proxy.pem"), &self.request_header_ca, &name)
    }

    /// A client's identity, kept in `client-<file>.pem`.
    ///
    /// # Errors
    /// As [`Identity::client`].
    pub fn client(&self, file: &str, name: &ClientName) -> Result<Identity, PkiError> {
        Identity::client(&self.dir.join(format!("client-{file}.pem")), &self.client_ca, name)
    }
}

/// The names and addresses a server is reached by: the subject alternative names of its certificate, without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNames {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl ServerNames {
    pub(crate) const COMMON_NAME: &str = "kube-apiserver";

    /// The names of the API server: those of the `kubernetes` service in `cluster_domain`, localhost, the addresses (first service
    /// address, node addresses) and what the administrator adds (names or addresses).
    pub fn new(cluster_domain: &str, ips: &[IpAddr], extra: &[String]) -> Self {
        let mut dns = vec![
            "kubernetes".to_owned(),
            "kubernetes.default".to_owned(),
            "kubernetes.default.svc".to_owned(),
            format!("kubernetes.default.svc.{cluster_domain}"),
            "localhost".to_owned(),
        ];
        let mut all = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        all.extend_from_slice(ips);
        for name in extra {
            match name.parse() {
                Ok(ip) => all.push(ip),
                Err(_) => dns.push(name.clone()),
            }
        }
        Self::plain(&dns, &all)
    }

    /// Exactly these names.
    pub fn plain(dns: &[String], ips: &[IpAddr]) -> Self {
        Self { dns: unique(dns), ips: unique(ips) }
    }

    /// DNS names, in order.
    pub fn dns(&self) -> &[String] {
        &self.dns
    }

    /// Addresses, in order.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }
}

fn unique<T: Clone + PartialEq>(values: &[T]) -> Vec<T> {
    let mut out: Vec<T> = Vec::with_capacity(values.len());
    for value in values {
        if !out.contains(value) {
            out.push(value.clone());
        }
    }
    out
}
