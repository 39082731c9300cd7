//! Certificate signing requests: who asks is written down, and who approves or signs must have the signer's leave.

use super::{AttributesExt, Cluster};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge_api::field::{ErrorList, Path};
use edge_api::{GroupResource, Object, Status, UserInfo};
use edge_pki::{RequestError, RequestFacts};
use edge_registry::{Attributes, Operation};
use serde_json::{Value, json};

const GROUP: &str = "certificates.k8s.io";
const RESOURCE: &str = "certificatesigningrequests";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn is_about(a: &Attributes<'_>) -> bool {
    (a.info.group.as_ref(), a.info.plural.as_ref()) == (GROUP, RESOURCE)
}

/// What the request holds, as far as it can be read.
pub(super) fn facts(object: &Object) -> Result<RequestFacts, RequestError> {
    let pem = STANDARD.decode(object.str_at("/spec/request")).map_err(|_| RequestError::Malformed)?;
    RequestFacts::parse(&pem)
}

/// Writes down who asks; what was asked stays as it is.
pub(super) fn complete(a: &Attributes<'_>, object: &mut Object) {
    if !is_about(a) {
        return;
    }
    match (a.operation, a.old) {
        (Operation::Create, _) => {
            let user = a.user;
            let spec = object.section_mut("spec");
            spec.insert("username".into(), json!(user.username));
            spec.insert("groups".into(), json!(user.groups));
            let mut put = |field: &str, value: Value, empty: bool| {
                if empty { drop(spec.remove(field)) } else { drop(spec.insert(field.into(), value)) }
            };
            put("uid", json!(user.uid), user.uid.is_empty());
            put("extra", json!(user.extra), user.extra.is_empty());
            object.fields_mut().remove("status");
        }
        (_, Some(old)) if a.subresource.is_empty() => {
            object.fields_mut().insert("spec".into(), old.get("spec").clone());
        }
        _ => {}
    }
}

/// Checks what is asked for, and the rights of who answers.
pub(super) fn validate(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    if !is_about(a) {
        return Ok(());
    }
    let signer = object.str_at("/spec/signerName");
    if a.operation == Operation::Create && a.subresource.is_empty() {
        return validate_new(a, object, signer);
    }
    let changed = |pointer: &str| a.old.is_none_or(|old| old.pointer(pointer) != object.pointer(pointer));
    let verb = match a.subresource {
        "approval" if changed("/status/conditions") => "approve",
        "status" if changed("/status/certificate") => "sign",
        _ => return Ok(()),
    };
    let signers = GroupResource::new(GROUP, "signers");
    let domain = signer.split('/').next().unwrap_or_default();
    let allowed = |name: &str| cluster.may(a.user, verb, &signers, "", name);
    if allowed(signer) || allowed(&format!("{domain}/*")) {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(a.forbidden(Some(object), &why))
}

fn validate_new(a: &Attributes<'_>, object: &Object, signer: &str) -> Result<(), Status> {
    let mut errors = ErrorList::new();
    let spec = Path::new("spec");
    if signer.is_empty() {
        errors.required(&spec.child("signerName"), "");
    } else if !signer.split_once('/').is_some_and(|(d, p)| d.contains('.') && !p.is_empty()) {
        errors.invalid(
            &spec.child("signerName"),
            &signer.into(),
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
    }
    if object.pointer("/spec/usages").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        errors.required(&spec.child("usages"), "");
    }
    let facts = facts(object);
    if let Err(error) = &facts {
        errors.invalid(&spec.child("request"), &object.get("spec")["request"], &error.to_string());
    }
    if !errors.is_empty() {
        return Err(Status::invalid(&a.info.gvk().group_kind(), object.name(), &errors));
    }
    let masters = facts.is_ok_and(|f| f.organizations.iter().any(|o| o == UserInfo::MASTERS));
    if signer == CLIENT_SIGNER && masters {
        let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
        return Err(a.forbidden(Some(object), &why));
    }
    Ok(())
}
