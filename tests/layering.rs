//! Who may know whom: the dependency rule of `docs/architecture.md`, read out of the rooms' manifests.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

/// Room, and the rooms that it may use. The root package (`cmd` and `config`) may use all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("sys", &[]),
    ("cel", &["api"]),
    ("schema", &["api"]),
    ("grpc", &[]),
    ("storage", &["grpc", "sys"]),
    ("backup", &["storage", "sys"]),
    ("pki", &["api", "sys"]),
    ("registry", &["api", "cel", "schema", "storage"]),
    ("auth", &["api", "pki"]),
    ("apiserver", &["api", "cel", "schema", "registry", "auth", "pki"]),
    ("client", &["api", "sys"]),
    ("kubectl", &["api", "client", "sys"]),
    ("controllers", &["api", "cel", "client"]),
    ("scheduler", &["api", "cel", "client"]),
    ("proxy", &["api", "client", "network"]),
    ("dns", &["api", "client"]),
    ("network", &["sys"]),
    ("image", &["pki", "sys"]),
    ("wasm", &["sys"]),
    ("runtime", &["sys", "wasm"]),
    ("streaming", &[]),
    ("kubelet", &["api", "client", "grpc", "image", "network", "pki", "runtime", "streaming", "sys", "wasm"]),
];

#[test]
fn rooms_use_only_what_they_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms = BTreeSet::new();
    for entry in std::fs::read_dir(src).unwrap() {
        let dir = entry.unwrap().path();
        let Ok(manifest) = std::fs::read_to_string(dir.join("Cargo.toml")) else { continue };
        let room = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let (_, allowed) = MAY_USE.iter().find(|(r, _)| *r == room).unwrap_or_else(|| panic!("{room} has no row here"));
        // what tests use is their own business
        let dependencies = manifest.split("[dev-dependencies]").next().unwrap();
        for line in dependencies.lines() {
            let Some(used) = line.strip_prefix("edge-").and_then(|l| l.split(['.', ' ', '=']).next()) else { continue };
            assert!(allowed.contains(&used), "src/{room}/Cargo.toml: {room} must not use {used}");
        }
        rooms.insert(room);
    }
    let rows: BTreeSet<String> = MAY_USE.iter().map(|(r, _)| (*r).to_owned()).collect();
    assert_eq!(rooms, rows);
}

/// In `tokio::select!` a pattern that does not match switches its branch off until another one has had its turn: the change is lost, and
/// so is the next one.
#[test]
fn no_kind_of_change_is_a_pattern_of_select() {
    fn look(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let lines =
                    text.lines().filter(|l| l.trim_start().starts_with("Some(Change::") && l.contains(".recv() =>"));
                found.extend(lines.map(|l| format!("{}: {}", path.display(), l.trim())));
            }
        }
    }
    let mut found = Vec::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.is_empty(), "take every change, then look what it is: {found:#?}");
}
