//! Which name servers answer for which domains, as an administrator wants it: the ConfigMap `coredns-custom` in `kube-system`,
//! which users of k3s know, and in it
//!
//! - `stubDomains`: a JSON object from domains to lists of name servers (`{"corp.example": ["192.0.2.1", "192.0.2.2:5353"]}`),
//! - `upstreamNameservers`: a JSON list of name servers in the place of the host's,
//! - keys that end in `.server`: blocks of a Corefile, of which the directive `forward` is understood.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::ConfigMap;
use std::collections::BTreeMap;

/// Name of the ConfigMap, in `kube-system`, in which administrators say where certain names are asked for.
pub const CONFIG_MAP: &str = "coredns-custom";
/// Its namespace.
pub(crate) const NAMESPACE: &str = "kube-system";

const PORT: u16 = 53;
/// Name servers of one domain that are used at most.
const MAX_SERVERS: usize = 15;

/// Name servers by domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Forwards {
    /// Domains in small letters.
    zones: BTreeMap<Name, Vec<SocketAddr>>,
    /// Instead of the host's name servers; empty leaves these.
    pub(crate) default: Vec<SocketAddr>,
}

/// An address with a port, or one without.
fn server(text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    let text = text.strip_prefix("dns://").unwrap_or(text);
    text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT)))
}

fn servers<'a>(what: &str, texts: impl Iterator<Item = &'a str>) -> Vec<SocketAddr> {
    let one = |text: &'a str| {
        let parsed = server(text);
        if parsed.is_none() {
            tracing::warn!(what, server = text, "not the address of a name server");
        }
        parsed
    };
    texts.filter_map(one).take(MAX_SERVERS).collect()
}

/// A domain as Corefiles write it: `example.com`, `example.com:53`, `dns://example.com`.
fn zone(text: &str) -> Option<Name> {
    let text = text.trim();
    let text = text.strip_prefix("dns://").unwrap_or(text);
    let text = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(text, |(zone, _)| zone);
    let name = Name::from_ascii(format!("{}.", text.trim_end_matches('.'))).ok()?;
    Some(name.to_lowercase())
}

impl Forwards {
    /// What a ConfigMap says. What cannot be understood is left out, with a warning.
    pub(crate) fn parse(map: &ConfigMap) -> Self {
        let mut forwards = Self::default();
        for (key, text) in map.data.iter().flatten() {
            match key.as_str() {
                "stubDomains" => match serde_json::from_str::<BTreeMap<String, Vec<String>>>(text) {
                    Ok(domains) => domains.iter().for_each(|(domain, all)| {
                        forwards.add(domain, servers(domain, all.iter().map(String::as_str)));
                    }),
                    Err(error) => tracing::warn!(key, %error, "not an object of lists of name servers"),
                },
                "upstreamNameservers" => match serde_json::from_str::<Vec<String>>(text) {
                    Ok(all) => forwards.default = servers(key, all.iter().map(String::as_str)),
                    Err(error) => tracing::warn!(key, %error, "not a list of name servers"),
                },
                key if key.ends_with(".server") => forwards.add_corefile(text),
                _ => tracing::warn!(key, "unknown key of the ConfigMap {CONFIG_MAP}"),
            }
        }
        forwards
    }

    fn add(&mut self, domain: &str, servers: Vec<SocketAddr>) {
        match zone(domain) {
            Some(name) if !servers.is_empty() => drop(self.zones.insert(name, servers)),
            Some(_) => tracing::warn!(domain, "a domain without name servers"),
            None => tracing::warn!(domain, "not a domain name"),
        }
    }

