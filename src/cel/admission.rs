//! The variables of admission policies.

use crate::env::Env;
use crate::types::{ObjectType, Type};
use std::sync::{Arc, LazyLock};

/// Place of `object`.
pub const OBJECT: usize = 0;
/// Place of `oldObject`.
pub const OLD_OBJECT: usize = 1;
/// Place of `request`.
pub const REQUEST: usize = 2;
/// Place of `params`.
pub const PARAMS: usize = 3;
/// Place of `namespaceObject`.
pub const NAMESPACE: usize = 4;
/// Place of `authorizer`.
pub const AUTHORIZER: usize = 5;
/// Place of `authorizer.requestResource`.
pub const REQUEST_RESOURCE: usize = 6;
/// The policy's own variables, `variables.name`, have the places from here on, in their order.
pub const OWN: usize = 7;

static REQUEST_TYPE: LazyLock<Type> = LazyLock::new(|| {
    let object = |name: &str, fields: &[(&str, Type)]| {
        let fields = fields.iter().map(|(n, t)| ((*n).to_owned(), t.clone()));
        Type::Object(Arc::new(ObjectType::new(format!("kubernetes.{name}"), fields)))
    };
    let text = || Type::String;
    let kind = object("GroupVersionKind", &[("group", text()), ("version", text()), ("kind", text())]);
    let resource = object("GroupVersionResource", &[("group", text()), ("version", text()), ("resource", text())]);
    let user = object(
        "UserInfo",
        &[
            ("username", text()),
            ("uid", text()),
            ("groups", Type::list(text())),
            ("extra", Type::map(Type::list(text()))),
        ],
    );
    object(
        "AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", text()),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
});

/// The type of `request`.
pub fn request_type() -> &'static Type {
    &REQUEST_TYPE
}

/// The variables of a policy's expression, without the policy's own. `params`: what the parameters are, if it has some; `asks`: whether it
/// may ask about rights. A variable that is not to be seen leaves its place.
pub fn env(object: Type, params: Option<Type>, asks: bool) -> Env {
    let seen = |name: &'static str, is: bool| if is { name } else { "" };
    Env::new()
        .with("object", object.clone())
        .with("oldObject", object)
        .with("request", REQUEST_TYPE.clone())
        .with(seen("params", params.is_some()), params.unwrap_or(Type::Dyn))
        .with("namespaceObject", Type::Dyn)
        .with(seen("authorizer", asks), Type::Opaque("kubernetes.authorization.Authorizer"))
        .with(seen("authorizer.requestResource", asks), Type::Opaque("kubernetes.authorization.ResourceCheck"))
}
