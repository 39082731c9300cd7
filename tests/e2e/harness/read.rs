//! Reading objects without starting a kubectl: half of the processor's time of the whole suite went into processes that asked for one
//! field and ended.
//!
//! Only what succeeds and prints the same is read so. Everything else (tables, errors, what this does not know) is left to kubectl
//! itself, whose own reading has its tests in `kubectl`.

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;
use tokio::runtime::Runtime;

/// After this long kubectl may try, and say what is wrong.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What reads, with what it has learnt of a cluster.
#[derive(Default)]
pub(crate) struct Reader {
    client: Mutex<Option<Client>>,
    kinds: Mutex<Option<Arc<Vec<Kind>>>>,
}

/// A type of objects, as discovery tells of it.
#[derive(Clone, Debug)]
struct Kind {
    group: String,
    version: String,
    plural: String,
    kind: String,
    is_namespaced: bool,
    /// What it may be called: plural, singular, short names.
    names: Vec<String>,
}

/// `kubectl get` as far as it is understood here.
#[derive(Debug, Default, PartialEq)]
struct Query<'a> {
    namespace: Option<&'a str>,
    is_everywhere: bool,
    labels: Option<&'a str>,
    fields: Option<&'a str>,
    output: Option<&'a str>,
    may_miss: bool,
    raw: Option<&'a str>,
    what: Vec<&'a str>,
}

impl<'a> Query<'a> {
    fn parse(args: &[&'a str]) -> Option<Self> {
        let mut query = Self::default();
        let mut verb = None;
        let mut rest = args.iter().copied();
        while let Some(arg) = rest.next() {
            let (flag, value) = match arg.split_once('=') {
                Some((flag, value)) if flag.starts_with('-') => (flag, Some(value)),
                _ => (arg, None),
            };
            match flag {
                "-A" | "--all-namespaces" if value.is_none() => query.is_everywhere = true,
                "--ignore-not-found" if value.is_none() => query.may_miss = true,
                "-n" | "--namespace" => query.namespace = Some(value.or_else(|| rest.next())?),
                "-l" | "--selector" => query.labels = Some(value.or_else(|| rest.next())?),
                "--field-selector" => query.fields = Some(value.or_else(|| rest.next())?),
                "-o" | "--output" => query.output = Some(value.or_else(|| rest.next())?),
                "--raw" => query.raw = Some(value.or_else(|| rest.next())?),
                _ if flag.starts_with('-') => return None,
                _ if verb.is_none() => verb = Some(arg),
                _ => query.what.push(arg),
            }
        }
        (verb == Some("get")).then_some(query)
    }

    /// The type, and the name of the only object that is asked for.
    fn target(&self) -> Option<(&'a str, Option<&'a str>)> {
        let (kind, name) = match self.what[..] {
            [one] => one.split_once('/').map_or((one, None), |(kind, name)| (kind, Some(name))),
            [kind, name] if !kind.contains('/') => (kind, Some(name)),
            _ => return None,
        };
        let is_plain = |text: &str| !text.is_empty() && !text.contains([',', '/']);
        (is_plain(kind) && name.is_none_or(is_plain)).then_some((kind, name))
    }
}

impl Reader {
    /// What `kubectl ARGS` would print on success; `None` if it has to be asked itself.
    pub(crate) fn read(&self, kubeconfig: &Path, server: &str, args: &[&str]) -> Option<String> {
        let query = Query::parse(args)?;
        let client = self.client(kubeconfig, server)?;
        if let Some(path) = query.raw {
            let is_stream = path.contains("watch") || path.contains("follow");
            return if is_stream { None } else { ask(&client, path, "*/*").ok() };
        }
        let output = match query.output? {
            // whether it is there is the question, not how it looks
            "yaml" if query.may_miss => Output::Json,
            output => Output::parse(output)?,
        };
        let (name, object) = query.target()?;
        let kind = self.kind(&client, name)?;
        let mut path = match kind.group.as_str() {
            "" => format!("/api/{}", kind.version),
            group => format!("/apis/{group}/{}", kind.version),
        };
        if kind.is_namespaced && !query.is_everywhere {
            path += &format!("/namespaces/{}", query.namespace.unwrap_or("default"));
        }
        path += &format!("/{}", kind.plural);
        if let Some(object) = object {
            if query.is_everywhere || query.labels.is_some() || query.fields.is_some() {
                return None;
            }
            path += &format!("/{object}");
        } else {
            let mut pairs = form_urlencoded::Serializer::new(String::new());
            pairs.extend_pairs(query.labels.map(|l| ("labelSelector", l)));
            pairs.extend_pairs(query.fields.map(|f| ("fieldSelector", f)));
            path += &format!("?{}", pairs.finish());
        }
        let found = match ask(&client, &path, "application/json") {
            Ok(text) => serde_json::from_str(&text).ok()?,
            Err(Some(404)) if query.may_miss && object.is_some() => return Some(String::new()),
            Err(_) => return None,
        };
        output.print(shown(found, &kind), &kind)
    }

