//! Names: a pod's host name, its `/etc/resolv.conf` and `/etc/hosts`. Pure.

use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;

/// What resolvers accept: more name servers or search domains would be ignored, or refused.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
/// Longest host name the kernel takes.
const MAX_HOSTNAME: usize = 63;

/// The resolver settings of a pod or of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    pub(crate) nameservers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl ResolvConf {
    /// Reads the format of resolv.conf(5). Lines that are not understood are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().map(str::to_owned)),
                // the last one counts
                Some("search") => conf.searches = words.map(|w| trim_dot(w).to_owned()).collect(),
                Some("options") => conf.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        conf
    }

    /// The file.
    pub(crate) fn format(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.nameservers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

fn trim_dot(name: &str) -> &str {
    if name == "." { name } else { name.strip_suffix('.').unwrap_or(name) }
}

/// The resolver settings of a pod. `host` are the node's.
pub(crate) fn for_pod(pod: &Pod, host: &ResolvConf, cluster_dns: &[IpAddr], cluster_domain: &str) -> ResolvConf {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut conf = if policy == "None" {
        ResolvConf::default()
    } else if cluster && !cluster_dns.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut searches = vec![
            format!("{namespace}.svc.{cluster_domain}"),
            format!("svc.{cluster_domain}"),
            cluster_domain.to_owned(),
        ];
        searches.extend(host.searches.iter().cloned());
        ResolvConf {
            nameservers: cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        host.clone()
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        conf.nameservers.extend(config.nameservers.iter().flatten().cloned());
        conf.searches.extend(config.searches.iter().flatten().map(|s| trim_dot(s).to_owned()));
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.as_deref().filter(|n| !n.is_empty()) else { continue };
            conf.options.retain(|known| known.split(':').next() != Some(name));
            let value = option.value.as_deref().filter(|v| !v.is_empty());
            conf.options.push(value.map_or_else(|| name.to_owned(), |v| format!("{name}:{v}")));
        }
    }
    unique(&mut conf.nameservers);
    unique(&mut conf.searches);
    conf.nameservers.truncate(MAX_NAMESERVERS);
    conf.searches.truncate(MAX_SEARCHES);
    conf
}

fn unique(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// What a pod is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// What `hostname` shows; empty with the host's network.
    pub(crate) hostname: String,
    /// `<hostname>.<subdomain>.<namespace>.svc.<cluster domain>`, when the pod has a subdomain.
    pub(crate) fqdn: Option<String>,
}

/// The host name of a pod, or why it cannot have the one it asks for.
pub(crate) fn names(pod: &Pod, cluster_domain: &str) -> Result<Names, String> {
    let spec = pod.spec.as_ref();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(hostname) = spec.and_then(|s| s.hostname_override.clone()) {
        return Ok(Names { hostname, fqdn: None });
    }
    let mut hostname =
        spec.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty()).unwrap_or_else(|| name.to_owned());
    if hostname.len() > MAX_HOSTNAME {
        hostname.truncate((0..=MAX_HOSTNAME).rev().find(|i| hostname.is_char_boundary(*i)).unwrap_or(0));
        hostname.truncate(hostname.trim_end_matches(['-', '.']).len());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let subdomain = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    let fqdn = subdomain.map(|s| format!("{hostname}.{s}.{namespace}.svc.{cluster_domain}"));
    if spec.and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false)
        && let Some(fqdn) = &fqdn
    {
        if fqdn.len() > MAX_HOSTNAME + 1 {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({MAX_HOSTNAME} characters is the max, {} characters requested)",
                fqdn.len()
            ));
        }
        return Ok(Names { hostname: fqdn.clone(), fqdn: Some(fqdn.clone()) });
    }
    Ok(Names { hostname, fqdn })
}

/// The pod's `/etc/hosts`. `host_file` is the node's own, given for pods on the host's network.
pub(crate) fn hosts(pod: &Pod, names: &Names, pod_ips: &[IpAddr], host_file: Option<&str>) -> String {
    let mut text = match host_file {
        Some(own) => format!("# Kubernetes-managed hosts file (host network).\n{own}"),
        None => {
            let mut text = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let short = names.hostname.split('.').next().unwrap_or_default();
            for ip in pod_ips {
                match &names.fqdn {
                    Some(fqdn) => text += &format!("{ip}\t{fqdn}\t{short}\n"),
                    None => text += &format!("{ip}\t{}\n", names.hostname),
                }
            }
            text
        }
    };
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        for alias in aliases {
            text += &format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn spec(mut extra: Value) -> Value {
        extra["containers"] = json!([]);
        extra
    }

    fn conf(extra: Value) -> String {
        let host =
            ResolvConf::parse("# x\nnameserver 9.9.9.9\nsearch old\nsearch lan. home\noptions timeout:1\ngarbage");
        for_pod(&pod(spec(extra)), &host, &["10.43.0.10".parse().unwrap()], "cluster.local").format()
    }

    #[test]
    fn every_dns_policy() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local lan home\nnameserver 10.43.0.10\noptions ndots:5\n";
        let host = "search lan home\nnameserver 9.9.9.9\noptions timeout:1\n";
        assert_eq!(conf(json!({})), cluster);
        assert_eq!(conf(json!({"dnsPolicy": "ClusterFirst"})), cluster);
        assert_eq!(conf(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})), host);
        assert_eq!(conf(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})), cluster);
        assert_eq!(conf(json!({"dnsPolicy": "Default"})), host);
        let own = json!({"nameservers": ["1.1.1.1", "1.1.1.1"], "searches": ["a."], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        assert_eq!(
            conf(json!({"dnsPolicy": "None", "dnsConfig": own.clone()})),
            "search a\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"
        );
        assert!(conf(json!({"dnsConfig": own})).ends_with("nameserver 1.1.1.1\noptions ndots:2 edns0\n"));
    }

    #[test]
    fn host_names() {
        let of = |extra: Value| names(&pod(spec(extra)), "cluster.local");
        assert_eq!(of(json!({})).unwrap(), Names { hostname: "web-0".into(), fqdn: None });
        let fqdn = Some("h.s.ns.svc.cluster.local".to_owned());
        assert_eq!(
            of(json!({"hostname": "h", "subdomain": "s"})).unwrap(),
            Names { hostname: "h".into(), fqdn: fqdn.clone() }
        );
        let as_fqdn = of(json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true})).unwrap();
        assert_eq!(as_fqdn, Names { hostname: "h.s.ns.svc.cluster.local".into(), fqdn });
        assert!(of(json!({"hostname": "h".repeat(60), "subdomain": "s", "setHostnameAsFQDN": true})).is_err());
        let long = format!("{}-{}", "a".repeat(62), "b");
        let mut pod = pod(spec(json!({})));
        pod.metadata.name = Some(long);
        assert_eq!(names(&pod, "x").unwrap().hostname, "a".repeat(62));
    }

    #[test]
    fn hosts_files() {
        let pod = pod(spec(json!({"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]})));
        let names = Names { hostname: "h".into(), fqdn: Some("h.s.ns.svc.x".into()) };
        let text = hosts(&pod, &names, &["10.0.0.9".parse().unwrap()], None);
        assert!(text.contains("\n10.0.0.9\th.s.ns.svc.x\th\n"), "{text}");
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        let host = hosts(&pod, &names, &[], Some("127.0.0.1 me\n"));
        assert!(host.starts_with("# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n"));
    }
}
