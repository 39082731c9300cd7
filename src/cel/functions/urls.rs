//! URLs.

use super::{Context, Function, global, member, opaque, text};
use crate::error::Error;
use crate::value::{Key, Map, Opaque, Text, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use url::Url;

pub(super) static FUNCTIONS: &[Function] = &[
    global("url", &["string : url"], parse),
    global("isURL", &["string : bool"], |c, a| Ok(Value::Bool(read(c, a)?.is_some()))),
    member("getScheme", &["url : string"], |_, a| {
        let s = url(a)?.scheme();
        Ok(Value::owned(if NOWHERE.starts_with(s) { "" } else { s }))
    }),
    member("getHost", &["url : string"], host),
    member("getHostname", &["url : string"], hostname),
    member("getPort", &["url : string"], port),
    member("getEscapedPath", &["url : string"], path),
    member("getQuery", &["url : map<string,list<string>>"], query),
];

type Out<'a> = Result<Value<'a>, Error>;

/// Places that only say a path are URLs, too, in Kubernetes: they get this before them.
const NOWHERE: &str = "edge-no-scheme://";

fn read(c: &mut Context<'_>, a: &[Value<'_>]) -> Result<Option<Url>, Error> {
    let this = text(a, 0)?;
    c.budget.pay_bytes(this.len())?;
    if this.starts_with('/') {
        return Ok(Url::parse(&format!("{NOWHERE}{}", &**this)).ok());
    }
    Ok(Url::parse(this).ok())
}

fn parse<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let found = read(c, a)?.ok_or_else(|| Error::new("URL parse error during conversion from string"))?;
    Ok(Value::opaque(Opaque::Url(Box::new(found))))
}

fn url<'v>(a: &'v [Value<'_>]) -> Result<&'v Url, Error> {
    if let Opaque::Url(url) = opaque(a, 0)? { Ok(url) } else { Err(Error::no_overload()) }
}

/// The port as it is written; the library leaves out the scheme's own.
fn port_text(url: &Url) -> String {
    url.port().map(|p| p.to_string()).unwrap_or_default()
}

fn host<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let url = url(a)?;
    let (host, port) = (url.host_str().unwrap_or_default(), port_text(url));
    Ok(Value::owned(if port.is_empty() { host.to_owned() } else { format!("{host}:{port}") }))
}

fn hostname<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::owned(url(a)?.host_str().unwrap_or_default().trim_matches(['[', ']'])))
}

fn port<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::owned(port_text(url(a)?)))
}

fn path<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    Ok(Value::owned(url(a)?.path()))
}

fn query<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Out<'a> {
    let url = url(a)?;
    let mut all: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for (key, value) in url.query_pairs() {
        c.budget.pay(1)?;
        all.entry(key.into_owned()).or_default().push(Value::owned(&*value));
    }
    let entries = all.into_iter().map(|(k, v)| (Key::Text(Text::Shared(k.into())), Value::list(v)));
    Ok(Value::Map(Map::Shared(Arc::new(entries.collect()))))
}