    fn client(&self, kubeconfig: &Path, server: &str) -> Option<Client> {
        let mut kept = self.client.lock();
        if kept.is_none() {
            let mut kubeconfig = Kubeconfig::read_from(kubeconfig).ok()?;
            for cluster in kubeconfig.clusters.iter_mut().filter_map(|c| c.cluster.as_mut()) {
                cluster.server = Some(server.to_owned());
            }
            *kept = run(async move {
                let config =
                    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.ok()?;
                Client::try_from(config).ok()
            })?;
        }
        kept.clone()
    }

    /// The type of a name. Types that come and go are looked up each time, what is built in once.
    fn kind(&self, client: &Client, name: &str) -> Option<Kind> {
        let known = self.kinds.lock().clone();
        if let Some(kind) = known.and_then(|kinds| find(&kinds, name)).filter(Kind::is_built_in) {
            return Some(kind);
        }
        let kinds = Arc::new(discover(client)?);
        *self.kinds.lock() = Some(kinds.clone());
        find(&kinds, name)
    }
}

impl Kind {
    fn is_built_in(&self) -> bool {
        !self.group.contains('.') || self.group.ends_with(".k8s.io") && self.group != "metrics.k8s.io"
    }

    fn is_called(&self, name: &str) -> bool {
        let (name, place) = name.split_once('.').map_or((name, None), |(name, place)| (name, Some(place)));
        let is_there = place.is_none_or(|place| {
            place == self.group || place == self.version || *place == format!("{}.{}", self.version, self.group)
        });
        is_there && self.names.iter().any(|known| known == name)
    }
}

/// The first type that is called so: discovery has the groups in the order of their priorities.
fn find(kinds: &[Kind], name: &str) -> Option<Kind> {
    kinds.iter().find(|kind| kind.is_called(&name.to_lowercase())).cloned()
}

fn discover(client: &Client) -> Option<Vec<Kind>> {
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let mut kinds = Vec::new();
    for root in ["/api", "/apis"] {
        let list: Value = serde_json::from_str(&ask(client, root, accept).ok()?).ok()?;
        for group in list["items"].as_array()? {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            for version in group["versions"].as_array()? {
                let resources = version["resources"].as_array().into_iter().flatten();
                kinds.extend(resources.filter_map(|r| kind(name, version["version"].as_str()?, r)));
            }
        }
    }
    Some(kinds)
}

fn kind(group: &str, version: &str, resource: &Value) -> Option<Kind> {
    let plural = resource["resource"].as_str()?;
    let short = resource["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let names = [Some(plural), resource["singularResource"].as_str()].into_iter().flatten().chain(short);
    Some(Kind {
        group: resource["responseKind"]["group"].as_str().filter(|g| !g.is_empty()).unwrap_or(group).to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        kind: resource["responseKind"]["kind"].as_str()?.to_owned(),
        is_namespaced: resource["scope"] == "Namespaced",
        names: names.map(str::to_lowercase).collect(),
    })
}

/// As kubectl shows it: a list is a `List` of whole objects, and nobody sees who manages which field.
fn shown(mut found: Value, kind: &Kind) -> Value {
    let bare = |object: &mut Value| {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    };
    let Some(items) = found.get_mut("items").and_then(Value::as_array_mut) else {
        bare(&mut found);
        return found;
    };
    let api_version =
        if kind.group.is_empty() { kind.version.clone() } else { format!("{}/{}", kind.group, kind.version) };
    for item in items.iter_mut() {
        bare(item);
        item["apiVersion"] = api_version.as_str().into();
        item["kind"] = kind.kind.as_str().into();
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items, "metadata": {"resourceVersion": ""}})
}

/// How it is printed.
#[derive(Debug, PartialEq)]
enum Output<'a> {
    Json,
    Name,
    Template(Vec<Part<'a>>),
}

/// A part of a JSONPath template.
#[derive(Debug, PartialEq)]
enum Part<'a> {
    Text(&'a str),
    Path(Vec<Step>),
}

/// One step of a path.
#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Index(usize),
    All,
    /// `[?(@.path=="value")]`
    Where(Vec<Step>, String),
}

