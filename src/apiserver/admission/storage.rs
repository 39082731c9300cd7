//! `DefaultStorageClass`, `StorageObjectInUseProtection` and `PersistentVolumeClaimResize`.

use super::{AttributesExt, Cluster, array_mut};
use edge_api::{Object, Quantity, Status};
use edge_registry::{Attributes, Operation};
use serde_json::Value;

const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// A claim that names no class gets the newest of the default ones.
pub(super) async fn default_class(cluster: &dyn Cluster, a: &Attributes<'_>, claim: &mut Object) -> Result<(), Status> {
    if !a.is("", "persistentvolumeclaims")
        || claim.annotation(BETA_CLASS).is_some()
        || claim.pointer("/spec/storageClassName").is_some_and(|c| !c.is_null())
    {
        return Ok(());
    }
    let classes = cluster.list("storage.k8s.io", "storageclasses", "").await?;
    let class = classes
        .into_iter()
        .filter(|c| c.annotation(DEFAULT) == Some("true"))
        // of equally old ones the first by name
        .max_by(|x, y| {
            let created = |o: &Object| o.str_at("/metadata/creationTimestamp").to_owned();
            created(x).cmp(&created(y)).then_with(|| y.name().cmp(x.name()))
        });
    if let Some(class) = class {
        claim.section_mut("spec").insert("storageClassName".into(), class.name().into());
    }
    Ok(())
}

/// Claims, volumes and classes of volume attributes stay as long as they are used: their finalizer goes when the last user has gone.
pub(super) fn protect(a: &Attributes<'_>, object: &mut Object) {
    let finalizer = if a.is("", "persistentvolumeclaims") {
        "kubernetes.io/pvc-protection"
    } else if a.is("", "persistentvolumes") {
        "kubernetes.io/pv-protection"
    } else if a.is("storage.k8s.io", "volumeattributesclasses") {
        "kubernetes.io/vac-protection"
    } else {
        return;
    };
    if object.finalizers().any(|f| f == finalizer) {
        return;
    }
    if let Some(list) = array_mut(object.metadata_mut(), "finalizers") {
        list.push(Value::from(finalizer));
    }
}

/// A claim may grow only while it is bound, and when its class says that its volumes can.
pub(super) fn growth(cluster: &dyn Cluster, a: &Attributes<'_>, claim: &Object) -> Result<(), Status> {
    let Some(old) = a.old.filter(|_| a.is("", "persistentvolumeclaims") && a.operation == Operation::Update) else {
        return Ok(());
    };
    let size = |o: &Object| Quantity::parse(o.str_at("/spec/resources/requests/storage")).ok();
    if size(claim) <= size(old) {
        return Ok(());
    }
    if old.str_at("/status/phase") != "Bound" {
        return Err(a.forbidden(Some(claim), "Only bound persistent volume claims can be expanded"));
    }
    let class = class_of(claim);
    let allowed = !class.is_empty()
        && class == class_of(old)
        && (cluster.get("storage.k8s.io", "storageclasses", "", class))
            .is_some_and(|c| c.pointer("/allowVolumeExpansion") == Some(&Value::Bool(true)));
    if allowed {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(a.forbidden(Some(claim), why))
}

fn class_of(claim: &Object) -> &str {
    claim.annotation(BETA_CLASS).unwrap_or_else(|| claim.str_at("/spec/storageClassName"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, attributes};
    use super::*;
    use futures::executor::block_on;
    use serde_json::json;

    #[test]
    fn claims_get_the_newest_default_class_and_protection() {
        let class = |name: &str, created: &str, default: &str| json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {DEFAULT: default}}});
        let cluster = Fake::default()
            .with("storage.k8s.io/storageclasses//a", class("a", "2026-01-01T00:00:00Z", "true"))
            .with("storage.k8s.io/storageclasses//b", class("b", "2026-02-01T00:00:00Z", "true"))
            .with("storage.k8s.io/storageclasses//c", class("c", "2026-02-01T00:00:00Z", "true"))
            .with("storage.k8s.io/storageclasses//d", class("d", "2026-03-01T00:00:00Z", "false"));
        let run = |v: Value| {
            let mut o = Object::from_value(v).unwrap();
            attributes(Operation::Create, ("", "persistentvolumeclaims", "PersistentVolumeClaim"), "ns", "c", |a| {
                block_on(default_class(&cluster, a, &mut o)).unwrap();
                protect(a, &mut o);
            });
            o.into_value()
        };
        let claim = run(json!({"spec": {}}));
        assert_eq!(claim["spec"]["storageClassName"], "b");
        assert_eq!(claim["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
        assert_eq!(run(json!({"spec": {"storageClassName": ""}}))["spec"]["storageClassName"], "", "empty means none");
    }

    #[test]
    fn claims_grow_where_their_class_lets_them() {
        let class = |allow: Value| json!({"metadata": {"name": "c"}, "allowVolumeExpansion": allow});
        let cluster = Fake::default()
            .with("storage.k8s.io/storageclasses//yes", class(json!(true)))
            .with("storage.k8s.io/storageclasses//no", class(Value::Null));
        let claim = |class: &str, size: &str, phase: &str| {
            Object::from_value(
                json!({"spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}},
                "status": {"phase": phase}}),
            )
            .unwrap()
        };
        for (class, size, phase, part) in [
            ("yes", "2Gi", "Bound", ""),
            ("no", "1Gi", "Bound", ""),
            ("no", "512Mi", "Bound", ""),
            ("yes", "2Gi", "Pending", "Only bound persistent volume claims can be expanded"),
            ("no", "2Gi", "Bound", "the storageclass that provisions the pvc must support resize"),
            ("gone", "2Gi", "Bound", "the storageclass that provisions the pvc must support resize"),
            ("", "2Gi", "Bound", "the storageclass that provisions the pvc must support resize"),
        ] {
            let (old, new) = (claim(class, "1Gi", phase), claim(class, size, phase));
            let kind = ("", "persistentvolumeclaims", "PersistentVolumeClaim");
            let told = attributes(Operation::Update, kind, "ns", "c", |a| {
                growth(&cluster, &Attributes { old: Some(&old), ..*a }, &new)
                    .err()
                    .map(|e| e.message)
                    .unwrap_or_default()
            });
            assert!(
                if part.is_empty() { told.is_empty() } else { told.contains(part) },
                "{class} {size} {phase}: {told}"
            );
        }
    }
}
