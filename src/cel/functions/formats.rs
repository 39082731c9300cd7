//! Kubernetes' named formats of text.

use super::{Context, Function, global, member, opaque, text};
use crate::error::Error;
use crate::value::{Opaque, Value};
use edge_api::names;

pub(super) static FUNCTIONS: &[Function] = &[
    global("format.named", &["string : optional<format>"], named),
    global("format.dns1123Label", &[" : format"], |_, _| of("dns1123Label")),
    global("format.dns1123Subdomain", &[" : format"], |_, _| of("dns1123Subdomain")),
    global("format.dns1035Label", &[" : format"], |_, _| of("dns1035Label")),
    global("format.qualifiedName", &[" : format"], |_, _| of("qualifiedName")),
    global("format.dns1123LabelPrefix", &[" : format"], |_, _| of("dns1123LabelPrefix")),
    global("format.dns1123SubdomainPrefix", &[" : format"], |_, _| of("dns1123SubdomainPrefix")),
    global("format.dns1035LabelPrefix", &[" : format"], |_, _| of("dns1035LabelPrefix")),
    global("format.labelValue", &[" : format"], |_, _| of("labelValue")),
    global("format.uri", &[" : format"], |_, _| of("uri")),
    global("format.uuid", &[" : format"], |_, _| of("uuid")),
    global("format.byte", &[" : format"], |_, _| of("byte")),
    global("format.date", &[" : format"], |_, _| of("date")),
    global("format.datetime", &[" : format"], |_, _| of("datetime")),
    member("validate", &["format string : optional<list<string>>"], validate),
];

const NAMES: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn of<'a>(name: &'static str) -> Result<Value<'a>, Error> {
    Ok(Value::opaque(Opaque::Format(name)))
}

fn named<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let wanted = text(a, 0)?;
    let found = NAMES.iter().find(|n| **n == &**wanted);
    Ok(found.map_or(Value::Optional(None), |name| Value::some(Value::opaque(Opaque::Format(name)))))
}

/// What is wrong with a text of a format.
fn judge(format: &str, text: &str) -> Result<(), String> {
    let prefix = |text: &str| text.strip_suffix('-').map_or(text.to_owned(), |t| format!("{t}a"));
    let fine = |is: bool, what: &str| if is { Ok(()) } else { Err(what.to_owned()) };
    match format {
        "dns1123Label" => names::dns1123_label(text),
        "dns1123Subdomain" => names::dns1123_subdomain(text),
        "dns1035Label" => names::dns1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "labelValue" => names::label_value(text),
        "dns1123LabelPrefix" => names::dns1123_label(&prefix(text)),
        "dns1123SubdomainPrefix" => names::dns1123_subdomain(&prefix(text)),
        "dns1035LabelPrefix" => names::dns1035_label(&prefix(text)),
        "uri" => fine(url::Url::parse(text).is_ok(), "invalid URI"),
        "uuid" => fine(is_uuid(text), "does not match the UUID format"),
        "byte" => {
            use base64::Engine as _;
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            fine(decoded.is_ok(), "invalid base64")
        }
        "date" => fine(text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(), "invalid date"),
        "datetime" => fine(text.len() >= 20 && text.parse::<jiff::Timestamp>().is_ok(), "invalid datetime"),
        _ => Ok(()),
    }
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|g| g.len()).collect();
    let is_hex = groups.iter().all(|g| g.bytes().all(|b| b.is_ascii_hexdigit()));
    is_hex && (lengths == [8, 4, 4, 4, 12] || lengths == [32])
}

fn validate<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let Opaque::Format(format) = opaque(a, 0)? else { return Err(Error::no_overload()) };
    let text = text(a, 1)?;
    c.budget.pay_bytes(text.len())?;
    Ok(match judge(format, text) {
        Ok(()) => Value::Optional(None),
        Err(why) => Value::some(Value::list(vec![Value::owned(why)])),
    })
}
