//! The checked-in table: it is what the generator makes of the facts, and says what Kubernetes says.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path, process::Command};

use edge_api::GroupVersionKind;
use edge_schema::{Leaf, ListType, MapType, Schema, Shape, TypeRef};

#[test]
fn the_generator_makes_the_same_bytes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let facts = root.join("../shared/k8s-1.36");
    if !facts.is_dir() {
        eprintln!("SKIPPED: {} is not there, so the table is not generated again", facts.display());
        return;
    }
    let made = std::env::temp_dir().join(format!("edge-schema-table-{}", std::process::id()));
    let status = Command::new(root.join("scripts/gen-schema")).arg(&facts).arg(&made).status().unwrap();
    assert!(status.success());
    let bytes = fs::read(&made).unwrap();
    fs::remove_file(&made).unwrap();
    assert!(bytes == include_bytes!("../table.bin"), "run scripts/gen-schema and check the table in");
    assert!(bytes.len() < 2 << 20);
}

fn ty(name: &str) -> TypeRef<'static> {
    Schema::builtin().named(&format!("io.k8s.api.{name}")).unwrap()
}

#[test]
fn merge_keys_and_strategies() {
    let spec = ty("core.v1.PodSpec");
    let containers = spec.field("containers").unwrap();
    assert!(containers.is_required() && containers.patch_merge() && !containers.patch_retain_keys());
    assert_eq!(containers.patch_merge_key(), Some("name"));
    let Some(ListType::Map(keys)) = containers.ty().list_type() else { panic!("{containers:?}") };
    assert_eq!(keys.iter().collect::<Vec<_>>(), ["name"]);
    let ports = containers.ty().element().unwrap().field("ports").unwrap();
    let Some(ListType::Map(keys)) = ports.ty().list_type() else { panic!("{ports:?}") };
    assert_eq!(keys.iter().collect::<Vec<_>>(), ["containerPort", "protocol"]);
    assert_eq!(ports.patch_merge_key(), Some("containerPort"));
    assert_eq!(ports.ty().element().unwrap().field("protocol").unwrap().default_json(), Some("\"TCP\""));
    assert!(spec.field("volumes").unwrap().patch_retain_keys());
    assert_eq!(spec.field("tolerations").unwrap().ty().list_type(), Some(ListType::Atomic));
    assert_eq!(spec.field("nodeSelector").unwrap().ty().map_type(), Some(MapType::Atomic));
    let strategy = ty("apps.v1.DeploymentSpec").field("strategy").unwrap();
    assert!(strategy.patch_retain_keys() && !strategy.patch_merge());
    let meta = ty("core.v1.Pod").field("metadata").unwrap().ty();
    let finalizers = meta.field("finalizers").unwrap();
    assert!(finalizers.patch_merge() && finalizers.patch_merge_key().is_none());
    assert_eq!(finalizers.ty().list_type(), Some(ListType::Set));
    assert_eq!(meta.field("labels").unwrap().ty().map_type(), Some(MapType::Granular));
    assert_eq!(ty("core.v1.ObjectReference").map_type(), Some(MapType::Atomic));
    let claim = ty("core.v1.PersistentVolumeSpec").field("claimRef").unwrap().ty();
    assert_eq!((claim.map_type(), claim.declared().map_type()), (Some(MapType::Granular), Some(MapType::Atomic)));
}

#[test]
fn inlined_fields_belong_to_the_outer_object() {
    let volume = ty("core.v1.Volume");
    assert!(volume.field("emptyDir").is_some() && volume.field("volumeSource").is_none());
    assert!(ty("core.v1.EphemeralContainer").field("image").is_some());
    assert!(ty("core.v1.Probe").field("httpGet").is_some());
    assert!(volume.fields().iter().any(|f| f.name() == "name"));
    assert!(volume.field("Name").is_none(), "names are case-sensitive");
}

#[test]
fn kinds() {
    let schema = Schema::builtin();
    let find = |group: &str, version: &str, kind: &str| schema.kind(&GroupVersionKind::new(group, version, kind));
    assert_eq!(find("apps", "v1", "Deployment").unwrap().name(), Some("io.k8s.api.apps.v1.Deployment"));
    assert_eq!(find("apps", "v1", "DeleteOptions"), find("", "v1", "DeleteOptions"));
    assert!(
        find("", "v1", "Status").is_some() && find("", "v1", "PodList").is_some() && find("", "v1", "List").is_some()
    );
    assert!(find("example.com", "v1", "Status").is_none() && find("apps", "v2", "Deployment").is_none());
    assert!(schema.kinds().count() > 300);
    for kind in schema.kinds() {
        assert!(matches!(kind.ty.shape(), Shape::Struct), "{kind:?}");
        assert_eq!(find(kind.group, kind.version, kind.kind), Some(kind.ty));
    }
    let bytes = find("", "v1", "Secret").unwrap().field("data").unwrap().ty().element().unwrap();
    assert!(matches!(bytes.shape(), Shape::Leaf(Leaf::Bytes)));
}

/// Every default is JSON, so that code may rely on it.
#[test]
fn defaults_parse() {
    let mut seen = 0;
    for kind in Schema::builtin().kinds() {
        let mut todo = vec![kind.ty];
        let mut depth = 0;
        while let Some(ty) = todo.pop().filter(|_| depth < 2000) {
            depth += 1;
            for field in ty.fields() {
                if field.default_json().is_some() {
                    seen += 1;
                    assert!(field.default().is_some(), "{field:?}");
                }
                todo.push(field.ty());
            }
            todo.extend(ty.element());
        }
    }
    assert!(seen > 1000);
}