impl<'a> Output<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        match text {
            "json" => return Some(Output::Json),
            "name" => return Some(Output::Name),
            _ => {}
        }
        let mut rest = text.strip_prefix("jsonpath=")?;
        let mut parts = Vec::new();
        while let Some((before, after)) = rest.split_once('{') {
            let (path, after) = after.split_once('}')?;
            parts.extend([Part::Text(before), Part::Path(steps(path)?)]);
            rest = after;
        }
        parts.push(Part::Text(rest));
        (parts.len() > 1).then_some(Output::Template(parts))
    }

    fn print(&self, found: Value, kind: &Kind) -> Option<String> {
        match self {
            Output::Json => Some(found.to_string()),
            Output::Name => {
                let single = std::slice::from_ref(&found);
                let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
                let kind = kind.kind.to_lowercase();
                let line = |o: &Value| Some(format!("{kind}{group}/{}\n", o["metadata"]["name"].as_str()?));
                found["items"].as_array().map_or(single, Vec::as_slice).iter().map(line).collect()
            }
            Output::Template(parts) => {
                let mut printed = String::new();
                for part in parts {
                    match part {
                        Part::Text(text) => printed += text,
                        Part::Path(path) => {
                            let texts: Option<Vec<_>> = follow(&found, path)?.into_iter().map(plain).collect();
                            printed += &texts?.join(" ");
                        }
                    }
                }
                Some(printed)
            }
        }
    }
}

/// The steps of a path such as `.status.conditions[?(@.type=="Ready")].status`.
fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let mut name = String::new();
            let mut characters = after.char_indices();
            let mut end = after.len();
            while let Some((at, c)) = characters.next() {
                match c {
                    '\\' => name.push(characters.next()?.1),
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    c => name.push(c),
                }
            }
            if name.is_empty() || name.contains(['*', '\'', '"', '@', '$', ' ']) {
                return None;
            }
            steps.push(Step::Field(name));
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix("[?(@") {
            let (condition, after) = after.split_once(")]")?;
            let (path, value) = condition.split_once("==")?;
            let value = value.trim();
            let quoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q))?;
            steps.push(Step::Where(self::steps(path.trim())?, quoted.to_owned()));
            rest = after;
        } else {
            let (inside, after) = rest.strip_prefix('[')?.split_once(']')?;
            steps.push(match inside.strip_prefix('\'').and_then(|name| name.strip_suffix('\'')) {
                Some(name) => Step::Field(name.to_owned()),
                None if inside == "*" => Step::All,
                None => Step::Index(inside.parse().ok()?),
            });
            rest = after;
        }
    }
    Some(steps)
}

