//! Configuration of another network plugin: which file counts, and what a plugin is handed of it.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::CniError;
use crate::ipam::HostPort;

/// The versions of the specification that are spoken here, newest first.
const VERSIONS: [&str; 6] = ["1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.3.0", "0.2.0"];

/// A network configuration: a list of plugins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) plugins: Vec<Map<String, Value>>,
    pub(super) disable_check: bool,
    pub(super) disable_gc: bool,
    /// The list as it was written, to be kept with every attachment.
    pub(super) source: Value,
}

/// Numbers of a version; what is not understood is older than everything.
fn numbers(version: &str) -> [u32; 3] {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

impl Config {
    /// The configuration in a JSON value: a list of plugins, or a single plugin as old versions have it.
    pub(super) fn parse(source: Value) -> Result<Self, String> {
        let text = |key: &str| source.get(key).and_then(Value::as_str).map(str::to_owned);
        let flag = |key: &str| source.get(key).and_then(Value::as_bool).unwrap_or(false);
        let name = text("name").filter(|name| !name.is_empty()).ok_or("it has no name")?;
        let offered =
            source.get("cniVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let offered: Vec<String> = offered.map(str::to_owned).chain(text("cniVersion")).collect();
        // without a version it is the first one
        let spoken = VERSIONS.into_iter().find(|version| offered.iter().any(|o| o == version));
        let version = match (spoken, offered.is_empty()) {
            (Some(version), _) => version.to_owned(),
            (None, true) => "0.2.0".to_owned(),
            (None, false) => return Err(format!("none of its versions {offered:?} is supported")),
        };
        let plugins = match source.get("plugins") {
            Some(list) => list.as_array().ok_or("plugins is no list")?.clone(),
            None => vec![source.clone()],
        };
        let plugins: Option<Vec<Map<String, Value>>> =
            plugins.iter().map(|plugin| plugin.as_object().cloned()).collect();
        let plugins = plugins.filter(|list| !list.is_empty()).ok_or("it has no plugins")?;
        for plugin in &plugins {
            let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
            // the type becomes the name of a program
            if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
                return Err(format!("{kind:?} is no type of a plugin"));
            }
        }
        let (disable_check, disable_gc) = (flag("disableCheck"), flag("disableGC"));
        Ok(Self { name, version, plugins, disable_check, disable_gc, source })
    }

    /// Whether its version is at least this one.
    pub(super) fn speaks(&self, version: &str) -> bool {
        numbers(&self.version) >= numbers(version)
    }

    /// Whether a plugin of it takes what the runtime offers under that name.
    pub(super) fn has_capability(&self, name: &str) -> bool {
        self.plugins.iter().any(|plugin| has_capability(plugin, name))
    }

    /// What a plugin is handed on its standard input.
    pub(super) fn input(&self, plugin: &Map<String, Value>, ports: &[HostPort], previous: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input.insert("cniVersion".to_owned(), self.version.as_str().into());
        input.insert("name".to_owned(), self.name.as_str().into());
        input.remove("capabilities");
        input.remove("cniVersions");
        if has_capability(plugin, "portMappings") && !ports.is_empty() {
            let mappings: Vec<Value> = ports.iter().map(port_mapping).collect();
            input.insert("runtimeConfig".to_owned(), json!({"portMappings": mappings}));
        }
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(input)
    }
}

fn has_capability(plugin: &Map<String, Value>, name: &str) -> bool {
    plugin.get("capabilities").and_then(|c| c.get(name)).and_then(Value::as_bool).unwrap_or(false)
}

fn port_mapping(port: &HostPort) -> Value {
    let protocol = port.protocol.to_string().to_lowercase();
    let mut mapping = json!({"hostPort": port.host_port, "containerPort": port.container_port, "protocol": protocol});
    if let Some(address) = port.host_ip {
        mapping["hostIP"] = address.to_string().into();
    }
    mapping
}

/// The first usable configuration of a directory, by the names of its files; `None` where there is none. Files that are no
/// configurations are told in the log and passed over, as the kubelet's runtimes do.
pub(super) fn find(dir: &Path) -> Result<Option<Config>, CniError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CniError::File { path: dir.to_owned(), source: error }),
    };
    let wanted = |path: &Path| path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json");
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| wanted(path)).collect();
    files.sort();
    for path in files {
        let parsed = fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
            .and_then(Config::parse);
        match parsed {
            Ok(config) => return Ok(Some(config)),
            Err(error) => tracing::warn!(path = %path.display(), error, "no usable CNI configuration"),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::Protocol;

    fn parse(value: Value) -> Result<Config, String> {
        Config::parse(value)
    }

    #[test]
    fn lists_single_plugins_and_versions() {
        let list =
            parse(json!({"cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0", "9.0.0"], "name": "n",
            "plugins": [{"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": true}}]}))
            .unwrap();
        assert_eq!((list.version.as_str(), list.plugins.len()), ("1.1.0", 2));
        assert!(list.speaks("1.1.0") && list.speaks("0.4.0") && list.has_capability("portMappings"));
        let single = parse(json!({"cniVersion": "0.3.1", "name": "n", "type": "bridge"})).unwrap();
        assert_eq!(single.plugins.len(), 1);
        assert!(!single.speaks("0.4.0"));
        for bad in [
            json!({}),
            json!([]),
            json!({"name": "n"}),
            json!({"name": "n", "plugins": []}),
            json!({"name": "n", "plugins": {}}),
            json!({"name": "n", "plugins": ["bridge"]}),
            json!({"name": "n", "type": "../evil"}),
            json!({"name": "n", "type": ".."}),
            json!({"name": "", "type": "bridge"}),
            json!({"name": "n", "type": "bridge", "cniVersion": "2.0.0"}),
        ] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_plugins_are_handed() {
        let config = parse(json!({"cniVersion": "1.0.0", "name": "n", "plugins": [
            {"type": "bridge", "mtu": 1400}, {"type": "portmap", "capabilities": {"portMappings": true}}]}))
        .unwrap();
        let ports = [HostPort { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp }];
        let first = config.input(&config.plugins[0], &ports, None);
        assert_eq!(first, json!({"type": "bridge", "mtu": 1400, "cniVersion": "1.0.0", "name": "n"}));
        let second = config.input(&config.plugins[1], &ports, Some(&json!({"ips": []})));
        assert_eq!(
            second,
            json!({"type": "portmap", "cniVersion": "1.0.0", "name": "n", "prevResult": {"ips": []},
                "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}})
        );
    }

    #[test]
    fn the_first_usable_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(find(&dir.path().join("missing")).unwrap(), None);
        assert_eq!(find(dir.path()).unwrap(), None);
        write("05-broken.conflist", "{");
        write("00-other.txt", r#"{"name": "no", "type": "no"}"#);
        write("20-later.conf", r#"{"name": "later", "type": "bridge"}"#);
        write("10-first.conflist", r#"{"cniVersion": "1.0.0", "name": "first", "plugins": [{"type": "bridge"}]}"#);
        assert_eq!(find(dir.path()).unwrap().unwrap().name, "first");
    }
}
