//! `NamespaceLifecycle`: nothing new in a namespace that is absent or going, and some namespaces that never go.

use super::{AttributesExt, Cluster};
use edge_api::status::StatusCause;
use edge_api::{GroupResource, Object, Status};
use edge_registry::{Attributes, Operation};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) fn admit(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    if a.namespace.is_empty() || a.operation != Operation::Create || a.is("", "namespaces") {
        return Ok(());
    }
    // what is submitted to an object that exists (a binding, an eviction) is nothing new in the namespace
    if !a.subresource.is_empty() {
        return Ok(());
    }
    // anybody may ask whether he could do something in a namespace that is not there
    if a.info.group == "authorization.k8s.io" {
        return Ok(());
    }
    let Some(namespace) = cluster.get("", "namespaces", "", a.namespace) else {
        return Err(Status::not_found(&GroupResource::new("", "namespaces"), a.namespace));
    };
    if namespace.str_at("/status/phase") != "Terminating" && !namespace.is_terminating() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {} because it is being terminated", a.namespace);
    let mut status = a.forbidden(Some(object), &why);
    status.details.get_or_insert_default().causes.push(StatusCause {
        reason: "NamespaceTerminating".into(),
        message: format!("namespace {} is being terminated", a.namespace),
        field: "metadata.namespace".into(),
    });
    Err(status)
}

pub(super) fn admit_deletion(a: &Attributes<'_>) -> Result<(), Status> {
    if a.is("", "namespaces") && IMMORTAL.contains(&a.name) {
        return Err(a.forbidden(None, "this namespace may not be deleted"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, POD, attributes};
    use super::*;
    use serde_json::json;

    #[test]
    fn creation_needs_a_living_namespace() {
        let cluster = Fake::default()
            .with("/namespaces//live", json!({"status": {"phase": "Active"}}))
            .with("/namespaces//dying", json!({"status": {"phase": "Terminating"}}));
        let pod = Object::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        let create = |ns| attributes(Operation::Create, POD, ns, "p", |a| admit(&cluster, a, &pod));
        create("live").unwrap();
        let e = create("absent").unwrap_err();
        assert_eq!((e.code, e.message.as_str()), (404, "namespaces \"absent\" not found"));
        let e = create("dying").unwrap_err();
        assert_eq!(e.code, 403);
        assert_eq!(
            e.message,
            "pods \"p\" is forbidden: unable to create new content in namespace dying because it is being terminated"
        );
        assert_eq!(e.details.unwrap().causes[0].reason, "NamespaceTerminating");
        attributes(Operation::Update, POD, "dying", "p", |a| admit(&cluster, a, &pod)).unwrap();
    }

    #[test]
    fn some_namespaces_stay() {
        let delete =
            |name: &str| attributes(Operation::Delete, ("", "namespaces", "Namespace"), name, name, admit_deletion);
        assert_eq!(
            delete("kube-system").unwrap_err().message,
            "namespaces \"kube-system\" is forbidden: this namespace may not be deleted"
        );
        delete("mine").unwrap();
    }
}
