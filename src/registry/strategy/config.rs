//! ConfigMaps and Secrets: keys, size, immutability.

use super::{Strategy, immutable};
use edge_api::field::{ErrorList, Path};
use edge_api::{Object, names};
use serde_json::Value;

/// No more bytes of data than this.
const MAX_SIZE: usize = 1 << 20;
/// On a Secret with a token: whose it is.
const ACCOUNT: &str = "kubernetes.io/service-account.name";

pub(crate) static CONFIG_MAP: Strategy = Strategy {
    validate: |o, errors| data(o, &["data", "binaryData"], errors),
    validate_update: |new, live, errors| frozen(new, live, &["data", "binaryData"], errors),
    ..Strategy::DEFAULT
};

pub(crate) static SECRET: Strategy = Strategy {
    validate: |o, errors| {
        data(o, &["data"], errors);
        required_keys(o, errors);
    },
    validate_update: |new, live, errors| {
        immutable(new, live, "/type", errors);
        frozen(new, live, &["data"], errors);
    },
    ..Strategy::DEFAULT
};

fn data(o: &Object, sections: &[&str], errors: &mut ErrorList) {
    let mut size = 0;
    let mut seen = std::collections::HashSet::new();
    for section in sections {
        for (key, value) in o.get(section).as_object().into_iter().flatten() {
            let path = Path::new(section).key(key);
            if let Err(why) = names::config_map_key(key) {
                errors.invalid(&path, &key.as_str().into(), &why);
            }
            if !seen.insert(key) {
                errors.invalid(&path, &key.as_str().into(), "duplicate of key present in data");
            }
            let length = value.as_str().map_or(0, str::len);
            // base64 has four characters for three bytes
            size += if *section == "data" && o.kind() == "ConfigMap" { length } else { length / 4 * 3 };
        }
    }
    if size > MAX_SIZE {
        errors.too_long(&Path::root(), MAX_SIZE);
    }
}

fn required_keys(o: &Object, errors: &mut ErrorList) {
    let needed: &[&str] = match o.str_at("/type") {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in needed {
        if o.get("data").get(key).is_none() {
            errors.required(&Path::new("data").key(key), "");
        }
    }
    if o.str_at("/type") == "kubernetes.io/service-account-token"
        && o.annotation(ACCOUNT).unwrap_or_default().is_empty()
    {
        errors.required(&Path::new("metadata").child("annotations").key(ACCOUNT), "");
    }
}

fn frozen(new: &Object, live: &Object, sections: &[&str], errors: &mut ErrorList) {
    if live.get("immutable") != &Value::Bool(true) {
        return;
    }
    if new.get("immutable") != &Value::Bool(true) {
        errors.forbidden(&Path::new("immutable"), "field is immutable when `immutable` is set");
    }
    for section in sections {
        if new.get(section) != live.get(section) {
            errors.forbidden(&Path::new(section), "field is immutable when `immutable` is set");
        }
    }
}
