//! Links in what a proxied pod or service answers. A page believes that it is at the root of its server, so its absolute
//! links have to lead back through the proxy: those in `Location` and those in HTML.

use crate::body::{Body, BoxError};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use html5gum::emitters::callback::{CallbackEmitter, CallbackEvent};
use html5gum::{Span, Tokenizer};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use std::convert::Infallible;

/// Longer pages pass as they are, rather than being held in memory.
const MAX_PAGE: usize = 4 << 20;

/// The attributes that hold a link, by element.
const LINKS: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Where a proxied server stands.
#[derive(Clone, Debug)]
pub(super) struct Links {
    /// The path that stands for the server's root, without a slash at its end.
    pub(super) prefix: String,
    /// The names by which links may mean the server itself: its address, and the host the client asked.
    pub(super) hosts: Vec<String>,
}

impl Links {
    /// The link through the proxy; `None` for one that stays as it is: to elsewhere, relative, or through the proxy already.
    fn through(&self, link: &str) -> Option<String> {
        let link = link.trim();
        let behind_scheme = ["http://", "https://", "//"].into_iter().find_map(|scheme| {
            link.get(..scheme.len()).filter(|head| head.eq_ignore_ascii_case(scheme)).map(|_| &link[scheme.len()..])
        });
        let path = match behind_scheme {
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, path) = rest.split_at(end);
                if !self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host)) {
                    return None;
                }
                path
            }
            None => link,
        };
        if !path.starts_with('/') {
            return None;
        }
        let known = path.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
        if known { behind_scheme.map(|_| path.to_owned()) } else { Some(format!("{}{path}", self.prefix)) }
    }

    /// The answer of the server with its links leading through the proxy.
    pub(super) async fn rewrite(&self, mut response: Response<Body>) -> Response<Body> {
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        if let Some(location) = location.and_then(|location| self.through(location)) {
            if let Ok(location) = HeaderValue::from_str(&location) {
                response.headers_mut().insert(LOCATION, location);
            }
            return response;
        }
        if !is_page(response.headers()) {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        let body = match whole(body).await {
            Ok(page) => {
                let page = self.page(&page);
                if parts.headers.contains_key(CONTENT_LENGTH) {
                    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(page.len()));
                }
                Body::full(page)
            }
            Err(other) => other,
        };
        Response::from_parts(parts, body)
    }

    /// A page with its links leading through the proxy; everything else in it stays, byte for byte.
    fn page(&self, page: &[u8]) -> Bytes {
        let mut element: Vec<u8> = Vec::new();
        let mut attribute: Vec<u8> = Vec::new();
        let mut emitter =
            CallbackEmitter::new(|event: CallbackEvent<'_>, span: Span<usize>| -> Option<(usize, usize, String)> {
                match event {
                    CallbackEvent::OpenStartTag { name } => element = name.to_vec(),
                    CallbackEvent::AttributeName { name } => attribute = name.to_vec(),
                    CallbackEvent::AttributeValue { value } if holds_link(&element, &attribute) => {
                        let link = self.through(std::str::from_utf8(value).ok()?)?;
                        return Some((start_of(page, value, &span)?, span.end, link));
                    }
                    _ => {}
                }
                None
            });
        // what scripts hold is no element, whatever it looks like
        emitter.naively_switch_states(true);
        let mut out = BytesMut::with_capacity(page.len() + 256);
        let mut copied = 0;
        for found in Tokenizer::new_with_emitter(page, emitter) {
            let Ok::<_, Infallible>((start, end, link)) = found;
            let Some(between) = page.get(copied..start) else { continue };
            out.extend_from_slice(between);
            // the value was decoded: what means something in HTML is written as it was
            out.extend_from_slice(link.replace('&', "&amp;").replace('"', "&quot;").as_bytes());
            copied = end;
        }
        out.extend_from_slice(page.get(copied..).unwrap_or_default());
        out.freeze()
    }
}

/// Where a value begins in the page. The tokenizer is exact about its end, and about the start of those in quotes.
fn start_of(page: &[u8], value: &[u8], span: &Span<usize>) -> Option<usize> {
    let as_written = span.end.checked_sub(value.len()).filter(|start| page.get(*start..span.end) == Some(value));
    let quoted =
        || span.start.checked_sub(1).and_then(|before| page.get(before)).is_some_and(|b| matches!(b, b'"' | b'\''));
    as_written.or_else(|| quoted().then_some(span.start))
}

fn holds_link(element: &[u8], attribute: &[u8]) -> bool {
    let attributes = LINKS.iter().find(|(name, _)| element.eq_ignore_ascii_case(name.as_bytes()));
    attributes.is_some_and(|(_, names)| names.iter().any(|name| attribute.eq_ignore_ascii_case(name.as_bytes())))
}