    /// Server blocks: `ZONE... { DIRECTIVE ARGUMENT... }`, where directives may have blocks of their own.
    fn add_corefile(&mut self, text: &str) {
        let mut zones: Vec<String> = Vec::new();
        let mut depth = 0;
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let (words, opens) = match line.strip_suffix('{') {
                Some(before) => (before, true),
                None => (line, false),
            };
            let words: Vec<&str> = words.split([' ', '\t', ',']).filter(|word| !word.is_empty()).collect();
            match (depth, words.as_slice()) {
                (0, names) if opens => zones = names.iter().map(|name| (*name).to_owned()).collect(),
                (1, ["forward" | "proxy", _from, to @ ..]) => {
                    for zone in &zones {
                        self.add(zone, servers(zone, to.iter().copied()));
                    }
                }
                (_, [] | ["}"]) => {}
                // These change nothing that matters here.
                (1, ["errors" | "log" | "cache" | "loop" | "reload" | "loadbalance" | "ready" | "health", ..]) => {}
                (1, [directive, ..]) => {
                    tracing::warn!(directive, "directive of the ConfigMap {CONFIG_MAP} not understood")
                }
                _ => {}
            }
            if opens {
                depth += 1;
            } else if line == "}" {
                depth = usize::saturating_sub(depth, 1);
            }
        }
    }

    /// The name servers of the most specific domain that `name` (in small letters) is in.
    pub(crate) fn of(&self, name: &Name) -> Option<&[SocketAddr]> {
        let within = self.zones.iter().filter(|(zone, _)| zone.zone_of(name));
        within.max_by_key(|(zone, _)| zone.num_labels()).map(|(_, servers)| servers.as_slice())
    }

    /// Leaves out servers of which `keep` says no.
    pub(crate) fn retain(&mut self, keep: impl Fn(&SocketAddr) -> bool) {
        self.default.retain(&keep);
        self.zones.values_mut().for_each(|servers| servers.retain(&keep));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(data: &[(&str, &str)]) -> Forwards {
        let data = data.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        Forwards::parse(&ConfigMap { data: Some(data), ..ConfigMap::default() })
    }

    fn of(forwards: &Forwards, name: &str) -> Vec<String> {
        let name = Name::from_ascii(name).unwrap();
        forwards.of(&name).unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_most_specific_domain_counts() {
        let stub = r#"{"corp.Example": ["192.0.2.1"], "lab.corp.example.": ["192.0.2.2:5353", "2001:db8::1"], "x y": ["1.1.1.1"], "none": []}"#;
        let forwards = parse(&[("stubDomains", stub), ("upstreamNameservers", r#"["192.0.2.9"]"#)]);
        assert_eq!(of(&forwards, "www.corp.example."), ["192.0.2.1:53"]);
        assert_eq!(of(&forwards, "corp.example."), ["192.0.2.1:53"]);
        assert_eq!(of(&forwards, "a.lab.corp.example."), ["192.0.2.2:5353", "[2001:db8::1]:53"]);
        assert!(of(&forwards, "xcorp.example.").is_empty() && of(&forwards, "none.").is_empty());
        assert_eq!(forwards.default, ["192.0.2.9:53".parse().unwrap()]);
    }

    #[test]
    fn blocks_of_a_corefile() {
        let corefile = "
            # a comment
            corp.example:53, other.example {
                errors
                cache 30
                forward . 192.0.2.1 dns://192.0.2.2:54 {
                    policy sequential
                }
            }
            dns://third.example {
                forward . bad
            }
            example.org { # nothing in it
            }
            ";
        let forwards = parse(&[("a.server", corefile), ("b.override", "log")]);
        assert_eq!(of(&forwards, "x.corp.example."), ["192.0.2.1:53", "192.0.2.2:54"]);
        assert_eq!(of(&forwards, "other.example."), ["192.0.2.1:53", "192.0.2.2:54"]);
        assert!(of(&forwards, "third.example.").is_empty() && of(&forwards, "example.org.").is_empty());
    }

    #[test]
    fn rubbish_is_survived() {
        for text in
            ["", "{", "}", "{{{", "a {\n b {\n", "}\n}\n}", "[1,2]", "null", "forward . 1.1.1.1", "{\nforward\n}"]
        {
            for key in ["stubDomains", "upstreamNameservers", "x.server", "?"] {
                assert_eq!(parse(&[(key, text)]), Forwards::default(), "{key} {text:?}");
            }
        }
    }
}
