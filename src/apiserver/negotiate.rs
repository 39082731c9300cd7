//! Content negotiation: which encoding and which shape an answer takes, and which encoding a request came in.

use edge_api::Status;
use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

impl Encoding {
    /// The media type.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => PROTOBUF,
        }
    }

    /// The media type of a watch; `None` where there is no framing for it.
    pub(crate) fn watch_media_type(self) -> Option<&'static str> {
        match self {
            Self::Json => Some("application/json"),
            Self::Yaml => None,
            Self::Protobuf => Some("application/vnd.kubernetes.protobuf;stream=watch"),
        }
    }
}

/// As what an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As it is.
    Object,
    /// As rows for people, `meta.k8s.io/<version>` `Table`.
    Table(MetaVersion),
    /// Only its metadata, `meta.k8s.io/<version>` `PartialObjectMetadata`.
    Metadata(MetaVersion),
    /// A list of metadata; differs from [`Shape::Metadata`] only in what it may be asked of.
    MetadataList(MetaVersion),
}

/// A version of `meta.k8s.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaVersion {
    V1,
    V1Beta1,
}

impl MetaVersion {
    /// The `apiVersion` of the shapes.
    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// What the client accepts, settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// The encoding.
    pub(crate) encoding: Encoding,
    /// The shape.
    pub(crate) shape: Shape,
    /// Whether JSON is indented.
    pub(crate) pretty: bool,
    /// Whether a large answer may be compressed.
    pub(crate) gzip: bool,
}

impl Default for Accepted {
    /// Plain JSON: what a client gets that says nothing, and errors that come before negotiation.
    fn default() -> Self {
        Self { encoding: Encoding::Json, shape: Shape::Object, pretty: false, gzip: false }
    }
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const ALL: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const NO_PROTOBUF: &str = "application/json, application/yaml";
const ALL_WATCH: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// Whether the resource can be shown in the shape `as` of a media range asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One object.
    One,
    /// A list or a watch.
    Many,
    /// Nothing that has rows or metadata (discovery, reviews).
    Plain,
}

/// Settles `Accept`, `Accept-Encoding` and `pretty`.
///
/// # Errors
/// 406 when nothing that the client accepts can be produced.
pub(crate) fn accept(headers: &HeaderMap, scope: Scope, pretty: Option<bool>, watch: bool) -> Result<Accepted, Status> {
    accept_of(headers, scope, pretty, watch, true)
}

/// The same for objects that may have no protobuf form; their metadata has one.
///
/// # Errors
/// The same.
pub(crate) fn accept_of(
    headers: &HeaderMap,
    scope: Scope,
    pretty: Option<bool>,
    watch: bool,
    protobuf: bool,
) -> Result<Accepted, Status> {
    let gzip = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).any(|v| {
        v.split(',').any(|e| {
            let (name, params) = e.split_once(';').unwrap_or((e, ""));
            name.trim().eq_ignore_ascii_case("gzip") && params.trim() != "q=0"
        })
    });
    let texts: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let make = |encoding, shape| Accepted {
        encoding,
        shape,
        pretty: encoding == Encoding::Json && pretty.unwrap_or_else(|| is_browser_like(headers)),
        gzip,
    };
    if texts.iter().all(|t| t.trim().is_empty()) {
        return Ok(make(Encoding::Json, Shape::Object));
    }
    let mut ranges: Vec<(f32, MediaRange<'_>)> =
        texts.iter().flat_map(|t| t.split(',')).map(MediaRange::parse).collect();
    // a stable sort: of equal quality, what the client wrote first comes first
    ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, range) in &ranges {
        let Some(encoding) = range.encoding() else { continue };
        if watch && encoding.watch_media_type().is_none() {
            continue;
        }
        if let Some(shape) = range.shape(scope, encoding) {
            if !protobuf && encoding == Encoding::Protobuf && shape == Shape::Object {
                continue;
            }
            return Ok(make(encoding, shape));
        }
    }
    let list = match (watch, protobuf) {
        (true, true) => ALL_WATCH,
        (true, false) => "application/json;stream=watch",
        (false, true) => ALL,
        (false, false) => NO_PROTOBUF,
    };
    Err(Status::not_acceptable(format!("only the following media types are accepted: {list}")))
}

/// People who type `curl` or open a browser like to read what they get.
fn is_browser_like(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|a| a.starts_with("curl") || a.starts_with("Wget") || a.starts_with("Mozilla/5.0"))
}

struct MediaRange<'a> {
    kind: &'a str,
    wanted: Option<(&'a str, &'a str, &'a str)>,
}

impl<'a> MediaRange<'a> {
    fn parse(text: &'a str) -> (f32, Self) {
        let mut pieces = text.split(';').map(str::trim);
        let kind = pieces.next().unwrap_or_default();
        let (mut quality, mut shape, mut version, mut group) = (1.0, None, "", "");
        for p in pieces {
            let Some((k, v)) = p.split_once('=') else { continue };
            match k.trim() {
                "q" => quality = v.trim().parse().unwrap_or(1.0),
                "as" => shape = Some(v.trim()),
                "v" => version = v.trim(),
                "g" => group = v.trim(),
                _ => {}
            }
        }
        (quality, Self { kind, wanted: shape.map(|s| (s, group, version)) })
    }