/// Whether an answer is HTML that can be read.
fn is_page(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let plain =
        headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
    plain && kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/html")
}

/// The whole page; the body as it was when it is too long, or breaks.
async fn whole(mut body: Body) -> Result<Bytes, Body> {
    if body.size_hint().lower() > MAX_PAGE as u64 {
        return Err(body);
    }
    let mut page = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    page.extend_from_slice(&data);
                }
                if page.len() > MAX_PAGE {
                    let first = futures::stream::iter([Ok(http_body::Frame::data(page.freeze()))]);
                    return Err(Body::stream(StreamBody::new(first.chain(BodyStream::new(body)))));
                }
            }
            Err(error) => {
                let frames = [Ok(http_body::Frame::data(page.freeze())), Err::<_, BoxError>(error)];
                return Err(Body::stream(StreamBody::new(futures::stream::iter(frames))));
            }
        }
    }
    Ok(page.freeze())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn links() -> Links {
        Links {
            prefix: "/api/v1/namespaces/d/pods/p/proxy".into(),
            hosts: vec!["10.42.0.7:80".into(), "edge:6443".into()],
        }
    }

    #[test]
    fn links_that_mean_the_server_lead_through_the_proxy() {
        let prefix = &links().prefix;
        for (link, expected) in [
            ("/", Some(format!("{prefix}/"))),
            ("/a?b=c#d", Some(format!("{prefix}/a?b=c#d"))),
            ("http://10.42.0.7:80/a", Some(format!("{prefix}/a"))),
            ("HTTPS://Edge:6443/a", Some(format!("{prefix}/a"))),
            ("//edge:6443/a", Some(format!("{prefix}/a"))),
            (&format!("http://edge:6443{prefix}/a"), Some(format!("{prefix}/a"))),
            ("a/b", None),
            ("?a", None),
            ("#a", None),
            ("", None),
            ("http://elsewhere/a", None),
            ("//elsewhere/a", None),
            ("mailto:a@b", None),
            (&format!("{prefix}/a"), None),
        ] {
            assert_eq!(links().through(link), expected, "{link}");
        }
        assert_eq!(links().through(&format!("{prefix}d")), Some(format!("{prefix}{prefix}d")), "not the same place");
    }

    #[test]
    fn only_links_change_in_a_page() {
        let page = "<!DOCTYPE html><!-- <a href=\"/x\"> --><A class='b' HREF='/x?a=1&amp;b=\"2\"'>/x</a>\
                    <img src=/y><a href=\"z\"><p src=\"/no\">1 &lt; 2</p><script src=\"/s.js\">'<a href=\"/in-script\">'</script><a href=\"\"><a href";
        let p = links().prefix;
        let expected = page
            .replace("'/x?a=1&amp;b=\"2\"'", &format!("'{p}/x?a=1&amp;b=&quot;2&quot;'"))
            .replace("src=/y", &format!("src={p}/y"))
            .replace("/s.js", &format!("{p}/s.js"));
        assert_eq!(links().page(page.as_bytes()), expected);
        assert_eq!(links().page(b"\xff<a href=\"/\xff\">"), &b"\xff<a href=\"/\xff\">"[..], "not UTF-8");
    }

    fn answer(kind: &str, body: Body) -> Response<Body> {
        Response::builder().header(CONTENT_TYPE, kind).header(CONTENT_LENGTH, 1).body(body).unwrap()
    }

    #[tokio::test]
    async fn pages_and_locations_are_rewritten_and_nothing_else() {
        let page = "<a href=\"/x\">";
        let html = links().rewrite(answer("text/html; charset=utf-8", Body::full(page))).await;
        let expected = format!("<a href=\"{}/x\">", links().prefix);
        assert_eq!(html.headers()[CONTENT_LENGTH], expected.len().to_string());
        assert_eq!(html.into_body().into_bytes(999).await.unwrap(), expected);
        let text = links().rewrite(answer("text/plain", Body::full(page))).await;
        assert_eq!(text.into_body().into_bytes(999).await.unwrap(), page);
        let mut redirect = answer("text/plain", Body::empty());
        redirect.headers_mut().insert(LOCATION, HeaderValue::from_static("/next"));
        assert_eq!(links().rewrite(redirect).await.headers()[LOCATION], format!("{}/next", links().prefix));
        // too long to be held: it comes whole, as it was
        let long = format!("{page}{}", "x".repeat(MAX_PAGE));
        let frames: Vec<Result<_, BoxError>> =
            long.as_bytes().chunks(1 << 20).map(|c| Ok(http_body::Frame::data(Bytes::copy_from_slice(c)))).collect();
        let long_answer = answer("text/html", Body::stream(StreamBody::new(futures::stream::iter(frames))));
        assert_eq!(links().rewrite(long_answer).await.into_body().into_bytes(9 << 20).await.unwrap(), long);
    }
}