/// What a path leads to; `None` for what kubectl would complain of.
fn follow<'v>(value: &'v Value, path: &[Step]) -> Option<Vec<&'v Value>> {
    let mut found = vec![value];
    for step in path {
        let mut next = Vec::new();
        for value in found {
            match step {
                Step::Field(name) => next.extend(value.get(name)),
                Step::Index(index) => next.push(value.as_array()?.get(*index)?),
                Step::All => next.extend(value.as_array()?),
                Step::Where(path, wanted) => {
                    let is_meant = |v: &&Value| follow(v, path).is_some_and(|f| f.iter().any(|v| *v == wanted));
                    next.extend(value.as_array()?.iter().filter(is_meant));
                }
            }
        }
        found = next;
    }
    Some(found)
}

/// A plain value as kubectl prints it.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The body of an answer with code 200; else the code, if there was an answer of the API.
fn ask(client: &Client, path: &str, accept: &str) -> Result<String, Option<u16>> {
    let request = http::Request::get(path).header("accept", accept).body(Vec::new()).map_err(|_| None)?;
    let client = client.clone();
    let answered = run(async move { tokio::time::timeout(TIMEOUT, client.request_text(request)).await });
    match answered {
        Some(Ok(Ok(text))) => Ok(text),
        Some(Ok(Err(kube::Error::Api(status)))) => Err(Some(status.code)),
        Some(_) | None => Err(None),
    }
}

/// Runs something on a thread of its own: who reads may be a thread of another runtime.
fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME
        .get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());
    let (sender, receiver) = mpsc::channel();
    runtime.spawn(async move {
        // whoever asked waits
        let _ = sender.send(work.await);
    });
    receiver.recv().ok()
}

#[test]
fn what_is_read_here_and_what_is_not() {
    let parsed = |line: &str| {
        let args: Vec<&str> = line.split(' ').collect();
        let query = Query::parse(&args)?;
        let target = query.target();
        Some((query.namespace.map(str::to_owned), target.map(|(k, n)| (k.to_owned(), n.map(str::to_owned)))))
    };
    let of = |ns: Option<&str>, kind: &str, name: Option<&str>| {
        Some((ns.map(str::to_owned), Some((kind.to_owned(), name.map(str::to_owned)))))
    };
    assert_eq!(parsed("-n a get pod/b -o json"), of(Some("a"), "pod", Some("b")));
    assert_eq!(parsed("get pods -l=x=y --namespace=a -o name"), of(Some("a"), "pods", None));
    assert_eq!(parsed("get pods x -A"), of(None, "pods", Some("x")));
    for other in ["delete pod a", "get pods -w", "get pods --sort-by=.x"] {
        assert_eq!(parsed(other), None, "{other}");
    }
    for other in ["get pods,services", "get pods a b", "get pod/a pod/b"] {
        assert_eq!(parsed(other), Some((None, None)), "{other}");
    }
    let object = json!({"items": [{"n": 1, "s": "a", "l": []}, {"n": 2, "s": "b", "x.y": true}]});
    let kind = kind("apps", "v1", &json!({"resource": "things", "responseKind": {"kind": "Thing"}})).unwrap();
    let print = |path: &str| Output::parse(path)?.print(object.clone(), &kind);
    assert_eq!(print("jsonpath={.items[*].s}").as_deref(), Some("a b"));
    assert_eq!(print("jsonpath=<{.items[0].n}|{.items[1].x\\.y}>{.none}").as_deref(), Some("<1|true>"));
    assert_eq!(print("jsonpath={.items[?(@.s==\"b\")].n}").as_deref(), Some("2"));
    for other in [
        "jsonpath={.items[0].l}",
        "jsonpath={.items[7]}",
        "jsonpath={range .items[*]}{.n}{end}",
        "wide",
        "jsonpath={..n}",
    ] {
        assert_eq!(print(other), None, "{other}");
    }
}