    fn encoding(&self) -> Option<Encoding> {
        match self.kind {
            "application/json" | "*/*" | "application/*" => Some(Encoding::Json),
            "application/yaml" => Some(Encoding::Yaml),
            PROTOBUF => Some(Encoding::Protobuf),
            _ => None,
        }
    }

    fn shape(&self, scope: Scope, encoding: Encoding) -> Option<Shape> {
        let Some((kind, group, version)) = self.wanted else { return Some(Shape::Object) };
        if group != "meta.k8s.io" {
            return None;
        }
        let version = match version {
            "v1" => MetaVersion::V1,
            "v1beta1" => MetaVersion::V1Beta1,
            _ => return None,
        };
        match (kind, scope) {
            // Table has no protobuf form
            ("Table", Scope::One | Scope::Many) if encoding != Encoding::Protobuf => Some(Shape::Table(version)),
            ("PartialObjectMetadata", Scope::One | Scope::Many) => Some(Shape::Metadata(version)),
            ("PartialObjectMetadataList", Scope::Many) => Some(Shape::MetadataList(version)),
            _ => None,
        }
    }
}

/// The media type of the request body, without its parameters.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// The encoding of an object in the request body.
///
/// # Errors
/// 415 when it is none of the three.
pub(crate) fn request_encoding(headers: &HeaderMap) -> Result<Encoding, Status> {
    match content_type(headers) {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        PROTOBUF => Ok(Encoding::Protobuf),
        _ => Err(unknown_format(ALL)),
    }
}

/// The same of an object that has no protobuf form.
///
/// # Errors
/// 415 when it is none of the two.
pub(crate) fn custom_request_encoding(headers: &HeaderMap) -> Result<Encoding, Status> {
    match request_encoding(headers) {
        Ok(Encoding::Protobuf) | Err(_) => Err(unknown_format(NO_PROTOBUF)),
        other => other,
    }
}

/// The kinds of patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Strategic merge patch.
    Strategic,
    /// Server-side apply, the configuration written in YAML.
    Apply,
}

/// The kind of patch in the request body.
///
/// # Errors
/// 415 when it is none.
pub(crate) fn patch_kind(headers: &HeaderMap) -> Result<PatchKind, Status> {
    match content_type(headers) {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        _ => Err(unknown_format(
            "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
             application/apply-patch+yaml",
        )),
    }
}

fn unknown_format(accepted: &str) -> Status {
    Status::unsupported_media_type(format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn settle(text: &str, scope: Scope, watch: bool) -> Option<(Encoding, Shape)> {
        let mut h = HeaderMap::new();
        h.insert(ACCEPT, text.parse().unwrap());
        accept(&h, scope, None, watch).ok().map(|a| (a.encoding, a.shape))
    }

    #[test]
    fn accept_takes_the_first_that_can_be_made() {
        use Encoding::{Json, Protobuf, Yaml};
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let cases = [
            ("", Scope::One, false, Some((Json, Shape::Object))),
            ("*/*", Scope::One, false, Some((Json, Shape::Object))),
            ("application/yaml", Scope::One, false, Some((Yaml, Shape::Object))),
            ("application/yaml", Scope::Many, true, None),
            ("application/yaml, application/json;q=0.5", Scope::Many, true, Some((Json, Shape::Object))),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Scope::One,
                false,
                Some((Protobuf, Shape::Object)),
            ),
            (
                "application/json;q=0.1,application/vnd.kubernetes.protobuf",
                Scope::One,
                false,
                Some((Protobuf, Shape::Object)),
            ),
            (table, Scope::Many, false, Some((Json, Shape::Table(MetaVersion::V1)))),
            (table, Scope::One, true, Some((Json, Shape::Table(MetaVersion::V1)))),
            (table, Scope::Plain, false, Some((Json, Shape::Object))),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Scope::Many,
                false,
                Some((Protobuf, Shape::MetadataList(MetaVersion::V1))),
            ),
            ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v9", Scope::One, false, None),
            ("text/html", Scope::One, false, None),
            ("application/json;as=Table;g=other;v=v1", Scope::One, false, None),
        ];
        for (text, scope, watch, want) in cases {
            assert_eq!(settle(text, scope, watch), want, "{text}");
        }
    }

    #[test]
    fn refusals_have_kubernetes_wording() {
        let mut h = HeaderMap::new();
        h.insert(ACCEPT, "image/png".parse().unwrap());
        h.insert(CONTENT_TYPE, "text/plain".parse().unwrap());
        let e = accept(&h, Scope::One, None, false).unwrap_err();
        assert_eq!((e.code, e.reason), (406, edge_api::Reason::NotAcceptable));
        assert!(e.message.starts_with("only the following media types are accepted: application/json, "));
        let e = request_encoding(&h).unwrap_err();
        assert_eq!((e.code, e.reason), (415, edge_api::Reason::UnsupportedMediaType));
        assert_eq!(patch_kind(&h).unwrap_err().code, 415);
        h.insert(CONTENT_TYPE, "application/json; charset=utf-8".parse().unwrap());
        assert_eq!(request_encoding(&h).unwrap(), Encoding::Json);
    }
}
